"""Losses per token, and the one place where hidden states become logits.

Shape suffixes: B rows, L tokens of a row, D width, V vocabulary.
"""
from typing import Any, Callable, Mapping

import jax
import jax.numpy as jnp

Array = jax.Array


def cross_entropy(logits: Array, targets: Array) -> Array:
  """-log softmax(logits)[target]: logits [..., V], int targets [...] -> float32 [...], nats. Never reduced, never shifted.

  Logits of -inf are probability 0: +inf as the target, with finite gradients everywhere. Hazard: a target outside 0..V-1 gives NaN,
  loudly, not a wrapped or clipped index; no id stands for 'ignore': that is what weights are for.
  """
  logits = logits.astype(jnp.float32)
  size = logits.shape[-1]
  ids = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
  # a select and a sum, not a gather: it fuses, its gradient is no scatter, and it splits over a sharded vocabulary
  chosen = jnp.sum(jnp.where(ids == targets[..., None], logits, 0.0), axis=-1)
  chosen = jnp.where((targets >= 0) & (targets < size), chosen, jnp.nan)
  top = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
  none = top == -jnp.inf
  top = jnp.where(none, 0.0, top)
  total = jnp.sum(jnp.exp(logits - top), axis=-1, keepdims=True)
  log_total = jnp.where(none, 0.0, jnp.log(jnp.where(none, 1.0, total)) + top)
  return jnp.squeeze(log_total, -1) - chosen


def per_token(function: Callable[..., Any], weights_BL: Array, student: Mapping[str, Any], *others: Any) -> Any:
  """`function(student_logits, *others)` at every token: -> float32 [B, L] (or a dict of them), 0 where the weight is 0.

  student and others: what `Model.apply` returned ('hidden' [B, L, D] and 'head'; given to `function` as logits [B, L, V]), or label
  arrays [B, L, ...] and dicts of them, given as they are. `function` maps [B, L, V], ... -> [B, L], or a dict of such
  arrays: all that one method wants of the logits is asked for in one call.

  Everything under weight 0 is replaced by zeros before `function` sees it, so neither values nor gradients depend on it, NaN included.
  Where outs differ in the width of their vocabulary (padded to other multiples), ids that one side lacks get -inf on every side.
  Outs of one shared width pass as they are. Methods take token losses from here only, so that the head may come in chunks one day.
  """
  keep_BL = weights_BL > 0
  values = [_logits(_zero_out(keep_BL, x['hidden']), x['head']) if _is_out(x) else
            jax.tree.map(lambda leaf: _zero_out(keep_BL, leaf), x) for x in (student, *others)]
  outs = [i for i, x in enumerate((student, *others)) if _is_out(x)]
  for i, logits in zip(outs, align([values[i] for i in outs])):
    values[i] = logits
  return jax.tree.map(lambda value: jnp.where(keep_BL, value.astype(jnp.float32), 0.0), function(*values))


def align(logits: list[Array]) -> list[Array]:
  """Arrays [..., V_i] at the widest V, with -inf on all sides at ids that any side lacks; unchanged where all V_i agree."""
  sizes = [x.shape[-1] for x in logits]
  if len(set(sizes)) <= 1:
    return logits
  return [_widen(x, min(sizes), max(sizes)) for x in logits]


def _widen(logits: Array, known: int, size: int) -> Array:
  pad = [(0, 0)] * (logits.ndim - 1) + [(0, size - logits.shape[-1])]
  logits = jnp.pad(logits, pad, constant_values=-jnp.inf)
  ids = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
  return jnp.where(ids < known, logits, -jnp.inf)


def _is_out(x: Any) -> bool:
  return isinstance(x, Mapping) and 'hidden' in x and 'head' in x


def _logits(hidden_BLD: Array, head) -> Array:
  return head.logits(hidden_BLD)


def _zero_out(keep_BL: Array, x: Array) -> Array:
  """`x` [B, L, ...] with zeros where not `keep_BL`."""
  keep = keep_BL.reshape(keep_BL.shape + (1,) * (x.ndim - 2))
  return jnp.where(keep, x, jnp.zeros((), x.dtype))
