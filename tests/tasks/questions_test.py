"""Question tasks: splits, sources (directory, hub, generated), gold answers, and the teachers' recorded rationales graded."""
import gzip
import json
import random
import types

import numpy as np
import pytest

from distill_jax.stages import records
from distill_jax.tasks import RECORDED, TASKS, questions
from distill_jax.tasks.names import NAMES, names_of

GENERATED = ('last_letter', 'coin_flip', 'shuffled_objects', 'sums')
SETS = dict(svamp={}, mawps=dict(part='addsub'), aqua={}, commonsense_qa={}, strategyqa={}, last_letter={}, coin_flip={})


def test_split_oracle():
  train, test = questions.published_split(600)
  assert len(train) == 420 and test[:8] == [3, 9, 11, 13, 16, 19, 23, 24]
  assert train == sorted(np.random.RandomState(0).permutation(list(range(600)))[:420]) and sorted(train + test) == list(range(600))
  sizes = {name: tuple(map(len, questions.published_split(count))) for name, count in dict(singleeq=508, addsub=395, svamp=1000, date=369, shuffled=750).items()}
  assert sizes == dict(singleeq=(356, 152), addsub=(276, 119), svamp=(700, 300), date=(258, 111), shuffled=(525, 225))


def _rows(name, count=60):
  n = range(count)
  return dict(
      svamp=[dict(body=f'Tom had {i} pens,', question='How many?', answer=float(i), type='Addition', palm_540b_cot=f'The answer is ({i} + 0).') for i in n],
      mawps=[dict(input=f'{i} and 0.5?', target=i + 0.5) for i in n],
      aqua=[dict(question=f'{i}?', options=['A)1', 'B)2'], rationale='r', correct='B') for i in n],
      commonsense_qa=[dict(question=f'{i}?', choices=['a', 'b', 'c'], answer_key='C', palm_540b_cot='So the answer is (c) c.') for i in n],
      strategyqa=[dict(question=f'{i}?', answer=bool(i % 2), facts=['f', 'g'], decomposition=['x', 'y']) for i in n])[name]


def _write(path, rows):
  path.write_bytes(gzip.compress(''.join(json.dumps(row) + '\n' for row in rows).encode()))


NAMES_OF_FILES = dict(svamp=('train', 'test'), mawps=('addsub', None), aqua=('train', 'test'), commonsense_qa=('train', 'dev'), strategyqa=('train', 'dev'))


@pytest.mark.parametrize('name, question, gold', [
    ('svamp', 'Tom had 1 pens. How many?', '1'), ('mawps', '1 and 0.5?', '1.5'), ('aqua', '1? Answer choices: (A) 1, (B) 2.', 'B'),
    ('commonsense_qa', '1? Answer choices: (A) a, (B) b, (C) c.', 'C'), ('strategyqa', '1?', 'yes')])
def test_directories(tmp_path, name, question, gold):
  train, test = NAMES_OF_FILES[name]
  _write(tmp_path / f'{train}.jsonl.gz', _rows(name))
  if test:
    _write(tmp_path / f'{test}.jsonl.gz', _rows(name, 3))
  task = TASKS[name](source=str(tmp_path), **SETS[name], completion='answer')
  split = {part: list(task.examples(part)) for part in questions.SPLITS}
  assert len(split['all']) == 60 and len(split['test']) == (3 if test else 18)
  assert len(split['train']) + len(split['dev']) == (60 if test else 42) and not {r['id'] for r in split['train']} & {r['id'] for r in split['dev']}
  row = split['all'][1]
  assert row['question'] == question and row['answer'] == gold and task.answer(row) == ' ' + gold and task.grade(row, ' ' + gold) == 1.0
  assert len(list(TASKS[name](source=str(tmp_path), counts=dict(train=2), **SETS[name]).examples('train'))) == 2
  assert {r['id'] for r in split['train']} == {r['id'] for r in TASKS[name](source=str(tmp_path), **SETS[name]).examples('train')}


