"""Mean: totals and weights that add; what stands under weight 0."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.core.mean import Mean


def test_a_mean_of_parts_is_the_mean_of_all():
  values, weights = np.arange(6, dtype=np.float32), np.asarray([1, 0, 2, 0, 0.5, 3], np.float32)
  whole = Mean.of(jnp.asarray(values), jnp.asarray(weights))
  parts = Mean.of(jnp.asarray(values[:1]), jnp.asarray(weights[:1])) + Mean.of(jnp.asarray(values[1:]), jnp.asarray(weights[1:]))
  assert float(whole.value) == pytest.approx((values * weights).sum() / weights.sum())
  assert (float(parts.total), float(parts.weight)) == (float(whole.total), float(whole.weight))


def test_anything_may_stand_under_weight_0():
  weights = jnp.asarray([1.0, 0.0, 0.0, 1.0])
  value = lambda x: Mean.of(x, weights).value
  dirty = jnp.asarray([2.0, jnp.nan, jnp.inf, 4.0])
  assert float(value(dirty)) == 3.0
  np.testing.assert_array_equal(jax.grad(value)(dirty), [0.5, 0, 0, 0.5])


def test_no_weight_counts_0_with_gradient_0():
  value = lambda x: Mean.of(x, jnp.zeros(3)).value
  assert float(value(jnp.ones(3))) == 0.0
  np.testing.assert_array_equal(jax.grad(value)(jnp.ones(3)), np.zeros(3))
  assert float(Mean(jnp.zeros(()), jnp.zeros(())).value) == 0.0


def test_totals_are_float32_whatever_comes_in():
  mean = Mean.of(jnp.full(1000, 0.1, jnp.bfloat16), jnp.ones(1000, jnp.int32))
  assert mean.total.dtype == mean.weight.dtype == jnp.float32
  assert float(mean.value) == pytest.approx(float(jnp.bfloat16(0.1)), rel=1e-5)


def test_scale_leaves_the_weight():
  mean = Mean.of(jnp.asarray([2.0, 4.0]), jnp.ones(2)).scale(0.25)
  assert (float(mean.value), float(mean.weight)) == (0.75, 2.0)


def test_shapes_that_differ_are_refused():
  with pytest.raises(ValueError, match=r'values \(2, 3\) and weights \(2,\)'):
    Mean.of(jnp.ones((2, 3)), jnp.ones(2))
