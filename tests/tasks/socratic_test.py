"""Socratic CoT's task: its format, the pairs of every student, sub-questions of generated problems, the narrator, real files."""
import collections
import gzip
import json
import math
import random
import re

import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.core import keys
from distill_jax.core.types import Head, Model, Role
from distill_jax.data import rows as rows_lib, text as text_lib
from distill_jax.methods import METHODS
from distill_jax.stages.roles import find
from distill_jax.tasks import TASKS, subquestions
from distill_jax.tasks.calculator import calculator, evaluate
from distill_jax.tasks.gsm8k import extract
from distill_jax.tasks.socratic import PARTS, count_reward, join, number, parse, shots_of, socratic, value

DUCKS = 'How many? ** 16 - 3 - 4 = <<16-3-4=9>>9 eggs.\nHow much? ** 9 * 2 = $<<9*2=18>>18.\n#### 18'
PENS = dict(id='0' * 16, split='train', question='Tom had 3 boxes of 12 pens. He lost 6 and shared the rest with 4 friends.', answer='#### 6', steps=[
    ('How many pens were in all the boxes?', '3*12=<<3*12=36>>36 pens'), ('How many were left?', '36-6=<<36-6=30>>30 pens'),
    ('How many did each get?', '30/5=<<30/5=6>>6 pens')])


def _learn(part, **more):
  return socratic(part=part, counts=dict(train=1), **more).learn(PENS, join(PENS['steps']))


def test_parse_of_the_published_format():
  pairs, final = parse(DUCKS)
  assert [q for q, _ in pairs] == ['How many?', 'How much?'] and [value(s) for _, s in pairs] == ['9', '18'] and final == '18'
  assert join(pairs) == join(pairs, '18') == DUCKS


@pytest.mark.parametrize('text', ['How many? 16 - 3', 'a ** b ** c', 'a ** 1\n\nb ** 2'])
def test_a_line_without_one_separator_is_named(text):
  with pytest.raises(ValueError, match=r'file:3, line \d: .* separators'):
    parse(text + '\n#### 1', 'file:3')


@pytest.mark.parametrize('text, expected', [
    ('1,000', '1000'), ('$18.', '18'), ('9.0', '9'), ('12.50', '12.5'), ('.4', '0.4'), ('-3', '-3'), ('-0', '0'), ('100', '100'), ('1/2', None), ('', None), ('nan', None)])
def test_numbers_are_compared_as_numbers(text, expected):
  assert number(text) == expected


@pytest.mark.parametrize('step, expected', [
    ('80,000*1.5=<<80000*1.5=120000>>120,000', '120000'), ('She has 9 * 2 = $<<9*2=18>>18.', '18'), ('so 4 of 12 are left', '12'), ('<<1+1=2>>2, <<2*3=6>>6 of 9', '6'),
    ('it costs $1,250.50.', '1250.5'), ('none', None), ('', None), ('<<a=b>>7', '7')])
def test_the_answer_of_a_step(step, expected):
  assert value(step) == expected


@pytest.mark.parametrize('text, rest', [
    ('... <<3*4=', '12>>'), ('<<3*x=', ''), ('<<1,000+5=', '1005>>'), ('<<10/4=', '2.5>>'), ('<<3 * 4=', ''), ('<<2+2=4>> 5 =', '')])
def test_calculator_of_the_published_code(text, rest):
  assert calculator(text) == rest


@pytest.mark.parametrize('text, answer', [('#### -1,234.5', '-1234.5'), ('no marker', None), ('#### 18.', '18.')])
def test_extraction_of_the_published_code(text, answer):
  assert extract(text) == answer


def test_count_reward():
  assert count_reward('x? y?', 'a? b? c?') == pytest.approx(2 / 3)
  assert count_reward('', 'a? b?') == 0.5 and count_reward('a? b?', 'c? d?') == 1.0 and count_reward('a?' * 7, 'b? b? b?') == pytest.approx(-1 / 3)


def test_the_pairs_of_every_student():
  question, (q, s) = PENS['question'] + '\n', zip(*PENS['steps'])
  assert _learn('decomposer') == [(question, '\n'.join(q))]
  assert _learn('solver') == [
      (question + q[0] + '\n', s[0]), (question + f'{q[0]}\n{s[0]}\n{q[1]}\n', s[1]), (question + f'{q[0]}\n{s[0]}\n{q[1]}\n{s[1]}\n{q[2]}\n', s[2])]
  assert _learn('unified') == [(question, '\n'.join(f'{a} ** {b}' for a, b in PENS['steps']) + '\n#### 6')]
  assert _learn('cot') == [(question, '\n'.join(s) + '\n#### 6')] and _learn('answer') == [(question, '#### 6')]
  assert _learn('asked') == [(question + '\n'.join(q) + '\n', '\n'.join(s) + '\n#### 6')]