@pytest.mark.parametrize('name, row, config', [
    ('svamp', dict(Body='A.', Question='b?', Answer='3.0', Type='x'), None), ('mawps', dict(question='a?', final_ans='3'), None),
    ('aqua', dict(question='a?', options=['A)1', 'B)2', 'C)3'], rationale='r', correct='C'), 'raw'),
    ('commonsense_qa', dict(question='a?', choices=dict(label=list('ABC'), text=['1', '2', '3']), answerKey='C'), None),
    ('strategyqa', dict(question='a?', answer=True, facts='f g'), None), ('bbh', dict(input='a?', target='(C)'), 'web_of_lies')])
def test_hub(monkeypatch, name, row, config):
  """The rows of the hub's data sets, in their columns; the hub itself is not asked."""
  asked = []
  def load(source, given, split):
    asked.append((source, given, split))
    return [row]
  monkeypatch.setattr('datasets.load_dataset', load)
  task = TASKS[name](source='some/set', **(dict(name='web_of_lies') if name == 'bbh' else SETS[name]))
  rows = [example for split in ('train', 'dev', 'test') for example in task.examples(split)]
  assert {source for source, _, _ in asked} == {'some/set'} and {given for _, given, _ in asked} == {config}
  assert rows and rows[0]['question'].startswith('A. b?' if name == 'svamp' else 'a?') and task.grade(rows[0], task.answer(rows[0])) == 1.0


def test_no_hub_and_no_directory(monkeypatch, tmp_path):
  import datasets
  monkeypatch.setattr(datasets.config, 'HF_HUB_OFFLINE', True)
  for name, keywords in {**{name: SETS[name] for name in NAMES_OF_FILES}, 'bbh': dict(name='navigate')}.items():
    with pytest.raises(ConnectionError, match='no directory nobody/not-here, and the hub did not give .*Pass '):
      list(TASKS[name](source='nobody/not-here', **keywords).examples('test'))
    with pytest.raises(FileNotFoundError, match='pass '):
      list(TASKS[name](source=str(tmp_path), **keywords).examples('test'))
  for name in ('last_letter', 'coin_flip'):
    with pytest.raises(FileNotFoundError, match=r'holds no train_2.*\(it holds nothing\); pass the directory of'):
      list(TASKS[name](source=str(tmp_path)).examples('test'))


@pytest.mark.parametrize('name, row, message', [
    ('svamp', dict(body='a', question='b'), "no field 'answer'"), ('mawps', dict(input=3, target=3), "field 'input' should be str, it is int"),
    ('aqua', dict(question='a', options=['A)1'], correct='C'), "correct is 'C', not one of A"),
    ('commonsense_qa', dict(question='a', choices=['x', 'y'], answer_key='C'), "the answer is 'C', not one of A, B"),
    ('strategyqa', dict(question='a', answer='true'), "field 'answer' should be bool, it is str"),
    ('last_letter', dict(question='Take "Ann Bob"', answer='nx'), "the answer is 'nx', the last letters are 'nb'"),
    ('last_letter', dict(question='Take nothing', answer='nx'), 'names no words in quotes'),
    ('coin_flip', dict(question='A coin. Ann flips the coin.', answer='yes'), "the answer is 'yes', by the steps it is 'no'"),
    ('coin_flip', dict(question='A coin.', answer='yes'), 'nobody flips')])
def test_bad_rows_are_named(tmp_path, name, row, message):
  file = dict(last_letter='train_2words', coin_flip='train_2people').get(name) or NAMES_OF_FILES[name][0]
  _write(tmp_path / f'{file}.jsonl.gz', [row])
  with pytest.raises(ValueError, match=rf'{file}.jsonl.gz:1: .*{message}'):
    list(TASKS[name](source=str(tmp_path), **SETS[name]).examples('all'))


