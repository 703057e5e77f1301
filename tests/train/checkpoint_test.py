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
  assert saved.latest() is None
  facts = {'best': {'step': 3, 'value': 0.5}, 'waited': 1}
  saved.save(5, state_of(1.5, memory={'queue': jnp.arange(6.0).reshape(2, 3)}, step=5), facts)
  facts['best'], facts['waited'] = {'step': 6, 'value': 0.9}, 0       # the run goes on while the checkpoint is written
  saved.close()
  again = Checkpoints(tmp_path)
  assert again.latest() == 5
  state, known = again.restore(5, state_of(0.0, memory={'queue': jnp.zeros((2, 3))}))
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
  state, _ = saved.restore(1, like)
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
  with pytest.raises(ValueError, match=r'checkpoint .*/7 cannot be restored into this run: .+ Delete that directory'):
    saved.restore(7, state_of(0.0, **like))
  saved.close()
  gc.collect()


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_a_checkpoint_that_was_cut_is_refused_or_not_seen(tmp_path):
  saved = Checkpoints(tmp_path)
  saved.save(1, state_of(1.0), {})
  saved.close()
  for path in (tmp_path / '1' / 'state').rglob('*'):
    if path.is_file():
      path.write_bytes(path.read_bytes()[:3])
  again = Checkpoints(tmp_path)
  assert again.latest() == 1
  with pytest.raises(ValueError, match='cannot be restored'):
    again.restore(1, state_of(0.0))
  again.close()
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
    got, _ = saved.restore(step, state)
    np.testing.assert_array_equal(got.params['student']['kernel'], np.full((4096, 4), float(step)))
  saved.close()
