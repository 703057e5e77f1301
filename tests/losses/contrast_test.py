"""The contrast of a row: the worked example of EPR, a loop in float64, absent contexts."""
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.losses import contrast


def test_worked_example():
  """Queries [1,0] and [0,1]; contexts: own positive and hard negative of each."""
  queries, contexts = jnp.asarray([[[1., 0], [0, 1]]]), jnp.asarray([[[1., 0], [.5, .5], [0, 2], [1, 1]]])
  values, found = contrast.in_batch(queries, contexts, jnp.asarray([0, 2]), jnp.ones((1, 4), bool))
  np.testing.assert_allclose(values, [[1.090046, 0.546006]], atol=1e-6)
  assert float(values.mean()) == pytest.approx(0.818026, abs=1e-6)
  assert found.tolist() == [[1.0, 1.0]]      # [1, 1] is as near to the first as its own


def test_absent_contexts_are_in_no_softmax():
  rng = np.random.default_rng(0)
  queries, contexts = rng.normal(size=(2, 3, 5)).astype(np.float32), rng.normal(size=(2, 6, 5)).astype(np.float32)
  there = np.asarray([[1, 1, 1, 1, 0, 0], [1, 0, 1, 1, 1, 1]], bool)
  contexts[0, 4:] = 1e3
  own = np.asarray([0, 2, 3])
  values, found = contrast.in_batch(jnp.asarray(queries), jnp.asarray(contexts), jnp.asarray(own), jnp.asarray(there))
  for b in range(2):
    for g in range(3):
      scores = contexts[b].astype(np.float64) @ queries[b, g]
      left = scores[there[b]]
      assert float(values[b, g]) == pytest.approx(np.log(np.exp(left).sum()) - scores[own[g]], rel=1e-4)
      assert bool(found[b, g]) == (scores[own[g]] == left.max())
