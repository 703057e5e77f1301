"""Top-k targets with a rest class: the published failure, the formula in float64, absent entries, rounding, -inf."""
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from divergence_test import INF, gradients, kl64, log, random_pair, softmax64

from distill_jax.losses.divergence import forward_kl, top_k_kl


def keep(teacher, k, temperature=1.0):
  logps, ids = jax.lax.top_k(jax.nn.log_softmax(teacher / temperature), k)
  return ids, logps


def test_rest_class_example():
  """99 % of the student's mass lies outside the teacher's top 2: renormalised targets see nothing, the rest class nearly all."""
  teacher, student = np.full(10, 0.05 / 8), np.full(10, 0.99 / 8)
  teacher[:2], student[:2] = [0.65, 0.30], np.array([0.65, 0.30]) / 0.95 * 0.01
  ids, logps = keep(log(teacher), 2)
  renormalised = kl64(teacher[:2] / 0.95, student[:2] / 0.01)
  assert renormalised == pytest.approx(0.0, abs=1e-6)
  true = kl64(teacher, student)
  got = float(top_k_kl(log(student), ids, logps))
  assert true == pytest.approx(float(forward_kl(log(student), log(teacher))), rel=1e-5)
  assert got > 3.0 and got <= true + 1e-6


def test_rest_class_numbers():
  """Teacher .6 .3 on its top 2 and a tail of .1; student 1 % on the two in the same ratio and a flat rest."""
  teacher = np.concatenate([[0.6, 0.3], np.full(8, 0.1 / 8)])
  student = np.concatenate([np.array([2 / 3, 1 / 3]) * 0.01, np.full(8, 0.99 / 8)])
  ids, logps = keep(log(teacher), 2)
  want = 0.9 * math.log(90) + 0.1 * math.log(0.1 / 0.99)
  assert float(top_k_kl(log(student), ids, logps)) == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize('temperature', [1.0, 2.0])
def test_top_k_is_the_kl_of_k_plus_one_classes(temperature):
  student, teacher = random_pair(10)
  ids, logps = keep(teacher, 5, temperature)
  t, s = softmax64(teacher / temperature), softmax64(student / temperature)
  pick = lambda p: np.take_along_axis(p, np.asarray(ids), -1)
  t, s = (np.concatenate([pick(p), 1 - pick(p).sum(-1, keepdims=True)], -1) for p in (t, s))
  got = top_k_kl(student, ids, logps, temperature=temperature)
  np.testing.assert_allclose(got, kl64(t, s) * temperature ** 2, rtol=1e-4, atol=1e-6)
  assert np.all(got <= forward_kl(student, teacher, temperature=temperature) + 1e-5)


