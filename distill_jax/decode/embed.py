"""Embed: one vector a text, from an encoder's first token or a language model's hidden states.

Shape suffixes: B texts, L tokens, D width.
"""
import functools
from typing import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from distill_jax.core import hosts, mesh as mesh_lib
from distill_jax.core.types import Model, Role

WIDTHS = 16      # rows are as wide as the longest text of their batch, in multiples of so many tokens


def ids_of(text, texts: Sequence[str]) -> list[list[int]]:
  """Ids of each text with a first token of its own: what the tokenizer puts there ([CLS]), else its EOS, whose state says what the text is."""
  if text.tokenizer.cls_token_id is not None:
    return text.encode_whole(texts)
  return [[text.require_end(), *ids] for ids in text.encode_many(texts)]


def first_tokens(role: Role, params, texts: Sequence[str], *, batch: int = 64, mesh: Mesh | None = None) -> np.ndarray:
  """float32 [texts, D]: the last state of an encoder's first token. Texts longer than the model reads are cut at their end."""
  return _run(_first, role, params, ids_of(role.text, texts), batch=batch, mesh=mesh)


def mean_hidden(role: Role, params, texts: Sequence[str], *, batch: int = 64, mesh: Mesh | None = None) -> np.ndarray:
  """float32 [texts, D] of length 1: the mean of the last hidden states over a text's tokens."""
  return _run(_mean, role, params, ids_of(role.text, texts), batch=batch, mesh=mesh)


def _first(model: Model, params, rows) -> jax.Array:
  out = model.apply(params, rows)
  return (out['encoded'] if 'encoded' in out else out['hidden'])[:, 0].astype(jnp.float32)


def _mean(model: Model, params, rows) -> jax.Array:
  hidden_BLD = model.apply(params, rows)['hidden'].astype(jnp.float32)
  total_BD = jnp.einsum('bl,bld->bd', (rows['segments'] > 0).astype(jnp.float32), hidden_BLD, precision='highest')
  return total_BD / jnp.maximum(jnp.linalg.norm(total_BD, axis=1, keepdims=True), 1e-12)      # the length of the mean cancels


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _call(function, model: Model, mesh: Mesh | None, params, rows) -> jax.Array:
  with mesh_lib.on(mesh):
    return function(model, params, rows)


def _run(function, role: Role, params, ids: Sequence[Sequence[int]], *, batch: int, mesh: Mesh | None) -> np.ndarray:
  """Texts of like length go together; the last batch is filled with copies."""
  most = (role.model.config or {}).get('max_length')
  ids = [row[:most] for row in ids]
  pieces = 1 if mesh is None else mesh_lib.row_count(mesh)
  batch = -(-min(batch, len(ids)) // pieces) * pieces
  order, out = sorted(range(len(ids)), key=lambda i: (len(ids[i]), i)), None
  model = role.model._replace(axes=(), trainable=(), config=None)      # what is compiled is known by its functions
  for start in range(0, len(order), batch):
    chosen = order[start:start + batch]
    width = -(-max(len(ids[i]) for i in chosen) // WIDTHS) * WIDTHS
    width = width if most is None else min(width, most)
    tokens, segments = np.zeros((batch, width), np.int32), np.zeros((batch, width), np.int32)
    for b in range(batch):
      row = ids[chosen[min(b, len(chosen) - 1)]]
      tokens[b, :len(row)], segments[b, :len(row)] = row, 1
    rows = dict(tokens=tokens, segments=segments)
    rows = rows if mesh is None else jax.device_put(rows, mesh_lib.rows(mesh))
    vectors = np.asarray(hosts.to_host(_call(function, model, mesh, params, rows)))[:len(chosen)]
    out = np.zeros((len(ids), vectors.shape[1]), np.float32) if out is None else out
    out[chosen] = vectors
  return out
