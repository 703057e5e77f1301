"""Checkpoints of a training run: orbax, asynchronous, with the few host-side facts a resumed run needs."""
import contextlib
import errno
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

from distill_jax.core.types import State


class Checkpoints:
  """Saves and restores (state, facts). facts: a JSON-able dict, such as the best validation so far."""

  def __init__(self, directory: pathlib.Path, *, keep: int = 2):
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
    self._manager = ocp.CheckpointManager(pathlib.Path(directory).absolute(), options=options)

  def latest(self) -> int | None:
    """The newest finished step, or None."""
    return self._manager.latest_step()

  def save(self, step: int, state: State, facts: dict[str, Any]) -> None:
    """Starts writing; returns when the device arrays are copied."""
    with self._room():
      self._manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(state._asdict()), facts=ocp.args.JsonSave(dict(facts))))

  def restore(self, step: int, like: State) -> tuple[State, dict[str, Any]]:
    """The state of `step`, with the shapes, dtypes and shardings of `like`."""
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like._asdict())
    try:
      got = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract), facts=ocp.args.JsonRestore()))
    except (ValueError, KeyError, FileNotFoundError) as error:
      raise ValueError(f'checkpoint {self._manager.directory}/{step} cannot be restored into this run: {str(error).splitlines()[0]}. '
                       f'Delete that directory to go on from the one before it') from error
    return State(**got['state']), got['facts']

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