def test_target_tokens_of_the_solver_are_those_of_the_chain():
  """One EOS a step stands for one line end a step: without its last line the chain has as many targets as all steps of the solver."""
  text = text_lib.load_text(str(find('bundled:teacher')))
  targets = lambda part: sum(len(text.encode(completion)) + 1 for _, completion in _learn(part))
  assert targets('solver') == targets('cot') - len(text.encode('#### 6')) - 1


def test_token_sum_identity():
  """Under a uniform model over V the two losses of a problem sum to (all tokens of sub-questions and steps, an end for each) ln V."""
  text, V = text_lib.load_text(str(find('bundled:teacher'))), 1024
  apply = lambda params, batch, **_: {'hidden': jnp.zeros((*np.shape(batch['tokens']), 2)), 'head': Head(jnp.zeros((2, V)))}
  method = METHODS['sft']({'student': Role(Model(None, apply, (), None))})
  total = 0.0
  for part in ('decomposer', 'solver'):
    made = [rows_lib.render(text, *pair, id_2=keys.content_id(part, n)) for n, pair in enumerate(_learn(part))]
    rows = rows_lib.unpacked(made, length=128)
    total += float(method.loss({'student': {}}, rows.batch(list(range(len(rows)))), None)[0]['cross_entropy'].total)
  words = sum(len(text.encode(piece)) + 1 for pair in PENS['steps'] for piece in pair)
  assert total == pytest.approx(words * math.log(V), rel=1e-5)


def test_what_does_not_parse_or_does_not_end_in_its_answer_teaches_nothing():
  task = TASKS['socratic'](part='solver', counts=dict(train=1))
  for text in ('no sub-question\n#### 6', 'a? ** 5 pens\n#### 6', '#### 6', 'a? ** 6 pens', ''):
    assert task.learn(PENS, text) == []
  assert len(task.learn(PENS, 'a? ** 6 pens\n#### 6.0')) == 1


def test_verdicts():
  task = socratic(counts=dict(train=1))
  wrong = join([*PENS['steps'][:1], ('How many were left?', '36-6=<<36-6=31>>31 pens'), PENS['steps'][2]])
  for text, verdict in ((join(PENS['steps']), 'right'), (wrong, 'right, with a wrong step'), ('#### 6.0', 'right'), ('#### 7', 'wrong answer'), ('6', 'no answer'), (' ', 'empty')):
    assert task.explain(PENS, text) == verdict and task.grade(PENS, text) == float(verdict.startswith('right'))
  assert task.measures(PENS, wrong) == task.measures(PENS, '36\n31\n6\n#### 6') == dict(steps_right=pytest.approx(2 / 3)) and task.measures(PENS, '') == dict(steps_right=0.0)
  count = socratic(part='decomposer', counts=dict(train=1))
  assert [count.explain(PENS, text) for text in ('a?\nb?\nc?', 'a?', 'a?\n' * 4)] == ['right', 'too few sub-questions', 'too many sub-questions']
  step = socratic(part='solver', counts=dict(train=1))
  assert [step.explain(dict(answer='4+5=<<4+5=9>>9 pens'), text) for text in ('<<4+5=9>>', '5', 'x')] == ['right', 'wrong answer', 'no answer']


@pytest.mark.parametrize('split, counts', [('train', {2, 3, 4}), ('test', {2, 3, 4}), ('test_long', {5, 6})])
def test_generated_problems(split, counts):
  task = socratic(counts={split: 150})
  seen = collections.Counter()
  for example in task.examples(split):
    pairs, final = parse(task.answer(example))
    assert pairs == example['steps'] and task.grade(example, task.answer(example)) == 1.0 and value(pairs[-1][1]) == final
    questions = [q for q, _ in pairs]
    assert len(set(questions)) == len(questions) and not re.search(r'\d', ''.join(questions)) and all(q.endswith('?') and q.count('?') == 1 for q in questions)
    assert all(evaluate(s.split('=')[0]) == value(s) for _, s in pairs)
    seen[task.group(example)] += 1
  assert set(map(int, seen)) == counts and min(seen.values()) > 10


def test_longer_problems_are_in_no_other_split():
  chosen = dict(families=('shop', 'toys'))
  questions = lambda split: {e['question'] for e in socratic(counts={split: 200}, **chosen).examples(split)}
  assert not questions('test_long') & (questions('train') | questions('test'))
  small = list(socratic(counts=dict(train=40), largest=9, **chosen).examples('train'))
  words = ' '.join(q for e in small for q, _ in e['steps'])
  assert len(small) == 40 and not re.search('muffins|carrots', words) and all(max(map(int, re.findall(r'^(\d+)', e['steps'][0][1]))) <= 9 for e in small)
  bare = [e['question'] for e in socratic(counts=dict(train=40), extras=False, **chosen).examples('train')]
  assert not re.search('good friends|years old|warm day|lived in', ' '.join(bare)) and re.search('good friends|years old|warm day|lived in', ' '.join(questions('train')))
  with pytest.raises(ValueError, match='asked with largest=1, only 0 found'):
    list(socratic(counts=dict(train=40), largest=1).examples('train'))
  with pytest.raises(ValueError, match="no family 'shops' in split 'test'"):
    list(socratic(counts=dict(test=1), families=('shops',)).examples('test'))


