"""The parts of a decoder as flax.nnx modules: linear maps, norms, rotary positions, attention, MLP, block.

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
from distill_jax.models import attention as attention_lib

Array = jax.Array

ACTIVATIONS = {
    'silu': jax.nn.silu,
    'gelu_tanh': functools.partial(jax.nn.gelu, approximate=True),
    'gelu': functools.partial(jax.nn.gelu, approximate=False),
}
NORMS = ('rms', 'layer')
SPREAD = 0.02         # standard deviation of a fresh weight
INITS = ('normal', 'fan_in')


def _normal(rngs: nnx.Rngs, shape, spread: float = SPREAD) -> nnx.Param:
  return nnx.Param(spread * jax.random.normal(rngs.params(), shape, jnp.float32))


def spread(config: Mapping[str, Any], wide_in: int, *, into_residual: bool = False) -> float:
  """Standard deviation of a fresh kernel: 0.02 ('normal', GPT-2's) or 1 / sqrt(wide_in) ('fan_in'); less back into the residual."""
  deviation = SPREAD if config['init'] == 'normal' else 1 / math.sqrt(wide_in)
  return deviation / math.sqrt(2 * config['layers']) if into_residual else deviation


def _wide(vector: Array, rank: int) -> Array:
  """A vector as the last axis of an array of `rank` axes."""
  return vector.reshape((1,) * (rank - 1) + (-1,))


class Linear(nnx.Module):
  """x @ kernel (+ bias). lora: None, or the matrices (a, b) of an adapter whose (x a) b is added."""

  def __init__(self, wide_in: int, wide_out: int, *, bias: bool, rngs: nnx.Rngs, spread: float):
    self.kernel = _normal(rngs, (wide_in, wide_out), spread)
    self.bias = nnx.Param(jnp.zeros((wide_out,), jnp.float32)) if bias else None
    self.lora = None

  def __call__(self, x: Array) -> Array:
    y = jnp.einsum('...i,io->...o', x, self.kernel[...].astype(x.dtype))
    if self.lora is not None:
      a, b = (part.astype(x.dtype) for part in self.lora)
      y = y + jnp.einsum('...r,ro->...o', jnp.einsum('...i,ir->...r', x, a), b)
    return y if self.bias is None else y + _wide(self.bias[...].astype(x.dtype), y.ndim)


class Norm(nnx.Module):
  """'rms': x / rms(x) * scale. 'layer': (x - mean) / deviation * scale + bias. In float32, returned in the dtype of x."""

  def __init__(self, width: int, *, kind: str, eps: float, rngs: nnx.Rngs):
    self.kind, self.eps = kind, eps
    self.scale = nnx.Param(jnp.ones((width,), jnp.float32))
    self.bias = nnx.Param(jnp.zeros((width,), jnp.float32)) if kind == 'layer' else None

  def __call__(self, x: Array) -> Array:
    y = x.astype(jnp.float32)
    if self.kind == 'layer':
      y = y - jnp.mean(y, axis=-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps)
    y = y * _wide(self.scale[...], y.ndim)
    if self.bias is not None:
      y = y + _wide(self.bias[...], y.ndim)
    return y.astype(x.dtype)


class Embed(nnx.Module):
  """A table of token vectors and, for learned positions, one of position vectors (positions past its end use the last)."""

  def __init__(self, config: Mapping[str, Any], *, rngs: nnx.Rngs):
    self.tokens = _normal(rngs, (config['vocab_size'], config['width']))
    learned = config['positions'] == 'learned'
    self.positions = _normal(rngs, (config['max_length'], config['width'])) if learned else None

  def __call__(self, tokens_BT: Array, positions_BT: Array, dtype) -> Array:
    x = jnp.take(self.tokens[...], tokens_BT, axis=0, mode='clip').astype(dtype)
    if self.positions is not None:
      x = x + jnp.take(self.positions[...], positions_BT, axis=0, mode='clip').astype(dtype)
    return x


def rotary(positions_BT: Array, width: int, theta: float) -> tuple[Array, Array]:
  """float32 cosines and sines [B, T, width / 2] of rotary positions (RoFormer, Su 2021, arXiv:2104.09864)."""
  rates = theta ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
  angles = positions_BT.astype(jnp.float32)[..., None] * rates[None, None]
  return jnp.cos(angles), jnp.sin(angles)


def rotate(x_BHTC: Array, turn: tuple[Array, Array]) -> Array:
  """Turns pair (c, c + C/2) of every head by its angle: the halves convention, not the interleaved one of the paper."""
  cos, sin = (part[:, None] for part in turn)
  a, b = jnp.split(x_BHTC.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BHTC.dtype)


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
    width, bias = config['width'], bool(config['attention_bias'])
    wide = spread(config, width)
    heads, kv_heads, self.head_dim = config['heads'], config['kv_heads'], config['head_dim']
    self.q = Linear(width, heads * self.head_dim, bias=bias, rngs=rngs, spread=wide)
    self.k = Linear(width, kv_heads * self.head_dim, bias=bias, rngs=rngs, spread=wide)
    self.v = Linear(width, kv_heads * self.head_dim, bias=bias, rngs=rngs, spread=wide)
    self.o = Linear(heads * self.head_dim, width, bias=config['attention_bias'] is True, rngs=rngs,
                    spread=spread(config, heads * self.head_dim, into_residual=True))

  def __call__(self, x_BTD: Array, sight: attention_lib.Sight, turn, store) -> tuple[Array, Any]:
    B, T, _ = x_BTD.shape
    q, k, v = (part(x_BTD).reshape(B, T, -1, self.head_dim).transpose(0, 2, 1, 3) for part in (self.q, self.k, self.v))
    q = mesh_lib.constrain(q, 'batch', 'heads', 'length', None)
    k, v = (mesh_lib.constrain(part, 'batch', 'heads', None, None) for part in (k, v))      # a piece of a long row sees all of it
    if turn is not None:
      q, k = rotate(q, turn), rotate(k, turn)
    k, v, more, kept = store(k, v)
    return self.o(attention_lib.attend(q, k, v, sight, **more).transpose(0, 2, 1, 3).reshape(B, T, -1)), kept


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
  """x + attention(norm x), then x + mlp(norm x), with dropout on both branches."""

  def __init__(self, config: Mapping[str, Any], *, rngs: nnx.Rngs):
    norm = dict(kind=config['norm'], eps=config['norm_eps'], rngs=rngs)
    self.dropout = config['dropout']
    self.attention_norm = Norm(config['width'], **norm)
    self.attention = Attention(config, rngs=rngs)
    self.mlp_norm = Norm(config['width'], **norm)
    self.mlp = Mlp(config, rngs=rngs)

  def __call__(self, x: Array, sight: attention_lib.Sight, turn, store, key_B: Array | None, number: Array | int) -> tuple[Array, Any]:
    """(x, what `store` kept). `number`: which layer this is; dropout keys are folded with it, the embedding's with 0."""
    # where rows and heads are cut over one mesh axis, rows are whole inside the branches, their weights stay cut
    enter = lambda y: mesh_lib.constrain(y, 'batch', mesh_lib.apart('length', 'heads'), None)
    leave = lambda y: mesh_lib.constrain(y, 'batch', 'length', None)
    y, kept = self.attention(enter(self.attention_norm(x)), sight, turn, store)
    x = x + drop(leave(y), key_B, self.dropout, number + 1, 0)
    return x + drop(leave(self.mlp(enter(self.mlp_norm(x)))), key_B, self.dropout, number + 1, 1), kept
