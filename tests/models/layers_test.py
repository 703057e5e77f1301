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
  np.testing.assert_allclose(norm(jnp.asarray(x)), y / np.sqrt((y ** 2).mean(-1, keepdims=True) + 1e-5), atol=1e-5)


def test_norm_computes_in_float32_and_returns_the_dtype_of_its_input():
  norm = layers.Norm(8, kind='rms', eps=1e-5, rngs=nnx.Rngs(0))
  x = (normal(0, 4, 8) * 100).astype(jnp.bfloat16)
  assert norm(x).dtype == jnp.bfloat16
  np.testing.assert_array_equal(norm(x), norm(x.astype(jnp.float32)).astype(jnp.bfloat16))


def test_rotation_makes_scores_depend_on_distance_only():
  q, k = normal(0, 1, 1, 1, 16), normal(1, 1, 1, 1, 16)

  def score(at_q, at_k):
    turned = [layers.rotate(x, layers.rotary(jnp.array([[at]]), 16, 100.0)) for x, at in ((q, at_q), (k, at_k))]
    return float(jnp.sum(turned[0] * turned[1]))

  assert score(7, 4) == pytest.approx(score(23, 20), abs=1e-4)
  assert abs(score(7, 4) - score(7, 5)) > 1e-3
  assert score(0, 0) == pytest.approx(float(jnp.sum(q * k)), abs=1e-5)


@pytest.mark.parametrize('kv_heads', [1, 2, 4])
def test_attention_is_its_formula(kv_heads):
  q, k, v = np.asarray(normal(0, 2, 4, 5, 8)), np.asarray(normal(1, 2, kv_heads, 6, 8)), np.asarray(normal(2, 2, kv_heads, 6, 8))
  mask = np.asarray(jax.random.bernoulli(jax.random.key(3), 0.6, (2, 5, 6))) | (np.arange(6) == 0)
  got = layers.attend(*map(jnp.asarray, (q, k, v, mask)))
  for b in range(2):
    for h in range(4):
      scores = q[b, h] @ k[b, h // (4 // kv_heads)].T / np.sqrt(8)
      shares = np.where(mask[b], np.exp(scores), 0)
      np.testing.assert_allclose(got[b, h], shares / shares.sum(-1, keepdims=True) @ v[b, h // (4 // kv_heads)], atol=1e-5)


def test_attention_that_may_see_nothing_is_finite_with_finite_gradients():
  q, k, v = (normal(i, 1, 2, 3, 4) for i in range(3))
  mask = jnp.zeros((1, 3, 3), bool)
  assert np.isfinite(layers.attend(q, k, v, mask)).all()
  for gradient in jax.grad(lambda *x: jnp.sum(layers.attend(*x, mask) ** 2), (0, 1, 2))(q, k, v):
    assert np.isfinite(gradient).all()


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
