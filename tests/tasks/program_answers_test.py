"""Programs for word problems: what is kept of a text, when it passes, what prompts and pairs look like, and programs that are only read."""
import gzip
import json
import math
import random
from itertools import islice

import pytest

from distill_jax.tasks import TASKS, problems, straight
from distill_jax.tasks.program_lines import made_up, program, spoilt, write
from distill_jax.tasks.programs import Check, END, gold, right, truncate

PAPER, STRICT = Check('paper', 0.01), Check('strict', 1e-6)
make = TASKS['programs']


def example(answer='#### 100', question='How many?'):
  return dict(id='1', question=question, answer=answer, split='train')


# what is kept of a text


def test_a_text_is_cut_after_its_answer_line():
  assert truncate('\nn0 = 2.0\nanswer = n0 * 3\nprint(1)\n') == '\nn0 = 2.0\nanswer = n0 * 3\n'
  assert truncate('n0 = 1\nanswer = n0\nanswer = 7\n') == 'n0 = 1\nanswer = n0\n'
  assert truncate('n0 = 1\nanswer = n0\n\n# another') == 'n0 = 1\nanswer = n0\n'
  assert truncate('n0 = 1\nanswer = n0<|endoftext|>\nx') == 'n0 = 1\nanswer = n0\n'
  assert END.pattern == r'\nanswer.*?\n'


def test_a_text_without_an_answer_line_is_kept_whole_and_fails():
  text = 'n0 = 100\nresult = n0 * 1\n'
  assert truncate(text) == text
  task = make()
  assert task.grade(example(), text) == 0.0 and task.explain(example(), text) == 'no answer'


# when it passes


@pytest.mark.parametrize('value, check, passes', ids=lambda x: str(x)[:12], argvalues=[
    (99.5, PAPER, True), (101.0, PAPER, False), (100, PAPER, False), (100.0, PAPER, True), (99.0, PAPER, False), (100.999, PAPER, True),
    (100, STRICT, True), (100.0, STRICT, True), (99.5, STRICT, False), (100.00005, STRICT, True), (100.001, STRICT, False),
    (True, STRICT, False), ('100', STRICT, False), (None, STRICT, False), ([100], STRICT, False),
    (math.nan, PAPER, False), (math.nan, STRICT, False), (math.inf, PAPER, False), (10**400, STRICT, False)])
def test_checks(value, check, passes):
  assert right(value, 100, check) is passes


def test_a_negative_gold_number_passes_in_paper_mode_when_exact_only():
  assert right(-5.0, -5, PAPER) and not right(-5.0001, -5, PAPER)      # max(gold, 1e-5), as the paper's code has it
  assert right(-5.000001, -5, STRICT) and not right(-5.0001, -5, STRICT)
  assert right(0.0, 0, PAPER) and right(0, 0, STRICT) and not right(0.001, 0, STRICT)


def test_grades_of_the_task_in_both_modes():
  texts = ['answer = 99.5', 'answer = 101.0', 'answer = 100', 'answer = 50 * 2.0', 'answer = 1 +', 'answer = n7', '', 'x = 1']
  pairs = [(example(), text) for text in texts]
  paper, strict, loose = make(check='paper'), make(), make(rel_tol=0.02)
  assert paper.grades(pairs) == [1, 0, 0, 1, 0, 0, 0, 0]
  assert strict.grades(pairs) == [0, 0, 1, 1, 0, 0, 0, 0] == [strict.grade(*pair) for pair in pairs]
  assert loose.grades(pairs)[:4] == [1, 1, 1, 1]
  assert [paper.explain(*pair) for pair in pairs] == ['right', 'wrong answer', 'answer is an int', 'right', 'error: SyntaxError', 'error: NameError',
                                                       'empty', 'no answer']


def test_gold_numbers():
  assert (gold(example('#### 1,200')), gold(example('#### -5')), gold(example('#### 2.5'))) == (1200, -5, 2.5)
  with pytest.raises(ValueError, match='does not end in `#### number`'):
    gold(example('#### ...'))


def test_programs_that_are_more_than_arithmetic_run_in_the_sandbox():
  from distill_jax.tasks import sandbox
  sandbox.require()
  task = make(timeout=1.0)
  texts = ['import math\nanswer = math.sqrt(10000)', 'def f(n):\n  return n * 2.0\nanswer = f(50)', 'while True:\n  pass', 'open("/etc/passwd").read()',
           'answer = max(3, 100)', 'answer = float("nan")', 'print("answer = 100")']
  pairs = [(example(), text) for text in texts]
  assert task.grades(pairs) == [1, 1, 0, 0, 1, 0, 0]
  reasons = [task.explain(*pair) for pair in pairs]
  assert reasons[:2] == ['right', 'right'] and reasons[2].startswith('timeout')
  assert reasons[3].startswith(('error', 'forbidden')) and reasons[5:] == ['wrong answer', 'no answer']


# prompts and pairs


