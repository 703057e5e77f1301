"""Nested dicts of arrays by path: flatten, match, split, merge, count."""
import re
from typing import Any, Mapping, Sequence

import jax
import jax.numpy as jnp


def flatten(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """{'a/b/c': leaf} of a nested dict, in sorted order of keys."""
  flat = {}
  for name in sorted(tree):
    path = f'{prefix}{name}'
    if isinstance(tree[name], Mapping):
      flat.update(flatten(tree[name], path + '/'))
    else:
      flat[path] = tree[name]
  return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
  """Inverse of `flatten`."""
  tree: dict[str, Any] = {}
  for path, leaf in flat.items():
    *parents, last = path.split('/')
    node = tree
    for name in parents:
      node = node.setdefault(name, {})
    node[last] = leaf
  return tree


def matches(path: str, patterns: Sequence[str]) -> bool:
  """Whether any regular expression of `patterns` matches the whole of `path`."""
  return any(re.fullmatch(pattern, path) for pattern in patterns)


def split(tree: Mapping[str, Any], patterns: Sequence[str]) -> tuple[dict, dict]:
  """(float leaves whose path matches, all the rest), as two nested dicts."""
  chosen, rest = {}, {}
  for path, leaf in flatten(tree).items():
    learns = matches(path, patterns) and jnp.issubdtype(leaf.dtype, jnp.floating)
    (chosen if learns else rest)[path] = leaf
  return unflatten(chosen), unflatten(rest)


def merge(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
  """The union of two nested dicts that share no leaf."""
  flat_a, flat_b = flatten(a), flatten(b)
  if both := sorted(set(flat_a) & set(flat_b)):
    raise ValueError(f'merge: both trees hold {both[0]}')
  return unflatten({**flat_a, **flat_b})


def count(tree) -> int:
  """Number of array elements."""
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def cast(tree, dtype):
  """Float leaves as `dtype`; the rest as it is."""
  return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def axes_of(params: Mapping[str, Any], rows: Sequence[tuple[str, str]]) -> dict[str, Any]:
  """The logical axes of every leaf, as a nested dict of tuples. A leaf that matches no row or two rows stops, named.

  A path below 'layers/' carries a leading scan axis, written 'layer' in the rows.
  """
  out = {}
  for path, leaf in flatten(params).items():
    found = [axes for pattern, axes in rows if re.fullmatch(pattern, path)]
    if len(found) != 1:
      raise ValueError(f'axes: weight {path!r} {leaf.shape} matches {len(found)} rows of the table, it must match exactly one')
    axes = tuple(None if name == '-' else name for name in found[0].split())
    if len(axes) != leaf.ndim:
      raise ValueError(f'axes: weight {path!r} has shape {leaf.shape}, its row names {len(axes)} axes: {found[0]!r}')
    out[path] = axes
  return unflatten(out)
