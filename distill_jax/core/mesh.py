"""The device mesh and the one table that maps logical axes to it."""
import math
from typing import Any, Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from distill_jax.core import tree

AXES = ('data', 'fsdp', 'tensor', 'expert')

# logical axis of a weight or an activation -> mesh axes
RULES: Mapping[str, Any] = {
    'batch': ('data', 'fsdp'),
    'group': ('data', 'fsdp'),     # the second axis of a row that holds a whole batch's contrast
    'vocab': 'tensor',
    'embed': 'fsdp',
    'heads': 'tensor',
    'mlp': 'tensor',
    'expert': 'expert',
    'layer': None,
    'length': None,
}


def make_mesh(sizes: Mapping[str, int] | None = None, *, devices: Sequence[jax.Device] | None = None) -> Mesh:
  """A mesh with the axes data, fsdp, tensor, expert. Sizes default to 1; -1 (default: data) takes the rest of the devices."""
  devices = list(devices if devices is not None else jax.devices())
  sizes = dict(sizes or {'data': -1})
  if unknown := set(sizes) - set(AXES):
    raise ValueError(f'mesh: no axis {sorted(unknown)[0]!r}; the axes are {", ".join(AXES)}')
  shape = [sizes.get(axis, 1) for axis in AXES]
  if shape.count(-1) > 1:
    raise ValueError(f'mesh: only one axis may be -1, got {sizes}')
  known = math.prod(size for size in shape if size != -1)
  if -1 in shape:
    shape[shape.index(-1)] = max(len(devices) // known, 1)
  if math.prod(shape) != len(devices):
    raise ValueError(f'mesh: {dict(zip(AXES, shape))} needs {math.prod(shape)} devices, there are {len(devices)}')
  return Mesh(np.asarray(devices).reshape(shape), AXES)


def spec(axes: Sequence[str | None], rules: Mapping[str, Any] = RULES) -> PartitionSpec:
  """The PartitionSpec of an array whose dimensions have these logical axes."""
  return PartitionSpec(*[None if axis is None else rules[axis] for axis in axes])


def rows(mesh: Mesh) -> NamedSharding:
  """Sharding of a batch: the leading axis over data and fsdp."""
  return NamedSharding(mesh, spec(('batch',)))


def replicated(mesh: Mesh) -> NamedSharding:
  """One whole copy on every device."""
  return NamedSharding(mesh, PartitionSpec())


def of_params(mesh: Mesh, params, table: Sequence[tuple[str, str]], rules: Mapping[str, Any] = RULES):
  """Shardings of a params tree by the model's axes table; an axis that does not divide a dimension is refused, named."""
  axes = tree.flatten(tree.axes_of(params, table))
  out = {}
  for path, leaf in tree.flatten(params).items():
    parts = spec(axes[path], rules)
    for dim, part in zip(leaf.shape, parts):
      size = math.prod(mesh.shape[name] for name in ((part,) if isinstance(part, str) else part or ()))
      if dim % size:
        raise ValueError(f'mesh: {path} {leaf.shape}: dimension {dim} is not divisible by {part} = {size}')
    out[path] = NamedSharding(mesh, parts)
  return tree.unflatten(out)


def row_count(mesh: Mesh) -> int:
  """Into how many pieces the rows of a batch are cut."""
  return mesh.shape['data'] * mesh.shape['fsdp']
