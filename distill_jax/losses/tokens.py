"""Losses per token, and the one place where hidden states become logits: a chunk of tokens at a time, never a whole [B, L, V].

Shape suffixes: B rows, L tokens of a row, D width, V vocabulary.
"""
from typing import Any, Callable, Mapping

import jax
import jax.numpy as jnp

from distill_jax.core.mean import Mean
from distill_jax.losses import distribution, sweep

Array = jax.Array


@jax.custom_vjp
def cross_entropy(logits: Array, targets: Array) -> Array:
  """-log softmax(logits)[target]: logits [..., V], int targets [...] -> float32 [...], nats. Never reduced, never shifted.

  Logits of -inf are probability 0: +inf as the target, with finite gradients everywhere. Hazard: a target outside 0..V-1 gives NaN,
  loudly, not a wrapped or clipped index; no id stands for 'ignore': that is what weights are for.
  """
  return _cross_entropy_forward(logits, targets)[0]


def _cross_entropy_forward(logits, targets):
  z = distribution.scaled(logits)
  total = jnp.squeeze(distribution.log_sum(z), -1)
  chosen = distribution.at(z, targets)
  value = jnp.where(distribution.empty(chosen), jnp.inf, jnp.where(distribution.empty(total), 0.0, total) - chosen)
  return jnp.where((targets >= 0) & (targets < logits.shape[-1]), value, jnp.nan), (logits, targets)


def _cross_entropy_backward(kept, given):
  """softmax(logits) - one hot."""
  logits, targets = kept
  z = distribution.scaled(logits)
  total = distribution.log_sum(z)
  ids = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
  share = jnp.where(distribution.empty(total), 0.0, jnp.exp(z - total))
  return (given[..., None] * (share - (ids == targets[..., None]))).astype(logits.dtype), None


cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward)


def correct(logits: Array, targets: Array) -> Array:
  """1.0 where no id is likelier than the target (a tie counts), [..., V], int [...] -> float32 [...]; no gradient."""
  z = distribution.scaled(jax.lax.stop_gradient(logits))
  return ((distribution.at(z, targets) >= jnp.max(z, axis=-1)) & (targets >= 0) & (targets < z.shape[-1])).astype(jnp.float32)


def entropy(logits: Array, *, temperature: float = 1.0) -> Array:
  """-sum p log p of softmax(logits / temperature), [..., V] -> float32 [...], nats."""
  z = distribution.scaled(logits, temperature)
  total = distribution.log_sum(z)
  return jnp.squeeze(total, -1) - jnp.sum(jnp.exp(z - total) * jnp.where(z > distribution.FLOOR, z, 0.0), axis=-1)


def means(function: Callable[..., Mapping[str, Array]], weights_BL: Array, student: Mapping[str, Any], *others: Any,
          chunk: int | None = None) -> dict[str, Mean]:
  """{name: Mean} over tokens of `function(student_logits, *others)`, a dict of [...] arrays; its entry 'loss' alone carries a gradient.

  student and others: what `Model.apply` returned ('hidden' [B, L, D] and 'head'; given to `function` as logits [..., V], float32), or
  label arrays [B, L, ...] and dicts of them, given as they are. The gradient flows to the student's hidden states and head only; it is
  made in the forward sweep, chunk by chunk, so that no logits are kept or computed twice (as Hsu 2024, arXiv:2410.10989, does for
  cross-entropy), and summed in float32.

  Tokens of weight 0 come last and whole chunks of them are skipped; what stands there is replaced by zeros before `function` sees it, so
  neither values nor gradients depend on it, NaN included. Where outs differ in the width of their vocabulary (padded to other
  multiples), ids that one side lacks get -inf on every side. Methods take token losses from here and `per_token` only.
  chunk: tokens of a chunk on each device; default: by device and size of the vocabulary.
  """
  form, said = _parts((student, *others))
  weights_BL = jax.lax.stop_gradient(jnp.maximum(weights_BL, 0.0))
  totals = sweep.totals(sweep.What(function, form, chunk), said[0], jax.lax.stop_gradient(said[1:]), weights_BL)
  return {name: Mean(total, jnp.sum(weights_BL)) for name, total in totals.items()}


def per_token(function: Callable[..., Any], weights_BL: Array, student: Mapping[str, Any], *others: Any, chunk: int | None = None,
              vocabularies: str = 'one') -> Any:
  """`function(student_logits, *others)` at every token: -> an array [B, L, ...] or a tree of them, 0 where the weight is 0.

  As `means`, but nothing is summed, and gradients flow to every hidden state and head; logits are computed again for them.
  Float values come as float32. vocabularies: 'one' aligns the widths of several outs, see `means`; 'apart' leaves them as they are, for
  functions that do not compare them id by id.
  """
  form, said = _parts((student, *others))
  outs, labels = ([x if isinstance(x, sweep.Out) == wanted else None for x in said] for wanted in (True, False))
  if vocabularies not in ('one', 'apart'):
    raise ValueError(f"per_token: vocabularies={vocabularies!r}: 'one' or 'apart'")
  return sweep.values(sweep.What(function, form, chunk, vocabularies == 'apart'), outs, labels, weights_BL)


def _parts(given: tuple) -> tuple[tuple, list]:
  """(the (scale, cap) of each out, None for labels; Outs and labels)."""
  form = tuple((x['head'].scale, x['head'].cap) if _is_out(x) else None for x in given)
  return form, [sweep.Out(x['hidden'], x['head'].weight_DV, x['head'].bias_V) if _is_out(x) else x for x in given]


def _is_out(x: Any) -> bool:
  return isinstance(x, Mapping) and 'hidden' in x and 'head' in x