def test_bad_bbh_file(tmp_path):
  (tmp_path / 'navigate.json').write_text('{"examples": [')
  with pytest.raises(ValueError, match='navigate.json: no file of BIG-Bench Hard.*fetch it again'):
    list(TASKS['bbh'](name='navigate', source=str(tmp_path)).examples('all'))


def test_wrong_keywords():
  with pytest.raises(ValueError, match="part='asdiv'; there is addsub"):
    TASKS['mawps'](part='asdiv', source='x')
  for name in ('svamp', 'aqua', 'commonsense_qa'):
    with pytest.raises(ValueError, match="reads='words'; there is "):
      TASKS[name](reads='words')
  with pytest.raises(ValueError, match="counts names 'tset'; the splits .* are train, dev, test"):
    TASKS['last_letter'](counts=dict(tset=3))
  with pytest.raises(ValueError, match="no split 'tset'; source='bundled' has train, dev, test, test_long"):
    TASKS['coin_flip']().examples('tset')
  with pytest.raises(ValueError, match="sums: 3000 questions of 'train' asked for, only .* found; ask for fewer"):
    TASKS['sums'](counts=dict(train=3000)).examples('train')
  with pytest.raises(ValueError, match='ask for at most'):
    TASKS['last_letter'](counts=dict(dev=10 ** 6)).examples('dev')


def test_names_are_disjoint():
  train, dev, test = map(set, (names_of('train'), names_of('dev'), names_of('test')))
  assert len(NAMES) == len(set(NAMES)) > 300 and train | dev | test == set(NAMES) and len(train) + len(dev) + len(test) == len(NAMES)
  assert names_of('test_long') == names_of('test') and len(dev) > 15


@pytest.mark.parametrize('name', GENERATED)
def test_generated(name):
  task = TASKS[name]()
  split = {part: task.examples(part) for part in ('train', 'dev', 'test', 'test_long')}
  ids = [row['id'] for rows in split.values() for row in rows]
  assert len(ids) == len(set(ids)) and split['train'] == TASKS[name]().examples('train') and split['train'] != TASKS[name](seed=1).examples('train')
  assert split['test'] == TASKS[name](seed=1).examples('test')
  for rows in split.values():
    for row in rows:
      assert task.grade(row, task.answer(row)) == 1.0 and row['rationale']
  answers = {row['answer'] for row in split['test']}
  assert answers == dict(coin_flip={'yes', 'no'}, shuffled_objects=set('ABC')).get(name, answers)
  assert task.group(split['test'][0]) != task.group(split['test_long'][0])


def test_answers_of_generated_questions():
  """Independent references: a string method, a parity, Python's own arithmetic, and a replay of the swaps on a permutation."""
  for row in TASKS['sums']().examples('test_long'):
    assert row['answer'] == str(eval(row['question'].removeprefix('What is ').rstrip('?'))) and int(row['answer']) >= 0
  for row in TASKS['last_letter']().examples('test_long'):
    assert row['answer'] == ''.join(word[-1] for word in row['question'].split('"')[1].split())
  for row in TASKS['coin_flip']().examples('test_long'):
    assert row['answer'] == ('no' if row['question'].count(' flips the coin') % 2 else 'yes')
  for row in TASKS['shuffled_objects']().examples('test_long'):
    told, rest = row['question'].split('. ', 1)
    order = [part.split()[0] for part in told.split(', ')]
    things = [part.split()[-1] for part in told.split(', ')]
    for one, two in (s.split(' and ') for s in rest.split(' What')[0].replace(' swap', '').rstrip('.').split('. ')):
      i, j = order.index(one), order.index(two)
      things[i], things[j] = things[j], things[i]
    who = rest.split('What does ')[1].split()[0]
    assert f'({row["answer"]}) {things[order.index(who)]}' in row['question']


