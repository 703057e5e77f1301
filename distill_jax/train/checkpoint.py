"""Checkpoints of a training run: orbax, asynchronous, with the few host-side facts a resumed run needs."""
import contextlib
import errno
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

from distill_jax.core import hosts, store
from distill_jax.core.types import State


class OtherModel(ValueError):
  """A checkpoint that is sound, but of another model."""


class Checkpoints:
  """Saves and restores (state, facts). facts: a JSON-able dict, such as the best validation so far."""

  def __init__(self, directory: pathlib.Path, *, keep: int = 2):
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
    handlers = dict(state=ocp.StandardCheckpointHandler(), facts=ocp.JsonCheckpointHandler())
    self._metrics = pathlib.Path(directory).parent / 'metrics.jsonl'
    where = store.remote(pathlib.Path(directory)) or pathlib.Path(directory).absolute()      # orbax writes to object stores itself
    self._manager = ocp.CheckpointManager(where, options=options, item_handlers=handlers)

  def latest(self) -> int | None:
    """The newest finished step, or None."""
    return self._manager.latest_step()

  def save(self, step: int, state: State, facts: dict[str, Any]) -> None:
    """Starts writing; returns when the device arrays are copied."""
    with self._room():
      self._manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(state._asdict()), facts=ocp.args.JsonSave(dict(facts))))
    if hosts.lead() and self._metrics.exists():
      store.push(self._metrics)

  def restore(self, like: State, *, at: int | None = None, say=lambda text: None) -> tuple[int, State, dict[str, Any]] | None:
    """(step, state, facts) of the newest checkpoint that can be read, with the shapes, dtypes and shardings of `like`; None: there is none.

    The mesh and the number of hosts may be others than those that saved. A newest one that is damaged is passed over, said, and removed
    once an older one has been read. at: that step alone. ValueError: a checkpoint of another model, or none can be read.
    """
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like._asdict())
    damaged = []
    for step in sorted(self._manager.all_steps(), reverse=True) if at is None else [at]:
      try:
        self._require_same_shapes(step, abstract)
        got = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract), facts=ocp.args.JsonRestore()))
      except OtherModel:
        raise
      except Exception as error:      # orbax and tensorstore raise many kinds for files that are cut short or damaged
        damaged.append((step, f'{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ""}'))
        continue
      for bad, why in damaged:
        say(f'checkpoint {bad} is damaged ({why}); it is removed, and step {step} before it is used')
        self._manager.delete(bad)
      return step, State(**got['state']), got['facts']
    if damaged:
      step, why = damaged[0]
      raise ValueError(f'no checkpoint in {self._manager.directory} can be read; the newest, {step}: {why}. '
                       'Delete that directory to begin this stage again')
    return None

  def _require_same_shapes(self, step: int, abstract) -> None:
    """Stops where a checkpoint that can be read holds other arrays than this run."""
    held = self._manager.item_metadata(step)['state']
    there = {jax.tree_util.keystr(path): tuple(x.shape) for path, x in jax.tree_util.tree_leaves_with_path(held) if hasattr(x, 'shape')}
    here = {jax.tree_util.keystr(path): tuple(x.shape) for path, x in jax.tree_util.tree_leaves_with_path(abstract)}
    if there and sorted(there.values()) != sorted(here.values()):
      odd = next((path for path in here if there.get(path) != here[path]), None) or next(path for path in there if path not in here)
      raise OtherModel(f'checkpoint {self._manager.directory}/{step} is of another model: {odd} has shape {there.get(odd, "(absent)")} there and '
                       f'{here.get(odd, "(absent)")} in this run. Use another workdir, or delete that directory')

  def wait(self) -> None:
    """Until everything begun is on disk."""
    with self._room():
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits and closes."""
    self.wait()
    self._manager.close()

  @contextlib.contextmanager
  def _room(self):
    """A full disk, which orbax may say late and in several ways, as one OSError; the checkpoints before stay."""
    try:
      yield
    except Exception as error:
      if 'No space left on device' not in str(error):
        raise
      directory = self._manager.directory
      raise OSError(errno.ENOSPC, f'no room for a checkpoint in {directory} (finished there: {list(self._manager.all_steps()) or "none"}). '
                    'Free some space, then run the same command again') from error
