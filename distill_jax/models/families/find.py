"""The family of a config.json or of a config, and which of its tensors hold a weight of ours."""
import itertools
from typing import Any, Mapping, NamedTuple, Sequence

from distill_jax.models.families import FAMILIES
from distill_jax.models.families.rows import Config, Cut, Family, Row

# what a config says of how it is computed or trained, not of what it computes
FREE = ('dropout', 'dtype', 'remat', 'init', 'architecture')


class Source(NamedTuple):
  """One tensor of theirs that holds (a part of) a weight: its name, our row and place, which is () or (layer of the stack,), (expert,) or both."""
  name: str
  row: Row
  place: tuple[int, ...]


def of_hf(hf: Config, where: str) -> str:
  """The architecture of a config.json, by `architectures` or else `model_type`. ValueError: none that is known."""
  name = (hf.get('architectures') or [None])[0]
  for architecture, family in FAMILIES.items():
    if name == architecture or (name is None and hf.get('model_type') == family.model_type):
      return architecture
  raise ValueError(f'{where}: architecture {name or hf.get("model_type")!r} is not known; known are {", ".join(FAMILIES)}')


def config_in(architecture: str, hf: Config) -> dict[str, Any]:
  """Keywords of the family's model from a config.json. ValueError: what cannot be read, or a key that is missing."""
  try:
    config = FAMILIES[architecture].config_in(hf)
    return dict(config, architecture=architecture) if FAMILIES[architecture].model == 'transformer' else config
  except KeyError as error:
    raise ValueError(f'{architecture}: config.json has no {error.args[0]!r}; the file is damaged or of another kind') from error


def of_config(config: Config, *, model: str = 'transformer') -> str:
  """The architecture that a config of this model can be written as: its own, else the first whose config.json reads back as the same config.

  ValueError: none; it names the nearest and what would be lost.
  """
  named, known = config.get('architecture'), [name for name, family in FAMILIES.items() if family.model == model]
  if named is not None and named not in known:
    raise ValueError(f'architecture={named!r} is not known; known are {", ".join(known)}')
  lost = {}
  for architecture in dict.fromkeys([named or known[0], *known]):
    lost[architecture] = _lost(architecture, config)
    if not lost[architecture]:
      return architecture
  nearest = min(lost, key=lambda name: len(lost[name]))
  raise ValueError(
      f'no Hugging Face architecture has this shape. Nearest is {nearest}, which cannot say {", ".join(lost[nearest])} '
      f'(known: {", ".join(known)}). Change these keywords, or keep the checkpoint in our own format')


def _lost(architecture: str, config: Config) -> list[str]:
  """The keywords that would not read back from what this architecture writes: 'name=value'."""
  from distill_jax.models import MODELS
  family = FAMILIES[architecture]
  try:
    back = MODELS[family.model](**config_in(architecture, family.config_out(config))).config
  except ValueError as error:
    return [f'{error}'] * len(config)
  return [f'{name}={value!r}' for name, value in config.items() if name not in (*FREE, *family.free) and back[name] != value]


def slot(config: Config, number: int) -> tuple[str, int | None]:
  """Where layer `number` stands: (path of its block, index on the stacked axis or None in the remainder)."""
  places = len(config['pattern'])
  repeats = config['layers'] // places
  if number < repeats * places:
    return f'layers/{number % places}', number // places
  return f'rest/{number - repeats * places}', None


def sources(family: Family, config: Config, paths: Sequence[str]) -> dict[str, list[Source]]:
  """For each path of ours the tensors of theirs that hold it, in the order of its leading axes (layers, experts)."""
  found: dict[str, list[Source]] = {path: [] for path in paths}
  count, words = dict(config.get('experts') or ()).get('count', 0), family.words(config)
  for row in family.rows:
    layers = [None]
    if '{layer}' in row.theirs:
      layers = range(config['layers'] if family.layers is None else family.layers(config, row.ours))
    experts = range(count) if '{expert}' in row.theirs else [None]
    for layer, expert in itertools.product(layers, experts):
      block, index = ('', layer) if layer is None or family.layers is not None else slot(config, layer)
      path = f'{block}/{row.ours}'.lstrip('/')
      if path in found:
        name = row.theirs.format(layer=layer, expert=expert, **words)
        found[path].append(Source(name, row, tuple(place for place in (index, expert) if place is not None)))
  return found


def cut_of(row: Row, config: Config, wide: int) -> Cut:
  """Where our last axis, of `wide` entries, stands on theirs."""
  return Cut(wide, 0, wide) if row.cut is None else row.cut(config)


def shape_of_theirs(row: Row, config: Config, shape: Sequence[int]) -> tuple[int, ...]:
  """The shape of their tensor for one of ours."""
  shape = (*shape[:-1], cut_of(row, config, shape[-1]).total)
  return shape[::-1] if row.turned else shape


def spans(cut: Cut, start: int, stop: int) -> list[tuple[int, int, int]]:
  """(ours, theirs, size) of each piece of start .. stop - 1 of our axis that is one piece of theirs."""
  out, at = [], start
  while at < stop:
    piece, inside = divmod(at, cut.size)
    size = min(cut.size - inside, stop - at)
    out.append((at - start, cut.start + piece * cut.step + inside, size))
    at += size
  return out
