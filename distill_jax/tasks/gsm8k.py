"""GSM8K: grade-school word problems with worked solutions (Cobbe et al. 2021, arXiv:2110.14168), real or bundled.

Grading is the published rule (openai/grade-school-math, dataset.py): the first match of `#### (\\-?[0-9\\.\\,]+)`, commas dropped, compared
with the gold answer as a string. So `#### 1,000` is 1000 and `#### 5 apples` is 5, but `#### 12.50` is not 12.5, `#### 5.` is not 5,
`#### $5` and `#### +5` are no answer, and a second marker is not read.
"""
import functools
import gzip
import json
import pathlib
import re
import zlib

from distill_jax.core.keys import content_id, id_text
from distill_jax.core.types import Task
from distill_jax.tasks import problems
from distill_jax.tasks.calculator import calculator

ANSWER = re.compile(r'#### (-?[0-9.,]+)')
MARKS = re.compile(r'<<[^<>]*>>')
HUB_ID = re.compile(r'[\w.-]+/[\w.-]+')
BUNDLED = dict(train=6000, dev=200, test=300, test_range=300, test_family=300)
OTHERS = ('train', 'dev', 'test')
DEV_SHARE = 20      # one training problem in 20 is dev, by its id


def extract(text):
  """The final answer of a solution as text, or None when there is no marker."""
  found = ANSWER.search(text)
  return found and found[1].replace(',', '')


def strip_marks(text):
  """A solution without its calculator marks: `3*12=<<3*12=36>>36` becomes `3*12=36`."""
  return MARKS.sub('', text)


def explain(example, text):
  """'right', 'wrong answer', 'no answer' (no marker) or 'empty'."""
  if not text.strip():
    return 'empty'
  answer = extract(text)
  return 'no answer' if answer is None else 'right' if answer == extract(example['answer']) else 'wrong answer'


def grade(example, text):
  """1.0 when the final answer of `text` is that of the example, else 0.0."""
  return float(explain(example, text) == 'right')


def read_lines(path):
  """(`file:line`, dict) of every filled line of a JSONL(.gz) file. ValueError names file and line; an empty or cut file is an error too."""
  path, number = pathlib.Path(path), 0
  opened = gzip.open if path.suffix == '.gz' else open
  try:
    with opened(path, 'rt', encoding='utf-8') as lines:
      for number, line in enumerate(lines, 1):
        if not line.strip():
          continue
        try:
          row = json.loads(line)
        except json.JSONDecodeError as error:
          raise ValueError(f'{path}:{number}: this line is no JSON ({error})') from error
        if not isinstance(row, dict):
          raise ValueError(f'{path}:{number}: a JSON object with named fields is needed, not {type(row).__name__}')
        yield f'{path}:{number}', row
  except (EOFError, zlib.error, gzip.BadGzipFile, UnicodeDecodeError) as error:
    raise ValueError(f'{path}: the file is damaged or cut short after line {number} ({error}); fetch it again') from error
  if not number:
    raise ValueError(f'{path}: the file is empty')


def text_field(place, row, name):
  """The string under `name`, or a ValueError that names the place."""
  if name not in row:
    raise ValueError(f'{place}: no field {name!r}; the fields are {", ".join(map(repr, row)) or "none"}')
  if not isinstance(row[name], str):
    raise ValueError(f'{place}: field {name!r} should be text, it is {type(row[name]).__name__}')
  return row[name]


def _checked(places_and_rows):
  """dicts question, answer; every gold answer must have a final answer."""
  for place, row in places_and_rows:
    question, answer = text_field(place, row, 'question'), text_field(place, row, 'answer')
    if extract(answer) is None:
      raise ValueError(f'{place}: the answer does not end in a line `#### number`')
    yield dict(question=question, answer=answer)


def _directory_files(source):
  """(training file, test files) of a directory. FileNotFoundError says what is missing."""
  if not source.is_dir():
    raise FileNotFoundError(f"no directory {source}; pass source='bundled' (generated problems), a directory with train.jsonl(.gz) and "
                            "test*.jsonl(.gz), or the hub id 'openai/gsm8k'")
  train = [path for path in (source / 'train.jsonl', source / 'train.jsonl.gz') if path.is_file()]
  tests = sorted(path for path in source.iterdir() if re.fullmatch(r'test.*\.jsonl(\.gz)?', path.name) and 'socratic' not in path.name)
  missing = ' and '.join(name for name, there in (('train.jsonl(.gz)', train), ('test*.jsonl(.gz)', tests)) if not there)
  if missing:
    found = ', '.join(sorted(path.name for path in source.iterdir())) or 'nothing'
    raise FileNotFoundError(f"{source} holds no {missing} (it holds {found}); put GSM8K's files there or pass source='bundled'")
  return train[0], tests


def _hub_rows(source, part, name='main'):
  """Rows of a configuration of a hub data set. ConnectionError says what else can be passed."""
  import datasets
  try:
    rows = datasets.load_dataset(source, name, split=part)
  except Exception as error:      # offline, unknown id, no rights: each library version has its own classes
    raise ConnectionError(
        f'there is no directory {source}, and the hub did not give a data set of that name ({type(error).__name__}: {error}). '
        f"Pass source='bundled' (generated problems, no network) or a directory with train.jsonl(.gz) and test*.jsonl(.gz)") from error
  return ((f'{source} {part} row {number}', row) for number, row in enumerate(rows))


