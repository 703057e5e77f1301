"""Rotary positions (RoFormer, Su 2021, arXiv:2104.09864): rates by layer kind, their scalings for longer texts, the turning of heads.

Shapes: B rows, T tokens, H heads, C width of a head, R pairs of it that turn.
"""
import math
from typing import Any, Mapping

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

# what each kind of scaling is told beside its kind
SCALINGS = {
    'linear': ('factor',),
    'llama3': ('factor', 'high', 'low', 'original'),
    'longrope': ('attention', 'long', 'longest', 'original', 'short'),
}


def turned(config: Mapping[str, Any]) -> int:
  """How many entries of a head turn."""
  return int(config['head_dim'] * dict(config['rotary'])['share'] + 1e-6)


def turns(config: Mapping[str, Any], positions_BT: Array) -> dict[str, tuple[Array, Array]]:
  """float32 cosines and sines [B, T, R] by layer kind. Local layers have rates of their own where the config has a local_theta."""
  rotary = dict(config['rotary'])
  full = _turn(positions_BT, *rates(turned(config), config['rope_theta'], rotary['scaling']))
  if rotary['local_theta'] is None:
    return {'global': full, 'local': full}
  return {'global': full, 'local': _turn(positions_BT, *rates(turned(config), rotary['local_theta'], None))}


def _turn(positions_BT: Array, rates_R: np.ndarray, factor: float) -> tuple[Array, Array]:
  angles = positions_BT.astype(jnp.float32)[..., None] * rates_R[None, None]
  cos, sin = jnp.cos(angles), jnp.sin(angles)
  return (cos, sin) if factor == 1.0 else (cos * factor, sin * factor)


def rates(width: int, theta: float, scaling) -> tuple[np.ndarray, float]:
  """(float32 radians a position [width / 2], factor on cosines and sines).

  scaling: None or pairs with 'kind'. linear: all rates / factor (Chen 2023, arXiv:2306.15595). llama3: waves longer than original / low
  tokens / factor, shorter than original / high as they are, a straight line between (Llama 3.1's model card and reference code).
  longrope: each rate / its factor of `short`, for texts of at most `original` tokens (LongRoPE, Ding 2024, arXiv:2402.13753).
  """
  plain = float(theta) ** (-np.arange(0, width, 2) / width)
  scaling = dict(scaling or ())
  kind, factor = scaling.get('kind'), 1.0
  if kind == 'linear':
    plain = plain / scaling['factor']
  elif kind == 'llama3':
    turns_seen = scaling['original'] * plain / (2 * math.pi)      # full turns within the original length
    keep = np.clip((turns_seen - scaling['low']) / (scaling['high'] - scaling['low']), 0.0, 1.0)
    plain = keep * plain + (1 - keep) * plain / scaling['factor']
  elif kind == 'longrope':
    plain, factor = plain / np.asarray(scaling['short'], np.float64), float(scaling['attention'])
  return plain.astype(np.float32), factor


def rotate(x_BHTC: Array, turn: tuple[Array, Array], *, interleaved: bool = False) -> Array:
  """Turns pairs of every head by their angles; what stands behind them stays.

  Pairs are (c, c + R), or (2c, 2c + 1) where interleaved.
  """
  cos, sin = (part[:, None] for part in turn)
  R = cos.shape[-1]
  x, rest = x_BHTC[..., :2 * R].astype(jnp.float32), x_BHTC[..., 2 * R:]
  a, b = (x[..., 0::2], x[..., 1::2]) if interleaved else (x[..., :R], x[..., R:])
  a, b = a * cos - b * sin, b * cos + a * sin
  x = jnp.stack([a, b], axis=-1).reshape(x.shape) if interleaved else jnp.concatenate([a, b], axis=-1)
  return jnp.concatenate([x.astype(x_BHTC.dtype), rest], axis=-1)
