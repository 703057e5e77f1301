"""The GSM8K task: grading as published, the three sources, recorded completions, one clear error for each bad input."""
import gzip
import json

import pytest

from distill_jax.tasks import TASKS
from distill_jax.tasks.gsm8k import explain, extract, gsm8k, grade, recorded, strip_marks

ROW = dict(question='Tom had 3 boxes of 12 pens. How many pens did he have?', answer='3*12=<<3*12=36>>36 pens\n#### 36')


def _write(path, rows):
  text = ''.join((row if isinstance(row, str) else json.dumps(row)) + '\n' for row in rows)
  path.write_bytes(gzip.compress(text.encode()) if path.suffix == '.gz' else text.encode())
  return path


def _directory(path, train=200, tests=('test.jsonl',)):
  rows = [dict(question=f'What is {n} and {n}?', answer=f'{n}+{n}=<<{n}+{n}={2 * n}>>{2 * n}\n#### {2 * n}') for n in range(train)]
  _write(path / 'train.jsonl.gz', rows)
  for number, name in enumerate(tests):
    _write(path / name, [ROW | dict(question=f'{name} {number}')])
  return path


@pytest.mark.parametrize('text, answer', [
    ('so\n#### 36', '36'), ('#### 1,000', '1000'), ('#### -5', '-5'), ('#### 12.50', '12.50'), ('#### 5.', '5.'), ('#### 5 apples', '5'),
    ('#### 7\n#### 8', '7'), ('#### .5', '.5'), ('####36', None), ('#### $36', None), ('#### +5', None), ('A: 36', None), ('', None)])
def test_extract_as_published(text, answer):
  assert extract(text) == answer


@pytest.mark.parametrize('gold, text, verdict', [
    ('36', '#### 36', 'right'), ('36', '#### 36\n#### 9', 'right'), ('36', '#### 9\n#### 36', 'wrong answer'),
    ('1,000', '#### 1000', 'right'), ('1000', '#### 1,000', 'right'), ('-5', '#### -5', 'right'),
    ('5', '#### -5', 'wrong answer'), ('12.5', '#### 12.50', 'wrong answer'),
    ('5', '#### 5.', 'wrong answer'), ('5', '#### 5.0', 'wrong answer'), ('5', '#### 5 pens', 'right'), ('5', 'it is 5', 'no answer'),
    ('5', '', 'empty'), ('5', ' \n', 'empty'), ('5', '#### five', 'no answer')])
def test_verdicts(gold, text, verdict):
  example = dict(answer=f'steps\n#### {gold}')
  assert explain(example, text) == verdict and grade(example, text) == float(verdict == 'right')


def test_bundled_task():
  task = TASKS['gsm8k'](counts=dict(train=30, dev=5, test=5, test_range=5, test_family=5))
  for split, count in dict(train=30, dev=5, test=5, test_range=5, test_family=5).items():
    rows = list(task.examples(split))
    assert len({row['id'] for row in rows}) == len(rows) == count
    for row in rows:
      assert row['split'] == split and len(row['id']) == 16 and task.prompt(row) == row['question'] + '\n'
      assert task.grade(row, task.answer(row)) == 1.0 and task.explain(row, 'x') == 'no answer'
  row['answer'] = 'changed by a caller'
  assert 'changed' not in list(task.examples('test_family'))[-1]['answer']


def test_default_counts():
  task = gsm8k()
  assert [len(list(task.examples(split))) for split in ('dev', 'test', 'test_range', 'test_family')] == [200, 300, 300, 300]


def test_seed_moves_training_only():
  one, two = gsm8k(counts=dict(train=20)), gsm8k(counts=dict(train=20), seed=1)
  assert list(one.examples('train')) != list(two.examples('train'))
  assert list(one.examples('test')) == list(two.examples('test'))


def test_answers_and_marks():
  row = next(iter(gsm8k(counts=dict(train=1)).examples('train')))
  final, bare = gsm8k(answers='final', counts=dict(train=1)), gsm8k(calculator_marks=False, counts=dict(train=1))
  assert final.answer(row) == '#### ' + extract(row['answer']) and final.grade(row, final.answer(row)) == 1.0
  unmarked = next(iter(bare.examples('train')))
  assert '<<' not in unmarked['answer'] and unmarked['id'] == row['id'] and bare.grade(unmarked, bare.answer(unmarked)) == 1.0
  assert bare.writer is None and final.writer is None and gsm8k().writer('2*3=<<2*3=') == '6>>'
  assert strip_marks(ROW['answer']) == '3*12=36 pens\n#### 36'


def test_directory(tmp_path):
  task = gsm8k(source=str(_directory(tmp_path, tests=('test.jsonl', 'test_more.jsonl.gz', 'test_socratic.jsonl'))))
  train, dev, test = (list(task.examples(split)) for split in ('train', 'dev', 'test'))
  assert len(train) + len(dev) == 200 and 2 <= len(dev) <= 25 and not {row['id'] for row in train} & {row['id'] for row in dev}
  assert [row['question'] for row in test] == ['test.jsonl 0', 'test_more.jsonl.gz 1']
  assert len(list(gsm8k(source=tmp_path, counts=dict(train=7)).examples('train'))) == 7


