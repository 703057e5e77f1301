"""Contrasts: ranked demonstrations as the rows that a retriever learns from."""
from typing import Any, Mapping

from distill_jax.core import keys
from distill_jax.core.types import Task
from distill_jax.data import groups
from distill_jax.decode import embed
from distill_jax.stages import pools

KEPT = 5      # of the best, and of the worst, of a query's candidates (the k of EPR)


def read(inputs: Mapping[str, Any], text, task: Task | None, *, split: str, pool: str, group: int, length: int, context_length: int,
         kept: int = KEPT) -> groups.Groups:
  """Rows of `group` queries: the question of each, the `kept` best and worst of what was ranked for it.

  length, context_length: tokens of a question, and of a demonstration. ValueError: fewer than 2 x kept candidates for a query.
  """
  if task is None:
    raise ValueError('train: what a rank stage found are places in a pool; name the task that has it, task=')
  held = pools.examples_of(task, pool)
  found = pools.read(inputs, held, stage='train')
  if (least := min(map(len, found.places))) < 2 * kept:
    raise ValueError(f'train: a query has {least} ranked candidates, and {kept} good and {kept} bad ones are taken: search for at least {2 * kept} (count=)')
  asked = pools.queries_of(task, found, split)
  best, worst = [row[:kept] for row in found.places], [row[::-1][:kept] for row in found.places]
  used = sorted({int(p) for row in (*best, *worst) for p in row})
  shown = dict(zip(used, embed.ids_of(text, [pools.demonstration(held[p]) for p in used])))
  read_ids = embed.ids_of(text, [q['question'] for q in asked])
  queries = [groups.Query(keys.id_from_text(q['id']), ids, [shown[int(p)] for p in good], [shown[int(p)] for p in bad])
             for q, ids, good, bad in zip(asked, read_ids, best, worst)]
  return groups.Groups(queries, members=group, length=length, context_length=context_length)
