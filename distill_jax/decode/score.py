"""What a model says of given text: the log-probability of each target, or its most likely tokens at each place.

Shape suffixes: B rows, L tokens of a row, K kept entries.
"""
from typing import Any, Mapping

import jax
import jax.numpy as jnp

from distill_jax.core import mesh as mesh_lib
from distill_jax.core.types import Model
from distill_jax.losses import distribution, tokens

Array = jax.Array


def score(model: Model, params, batch: Mapping[str, Any]) -> Array:
  """float32 log p(target) [B, L] in nats, at temperature 1, of batch['targets'] (already shifted); 0 where segments are 0.

  Weights do not matter here: prompt tokens have their log-probability too; sum over those you mean. No dropout.
  """
  return -tokens.per_token(tokens.cross_entropy, _real(batch), model.apply(params, batch), batch['targets'])


def top_k(model: Model, params, batch: Mapping[str, Any], *, k: int, temperature: float = 1.0, where_BL: Array | None = None) -> tuple[Array, Array]:
  """The k most likely next tokens: (ids int32 [B, L, k], log-probabilities float32 [B, L, k]), most likely first, no dropout.

  The log-probabilities are those of the full softmax(logits / temperature), not renormalised: what is missing to 1 is the rest class
  (see losses.divergence.top_k_kl). where: above 0 where they are wanted; default: where there is text. Elsewhere all ids are -1, which
  means absent, and the numbers 0.
  """
  where_BL = _real(batch) if where_BL is None else where_BL
  out = model.apply(params, batch)
  size = out['head'].weight_DV.shape[-1]
  if not 0 < k <= size:
    raise ValueError(f'top_k: k={k} must lie in 1..{size}, the size of the vocabulary')

  def most_likely(logits):
    z = distribution.scaled(logits, temperature)
    values, ids = _top_k(z, k)
    return {'ids': ids, 'logps': values - distribution.log_sum(z)}
  found = tokens.per_token(most_likely, where_BL, out)
  return jnp.where(where_BL[:, :, None] > 0, found['ids'], -1).astype(jnp.int32), found['logps']


def _top_k(x: Array, k: int) -> tuple[Array, Array]:
  """jax.lax.top_k of a sweep's logits [pieces, chunk, V], each piece where it lies. Left alone, the compiler brings all of them everywhere.

  (By shard_map: custom_partitioning does not exist on TPUs, github.com/jax-ml/jax/issues/38196.)
  """
  return mesh_lib.piecewise(lambda x: tuple(jax.lax.top_k(x, k)), x, ('batch', 'length'), None, None)


def _real(batch: Mapping[str, Any]) -> Array:
  """1.0 where there is text, 0.0 at padding, [B, L]."""
  if 'segments' not in batch:
    return jnp.ones(batch['tokens'].shape, jnp.float32)
  return (jnp.asarray(batch['segments']) > 0).astype(jnp.float32)
