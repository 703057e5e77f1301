"""One causal decoder that covers the families of `models/families` by configuration.

Layers are scanned over their repeating pattern: 'layers/<i>/...' holds the weights of place i of the pattern, stacked over its
repeats; what does not fill a whole pattern stands unrolled and unstacked in 'rest/<i>/...'.
"""
import functools
from typing import Any, Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from flax.core import FrozenDict

from distill_jax.core import mesh as mesh_lib
from distill_jax.core.types import Head, Model
from distill_jax.models import adapters, attention as attention_lib, cache as cache_lib, keywords, layers as parts, moe, rotary

Array = jax.Array

WANTS = ('layers',)
MLPS = {'dense': parts.Mlp, 'experts': moe.Experts}

# axes of a weight below a block; a stacked one has 'layer' before them
BLOCK_AXES = adapters.adapted((
    (r'attention/[qkv]/kernel', 'embed heads'),
    (r'attention/[qkv]/bias', 'heads'),
    (r'attention/o/kernel', 'heads embed'),
    (r'mlp/(gate|up)/kernel', 'embed mlp'),
    (r'mlp/(gate|up)/bias', 'mlp'),
    (r'mlp/down/kernel', 'mlp embed'),
    (r'(attention/o|mlp/down)/bias', '-'),
    (r'(attention|mlp)(_post)?_norm/(scale|bias)', '-'),
    (r'attention/[qk]_norm/(scale|bias)', '-'),
)) + (
    (r'mlp/router/kernel', 'embed expert'),
    (r'mlp/experts/(gate|up)/kernel', 'expert embed mlp'),
    (r'mlp/experts/down/kernel', 'expert mlp embed'),
)
EMBED_AXES = (('tokens', 'vocab embed'), ('positions', '- embed'))
AXES = (
    *(('embed/' + pattern, axes) for pattern, axes in EMBED_AXES),
    (r'norm/(scale|bias)', '-'),
    ('head/kernel', 'embed vocab'),
    ('head/bias', 'vocab'),
    *((r'layers/\d+/' + pattern, 'layer ' + axes) for pattern, axes in BLOCK_AXES),
    *((r'rest/\d+/' + pattern, axes) for pattern, axes in BLOCK_AXES),
)


def transformer(
    *, vocab_size: int, width: int, layers: int, heads: int, kv_heads: int | None = None, head_dim: int | None = None,
    mlp_width: int, norm: str = 'rms', norm_eps: float = 1e-5, norm_offset: float = 0.0, post_norms: bool = False, qk_norm: bool = False,
    positions: str = 'rope', position_offset: int = 0, max_length: int, rope_theta: float = 10000.0,
    rotary: Mapping[str, Any] | None = None, activation: str = 'silu', gated: bool = True, attention_bias: bool | str = False,
    mlp_bias: bool = False, tied: bool = True, head_bias: bool = False, embed_scale: float | None = None,
    query_scale: float | None = None, score_cap: float | None = None, head_cap: float | None = None, parallel: str = 'none',
    experts: Mapping[str, Any] | None = None, mlps: Sequence[str] = ('dense',), dropout: float = 0.0, dtype: str = 'float32',
    remat: str = 'none', pattern: Sequence[str] = ('global',), window: int | None = None, init: str = 'normal',
    architecture: str | None = None) -> Model:
  """A decoder. Llama shapes are the defaults; GPT-2: norm='layer', positions='learned', activation='gelu_tanh', gated=False, biases.

  norm: 'rms' | 'layer', times norm_offset + its weight. post_norms: norms also behind both branches. qk_norm: norms on each query
  and key. parallel: 'none' | 'one_norm' | 'two_norms': attention and MLP read the same x.
  positions: 'rope' | 'learned' (position p reads row p + position_offset). rotary: share (of a head that turns), interleaved (pairs
  2c, 2c + 1), scaling (dict(kind=...), see `rotary.rates`), local_theta (of local layers, unscaled). activation: 'silu' |
  'gelu_tanh' | 'gelu' | 'relu'. attention_bias: True (q, k, v and o), 'qkv', 'o' or False. tied: the head is the embedding transposed.
  embed_scale: on token vectors. query_scale: on scores (default 1 / sqrt(head_dim)). score_cap, head_cap: x becomes
  cap * tanh(x / cap), of scores and logits. mlps: 'dense' | 'experts' layers in turn. experts: dict(count, chosen, width, normed), see
  `moe.Experts`. pattern: 'global' | 'local' layers in turn, local ones see `window` tokens back, their own included. max_length:
  longest text in tokens; learned positions past it repeat the last one.
  dtype: of matrix products; parameters, norms and softmaxes are float32. remat: 'none' | 'full' | 'dots' (matrix products kept).
  init: of fresh kernels, 'normal' (0.02) | 'fan_in' (1 / sqrt(inputs), which learns faster at small widths). architecture: the
  Hugging Face one to be written as; it changes nothing here.
  The same keywords give the identical Model (and so the same compiled functions); `model.config` holds them all, defaults
  resolved, in a mapping that hashes, so that a Model can be a static argument of jit; mappings in it are tuples of pairs.
  ValueError: keywords that contradict each other.
  """
  return _build(FrozenDict(keywords.resolve(locals())))


