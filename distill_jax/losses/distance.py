"""Distances between distributions whose ids do not correspond: [..., V], [..., W] -> [...], never reduced.

Legend: V, W the two vocabularies.
"""
import jax
import jax.numpy as jnp

from distill_jax.losses import distribution

Array = jax.Array
NOISE = 1e-5      # of the larger one: two float32 sweeps over the same logits differ by less


def sorted_gap(logits: Array, other_logits: Array, logp: Array, other_logp: Array) -> Array:
  """sum_i |p_(i) - q_(i)|: p and q sorted, most likely first, the shorter filled up with zeros. Boizard 2024 (arXiv:2402.12030),
  the closed form of a Wasserstein distance with equal costs.

  logits [..., V], other_logits [..., W]; logp, other_logp [...]: p is exp(logp) softmax(logits), so with logp the log-probability of the
  tokens before, p is that of a span. -> float32 [...], between 0 and 2. Gradients flow to all arguments.
  Hazard: it sees how peaked a distribution is, not on which ids; alone it teaches no text.
  """
  sizes = logits.shape[-1], other_logits.shape[-1]
  p, q = (_sorted(x, at, max(sizes)) for x, at in ((logits, logp), (other_logits, other_logp)))
  gap = p - q
  return jnp.sum(jnp.where(jnp.abs(gap) <= NOISE * jnp.maximum(p, q), 0.0, jnp.abs(gap)), axis=-1)


def _sorted(logits: Array, logp: Array, size: int) -> Array:
  """exp(logp) softmax(logits), ascending, with zeros before it up to `size`."""
  z = distribution.scaled(logits)
  total = distribution.log_sum(z)
  p = jnp.where(distribution.empty(total), 0.0, jnp.exp(jnp.sort(z, axis=-1) - total + logp.astype(jnp.float32)[..., None]))
  return jnp.pad(p, [(0, 0)] * (p.ndim - 1) + [(size - p.shape[-1], 0)])