def test_chains_of_sums():
  task = socratic(families='sums', counts=dict(train=200, test=100, test_long=40))
  split = {name: list(task.examples(name)) for name in ('train', 'dev', 'test', 'test_long')}
  assert [len(split[name]) for name in ('train', 'test', 'test_long')] == [200, 100, 40]
  questions = [e['question'] for rows in split.values() for e in rows]
  assert len(questions) == len(set(questions))
  for name, rows in split.items():
    assert {len(e['steps']) for e in rows} == ({5, 6} if name == 'test_long' else {2, 3, 4})
    for e in rows:
      final = str(eval(e['question'].removeprefix('How many are ').rstrip('?')))
      assert extract(e['answer']) == final == value(e['steps'][-1][1]) and parse(e['answer'])[0] == e['steps'] and task.grade(e, task.answer(e)) == 1.0
      assert all(evaluate(s.split('=')[0]) == value(s) for _, s in e['steps'])
  told = [task.narrate(e, random.Random(i)) for i, e in enumerate(split['train'])]
  right = sum(task.grade(e, text) for e, text in zip(split['train'], told))
  assert 80 < right < 170      # some of its steps are wrong
  with pytest.raises(ValueError, match="families='sums' are no stories"):
    socratic(families='sums', largest=9)
  with pytest.raises(ValueError, match='families='):
    socratic(families='sums', source='.')


def test_examples_of_the_solver_are_steps():
  whole, task = socratic(counts=dict(train=8)), socratic(part='solver', counts=dict(train=8))
  steps = list(task.examples('train'))
  pairs = [pair for e in whole.examples('train') for pair in task.learn(e, whole.answer(e))]
  assert [(task.prompt(e), task.answer(e)) for e in steps] == pairs and len({e['id'] for e in steps}) == len(steps)
  assert collections.Counter(map(task.group, steps)) == {str(n): n * count for n, count in collections.Counter(len(e['steps']) for e in whole.examples('train')).items()}


def test_the_narrator():
  task = socratic(counts=dict(train=400))
  examples = list(task.examples('train'))
  told = [task.narrate(e, random.Random(e['id'])) for e in examples]
  assert told == [task.narrate(e, random.Random(e['id'])) for e in examples]
  assert all(socratic(wrong=0.0).narrate(e, random.Random(0)) == task.answer(e) for e in examples[:50])
  verdicts = collections.Counter(task.explain(e, text) for e, text in zip(examples, told))
  assert set(verdicts) == {'right', 'wrong answer', 'right, with a wrong step'} and verdicts['right, with a wrong step'] > 10
  first = [value(parse(text)[0][0][1]) != value(e['steps'][0][1]) for e, text in zip(examples, told)]
  assert 0.13 < np.mean(first) < 0.25      # a wrong operation may hit the right result
  assert all(len(parse(text)[0]) == len(e['steps']) for e, text in zip(examples, told))


def test_an_error_is_carried_on_or_left_behind():
  class Fixed(random.Random):
    def __init__(self, slip):
      super().__init__(0)
      self.draws, self.slip = iter([0.0, 1.0, 1.0]), slip
    def random(self):
      return next(self.draws)
    def choice(self, values):
      return self.slip if self.slip in values else values[-1]
  told = {slip: [s for _, s in subquestions.narrate(PENS['steps'], Fixed(slip), wrong=0.2)] for slip in subquestions.SLIPS}
  assert told['result'] == ['3*12=<<3*12=46>>46 pens', '46-6=<<46-6=40>>40 pens', '40/5=<<40/5=8>>8 pens']
  assert told['operation'][:2] == ['3-12=<<3-12=-9>>-9 pens', '-9-6=<<-9-6=-15>>-15 pens']
  assert told['unused'] == ['3*12=<<3*12=46>>46 pens', *[s for _, s in PENS['steps'][1:]]]


