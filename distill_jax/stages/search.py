"""Search: for each question of a split, examples of a pool that may serve as its demonstrations; and the dense index that is searched."""
import functools
import random
import time
from typing import Any, Mapping, Sequence

import numpy as np

from distill_jax.core import hosts, mesh as mesh_lib
from distill_jax.core.types import Role
from distill_jax.decode import embed, search as search_lib
from distill_jax.stages import pools, records
from distill_jax.stages.roles import load_roles

WAYS = ('random', 'bm25', 'hidden', 'dense')


def index(out, inputs, *, seed, how, log, roles, task, pool='train', pool_count=None) -> dict[str, Any]:
  """Encodes every example of the pool with the role `prompt` and writes an index for exact search by inner product.

  The index knows the fingerprint of its encoder: a search that would use another one is refused.  how: batch, mesh, rules.
  """
  began = time.perf_counter()
  mesh = mesh_lib.make_mesh(how.get('mesh'))
  encoder = load_roles({'prompt': roles['prompt']}, mesh, how, seed=seed)['prompt']
  held = pools.examples_of(records.make_task(task), pool, pool_count)
  vectors = embed.first_tokens(encoder, encoder.params, [pools.demonstration(e) for e in held], batch=how.get('batch', 64), mesh=mesh)
  if hosts.lead():
    search_lib.build(out, vectors, encoder=encoder.fingerprint, pool=pools.fingerprint(held))
  hosts.wait(f'{out.name}: index')
  return dict(kind='index', rows=len(vectors), width=int(vectors.shape[1]), seconds=time.perf_counter() - began)


def search(out, inputs, *, seed, how, log, task, by, split='test', pool='train', count=50, field='question', words='words', roles=None,
           first=None, pool_count=None) -> dict[str, Any]:
  """Finds the `count` best examples of the pool for each of the `first` questions of `split`. What is the query itself (its id, or its
  question and target) is never found.

  by: 'random' (by seed and id); 'bm25' over `field`, with the query's own as the query: 'question', or 'target' (its perfect answer: for
    training, and as an oracle), cut into `words` (see decode/search.py); 'hidden': inner product of the mean last hidden states, at unit
    length, of the role `reader`, a language model (a sentence encoder that was trained for nothing else); 'dense': the roles `student` and
    `prompt`, a trained pair, over the index stage in of=.
  pool_count: first examples of the pool only.  how: batch, mesh, rules.
  ValueError: a pool smaller than count; an index that another encoder built.
  """
  began = time.perf_counter()
  if by not in WAYS:
    raise ValueError(f'search: by={by!r}, one of {", ".join(WAYS)}')
  if field not in ('question', 'target'):
    raise ValueError(f"search: field={field!r}: 'question' or 'target'")
  made = records.make_task(task)
  asked, held = pools.examples_of(made, split, first), pools.examples_of(made, pool, pool_count)
  spare = _copies(asked, held)
  if len(held) - spare < count:
    raise ValueError(f'search: count={count}, but the pool has {len(held)} examples{f", of which up to {spare} are the query itself" if spare else ""}: '
                     f'ask for at most {len(held) - spare}, or give a larger pool')
  mesh = mesh_lib.make_mesh(how.get('mesh'))
  loaded = load_roles(roles or {}, mesh, how, seed=seed)
  look = dict(random=_random, bm25=functools.partial(_bm25, field=field, words=words), hidden=_hidden, dense=_dense)[by]
  places, scores = look(asked, held, loaded, inputs, count=count + spare, seed=seed, batch=how.get('batch', 64), mesh=mesh)
  kept = [[i for i, place in enumerate(row) if is_other(place)][:count] for row, is_other in zip(places, (pools.others(q, held) for q in asked))]
  found = pools.Found([e['id'] for e in asked], [row[k] for row, k in zip(places, kept)], [row[k] for row, k in zip(scores, kept)], pools.fingerprint(held))
  pools.write(out, found)
  seconds = time.perf_counter() - began
  return dict(kind='search', by=by, queries=len(asked), pool=len(held), count=count, seconds=seconds)


def _copies(asked: Sequence[Mapping[str, Any]], held: Sequence[Mapping[str, Any]]) -> int:
  """The most examples of the pool that are one query itself."""
  ids, texts = {}, {}
  for e in held:
    ids.setdefault(e['id'], set()).add(e['id'])
    texts.setdefault((e['question'], e['target']), set()).add(e['id'])
  return max(len(ids.get(q['id'], set()) | texts.get((q['question'], q['target']), set())) for q in asked)


def _random(asked, held, roles, inputs, *, count, seed, batch, mesh):
  rows = [random.Random(f'search {seed} {q["id"]}').sample(range(len(held)), count) for q in asked]
  return np.asarray(rows, np.int32), np.zeros((len(asked), count), np.float32)


def _bm25(asked, held, roles, inputs, *, count, seed, batch, mesh, field, words):
  return search_lib.bm25([e[field] for e in held], [e[field] for e in asked], count=count, words=words)


def _hidden(asked, held, roles, inputs, *, count, seed, batch, mesh):
  reader = _role(roles, 'reader', by='hidden')
  vectors = lambda examples: embed.mean_hidden(reader, reader.params, [e['question'] for e in examples], batch=batch, mesh=mesh)
  scores = vectors(asked) @ vectors(held).T
  places = np.argsort(-scores, axis=1, kind='stable')[:, :count]
  return places.astype(np.int32), np.take_along_axis(scores, places, 1)


def _dense(asked, held, roles, inputs, *, count, seed, batch, mesh):
  query, prompt = (_role(roles, name, by='dense') for name in ('student', 'prompt'))
  where = [path for path in inputs.values() if (path / search_lib.ABOUT).exists()]
  if len(where) != 1:
    raise ValueError(f"search: by='dense' reads one index stage; name it in of=, got {', '.join(inputs) or 'nothing'}")
  opened = search_lib.open_index(where[0], encoder=prompt.fingerprint, pool=pools.fingerprint(held))
  return search_lib.nearest(opened, embed.first_tokens(query, query.params, [e['question'] for e in asked], batch=batch, mesh=mesh), count=count)


def _role(roles: Mapping[str, Role], name: str, *, by: str) -> Role:
  if name not in roles:
    raise ValueError(f"search: by={by!r} needs the role {name!r}, got {', '.join(roles) or 'none'}")
  return roles[name]
