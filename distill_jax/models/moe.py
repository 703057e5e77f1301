"""A layer of experts (Shazeer 2017, arXiv:1701.06538; Mixtral, Jiang 2024, arXiv:2401.04088): a router gives each token to few of them.

Nothing is dropped: every token goes to all the experts chosen for it, and only those are computed.
Shapes: N tokens, D width, E experts, K chosen for a token, M = N K (token, expert) pairs, F inner width of an expert.
"""
from typing import Any, Callable, Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from distill_jax.core import mesh as mesh_lib
from distill_jax.models import layers as parts

Array = jax.Array
BLOCK = 128      # most rows of one product


class Kernel(nnx.Module):
  """One matrix of every expert: [E, in, out]."""

  def __init__(self, *shape: int, rngs: nnx.Rngs, spread: float):
    self.kernel = parts.normal(rngs, shape, spread)


class Each(nnx.Module):
  """The three matrices of all experts."""

  def __init__(self, config: Mapping[str, Any], *, rngs: nnx.Rngs):
    about, width, wide = dict(config['experts']), config['width'], parts.spread(config, config['width'])
    self.gate = Kernel(about['count'], width, about['width'], rngs=rngs, spread=wide)
    self.up = Kernel(about['count'], width, about['width'], rngs=rngs, spread=wide)
    self.down = Kernel(about['count'], about['width'], width, rngs=rngs, spread=parts.spread(config, about['width'], into_residual=True))

  def __call__(self, dtype) -> tuple[Array, Array, Array]:
    return tuple(part.kernel[...].astype(dtype) for part in (self.gate, self.up, self.down))


class Experts(nnx.Module):
  """The sum over the chosen experts of share * down(act(gate x) * up x)."""

  def __init__(self, config: Mapping[str, Any], *, rngs: nnx.Rngs):
    about = dict(config['experts'])
    self.chosen, self.normed, self.activation = about['chosen'], about['normed'], config['activation']
    self.router = parts.Linear(config['width'], about['count'], bias=False, rngs=rngs, spread=parts.spread(config, config['width']))
    self.experts = Each(config, rngs=rngs)

  def __call__(self, x: Array) -> Array:
    x_ND = x.reshape(-1, x.shape[-1])
    shares_NK, experts_NK = route(self.router(x_ND), self.chosen, normed=self.normed)
    kernels = self.experts(x.dtype)
    # few tokens (a decoding step): the matrices of their experts are copied; many: sorted by expert
    mix = few if experts_NK.size <= kernels[0].shape[0] else many
    return mix(x_ND, shares_NK, experts_NK, kernels, parts.ACTIVATIONS[self.activation]).reshape(x.shape).astype(x.dtype)


def route(logits_NE: Array, chosen: int, *, normed: bool) -> tuple[Array, Array]:
  """(float32 shares, int32 experts) [N, K]: the largest of a softmax over all experts, made to sum to 1 where `normed`."""
  shares_NK, experts_NK = jax.lax.top_k(jax.nn.softmax(logits_NE.astype(jnp.float32), axis=-1), chosen)
  if normed:
    shares_NK = shares_NK / jnp.sum(shares_NK, axis=-1, keepdims=True)
  return shares_NK, experts_NK


def few(x_ND: Array, shares_NK: Array, experts_NK: Array, kernels, act: Callable) -> Array:
  """Token by token, with a copy of the matrices of its experts: float32 [N, D]."""
  gate, up, down = (jnp.take(kernel, experts_NK, axis=0, mode='clip') for kernel in kernels)
  inner_NKF = act(jnp.einsum('nd,nkdf->nkf', x_ND, gate)) * jnp.einsum('nd,nkdf->nkf', x_ND, up)
  return _sum(jnp.einsum('nkf,nkfd->nkd', inner_NKF, down), shares_NK)


def many(x_ND: Array, shares_NK: Array, experts_NK: Array, kernels, act: Callable) -> Array:
  """Tokens sorted by expert, one product for each run of the same one: float32 [N, D]."""
  (N, K), E = experts_NK.shape, kernels[0].shape[0]
  experts_M = experts_NK.reshape(-1)
  order_M = jnp.argsort(experts_M, stable=True)
  counts_E = jnp.sum(experts_M[:, None] == jnp.arange(E)[None], axis=0, dtype=jnp.int32)
  x_MD = jnp.take(x_ND, order_M // K, axis=0, mode='clip')
  product = _ragged if mesh_lib.platform() == 'tpu' else _blocks      # elsewhere ragged_dot multiplies by every expert
  out_MD = product(x_MD, jnp.take(experts_M, order_M), counts_E, kernels, act)
  return _sum(jnp.take(out_MD, jnp.argsort(order_M), axis=0, mode='clip').reshape(N, K, -1), shares_NK)


def _sum(out_NKD: Array, shares_NK: Array) -> Array:
  return jnp.sum(out_NKD.astype(jnp.float32) * shares_NK[..., None], axis=1)


def _ragged(x_MD: Array, experts_M: Array, counts_E: Array, kernels, act: Callable) -> Array:
  gate, up, down = kernels
  inner_MF = act(jax.lax.ragged_dot(x_MD, gate, counts_E)) * jax.lax.ragged_dot(x_MD, up, counts_E)
  return jax.lax.ragged_dot(inner_MF, down, counts_E)


def _blocks(x_MD: Array, experts_M: Array, counts_E: Array, kernels, act: Callable) -> Array:
  """As `_ragged`, in blocks of rows of one expert; the last block of each is filled up with zeros."""
  (M, D), E = x_MD.shape, counts_E.shape[0]
  size = min(BLOCK, 1 << max(M // E - 1, 1).bit_length())
  most = M // size + min(E, M)                                        # blocks there can be
  blocks_E = -(-counts_E // size)
  first_E = (jnp.cumsum(blocks_E) - blocks_E) * size                  # where an expert's rows begin among the blocks
  rank_M = jnp.arange(M) - jnp.take(jnp.cumsum(counts_E) - counts_E, experts_M)
  place_M = jnp.take(first_E, experts_M) + rank_M
  x_NBD = jnp.zeros((most * size, D), x_MD.dtype).at[place_M].set(x_MD).reshape(most, size, D)
  expert_N = jnp.minimum(jnp.searchsorted(jnp.cumsum(blocks_E), jnp.arange(most), side='right'), E - 1)

  def one(block):
    x_BD, expert = block
    gate, up, down = (jax.lax.dynamic_index_in_dim(kernel, expert, keepdims=False) for kernel in kernels)
    return (act(x_BD @ gate) * (x_BD @ up)) @ down

  return jnp.take(jax.lax.map(one, (x_NBD, expert_N)).reshape(-1, D), place_M, axis=0, mode='clip')
