"""What a table of a family is made of: rows (one weight of ours and where it stands in theirs), and keys of config.json both ways."""
import itertools
from typing import Any, Callable, Mapping, NamedTuple, Sequence

Config = Mapping[str, Any]

ACTIVATIONS = {'silu': 'silu', 'swish': 'silu', 'gelu_new': 'gelu_tanh', 'gelu_pytorch_tanh': 'gelu_tanh', 'gelu_fast': 'gelu_tanh',
               'gelu': 'gelu', 'relu': 'relu'}
KINDS = {'sliding_attention': 'local', 'full_attention': 'global'}


class Cut(NamedTuple):
  """Where our last axis stands on theirs, which has `total` entries: `count` pieces of `size`, the first at `start`, `step` apart."""
  total: int
  start: int
  size: int
  step: int = 0
  count: int = 1


class Row(NamedTuple):
  """One weight of ours and where it stands in theirs.

  '{layer}' and '{expert}' in `theirs` are numbers; with a layer, `ours` is a path below a block. turned: theirs is [out, in], ours
  [in, out]. cut: config -> Cut, where theirs holds several of ours on the axis of outputs; None: it holds this one alone.
  """
  ours: str
  theirs: str
  turned: bool = False
  cut: Callable[[Config], Cut] | None = None


class Family(NamedTuple):
  """One architecture. config_in: config.json -> keywords of `transformer` (ValueError: what cannot be read); config_out: config -> config.json,
  of any config: only what reads back the same is written. prefix: a base model saved alone lacks it before its names. skipped:
  patterns of tensors that are no weights (buffers of old versions).

  Of other models than `transformer`: model, its name in MODELS; layers(config, ours) -> how many layers a weight is stacked over, `ours`
  being its whole path; words(config) -> what else stands in braces in `theirs`; more(config, names of the weights held, load a JSON file
  beside) -> the config with what config.json does not say, and free, the keywords it says; renamed: ends of names in old files.
  """
  model_type: str
  config_in: Callable[[Config], dict]
  config_out: Callable[[Config], dict]
  rows: Sequence[Row]
  prefix: str
  skipped: Sequence[str] = (r'.*\.rotary_emb\.inv_freq',)
  model: str = 'transformer'
  layers: Callable[[Config, str], int] | None = None
  words: Callable[[Config], Mapping[str, str]] = lambda config: {}
  more: Callable[[dict, Callable, Callable], dict] = lambda config, held, load: config
  free: Sequence[str] = ()
  renamed: Mapping[str, str] = {}


def refuse(family: str, hf: Config, wanted: Config) -> None:
  """ValueError where config.json says anything but these values."""
  for key, value in wanted.items():
    if hf.get(key, value) != value:
      raise ValueError(f'{family}: config.json says {key}={hf[key]!r}; only {value!r} can be read')


def activation(family: str, name: str) -> str:
  if name not in ACTIVATIONS:
    raise ValueError(f'{family}: activation {name!r} of config.json is not known; known are {", ".join(ACTIVATIONS)}')
  return ACTIVATIONS[name]


def activation_out(name: str) -> str:
  return {'gelu_tanh': 'gelu_new'}.get(name, name)


def kernel_and_bias(ours: str, theirs: str, **how) -> tuple[Row, Row]:
  return Row(f'{ours}/kernel', f'{theirs}.weight', **how), Row(f'{ours}/bias', f'{theirs}.bias', **{**how, 'turned': False})


def norm(ours: str, theirs: str) -> tuple[Row, Row]:
  return Row(f'{ours}/scale', f'{theirs}.weight'), Row(f'{ours}/bias', f'{theirs}.bias')


def head(theirs: str) -> tuple[Row, Row]:
  return kernel_and_bias('head', theirs, turned=True)


def period(kinds: Sequence[str]) -> tuple[str, ...]:
  """The shortest pattern that gives these layers when it is repeated."""
  kinds = tuple(kinds)
  return next(kinds[:size] for size in range(1, len(kinds) + 1) if all(a == b for a, b in zip(kinds, itertools.cycle(kinds[:size]))))


def along(pattern: Sequence[str], layers: int) -> list[str]:
  """A pattern repeated over so many layers."""
  return list(itertools.islice(itertools.cycle(pattern), layers))


def rope_in(family: str, hf: Config, *, theta: float = 10000.0, share: float = 1.0) -> tuple[float, dict]:
  """(rope_theta, `rotary` of transformer) of a config.json, of the newer rope_parameters or the older rope_theta and rope_scaling."""
  rope = dict(hf.get('rope_parameters') or {}) | dict(hf.get('rope_scaling') or {})
  kind = rope.get('rope_type', rope.get('type', 'default'))
  whole = hf.get('max_position_embeddings')
  original = rope.get('original_max_position_embeddings', hf.get('original_max_position_embeddings', whole))
  rotary = dict(share=rope.get('partial_rotary_factor', hf.get('partial_rotary_factor', share)))
  if kind == 'linear':
    rotary['scaling'] = dict(kind='linear', factor=float(rope['factor']))
  elif kind == 'llama3':
    rotary['scaling'] = dict(kind='llama3', factor=float(rope['factor']), low=float(rope['low_freq_factor']),
                             high=float(rope['high_freq_factor']), original=int(original))
  elif kind in ('longrope', 'su'):
    rotary['scaling'] = _longrope_in(rope, int(original), int(whole))
  elif kind != 'default':
    raise ValueError(f'{family}: config.json says rope_type={kind!r}; readable are default, linear, llama3 and longrope')
  return float(rope.get('rope_theta') or hf.get('rope_theta') or theta), rotary


def _longrope_in(rope: Config, original: int, longest: int) -> dict:
  import math
  factor = rope.get('factor') or longest / original
  attention = rope.get('attention_factor') or (math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0)
  return dict(kind='longrope', short=tuple(map(float, rope['short_factor'])), long=tuple(map(float, rope['long_factor'])),
              attention=float(attention), original=original, longest=longest)


def rope_out(config: Config) -> dict:
  """rope_parameters of a config.json."""
  rotary = dict(config['rotary'])
  scaling, kind = dict(rotary['scaling'] or ()), dict(rotary['scaling'] or ()).get('kind', 'default')
  out = dict(rope_type=kind, rope_theta=config['rope_theta'])
  if rotary['share'] != 1.0:
    out['partial_rotary_factor'] = rotary['share']
  if kind in ('linear', 'llama3'):
    out['factor'] = scaling['factor']
  if kind == 'llama3':
    out |= dict(low_freq_factor=scaling['low'], high_freq_factor=scaling['high'], original_max_position_embeddings=scaling['original'])
  if kind == 'longrope':
    out |= dict(short_factor=list(scaling['short']), long_factor=list(scaling['long']), attention_factor=scaling['attention'],
                original_max_position_embeddings=scaling['original'])
  return out
