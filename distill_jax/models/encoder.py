"""An encoder with post-norm blocks and learned positions: BERT (Devlin 2018, arXiv:1810.04805), RoBERTa (Liu 2019, arXiv:1907.11692),
DistilBERT (Sanh 2019, arXiv:1910.01108), MiniLM, with the heads they are published with.

'layers/...' holds the weights of all blocks, stacked. Every token sees the tokens of its segment, both ways.

Shapes: B rows, T tokens of a row, E examples of a row, D width, H heads, C width of a head.
"""
import functools
from typing import Any, Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from flax.core import FrozenDict

from distill_jax.core import mesh as mesh_lib
from distill_jax.core.types import Head, Model
from distill_jax.models import attention, layers as parts

Array = jax.Array

NAME = 'encoder'
ACTIVATIONS = {'relu': jax.nn.relu, 'tanh': jnp.tanh, **parts.ACTIVATIONS}
REMAT = {
    'none': None,
    'full': jax.checkpoint_policies.nothing_saveable,
    'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
SENTENCES = (None, 'mean', 'cls', 'max')
WANTS = ('layers',)
SPREAD = 0.02      # standard deviation of every fresh matrix

BLOCK_AXES = (
    (r'attention/[qkv]/kernel', 'embed heads'),
    (r'attention/[qkv]/bias', 'heads'),
    (r'attention/o/kernel', 'heads embed'),
    (r'mlp/up/kernel', 'embed mlp'),
    (r'mlp/up/bias', 'mlp'),
    (r'mlp/down/kernel', 'mlp embed'),
    (r'(attention/o|mlp/down)/bias', '-'),
    (r'(attention|mlp)_norm/(scale|bias)', '-'),
)
AXES = (
    ('embed/tokens', 'vocab embed'),
    ('embed/(positions|types)', '- embed'),
    (r'embed/norm/(scale|bias)', '-'),
    (r'(transform|pooler|classes)/kernel', 'embed -'),
    (r'(transform|pooler|classes)/bias', '-'),
    (r'transform/norm/(scale|bias)', '-'),
    ('head/bias', 'vocab'),
    *(('layers/' + pattern, 'layer ' + axes) for pattern, axes in BLOCK_AXES),
)


def encoder(
    *, vocab_size: int, width: int, layers: int, heads: int, mlp_width: int, max_length: int, offset: int = 0, types: int = 0,
    norm_eps: float = 1e-12, activation: str = 'gelu', lm_head: bool = False, pooler: str | None = None, classes: int | None = None,
    sentence: str | None = None, normalise: bool = False, dropout: float = 0.0, dtype: str = 'float32', remat: str = 'none') -> Model:
  """An encoder. BERT: types=2; RoBERTa: offset=2, types=1, norm_eps=1e-5; DistilBERT: types=0, pooler='relu' for classes.

  max_length: longest text; positions begin at `offset` of a table of max_length + offset. types: of tokens (batch['types'], default 0).
  lm_head: out['hidden'] is what the masked-LM head reads (transform, activation, norm), out['head'] the embedding transposed with a bias.
  pooler: None | 'tanh' | 'relu', the activation of out['pooled'] [B, E, D], made of the first token of each example; classes: how many
  out['classes'] [B, E, classes] tells apart. sentence: out['sentence'] [B, E, D], the 'mean' or 'max' of an example's tokens or its first
  ('cls'), of length 1 where `normalise`. out['encoded'] [B, T, D] is always there. E is that of batch['examples'], else 1.
  ValueError: keywords that contradict each other.
  """
  config = dict(
      vocab_size=vocab_size, width=width, layers=layers, heads=heads, mlp_width=mlp_width, max_length=max_length, offset=offset, types=types,
      norm_eps=float(norm_eps), activation=activation, lm_head=lm_head, pooler=pooler, classes=classes, sentence=sentence,
      normalise=normalise, dropout=float(dropout), dtype=jnp.dtype(dtype).name, remat=remat)
  return _build(FrozenDict(config))


def _check(config: Mapping[str, Any]) -> None:
  choices = dict(activation=('relu', *parts.ACTIVATIONS), remat=tuple(REMAT), pooler=(None, 'tanh', 'relu'), sentence=SENTENCES)
  for name, allowed in choices.items():
    if config[name] not in allowed:
      raise ValueError(f'encoder: {name}={config[name]!r}; choose one of {", ".join(map(str, allowed))}')
  for name in ('vocab_size', 'width', 'layers', 'heads', 'mlp_width', 'max_length'):
    if config[name] < 1:
      raise ValueError(f'encoder: {name}={config[name]} must be at least 1')
  if config['width'] % config['heads']:
    raise ValueError(f'encoder: heads={config["heads"]} does not divide width={config["width"]}')
  if config['classes'] is not None and (config['pooler'] is None or config['classes'] < 1):
    raise ValueError(f"encoder: classes={config['classes']} needs pooler='tanh' or 'relu' and at least one class")
  if config['normalise'] and config['sentence'] is None:
    raise ValueError("encoder: normalise=True needs sentence='mean', 'cls' or 'max'")
  if not 0.0 <= config['dropout'] < 1.0:
    raise ValueError(f'encoder: dropout={config["dropout"]} must be in [0, 1)')


@functools.lru_cache(maxsize=None)
def _build(config: Mapping[str, Any]) -> Model:
  _check(config)
  return Model(init=functools.partial(_init, config), apply=functools.partial(_apply, config), axes=AXES, cache=_no_cache, config=config, name=NAME)


def _no_cache(*args, **keywords):
  raise ValueError('this model is an encoder: it writes no text. Name a transformer or an encoder_decoder')


class Block(nnx.Module):
  """norm(x + attention x), then norm(x + mlp x), with dropout on both branches."""

  def __init__(self, config: Mapping[str, Any], *, rngs: nnx.Rngs):
    width, inner = config['width'], config['mlp_width']
    linear = functools.partial(parts.Linear, bias=True, rngs=rngs, spread=SPREAD)
    norm = functools.partial(parts.Norm, width, kind='layer', eps=config['norm_eps'], rngs=rngs)
    self.heads, self.dropout, self.activation = config['heads'], config['dropout'], config['activation']
    self.attention = nnx.Dict({name: linear(width, width) for name in 'qkvo'})
    self.attention_norm = norm()
    self.mlp = nnx.Dict(dict(up=linear(width, inner), down=linear(inner, width)))
    self.mlp_norm = norm()

  def __call__(self, x_BTD: Array, sight: attention.Sight, key_B: Array | None, number: Array | int) -> Array:
    enter = lambda y: mesh_lib.constrain(y, 'batch', mesh_lib.apart('length', 'heads'), None)
    leave = lambda y, site: parts.drop(mesh_lib.constrain(y, 'batch', 'length', None), key_B, self.dropout, number, site)
    y, (B, T, D) = enter(x_BTD), x_BTD.shape
    heads = lambda name, length: mesh_lib.constrain(
        self.attention[name](y).reshape(B, T, self.heads, -1).transpose(0, 2, 1, 3), 'batch', 'heads', length, None)
    mixed = attention.attend(heads('q', 'length'), heads('k', None), heads('v', None), sight)
    x = self.attention_norm(x_BTD + leave(self.attention['o'](mixed.transpose(0, 2, 1, 3).reshape(B, T, D)), 0))
    inner = ACTIVATIONS[self.activation](self.mlp['up'](enter(x)))
    return self.mlp_norm(x + leave(self.mlp['down'](inner), 1))


class Transform(nnx.Module):
  """What stands between the last block and the table of the masked-LM head: a linear map, the activation, a norm."""

  def __init__(self, config: Mapping[str, Any], *, rngs: nnx.Rngs):
    linear = parts.Linear(config['width'], config['width'], bias=True, rngs=rngs, spread=SPREAD)
    self.activation, self.kernel, self.bias = config['activation'], linear.kernel, linear.bias
    self.norm = parts.Norm(config['width'], kind='layer', eps=config['norm_eps'], rngs=rngs)

  def __call__(self, x: Array) -> Array:
    return self.norm(ACTIVATIONS[self.activation](_map(dict(kernel=self.kernel[...], bias=self.bias[...]), x)))


def _norm(config: Mapping[str, Any], *, rngs: nnx.Rngs) -> nnx.Module:
  return parts.Norm(config['width'], kind='layer', eps=config['norm_eps'], rngs=rngs)


def _map(weights: Mapping[str, Array], x: Array) -> Array:
  y = jnp.einsum('...i,io->...o', x, weights['kernel'].astype(x.dtype))
  return y + weights['bias'].astype(x.dtype).reshape((1,) * (y.ndim - 1) + (-1,))


def _params(kind, config, key: Array) -> dict:
  return nnx.to_pure_dict(nnx.state(kind(config, rngs=nnx.Rngs(params=key)), nnx.Param))


@functools.lru_cache(maxsize=None)
def _graph(kind, config: Mapping[str, Any]):
  """The structure of a module without its arrays."""
  return nnx.split(nnx.eval_shape(lambda: kind(config, rngs=nnx.Rngs(params=jax.random.key(0)))))[0]


def _init(config: Mapping[str, Any], key: Array) -> dict:
  """Fresh float32 parameters: matrices normal 0.02, biases 0, scales 1."""
  embed_key, block_key, transform_key, pooler_key, classes_key = jax.random.split(key, 5)
  width, rows = config['width'], dict(tokens=config['vocab_size'], positions=config['max_length'] + config['offset'], types=config['types'])
  normal = lambda key, *shape: SPREAD * jax.random.normal(key, shape, jnp.float32)
  tables = {name: normal(jax.random.fold_in(embed_key, i), count, width) for i, (name, count) in enumerate(rows.items()) if count}
  linear = lambda key, wide: dict(kernel=normal(key, width, wide), bias=jnp.zeros((wide,), jnp.float32))
  params = dict(embed=dict(tables, norm=_params(_norm, config, key)),
                layers=jax.vmap(functools.partial(_params, Block, config))(jax.random.split(block_key, config['layers'])))
  if config['lm_head']:
    params |= dict(transform=_params(Transform, config, transform_key), head=dict(bias=jnp.zeros((config['vocab_size'],), jnp.float32)))
  if config['pooler'] is not None:
    params['pooler'] = linear(pooler_key, width)
  if config['classes'] is not None:
    params['classes'] = linear(classes_key, config['classes'])
  return params


def _apply(config: Mapping[str, Any], params, batch: Mapping[str, Any], *, key_B=None, cache=None, want: Sequence[str] = ()) -> dict:
  """The encoder over tokens [B, T] (segments, positions, types where present) -> out by name, see `encoder`. Segment 0 is padding."""
  if unknown := set(want) - set(WANTS):
    raise ValueError(f'encoder: cannot give {sorted(unknown)}; it has {", ".join(WANTS)}')
  if cache is not None:
    _no_cache()
  tokens = jnp.asarray(batch['tokens'])
  segments = jnp.asarray(batch['segments']) if 'segments' in batch else jnp.ones(tokens.shape, jnp.int32)
  x = mesh_lib.constrain(parts.drop(_embed(config, params, batch, tokens, segments), key_B, config['dropout'], 0), 'batch', 'length', None)
  sight = attention.look(segments, jnp.broadcast_to(jnp.arange(tokens.shape[1])[None], tokens.shape), None)
  x, seen = _blocks(config, params, x, sight, key_B, 'layers' in want)
  out = dict(encoded=x, hidden=x)
  if config['lm_head']:
    out |= dict(hidden=nnx.merge(_graph(Transform, config), params['transform'])(x),
                head=Head(params['embed']['tokens'].T, params['head']['bias']))
  count = batch['examples'].shape[1] if 'examples' in batch else 1
  mine = segments[:, None] == (1 + jnp.arange(count, dtype=jnp.int32))[None, :, None]
  if config['pooler'] is not None:
    out['pooled'] = ACTIVATIONS[config['pooler']](_map(params['pooler'], _first(x, mine)))
  if config['classes'] is not None:
    out['classes'] = _map(params['classes'], out['pooled']).astype(jnp.float32)
  if config['sentence'] is not None:
    out['sentence'] = _sentence(config, x, mine)
  return {**out, 'layers': seen} if 'layers' in want else out


def _embed(config, params, batch, tokens: Array, segments: Array) -> Array:
  T, embed = tokens.shape[1], params['embed']
  tables = {name: table for name, table in embed.items() if name != 'norm'}
  tables = mesh_lib.gather(tables, (('tokens', 'vocab embed'), ('positions|types', '- embed')))
  rows = lambda name, ids: jnp.take(tables[name], ids, axis=0, mode='clip').astype(config['dtype'])
  positions = jnp.asarray(batch['positions']) if 'positions' in batch else jnp.broadcast_to(jnp.arange(T)[None], tokens.shape)
  x = rows('tokens', jnp.where(segments > 0, tokens, 0)) + rows('positions', positions + config['offset'])
  if config['types']:
    x = x + rows('types', jnp.asarray(batch['types']) if 'types' in batch else jnp.zeros_like(tokens))
  return nnx.merge(_graph(_norm, config), embed['norm'])(x)


def _blocks(config, params, x, sight, key_B, keep: bool) -> tuple[Array, Array | None]:
  """All blocks, scanned -> (x, what left each [n, B, T, D] if `keep`)."""
  graph = _graph(Block, config)

  def block(x, scanned):
    weights, number = scanned
    x = nnx.merge(graph, mesh_lib.gather(weights, BLOCK_AXES))(x, sight, key_B, number)
    x = mesh_lib.constrain(x, 'batch', 'length', None)
    return x, x if keep else None

  if config['remat'] != 'none':
    block = jax.checkpoint(block, policy=REMAT[config['remat']], prevent_cse=False)
  return jax.lax.scan(block, x, (params['layers'], 1 + jnp.arange(config['layers'])))


def _first(x_BTD: Array, mine_BET: Array) -> Array:
  """The first token of each example, [B, E, D]; that of the row where there is no example."""
  return jnp.take_along_axis(x_BTD, jnp.argmax(mine_BET, axis=2)[:, :, None], axis=1)


def _sentence(config, x_BTD: Array, mine_BET: Array) -> Array:
  """float32 [B, E, D], one vector an example; 0 where there is none."""
  x, kind = x_BTD.astype(jnp.float32), config['sentence']
  if kind == 'mean':
    total = jnp.einsum('bet,btd->bed', mine_BET.astype(jnp.float32), x, precision='highest')
    y = total / jnp.maximum(jnp.sum(mine_BET, axis=2), 1)[:, :, None]
  elif kind == 'cls':
    y = _first(x, mine_BET)
  else:
    y = jax.vmap(lambda mine_BT: jnp.max(jnp.where(mine_BT[:, :, None], x, -jnp.inf), axis=1), 1, 1)(mine_BET)
  y = jnp.where(jnp.any(mine_BET, axis=2)[:, :, None], y, 0.0)
  return y / jnp.maximum(jnp.sqrt(jnp.sum(jnp.square(y), axis=2, keepdims=True)), 1e-12) if config['normalise'] else y
