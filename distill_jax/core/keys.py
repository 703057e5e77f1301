"""Ids and randomness by content: the id of an example, and PRNG keys that follow ids, never positions."""
import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np


def content_id(*parts) -> np.ndarray:
  """64 bits of SHA-256 over JSON-able `parts`, as uint32 [2] (high, low)."""
  text = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(',', ':'))
  digest = hashlib.sha256(text.encode()).digest()
  return np.frombuffer(digest[:8], '>u4').astype(np.uint32)


def id_text(id_2) -> str:
  """The 16 hex digits of a content id."""
  return f'{int(id_2[0]):08x}{int(id_2[1]):08x}'


def id_from_text(text: str) -> np.ndarray:
  """Inverse of `id_text`."""
  return np.array([int(text[:8], 16), int(text[8:16], 16)], np.uint32)


def fold_ids(key: jax.Array, ids_B2: jax.Array) -> jax.Array:
  """One PRNG key a row: `key` folded with each 64-bit id. ids uint32 [B, 2] -> keys [B]."""
  return jax.vmap(lambda id_2: jax.random.fold_in(jax.random.fold_in(key, id_2[0]), id_2[1]))(jnp.asarray(ids_B2, jnp.uint32))
