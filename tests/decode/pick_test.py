"""Choosing the next token: exact distributions, by sweeping the uniform number that decides."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.decode import pick


def shares(p, steps=4000, **settings):
  """Which share of the numbers in [0, 1) draws each token."""
  logits = jnp.broadcast_to(jnp.log(jnp.asarray(p, jnp.float32))[None], (steps, len(p)))
  settings = {'temperature': 1.0, **settings}
  tokens = jax.jit(functools.partial(pick.draw, **settings))((jnp.arange(steps) + 0.5) / steps, logits)
  return np.bincount(np.asarray(tokens), minlength=len(p)) / steps


def test_greedy_takes_the_lowest_of_equals():
  logits = jnp.asarray([[0.0, 3.0, 3.0, 1.0], [-np.inf, -np.inf, -5.0, -np.inf], [-np.inf] * 4, [7.0, 7.0, 7.0, 7.0]])
  assert pick.greedy(logits).tolist() == [1, 2, 0, 0]
  assert pick.greedy(logits).dtype == jnp.int32


def test_greedy_is_argmax():
  logits = jax.random.normal(jax.random.key(0), (20, 1000)).astype(jnp.bfloat16).astype(jnp.float32)
  np.testing.assert_array_equal(pick.greedy(logits), jnp.argmax(logits, -1))


@pytest.mark.parametrize('size', [1, 5, 128, 300])
def test_draws_the_distribution(size):
  p = np.random.default_rng(size).dirichlet(np.ones(size))
  np.testing.assert_allclose(shares(p), p, atol=5e-4)


def test_temperature():
  p = np.array([0.5, 0.3, 0.15, 0.05])
  want = p ** (1 / 0.7)
  np.testing.assert_allclose(shares(p, temperature=0.7), want / want.sum(), atol=5e-4)


def cut(p, *, top_k=0, top_p=1.0):
  """By sorting and counting, the slow and obvious way."""
  keep = np.ones(len(p), bool)
  if top_k:
    keep &= p >= np.sort(p)[::-1][min(top_k, len(p)) - 1]
  q = np.where(keep, p, 0) / p[keep].sum()
  q = np.where([q[q > x].sum() < top_p for x in q], q, 0)
  return q / q.sum()


@pytest.mark.parametrize('settings', [
    dict(top_k=1), dict(top_k=3), dict(top_k=99), dict(top_p=0.5), dict(top_p=0.79), dict(top_p=0.81), dict(top_p=1e-6),
    dict(top_p=0.999999), dict(top_k=3, top_p=0.8)])
def test_top_k_and_top_p_are_exact(settings):
  p = np.array([0.05, 0.3, 0.0, 0.5, 0.1, 0.04, 0.01])
  np.testing.assert_allclose(shares(p, **settings), cut(p, **settings), atol=5e-4)


def test_cuts_by_enumeration_over_random_distributions():
  rng = np.random.default_rng(0)
  keep = jax.jit(lambda p, w, limit: pick._keep_top(p, w, limit) > 0)
  for _ in range(10):
    p = rng.dirichlet(np.full(60, 0.2), 8).astype(np.float32)
    k, mass = int(rng.integers(1, 60)), float(rng.uniform(0.05, 0.99))
    got_k, got_p = keep(p, np.ones_like(p), np.full((8, 1), k, np.float32)), keep(p, p, np.full((8, 1), mass, np.float32))
    for row in range(8):
      order = np.argsort(-p[row], kind='stable')
      assert set(np.flatnonzero(got_k[row])) == {i for i in order[:k] if p[row, i] > 0}
      before = np.cumsum(p[row][order].astype(np.float64)) - p[row][order]
      certain, possible = (set(order[before < mass + slack]) for slack in (-1e-6, 1e-6))
      assert certain <= set(np.flatnonzero(got_p[row])) <= possible


def test_equals_of_the_last_kept_stay():
  np.testing.assert_allclose(shares(np.full(4, 0.25), top_k=2), 0.25, atol=5e-4)
  np.testing.assert_allclose(shares(np.array([0.4, 0.2, 0.2, 0.2]), top_p=0.5), [0.4, 0.2, 0.2, 0.2], atol=5e-4)


def test_never_an_impossible_token():
  """Ends of the range of the uniform number, holes in the vocabulary, one token left."""
  logits = np.full((4, 300), -np.inf, np.float32)
  logits[0, 299], logits[1, [0, 150]], logits[2, 128], logits[3, [7, 250]] = 1.0, 0.0, -80.0, (0.0, 30.0)
  for u in (0.0, 0.5, np.nextafter(np.float32(1), np.float32(0)), 1.0):
    tokens = np.asarray(pick.draw(jnp.full((4,), u, jnp.float32), jnp.asarray(logits), temperature=1.0))
    assert np.all(np.isfinite(logits[np.arange(4), tokens])), u
  far = jnp.asarray([[0.0, -200.0, -300.0]])
  assert pick.draw(jnp.ones((1,)), far, temperature=1.0).tolist() == [0]


def test_log_prob():
  logits = jax.random.normal(jax.random.key(1), (5, 7))
  np.testing.assert_allclose(pick.log_prob(logits, jnp.arange(5)), jax.nn.log_softmax(logits)[jnp.arange(5), jnp.arange(5)], rtol=1e-6)
