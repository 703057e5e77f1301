"""Draws: unbiased, no noisier than independent draws, and what a loss makes of them."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.data import draws
from distill_jax.losses import divergence

SIZE, COUNT, TIMES = 40, 7, 6000


@pytest.fixture(scope='module')
def told():
  """(p [V], estimates [TIMES, V], ids, log-probabilities) of many independent drawings from one distribution."""
  rng = np.random.default_rng(0)
  logps = jax.nn.log_softmax(jnp.asarray(2 * rng.normal(size=SIZE), jnp.float32))
  ids = jnp.asarray(rng.permutation(SIZE), jnp.int32)
  rows = TIMES // 100
  shape = lambda x: jnp.broadcast_to(x.reshape(1, 1, SIZE), (rows, 100, SIZE))
  made = jax.jit(lambda keys: draws.draw(keys, shape(ids), shape(logps), draws=COUNT))(jax.random.split(jax.random.key(1), rows))
  found, logs, mass = (np.asarray(x).reshape(TIMES, -1) for x in made)
  np.testing.assert_allclose(mass, 1, atol=1e-5)
  p = np.zeros(SIZE)
  p[np.asarray(ids)] = np.exp(logps)
  estimate = np.zeros((TIMES, SIZE))
  for place in range(COUNT):
    there = found[:, place] >= 0
    estimate[np.flatnonzero(there), found[there, place]] += np.exp(logs[there, place])
  return p, estimate, found, logs


def test_each_estimate_is_a_distribution_of_whole_counts(told):
  p, estimate, found, logs = told
  np.testing.assert_allclose(estimate.sum(-1), 1, atol=1e-5)
  np.testing.assert_allclose(COUNT * estimate, np.rint(COUNT * estimate), atol=1e-4)
  in_order = np.sort(found, -1)
  assert ((in_order[:, 1:] != in_order[:, :-1]) | (in_order[:, 1:] < 0)).all(), 'an id stands once'
  assert (logs[found < 0] == 0).all()


def test_the_mean_over_drawings_is_the_distribution(told):
  """Every sum_v p_v f(v): the ids one by one, and a random f. 5 standard errors: less than 1 in 10^4 by chance over all 41."""
  p, estimate, *_ = told
  f = np.random.default_rng(2).normal(size=SIZE)
  for values, truth in ((estimate, p), ((estimate @ f)[:, None], np.array([p @ f]))):
    error = values.std(0, ddof=1) / np.sqrt(TIMES)
    # an id so rare that it was hardly drawn has a standard error that cannot be told from the sample
    assert (np.abs(values.mean(0) - truth) <= 5 * np.maximum(error, 1 / (COUNT * TIMES))).all()


def test_no_noisier_than_independent_draws(told):
  p, estimate, *_ = told
  independent = p * (1 - p) / COUNT
  chance = 5 / np.sqrt(TIMES * COUNT * p)      # of a variance that was estimated from so many hits
  assert (estimate.var(0) <= independent * (1 + chance)).all()
  assert estimate.var(0).sum() < 0.7 * independent.sum()


def test_the_gradient_of_a_loss_is_that_of_the_whole_distribution_in_the_mean(told):
  """top_k_kl of draws has the gradient softmax - q: cross-entropy to q, no rest class; its mean is softmax - p."""
  p, estimate, found, logs = told
  student = jnp.asarray(np.random.default_rng(3).normal(size=SIZE), jnp.float32)
  one = lambda ids, logps: jax.grad(lambda z: divergence.top_k_kl(z, ids, logps))(student)
  gradients = np.asarray(jax.jit(jax.vmap(one))(jnp.asarray(found), jnp.asarray(logs)))
  np.testing.assert_allclose(gradients, np.asarray(jax.nn.softmax(student))[None] - estimate, atol=3e-6)
  whole = np.asarray(jax.grad(lambda z: divergence.forward_kl(z, jnp.log(jnp.asarray(p, jnp.float32))))(student))
  error = gradients.std(0, ddof=1) / np.sqrt(TIMES)
  assert (np.abs(gradients.mean(0) - whole) <= 5 * np.maximum(error, 1 / (COUNT * TIMES)) + 3e-6).all()


def test_draws_follow_the_key_of_the_row_and_the_place():
  logps = jnp.full((2, 5, 8), -jnp.log(8.0))
  ids = jnp.broadcast_to(jnp.arange(8).reshape(1, 1, 8), logps.shape)
  keys = jax.random.split(jax.random.key(0), 2)
  whole = draws.draw(keys, ids, logps, draws=3)
  part = draws.draw(keys[1:], ids[1:, :2], logps[1:, :2], draws=3)
  for a, b in zip(whole, part):
    np.testing.assert_array_equal(a[1:, :2], b)
  assert len({tuple(x) for x in np.asarray(whole[0]).reshape(-1, 3).tolist()}) > 3


def test_edges():
  one = lambda ids, logps, count: [np.asarray(x)[0, 0].tolist() for x in draws.draw(
      jax.random.split(jax.random.key(0), 1), jnp.asarray([[ids]]), jnp.asarray([[logps]], jnp.float32), draws=count)]
  assert one([5, 2], [0.0, -jnp.inf], 3) == [[5, -1, -1], [0, 0, 0], 1], 'all mass on one id'
  assert one([2, 5], [-jnp.inf, 0.0], 2)[0] == [5, -1]
  assert one([-1, -1], [0.0, 0.0], 2) == [[-1, -1], [0, 0], 1], 'padding'
  assert one([3, -1], [jnp.log(0.25), 0.0], 1)[2] == 0.25
  with pytest.raises(ValueError, match='draws=0 must be at least 1'):
    one([1], [0.0], 0)