@pytest.mark.parametrize('name', GENERATED)
def test_narrators(name):
  """A share `error` is wrong, each wrong text names a wrong answer, styles make texts differ, and the same generator writes the same text."""
  task = TASKS[name](error=0.4, styles=4)
  rows = task.examples('train')
  texts = [(row, task.narrate(row, random.Random(f'{row["id"]} {n}'))) for row in rows[:200] for n in range(3)]
  wrong = 1 - np.mean([task.grade(row, text) for row, text in texts])
  assert abs(wrong - 0.4) < 0.07 and task.narrate(rows[0], random.Random(f'{rows[0]["id"]} 0')) == texts[0][1]
  perfect, plain = TASKS[name](error=0.0), TASKS[name](error=0.0, styles=1)
  assert all(perfect.grade(row, perfect.narrate(row, random.Random(i))) == 1.0 for i, row in enumerate(rows))
  assert all(TASKS[name](error=1.0).grade(row, TASKS[name](error=1.0).narrate(row, random.Random(i))) == 0.0 for i, row in enumerate(rows[:100]))
  assert len({perfect.narrate(rows[0], random.Random(i)) for i in range(200)}) >= (16 if name == 'sums' else 40)
  assert {plain.narrate(rows[0], random.Random(i)) for i in range(20)} == {plain.answer(rows[0])}


def test_gsm8k_in_these_formats():
  task = TASKS['gsm8k_cot'](counts=dict(train=5, test=5), completion='answer_is', prompt='plain')
  row = next(iter(task.examples('train')))
  same = next(iter(TASKS['gsm8k'](counts=dict(train=5)).examples('train')))
  assert row['id'] == same['id'] and '<<' not in row['rationale'] and '####' not in row['rationale'] and same['answer'].endswith(f'#### {row["answer"]}')
  assert task.answer(row).endswith(f'The answer is {row["answer"]}.') and task.grade(row, task.answer(row)) == 1.0
  assert task.writer('2 * 3 =').strip() == '6', 'the calculator of plain equations'
  assert 'step' in task.group(row) and '<<' in next(iter(TASKS['gsm8k_cot'](counts=dict(train=1), calculator_marks=True).examples('train')))['rationale']


# --- real data ---------------------------------------------------------------------------------------------------------------------------
def test_real_splits(shared):
  sizes = {}
  for name, keywords in SETS.items():
    task = TASKS[name](source=str(shared / 'data' / name), **keywords)
    sizes[name] = tuple(len(task.examples(split)) for split in ('train', 'dev', 'test', 'all'))
    assert all(task.grade(row, task.answer(row)) == 1.0 for split in ('test', 'all') for row in task.examples(split))
  assert {name: (train + dev, test, whole) for name, (train, dev, test, whole) in sizes.items()} == dict(
      svamp=(560, 240, 800), mawps=(276, 118, 394), aqua=(254, 254, 254), commonsense_qa=(9741, 1221, 9741), strategyqa=(2060, 229, 2060),
      last_letter=(1000, 500, 1000), coin_flip=(1000, 500, 1000))


def _graded(tmp_path, task, file):
  """(kept, reasons) of a recorded file, through the stages."""
  from distill_jax.stages.generate import generate
  from distill_jax.stages.grade import grade
  say = types.SimpleNamespace(progress=lambda *args, **keywords: None, say=print)
  written, kept = tmp_path / 'written', tmp_path / 'kept'
  written.mkdir(), kept.mkdir()
  generate(written, {}, seed=0, how={}, log=say, task=task, split='all', recorded=str(file))
  summary = grade(kept, {'written': written}, seed=0, how={}, log=say, task=task, dedupe=False,
                  tasks=dict(student={**task, 'completion': 'ft_cot_token', 'prompt': 'marked', 'written': 'answer_is'}))
  return summary, records.read(kept)


