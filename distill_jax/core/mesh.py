"""The device mesh and the one table that maps logical axes to it."""
import contextlib
import contextvars
import math
from typing import Any, Callable, Iterator, Mapping, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
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
    fixed = max(math.prod(size for size in sizes.values() if size != -1), 1)
    fits = 'one axis may be -1 for the rest' if len(devices) % fixed == 0 else f'sizes must divide {len(devices)}'
    raise ValueError(f'mesh: {dict(zip(AXES, shape))} needs {math.prod(shape)} devices, there are {len(devices)} ({fits})')
  if devices[0].platform == 'tpu':      # neighbours in the mesh are neighbours in the torus
    try:
      return Mesh(mesh_utils.create_device_mesh(shape, devices=devices), AXES)
    except NotImplementedError:         # no product of whole axes of the torus: pieces of one, say 8 x 2 on 4 x 4
      return Mesh(mesh_utils.create_device_mesh(shape, devices=devices, allow_split_physical_axes=True), AXES)
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
        work = [n for n in range(1, mesh.size + 1) if dim % n == 0 and mesh.size % n == 0]
        raise ValueError(f'mesh: {path} {leaf.shape}: dimension {dim} is not divisible by {part} = {size}; '
                         f'sizes of {part} that work for it here: {", ".join(map(str, work))}')
    out[path] = NamedSharding(mesh, parts)
  return tree.unflatten(out)


def rules_with(changes: Mapping[str, Any] | None) -> Mapping[str, Any]:
  """RULES with some rows changed, say dict(length='tensor'). ValueError: a logical or a mesh axis that is not there."""
  for axis, names in (changes or {}).items():
    if axis not in RULES or axis == 'batch':      # how rows are cut is known in many places
      raise ValueError(f'rules: cannot change {axis!r}; there is {", ".join(name for name in RULES if name != "batch")}')
    for name in (names,) if isinstance(names, str) else names or ():
      if name not in AXES:
        raise ValueError(f'rules: {axis}={names!r}: no mesh axis {name!r}; the axes are {", ".join(AXES)}')
  return {**RULES, **(changes or {})}


def row_count(mesh: Mesh) -> int:
  """Into how many pieces the rows of a batch are cut."""
  return mesh.shape['data'] * mesh.shape['fsdp']


# the mesh that functions being traced compute on, and the rules that hold there
_HERE: contextvars.ContextVar[tuple[Mesh | None, Mapping[str, Any]]] = contextvars.ContextVar('mesh', default=(None, RULES))


@contextlib.contextmanager
def on(mesh: Mesh | None, rules: Mapping[str, Any] | None = None) -> Iterator[None]:
  """While a function is traced: `constrain` and `pieces` below it speak of this mesh, by these rules (default: those that hold)."""
  before = _HERE.get()
  token = _HERE.set((mesh, before[1] if rules is None else rules))
  try:
    yield
  finally:
    _HERE.reset(token)


@contextlib.contextmanager
def by(rules: Mapping[str, Any]) -> Iterator[None]:
  """While a function is traced: these rules on the mesh that holds."""
  with on(_HERE.get()[0], rules):
    yield


def constrain(x: jax.Array, *axes: str | tuple[str, ...] | None) -> jax.Array:
  """`x` laid out by the logical axes of its dimensions (a tuple: by all of them), on the mesh of `on`; as it is where there is none.

  A dimension that its mesh axes do not divide is not cut, nor is one whose mesh axes an earlier dimension uses.
  """
  mesh = _HERE.get()[0]
  if mesh is None or mesh.size == 1:
    return x
  return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, _spec_of(mesh, x.shape, axes)))


def piecewise(function: Callable, x: jax.Array, *axes: str | tuple[str, ...] | None):
  """`function(x)`, each device its own piece, laid out as by `constrain`; what comes out is laid out as what went in.

  function: array -> tree of arrays of the same rank, whose axes that are cut keep their size.
  """
  mesh = _HERE.get()[0]
  if mesh is None or mesh.size == 1:
    return function(x)
  spec = _spec_of(mesh, x.shape, axes)
  return jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)(x)


def local(function: Callable, arrays: Sequence[jax.Array], *axes: Sequence[str | None]) -> jax.Array:
  """`function(*arrays)`, each device its own pieces, each array laid out as by `constrain`; what comes out is laid out as the first."""
  mesh = _HERE.get()[0]
  if mesh is None or mesh.size == 1:
    return function(*arrays)
  specs = tuple(_spec_of(mesh, x.shape, names) for x, names in zip(arrays, axes, strict=True))
  return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=specs[0], check_vma=False)(*arrays)


def _spec_of(mesh: Mesh, shape: Sequence[int], axes: Sequence[str | tuple[str, ...] | None]) -> PartitionSpec:
  """See `constrain`."""
  used, parts = set(), []
  for size, axis in zip(shape, axes, strict=True):
    names = sum((_mesh_axes(one) for one in ((axis,) if isinstance(axis, str) else axis or ())), ())
    fits = names and size % math.prod(mesh.shape[name] for name in names) == 0 and not used & set(names)
    parts.append(names if fits else None)
    used |= set(names) if fits else set()
  return PartitionSpec(*parts)


def gather(weights, table: Sequence[tuple[str, str]]):
  """A tree of weights, each whole over the mesh axes that rows are cut over (those of 'batch'), so that no product has to move rows."""
  mesh = _HERE.get()[0]
  if mesh is None or mesh.size == 1:
    return weights
  rows = set(_mesh_axes('batch'))
  keep = lambda axis: None if axis is None or rows & set(_mesh_axes(axis)) else axis
  axes = tree.flatten(tree.axes_of(weights, table))
  return tree.unflatten({path: constrain(leaf, *map(keep, axes[path])) for path, leaf in tree.flatten(weights).items()})


def pieces(axis: str) -> int:
  """Into how many pieces a logical axis is cut on the mesh of `on`; 1 where there is none."""
  mesh = _HERE.get()[0]
  return 1 if mesh is None else math.prod(mesh.shape[name] for name in _mesh_axes(axis))


def platform() -> str:
  """What is compiled for: the platform of the devices of the mesh of `on`, which need not be here; without one that of this process."""
  return platform_of(_HERE.get()[0])


def platform_of(mesh: Mesh | None) -> str:
  """The platform of its devices; without a mesh that of this process."""
  return jax.default_backend() if mesh is None else mesh.devices.flat[0].platform


def apart(axis: str, other: str) -> str | None:
  """`axis`, or None where it is cut over a mesh axis that `other` is cut over too."""
  return None if set(_mesh_axes(axis)) & set(_mesh_axes(other)) else axis


def _mesh_axes(axis: str) -> tuple[str, ...]:
  """The mesh axes of a logical one, by the rules that hold."""
  names = _HERE.get()[1][axis]
  return () if names is None else (names,) if isinstance(names, str) else tuple(names)
