"""Retrieval of demonstrations: scoring candidates with their text as a shared beginning, against a loop of single prompts; exact dense search."""
import statistics
import tempfile

import jax
import numpy as np

from benchmarks import likelihood as single_rows, measure
from distill_jax.core.types import Role
from distill_jax.decode import likelihood, score, search
from distill_jax.models import MODELS

LENGTH = 64


def candidates(count: int, quick: bool) -> dict:
  """The shape of the bundled reader; each of 8 (40) candidates of 10 tokens is read for 20 (50) queries of 6 tokens and targets of 5."""
  several, queries, vocab = (8, 20, 64) if quick else (40, 50, 750)
  rng = np.random.default_rng(0)
  role = Role(MODELS['transformer'](vocab_size=vocab, width=64, layers=2, heads=4, mlp_width=128, max_length=128), single_rows.Ids())
  params = jax.jit(role.model.init)(jax.random.key(0))
  draw = lambda n: rng.integers(2, vocab, n).tolist()
  say = lambda ids: ' '.join(map(str, ids))
  shown, asked = [draw(10) for _ in range(several)], [(draw(6), draw(5)) for _ in range(queries)]
  spoken = [say(ids) for ids in shown], [[say(y) for _, y in asked]] * several, [[say(x) for x, _ in asked]] * several
  one = jax.jit(lambda params, row: score.score(role.model, params, row))
  found = {}

  def ours():
    said = likelihood.of_texts(role, params, spoken[0], spoken[1], given=spoken[2], batch=512)
    found['ours'] = [total / n for row in said for total, n in row]

  def loop():
    found['loop'] = [_alone(one, params, [*shown_ids, *x], y) for shown_ids in shown for x, y in asked]
  seconds = measure.interleave({'ours': ours, 'loop': loop}, count)
  np.testing.assert_allclose(found['ours'], found['loop'], rtol=1e-3, atol=1e-4)
  median = {name: statistics.median(values) for name, values in seconds.items()}
  pairs = several * queries
  return dict(name='candidates scored, pairs/s', ours=pairs / median['ours'], other=pairs / median['loop'], against='loop of single prompts',
              ratio=measure.ratio(seconds, 'loop', 'ours'), goal=5.0)


def _alone(one, params, before: list[int], y: list[int]) -> float:
  """One row of 64 slots, so that one program serves all: the mean log-probability of y."""
  whole = np.zeros(LENGTH + 1, np.int32)
  whole[:len(before) + len(y)] = before + y
  real = (np.arange(LENGTH) < len(before) + len(y) - 1).astype(np.int32)
  logps = one(params, dict(tokens=whole[None, :-1], targets=whole[None, 1:], segments=real[None], positions=real[None] * np.arange(LENGTH)[None]))
  return float(np.asarray(logps)[0, len(before) - 1:len(before) + len(y) - 1].mean())


def dense(count: int, quick: bool) -> dict:
  """Milliseconds of an exact search over 100,000 vectors of width 64, eight queries at a time, best 50."""
  rows, width, together = (1000, 16, 8) if quick else (100_000, 64, 8)
  rng = np.random.default_rng(0)
  with tempfile.TemporaryDirectory() as directory:
    search.build(directory, rng.normal(size=(rows, width)).astype(np.float32), encoder='e', pool='p')
    opened = search.open_index(directory, encoder='e', pool='p')
  batches = [rng.normal(size=(together, width)).astype(np.float32) for _ in range(8)]
  seconds = measure.interleave({'ours': lambda: [search.nearest(opened, batch, count=50) for batch in batches]}, count)
  return dict(name=f'dense search of {rows:,} rows, ms', ours=1e3 * statistics.median(seconds['ours']) / len(batches), other=None, against='', ratio=None, goal=10.0)