@functools.lru_cache(maxsize=None)
def _build(config: Mapping[str, Any]) -> Model:
  return Model(
      init=functools.partial(_init, config), apply=functools.partial(_apply, config), axes=AXES,
      cache=functools.partial(cache_lib.empty, config), ready=functools.partial(_ready, config), config=config)


def _shape(config: Mapping[str, Any]) -> tuple[int, int]:
  """(repeats of the pattern, layers of the remainder)."""
  return divmod(config['layers'], len(config['pattern']))


@functools.lru_cache(maxsize=None)
def _graph(config: Mapping[str, Any], part: str):
  """The structure of a module without its arrays; the module is whole again after nnx.merge with a plain nested dict."""
  return nnx.split(nnx.eval_shape(lambda: _make(config, part, jax.random.key(0))))[0]


def _make(config: Mapping[str, Any], part: str, key: Array) -> nnx.Module:
  """'embed', 'norm' or a block by the kind of its MLP."""
  rngs = nnx.Rngs(params=key)
  if part == 'norm':
    return parts.norm_of(config, config['width'], rngs)
  return parts.Embed(config, rngs=rngs) if part == 'embed' else parts.Block(config, MLPS[part], rngs=rngs)


def _params(config: Mapping[str, Any], part: str, key: Array) -> dict:
  return nnx.to_pure_dict(nnx.state(_make(config, part, key), nnx.Param))


def _init(config: Mapping[str, Any], key: Array) -> dict:
  """Fresh float32 parameters: normal 0.02; projections back into the residual stream 0.02 / sqrt(2 layers); biases 0, scales 1."""
  repeats, rest = _shape(config)
  places = len(config['pattern'])
  embed_key, head_key, layer_key = jax.random.split(key, 3)
  keys = jax.random.split(layer_key, config['layers'])
  params = dict(embed=_params(config, 'embed', embed_key), norm=_params(config, 'norm', key))
  block = [functools.partial(_params, config, mlp) for mlp in config['mlps']]
  if repeats:
    params['layers'] = {str(i): jax.vmap(block[i])(keys[i:repeats * places:places]) for i in range(places)}
  if rest:
    params['rest'] = {str(i): block[i](keys[repeats * places + i]) for i in range(rest)}
  if not config['tied']:
    shape = config['width'], config['vocab_size']
    params['head'] = dict(kernel=parts.spread(config, config['width']) * jax.random.normal(head_key, shape, jnp.float32))
    if config['head_bias']:
      params['head']['bias'] = jnp.zeros((config['vocab_size'],), jnp.float32)
  return params


def _apply(config: Mapping[str, Any], params, batch: Mapping[str, Any], *, key_B=None, cache=None, want: Sequence[str] = ()) -> dict:
  """The decoder over tokens [B, T] (segments, positions where present) -> out by name, see `core.types.Model`.

  Tokens of segment 0 are padding: any integer, and what comes out at them is finite and means nothing. `cache`: the T tokens
  take slots index .. index + T - 1 and see what the cache holds of their segment.
  """
  if unknown := set(want) - set(WANTS):
    raise ValueError(f'transformer: cannot give {sorted(unknown)}; it has {", ".join(WANTS)}')
  tokens = jnp.asarray(batch['tokens'])
  B, T = tokens.shape
  start = 0 if cache is None else cache['index']
  slots = start + jnp.arange(T, dtype=jnp.int32)
  segments = batch.get('segments')
  segments = jnp.ones((B, T), jnp.int32) if segments is None else jnp.asarray(segments)
  positions = batch.get('positions')
  positions = jnp.broadcast_to(slots[None], (B, T)) if positions is None else jnp.asarray(positions)
  if cache is None:
    look = functools.partial(attention_lib.look, segments, slots[None], slots)
  else:
    cache = {**cache, **cache_lib.places(cache, segments, positions)}
    look = functools.partial(attention_lib.look, segments, positions, slots, cache)
  sights = {kind: look(window=config['window'] if kind == 'local' else None) for kind in dict.fromkeys(config['pattern'])}
  turn = rotary.turns(config, positions) if config['positions'] == 'rope' else dict.fromkeys(config['pattern'])

  embed = mesh_lib.gather(params['embed'], EMBED_AXES)
  x = nnx.merge(_graph(config, 'embed'), embed)(jnp.where(segments > 0, tokens, 0), positions, config['dtype'])
  x = mesh_lib.constrain(parts.drop(x, key_B, config['dropout'], 0), 'batch', 'length', None)
  layers = _layers if 'layers' in params else _ready_layers
  x, kept, stored = layers(config, params, x, sights, turn, key_B, cache, 'layers' in want)
  hidden = nnx.merge(_graph(config, 'norm'), params['norm'])(x)
  head = dict(kernel=params['embed']['tokens'].T) if config['tied'] else params['head']
  out = dict(hidden=hidden, head=Head(head['kernel'], head.get('bias'), cap=config['head_cap']))
  if cache is not None:
    out['cache'] = {**cache, **stored, 'index': start + T}
  if 'layers' in want:
    out['layers'] = kept
  return out