def _reader(source, counts, seed):
  """(split -> dicts question, answer; the names of the splits)."""
  if source == 'bundled':
    counts = BUNDLED | counts
    return lambda split: problems.problems(split, counts[split], seed=seed if split == 'train' else 0), problems.SPLITS
  directory = pathlib.Path(source)
  if HUB_ID.fullmatch(str(source)) and not directory.exists():
    return lambda split: _checked(_hub_rows(source, 'test' if split == 'test' else 'train')), OTHERS
  train, tests = _directory_files(directory)
  return lambda split: _checked(pair for path in (tests if split == 'test' else [train]) for pair in read_lines(path)), OTHERS


def loader(read, splits, *, source, counts, made=lambda row: row):
  """split -> its examples, made(row) of each, with id and split. read: split -> rows. ValueError: counts or a split that there is not.

  Outside the bundled problems dev is a part of the training file, by id; a problem that stands twice counts once.
  """
  if unknown := [name for name in counts if name not in splits]:
    raise ValueError(f'counts names {unknown[0]!r}; the splits of source={source!r} are {", ".join(splits)}')

  @functools.cache
  def load(split):
    if split not in splits:
      raise ValueError(f'no split {split!r}; source={source!r} has {", ".join(splits)}')
    rows = {}
    for row in read(split):
      name = id_text(content_id(row['question'], row['answer']))
      if source != 'bundled' and split != 'test' and (int(name, 16) % DEV_SHARE == 0) != (split == 'dev'):
        continue
      rows.setdefault(name, dict(id=name, split=split, **made(row)))
    return list(rows.values())[:counts.get(split)]
  return load


def gsm8k(*, source='bundled', answers='steps', counts=None, seed=0, calculator_marks=True):
  """The task. -> Task

  source: 'bundled' (generated problems of `problems.py`; splits train, dev, test, test_range, test_family), a directory with
    train.jsonl(.gz) and test*.jsonl(.gz), or a hub id such as 'openai/gsm8k'. For the last two, dev is a twentieth of the training
    problems, chosen by id, which train leaves out; files named socratic are not read.
  answers: 'steps': the perfect answer is the worked solution; 'final': only its last line `#### N`.
  counts: {split: most examples}; bundled: how many are made (6000, 200, 300, 300, 300).
  seed: which bundled training problems; held-out splits do not depend on it.
  calculator_marks: False takes `<<3*12=36>>` out of solutions; then no calculator writes along either.
  Examples: dict(id, question, answer, split); `id` is the content id of question and answer as they stand in the source. A prompt is the
  question and a line end. Errors: ValueError (bad line or field: file:line), FileNotFoundError (directory), ConnectionError (hub).
  """
  counts = dict(counts or {})
  if answers not in ('steps', 'final'):
    raise ValueError(f"answers is 'steps' or 'final', not {answers!r}")
  read, splits = _reader(source, counts, seed)
  load = loader(read, splits, source=source, counts=counts)

  def examples(split):
    for row in load(split):
      yield row | dict(answer=row['answer'] if calculator_marks else strip_marks(row['answer']))

  def answer(example):
    return example['answer'] if answers == 'steps' else '#### ' + extract(example['answer'])

  writes_along = calculator_marks and answers == 'steps'
  return Task(examples=examples, prompt=lambda example: example['question'] + '\n', answer=answer, grade=grade,
              writer=calculator if writes_along else None, explain=explain)


def recorded(path):
  """Completions somebody else wrote. -> iterator of dict(question, completion, label, who, answer)

  Two formats, JSONL or JSONL.gz, told apart line by line:
  * question, and completion (text) or completions (list of texts); optional is_correct (a bool), who, answer;
  * OpenAI's example_model_solutions: question, ground_truth and, for every model, {solution, is_correct}. Its last lines `A: 18` become
    `#### 18`: with the published rule every one of the 2640 verdicts in its even rows is then the one in the file.
  label: True, False or None (nobody judged). who: the writer's name or None. answer: the gold solution or None.
  Errors: FileNotFoundError; ValueError with file:line.
  """
  if not pathlib.Path(path).is_file():
    raise FileNotFoundError(f'no file {path} of recorded completions; it should be JSONL(.gz), each line with question and completion(s)')
  for place, row in read_lines(path):
    question = text_field(place, row, 'question')
    models = {name: value for name, value in row.items() if isinstance(value, dict) and 'solution' in value}
    if models:
      gold = _marked(row['ground_truth']) if 'ground_truth' in row else row.get('answer')
      for name, value in models.items():
        yield dict(question=question, completion=_marked(text_field(place, value, 'solution')), label=value.get('is_correct'), who=name,
                   answer=gold)
      continue
    texts = row['completions'] if 'completions' in row else [text_field(place, row, 'completion')]
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
      raise ValueError(f"{place}: field 'completions' should be a list of texts")
    for text in texts:
      yield dict(question=question, completion=text, label=row.get('is_correct'), who=row.get('who'), answer=row.get('answer'))


def _marked(solution):
  return re.sub(r'^A: ', '#### ', solution, flags=re.MULTILINE)
