"""Stories: splits by construction, the narrator's rates with and without the answer shown, and what is kept, measured and handed on."""
import random

import pytest

from distill_jax.stages import records
from distill_jax.tasks import equations, moves
from distill_jax.tasks.stories import stories

COUNTS = dict(read=300, train=600, dev=100, test=100, test_longer=100)


def task(**keywords):
  return stories(**{'counts': COUNTS, **keywords})


@pytest.fixture(scope='module')
def rows():
  return {split: moves.stories(split, COUNTS[split]) for split in moves.SPLITS}


def told(row):
  """(person, thing) as the question has them."""
  words = row['question'].split()
  return words[0], words[3].rstrip('.')


def test_every_step_is_true_and_in_range(rows):
  for split, several in rows.items():
    assert {len(row['chain']) for row in several} == set(moves.STEPS[split])
    for row in several:
      before = int(row['question'].split()[2])
      for left, operation, number, result in row['chain']:
        assert left == before and result == moves.apply(left, operation, number) and 1 <= result <= moves.MOST
        before = result
      assert row['answer'] == str(before) and equations.valid(moves.tell(row['chain']))
      # every number of the solution is told, in its order, but for doubling and halving
      numbers = [word.rstrip('.') for word in row['question'].split() if word.rstrip('.').isdigit()]
      assert numbers == [str(row['chain'][0][0]), *(str(number) for _, operation, number, _ in row['chain'] if operation in '+-')]


def test_splits_share_no_entities_and_no_chains(rows):
  pairs = {split: set(map(told, several)) for split, several in rows.items()}
  taught = pairs['read'] | pairs['train'] | pairs['dev']
  assert not taught & (pairs['test'] | pairs['test_longer'])
  for side in (0, 1):
    assert {pair[side] for pair in pairs['test']} <= {pair[side] for pair in taught}
  chains = {split: {str(row['chain']) for row in several} for split, several in rows.items()}
  assert not chains['train'] & chains['test'] and not chains['train'] & chains['dev'] and not chains['dev'] & chains['test']
  assert all(len({row['question'] for row in several}) == len(several) for several in rows.values())


def test_a_smaller_set_is_the_beginning_of_a_larger_one(rows):
  assert moves.stories('train', 50) == rows['train'][:50] and moves.stories('train', 50, seed=1) != rows['train'][:50]
  ids = [e['id'] for e in task(seed=3).examples('test')]
  assert ids == [e['id'] for e in task().examples('test')] and len(set(ids)) == 100


def chance(example, sample=0):
  return random.Random(f'0/{example["id"]}/{sample}')


def narrated(made):
  return [(e, made.narrate(e, chance(e))) for e in made.examples('train')]


def test_the_narrator_is_right_as_often_as_it_should():
  plain, hinted = narrated(task(prompt='few_shot')), narrated(task(prompt='hint'))
  made = task()
  grades = [[made.grade(*pair) for pair in pairs] for pairs in (plain, hinted)]
  assert sum(grades[0]) / 600 == pytest.approx(0.6, abs=0.06) and sum(grades[1]) / 600 == pytest.approx(0.8, abs=0.06)
  for (example, a), (_, b), right in zip(plain, hinted, grades[0]):
    assert not right or a == b      # a hint changes only what was wrong
    if right:
      assert a == made.answer(example)
  bent = [text for (example, text), right in zip(hinted, grades[1]) if right and not equations.valid(text)]
  assert 0.01 < len(bent) / 600 < 0.09      # right answer, false step: a tenth of the wrong ones
  assert all(equations.valid(text) for (_, text), right in zip(plain, grades[0]) if right)
  wrong = [text for (_, text), right in zip(plain, grades[0]) if not right]
  assert 0.3 < sum(map(equations.valid, wrong)) / len(wrong) < 0.7      # slips have a false step, misreadings have none


