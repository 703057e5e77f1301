"""Soft targets: values of the paper's loss by hand, gradients against the divergence, the control of equal entropy."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.losses import divergence, soft, tokens

P, Q = jnp.log(jnp.asarray([0.7, 0.2, 0.1])), jnp.log(jnp.asarray([0.5, 0.3, 0.2]))


def test_values_by_hand():
  assert float(soft.soft_cross_entropy(Q, P)) == pytest.approx(0.8869414, abs=1e-6)
  assert float(divergence.forward_kl(Q, P)) == pytest.approx(0.0851228, abs=1e-6)
  hard = float(tokens.cross_entropy(Q, jnp.int32(0)))
  assert hard == pytest.approx(0.6931472, abs=1e-6)
  assert 0.5 * hard + 0.5 * float(soft.soft_cross_entropy(Q, P)) == pytest.approx(0.7900443, abs=1e-6)


@pytest.mark.parametrize('temperature', [1.0, 2.0])
def test_against_a_plain_sum(temperature):
  logits, told = (jnp.asarray(np.random.default_rng(n).normal(size=(4, 3, 9)), jnp.float32) for n in (0, 1))
  p, logq = jax.nn.softmax(told / temperature), jax.nn.log_softmax(logits / temperature)
  np.testing.assert_allclose(soft.soft_cross_entropy(logits, told, temperature=temperature), -(p * logq).sum(-1) * temperature ** 2, rtol=1e-5)
  ours = jax.grad(lambda x: soft.soft_cross_entropy(x, told, temperature=temperature).sum())(logits)
  np.testing.assert_allclose(ours, jax.grad(lambda x: divergence.forward_kl(x, told, temperature=temperature).sum())(logits), atol=1e-6)
  assert not jnp.abs(jax.grad(lambda t: soft.soft_cross_entropy(logits, t).sum())(told)).max()


def test_forbidden_ids_count_nothing():
  bar = jnp.asarray([0.0, -jnp.inf, 0.0])
  found = soft.soft_cross_entropy(Q + bar, P + bar)
  p, q = np.asarray([0.7, 0.1]) / 0.8, np.asarray([0.5, 0.2]) / 0.7
  assert float(found) == pytest.approx(-(p * np.log(q)).sum(), abs=1e-6)
  assert np.isfinite(jax.grad(lambda x: soft.soft_cross_entropy(x + bar, P + bar))(Q)).all()
  nothing = jnp.full(3, -jnp.inf)
  assert float(soft.soft_cross_entropy(Q, nothing)) == 0


@pytest.mark.parametrize('others', [1.0, 4.0, 999.0])
def test_mass_gives_the_entropy(others):
  wanted = jnp.linspace(0.01, 0.98, 9) * np.log(others + 1)
  e = np.asarray(soft.mass_of_entropy(wanted, jnp.full(9, others)), np.float64)
  found = -(1 - e) * np.log(1 - e) - e * np.log(e / others)
  np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)
  assert (np.diff(e) > 0).all() and e.min() > 0


def test_the_control_is_as_soft_as_the_teacher_and_even_over_the_rest():
  logits = jnp.asarray(np.random.default_rng(0).normal(size=(5, 8)), jnp.float32).at[:, 6].set(-jnp.inf)
  targets, entropy = jnp.arange(5), jnp.linspace(0.0, 1.5, 5)
  slope = np.asarray(jax.grad(lambda x: soft.smoothed_cross_entropy(x, targets, entropy).sum())(logits))
  p = np.asarray(jax.nn.softmax(logits)) - slope      # the gradient of a cross-entropy is q - p
  np.testing.assert_allclose(p.sum(1), 1, atol=1e-5)
  assert np.allclose(p[:, 6], 0, atol=1e-6)
  np.testing.assert_allclose(-np.where(p > 1e-6, p * np.log(np.maximum(p, 1e-9)), 0).sum(1), entropy, atol=2e-3)
  rest = [[p[n, v] for v in range(8) if v not in (n, 6)] for n in range(5)]
  np.testing.assert_allclose(rest, np.mean(rest, axis=1, keepdims=True) * np.ones((1, 6)), atol=1e-5)
