"""LoRA: a Model whose weights stay, with low-rank adapters beside its linear maps that learn (Hu et al. 2021, arXiv 2106.09685).

A map x W becomes x W + scale (x A) B with A [in, rank] and B [rank, out]: 'lora_a' and 'lora_b' beside 'kernel' in the params, float32
whatever the base is kept in, stacked where the layers are.
"""
import functools
import re
from typing import Any, Mapping, Sequence

import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from distill_jax.core import tree
from distill_jax.core.types import Model

TRAINABLE = (r'(.*/)?lora_[ab]',)
SCALINGS = {'lora': lambda alpha, rank: alpha / rank, 'rslora': lambda alpha, rank: alpha / rank ** 0.5}


def lora(model: Model, *, rank: int, alpha: float | None = None, targets: Sequence[str] = ('.*',), scaling: str = 'lora') -> Model:
  """`model` with adapters. Only they learn: the base has no gradient and no moments, and may be bfloat16.

  rank: of every adapter.  alpha: default `rank`, scale 1.  targets: regular expressions of the maps, each matched to the end of a path
  ('attention/[qv]', 'mlp/.*'; default: every map of every block, as in Dettmers et al. 2023, arXiv 2305.14314).
  scaling: 'lora' alpha / rank | 'rslora' alpha / sqrt(rank) (Kalajdzievski 2023, arXiv 2312.03732).
  Fresh: A normal with deviation 1 / sqrt(in), B zero, so that the model is the base at first. There is no dropout of its own: the
  model's `dropout` holds. `ready` merges, in float32. The same arguments give the identical Model.
  ValueError: a rank below 1, a scaling that is not known, a target that is no map of the model.
  """
  targets = (targets,) if isinstance(targets, str) else tuple(targets)
  return _build(model, int(rank), float(rank if alpha is None else alpha), targets, scaling)


@functools.lru_cache(maxsize=None)
def _build(base: Model, rank: int, alpha: float, targets: tuple[str, ...], scaling: str) -> Model:
  if rank < 1:
    raise ValueError(f'lora: rank={rank} must be at least 1')
  if scaling not in SCALINGS:
    raise ValueError(f'lora: scaling={scaling!r}; choose one of {", ".join(SCALINGS)}')
  if 'lora' in (base.config or {}):
    raise ValueError('lora: the model has an adapter already; merge it first')
  scale = SCALINGS[scaling](alpha, rank)
  shapes = _shapes(base, rank, targets)
  init = functools.partial(_init, base, shapes)
  apply = lambda params, batch, **keywords: base.apply(_scaled(params, scale), batch, **keywords)
  ready = lambda params: base.ready(merge(params, scale))
  settings = FrozenDict(rank=rank, alpha=alpha, targets=targets, scaling=scaling)
  config = FrozenDict({**(base.config or {}), 'lora': settings})
  return base._replace(init=init, apply=apply, ready=ready, trainable=TRAINABLE, config=config)


def maps(model: Model) -> dict[str, tuple[int, ...]]:
  """{path of a linear map that takes an adapter: shape of its kernel, stacked where layers are}."""
  flat = tree.flatten(jax.eval_shape(model.init, jax.random.key(0)))
  takes = lambda path: any(re.fullmatch(pattern, path) for pattern, _ in model.axes)
  kernels = {path.removesuffix('/kernel'): leaf.shape for path, leaf in flat.items() if path.endswith('/kernel')}
  return {path: shape for path, shape in kernels.items() if takes(f'{path}/lora_a')}


def _shapes(base: Model, rank: int, targets: Sequence[str]) -> dict[str, tuple[int, ...]]:
  """{path of a weight of the adapters: shape}."""
  held, chosen = maps(base), set()
  for target in targets:
    found = [path for path in held if re.fullmatch(f'(.*/)?({target})', path)]
    if not found:
      known = sorted({'/'.join(path.split('/')[-2:]) for path in held})
      raise ValueError(f'lora: no linear map of the model matches targets {target!r}; ' +
                       (f'the maps are {", ".join(known)}' if known else 'this model has none that takes an adapter'))
    chosen.update(found)
  if not chosen:
    raise ValueError("lora: targets=() leaves nothing to learn; name maps, or leave it out for all")
  out = {}
  for path in sorted(chosen):
    *stack, wide_in, wide_out = held[path]
    out[f'{path}/lora_a'], out[f'{path}/lora_b'] = (*stack, wide_in, rank), (*stack, rank, wide_out)
  return out


def _init(base: Model, shapes: Mapping[str, tuple[int, ...]], key: jax.Array) -> dict[str, Any]:
  return tree.merge(base.init(key), adapters(shapes, jax.random.fold_in(key, 1)))      # the base is what it is without adapters


def adapters(shapes: Mapping[str, tuple[int, ...]], key: jax.Array) -> dict[str, Any]:
  """Fresh adapters of these shapes."""
  drawn = {}
  for number, (path, shape) in enumerate(sorted(shapes.items())):
    normal = lambda: jax.random.normal(jax.random.fold_in(key, number), shape, jnp.float32) / shape[-2] ** 0.5
    drawn[path] = normal() if path.endswith('lora_a') else jnp.zeros(shape, jnp.float32)
  return tree.unflatten(drawn)


def split(params: Mapping[str, Any]) -> tuple[dict, dict]:
  """(adapters, base) of the params of a model with adapters."""
  flat = tree.flatten(params)
  own = {path for path in flat if tree.matches(path, TRAINABLE)}
  return tree.unflatten({path: flat[path] for path in own}), tree.unflatten({path: leaf for path, leaf in flat.items() if path not in own})


def scale_of(config: Mapping[str, Any]) -> float:
  """The scale that the settings of `config['lora']` give."""
  settings = config['lora']
  return SCALINGS[settings['scaling']](settings['alpha'], settings['rank'])


def merge(params: Mapping[str, Any], scale: float) -> dict[str, Any]:
  """Params of the base: W + scale A B for every map with an adapter, summed and left in float32, also where W is bfloat16.

  To store them narrower is then one rounding; W and A B are never rounded apart. Params without adapters come back as they are.
  """
  flat = tree.flatten(params)
  for path in [path for path in flat if path.endswith('/lora_a')]:
    place = path.removesuffix('/lora_a')
    a, b = flat.pop(path), flat.pop(f'{place}/lora_b')
    more = jnp.einsum('...ir,...ro->...io', a.astype(jnp.float32), b.astype(jnp.float32), precision='highest')
    flat[f'{place}/kernel'] = flat[f'{place}/kernel'].astype(jnp.float32) + scale * more
  return tree.unflatten(flat)


def _scaled(params: Mapping[str, Any], scale: float) -> dict[str, Any]:
  """Params with the scale inside B, in float32; merged ones come back as they are."""
  flat = tree.flatten(params)
  return tree.unflatten({path: scale * leaf if path.endswith('/lora_b') else leaf for path, leaf in flat.items()})
