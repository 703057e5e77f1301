"""The parts of the decoder against their formulas."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from distill_jax.models import layers


def normal(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize('kind', layers.NORMS)
def test_norm_is_its_formula(kind):
  norm = layers.Norm(8, kind=kind, eps=1e-5, rngs=nnx.Rngs(0))
  x = np.asarray(normal(0, 2, 3, 8)) * 3 + 1
  y = x - x.mean(-1, keepdims=True) if kind == 'layer' else x
  y = y / np.sqrt((y ** 2).mean(-1, keepdims=True) + 1e-5)
  np.testing.assert_allclose(norm(jnp.asarray(x)), y, atol=1e-5)
  offset = layers.Norm(8, kind=kind, eps=1e-5, offset=1.0, rngs=nnx.Rngs(0))
  assert (offset.scale[...] == 0).all()
  offset.scale[...] = offset.scale[...] + 0.5
  np.testing.assert_allclose(offset(jnp.asarray(x)), 1.5 * y, atol=1e-5)


def test_norm_computes_in_float32_and_returns_the_dtype_of_its_input():
  norm = layers.Norm(8, kind='rms', eps=1e-5, rngs=nnx.Rngs(0))
  x = (normal(0, 4, 8) * 100).astype(jnp.bfloat16)
  assert norm(x).dtype == jnp.bfloat16
  np.testing.assert_array_equal(norm(x), norm(x.astype(jnp.float32)).astype(jnp.bfloat16))


def test_dropout_keeps_the_stated_share_and_the_mean():
  x = jnp.ones((4, 64, 64))
  y = layers.drop(x, jax.random.split(jax.random.key(0), 4), 0.1, 0)
  kept = y > 0
  assert np.mean(kept) == pytest.approx(0.9, abs=0.01)
  np.testing.assert_allclose(y[kept], 1 / (1 - round(0.1 * 65536) / 65536), rtol=1e-6)
  assert layers.drop(x, None, 0.1, 0) is x


def test_dropout_of_a_row_follows_its_key_and_site_alone():
  x, keys = jnp.ones((4, 8, 8)), jax.random.split(jax.random.key(0), 4)
  whole = layers.drop(x, keys, 0.5, 1, 0)
  np.testing.assert_array_equal(whole[2:3], layers.drop(x[2:3], keys[2:3], 0.5, 1, 0))
  np.testing.assert_array_equal(whole[::-1], layers.drop(x, keys[::-1], 0.5, 1, 0))
  assert (whole[0] != whole[1]).any()
  for site in ((1, 1), (2, 0)):
    assert (whole != layers.drop(x, keys, 0.5, *site)).any()
