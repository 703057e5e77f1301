"""int8 weights for frozen models: one scale a column of each matrix, products in the model's own dtype.

A quarter of the bytes of float32, half of bfloat16: what limits decoding, and what a frozen teacher takes of a chip's memory. Weights
alone are rounded ("absmax", symmetric, by output channel: Wu et al. 2020, arXiv 2004.09602, section 3.2), activations are not.
"""
from typing import Any, Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict

from distill_jax.core import mesh as mesh_lib, tree
from distill_jax.core.types import Model

SCALE = 'kernel_scale'      # beside 'kernel', see models/adapters.py
TINY = float(np.finfo(np.float32).tiny)
MOST = 127      # of the int8 range; -128 is not used, so that it is symmetric


def quantised(model: Model) -> Model:
  """`model` for int8 params: nothing of it learns. It computes what `model` does with the rounded weights."""
  init = lambda key: rounded(model, model.init(key))
  return model._replace(init=init, trainable=(), config=FrozenDict({**(model.config or {}), 'weights': 'int8'}))


def rounded(model: Model, params: Mapping[str, Any]) -> dict[str, Any]:
  """Params with every matrix of a linear map in int8, its scales float32 [.., out] beside it."""
  out = {}
  for path, leaf in tree.flatten(params).items():
    if not takes(model, path):
      out[path] = leaf
      continue
    scale = jnp.max(jnp.abs(leaf.astype(jnp.float32)), axis=-2) / MOST
    out[path] = jnp.rint(leaf.astype(jnp.float32) / jnp.maximum(scale, TINY)[..., None, :]).astype(jnp.int8)
    out[path.removesuffix('kernel') + SCALE] = scale
  return tree.unflatten(out)


def takes(model: Model, path: str) -> bool:
  """Whether the weight at `path` is kept in int8: the matrices of linear maps; embeddings, head, norms and biases are not."""
  return path.endswith('/kernel') and tree.matches(
      path.removesuffix('kernel') + SCALE, [pattern for pattern, _ in model.axes])


def putter(model: Model, mesh, rules: Mapping[str, Any], put: Callable) -> Callable:
  """`put` of models.weights.read that rounds the matrices, each device its own piece; the others go to `put`.

  The scale of a column follows from the whole of it, so that it is the same however the matrix is cut.
  """
  def read(path: str, shape: tuple[int, ...], piece: Callable):
    if not takes(model, path):
      return put(path, shape, piece)

    def scale(index: tuple[slice, ...]) -> np.ndarray:
      whole = piece((*index[:-1], slice(None), index[-1]))
      return np.abs(np.asarray(whole, np.float32)).max(axis=-2) / MOST

    def part(index: tuple[slice, ...]) -> np.ndarray:
      scales = np.maximum(scale((*index[:-2], index[-1])), TINY)
      return np.rint(np.asarray(piece(index), np.float32) / scales[..., None, :]).astype(np.int8)

    where = _places(model, mesh, rules, path, shape)
    make = lambda shape, sharding, some: (
        jnp.asarray(some((slice(None),) * len(shape))) if sharding is None else jax.make_array_from_callback(shape, sharding, some))
    return {'kernel': make(shape, where['kernel'], part), SCALE: make((*shape[:-2], shape[-1]), where[SCALE], scale)}
  return read


def _places(model: Model, mesh, rules, path: str, shape: tuple[int, ...]) -> dict[str, Any]:
  """Shardings of a matrix and its scales, None without a mesh."""
  if mesh is None:
    return {'kernel': None, SCALE: None}
  beside = path.removesuffix('kernel') + SCALE
  shapes = {path: jax.ShapeDtypeStruct(shape, np.int8), beside: jax.ShapeDtypeStruct((*shape[:-2], shape[-1]), np.float32)}
  where = tree.flatten(mesh_lib.of_params(mesh, tree.unflatten(shapes), model.axes, rules))
  return {'kernel': where[path], SCALE: where[beside]}


def spread(params: Mapping[str, Any]) -> dict[str, Any]:
  """Params as `read` with a `putter` gives them, each matrix with its scales beside it."""
  out = {}
  for name, value in params.items():
    if name == 'kernel' and isinstance(value, Mapping):
      out |= value
    else:
      out[name] = spread(value) if isinstance(value, Mapping) else value
  return out


def restored(params: Mapping[str, Any]) -> dict[str, Any]:
  """float32 params of the model before: every int8 matrix times its scales."""
  flat = tree.flatten(params)
  for path in [path for path in flat if path.endswith('/' + SCALE)]:
    scale, kernel = flat.pop(path), path.removesuffix(SCALE) + 'kernel'
    flat[kernel] = flat[kernel].astype(np.float32) * scale[..., None, :]
  return tree.unflatten(flat)
