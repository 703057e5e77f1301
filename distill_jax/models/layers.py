"""The parts of a decoder as flax.nnx modules: linear maps, norms, embedding, attention, MLP, block.

Shapes: B rows, T tokens of this call, D width, H heads, K key-value heads, C width of a head.
Modules hold float32 parameters and compute in the dtype of what comes in; norms and the softmax are float32.
"""
import functools
import math
from typing import Any, Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from distill_jax.core import mesh as mesh_lib
from distill_jax.models import attention as attention_lib, rotary as rotary_lib

Array = jax.Array

ACTIVATIONS = {
    'silu': jax.nn.silu,
    'gelu_tanh': functools.partial(jax.nn.gelu, approximate=True),
    'gelu': functools.partial(jax.nn.gelu, approximate=False),
    'relu': jax.nn.relu,
}
NORMS = ('rms', 'layer')
SPREAD = 0.02         # standard deviation of a fresh weight
INITS = ('normal', 'fan_in')
PARALLEL = ('none', 'one_norm', 'two_norms')
REMAT = {
    'none': None,
    'full': jax.checkpoint_policies.nothing_saveable,
    'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def normal(rngs: nnx.Rngs, shape, spread: float = SPREAD) -> nnx.Param:
  return nnx.Param(spread * jax.random.normal(rngs.params(), shape, jnp.float32))


def spread(config: Mapping[str, Any], wide_in: int, *, into_residual: bool = False) -> float:
  """Standard deviation of a fresh kernel: 0.02 ('normal', GPT-2's) or 1 / sqrt(wide_in) ('fan_in'); less back into the residual."""
  deviation = SPREAD if config['init'] == 'normal' else 1 / math.sqrt(wide_in)
  return deviation / math.sqrt(2 * config['layers']) if into_residual else deviation


def _wide(vector: Array, rank: int) -> Array:
  """A vector as the last axis of an array of `rank` axes."""
  return vector.reshape((1,) * (rank - 1) + (-1,))


class Linear(nnx.Module):
  """x @ kernel (+ bias). lora: None, or the matrices (a, b) of an adapter whose (x a) b is added. columns: None, or what each column of an
  int8 kernel is to be multiplied by."""

  def __init__(self, wide_in: int, wide_out: int, *, bias: bool, rngs: nnx.Rngs, spread: float):
    self.kernel = normal(rngs, (wide_in, wide_out), spread)
    self.bias = nnx.Param(jnp.zeros((wide_out,), jnp.float32)) if bias else None
    self.lora = self.columns = None

  def __call__(self, x: Array) -> Array:
    y = jnp.einsum('...i,io->...o', x, self.kernel[...].astype(x.dtype))
    if self.columns is not None:
      y = y * _wide(self.columns.astype(x.dtype), y.ndim)
    if self.lora is not None:
      a, b = (part.astype(x.dtype) for part in self.lora)
      y = y + jnp.einsum('...r,ro->...o', jnp.einsum('...i,ir->...r', x, a), b)
    return y if self.bias is None else y + _wide(self.bias[...].astype(x.dtype), y.ndim)


class Norm(nnx.Module):
  """'rms': x / rms(x) * (offset + scale). 'layer': (x - mean) / deviation * (offset + scale) + bias. In float32, returned in the dtype of x."""

  def __init__(self, width: int, *, kind: str, eps: float, rngs: nnx.Rngs, offset: float = 0.0):
    self.kind, self.eps, self.offset = kind, eps, offset
    self.scale = nnx.Param(jnp.full((width,), 1.0 - offset, jnp.float32))
    self.bias = nnx.Param(jnp.zeros((width,), jnp.float32)) if kind == 'layer' else None

  def __call__(self, x: Array) -> Array:
    y = x.astype(jnp.float32)
    if self.kind == 'layer':
      y = y - jnp.mean(y, axis=-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps)
    y = y * _wide(self.scale[...] + self.offset, y.ndim)
    if self.bias is not None:
      y = y + _wide(self.bias[...], y.ndim)
    return y.astype(x.dtype)


def norm_of(config: Mapping[str, Any], width: int, rngs: nnx.Rngs) -> Norm:
  """The norm of a config over vectors of `width`."""
  return Norm(width, kind=config['norm'], eps=config['norm_eps'], offset=config['norm_offset'], rngs=rngs)


class Embed(nnx.Module):
  """A table of token vectors, scaled where the config says so, and, for learned positions, one of position vectors.

  Position p reads row p + position_offset; positions past the end of the table use its last row.
  """

  def __init__(self, config: Mapping[str, Any], *, rngs: nnx.Rngs):
    self.tokens = normal(rngs, (config['vocab_size'], config['width']))
    learned, self.scale, self.offset = config['positions'] == 'learned', config['embed_scale'], config['position_offset']
    self.positions = normal(rngs, (config['max_length'] + self.offset, config['width'])) if learned else None

  def __call__(self, tokens_BT: Array, positions_BT: Array, dtype) -> Array:
    x = jnp.take(self.tokens[...], tokens_BT, axis=0, mode='clip').astype(dtype)
    x = x if self.scale is None else x * self.scale
    if self.positions is not None:
      x = x + jnp.take(self.positions[...], positions_BT + self.offset, axis=0, mode='clip').astype(dtype)
    return x




def drop(x_BTD: Array, key_B: Array | None, rate: float, *site: Array | int) -> Array:
  """Dropout. The mask of a row depends on that row's key and the site alone, so it is the same however a batch is cut.

  The rate is rounded to 1 / 65536 (16 random bits an element) and the scale matches the rounded rate.
  """
  if key_B is None or rate == 0.0:
    return x_BTD

  def mask(key):
    for number in site:
      key = jax.random.fold_in(key, number)
    return jax.random.bits(key, x_BTD.shape[1:], jnp.uint16) >= cut

  cut = round(rate * 65536)
  return jnp.where(jax.vmap(mask)(key_B), x_BTD * (65536 / (65536 - cut)), 0).astype(x_BTD.dtype)


class Attention(nnx.Module):
  """Grouped-query self-attention. `store(k, v)` keeps this call's keys and values -> (all keys, all values, more of `attend`, what is kept)."""

  def __init__(self, config: Mapping[str, Any], *, rngs: nnx.Rngs):
    width, bias = config['width'], config['attention_bias'] in (True, 'qkv')
    wide = spread(config, width)
    heads, kv_heads, self.head_dim = config['heads'], config['kv_heads'], config['head_dim']
    self.q = Linear(width, heads * self.head_dim, bias=bias, rngs=rngs, spread=wide)
    self.k = Linear(width, kv_heads * self.head_dim, bias=bias, rngs=rngs, spread=wide)
    self.v = Linear(width, kv_heads * self.head_dim, bias=bias, rngs=rngs, spread=wide)
    self.o = Linear(heads * self.head_dim, width, bias=config['attention_bias'] in (True, 'o'), rngs=rngs,
                    spread=spread(config, heads * self.head_dim, into_residual=True))
    self.q_norm, self.k_norm = (norm_of(config, self.head_dim, rngs) if config['qk_norm'] else None for _ in 'qk')
    self.interleaved = dict(config['rotary'])['interleaved']
    self.scale, self.cap = config['query_scale'], config['score_cap']

  def __call__(self, x_BTD: Array, sight: attention_lib.Sight, turn, store) -> tuple[Array, Any]:
    B, T, _ = x_BTD.shape
    q, k, v = (part(x_BTD).reshape(B, T, -1, self.head_dim).transpose(0, 2, 1, 3) for part in (self.q, self.k, self.v))
    q = mesh_lib.constrain(q, 'batch', 'heads', 'length', None)
    k, v = (mesh_lib.constrain(part, 'batch', 'heads', None, None) for part in (k, v))      # a piece of a long row sees all of it
    if self.q_norm is not None:
      q, k = self.q_norm(q), self.k_norm(k)
    if turn is not None:
      q, k = (rotary_lib.rotate(part, turn, interleaved=self.interleaved) for part in (q, k))
    k, v, more, kept = store(k, v)
    mixed = attention_lib.attend(q, k, v, sight, scale=self.scale, cap=self.cap, **more)
    return self.o(mixed.transpose(0, 2, 1, 3).reshape(B, T, -1)), kept


class Mlp(nnx.Module):
  """down(act(up x)), or down(act(gate x) * up x) when gated."""

  def __init__(self, config: Mapping[str, Any], *, rngs: nnx.Rngs):
    width, inner, bias = config['width'], config['mlp_width'], config['mlp_bias']
    self.activation, wide = config['activation'], spread(config, width)
    self.gate = Linear(width, inner, bias=bias, rngs=rngs, spread=wide) if config['gated'] else None
    self.up = Linear(width, inner, bias=bias, rngs=rngs, spread=wide)
    self.down = Linear(inner, width, bias=bias, rngs=rngs, spread=spread(config, inner, into_residual=True))

  def __call__(self, x: Array) -> Array:
    act = ACTIVATIONS[self.activation]
    return self.down(act(self.up(x)) if self.gate is None else act(self.gate(x)) * self.up(x))


class Block(nnx.Module):
  """x + attention(norm x), then x + mlp(norm x), with dropout on both branches.

  post_norms: what a branch gives is normed before it is added. parallel: both branches read the same x, through one norm or two.
  """

  def __init__(self, config: Mapping[str, Any], mlp: type, *, rngs: nnx.Rngs):
    self.dropout, self.parallel = config['dropout'], config['parallel']
    norm = lambda there: norm_of(config, config['width'], rngs) if there else None
    self.attention_norm = norm(True)
    self.attention = Attention(config, rngs=rngs)
    self.attention_post_norm = norm(config['post_norms'])
    self.mlp_norm = norm(self.parallel != 'one_norm')
    self.mlp = mlp(config, rngs=rngs)
    self.mlp_post_norm = norm(config['post_norms'])

  def __call__(self, x: Array, sight: attention_lib.Sight, turn, store, key_B: Array | None, number: Array | int) -> tuple[Array, Any]:
    """(x, what `store` kept). `number`: which layer this is; dropout keys are folded with it, the embedding's with 0."""
    # where rows and heads are cut over one mesh axis, rows are whole inside the branches, their weights stay cut
    enter = lambda y: mesh_lib.constrain(y, 'batch', mesh_lib.apart('length', 'heads'), None)
    leave = lambda y, norm: mesh_lib.constrain(y if norm is None else norm(y), 'batch', 'length', None)
    entered = enter(self.attention_norm(x))
    y, kept = self.attention(entered, sight, turn, store)
    y = drop(leave(y, self.attention_post_norm), key_B, self.dropout, number + 1, 0)
    read = x if self.parallel == 'two_norms' else x + y
    z = self.mlp(entered if self.parallel == 'one_norm' else enter(self.mlp_norm(read)))
    return x + y + drop(leave(z, self.mlp_post_norm), key_B, self.dropout, number + 1, 1), kept
