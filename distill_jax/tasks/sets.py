"""Sets of real tasks with options: word tasks, intents, sentiment, multiple choice. One Task holds several; each example names its own.

An example: id, task, input, output, options (texts to choose from, the output among them). Episodes stay inside a task (stages/episodes.py).
"""
import functools
import gzip
import json
import pathlib
import random
import re
from typing import Any, Callable, Iterator, Mapping, Sequence

from distill_jax.core.keys import content_id, id_text
from distill_jax.core.types import Task
from distill_jax.tasks.choices import matches
from distill_jax.tasks.gsm8k import read_lines

SPLITS = ('train', 'shots', 'dev', 'test')
MOST = 8      # options of a task whose outputs are open


def sets(*, name: str, source: str, tested: bool | None = None, fold: int = 0, folds: int = 5, only: Sequence[str] = (), shots: int = 32,
         counts: Mapping[str, int] | None = None) -> Task:
  """The tasks of one of READERS under the directory `source`, as one Task.

  name: 'word_tasks' (function vectors and instruction induction), 'banking77', 'clinc150', 'snips', 'sentiment', 'bbh' (its tasks with options).
  tested: the tasks under test (fold number `fold` of `folds`, by their names; Meta-ICT holds them out), True, or those of training, False; None:
  all. only: some tasks by name. Examples of a task are ordered by their content: the first `shots` are split 'shots' (to show, or to learn
  under Multitask-ICT), a quarter of the rest each 'dev' and 'test', and what is left 'train'. counts: {split: most examples of a task}.
  """
  if name not in READERS:
    raise ValueError(f'sets: no {name!r}; there is {", ".join(READERS)}')
  if not 0 <= fold < folds:
    raise ValueError(f'sets: fold={fold} must be one of 0 .. {folds - 1}')

  @functools.lru_cache(maxsize=1)
  def read() -> dict[str, list[dict]]:
    found = _tasks(name, pathlib.Path(source))
    if missing := set(only) - set(found):
      raise ValueError(f'sets: {source} holds no task {sorted(missing)[0]!r}; there is {", ".join(sorted(found))}')
    chosen = {task: rows for task, rows in found.items() if not only or task in only}
    order = sorted(chosen, key=lambda task: content_id(task).tolist())
    return {task: chosen[task] for number, task in enumerate(order) if tested is None or (number % folds == fold) == tested}

  def examples(split):
    if split not in SPLITS:
      raise ValueError(f'sets: no split {split!r}; there is {", ".join(SPLITS)}')
    for task, rows in read().items():
      quarter = max(len(rows) - shots, 0) // 4
      spans = dict(shots=rows[:shots], dev=rows[shots:shots + quarter], test=rows[shots + quarter:shots + 2 * quarter], train=rows[shots + 2 * quarter:])
      yield from spans[split][:(counts or {}).get(split)]

  return Task(examples, lambda e: e['input'], lambda e: e['output'], matches, group=lambda e: e['task'])


def _tasks(name: str, directory: pathlib.Path) -> dict[str, list[dict]]:
  """{task: its examples by content}; equal ones stand once."""
  if not directory.is_dir():
    raise FileNotFoundError(f'no directory {directory}: pass the one that holds {name}')
  rows: dict[str, dict[str, dict]] = {}
  for row in READERS[name](directory):
    mark = id_text(content_id(row['task'], row['input'], row['output']))
    rows.setdefault(row['task'], {})[mark] = {'id': mark, **row, 'question': row['input']}
  made = {task: [of[mark] for mark in sorted(of)] for task, of in rows.items()}
  outputs = {task: sorted({e['output'] for e in of}) for task, of in made.items()}
  return {task: [_with_options(e, outputs[task]) for e in of] for task, of in made.items()}


def _with_options(example: dict, outputs: Sequence[str]) -> dict:
  """The example with options: its own, all outputs of its task where these are few, else its own output and some others of them."""
  if 'options' in example:
    return example
  if len(outputs) > MOST and not example.pop('closed', False):
    rng = random.Random(example['id'])
    outputs = sorted([example['output'], *rng.sample([o for o in outputs if o != example['output']], MOST - 1)])
  return {**{k: v for k, v in example.items() if k != 'closed'}, 'options': outputs}