def test_prompts_and_pairs_of_bundled_problems():
  plain, shown = make(counts=dict(train=20)), make(counts=dict(train=20), prompt='few_shot')
  one, same = next(plain.examples('train')), next(shown.examples('train'))
  assert one == same and plain.prompt(one) == f'# {one["question"]}\n'
  few = shown.prompt(one)
  assert few.endswith('\n\n' + plain.prompt(one)) and few.count('# ') == 4 and few.count('\nanswer = ') == 3
  assert plain.grade(one, plain.answer(one)) == 1.0
  kept = plain.answer(one) + '\n\n# and so on\nanswer = 5'
  assert shown.learn(one, kept) == plain.learn(one, kept) == [(plain.prompt(one), plain.answer(one))]
  assert plain.group(one) == str(len([line for line in plain.answer(one).split('\n') if not line.startswith('n')]))


def test_prompts_that_name_the_numbers():
  task, plain = make(counts=dict(train=30), numbers=True), make(counts=dict(train=30))
  for one in task.examples('train'):
    lines = task.prompt(one).removeprefix(plain.prompt(one))
    assert lines + task.answer(one) == plain.answer(one) and lines.startswith('n0 = ') and task.answer(one)[0] in 'ta'
    assert task.grade(one, task.answer(one) + '\n\n# more\nanswer = 0') == 1.0 and task.grade(one, '') == task.grade(one, 'answer = n9') == 0.0
    assert task.learn(one, task.answer(one) + '\nprint(1)') == [(task.prompt(one), task.answer(one))]
  assert make(numbers=True, prompt='few_shot').prompt(one).endswith('\n\n' + task.prompt(one))
  with pytest.raises(ValueError, match="numbers=True is for source='bundled'"):
    make(numbers=True, source='openai/gsm8k')


@pytest.mark.parametrize('source', ['bundled', 'gsm8k'])
def test_the_examples_of_few_shot_prompts_run_in_both_modes(source, tmp_path):
  """Nine lines that nobody checked would teach nonsense: each example is a program that ends, in the paper's mode where it writes floats."""
  if source == 'gsm8k':
    for name in ('train.jsonl', 'test.jsonl'):
      (tmp_path / name).write_text(json.dumps(dict(question='What?', answer='#### 3')) + '\n')
    source = str(tmp_path)
  task = make(source=source, prompt='few_shot', counts=dict(test=1))
  prompt = task.prompt(next(task.examples('test')))
  *blocks, last = prompt.split('\n\n')
  assert len(blocks) == 3 and last.startswith('# ') and last.endswith('\n')
  wanted = dict(bundled=(9, 24, 3), gsm8k=(16.0, 30.0, 30.0))['bundled' if source == 'bundled' else 'gsm8k']
  for block, number in zip(blocks, wanted):
    verdict, _, value = straight.value(block, 'answer')
    assert (verdict, value) == ('passed', number)
    assert source == 'bundled' or right(value, number, PAPER)


def test_a_directory_of_gsm8k(tmp_path):
  rows = [dict(question=f'Number {i}\nor so?', answer=f'It is <<1+{i}={1 + i}>>{1 + i}.\n#### {1 + i}') for i in range(40)]
  with gzip.open(tmp_path / 'train.jsonl.gz', 'wt') as file:
    file.writelines(json.dumps(row) + '\n' for row in rows)
  (tmp_path / 'test.jsonl').write_text(json.dumps(rows[0] | dict(question='Another?')) + '\n')
  task = make(source=str(tmp_path), check='paper')
  assert len(list(task.examples('train'))) + len(list(task.examples('dev'))) == 40
  one = next(task.examples('test'))
  assert task.prompt(one) == '# Another?\n' and task.answer(one) == 'answer = 1.0' and task.grade(one, task.answer(one)) == 1.0
  assert task.prompt(next(task.examples('train'))).count('\n') == 1 and task.group(one) == '1'


def test_real_gsm8k(shared):
  task = make(source=str(shared / 'data' / 'gsm8k'), check='paper', prompt='few_shot')
  rows = [*islice(task.examples('train'), 300), *islice(task.examples('test'), 100)]
  assert task.grades([(row, task.answer(row)) for row in rows]) == [1.0] * 400


def test_keywords_that_are_wrong():
  for keywords, says in ((dict(check='loose'), "check is 'strict' or 'paper'"), (dict(prompt='shown'), "prompt is 'text' or 'few_shot'"),
                         (dict(timeout=0), 'timeout must be above 0'), (dict(rel_tol=-1), 'rel_tol not below'), (dict(counts=dict(tets=3)), 'tets'),
                         (dict(exemplars='x.txt'), "exemplars are read by prompt='few_shot' only")):
    with pytest.raises(ValueError, match=says):
      make(**keywords)
  with pytest.raises(FileNotFoundError, match='no file nowhere.txt of examples'):
    make(prompt='few_shot', exemplars='nowhere.txt')
  with pytest.raises(ValueError, match="no split 'tset'"):
    list(make().examples('tset'))


# generated programs


@pytest.mark.parametrize('split', problems.SPLITS)
def test_generated_programs_give_the_gold_number(split):
  """Executed by Python itself, which knows nothing of how they were made."""
  for row in islice(problems.draw(split, kind=problems.SHORT), 400):
    names = {}
    exec(program(row['question'], row['chain']), {}, names)
    assert names['answer'] == int(row['answer'].split('#### ')[1]), row
    assert 1 <= row['answer'].count('<<') <= 3


