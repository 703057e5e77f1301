"""The sorted distance against numpy, over vocabularies of two sizes."""
import jax
import numpy as np
import pytest

from distill_jax.losses import distance


def softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize('sizes', [(5, 5), (4, 7), (7, 4)], ids=str)
def test_value(sizes):
  rng = np.random.default_rng(0)
  a, b = (rng.normal(size=(3, size)) for size in sizes)
  a[1, 0] = -np.inf
  scale = np.log([1.0, 0.5, 0.1])
  p, q = softmax(a) * np.exp(scale)[:, None], softmax(b)
  p, q = (np.pad(np.sort(x, -1)[:, ::-1], ((0, 0), (0, max(sizes) - x.shape[1]))) for x in (p, q))
  found = jax.jit(distance.sorted_gap)(*(x.astype(np.float32) for x in (a, b, scale, np.zeros(3))))
  np.testing.assert_allclose(found, np.abs(p - q).sum(-1), rtol=1e-5)


def test_ids_do_not_matter_and_equal_ones_are_at_no_distance():
  rng = np.random.default_rng(1)
  x = rng.normal(size=(2, 6)).astype(np.float32)
  zero = np.zeros(2, np.float32)
  value, grads = jax.jit(jax.value_and_grad(lambda x, y: distance.sorted_gap(x, y, zero, zero).sum(), argnums=(0, 1)))(x, x[:, rng.permutation(6)])
  assert float(value) == 0 and not any(np.asarray(g).any() for g in grads)