def _field(place: str, row: Mapping[str, Any], name: str) -> str:
  if not isinstance(row.get(name), (str, int)):
    raise ValueError(f'{place}: field {name!r} should be text; the fields are {", ".join(map(repr, row)) or "none"}')
  return str(row[name])


def _file(directory: pathlib.Path, name: str) -> pathlib.Path:
  found = [path for path in (directory / f'{name}.jsonl', directory / f'{name}.jsonl.gz') if path.is_file()]
  if not found:
    raise FileNotFoundError(f'{directory} holds no {name}.jsonl(.gz)')
  return found[0]


def _words(directory) -> Iterator[dict]:
  """Lists like 'hat, moth, ice' are their own options; others draw theirs from the outputs of the task."""
  for name in ('function_vectors', 'instruction_induction'):
    for place, row in read_lines(_file(directory, name)):
      if 'input' not in row or 'output' not in row:      # tasks of another form (cause and effect, common concepts)
        continue
      given, output = _field(place, row, 'input').strip(), _field(place, row, 'output').strip()
      listed = [one.strip() for one in given.split(',')]
      more = dict(options=listed) if len(set(listed)) == len(listed) > 1 and output in listed else {}
      if output:
        yield dict(task=_field(place, row, 'task'), input=given, output=output, **more)


def _labelled(files: Sequence[str], text: str, label: str, task: Callable[[Mapping[str, Any]], str], names: Mapping[str, str] = {}):
  def read(directory):
    for name in files:
      for place, row in read_lines(_file(directory, name)):
        shown = _field(place, row, label)
        yield dict(task=task(row), input=_field(place, row, text).strip(), output=names.get(shown, shown.replace('_', ' ').strip()), closed=True)
  return read


def _bbh(directory) -> Iterator[dict]:
  """Tasks whose questions list options: '(A) ...' is answered by its letter, '- Yes' by its text."""
  folder = directory / 'tasks' if (directory / 'tasks').is_dir() else directory
  files = sorted(path for path in folder.iterdir() if re.fullmatch(r'\w+\.json(\.gz)?', path.name))
  if not files:
    raise FileNotFoundError(f'{directory} holds no tasks of BIG-Bench Hard (NAME.json or NAME.json.gz)')
  for path in files:
    try:
      with (gzip.open(path, 'rt', encoding='utf-8') if path.suffix == '.gz' else open(path, encoding='utf-8')) as file:
        rows = json.load(file)['examples']
    except (ValueError, EOFError, KeyError, gzip.BadGzipFile) as error:
      raise ValueError(f'{path}: no task of BIG-Bench Hard ({type(error).__name__}: {error}); fetch it again') from error
    for number, row in enumerate(rows):
      target = _field(f'{path} example {number}', row, 'target').strip()
      listed = [letter or text.strip() for letter, text in re.findall(r'^(?:(\([A-Z]\)) .*|- (.*))$', row['input'].partition('\nOptions:\n')[2], re.M)]
      options = listed or sorted({one['target'].strip() for one in rows})
      if len(set(options)) == len(options) and target in options and (listed or len(options) <= MOST):
        yield dict(task=path.name.split('.')[0], input=row['input'].strip(), output=target, options=options)


READERS: Mapping[str, Callable[[pathlib.Path], Iterator[dict]]] = dict(
    word_tasks=_words, bbh=_bbh,
    banking77=_labelled(('train', 'test'), 'text', 'label', lambda row: 'banking77'),
    clinc150=_labelled(('data_small',), 'text', 'label', lambda row: 'clinc150'),
    snips=_labelled(('snips',), 'text', 'intent', lambda row: 'snips'),
    sentiment=_labelled(('sentences',), 'text', 'label', lambda row: f'sentiment-{row["source"]}', {'0': 'negative', '1': 'positive'}),
)
