"""Groups: rows of several queries, assembled and cut along their members."""
import jax
import numpy as np
import pytest

from distill_jax.core import keys, mesh as mesh_lib
from distill_jax.data import feed, groups, rows as rows_lib


def queries(count, *, kept=2):
  rng = np.random.default_rng(0)
  text = lambda: rng.integers(2, 90, rng.integers(1, 9)).tolist()
  return [groups.Query(keys.content_id(n), text(), [text() for _ in range(kept)], [text() for _ in range(kept + n % 2)]) for n in range(count)]


def test_a_row_holds_its_queries():
  given = queries(10)
  rows = groups.Groups(given, members=4, length=6, context_length=5)
  assert len(rows) == 10 and rows.kept == 2
  numbers = [7, 2, 0, 9, 1, 3, 4, 5]
  batch = rows.batch(numbers)
  rows_lib.checked(batch)
  assert batch['tokens'].shape == (2, 4, 6) and batch['contexts'].shape == (2, 4, 2, 2, 5) and batch['row'].shape == (2, 2)
  for place, number in enumerate(numbers):
    b, g = divmod(place, 4)
    query = rows.queries[number]
    assert (batch['examples'][b, g] == query.id).all()
    for array, mark, ids in [(batch['tokens'][b, g], batch['segments'][b, g], query.tokens), (batch['contexts'][b, g, 0, 1], batch['contexts_segments'][b, g, 0, 1], query.best[1]),
                             (batch['contexts'][b, g, 1, 0], batch['contexts_segments'][b, g, 1, 0], query.worst[0])]:
      cut = ids[:len(array)]
      assert array[:len(cut)].tolist() == cut and mark.tolist() == [1] * len(cut) + [0] * (len(array) - len(cut))
  for name, array in batch.items():
    assert rows_lib.declared(name).dtype == array.dtype.name, name
  for name in ('tokens', 'contexts'):
    assert (groups.Groups(given[::-1], members=4, length=6, context_length=5).batch(numbers)[name] == batch[name]).all(), 'whatever the order'


def test_too_few_queries_for_a_row():
  with pytest.raises(ValueError, match='a row of 8 queries, but there are 5.*Take group=5 or less'):
    groups.Groups(queries(5), members=8, length=6, context_length=5)


def test_the_feed_cuts_rows_along_their_members():
  rows, mesh = groups.Groups(queries(20), members=8, length=6, context_length=5), mesh_lib.make_mesh()
  fed = feed.Feed(rows, batch=1, seed=3, start=2, stop=5, mesh=mesh, members=8)
  try:
    steps = list(fed)
  finally:
    fed.close()
  assert [step for step, _ in steps] == [2, 3, 4]
  for step, batch in steps:
    assert {shard.data.shape for shard in batch['contexts'].addressable_shards} == {(1, 8 // jax.device_count(), 2, 2, 5)}
    whole = rows.batch(feed.numbers_of_step(step, rows=20, batch=8, seed=3))
    assert all((np.asarray(batch[name]) == whole[name]).all() for name in whole)
    assert len({tuple(x) for x in np.asarray(batch['examples'])[0].tolist()}) == 8 or step == 2      # an epoch may end within a row


def test_what_cannot_be_cut():
  mesh = mesh_lib.make_mesh()
  feed.check_batch(1, mesh, 1, members=16)
  with pytest.raises(ValueError, match='group=12 cannot be cut over 8 devices: take a multiple of 8, say 8'):
    feed.check_batch(1, mesh, 1, members=12)
  with pytest.raises(ValueError, match='microbatches=2: a contrast needs its whole row at once'):
    feed.check_batch(1, mesh, 2, members=16)
