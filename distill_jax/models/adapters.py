"""Where low-rank adapters (compress/lora.py) meet the modules: 'lora_a' [in, rank] and 'lora_b' [rank, out] beside a map's kernel."""
import functools
from typing import Any, Mapping, Sequence

from flax import nnx

from distill_jax.core import tree

NAMES = ('lora_a', 'lora_b')


def adapted(rows: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
  """A table of axes with rows for the adapters beside every kernel of two axes; the rank is never cut."""
  more = []
  for pattern, axes in rows:
    if pattern.endswith('/kernel') and len(axes.split()) == 2:
      path, (wide_in, wide_out) = pattern.removesuffix('kernel'), axes.split()
      more += [(path + 'lora_a', f'{wide_in} -'), (path + 'lora_b', f'- {wide_out}')]
  return (*rows, *more)


def merge(graph: Any, weights: Mapping[str, Any]) -> nnx.Module:
  """The module of `graph` with these weights; adapters among them become the `lora` of their linear map."""
  flat = tree.flatten(weights)
  found = {path: leaf for path, leaf in flat.items() if path.rpartition('/')[2] in NAMES}
  if not found:
    return nnx.merge(graph, weights)
  module = nnx.merge(graph, tree.unflatten({path: leaf for path, leaf in flat.items() if path not in found}))
  for place in {path.rpartition('/')[0] for path in found}:
    linear = functools.reduce(getattr, place.split('/'), module)
    linear.lora = nnx.data(tuple(found[f'{place}/{name}'] for name in NAMES))
  return module
