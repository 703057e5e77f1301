"""A student cut out of its teacher: some of its layers (DistilBERT, Sanh 2019, arXiv 1910.01108), its first channels, heads and units."""
import pathlib
import re
from typing import Any, Callable, Mapping, NamedTuple, Sequence

import numpy as np

from distill_jax.core import tree
from distill_jax.models import weights

# which sizes the axes of a weight have, by its path below a block or, outside of blocks, its own; only cuts in width read it
WIDTHS = (
    (r'embed/(tokens|positions)', '- width'), (r'head/kernel', 'width -'), (r'head/bias', '-'),
    (r'(\w+_)?norm/(scale|bias)', 'width'), (r'attention/[qk]_norm/(scale|bias)', '-'),
    (r'attention/q/kernel', 'width heads'), (r'attention/q/bias', 'heads'),
    (r'attention/[kv]/kernel', 'width kv_heads'), (r'attention/[kv]/bias', 'kv_heads'),
    (r'attention/o/kernel', 'heads width'), (r'mlp/(gate|up)/kernel', 'width mlp'), (r'mlp/(gate|up)/bias', 'mlp'),
    (r'mlp/down/kernel', 'mlp width'), (r'(attention/o|mlp/down)/bias', 'width'),
)
# kinds of layers, in turn, and the keyword that is None where no layer is of that kind
KINDS = dict(pattern=('local', 'window'), mlps=('experts', 'experts'))


class Cut(NamedTuple):
  """A student's shape. config: its keywords; layers: of the teacher, one for each of its own; sizes: what is left of each axis, {}: all."""
  config: Mapping[str, Any]
  layers: Sequence[int]
  sizes: Mapping[str, int]