def _layers(config, params, x, sights, turn, key_B, cache, keep):
  """All blocks, scanned -> (x, what left each block [n, B, T, D] if `keep`, the cache's arrays by name)."""
  repeats, rest = _shape(config)
  pattern = config['pattern']
  graphs = [_graph(config, mlp) for mlp in config['mlps']]

  def block(x, weights, held, place, number):
    store = _keep_nothing if held is None else functools.partial(cache_lib.store, held, cache['index'])
    weights = mesh_lib.gather(weights, BLOCK_AXES)      # inside the scan, so that no more than a layer is whole at a time
    kind = pattern[place]
    x, kept = adapters.merge(graphs[place], weights)(x, sights[kind], turn[kind], store, key_B, number)
    return mesh_lib.constrain(x, 'batch', 'length', None), kept

  def period(x, scanned):
    weights, held, repeat = scanned
    seen, stored = [], []
    for i in range(len(pattern)):
      x, new = block(x, weights[str(i)], held and held[i], i, repeat * len(pattern) + i)
      seen.append(x)
      stored.append(new)
    return x, (jnp.stack(seen) if keep else None, stored)

  if config['remat'] != 'none':
    period = jax.checkpoint(period, policy=parts.REMAT[config['remat']], prevent_cse=False)
  kept, held = [], cache and [cache_lib.layer(cache, number) for number in range(config['layers'])]
  stored = []
  if repeats:
    stacked = cache and [jax.tree.map(lambda *x: jnp.stack(x), *held[i:repeats * len(pattern):len(pattern)]) for i in range(len(pattern))]
    x, (seen, new) = jax.lax.scan(period, x, (params['layers'], stacked, jnp.arange(repeats)))
    if keep:
      kept.append(seen.reshape(-1, *x.shape))
    stored = [jax.tree.map(lambda x: x[repeat], each) for repeat in range(repeats) for each in new]
  for i in range(rest):
    number = repeats * len(pattern) + i
    x, new = block(x, params['rest'][str(i)], cache and held[number], i, number)
    stored.append(new)
    if keep:
      kept.append(x[None])
  return x, jnp.concatenate(kept) if keep else None, _by_name(stored)


def _ready_layers(config, params, x, sights, turn, key_B, cache, keep):
  """As `_layers`, one by one, over what `ready` gave: each reads its weights and its part of the cache where they lie."""
  pattern, graphs = config['pattern'], [_graph(config, mlp) for mlp in config['mlps']]
  kept, stored = [], []
  for number in range(config['layers']):
    store = _keep_nothing if cache is None else functools.partial(cache_lib.store, cache_lib.layer(cache, number), cache['index'])
    place = number % len(pattern)
    kind = pattern[place]
    x, new = adapters.merge(graphs[place], params['rest'][str(number)])(x, sights[kind], turn[kind], store, key_B, number)
    kept.append(x)
    stored.append(new)
  return x, jnp.stack(kept) if keep else None, _by_name(stored)


def _by_name(stored: Sequence[Mapping[str, Array] | None]) -> dict:
  return {name: tuple(each[name] for each in stored) for name in stored[0] or ()}


def _keep_nothing(k, v):
  return k, v, {}, None


def _ready(config: Mapping[str, Any], params) -> dict:
  """`params` as decoding reads them fastest: every layer an array of its own (in 'rest'), matrices in the dtype of the products."""
  repeats = _shape(config)[0] if 'layers' in params else 0
  places = len(config['pattern'])
  blocks = {str(repeats * places + int(i)): block for i, block in params.get('rest', {}).items()}
  for i, stack in params.get('layers', {}).items():
    blocks |= {str(repeat * places + int(i)): jax.tree.map(lambda x: x[repeat], stack) for repeat in range(repeats)}
  params = {**{name: part for name, part in params.items() if name != 'layers'}, 'rest': blocks}
  dtype = jnp.dtype(config['dtype'])
  return jax.tree.map(lambda x: x.astype(dtype) if x.ndim > 1 and x.dtype == jnp.float32 else x, params)