def test_a_weaker_narrator_is_right_by_luck_too():
  made = task(right=0.35, lucky=0.15)
  pairs = narrated(made)
  assert sum(made.grade(*pair) for pair in pairs) / 600 == pytest.approx(0.35 + 0.65 * 0.15, abs=0.06)
  kept = [pair for pair in pairs if made.grade(*pair)]
  assert 0.7 < records.measures_of(made, kept)['true_steps'] < 0.95


def test_always_and_never_right():
  example = next(iter(task().examples('train')))
  for right, grade in ((1.0, 1.0), (0.0, 0.0)):
    made = task(right=right)
    assert all(made.grade(example, made.narrate(example, chance(example, n))) == grade for n in range(20))
  made = task(right=0.0, corrects=1.0, bends=0.0, prompt='hint')
  assert made.narrate(example, chance(example)) == made.answer(example)


@pytest.mark.parametrize('text, gold, grade', [
    ('She has 3 + 4 = 7. The answer is 7.', '7', 1.0), ('She has 3 + 4 = 7. The answer is 7.', '8', 0.0), ('The answer is 1,234.', '1234', 1.0),
    ('The answer is 3. No, wait. The answer is 4.', '4', 1.0), ('The answer is 3. No, wait. The answer is 4.', '3', 0.0),
    ('So it is 7.', '7', 0.0), ('3 + 4 = 7. The answer', '7', 0.0), ('The answer is 7.0.', '7', 1.0), ('the answer is $7', '7', 1.0), ('', '7', 0.0)])
def test_the_answer_behind_the_last_marker(text, gold, grade):
  assert task().grade(dict(answer=gold), text) == grade


@pytest.mark.parametrize('text, gold, figures', [
    ('3+4=7. The answer is 7.', '7', dict(lenient=1, complete=1, rewritten=1, true_steps=1)),
    ('3+4=8. The answer is 8.', '7', dict(lenient=0, complete=1, rewritten=1, true_steps=0)),
    ('3+5=8. 2+2=7. The answer is 7.', '7', dict(lenient=1, complete=1, rewritten=0, true_steps=0)),
    ('so there are 7', '7', dict(lenient=1, complete=0, rewritten=0)),
    ('3+4=7. The answer', '7', dict(lenient=1, complete=0, rewritten=0, true_steps=1)),
    ('', '7', dict(lenient=0, complete=0, rewritten=0))])
def test_measures(text, gold, figures):
  assert task().measures(dict(answer=gold), text) == figures


def test_mixed_answers_are_bare_or_whole_by_id():
  made, bare, chain = task(completion='mixed'), task(completion='answer'), task()
  answers = [(made.answer(e), bare.answer(e), chain.answer(e)) for e in made.examples('read')]
  assert all(a in (b, c) for a, b, c in answers) and 0.4 < sum(a == b for a, b, _ in answers) / len(answers) < 0.6


@pytest.mark.parametrize('keywords, message', [
    (dict(right=1.2), 'right=1.2 is no share'), (dict(corrects=0.8, bends=0.4), 'together at most 1'), (dict(counts=dict(valid=3)), "counts names 'valid'"),
    (dict(prompt='hinted'), "prompt='hinted'"), (dict(completion='cot'), "completion='cot'")])
def test_wrong_settings(keywords, message):
  with pytest.raises(ValueError, match=message):
    stories(**keywords)


def test_more_than_there_are():
  with pytest.raises(ValueError, match="no split 'tests'"):
    moves.stories('tests', 1)


def test_sizes_of_the_published_training_set(shared):
  """The usable 5,337 chains that are told of GSM8K are 79.4 % of nine tenths of its training problems: validation took the tenth."""
  import gzip
  with gzip.open(shared / 'data/gsm8k/train.jsonl.gz', 'rt') as lines:
    count = sum(1 for line in lines if line.strip())
  assert int(0.9 * count) == 6725 and round(100 * 5337 / int(0.9 * count), 1) == 79.4
