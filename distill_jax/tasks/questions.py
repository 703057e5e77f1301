"""Where the rows of a question task come from: a directory of JSONL files, a hub data set, or a generator; and what its splits are.

Splits: train, dev, test, and `all`. dev is a twentieth of the training questions, by id, which train leaves out: choose on it, never on test.
`all` is every training question, dev among them (to count what a recorded teacher wrote; train on train). A source without test questions is
split as in Ho et al. 2022: np.random.RandomState(0).permutation, the first round(0.7 n), sorted, train, the others test; `all` is then all of it.
"""
import functools
import itertools
import pathlib
import re
from typing import Any, Callable, Iterable, Iterator, Mapping, NamedTuple, Sequence

import numpy as np

from distill_jax.core.keys import content_id, id_text
from distill_jax.tasks.gsm8k import read_lines, recorded as read_recorded

HUB_ID = re.compile(r'[\w.-]+/[\w.-]+')
SPLITS = ('train', 'dev', 'test', 'all')
DEV_SHARE = 20      # one training question in 20 is dev, by its id


class Hub(NamedTuple):
  """A data set of the Hugging Face hub. make: (place, row) -> an example without id and split; config, train, test: names there (None: none)."""
  make: Callable[[str, Mapping[str, Any]], dict]
  config: str | None = None
  train: str | None = 'train'
  test: str | None = 'test'


class Files(NamedTuple):
  """The files of a directory, their names without .jsonl(.gz). make: as in Hub. test None: no such file, the rows of train are split."""
  make: Callable[[str, Mapping[str, Any]], dict]
  train: str | None = 'train'
  test: str | None = 'test'


def published_split(count: int, *, share: float = 0.7, seed: int = 0) -> tuple[list[int], list[int]]:
  """(training numbers, test numbers) of `count` rows, both sorted (Ho et al. 2022)."""
  order = np.random.RandomState(seed).permutation(list(range(count)))
  cut = round(share * count)
  return sorted(map(int, order[:cut])), sorted(map(int, order[cut:]))


def field(place: str, row: Mapping[str, Any], name: str, kind: type | tuple[type, ...] = str) -> Any:
  """row[name] of that type, or a ValueError that names the place."""
  if name not in row:
    raise ValueError(f'{place}: no field {name!r}; the fields are {", ".join(map(repr, row)) or "none"}')
  if not isinstance(row[name], kind):
    wanted = ' or '.join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
    raise ValueError(f'{place}: field {name!r} should be {wanted}, it is {type(row[name]).__name__}')
  return row[name]


def number_text(number: float | str) -> str:
  """42.0 -> '42'; 1.84 -> '1.84'."""
  value = float(number)
  return str(int(value)) if value.is_integer() else repr(value)


def with_choices(question: str, choices: Sequence[str]) -> str:
  """A question and its choices (A), (B), ... in one line."""
  listed = ', '.join(f'({chr(65 + i)}) {choice}' for i, choice in enumerate(choices))
  return f'{question.strip()} Answer choices: {listed}.'


def file_of(directory: str | pathlib.Path, name: str) -> pathlib.Path | None:
  """NAME.jsonl or NAME.jsonl.gz of a directory, None where there is neither."""
  return next((path for end in ('jsonl', 'jsonl.gz') if (path := pathlib.Path(directory) / f'{name}.{end}').is_file()), None)


def on_hub(source: str | pathlib.Path) -> bool:
  """Whether a source is a hub id: it looks like one, and no such path is here."""
  return bool(HUB_ID.fullmatch(str(source))) and not pathlib.Path(source).exists()


def _of_directory(source: str, files: Files, remedy: str) -> dict[str, list[dict]]:
  directory = pathlib.Path(source)
  if not directory.is_dir():
    raise FileNotFoundError(f'no directory {source}; pass {remedy}')
  found = {part: path for part, name in (('train', files.train), ('test', files.test)) if name and (path := file_of(directory, name))}
  wanted = 'train' if files.train else 'test'
  if wanted not in found:
    holds = ', '.join(sorted(path.name for path in directory.iterdir())) or 'nothing'
    raise FileNotFoundError(f'{source} holds no {getattr(files, wanted)}.jsonl(.gz) (it holds {holds}); pass {remedy}')
  return {part: [files.make(place, row) for place, row in read_lines(path)] for part, path in found.items()}


