"""Mean: a total and a weight that add, and are divided last."""
from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array


class Mean(NamedTuple):
  """A weighted mean that is still open: two scalars, added over microbatches, devices and hosts.

  total: float32 [], the sum of value x weight.  weight: float32 [], the sum of weights, >= 0.
  """
  total: Array
  weight: Array

  @classmethod
  def of(cls, values: Array, weights: Array) -> 'Mean':
    """Mean of `values` under `weights` (same shape). What stands under weight 0 may be anything, NaN too.

    That covers the value and the gradient with respect to `values`; whoever computes `values` from arrays that may hold
    NaN under weight 0 cleans those first, as `losses.tokens.per_token` does.
    """
    if values.shape != weights.shape:
      raise ValueError(f'Mean.of: values {values.shape} and weights {weights.shape} differ in shape')
    weights = weights.astype(jnp.float32)
    kept = jnp.where(weights > 0, values.astype(jnp.float32), 0.0)
    return cls(jnp.sum(kept * weights), jnp.sum(weights))

  def __add__(self, other: 'Mean') -> 'Mean':
    return Mean(self.total + other.total, self.weight + other.weight)

  def scale(self, factor) -> 'Mean':
    """The mean times `factor`; the weight stays."""
    return Mean(self.total * factor, self.weight)

  @property
  def value(self):
    """total / weight; 0 where the weight is 0."""
    return jnp.where(self.weight > 0, self.total / jnp.where(self.weight > 0, self.weight, 1.0), 0.0)
