"""int8 weights: how far they are from what they were, what they weigh, and that they refuse to learn."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.compress import quant
from distill_jax.core import mesh as mesh_lib, tree
from distill_jax.models import weights
from distill_jax.models.transformer import transformer
from distill_jax.stages.roles import load_role

SIZES = dict(vocab_size=96, width=32, layers=5, heads=4, kv_heads=2, mlp_width=64, max_length=64, pattern=('local', 'global'), window=8,
             attention_bias='qkv')


@pytest.fixture(scope='module')
def made():
  model = transformer(**SIZES)
  return model, jax.jit(model.init)(jax.random.key(0))


def logits(model, params, seed=1):
  out = model.apply(params, dict(tokens=jax.random.randint(jax.random.key(seed), (2, 20), 0, 96)))
  return out['head'].logits(out['hidden'].astype(jnp.float32))


def test_every_matrix_is_within_half_a_step_of_what_it_was(made):
  model, params = made
  eight = quant.rounded(model, params)
  back, flat = tree.flatten(quant.restored(eight)), tree.flatten(eight)
  for path, leaf in tree.flatten(params).items():
    if path.endswith('kernel'):
      assert flat[path].dtype == jnp.int8
      step = flat[path.removesuffix('kernel') + 'kernel_scale']
      assert (np.abs(back[path] - leaf) <= 0.5001 * step[..., None, :]).all()
      np.testing.assert_array_equal(np.abs(flat[path]).max(-2), 127)      # the largest of a column uses the whole range
    else:
      np.testing.assert_array_equal(back[path], leaf)


def test_it_computes_with_the_rounded_weights_also_when_it_decodes(made):
  model, params = made
  eight = quant.quantised(model)
  small = quant.rounded(model, params)
  expected = logits(model, quant.restored(small))
  np.testing.assert_allclose(logits(eight, small), expected, atol=2e-5)
  assert 0 < float(jnp.abs(expected - logits(model, params)).max()) < 0.05
  tokens = jax.random.randint(jax.random.key(1), (2, 20), 0, 96)
  out = eight.apply(eight.ready(small), dict(tokens=tokens), cache=eight.cache(2, 20))
  np.testing.assert_allclose(out['head'].logits(out['hidden']), expected, atol=2e-5)


def test_a_column_of_zeros_stays_zero(made):
  model, params = made
  flat = tree.flatten(params)
  path = next(path for path in flat if path.endswith('kernel'))
  zero = tree.unflatten({**flat, path: flat[path].at[..., 0].set(0.0)})
  back = tree.flatten(quant.restored(quant.rounded(model, zero)))
  assert np.isfinite(back[path]).all() and not back[path][..., 0].any()


@pytest.fixture(scope='module')
def directory(made, tmp_path_factory):
  where = tmp_path_factory.mktemp('teacher') / 'made'
  weights.write(where, 'transformer', made[0].config, jax.device_get(made[1]))
  return str(where)


@pytest.mark.parametrize('axes', [None, dict(fsdp=2, tensor=2, data=2)])
def test_a_role_is_read_so_the_same_bits_on_every_mesh(made, directory, axes):
  mesh = None if axes is None else mesh_lib.make_mesh(axes)
  role = load_role(dict(load=directory, params_dtype='int8', tokenizer='bundled:teacher'), mesh=mesh)
  whole = load_role(dict(load=directory, params_dtype='int8', tokenizer='bundled:teacher'))
  expected, got = tree.flatten(whole.params), tree.flatten(role.params)
  for path, leaf in tree.flatten(quant.rounded(*made)).items():      # XLA divides otherwise than numpy, in the last bit
    np.testing.assert_allclose(np.asarray(expected[path], np.float32), np.asarray(leaf, np.float32), atol=1 if leaf.dtype == jnp.int8 else 2e-3)
  assert set(got) == set(expected)
  for path, leaf in got.items():
    np.testing.assert_array_equal(leaf, expected[path], err_msg=path)
  assert role.model.trainable == () and role.fingerprint != load_role(dict(load=directory, tokenizer='bundled:teacher')).fingerprint
  if mesh is not None:
    kernel = got['layers/0/mlp/up/kernel']
    assert kernel.addressable_shards[0].data.size == kernel.size / 4


def test_a_model_that_learns_cannot_be_int8(directory):
  with pytest.raises(ValueError, match='int8.*does not learn'):
    load_role(dict(load=directory, params_dtype='int8', lora=dict(rank=2), tokenizer='bundled:teacher'))
  with pytest.raises(ValueError, match='int8.*does not learn'):
    load_role(dict(model=dict(SIZES), params_dtype='int8', tokenizer='bundled:teacher'))
