"""Rank: what was found for a query is put in the order of how much it helps to produce the query's target."""
import collections
import random
import re
import time
from typing import Any, Mapping, Sequence

import numpy as np

from distill_jax.core import mesh as mesh_lib
from distill_jax.core.types import Role
from distill_jax.decode import likelihood
from distill_jax.stages import pools, records
from distill_jax.stages.roles import load_roles

WAYS = ('likelihood', 'overlap', 'as_found', 'shuffled')
# words that say nothing of what a target is about: a short list of our own
STOP = frozenset('a an and are as at be by for from has have how if in into is it its no not of on or that the their there they this to was were what when where which who will with'.split())


def rank(out, inputs, *, seed, how, log, task, by, split='train', pool='train', roles=None, first=None, pool_count=None) -> dict[str, Any]:
  """Orders the candidates that a search (or rank) stage found, best first, and writes them with their scores.

  by: 'likelihood': mean log-probability a token of the query's target y under the role `reader`, of the text "x'\\ty'\\nx\\ty" (EPR,
    Rubin 2022; the order of -score is that of its mean NLL); each candidate is read once for all queries that found it.
    'overlap': F1 of the words of y' and y without stop words (case-based reasoning, CBR).  'as_found': the order of the search (with BM25
    over targets: DR-BM25).  'shuffled': a random order by (seed, id): the control whose scores say nothing.
  first: queries that are ranked, first ones only.  how: batch (rows at a time), mesh.
  ValueError: a candidate and a query that together overflow the reader.
  """
  began = time.perf_counter()
  if by not in WAYS:
    raise ValueError(f'rank: by={by!r}, one of {", ".join(WAYS)}')
  made = records.make_task(task)
  held = pools.examples_of(made, pool, pool_count)
  found = pools.read(inputs, held, stage='rank')
  found = found._replace(ids=found.ids[:first], places=found.places[:first], scores=found.scores[:first])
  asked = pools.queries_of(made, found, split)
  if by == 'likelihood':
    if 'reader' not in (roles or {}):
      raise ValueError("rank: by='likelihood' needs the role 'reader', a language model")
    mesh = mesh_lib.make_mesh(how.get('mesh'))
    reader = load_roles({'reader': roles['reader']}, mesh, how, seed=seed)['reader']
    scores = likelihoods(reader, asked, held, found.places, batch=how.get('batch', 256), mesh=mesh)
  else:
    scores = dict(overlap=_overlap, as_found=_as_found, shuffled=_shuffled)[by](asked, held, found, seed)
  ranked = ordered(found, scores)
  pools.write(out, ranked)
  pairs, seconds = sum(map(len, scores)), time.perf_counter() - began
  best, rest = np.mean([row[0] for row in ranked.scores]), np.mean([row[-1] for row in ranked.scores])
  return dict(kind='rank', by=by, queries=len(asked), pairs=pairs, seconds=seconds, pairs_per_second=pairs / seconds, best=float(best), worst=float(rest))


def ordered(found: pools.Found, scores: Sequence[Sequence[float]]) -> pools.Found:
  """What was found, by these scores, largest first; of equal ones what stood first before."""
  orders = [np.argsort(-np.asarray(row, np.float32), kind='stable') for row in scores]
  return found._replace(places=[p[o] for p, o in zip(found.places, orders)], scores=[np.asarray(s, np.float32)[o] for s, o in zip(scores, orders)])


def likelihoods(reader: Role, asked: Sequence[Mapping[str, Any]], held: Sequence[Mapping[str, Any]], places: Sequence[np.ndarray], *, batch: int,
                mesh=None) -> list[np.ndarray]:
  """For each query and each of its candidates: mean log p(a token of y | x', y', x). Candidates stand first in the text, so a candidate is a
  prefix that all of its queries share."""
  by_candidate = collections.defaultdict(list)
  for q, row in enumerate(places):
    for c, place in enumerate(row):
      by_candidate[int(place)].append((q, c))
  order = sorted(by_candidate)
  prefixes = [f'{pools.demonstration(held[place])}\n' for place in order]
  given = [[f'{asked[q]["question"]}\t' for q, _ in by_candidate[place]] for place in order]
  texts = [[asked[q]['target'] for q, _ in by_candidate[place]] for place in order]
  said = likelihood.of_texts(reader, reader.params, prefixes, texts, given=given, batch=batch, mesh=mesh)
  out = [np.empty(len(row), np.float32) for row in places]
  for place, row in zip(order, said):
    for (q, c), (total, count) in zip(by_candidate[place], row):
      out[q][c] = total / count
  return out


def overlap(one: str, other: str) -> float:
  """F1 of the words of two targets, each word as often as it stands there, without stop words; 0 where one has none left."""
  words = [collections.Counter(w for w in re.findall(r'\w+', text.lower()) if w not in STOP) for text in (one, other)]
  both = sum((words[0] & words[1]).values())
  return 2 * both / (sum(words[0].values()) + sum(words[1].values())) if both else 0.0


def _overlap(asked, held, found, seed):
  return [[overlap(held[place]['target'], q['target']) for place in row] for q, row in zip(asked, found.places)]


def _as_found(asked, held, found, seed):
  return found.scores


def _shuffled(asked, held, found, seed):
  return [np.asarray(random.Random(f'rank {seed} {q["id"]}').sample(range(len(row)), len(row)), np.float32) for q, row in zip(asked, found.places)]
