"""Feed: the batch of a step is a function of (seed, step); threads end and their errors arrive."""
import threading
import time

import jax
import numpy as np
import pytest

from distill_jax.core import mesh as mesh_lib
from distill_jax.data import feed


class Counted:
  """Rows that are their own numbers."""

  def __init__(self, count, broken=None):
    self.count, self.broken, self.asked = count, broken, 0

  def __len__(self):
    return self.count

  def batch(self, numbers):
    self.asked += 1
    if self.broken is not None and self.asked > self.broken:
      raise OSError('shard gone')
    return {'row': np.asarray(numbers, np.uint32)}


def mesh():
  return mesh_lib.make_mesh({'data': 4}, devices=jax.devices()[:4])


def taken(rows, **keywords):
  made = feed.Feed(rows, mesh=mesh(), **{**dict(batch=8, seed=0, start=0, stop=10), **keywords})
  try:
    return [(step, np.asarray(batch['row']).tolist()) for step, batch in made]
  finally:
    made.close()


def test_a_batch_is_a_function_of_seed_and_step():
  whole = taken(Counted(20))
  assert [step for step, _ in whole] == list(range(10))
  assert taken(Counted(20), start=6) == whole[6:], 'a resumed run'
  assert taken(Counted(20), seed=1) != whole
  for step, numbers in whole:
    assert numbers == feed.numbers_of_step(step, rows=20, batch=8, seed=0).tolist()


def test_every_row_once_an_epoch_in_another_order_each_time():
  numbers = np.concatenate([feed.numbers_of_step(step, rows=20, batch=8, seed=3) for step in range(15)]).reshape(6, 20)
  assert all(sorted(epoch) == list(range(20)) for epoch in numbers.tolist())
  assert len({tuple(epoch) for epoch in numbers.tolist()}) == 6
  assert sorted(feed.numbers_of_step(0, rows=3, batch=7, seed=0)[:3]) == [0, 1, 2], 'fewer rows than a batch'


def test_the_order_is_pinned():
  """A run of an earlier version continues: these numbers may not change."""
  assert feed.numbers_of_step(0, rows=10, batch=10, seed=0).tolist() == [0, 7, 8, 6, 9, 5, 1, 3, 2, 4]
  assert feed.numbers_of_step(3, rows=10, batch=4, seed=7).tolist() == [2, 8, 5, 0]


def test_rows_lie_over_the_devices():
  made = feed.Feed(Counted(20), batch=8, seed=0, start=0, stop=1, mesh=mesh())
  batch = next(iter(made))[1]
  made.close()
  assert {shard.data.shape for shard in batch['row'].addressable_shards} == {(2,)}


def test_each_host_takes_its_own_share(monkeypatch):
  """Only the rows that lie on its devices are assembled; together they are the batch."""
  shares, whole = [], taken(Counted(20))
  size = len(whole[0][1])
  monkeypatch.setattr(feed, 'put', lambda batch, mesh, held, count: batch)
  for host in range(2):
    monkeypatch.setattr(feed, 'places', lambda count, mesh: np.arange(count)[host * size // 2:(host + 1) * size // 2])
    shares.append(taken(Counted(20)))
  assert all(len(rows) == size // 2 for share in shares for _, rows in share)
  assert [(step, a + b) for (step, a), (_, b) in zip(*shares)] == whole


def test_the_rows_of_a_host_are_those_of_its_devices():
  mesh = mesh_lib.make_mesh({'data': 2, 'fsdp': 2, 'tensor': 2})
  assert feed.places(8, mesh).tolist() == list(range(8))


def test_an_error_of_the_thread_reaches_the_consumer():
  with pytest.raises(OSError, match='shard gone'):
    taken(Counted(20, broken=3))
  assert len([t for t in threading.enumerate() if t is not threading.main_thread() and 'work' in t.name]) == 0


def test_close_ends_a_thread_that_waits():
  made = feed.Feed(Counted(20), batch=8, seed=0, start=0, stop=10 ** 6, mesh=mesh())
  next(iter(made))
  began = time.monotonic()
  made.close()
  assert not made._thread.is_alive() and time.monotonic() - began < 5


def test_waiting_is_counted():
  class Slow(Counted):
    def batch(self, numbers):
      time.sleep(0.05)
      return super().batch(numbers)
  made = feed.Feed(Slow(20), batch=8, seed=0, start=0, stop=3, mesh=mesh())
  assert len(list(made)) == 3
  made.close()
  assert made.waited > 0.1


def test_a_batch_that_cannot_be_cut_names_one_that_can():
  feed.check_batch(16, mesh(), 4)
  with pytest.raises(ValueError, match='batch=18 cannot be cut into 2 microbatches over 4 devices: take a multiple of 8, say 16'):
    feed.check_batch(18, mesh(), 2)
  with pytest.raises(ValueError, match='say 8'):
    feed.check_batch(3, mesh(), 2)
