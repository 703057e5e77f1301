"""From logits to a distribution, in float32: the one form in which losses do it, so that a compiler sees equal sweeps as one.

A logit of -inf becomes FLOOR, which stands for log 0: exp(FLOOR - anything) is 0, and differences of finite numbers stay finite.
"""
import jax
import jax.numpy as jnp

Array = jax.Array
FLOOR = -1e30


def scaled(logits: Array, temperature=1.0) -> Array:
  """float32 logits / temperature, with FLOOR in place of -inf; no gradient there. ValueError: temperature not above 0."""
  if isinstance(temperature, (int, float)) and not temperature > 0:
    raise ValueError(f'temperature must be above 0, got {temperature}')
  return jnp.maximum(logits.astype(jnp.float32) / temperature, FLOOR)


def log_sum(z: Array) -> Array:
  """log sum exp over the last axis, kept as 1. FLOOR entries count nothing beside others; FLOOR where there is nothing else."""
  top = jnp.max(z, axis=-1, keepdims=True)
  return jnp.log(jnp.sum(jnp.exp(z - top), axis=-1, keepdims=True)) + top


def empty(total: Array) -> Array:
  """Whether a row, by its `log_sum`, is -inf everywhere: it has no distribution."""
  return total <= FLOOR


def at(values: Array, targets: Array) -> Array:
  """values [..., V] at int targets [...]; 0 for a target outside 0..V-1.

  A select and a sum, not a gather: it fuses, its gradient is no scatter, and it splits over a sharded vocabulary.
  """
  ids = jax.lax.broadcasted_iota(jnp.int32, values.shape, values.ndim - 1)
  return jnp.sum(jnp.where(ids == targets[..., None], values, 0.0), axis=-1)