def test_palm_rationales(tmp_path, shared):
  """594 of 800 rationales of SVAMP evaluate to the gold answer; of 9741 of CommonsenseQA 7377 end in the gold letter, 182 in none."""
  folder = shared / 'data/svamp'
  summary, rows = _graded(tmp_path, dict(task='svamp', source=str(folder), reads='value', completion='answer_is'), folder / 'train.jsonl.gz')
  assert (summary['texts'], summary['kept']) == (800, 594)
  assert all(row['prompt'] == row['example']['question'] + ' ###' and row['completion'].endswith(f' --> {row["example"]["answer"]}') for row in rows)
  folder = shared / 'data/commonsense_qa'
  task = TASKS['commonsense_qa'](source=folder, reads='bracketed', completion='answer_is')
  by_question = {row['question']: row for row in task.examples('all')}
  reasons = [task.explain(by_question[line['question']], line['completion']) for line in RECORDED['commonsense_qa'](folder / 'train.jsonl.gz')]
  assert (reasons.count('right'), reasons.count('no answer'), len(reasons)) == (7377, 182, 9741)


# kept counts of code-davinci-002's chains; as per cent they are those of Suzgun et al. 2022 (92.8, 87.2, ...)
CODEX = dict(boolean_expressions=232, date_understanding=218, logical_deduction_three_objects=219, multistep_arithmetic_two=119, navigate=241,
             object_counting=233, penguins_in_a_table=116, reasoning_about_colored_objects=229, sports_understanding=244,
             tracking_shuffled_objects_three_objects=196, web_of_lies=238, word_sorting=101)


def test_codex_chains(shared):
  """Against a plain split at `the answer is`, task by task."""
  path = shared / 'data/bbh/code_davinci_002_cot.jsonl.gz'
  lines = [json.loads(line) for line in gzip.open(path)][1:]
  recorded = list(RECORDED['bbh'](path))
  assert len(lines) == len(recorded) == 2896
  for name, count in CODEX.items():
    task = TASKS['bbh'](name=name, source=shared / 'data/bbh', completion='answer_is')
    examples = {row['question']: row for row in task.examples('all')}
    own = [(line, row) for line, row in zip(lines, recorded) if line['task'] == name]
    plain = [line['target'] == line['code_davinci_002_cot'].split('the answer is')[-1].split('\n')[0].strip().removesuffix('.') for line, _ in own]
    assert [task.grade(examples[row['question'].strip()], row['completion']) > 0 for _, row in own] == plain and sum(plain) == count, name


def test_published_exemplars_of_bbh(shared):
  task = TASKS['bbh'](name='web_of_lies', source=shared / 'data/bbh', prompt='few_shot_cot')
  prompt = task.prompt(task.examples('test')[0])
  assert 'canary' not in prompt and prompt.startswith('Evaluate a random boolean function') and prompt.count("A: Let's think step by step.") == 4


def test_recorded_files(tmp_path):
  _write(tmp_path / 'a.jsonl.gz', [dict(canary='x'), *_rows('svamp', 2)])
  assert [(row['question'], row['completion']) for row in RECORDED['svamp'](tmp_path / 'a.jsonl.gz')] == [
      ('Tom had 0 pens. How many?', 'The answer is (0 + 0).'), ('Tom had 1 pens. How many?', 'The answer is (1 + 0).')]
  _write(tmp_path / 'b.jsonl.gz', [dict(question='q', completions=['a', 'b'])])
  assert [row['completion'] for row in RECORDED['svamp'](tmp_path / 'b.jsonl.gz')] == ['a', 'b']
  with pytest.raises(FileNotFoundError, match="no file .*c.jsonl of recorded completions; .*'palm_540b_cot'"):
    list(RECORDED['svamp'](tmp_path / 'c.jsonl'))
  _write(tmp_path / 'd.jsonl.gz', [*_rows('svamp', 1), dict(body='a', question='b', answer=1)])
  with pytest.raises(ValueError, match="d.jsonl.gz:2: no field 'palm_540b_cot'"):
    list(RECORDED['svamp'](tmp_path / 'd.jsonl.gz'))