def of_hub(source: str, hub: Hub, remedy: str) -> dict[str, list[dict]]:
  """The rows of a hub data set by part. ConnectionError says what else can be passed."""
  import datasets
  try:
    rows = {part: datasets.load_dataset(source, hub.config, split=name) for part, name in (('train', hub.train), ('test', hub.test)) if name}
  except Exception as error:      # offline, unknown id, no rights: each library version has its own classes
    raise ConnectionError(f'there is no directory {source}, and the hub did not give a data set of that name ({type(error).__name__}: {error}). '
                          f'Pass {remedy}') from error
  return {part: [hub.make(f'{source} {part} row {number}', row) for number, row in enumerate(several)] for part, several in rows.items()}


def _parts(rows: Mapping[str, list[dict]]) -> dict[str, list[dict]]:
  """train (dev among them), test and all."""
  if 'train' in rows and 'test' in rows:
    return dict(train=rows['train'], test=rows['test'], all=rows['train'])
  only = rows.get('train', rows.get('test'))
  train, test = published_split(len(only))
  return dict(train=[only[i] for i in train], test=[only[i] for i in test], all=only)


def _named(rows: Iterable[dict], split: str) -> Iterator[dict]:
  """Rows with id and split; a question that stands twice counts once."""
  seen = set()
  for row in rows:
    name = id_text(content_id(row['question'], row['answer']))
    if name in seen or split in ('train', 'dev') and (int(name, 16) % DEV_SHARE == 0) != (split == 'dev'):
      continue
    seen.add(name)
    yield {'rationale': '', 'kind': '', **row, 'id': name, 'split': split}


def read(source: str, *, name: str, counts: Mapping[str, int] | None, files: Files, hub: Hub | None, hub_id: str = '') -> Callable[[str], list[dict]]:
  """split -> its examples, dict(id, question, answer, rationale, kind, split, ...).

  source: a directory or a hub id.  counts: {split: most examples}.  Errors: ValueError (bad line: file:line; unknown split),
  FileNotFoundError (directory), ConnectionError (hub).
  """
  remedy = f'the directory of {name} (a file {files.train or files.test}.jsonl(.gz))' + (f' or a hub id such as {hub_id!r}' if hub_id else '')
  from_hub = hub is not None and on_hub(source)
  return split_up(lambda: of_hub(source, hub, remedy) if from_hub else _of_directory(source, files, remedy), counts, source)


def split_up(load: Callable[[], Mapping[str, list[dict]]], counts: Mapping[str, int] | None, source: str) -> Callable[[str], list[dict]]:
  """split -> examples of what load() gives when it is first asked: rows by 'train' and 'test', or one of them."""
  counts = dict(counts or {})
  _known(counts, SPLITS, source)
  parts = functools.cache(lambda: _parts(load()))
  return _examples(lambda split: _named(parts()['train' if split == 'dev' else split], split), SPLITS, counts, source)


def recorded(path: str | pathlib.Path, *, column: str, question: Callable[[str, Mapping[str, Any]], str], who: str) -> Iterator[dict]:
  """Completions that stand in `column` of the lines of a data set, in the form of gsm8k.recorded; a line that says `canary` is left out.

  question: (place, row) -> the question as the task words it.  A file without that column is read as gsm8k.recorded reads one.
  """
  if not pathlib.Path(path).is_file():
    raise FileNotFoundError(f'no file {path} of recorded completions; it should be JSONL(.gz), its lines with {column!r}, or with question and completion(s)')
  lines = ((place, row) for place, row in read_lines(path) if 'canary' not in row)
  first = next(lines, None)
  if first is None or column not in first[1]:
    yield from read_recorded(path)
    return
  for place, row in itertools.chain([first], lines):
    yield dict(question=question(place, row), completion=field(place, row, column), label=None, who=who, answer=None)


def generated(make: Callable[[str, int], Iterable[dict]], *, sizes: Mapping[str, int], counts: Mapping[str, int] | None) -> Callable[[str], list[dict]]:
  """split -> generated examples. make: (split, count) -> dict(question, answer, ...).  sizes: the splits and how many each has."""
  counts = dict(counts or {})
  _known(counts, sizes, 'bundled')

  def rows(split):
    return [{'rationale': '', 'kind': '', **row, 'id': id_text(content_id(row['question'], row['answer'])), 'split': split}
            for row in make(split, counts.get(split, sizes[split]))]

  return _examples(rows, tuple(sizes), {}, 'bundled')


def _known(counts, splits, source) -> None:
  if unknown := [name for name in counts if name not in splits]:
    raise ValueError(f'counts names {unknown[0]!r}; the splits of source={source!r} are {", ".join(splits)}')


def _examples(rows, splits, counts, source):
  @functools.cache
  def load(split):
    if split not in splits:
      raise ValueError(f'no split {split!r}; source={source!r} has {", ".join(splits)}')
    return list(rows(split))[:counts.get(split)]
  return lambda split: [dict(row) for row in load(split)]
