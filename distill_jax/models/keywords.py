"""The keywords of a decoder: defaults resolved into plain data that hashes and goes through JSON, and what contradicts is refused."""
import math
from typing import Any, Mapping

from distill_jax.models import layers as parts, rotary as rotary_lib

ROTARY = dict(share=1.0, interleaved=False, scaling=None, local_theta=None)
EXPERTS = ('chosen', 'count', 'normed', 'width')
SIZES = ('vocab_size', 'width', 'layers', 'heads', 'kv_heads', 'head_dim', 'mlp_width', 'max_length')
FLOATS = ('norm_eps', 'norm_offset', 'rope_theta', 'dropout', 'embed_scale', 'query_scale', 'score_cap', 'head_cap')


def pairs(value: Any) -> Any:
  """Mappings as sorted tuples of pairs and lists as tuples, all the way down; `dict` of what came of a mapping is that mapping again."""
  if isinstance(value, Mapping):
    return tuple((key, pairs(value[key])) for key in sorted(value))
  return tuple(map(pairs, value)) if isinstance(value, (list, tuple)) else value


def resolve(config: Mapping[str, Any]) -> dict[str, Any]:
  """The keywords of `transformer` with every default filled in. ValueError: they contradict each other; it names them."""
  config = dict(config)
  config['kv_heads'] = config['kv_heads'] or config['heads']
  config['head_dim'] = config['head_dim'] or config['width'] // max(config['heads'], 1)
  config.update({name: float(config[name]) for name in FLOATS if config[name] is not None})
  rotary = dict(pairs(config['rotary'] or ()))
  if unknown := set(rotary) - set(ROTARY):
    raise ValueError(f'transformer: rotary takes no {sorted(unknown)[0]!r}; it takes {", ".join(ROTARY)}')
  config['rotary'] = pairs({**ROTARY, **rotary})
  config['experts'] = pairs(config['experts'])
  pattern, mlps = tuple(config['pattern']), tuple(config['mlps'])
  period = math.lcm(len(pattern) or 1, len(mlps) or 1)
  config['pattern'], config['mlps'] = pattern * (period // (len(pattern) or 1)), mlps * (period // (len(mlps) or 1))
  _check(config)
  return config


def _check(config: Mapping[str, Any]) -> None:
  choices = dict(
      norm=parts.NORMS, init=parts.INITS, attention_bias=(True, False, 'qkv', 'o'), positions=('rope', 'learned'),
      activation=tuple(parts.ACTIVATIONS), remat=tuple(parts.REMAT), parallel=parts.PARALLEL)
  for name, allowed in choices.items():
    if config[name] not in allowed:
      raise ValueError(f'transformer: {name}={config[name]!r}; choose one of {", ".join(map(str, allowed))}')
  for name, allowed in dict(pattern=('global', 'local'), mlps=('dense', 'experts')).items():
    if not config[name] or set(config[name]) - set(allowed):
      raise ValueError(f'transformer: {name}={config[name]}; its entries are {" or ".join(allowed)}, at least one')
  for name in SIZES:
    if config[name] < 1:
      raise ValueError(f'transformer: {name}={config[name]} must be at least 1')
  if config['heads'] % config['kv_heads']:
    raise ValueError(f'transformer: kv_heads={config["kv_heads"]} does not divide heads={config["heads"]}')
  if ('local' in config['pattern']) != (config['window'] is not None):
    raise ValueError(f'transformer: window={config["window"]} with pattern={config["pattern"]}; local layers need one, others take none')
  if not 0.0 <= config['dropout'] < 1.0:
    raise ValueError(f'transformer: dropout={config["dropout"]} must be in [0, 1)')
  if config['head_bias'] and config['tied']:
    raise ValueError('transformer: head_bias=True with tied=True; a tied head has no bias')
  if config['parallel'] != 'none' and config['post_norms']:
    raise ValueError(f'transformer: post_norms=True with parallel={config["parallel"]!r}; no block has both')
  _check_rotary(config)
  _check_experts(config)


def _check_rotary(config: Mapping[str, Any]) -> None:
  if config['positions'] != 'rope':
    if config['rotary'] != pairs(ROTARY):
      raise ValueError(f'transformer: rotary={dict(config["rotary"])} with positions={config["positions"]!r}; it belongs to rope')
    return
  if config['position_offset']:
    raise ValueError(f'transformer: position_offset={config["position_offset"]} with rope; it belongs to learned positions')
  rotary = dict(config['rotary'])
  turned = rotary_lib.turned(config)
  if turned % 2 or not 0 < turned <= config['head_dim']:
    raise ValueError(f'transformer: rope turns pairs of a head, {turned} of head_dim={config["head_dim"]} is odd or not in it')
  if rotary['scaling'] is None:
    return
  scaling = dict(rotary['scaling'])
  kind = scaling.pop('kind', None)
  if kind not in rotary_lib.SCALINGS:
    raise ValueError(f'transformer: rotary scaling of kind {kind!r}; choose one of {", ".join(rotary_lib.SCALINGS)}')
  if set(scaling) != set(rotary_lib.SCALINGS[kind]):
    raise ValueError(f'transformer: rotary scaling {kind!r} takes {", ".join(rotary_lib.SCALINGS[kind])}, got {", ".join(scaling) or "none"}')
  if kind == 'longrope':
    if len(scaling['short']) != turned // 2 or len(scaling['long']) != turned // 2:
      raise ValueError(f'transformer: longrope has {len(scaling["short"])} short and {len(scaling["long"])} long factors, it needs {turned // 2}')
    if config['max_length'] > scaling['original']:
      raise ValueError(f'transformer: max_length={config["max_length"]} with longrope; texts past its original={scaling["original"]} tokens, '
                       'which turn by the long factors, are not supported')


def _check_experts(config: Mapping[str, Any]) -> None:
  if ('experts' in config['mlps']) != (config['experts'] is not None):
    raise ValueError(f'transformer: experts={config["experts"] and dict(config["experts"])} with mlps={config["mlps"]}; '
                     'layers with experts need them, others take none')
  if config['experts'] is None:
    return
  experts = dict(config['experts'])
  if set(experts) != set(EXPERTS):
    raise ValueError(f'transformer: experts takes {", ".join(EXPERTS)}, got {", ".join(experts)}')
  if not 1 <= experts['chosen'] <= experts['count'] or experts['width'] < 1:
    raise ValueError(f'transformer: experts={experts}; 1 <= chosen <= count and a width of at least 1')
  if not config['gated'] or config['mlp_bias']:
    raise ValueError('transformer: experts are gated and have no bias; take gated=True, mlp_bias=False')
