"""Semantic parsing on real data: Break's decompositions (QDMR) and the programs of SMCalFlow, from local files, split by content."""
import gzip
import json
import pathlib
import zlib
from typing import Any, Callable, Iterator

from distill_jax.core import keys
from distill_jax.core.types import Task
from distill_jax.tasks import qdmr

FILES = dict(break_qdmr='qdmr_dev.jsonl.gz', smcalflow='valid_turns.jsonl.gz')
SPLITS = dict(train=range(16), dev=range(16, 18), test=range(18, 20))      # of twenty buckets


def break_qdmr(*, source: str, metric: str = 'form', longest: int | None = None) -> Task:
  """Break, low-level QDMR (Wolfson 2020). source: a directory with qdmr_dev.jsonl.gz (or that file), the only one with labels that is at hand.

  Split by question id: sixteen of twenty buckets train, two dev, two test. target: '1#) return ... 2#) ...' (see tasks/qdmr.py); a prompt ends
  in '1#)', as in the release of EPR. metric: 'form', equal logical forms (`qdmr.same`, which see for what it covers), or 'exact', equal up to
  white space. longest: targets of more words are left out.  FileNotFoundError, ValueError: no such file, split or metric.
  """
  grades = dict(form=lambda e, said: qdmr.same(qdmr.plain(said), qdmr.plain(e['target'])), exact=lambda e, said: said.split() == e['target'].split())
  if metric not in grades:
    raise ValueError(f"break_qdmr: metric={metric!r}: 'form' or 'exact'")
  opening = '1#)'
  whole = lambda text: text if text.lstrip().startswith(opening) else f'{opening} {text.strip()}'

  def rows():
    for row in _lines(source, FILES['break_qdmr']):
      question, target = ' '.join(row['question_text'].split()), qdmr.numbered(row['decomposition'])
      yield row['question_id'], row['question_id'], question, target
  return _task(rows, opening=opening, longest=longest, grade=lambda e, text: float(grades[metric](e, whole(text))))


def smcalflow(*, source: str, longest: int | None = None) -> Task:
  """SMCalFlow 2.0 (Andreas 2020): a user's turn to a program. source: a directory with valid_turns.jsonl.gz (or that file).

  Split by dialogue: no dialogue has turns in two splits. The question is the turn alone, as in EPR. grade: equal strings, white space at the ends aside, of what
  stands before '<|endoftext|>'. longest: programs of more words are left out.
  """
  def rows():
    for row in _lines(source, FILES['smcalflow']):
      yield f'{row["dialogue_id"]} {row["turn"]}', row['dialogue_id'], ' '.join(row['user'].split()), ' '.join(row['lispress'].split())
  return _task(rows, opening='', longest=longest, grade=lambda e, text: float(text.split('<|endoftext|>')[0].strip() == e['target'].strip()))


def _task(rows: Callable[[], Iterator[tuple[str, str, str, str]]], *, opening: str, longest: int | None, grade: Callable) -> Task:
  """rows() -> (name, what it is split by, question, target)."""
  def examples(split):
    if split not in SPLITS:
      raise ValueError(f'no split {split!r}; there is {", ".join(SPLITS)}')
    for name, unit, question, target in rows():
      if zlib.crc32(unit.encode()) % 20 in SPLITS[split] and (longest is None or len(target.split()) <= longest):
        yield dict(id=keys.id_text(keys.content_id(name, question, target)), question=question, target=target)

  return Task(examples, prompt=lambda e: f'{e["question"]}\t{opening}', answer=lambda e: e['target'].removeprefix(opening), grade=grade,
              explain=lambda e, text: 'right' if grade(e, text) else 'another form')


def _lines(source: str, name: str) -> Iterator[dict[str, Any]]:
  path = pathlib.Path(source).expanduser()
  path = path / name if path.is_dir() else path
  if not path.is_file():
    raise FileNotFoundError(f'no {name} at {source}: give source= the directory that holds it')
  with (gzip.open if path.suffix == '.gz' else open)(path, 'rt', encoding='utf-8') as file:
    for line in file:
      if line.strip():
        yield json.loads(line)