def cut(config: Mapping[str, Any], *, layers: int | Sequence[int] | None = None, width: int | None = None, heads: int | None = None,
        mlp_width: int | None = None) -> Cut:
  """The shape of a student of a teacher with the keywords `config`. All that is not named stays.

  layers: a count that divides the teacher's (6 of 12: layers 0, 2, 4 ...), or their numbers, ascending.  width: the first channels of the
  stream between layers; heads and mlp_width then default to the same share.  heads: the first ones, of unchanged width, with the keys
  and values that they read.  mlp_width: the first units. What comes first is kept, no weight is chosen by its size: cut in width, it says nothing
  sensible before it is trained, and is only a start.
  ValueError: what does not divide, or is more than the teacher has.
  """
  config = dict(config)
  for name, value in dict(width=width, heads=heads, mlp_width=mlp_width).items():
    if value is not None and not 1 <= value <= config[name]:
      raise ValueError(f'from_teacher: {name}={value}, the teacher has {config[name]}; give 1 to {config[name]}')
  picked = _layers(config['layers'], layers)
  share = lambda name: _share(name, config[name], width, config['width']) if width is not None else config[name]
  heads = share('heads') if heads is None else heads
  mlp_width = share('mlp_width') if mlp_width is None else mlp_width
  group = config['heads'] // config['kv_heads']
  if heads % group:
    raise ValueError(f'from_teacher: heads={heads}; the teacher\'s heads share keys and values by {group}, so that many must divide it')
  shape = dict(width=config['width'] if width is None else width, heads=heads, kv_heads=heads // group, mlp_width=mlp_width)
  sizes = dict(width=shape['width'], heads=heads * config['head_dim'], kv_heads=shape['kv_heads'] * config['head_dim'], mlp=mlp_width)
  same = all(config[name] == value for name, value in shape.items())
  return Cut({**config, **shape, 'layers': len(picked), **_kinds(config, picked)}, picked, {} if same else sizes)


def _layers(count: int, layers: int | Sequence[int] | None) -> tuple[int, ...]:
  if layers is None:
    return tuple(range(count))
  if isinstance(layers, int):
    if layers < 1 or count % layers:
      fits = [n for n in range(1, count + 1) if count % n == 0]
      raise ValueError(f'from_teacher: layers={layers} does not divide the {count} layers of the teacher ({", ".join(map(str, fits))} do); '
                       f'or name them, layers=[0, ...]')
    return tuple(range(0, count, count // layers))
  layers = tuple(layers)
  if not layers or list(layers) != sorted(set(layers)) or layers[0] < 0 or layers[-1] >= count:
    raise ValueError(f'from_teacher: layers={list(layers)}; give numbers from 0 to {count - 1}, ascending, each once')
  return layers


def _share(name: str, whole: int, width: int, of: int) -> int:
  if whole * width % of:
    raise ValueError(f'from_teacher: width={width} is {width}/{of} of the teacher\'s, and its {name}={whole} has no such share in whole '
                     f'numbers; give {name}= beside it')
  return whole * width // of


def _kinds(config: Mapping[str, Any], picked: Sequence[int]) -> dict[str, Any]:
  """The kinds of the picked layers as the shortest turn that repeats, and what no kind needs any more."""
  names = [name for name in KINDS if name in config]
  kinds = [tuple(config[name][number % len(config[name])] for name in names) for number in picked]
  period = next(n for n in range(1, len(kinds) + 1) if all(kind == kinds[i % n] for i, kind in enumerate(kinds)))
  out: dict[str, Any] = {name: tuple(kind[place] for kind in kinds[:period]) for place, name in enumerate(names)}
  return {**out, **{KINDS[name][1]: None for name in names if KINDS[name][0] not in out[name]}}


def read(directory: pathlib.Path, name: str, config: Mapping[str, Any], chosen: Cut, put: Callable) -> dict[str, Any]:
  """Params of the student of the checkpoint in `directory`. Only what it keeps is read, layer by layer; put: as in weights.read."""
  held: dict[tuple[str, int | None], np.ndarray] = {}
  wanted, period = set(chosen.layers), _period(config)

  def keep(path, shape, piece):
    part, below, first = _place(path, config)
    index = _index(below, shape[part == 'layers':], chosen.sizes)
    if part == 'layers':
      for repeat in range(shape[0]):
        if first + repeat * period in wanted:
          held[below, first + repeat * period] = np.asarray(piece((slice(repeat, repeat + 1), *index)))[0]
    elif first is None or first in wanted:
      held[below, first] = np.asarray(piece(index))
  weights.read(directory, put=keep)

  def made(path, shape):
    part, below, first = _place(path, chosen.config)
    if part != 'layers':
      array = held[below, None if first is None else chosen.layers[first]]
    else:
      array = np.stack([held[below, chosen.layers[first + repeat * _period(chosen.config)]] for repeat in range(shape[0])])
    if array.shape != shape:
      raise ValueError(f'from_teacher: {path} is cut to {array.shape}, by the config it is {shape}')
    return put(path, shape, lambda index, dtype=None: array[index] if dtype is None else array[index].astype(dtype))
  return tree.unflatten({path: made(path, shape) for path, shape in weights.expected(name, chosen.config).items()})


def _period(config: Mapping[str, Any]) -> int:
  return len(config['pattern'])


def _place(path: str, config: Mapping[str, Any]) -> tuple[str, str, int | None]:
  """('layers', 'rest' or '', path below the block, number of the first layer that it holds; None outside of blocks)."""
  part, _, rest = path.partition('/')
  if part not in ('layers', 'rest'):
    return '', path, None
  place, _, below = rest.partition('/')
  before = config['layers'] // _period(config) * _period(config) if part == 'rest' else 0
  return part, below, before + int(place)


def _index(below: str, shape: Sequence[int], sizes: Mapping[str, int]) -> tuple[slice, ...]:
  """What is kept of a weight of `shape`."""
  if not sizes:
    return (slice(None),) * len(shape)
  axes = next((axes.split() for pattern, axes in WIDTHS if re.fullmatch(pattern, below)), None)
  if axes is None or len(axes) != len(shape):
    raise ValueError(f'from_teacher: no rule says how {below!r} is cut in width; cut this teacher by layers alone')
  return tuple(slice(None) if axis == '-' else slice(sizes[axis]) for axis in axes)