def test_worked_problems_before_a_prompt():
  for part in PARTS:
    task = socratic(part=part, shots=4, counts=dict(train=1))
    example = next(iter(task.examples('train')))
    prompt = task.prompt(example)
    assert prompt.startswith(shots_of(part, 4)) and prompt.endswith(socratic(part=part, counts=dict(train=1)).prompt(example)) and prompt.count('\n\n') == 4
  blocks = shots_of('unified', 4).strip().split('\n\n')
  for block in blocks:
    steps, final = parse(block.partition('\n')[2])
    assert all(evaluate(re.findall('<<(.*)=', s)[0]) == value(s) for _, s in steps) and value(steps[-1][1]) == final
  with pytest.raises(ValueError, match='shots=9: socratic.txt has 4'):
    socratic(shots=9)


def _write(path, *rows):
  path.write_bytes(gzip.compress(''.join(json.dumps(row) + '\n' for row in rows).encode()))


def test_a_directory(tmp_path):
  row = dict(question='Ducks?', answer=DUCKS)
  _write(tmp_path / 'train.jsonl.gz', *[dict(question=f'What is {n} and {n}?', answer=f'{n}+{n}=<<{n}+{n}={2 * n}>>{2 * n}\n#### {2 * n}') for n in range(60)])
  _write(tmp_path / 'test_socratic_even.jsonl.gz', row)
  task = socratic(source=str(tmp_path))
  assert [e['steps'] for e in task.examples('test')] == [parse(DUCKS)[0]] and task.narrate is None
  plain = list(task.examples('train'))
  assert 0 < len(list(task.examples('dev'))) < 12 and plain[0]['steps'] == [] and task.prompt(plain[0]).startswith('What is') and task.group(plain[0]) == 'unknown'
  with pytest.raises(ValueError, match='has no sub-questions; give the task a .*_socratic file'):
    task.answer(plain[0])
  assert socratic(source=str(tmp_path), part='solver').learn(plain[0], DUCKS)[1][1].startswith('9 * 2')
  bare = next(iter(socratic(source=str(tmp_path), calculator_marks=False).examples('test')))
  assert [s for _, s in bare['steps']] == ['16 - 3 - 4 = 9 eggs.', '9 * 2 = $18.'] and [value(s) for _, s in bare['steps']] == ['9', '18']
  _write(tmp_path / 'train_socratic.jsonl.gz', *[dict(row, question=str(n)) for n in range(40)])
  assert all(len(e['steps']) == 2 for e in socratic(source=str(tmp_path)).examples('train'))
  _write(tmp_path / 'test_socratic_even.jsonl.gz', row, dict(row, answer='How many? ** 9\nand no separator\n#### 9'))
  with pytest.raises(ValueError, match='test_socratic_even.jsonl.gz:2, line 2: .* has 0 separators'):
    list(socratic(source=str(tmp_path)).examples('test'))


@pytest.mark.parametrize('keywords, error, message', [
    (dict(part='question'), ValueError, "part='question': one of unified, decomposer"), (dict(counts=dict(tests=3)), ValueError, "counts names 'tests'"),
    (dict(source='/nowhere'), FileNotFoundError, 'no directory /nowhere'), (dict(source='.', families=('shop',)), ValueError, 'families= chooses among the generated'),
    (dict(source='.', largest=9), ValueError, 'largest= chooses among the generated'), (dict(source='.', extras=False), ValueError, 'extras= chooses among')])
def test_what_it_does_not_take(keywords, error, message):
  with pytest.raises(error, match=message):
    list(socratic(**keywords).examples('test'))


def test_a_directory_without_socratic_files(tmp_path):
  (tmp_path / 'test.jsonl').write_text('')
  with pytest.raises(FileNotFoundError, match=r'holds no test\*_socratic.jsonl'):
    list(socratic(source=str(tmp_path)).examples('test'))


def test_the_real_file(shared):
  """The published even half: its histogram, a separator in every line but the last, and 657 of 660 last steps that give the final answer."""
  raw = [json.loads(line) for line in gzip.open(shared / 'data/gsm8k/test_socratic_even.jsonl.gz', 'rt')]
  assert all(line.count(' ** ') == 1 for row in raw for line in row['answer'].split('\n')[:-1]) and all(row['answer'].split('\n')[-1].startswith('#### ') for row in raw)
  task = socratic(source=str(shared / 'data/gsm8k'))
  examples = list(task.examples('test'))
  assert collections.Counter(len(e['steps']) for e in examples) == {2: 160, 3: 195, 4: 140, 5: 87, 6: 48, 7: 17, 8: 11, 9: 2}
  assert sum(value(e['steps'][-1][1]) == number(extract(e['answer'])) for e in examples) == 657
  assert all(task.grade(e, task.answer(e)) == 1.0 and join(e['steps'], e['answer'].rpartition('#### ')[2]) == e['answer'] for e in examples)
  learnt = sum(len(socratic(part='solver').learn(e, e['answer'])) for e in examples)
  assert learnt == sum(len(e['steps']) for e in examples if value(e['steps'][-1][1]) == number(extract(e['answer'])))
