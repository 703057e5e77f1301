"""Pools: the examples that demonstrations are taken from, what was found in them for whom, and the texts that both become."""
import pathlib
from typing import Any, Callable, Iterable, Mapping, NamedTuple, Sequence

import numpy as np

from distill_jax.core import hosts, marks
from distill_jax.core.types import Task
from distill_jax.data import shards
from distill_jax.stages import parts as parts_lib

KIND = 'neighbours'


def examples_of(task: Task, split: str, count: int | None = None) -> list[dict[str, Any]]:
  """The examples of a split. ValueError where there is none, or where one has no question or target."""
  examples = list(task.examples(split))[:count]
  if not examples:
    raise ValueError(f'the task has no examples in split {split!r}')
  if missing := [name for name in ('question', 'target') if name not in examples[0]]:
    raise ValueError(f'this task cannot be searched: its examples have no {missing[0]!r}')
  return examples


def fingerprint(examples: Iterable[Mapping[str, Any]]) -> str:
  """Of a pool: its examples in their order."""
  return marks.fingerprint([[e['id'], e['question'], e['target']] for e in examples])


def demonstration(example: Mapping[str, Any]) -> str:
  """`question\\ttarget`, as a demonstration stands in a prompt."""
  return f'{example["question"]}\t{example["target"]}'


def prompt(demonstrations: Sequence[str], asked: str) -> str:
  """The prompt of demonstrations, most similar first, and the text that asks: the most similar stands next to it."""
  return '\n'.join([*reversed(demonstrations), asked])


def others(query: Mapping[str, Any], pool: Sequence[Mapping[str, Any]]) -> Callable[[int], bool]:
  """Whether the pool's example of that place is another one than the query: neither its id nor its question and target."""
  same = lambda e: e['id'] == query['id'] or (e['question'], e['target']) == (query['question'], query['target'])
  return lambda place: not same(pool[place])


class Found(NamedTuple):
  """For each query its id, the places of what was found in the pool (best first) and their scores; more is better."""
  ids: list[str]
  places: list[np.ndarray]
  scores: list[np.ndarray]
  pool: str


def write(out: pathlib.Path, found: Found, *, fingerprints: Mapping[str, str] = {}) -> None:
  """One shard. All hosts call it, the leader writes."""
  if hosts.lead():
    shards.write_part(out, 0, 1, dict(id=found.ids, place=[np.asarray(p, np.int32) for p in found.places],
                                      score=[np.asarray(s, np.float32) for s in found.scores]))
  parts_lib.finish(out, count=1, fingerprints={'pool': found.pool, **fingerprints}, kind=KIND)


def read(inputs: Mapping[str, pathlib.Path], pool: Sequence[Mapping[str, Any]], *, stage: str) -> Found:
  """What the one search or rank stage of the inputs found. ValueError: none, or it searched another pool."""
  opened = [shards.open_shards(path) for path in inputs.values() if (path / 'manifest.json').exists()]
  opened = [one for one in opened if one.manifest['kind'] == KIND]
  if len(opened) != 1:
    raise ValueError(f'{stage}: reads what one search or rank stage found; name it in of=, got {", ".join(inputs) or "nothing"}')
  mark, now = opened[0].manifest['fingerprints']['pool'], fingerprint(pool)
  if mark != now:
    raise ValueError(f'{stage}: {opened[0].directory} searched another pool (fingerprint {mark}, here {now}): give both stages the same task and pool=')
  column = opened[0].column
  return Found(list(column('id')), list(column('place')), list(column('score')), now)


def queries_of(task: Task, found: Found, split: str) -> list[dict[str, Any]]:
  """The examples of `split` that were searched for, in the order of `found`."""
  by_id = {e['id']: e for e in task.examples(split)}
  if missing := [i for i in found.ids if i not in by_id]:
    raise ValueError(f'{len(missing)} of {len(found.ids)} queries are not in split {split!r} of the task: give both stages the same split=')
  return [by_id[i] for i in found.ids]
