"""What may stand beside a linear map's kernel, and how it meets the modules: 'lora_a' [in, rank] and 'lora_b' [rank, out] of a low-rank
adapter (compress/lora.py), 'kernel_scale' [out] of an int8 kernel (compress/quant.py)."""
import functools
from typing import Any, Mapping, Sequence

from flax import nnx

from distill_jax.core import tree

LORA = ('lora_a', 'lora_b')
SCALE = 'kernel_scale'


def adapted(rows: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
  """A table of axes with rows for what may stand beside every kernel of two axes; the rank is never cut."""
  more = []
  for pattern, axes in rows:
    if pattern.endswith('/kernel') and len(axes.split()) == 2:
      path, (wide_in, wide_out) = pattern.removesuffix('kernel'), axes.split()
      more += [(path + 'lora_a', f'{wide_in} -'), (path + 'lora_b', f'- {wide_out}'), (path + SCALE, wide_out)]
  return (*rows, *more)


def merge(graph: Any, weights: Mapping[str, Any]) -> nnx.Module:
  """The module of `graph` with these weights; what stands beside a kernel becomes the `lora` and `columns` of its linear map."""
  flat = tree.flatten(weights)
  found = {path: leaf for path, leaf in flat.items() if path.rpartition('/')[2] in (*LORA, SCALE)}
  if not found:
    return nnx.merge(graph, weights)
  module = nnx.merge(graph, tree.unflatten({path: leaf for path, leaf in flat.items() if path not in found}))
  for place in {path.rpartition('/')[0] for path in found}:
    linear = functools.reduce(getattr, place.split('/'), module)
    if f'{place}/{LORA[0]}' in found:
      linear.lora = nnx.data(tuple(found[f'{place}/{name}'] for name in LORA))
    if f'{place}/{SCALE}' in found:
      linear.columns = nnx.data(found[f'{place}/{SCALE}'])
  return module
