"""Checkpoints: what is saved comes back bit for bit, where it lay; what does not fit is one clear error."""
import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.core import mesh as mesh_lib
from distill_jax.core.types import State
from distill_jax.train import optim
from distill_jax.train.checkpoint import Checkpoints


def state_of(value: float, *, width: int = 4, memory=None, mesh=None, step: int = 0) -> State:
  mesh = mesh or mesh_lib.make_mesh({'data': 1}, devices=jax.devices()[:1])
  params = {'student': {'kernel': jnp.full((width, 4), value), 'half': jnp.full(3, value, jnp.bfloat16)}}
  opt = {'student': optim.optimizer(lr=0.1, steps=3, warmup=1).transform.init(params['student'])}
  state = State(jnp.asarray(step, jnp.int32), params, opt, {} if memory is None else memory)
  return jax.device_put(state, mesh_lib.replicated(mesh))


def test_state_and_facts_come_back(tmp_path):
  saved = Checkpoints(tmp_path)
  assert saved.latest() is None and saved.restore(state_of(0.0)) is None
  facts = {'best': {'step': 3, 'value': 0.5}, 'waited': 1}
  saved.save(5, state_of(1.5, memory={'queue': jnp.arange(6.0).reshape(2, 3)}, step=5), facts)
  facts['best'], facts['waited'] = {'step': 6, 'value': 0.9}, 0       # the run goes on while the checkpoint is written
  saved.close()
  again = Checkpoints(tmp_path)
  assert again.latest() == 5
  step, state, known = again.restore(state_of(0.0, memory={'queue': jnp.zeros((2, 3))}))
  assert step == 5
  again.close()
  assert known == {'best': {'step': 3, 'value': 0.5}, 'waited': 1}
  assert int(state.step) == 5 and state.params['student']['half'].dtype == jnp.bfloat16
  np.testing.assert_array_equal(state.params['student']['kernel'], np.full((4, 4), 1.5))
  np.testing.assert_array_equal(state.memory['queue'], np.arange(6.0).reshape(2, 3))
  assert jax.tree.structure(state.opt) == jax.tree.structure(state_of(0.0).opt)


def test_a_run_may_go_on_with_other_devices(tmp_path):
  saved = Checkpoints(tmp_path)
  saved.save(1, state_of(2.0), {})
  saved.wait()
  mesh = mesh_lib.make_mesh({'data': 2, 'fsdp': 4})
  like = state_of(0.0, mesh=mesh)
  like = like._replace(params=jax.device_put(like.params, {'student': {
      'kernel': jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('fsdp')), 'half': mesh_lib.replicated(mesh)}}))
  _, state, _ = saved.restore(like)
  saved.close()
  assert {shard.data.shape for shard in state.params['student']['kernel'].addressable_shards} == {(1, 4)}
  assert len(state.step.sharding.device_set) == 8
  np.testing.assert_array_equal(state.params['student']['kernel'], np.full((4, 4), 2.0))


def test_only_the_newest_are_kept(tmp_path):
  saved = Checkpoints(tmp_path, keep=2)
  for step in (1, 2, 3):
    saved.save(step, state_of(float(step)), {})
  saved.close()
  assert sorted(path.name for path in tmp_path.iterdir() if path.name.isdigit()) == ['2', '3']


@pytest.mark.parametrize('like', [
    dict(width=8),                                    # another width
    dict(memory={'queue': jnp.zeros(2)}),             # a method with memory
])
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')      # orbax leaves its other reads unfinished
def test_a_state_of_another_model_is_refused(tmp_path, like):
  saved = Checkpoints(tmp_path)
  saved.save(7, state_of(1.0), {})
  saved.wait()
  with pytest.raises(ValueError, match=r'checkpoint .*/7 is of another model: .+ (has shape|is absent).+ Use another workdir, or delete that directory'):
    saved.restore(state_of(0.0, **like))
  saved.close()
  gc.collect()


def damage(directory, how):
  for path in (directory / 'state').rglob('*'):
    if path.is_file():
      data = path.read_bytes()
      path.write_bytes(data[:3] if how == 'cut' else b'') if how != 'gone' else path.unlink()


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
@pytest.mark.parametrize('how', ['cut', 'empty', 'gone'])
def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path, how):
  saved = Checkpoints(tmp_path, keep=3)
  for step in (1, 2, 3):
    saved.save(step, state_of(float(step), step=step), {'at': step})
  saved.close()
  damage(tmp_path / '3', how)
  again, said = Checkpoints(tmp_path, keep=3), []
  step, state, facts = again.restore(state_of(0.0), say=said.append)
  assert step == int(state.step) == facts['at'] == 2
  assert len(said) == 1 and 'checkpoint 3 is damaged' in said[0] and 'step 2 before it is used' in said[0]
  again.save(3, state_of(3.0, step=3), {'at': 3})      # its place is free again
  again.close()
  assert Checkpoints(tmp_path).restore(state_of(0.0))[0] == 3
  gc.collect()


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_where_no_checkpoint_can_be_read_the_run_stops_and_removes_nothing(tmp_path):
  saved = Checkpoints(tmp_path)
  saved.save(1, state_of(1.0), {})
  saved.close()
  damage(tmp_path / '1', 'cut')
  again = Checkpoints(tmp_path)
  assert again.latest() == 1
  with pytest.raises(ValueError, match='no checkpoint in .* can be read; the newest, 1: .+ Delete that directory to begin this stage again'):
    again.restore(state_of(0.0))
  again.close()
  assert (tmp_path / '1').is_dir()
  gc.collect()


def test_donated_buffers_do_not_change_what_is_being_written(tmp_path):
  saved = Checkpoints(tmp_path, keep=20)
  bump = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
  state = state_of(0.0, width=4096)
  for step in range(1, 9):
    state = bump(state)
    saved.save(step, state, {})
  saved.wait()
  for step in (1, 4, 8):
    _, got, _ = saved.restore(state, at=step)
    np.testing.assert_array_equal(got.params['student']['kernel'], np.full((4096, 4), float(step)))
  saved.close()