def test_top_k_of_everything_is_forward_kl():
  student, teacher = random_pair(11)
  ids, logps = keep(teacher, 50)
  function = lambda s: jnp.sum(top_k_kl(s, ids, logps))
  np.testing.assert_allclose(top_k_kl(student, ids, logps), forward_kl(student, teacher), rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(jax.grad(function)(student), gradients(forward_kl, student, teacher)[0], rtol=1e-4, atol=1e-6)


def test_top_k_nothing_at_equality():
  logits, _ = random_pair(12)
  for k in (1, 5, 50):
    ids, logps = keep(logits, k)
    value, grad = jax.value_and_grad(lambda s: jnp.sum(top_k_kl(s, ids, logps)))(logits)
    assert abs(float(value)) < 1e-6 and np.max(np.abs(grad)) < 1e-6


def test_top_k_gradient_against_float64_differences():
  student, teacher = random_pair(13, shape=(8,), scale=1.0)
  ids, logps = keep(teacher, 3)
  grad = jax.grad(lambda s: top_k_kl(s, ids, logps))(student)
  t3 = np.exp(np.asarray(logps, np.float64))
  t = np.append(t3, 1 - t3.sum())

  def value(x):
    s3 = softmax64(x)[np.asarray(ids)]
    return kl64(t, np.append(s3, 1 - s3.sum()))

  for i in range(8):
    step = 1e-5 * np.eye(8)[i]
    x = np.asarray(student, np.float64)
    assert grad[i] == pytest.approx((value(x + step) - value(x - step)) / 2e-5, abs=1e-5)


def test_top_k_small_rest_mass_has_digits():
  """The student's rest mass is 1e-9: 1 - sum in float32 would say 0."""
  student = jnp.asarray([20.8, 20.0] + [0.0] * 4, jnp.float32)
  teacher = jnp.asarray([2.0, 1.0] + [0.0] * 4, jnp.float32)
  ids, logps = keep(teacher, 2)
  s, t = softmax64(student), softmax64(teacher)
  want = kl64(np.append(t[:2], t[2:].sum()), np.append(s[:2], s[2:].sum()))
  assert float(top_k_kl(student, ids, logps)) == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize('absent', [-1, 50, 2**31 - 1, -2**31])
def test_absent_entries_go_to_the_rest(absent):
  student, teacher = random_pair(14)
  ids, logps = keep(teacher, 5)
  holed = ids.at[:, 3:].set(absent)
  value, grad = jax.value_and_grad(lambda s: jnp.sum(top_k_kl(s, holed, logps)))(student)
  assert value == pytest.approx(float(jnp.sum(top_k_kl(student, ids[:, :3], logps[:, :3]))), rel=1e-5)
  assert np.all(np.isfinite(grad))
  # the number that stands beside an absent id means nothing
  assert float(jnp.sum(top_k_kl(student, holed, logps.at[:, 3:].set(np.nan)))) == pytest.approx(float(value), rel=1e-6)


def test_top_k_with_nothing_kept_is_zero():
  student, _ = random_pair(15)
  ids, logps = jnp.full((6, 4), -1), jnp.zeros((6, 4))
  np.testing.assert_allclose(top_k_kl(student, ids, logps), 0.0, atol=1e-6)


def test_top_k_minus_infinity():
  student, teacher = random_pair(16)
  ids, logps = keep(teacher, 5)
  rows = jnp.arange(6)
  cases = {
      'kept': student.at[rows, ids[:, 0]].set(INF), 'tail': student.at[:, 7].set(INF), 'all': jnp.full_like(student, INF),
      'whole tail': jnp.where(jax.nn.one_hot(ids, 50).sum(1) > 0, student, INF)}
  for name, logits in cases.items():
    value, grad = jax.value_and_grad(lambda s: jnp.sum(top_k_kl(s, ids, logps)))(logits)
    assert not np.isnan(value) and np.all(np.isfinite(grad)), name
  assert np.isposinf(top_k_kl(cases['kept'], ids, logps)).all() and np.isposinf(top_k_kl(cases['whole tail'], ids, logps)).all()
  assert np.all(np.isfinite(top_k_kl(cases['tail'].at[:, ids[0]].set(0.0), ids, logps)))
  assert np.all(top_k_kl(cases['all'], ids, logps) == 0)


def test_top_k_stored_in_half_precision():
  """Rounded log-probabilities may sum to more than 1; the rest is then empty, not NaN."""
  student, teacher = random_pair(17, scale=8.0)
  ids, logps = keep(teacher, 20)
  rounded = logps.astype(jnp.float16)
  value, grad = jax.value_and_grad(lambda s: jnp.sum(top_k_kl(s, ids, rounded)))(student)
  assert value == pytest.approx(float(jnp.sum(top_k_kl(student, ids, logps))), rel=1e-2) and np.all(np.isfinite(grad))
  over = jnp.log(jnp.full((6, 2), 0.6))
  assert np.all(np.isfinite(top_k_kl(student, ids[:, :2], over)))


def test_shapes_of_any_rank():
  student, teacher = random_pair(18, shape=(2, 3, 4, 10))
  ids, logps = keep(teacher, 3)
  assert top_k_kl(student, ids, logps).shape == (2, 3, 4)
  assert forward_kl(student[0, 0, 0], teacher[0, 0, 0]).shape == ()
  one = top_k_kl(student[0, 0, 0], ids[0, 0, 0], logps[0, 0, 0])
  assert one.shape == () and float(one) == pytest.approx(float(top_k_kl(student, ids, logps)[0, 0, 0]), rel=1e-6)
