"""Soft targets as cross-entropy: -sum p log q with p a teacher's distribution, or the gold label smoothed to the teacher's entropy.

Legend: V vocabulary, p the soft target, q the student. All [..., V] -> float32 [...], nats, never reduced.
"""
import jax
import jax.numpy as jnp

from distill_jax.losses import distribution, divergence, tokens

Array = jax.Array
HALVINGS = 40


def soft_cross_entropy(logits: Array, teacher_logits: Array, *, temperature: float = 1.0) -> Array:
  """-sum p log q, p and q at `temperature`, times temperature ** 2: KL(p || q) plus the entropy of p (Hinton 2015, arXiv:1503.02531).

  logits, teacher_logits [..., V]. Ids with teacher logit -inf do not count; the gradient is that of `divergence.forward_kl`.
  """
  fixed = jax.lax.stop_gradient(teacher_logits)
  own = tokens.entropy(fixed, temperature=temperature)
  none = distribution.empty(jnp.max(distribution.scaled(fixed), axis=-1))      # no distribution: nothing to learn
  return divergence.forward_kl(logits, fixed, temperature=temperature) + jnp.where(none, 0.0, own) * temperature ** 2


def smoothed_cross_entropy(logits: Array, targets: Array, entropy: Array) -> Array:
  """-sum p log q with p = 1 - e at the target and e spread evenly over the other ids that logits allow, e such that p has this entropy.

  The control of equal entropy: as soft as the teacher, with nothing of what it knows about the wrong ids. targets int [...]; entropy
  float [...], of the teacher. Ids with logit -inf are not among the others; where there are none, p is the target alone.
  """
  z = distribution.scaled(logits)
  allowed = z > distribution.FLOOR
  others = jnp.sum(allowed, axis=-1).astype(jnp.float32) - 1.0
  e = jnp.where(others > 0, mass_of_entropy(jax.lax.stop_gradient(entropy), others), 0.0)
  logp = jnp.where(allowed, z - distribution.log_sum(z), 0.0)
  gold = distribution.at(logp, targets)
  rest = jnp.sum(logp, axis=-1) - gold
  return -(1.0 - e) * gold - e / jnp.maximum(others, 1.0) * rest


def mass_of_entropy(entropy: Array, others: Array) -> Array:
  """The e in [0, others / (others + 1)] for which (1 - e) at one id and e / others at each of the others has this entropy; float [...].

  By halving: the entropy grows with e there, from 0 to log(others + 1), to which more is cut.
  """
  def spread(e):
    safe = lambda x: jnp.where(x > 0, x * jnp.log(jnp.where(x > 0, x, 1.0)), 0.0)
    return -safe(1.0 - e) - safe(e) + e * jnp.log(jnp.maximum(others, 1.0))

  def halve(_, ends):
    low, high = ends
    middle = 0.5 * (low + high)
    below = spread(middle) < entropy
    return jnp.where(below, middle, low), jnp.where(below, high, middle)
  top = others / (others + 1.0)
  low, high = jax.lax.fori_loop(0, HALVINGS, halve, (jnp.zeros_like(top), top))
  return 0.5 * (low + high)
