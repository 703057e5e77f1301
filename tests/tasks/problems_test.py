"""The generated problems: splits that do not touch, solutions that are right, the same on every machine."""
import hashlib
import re
import subprocess
import sys
from itertools import islice

import pytest

from distill_jax.tasks import problems as made
from distill_jax.tasks.calculator import evaluate
from distill_jax.tasks.scenes import HELD_OUT, SCENES

MARK = re.compile(r'(\S+)=<<([^=<>]+)=(\d+)>>(\d+) ([a-z]+)')
# SHA-256 of the first 100 problems of every split, seed 0. It changes only when the generator does, and every figure with it.
DIGEST = 'b4db96d5daa66515028b0ef4e5a2626c50942d63546fa7337705bc1541b1d403'


@pytest.fixture(scope='module')
def train():
  return list(islice(made.draw('train'), 20_000))


@pytest.fixture(scope='module')
def held():
  return {split: list(islice(made.draw(split), 1500)) for split in made.SPLITS if split != 'train'}


def _norm(row):
  return ' '.join(row['question'].lower().split())


def _digest():
  text = '\n'.join(row['question'] + row['answer'] for split in made.SPLITS for row in made.problems(split, 100))
  return hashlib.sha256(text.encode()).hexdigest()


def test_solutions_are_right(train, held):
  for row in train[:4000] + [row for rows in held.values() for row in rows]:
    *steps, last = row['answer'].split('\n')
    assert 2 <= len(steps) <= 4, row
    for step in steps:
      left, expression, value, again, _ = MARK.fullmatch(step).groups()
      assert left == expression and value == again == evaluate(expression), step
    assert last == f'#### {value}' and int(value) > 0


def test_numbers_of_the_solution_stand_in_the_question(train):
  for row in train[:4000]:
    said = re.findall(r'\d+', row['question'])
    assert all(str(number) in said for number in row['numbers']), row
    assert len(said) - len(row['numbers']) in (0, 1)      # at most one number without a role


def test_some_problems_have_a_number_without_a_role(train):
  idle = sum(len(re.findall(r'\d+', row['question'])) > len(row['numbers']) for row in train)
  assert 0.2 < idle / len(train) < 0.4


def test_no_question_of_one_split_is_in_another(train, held):
  sets = dict(train={_norm(row) for row in train}) | {split: {_norm(row) for row in rows} for split, rows in held.items()}
  names = list(sets)
  for i, first in enumerate(names):
    for second in names[i + 1:]:
      assert not sets[first] & sets[second], (first, second)


def test_test_has_unseen_chains_and_unseen_numbers(train, held):
  chains, numbers = {(row['family'], row['chain']) for row in train}, {row['numbers'] for row in train}
  assert not chains & {(row['family'], row['chain']) for row in held['test']}
  for split in ('dev', 'test'):
    assert not numbers & {row['numbers'] for row in held[split]}, split
  assert not {row['numbers'] for row in held['dev']} & {row['numbers'] for row in held['test']}
  assert {(row['family'], row['chain']) for row in held['dev']} & chains


def test_every_step_of_a_held_out_chain_is_trained_in_its_family():
  for scene in SCENES:
    chains = made.chains(scene)
    trained = {step for chain in chains if not made.is_held_out(scene['name'], chain) for step in chain}
    assert trained == {step for chain in chains for step in chain}, scene['name']
  share = [made.is_held_out(scene['name'], chain) for scene in SCENES for chain in made.chains(scene)]
  assert 0.17 < sum(share) / len(share) < 0.23


def test_ranges(train, held):
  """Training never uses a number above 60 nor a result above 150; every test_range problem uses a number training does not."""
  factors = {'groups': 2, 'addg': 2, 'subg': 2, 'each': 1, 'packs': 1, 'price': 1, 'packprice': 2, 'times': 2}
  for row in train + held['dev'] + held['test'] + held['test_family']:
    assert all(2 <= number <= 60 for number in row['numbers'])
    assert all(int(value) <= 150 for value in re.findall(r'=(\d+)>>', row['answer']))
    if set(row['chain']) <= set(factors) | {'ask'}:
      assert max(row['numbers']) <= 12, row
    for a, b in re.findall(r'<<(\d+)\*(\d+)=', row['answer']):
      assert int(a) <= 12 and int(b) <= 12 and min(int(a), int(b)) <= 9 or int(b) == 2 and int(a) <= 30, row
  for row in held['test_range']:
    outside = [number for number in row['numbers'] if number > 60]
    wide = [factor for pair in re.findall(r'<<(\d+)[*/](\d+)=', row['answer']) for factor in pair if 13 <= int(factor) <= 19]
    assert outside or wide, row


def test_families(train, held):
  known = {scene['name'] for scene in SCENES}
  assert len(known) == len(SCENES) >= 24 and len(HELD_OUT) >= 4
  assert {row['family'] for row in train} == known
  assert {row['family'] for row in held['test_family']} == {scene['name'] for scene in HELD_OUT}
  assert not known & {scene['name'] for scene in HELD_OUT}


def test_words(train, held):
  """A closed vocabulary of common words; held-out families use mostly the same ones. Sentences begin with a capital."""
  def words(rows):
    return {word for row in rows for word in re.findall(r'[a-z]+', (row['question'] + ' ' + row['answer']).lower())}
  trained, all_words = words(train), words(train) | set().union(*map(words, held.values()))
  assert len(all_words) < 400
  assert words(held['test']) | words(held['dev']) | words(held['test_range']) <= trained
  assert len(words(held['test_family']) - trained) < 25
  lengths = [len(row['question'].split()) for row in train]
  assert 30 < sum(lengths) / len(lengths) < 45 and max(lengths) < 70
  for row in train[:2000]:
    assert not re.search(r'[{}]|  |\.\.|[.?] [a-z]', row['question']) and re.fullmatch(r'[A-Z0-9].*\?', row['question']), row['question']


def test_problems_are_different_and_prefixes_of_one_stream():
  rows = made.problems('train', 3000)
  assert len(rows) == len({_norm(row) for row in rows}) == 3000 and set(rows[0]) == {'question', 'answer'}
  assert made.problems('train', 50) == rows[:50] and made.problems('train', 0) == []
  assert made.problems('train', 50, seed=1) != rows[:50]


def test_same_everywhere():
  assert _digest() == DIGEST
  code = 'import runpy; print(runpy.run_path(%r)["_digest"]())' % __file__
  there = {'PYTHONPATH': ':'.join(sys.path), 'PYTHONHASHSEED': '7', 'JAX_PLATFORMS': 'cpu'}
  other = subprocess.run([sys.executable, '-c', code], env=there, capture_output=True, text=True, check=True)
  assert other.stdout.strip() == DIGEST


def test_unknown_split():
  with pytest.raises(ValueError, match='no split .validation.*train, dev, test'):
    made.problems('validation', 1)
