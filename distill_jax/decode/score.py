"""What a model says of given text: the log-probability of each target, or its most likely tokens at each place.

Shape suffixes: B rows, L tokens of a row, K kept entries.
"""
import functools
from typing import Any, Mapping

import jax
import jax.numpy as jnp
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec

from distill_jax.core.types import Model
from distill_jax.losses import tokens

Array = jax.Array


def score(model: Model, params, batch: Mapping[str, Any]) -> Array:
  """float32 log p(target) [B, L] in nats, at temperature 1, of batch['targets'] (already shifted); 0 where segments are 0.

  Weights do not matter here: prompt tokens have their log-probability too; sum over those you mean. No dropout.
  """
  return -tokens.per_token(tokens.cross_entropy, _real(batch), model.apply(params, batch), batch['targets'])


def top_k(model: Model, params, batch: Mapping[str, Any], *, k: int, temperature: float = 1.0) -> tuple[Array, Array]:
  """The k most likely next tokens: (ids int32 [B, L, k], log-probabilities float32 [B, L, k]), most likely first, no dropout.

  The log-probabilities are those of the full softmax(logits / temperature), not renormalised: what is missing to 1 is the rest class
  (see losses.divergence.top_k_kl). Where segments are 0 all ids are -1, which means absent, and the numbers 0.
  """
  real_BL = _real(batch)
  out = model.apply(params, batch)
  hidden = jnp.where(real_BL[:, :, None] > 0, out['hidden'], 0)
  logits = out['head'].logits(hidden) / temperature
  if not 0 < k <= logits.shape[-1]:
    raise ValueError(f'top_k: k={k} must lie in 1..{logits.shape[-1]}, the size of the vocabulary')
  values, ids = _top_k(logits, k)
  logps = values - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
  real = real_BL[:, :, None] > 0
  return jnp.where(real, ids, -1).astype(jnp.int32), jnp.where(real, logps, 0.0)


@functools.partial(custom_partitioning, static_argnums=(1,))
def _top_k(x: Array, k: int) -> tuple[Array, Array]:
  """jax.lax.top_k where the rows lie. Left alone, the compiler brings the logits of all rows to every device for it."""
  return tuple(jax.lax.top_k(x, k))


def _split(k, mesh, operands, results):
  """How `_top_k` is cut: every axis as it comes but the last, which is whole."""
  x = operands[0]
  spec = tuple(x.sharding.spec) + (None,) * len(x.shape)
  whole = NamedSharding(x.sharding.mesh, PartitionSpec(*spec[:len(x.shape) - 1], None))
  return mesh, lambda x: tuple(jax.lax.top_k(x, k)), (whole, whole), (whole,)


_top_k.def_partition(_split, infer_sharding_from_operands=lambda *given: _split(*given)[2], sharding_rule='... v -> ... k, ... k',
                     need_replication_factors=('v',))


def _real(batch: Mapping[str, Any]) -> Array:
  """1.0 where there is text, 0.0 at padding, [B, L]."""
  if 'segments' not in batch:
    return jnp.ones(batch['tokens'].shape, jnp.float32)
  return (jnp.asarray(batch['segments']) > 0).astype(jnp.float32)