def test_held_out_combinations_of_short_problems():
  drawn = {split: list(islice(problems.draw(split, kind=problems.SHORT), 800)) for split in ('train', 'dev', 'test')}
  chains = {split: {(row['family'], row['chain']) for row in rows} for split, rows in drawn.items()}
  numbers = {split: {row['numbers'] for row in rows} for split, rows in drawn.items()}
  assert not chains['test'] & chains['train'] and chains['dev'] & chains['train']
  assert not numbers['test'] & numbers['train'] and not numbers['dev'] & numbers['train'] and not numbers['dev'] & numbers['test']


def test_a_question_with_other_numbers_than_its_steps_is_refused():
  with pytest.raises(ValueError, match='says 3 numbers, its steps .* use 2 in 1 operations'):
    program('3 and 4 and 5', ('sum', 'ask'))


def test_spoilt_programs_are_mostly_wrong_and_made_up_ones_run():
  rng, task = random.Random(0), make(counts=dict(train=300))
  rows = list(task.examples('train'))
  grades = task.grades([(row, spoilt(row['program'], rng)) for row in rows])
  assert 0 < sum(grades) < 0.25 * len(grades)      # another sign or operand may give the same number
  for _ in range(50):
    assert straight.value(made_up([3, 5, 2], rng), 'answer')[0] == 'passed'


def test_what_teacher_and_student_read():
  read = TASKS['program_texts']
  teacher, student = ([task.prompt(e) for e in task.examples('train')] for task in (read(count=300), read(reader='student', count=300)))
  held = {'# ' + row['question'] for row in islice(problems.draw('test', kind=problems.SHORT), 1000)}
  assert not held & {line for text in teacher + student for line in text.split('\n')}
  with_code = [text for text in teacher if 'answer = ' in text]
  assert 0.4 < len(with_code) / 300 < 0.75 and any('answer = ' in text and text.count('# ') == 4 for text in teacher)
  blocks = [block.split('\n', 1) for text in student for block in text.split('\n\n') if '?' in block and 'answer' in block]
  gold = {'# ' + row['question']: program(row['question'], row['chain']) for row in islice(problems.draw('train', seed='0 read by student train', kind=problems.SHORT), 1200)}
  same = [straight.value(source, 'answer')[2] == straight.value(gold[question], 'answer')[2] for question, source in blocks]
  assert len(same) > 100 and sum(same) < 0.35 * len(same)      # by chance only
  assert [e['id'] for e in read(count=5).examples('train')] == [e['id'] for e in read(count=300).examples('train')][:5]
  with pytest.raises(ValueError, match="reader is 'teacher' or 'student'"):
    read(reader='nobody')
  with pytest.raises(ValueError, match='spoil is a share'):
    read(spoil=2)


# programs that are read and not run


def _ran(source):
  """(verdict, value of `answer` or the error) by Python itself."""
  names = {}
  try:
    exec(source, names)
  except Exception as error:
    return 'error', type(error).__name__
  return 'passed', repr(names.get('answer'))


def test_straight_programs_are_what_python_says():
  sources = ['answer = 7 / 2', 'n0 = 3\nanswer = n0 * 2.0', 'answer = -(4 - 1) + +2', 'answer = 1 / 0', 'answer = n0', 'n0 = 1\n\nanswer = (n0 + 1) * 3',
             'answer = 3 = 4', 'x = 5', 'answer = 10 - 3 * 2', '', '# only words', 'answer = 1e308 * 10', 'answer = 1e999 - 1e999', '  answer = 3',
             'n0 = 3\nanswer = n0 n0', 'answer = 0x10 + 1_000']
  for source in sources:
    verdict, detail, value = straight.value(source, 'answer')
    said, shown = _ran(source)
    assert verdict == said, source
    assert (repr(value) if said == 'passed' else detail.split(':')[0]) == shown, source


@pytest.mark.parametrize('source', [
    'answer = len("abc")', 'answer = "100"', 'answer = 2 ** 9', 'answer = 7 // 2', 'answer = 7 % 2', 'import os', 'a = b = 3\nanswer = a', 'answer += 1', 'answer = [1]',
    'answer = x if 1 else 2', 'answer = True', 'answer = __import__', 'print(1)', 'answer: int = 3', 'answer = max', 'a, answer = 1, 2',
    'answer = 9\n' + 'answer = answer * answer\n' * 60, 'answer = 1' + ' + 1' * 1000, 'answer = 3j', 'answer = 1\0', 'answer = (lambda: 1)()'])
def test_other_programs_are_not_read(source):
  assert straight.value(source, 'answer') is None


def test_numbers_and_operations_are_written_one_a_line():
  assert write(['3', '4', '5'], [('n0', '+', 'n1'), ('t0', '*', 'n2')]) == 'n0 = 3\nn1 = 4\nn2 = 5\nt0 = n0 + n1\nanswer = t0 * n2'
