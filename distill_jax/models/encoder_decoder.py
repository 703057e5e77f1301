"""An encoder and a decoder that reads it, with relative positions: T5 (v1.0, v1.1), Flan-T5 and CodeT5 (Raffel 2020, arXiv:1910.10683).

'layers/encoder/...' and 'layers/decoder/...' hold the weights of all blocks, stacked; the bias by relative position of the first block
('encoder/bias', 'decoder/bias') serves all of them. In a packed row segment s of the decoder reads segment s of the source.

Shapes: B rows, T tokens of this call, S slots that may be attended, M source tokens, D width, H heads, C width of a head, N buckets.
"""
import functools
from typing import Any, Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from flax.core import FrozenDict

from distill_jax.core import mesh as mesh_lib
from distill_jax.core.types import Head, Model
from distill_jax.models import attention, cache as cache_lib, layers as parts, relative

Array = jax.Array

NAME = 'encoder_decoder'
ACTIVATIONS = {'relu': jax.nn.relu, **parts.ACTIVATIONS}
REMAT = {
    'none': None,
    'full': jax.checkpoint_policies.nothing_saveable,
    'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
WANTS = ('layers', 'source_layers')
DECODER_SITES = 1000      # dropout keys of decoder blocks are folded with numbers from here on, those of the encoder with smaller ones

BLOCK_AXES = (
    (r'(attention|cross)/[qkv]/kernel', 'embed heads'),
    (r'(attention|cross)/o/kernel', 'heads embed'),
    (r'mlp/(gate|up)/kernel', 'embed mlp'),
    (r'mlp/down/kernel', 'mlp embed'),
    (r'(attention|cross|mlp)_norm/scale', '-'),
)
AXES = (
    ('embed/tokens', 'vocab embed'),
    (r'(encoder|decoder)/bias', '- -'),
    (r'(encoder|decoder)/norm/scale', '-'),
    ('head/kernel', 'embed vocab'),
    *((r'layers/(encoder|decoder)/' + pattern, 'layer ' + axes) for pattern, axes in BLOCK_AXES),
    *((r'rest/\d+/' + pattern, axes) for pattern, axes in BLOCK_AXES),
)


def encoder_decoder(
    *, vocab_size: int, width: int, layers: int, decoder_layers: int | None = None, heads: int, head_dim: int | None = None, mlp_width: int,
    norm_eps: float = 1e-6, activation: str = 'relu', gated: bool = False, buckets: int = 32, furthest: int = 128, tied: bool = True,
    scaled: bool | None = None, start_id: int = 0, dropout: float = 0.0, dtype: str = 'float32', remat: str = 'none') -> Model:
  """T5. The defaults are v1.0's (and CodeT5's); v1.1 and Flan-T5: activation='gelu_tanh', gated=True, tied=False.

  layers: of the encoder, and of the decoder unless decoder_layers says otherwise. activation: 'relu' | 'gelu_tanh' | 'gelu' | 'silu'.
  buckets, furthest: of relative positions, see `relative.bias`. tied: the head is the embedding transposed. scaled: logits are multiplied
  by width ** -0.5 (default: where tied). start_id: the token that decoding starts from (T5: the padding token). dtype, remat: as in
  `transformer`. There is no longest text: positions are relative.
  The same keywords give the identical Model. ValueError: keywords that contradict each other.
  """
  config = dict(
      vocab_size=vocab_size, width=width, layers=layers, decoder_layers=decoder_layers or layers, heads=heads,
      head_dim=head_dim or width // max(heads, 1), mlp_width=mlp_width, norm_eps=float(norm_eps), activation=activation, gated=gated,
      buckets=buckets, furthest=furthest, tied=tied, scaled=tied if scaled is None else scaled, start_id=start_id, dropout=float(dropout),
      dtype=jnp.dtype(dtype).name, remat=remat)
  return _build(FrozenDict(config))


def _check(config: Mapping[str, Any]) -> None:
  for name, allowed in dict(activation=tuple(ACTIVATIONS), remat=tuple(REMAT)).items():
    if config[name] not in allowed:
      raise ValueError(f'encoder_decoder: {name}={config[name]!r}; choose one of {", ".join(allowed)}')
  for name in ('vocab_size', 'width', 'layers', 'decoder_layers', 'heads', 'head_dim', 'mlp_width'):
    if config[name] < 1:
      raise ValueError(f'encoder_decoder: {name}={config[name]} must be at least 1')
  if config['buckets'] < 4 or config['buckets'] % 2 or config['furthest'] <= config['buckets'] // 2:
    raise ValueError(f'encoder_decoder: buckets={config["buckets"]} must be even and at least 4, furthest={config["furthest"]} more than half of it')
  if not 0 <= config['start_id'] < config['vocab_size']:
    raise ValueError(f'encoder_decoder: start_id={config["start_id"]} is no id of a vocabulary of {config["vocab_size"]}')
  if not 0.0 <= config['dropout'] < 1.0:
    raise ValueError(f'encoder_decoder: dropout={config["dropout"]} must be in [0, 1)')


@functools.lru_cache(maxsize=None)
def _build(config: Mapping[str, Any]) -> Model:
  _check(config)
  return Model(
      init=functools.partial(_init, config), apply=functools.partial(_apply, config), axes=AXES, cache=functools.partial(_cache, config),
      ready=functools.partial(_ready, config), config=config, name=NAME, start_id=config['start_id'])


class Attention(nnx.Module):
  """Projections of an attention whose scores are not divided by sqrt(C): the fresh queries are smaller instead."""

  def __init__(self, config: Mapping[str, Any], *, rngs: nnx.Rngs):
    width, inner, self.head_dim = config['width'], config['heads'] * config['head_dim'], config['head_dim']
    linear = functools.partial(parts.Linear, bias=False, rngs=rngs)
    self.q = linear(width, inner, spread=(width * self.head_dim) ** -0.5)
    self.k, self.v = (linear(width, inner, spread=width ** -0.5) for _ in 'kv')
    self.o = linear(inner, width, spread=inner ** -0.5)

  def queries(self, x_BTD: Array) -> Array:
    return mesh_lib.constrain(self._heads(self.q(x_BTD)), 'batch', 'heads', 'length', None)

  def keys(self, x_BSD: Array) -> tuple[Array, Array]:
    """Keys and values [B, H, S, C]."""
    return tuple(mesh_lib.constrain(self._heads(part(x_BSD)), 'batch', 'heads', None, None) for part in (self.k, self.v))

  def leave(self, x_BHTC: Array) -> Array:
    B, _, T, _ = x_BHTC.shape
    return self.o(x_BHTC.transpose(0, 2, 1, 3).reshape(B, T, -1))

  def _heads(self, x: Array) -> Array:
    return x.reshape(*x.shape[:2], -1, self.head_dim).transpose(0, 2, 1, 3)


class Mlp(nnx.Module):
  """down(act(up x)), or down(act(gate x) * up x) when gated."""

  def __init__(self, config: Mapping[str, Any], *, rngs: nnx.Rngs):
    width, inner, self.activation = config['width'], config['mlp_width'], config['activation']
    linear = functools.partial(parts.Linear, bias=False, rngs=rngs)
    self.gate = linear(width, inner, spread=width ** -0.5) if config['gated'] else None
    self.up = linear(width, inner, spread=width ** -0.5)
    self.down = linear(inner, width, spread=inner ** -0.5)

  def __call__(self, x: Array) -> Array:
    act = ACTIVATIONS[self.activation]
    return self.down(act(self.up(x)) if self.gate is None else act(self.gate(x)) * self.up(x))


def attend_held(q_BHTC: Array, k_BHSC: Array, v_BHSC: Array, *, mask_BTS: Array, bias_BHTS: Array, scales: tuple[Array, Array] | None = None) -> Array:
  """As `attention.attend`, for a few queries on a cache, where positions and so the bias differ from row to row."""
  scores = jnp.einsum('bhtc,bhsc->bhts', q_BHTC, k_BHSC, preferred_element_type=jnp.float32)
  if scales is not None:
    scores = scores * scales[0][:, :, None]
  shares = jax.nn.softmax(jnp.where(mask_BTS[:, None], scores + bias_BHTS, attention.FAR_BELOW), axis=-1)
  if scales is not None:
    shares = shares * scales[1][:, :, None]
  return jnp.einsum('bhts,bhsc->bhtc', shares.astype(v_BHSC.dtype), v_BHSC)


class Block(nnx.Module):
  """x + attention(norm x), in a decoder then x + cross(norm x), then x + mlp(norm x), with dropout on every branch."""

  def __init__(self, config: Mapping[str, Any], *, crossing: bool, rngs: nnx.Rngs):
    norm = functools.partial(parts.Norm, config['width'], kind='rms', eps=config['norm_eps'], rngs=rngs)
    self.dropout = config['dropout']
    self.attention_norm, self.attention = norm(), Attention(config, rngs=rngs)
    self.cross_norm, self.cross = (norm(), Attention(config, rngs=rngs)) if crossing else (None, None)
    self.mlp_norm, self.mlp = norm(), Mlp(config, rngs=rngs)

  def __call__(self, x: Array, attend: Callable, store: Callable, source, key_B: Array | None, number: Array | int) -> tuple[Array, Any]:
    """(x, what `store` kept). store(k, v) -> (all keys, all values, more of `attend`, what is kept); attend(q, k, v, **more).

    source: (attend, the states [B, M, D] of the source or its keys, values and more of `attend`), None in an encoder. number: which
    block this is; dropout keys are folded with it.
    """
    enter = lambda y: mesh_lib.constrain(y, 'batch', mesh_lib.apart('length', 'heads'), None)
    leave = lambda y, site: parts.drop(mesh_lib.constrain(y, 'batch', 'length', None), key_B, self.dropout, number, site)
    y = enter(self.attention_norm(x))
    k, v, more, kept = store(*self.attention.keys(y))
    x = x + leave(self.attention.leave(attend(self.attention.queries(y), k, v, **more)), 0)
    if source is not None:
      attend, said = source
      k, v, more = said if isinstance(said, tuple) else (*self.cross.keys(said), {})
      x = x + leave(self.cross.leave(attend(self.cross.queries(enter(self.cross_norm(x))), k, v, **more)), 1)
    return x + leave(self.mlp(enter(self.mlp_norm(x))), 2), kept


@functools.lru_cache(maxsize=None)
def _graph(config: Mapping[str, Any], crossing: bool):
  """The structure of a block without its arrays."""
  return nnx.split(nnx.eval_shape(lambda: Block(config, crossing=crossing, rngs=nnx.Rngs(params=jax.random.key(0)))))[0]


def _init(config: Mapping[str, Any], key: Array) -> dict:
  """Fresh float32 parameters with the spreads of T5: 1 for tokens, 1 / sqrt(inputs) for kernels, queries also by 1 / sqrt(C)."""
  keys = dict(zip(('embed', 'head', 'encoder', 'decoder', 'encoder_bias', 'decoder_bias'), jax.random.split(key, 6)))
  width, spread = config['width'], config['width'] ** -0.5
  normal = lambda name, shape, spread: spread * jax.random.normal(keys[name], shape, jnp.float32)
  block = lambda key, crossing: nnx.to_pure_dict(nnx.state(Block(config, crossing=crossing, rngs=nnx.Rngs(params=key)), nnx.Param))
  stack = lambda name, count: jax.vmap(lambda key: block(key, name == 'decoder'))(jax.random.split(keys[name], count))
  side = lambda name: dict(bias=normal(f'{name}_bias', (config['buckets'], config['heads']), spread), norm=dict(scale=jnp.ones((width,), jnp.float32)))
  params = dict(
      embed=dict(tokens=normal('embed', (config['vocab_size'], width), spread if config['tied'] and not config['scaled'] else 1.0)),
      encoder=side('encoder'), decoder=side('decoder'),
      layers=dict(encoder=stack('encoder', config['layers']), decoder=stack('decoder', config['decoder_layers'])))
  if not config['tied']:
    params['head'] = dict(kernel=normal('head', (width, config['vocab_size']), spread))
  return params


def _apply(config: Mapping[str, Any], params, batch: Mapping[str, Any], *, key_B=None, cache=None, want: Sequence[str] = ()) -> dict:
  """The encoder over source [B, M], the decoder over tokens [B, T] -> out by name, see `core.types.Model`; 'encoded' [B, M, D] too.

  Tokens of segment 0 are padding. cache: where the batch has a source, its keys and values enter it, and tokens may be absent; the T
  tokens take slots index .. index + T - 1 and see what the cache holds of their segment.
  """
  if unknown := set(want) - set(WANTS):
    raise ValueError(f'encoder_decoder: cannot give {sorted(unknown)}; it has {", ".join(WANTS)}')
  if 'source' not in batch and cache is None:
    raise ValueError("encoder_decoder: the batch has no 'source' (ids [B, M] that the encoder reads); data/rows.py renders it with start_id=")
  out, encoded = {}, None
  if 'source' in batch:
    encoded, seen = _encode(config, params, batch, key_B, 'source_layers' in want)
    out = dict(encoded=encoded, **({'source_layers': seen} if 'source_layers' in want else {}))
    if cache is not None:
      cache = _keep_source(config, params, cache, encoded, _segments(batch, 'source'))
  if 'tokens' not in batch:
    return {**out, 'cache': cache}
  x, kept, cache = _decode(config, params, batch, encoded, cache, key_B, 'layers' in want)
  weight_DV = params['embed']['tokens'].T if config['tied'] else params['head']['kernel']
  out |= dict(hidden=_norm(config, params['decoder'], x), head=Head(weight_DV, scale=config['width'] ** -0.5 if config['scaled'] else None))
  if cache is not None:
    out['cache'] = cache
  if 'layers' in want:
    out['layers'] = kept
  return out


def _segments(batch: Mapping[str, Any], name: str) -> Array:
  """Segments of 'tokens' or 'source'; all 1 where the batch does not say."""
  key = 'segments' if name == 'tokens' else 'source_segments'
  return jnp.asarray(batch[key]) if key in batch else jnp.ones(jnp.asarray(batch[name]).shape, jnp.int32)


def _embed(config, params, ids: Array, segments: Array, key_B, site: int) -> Array:
  tokens_VD = mesh_lib.gather(dict(tokens=params['embed']['tokens']), (('tokens', 'vocab embed'),))['tokens']
  x = jnp.take(tokens_VD, jnp.where(segments > 0, jnp.asarray(ids), 0), axis=0, mode='clip').astype(config['dtype'])
  return mesh_lib.constrain(parts.drop(x, key_B, config['dropout'], site), 'batch', 'length', None)


def _norm(config, side, x: Array) -> Array:
  return nnx.merge(_norm_graph(config['width'], config['norm_eps']), side['norm'])(x)


@functools.lru_cache(maxsize=None)
def _norm_graph(width: int, eps: float):
  return nnx.split(nnx.eval_shape(lambda: parts.Norm(width, kind='rms', eps=eps, rngs=nnx.Rngs(params=jax.random.key(0)))))[0]


def _attending(segments_BT: Array, slots_T: Array | None, held: Mapping[str, Any] | None = None, bias_HTS: Array | None = None) -> Callable:
  """`attention.attend` of tokens on themselves, or on `held`; nothing divides the scores. Inside a segment slots are as far apart as positions."""
  slots = jnp.broadcast_to(jnp.arange(segments_BT.shape[1])[None], segments_BT.shape)
  return functools.partial(attention.attend, sight=attention.look(segments_BT, slots, slots_T, held), scale=1.0, bias_HTS=bias_HTS)


def _across(segments_BT: Array, segments_BM: Array) -> Callable:
  return _attending(segments_BT, None, dict(segments=segments_BM, positions=jnp.zeros_like(segments_BM)))


def _back(T: int) -> Array:
  """Query minus slot of a row, [T, T]."""
  return jnp.arange(T)[:, None] - jnp.arange(T)[None]


def _encode(config, params, batch, key_B, keep: bool) -> tuple[Array, Array | None]:
  """(encoded [B, M, D], what left each block)."""
  segments = _segments(batch, 'source')
  bias = relative.bias(params['encoder']['bias'], _back(segments.shape[1]), furthest=config['furthest'], both=True)
  x = _embed(config, params, batch['source'], segments, key_B, 0)
  x, seen = _scan(config, params['layers']['encoder'], x, _attending(segments, None, bias_HTS=bias), None, key_B, 1, keep)
  return _norm(config, params['encoder'], x), seen


def _decode(config, params, batch, encoded, cache, key_B, keep: bool):
  """(what left the last block, what left each, the cache)."""
  segments = _segments(batch, 'tokens')
  T = segments.shape[1]
  x = _embed(config, params, batch['tokens'], segments, key_B, DECODER_SITES)
  bias = functools.partial(relative.bias, params['decoder']['bias'], furthest=config['furthest'], both=False)
  if cache is None:
    attend = _attending(segments, jnp.arange(T, dtype=jnp.int32), bias_HTS=bias(_back(T)))
    source = _across(segments, _segments(batch, 'source')), encoded
    if 'decoder' in params['layers']:
      return *_scan(config, params['layers']['decoder'], x, attend, source, key_B, DECODER_SITES + 1, keep), None
    sources, store = [source] * config['decoder_layers'], lambda number: _keep_nothing
  else:
    start = cache['index']
    slots = start + jnp.arange(T, dtype=jnp.int32)
    positions = jnp.asarray(batch['positions']) if 'positions' in batch else jnp.broadcast_to(slots[None], segments.shape)
    cache = {**cache, **cache_lib.places(cache, segments, positions)}
    before = slots[:, None] >= jnp.arange(cache['segments'].shape[1])[None]
    mine = (segments[:, :, None] == cache['segments'][:, None]) & (segments > 0)[:, :, None]
    attend = functools.partial(attend_held, mask_BTS=mine & before[None], bias_BHTS=bias(positions[:, :, None] - cache['positions'][:, None]))
    across = _across(segments, cache['source_segments'])
    sources = [(across, _held_source(cache, number, x.dtype)) for number in range(config['decoder_layers'])]
    store = lambda number: functools.partial(_store, cache_lib.layer(cache, number), start)
  x, seen, stored = _one_by_one(config, _blocks(config, params), x, attend, sources, store, key_B)
  if cache is not None:
    cache = {**cache, **{name: tuple(each[name] for each in stored) for name in stored[0]}, 'index': cache['index'] + T}
  return x, jnp.stack(seen) if keep else None, cache


def _scan(config, stack, x, attend, source, key_B, first: int, keep: bool) -> tuple[Array, Array | None]:
  """All blocks of one side -> (x, what left each [n, B, T, D] if `keep`). first: the number of the first block."""
  graph, count = _graph(config, source is not None), jax.tree.leaves(stack)[0].shape[0]

  def block(x, scanned):
    weights, number = scanned
    weights = mesh_lib.gather(weights, BLOCK_AXES)      # inside the scan, so that no more than a layer is whole at a time
    x = mesh_lib.constrain(nnx.merge(graph, weights)(x, attend, _keep_nothing, source, key_B, number)[0], 'batch', 'length', None)
    return x, x if keep else None

  if config['remat'] != 'none':
    block = jax.checkpoint(block, policy=REMAT[config['remat']], prevent_cse=False)
  return jax.lax.scan(block, x, (stack, first + jnp.arange(count)))


def _one_by_one(config, blocks: Sequence[Any], x, attend, sources, store, key_B):
  """All blocks of the decoder, each with its own part of the cache -> (x, what left each, what each stored)."""
  graph, seen, stored = _graph(config, True), [], []
  for number, weights in enumerate(blocks):
    x, kept = nnx.merge(graph, weights)(x, attend, store(number), sources[number], key_B, DECODER_SITES + 1 + number)
    seen.append(x)
    stored.append(kept)
  return x, seen, stored


def _store(held, start: Array, k, v):
  """As `cache.store`, without the prefixes that rows of a decoder may share: what prompts begin with is the encoder's here."""
  k, v, more, kept = cache_lib.store(held, start, k, v)
  return k, v, {name: value for name, value in more.items() if name != 'shared'}, kept


def _keep_nothing(k, v):
  return k, v, {}, None


def _blocks(config, params) -> list:
  """The weights of each decoder block, of params as they are trained or as `_ready` gives them."""
  if 'decoder' not in params['layers']:
    return [params['rest'][str(number)] for number in range(config['decoder_layers'])]
  return [jax.tree.map(lambda x: x[number], params['layers']['decoder']) for number in range(config['decoder_layers'])]


def _ready(config: Mapping[str, Any], params) -> dict:
  """`params` as decoding reads them fastest: every decoder block by itself (in 'rest'), matrices in the dtype of the products."""
  blocks = {str(number): block for number, block in enumerate(_blocks(config, params))}
  params = {**params, 'layers': dict(encoder=params['layers']['encoder']), 'rest': blocks}
  narrow = lambda x: x.astype(config['dtype']) if x.ndim > 1 and x.dtype == jnp.float32 else x
  return {name: part if name in ('encoder', 'decoder') else jax.tree.map(narrow, part) for name, part in params.items()}      # biases are added in float32


def _cache(config: Mapping[str, Any], rows: int, length: int, dtype=None, *, source: int = 1) -> dict:
  """An empty cache: that of a decoder, see `cache.empty`, and the keys and values of `source` slots of the encoder.

  cross_k, cross_v: a tuple over layers of [rows, H, source, C] (int8: with their scales), source_segments int32 [rows, source].
  """
  held = lambda slots: cache_lib.empty(dict(layers=config['decoder_layers'], kv_heads=config['heads'], head_dim=config['head_dim'],
                                            dtype=config['dtype']), rows, slots, dtype)
  own, across = held(length), held(source)
  names = [name for name in cache_lib.NAMES if name in across]
  return {**{name: own[name] for name in (*names, 'segments', 'positions', 'index')}, **{f'cross_{name}': across[name] for name in names},
          'source_segments': across['segments']}


def _keep_source(config, params, cache, encoded: Array, segments_BM: Array) -> dict:
  """The cache with the keys and values of a source, which may be shorter than there are slots."""
  kept: dict[str, list] = {name: [] for name in cache if name.startswith('cross_')}
  for weights in _blocks(config, params):
    k, v = nnx.merge(_graph(config, True), weights).cross.keys(encoded)
    for name, new in dict(cross_k=k, cross_v=v).items():
      if f'{name}_scale' in kept:
        new, scale = cache_lib.quantise(new)
        kept[f'{name}_scale'].append(scale)
      kept[name].append(new)
  put = lambda held, new: jax.lax.dynamic_update_slice(jnp.zeros_like(held), new.astype(held.dtype), (0,) * held.ndim)
  return {**cache, **{name: tuple(map(put, cache[name], new)) for name, new in kept.items()},
          'source_segments': put(cache['source_segments'], segments_BM)}


def _held_source(cache, number: int, dtype) -> tuple[Array, Array, dict]:
  """Keys and values of the source that a block reads, and more of `attend`."""
  k, v = (cache[name][number].astype(dtype) for name in ('cross_k', 'cross_v'))
  more = dict(scales=tuple(cache[name][number] for name in ('cross_k_scale', 'cross_v_scale'))) if 'cross_k_scale' in cache else {}
  return k, v, more