def test_real_directory(shared):
  task = gsm8k(source=shared / 'data/gsm8k')
  counts = {split: len(list(task.examples(split))) for split in ('train', 'dev', 'test')}
  assert counts['train'] + counts['dev'] == 7473 and 300 < counts['dev'] < 450 and counts['test'] == 660


def test_missing_and_empty_directory(tmp_path):
  with pytest.raises(FileNotFoundError, match="no directory .*nowhere; pass source='bundled'"):
    gsm8k(source=str(tmp_path / 'nowhere'))
  with pytest.raises(FileNotFoundError, match=r'holds no train.jsonl\(.gz\) and test\*.jsonl\(.gz\) \(it holds nothing\)'):
    gsm8k(source=str(tmp_path))
  _write(tmp_path / 'train.jsonl', [ROW])
  with pytest.raises(FileNotFoundError, match=r'holds no test\*.jsonl\(.gz\) \(it holds train.jsonl\)'):
    gsm8k(source=str(tmp_path))


@pytest.mark.parametrize('line, message', [
    ('{"question": "a", ', r'train.jsonl:2: this line is no JSON'),
    ({'question': 'a'}, r"train.jsonl:2: no field 'answer'; the fields are 'question'"),
    ({'question': 5, 'answer': '#### 5'}, r"train.jsonl:2: field 'question' should be text, it is int"),
    ([1], r'train.jsonl:2: a JSON object'),
    ({'question': 'a', 'answer': 'five'}, r'train.jsonl:2: the answer does not end in a line')])
def test_bad_lines_are_named(tmp_path, line, message):
  _directory(tmp_path)
  (tmp_path / 'train.jsonl.gz').unlink()
  _write(tmp_path / 'train.jsonl', [ROW, line])
  with pytest.raises(ValueError, match=message):
    list(gsm8k(source=str(tmp_path)).examples('train'))


def test_cut_and_empty_files(tmp_path):
  train = _directory(tmp_path) / 'train.jsonl.gz'
  whole = train.read_bytes()
  train.write_bytes(whole[:len(whole) // 2])
  with pytest.raises(ValueError, match='train.jsonl.gz: the file is damaged or cut short'):
    list(gsm8k(source=str(tmp_path)).examples('train'))
  _write(train, [])
  with pytest.raises(ValueError, match='train.jsonl.gz: the file is empty'):
    list(gsm8k(source=str(tmp_path)).examples('train'))


def test_no_hub(monkeypatch):
  datasets = pytest.importorskip('datasets')
  monkeypatch.setattr(datasets.config, 'HF_HUB_OFFLINE', True)
  message = "no directory nobody/gsm8k-not-here, and the hub did not.*Pass source='bundled'.*directory with train.jsonl"
  with pytest.raises(ConnectionError, match=message):
    list(gsm8k(source='nobody/gsm8k-not-here').examples('test'))


def test_wrong_keywords():
  with pytest.raises(ValueError, match="answers is 'steps' or 'final'"):
    gsm8k(answers='short')
  with pytest.raises(ValueError, match="counts names 'tset'; the splits .* are train, dev, test, test_range, test_family"):
    gsm8k(counts=dict(tset=5))
  with pytest.raises(ValueError, match="no split 'validation'"):
    list(gsm8k().examples('validation'))


def test_recorded_lines(tmp_path):
  rows = [dict(question='q', completion='#### 1'),
          dict(question='r', completions=['#### 2', 'x'], is_correct=True, who='me', answer='#### 2')]
  for name in ('a.jsonl', 'a.jsonl.gz'):
    got = list(recorded(_write(tmp_path / name, rows)))
    assert [(row['question'], row['completion'], row['label'], row['who']) for row in got] == [
        ('q', '#### 1', None, None), ('r', '#### 2', True, 'me'), ('r', 'x', True, 'me')]
  with pytest.raises(FileNotFoundError, match='no file .*b.jsonl'):
    list(recorded(tmp_path / 'b.jsonl'))
  for line, message in ((dict(question='q'), "a.jsonl:1: no field 'completion'"), (dict(completion='q'), "a.jsonl:1: no field 'question'"),
                        (dict(question='q', completions='x'), 'a.jsonl:1: .*list of texts'), ('no', 'a.jsonl:1: this line is no JSON')):
    with pytest.raises(ValueError, match=message):
      list(recorded(_write(tmp_path / 'a.jsonl', [line])))


def test_verdicts_agree_with_the_published_solutions(shared):
  """660 rows of 4 solutions: every verdict is that of the file, no difference. Eight solutions have no `A: N`; both call them wrong."""
  path = shared / 'data/gsm8k/example_model_solutions_even.jsonl.gz'
  rows = list(recorded(path))
  assert len(rows) == 2640 and {row['who'] for row in rows} == {'6b_finetuning', '6b_verification', '175b_finetuning', '175b_verification'}
  assert [row for row in rows if bool(grade(row, row['completion'])) != row['label']] == []
  assert sum(explain(row, row['completion']) == 'no answer' for row in rows) == 8
  gold = {row['question']: row for row in gsm8k(source=path.parent).examples('test')}
  assert all(extract(gold[row['question']]['answer']) == extract(row['answer']) for row in rows)
