"""Feed: the batch of step k is a function of (seed, k); a thread prepares the next ones and puts them on the devices."""
import functools
import queue
import threading
import time
from typing import Any, Iterator

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from distill_jax.core import mesh as mesh_lib
from distill_jax.data import rows as rows_lib


@functools.lru_cache(maxsize=4)
def _permutation(rows: int, seed: int, epoch: int) -> np.ndarray:
  return np.random.Generator(np.random.Philox(key=[np.uint64(seed), np.uint64(epoch)])).permutation(rows)


def numbers_of_step(step: int, *, rows: int, batch: int, seed: int) -> np.ndarray:
  """Row numbers [batch] of step `step` (from 0): row i of step k is entry k * batch + i of the endless shuffled epochs."""
  places = np.arange(step * batch, (step + 1) * batch)
  return np.asarray([_permutation(rows, seed, int(p // rows))[p % rows] for p in places])


def places(count: int, mesh: Mesh) -> np.ndarray:
  """Which of the `count` rows of a batch lie on devices of this host, in order, once each."""
  pieces = mesh_lib.rows(mesh).addressable_devices_indices_map((count,)).values()
  spans = {part.indices(count)[:2] for (part,) in pieces}
  return np.asarray(sorted({row for start, stop in spans for row in range(start, stop)}), np.int64)


def put(batch: dict[str, Any], mesh: Mesh, *, held: np.ndarray | None = None, count: int | None = None) -> dict[str, Any]:
  """Rows as global arrays, cut over the mesh by rows. held: which of the `count` rows these are (see `places`); default: all."""
  sharding = mesh_lib.rows(mesh)
  if sharding.is_fully_addressable:
    return jax.device_put(batch, sharding)

  def one(x):
    first = lambda index: index[0].start or 0
    at = first if held is None else lambda index: int(np.searchsorted(held, first(index)))
    shape = (len(x) if count is None else count, *x.shape[1:])
    size = shape[0] // mesh_lib.row_count(mesh)
    return jax.make_array_from_callback(shape, sharding, lambda index: x[at(index):at(index) + size])
  return jax.tree.map(one, batch)


def put_groups(batch: dict[str, Any], mesh: Mesh) -> dict[str, Any]:
  """Rows [B, G, ...] as global arrays, cut over the mesh by their second axis (rule 'group'); 'row' lies everywhere. All hosts hold all of it."""
  along = NamedSharding(mesh, mesh_lib.spec((None, 'group')))
  place = lambda name: mesh_lib.replicated(mesh) if name == 'row' else along
  if along.is_fully_addressable:
    return {name: jax.device_put(x, place(name)) for name, x in batch.items()}
  return {name: jax.make_array_from_callback(x.shape, place(name), lambda index, x=x: x[index]) for name, x in batch.items()}


def check_batch(batch: int, mesh: Mesh, microbatches: int, members: int = 1) -> None:
  """Stops when a batch cannot be cut evenly, naming sizes that work. members: of a row; rows of several are cut along these alone."""
  if members > 1:
    unit = mesh_lib.row_count(mesh)
    if members % unit:
      raise ValueError(f'group={members} cannot be cut over {unit} devices: take a multiple of {unit}, say {max(members // unit, 1) * unit}')
    if microbatches > 1:
      raise ValueError(f'microbatches={microbatches}: a contrast needs its whole row at once; let the method go through it in pieces (chunk=)')
    return
  unit = mesh_lib.row_count(mesh) * microbatches
  if batch % unit:
    raise ValueError(f'batch={batch} cannot be cut into {microbatches} microbatches over {mesh_lib.row_count(mesh)} devices: '
                     f'take a multiple of {unit}, say {max(batch // unit, 1) * unit}')


class Feed:
  """Iterates over (step, batch on the devices) from step `start`. `waited` counts the seconds the consumer stood waiting.

  members: numbers of `rows` that make one row of the batch; more than one for `data.groups.Groups`, whose rows are cut along them.
  """

  def __init__(self, rows: Any, *, batch: int, seed: int, start: int, stop: int, mesh: Mesh, depth: int = 2, members: int = 1):
    self.rows, self.batch, self.seed, self.start, self.stop, self.mesh, self.members = rows, batch, seed, start, stop, mesh, members
    self.waited = 0.0
    self._queue: queue.Queue = queue.Queue(maxsize=depth)
    self._closed = threading.Event()
    self._thread = threading.Thread(target=self._work, daemon=True)
    self._thread.start()

  def _work(self):
    held = places(self.batch, self.mesh) if self.members == 1 else None
    try:
      for step in range(self.start, self.stop):
        numbers = numbers_of_step(step, rows=len(self.rows), batch=self.batch * self.members, seed=self.seed)
        if held is None:
          item = step, put_groups(rows_lib.checked(self.rows.batch(numbers)), self.mesh)
        else:
          item = step, put(rows_lib.checked(self.rows.batch(numbers[held])), self.mesh, held=held, count=self.batch)
        if not self._offer(item):
          return
    except BaseException as error:  # handed to the consumer, which raises it
      self._offer(error)
    else:
      self._offer(None)

  def _offer(self, item) -> bool:
    while not self._closed.is_set():
      try:
        self._queue.put(item, timeout=0.1)
        return True
      except queue.Full:
        continue
    return False

  def __iter__(self) -> Iterator[tuple[int, dict[str, Any]]]:
    while True:
      began = time.perf_counter()
      item = self._queue.get()
      self.waited += time.perf_counter() - began
      if item is None:
        return
      if isinstance(item, BaseException):
        raise item
      yield item

  def close(self) -> None:
    """Stops the thread."""
    self._closed.set()
    self._thread.join()
