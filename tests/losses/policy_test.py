"""Policy losses against numbers worked out by hand."""
import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.losses import policy


def test_clipped_is_ppos_objective():
  ratio, gain = np.asarray([0.5, 1.0, 1.5, 0.5, 1.5], np.float32), np.asarray([1, 1, 1, -1, -1], np.float32)
  value, grad = jax.vmap(jax.value_and_grad(lambda x, g: policy.clipped(x, jnp.zeros(()), g, clip=0.2)))(np.log(ratio), gain)
  np.testing.assert_allclose(value, [-0.5, -1.0, -1.2, 0.8, 1.5], rtol=1e-6)
  np.testing.assert_allclose(grad, [-0.5, -1.0, 0.0, 0.0, 1.5], rtol=1e-6)      # no gradient where clipping is the worse of the two


def test_returns_are_means_of_what_follows():
  rewards = np.asarray([[9, 1, 2, 6, np.nan], [np.nan, 3, 9, 9, 9]], np.float32)
  counts = np.asarray([[0, 1, 1, 1, 0], [0, 1, 0, 0, 0]], bool)
  np.testing.assert_allclose(policy.returns_to_go(rewards, counts), [[0, 4, 6, 0, 0], [0, 0, 0, 0, 0]], rtol=1e-6)

