"""Examples: a small case of every method, and two methods that live here only and pin what the core promises to later ones.

`contrast` has a queue and a slow copy of the student in its memory, and members on a second axis of each row.
`reinforce` trains two roles, draws its own targets in `rollout`, and is paid on the host.

Shape suffixes: B rows, L tokens of a row, E examples of a row, G members of a row, D width, Q queue.
"""
import functools
import types
from typing import Any, Callable, Mapping, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from distill_jax.compress.lora import lora
from distill_jax.core import keys, tree
from distill_jax.core.mean import Mean
from distill_jax.core.types import Method, Model, Role
from distill_jax.data import rows as rows_lib
from distill_jax.decode import score
from distill_jax.losses import tokens as token_losses
from distill_jax.methods import METHODS
from distill_jax.methods.sft import penalty, row_keys
from distill_jax.methods.uld import common_spans
from distill_jax.models import MODELS
from distill_jax.train.optim import Optimizer

VOCAB, WIDTH, LENGTH, ROWS, MEMBERS, SOURCE = 32, 16, 24, 16, 4, 36

SHAPES = {
    'llama': dict(kv_heads=1),
    't5': dict(gated=True, activation='gelu_tanh', tied=False, buckets=8, furthest=10),
    'bert': dict(types=0, max_length=32),
    'gpt2': dict(norm='layer', positions='learned', activation='gelu_tanh', gated=False, attention_bias=True, mlp_bias=True),
}

def model(shape: str = 'llama', *, dtype: str = 'float32', dropout: float = 0.1, **overrides):
  """A decoder of 2 layers of width 16. 'lora': the Llama shape with adapters on most of its maps."""
  if shape == 'lora':
    return lora(model('llama', dtype=dtype, dropout=dropout, **overrides), rank=2, alpha=8, targets=('attention/[qvo]', 'mlp/.*'))
  settings = dict(vocab_size=VOCAB, width=WIDTH, layers=2, heads=2, mlp_width=32, dtype=dtype, dropout=dropout)
  if shape == 't5':
    return MODELS['encoder_decoder'](**(settings | SHAPES[shape] | overrides))
  if shape == 'bert':
    return MODELS['encoder'](**(settings | SHAPES[shape] | overrides))
  settings['max_length'] = 32
  return MODELS['transformer'](**(settings | SHAPES[shape] | overrides))


def role(seed: int, shape: str = 'llama', **overrides) -> Role:
  """A role with params whose outputs differ clearly from uniform and from other seeds."""
  made = model(shape, **overrides)
  rng = np.random.default_rng(seed)
  params = {}
  for path, leaf in tree.flatten(jax.eval_shape(made.init, jax.random.key(0))).items():
    noise = rng.standard_normal(leaf.shape).astype(leaf.dtype)
    params[path] = 1 + 0.1 * noise if path.endswith('scale') else 0.1 * noise
  params = tree.unflatten(params)
  return Role(made, None, params, f'{seed:016x}')


def texts(rng: np.random.Generator, count: int, *, shortest: int = 4, longest: int = 12, reward: bool = False,
          source: bool = False) -> list[dict[str, Any]]:
  """`count` tokenised examples with ragged lengths and weights 0, 0.5, 1 and 2; the first target of each is a prompt's."""
  out = []
  for _ in range(count):
    n = int(rng.integers(shortest, longest + 1))
    whole = rng.integers(0, VOCAB, n + 1).astype(np.int32)
    weights = rng.choice(np.asarray([0, 0.5, 1, 2], np.float32), n)
    weights[0], weights[-1] = 0.0, 1.0
    more = dict(reward=np.float32(rng.normal())) if reward else {}
    if source:
      more['source'] = rng.integers(0, VOCAB, int(rng.integers(1, longest + 1))).astype(np.int32)
    out.append(dict(id=keys.content_id(whole.tolist(), len(out)), tokens=whole[:-1], targets=whole[1:], weights=weights, **more))
  return out


class Example(NamedTuple):
  """One method on a small case. roles carry their params; batch: numpy; plain: examples behind the batch, where rows are packed texts."""
  method: Method
  roles: Mapping[str, Role]
  trained: tuple[str, ...]
  batch: Mapping[str, Any]
  keywords: Mapping[str, Any]
  plain: list[dict[str, Any]] | None = None

  @property
  def params(self) -> dict[str, Any]:
    return {name: one.params for name, one in self.roles.items()}


def packed_batch(key: jax.Array, *, reward: bool = False, length: int = LENGTH, source: bool = False) -> tuple[list[dict[str, Any]], dict[str, Any]]:
  """(examples, batch of ROWS packed rows)."""
  rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
  made = texts(rng, ROWS * 5, reward=reward, source=source)
  sources = dict(source_lengths=[len(e['source']) for e in made], source_length=SOURCE) if source else {}
  bins = rows_lib.pack([len(e['tokens']) for e in made], length=length, most=3, **sources)[:ROWS]
  chosen = [made[i] for members in bins for i in members]
  numbers = iter(range(len(chosen)))
  packed = rows_lib.Rows(chosen, [[next(numbers) for _ in members] for members in bins], length=length, source_length=SOURCE if source else None)
  return chosen, packed.batch(range(len(packed)))


def unpacked_batch(key: jax.Array, *, length: int = LENGTH) -> tuple[list[dict[str, Any]], dict[str, Any]]:
  """(examples, batch of ROWS rows of one example each)."""
  made = texts(np.random.default_rng(np.asarray(jax.random.key_data(key))), ROWS)
  return made, rows_lib.unpacked(made, length=length).batch(range(ROWS))


def _sft(key, keywords, **shape):
  roles = {'student': role(1, **shape)}
  plain, batch = packed_batch(key, source=shape['shape'] == 't5')
  return Example(METHODS['sft'](roles, **keywords), roles, ('student',), batch, keywords, plain)


def _logit_kd(key, keywords, **shape):
  roles = {'student': role(1, **shape), 'teacher': role(2, **shape)}
  plain, batch = packed_batch(key, source=shape['shape'] == 't5')
  return Example(METHODS['logit_kd'](roles, **keywords), roles, ('student',), batch, keywords, plain)


ENDS = types.SimpleNamespace(eos_id=1, pad_id=0, bos_id=None, vocab_size=VOCAB)      # the text side that a rollout needs


def _gkd(key, keywords, **shape):
  """Rows of one example each, which rollouts can continue."""
  roles = {'student': role(1, **shape)._replace(text=ENDS), 'teacher': role(2, **shape)}
  keywords = {'max_new_tokens': 8, **keywords}
  plain, batch = packed_batch(key, source=shape['shape'] == 't5') if keywords.get('on_policy') == 0 else unpacked_batch(key)
  return Example(METHODS['gkd'](roles, **keywords), roles, ('student',), batch, keywords, plain)


def _minillm(key, keywords, **shape):
  """Rows as a rollout leaves them, which rollouts can continue."""
  roles = {'student': role(1, **shape)._replace(text=ENDS), 'teacher': role(2, **shape)}
  keywords = {'max_new_tokens': 8, **keywords}
  rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
  plain, batch = unpacked_batch(key)
  draw = lambda low, high: rng.uniform(low, high, batch['weights'].shape).astype(np.float32)
  batch = {**batch, 'importance': draw(0.5, 1.5), 'returns': draw(-1, 1), 'old_logps': draw(-3.6, -3.4)}
  return Example(METHODS['minillm'](roles, **keywords), roles, ('student',), batch, keywords, plain)


def spanned(rng: np.random.Generator, plain: list[dict[str, Any]], *, most: int = 16, vocabulary: int = VOCAB + 8) -> list[dict[str, Any]]:
  """The examples with a teacher's tokens of some other vocabulary and length, and random common spans."""
  out = []
  for one in plain:
    n, m = len(one['tokens']), int(rng.integers(5, most + 1))
    size = 2 * (m + n)
    cuts = lambda count: sorted({*rng.choice(np.arange(1, size), count - 1, replace=False).tolist(), size})
    ours, theirs = cuts(int(rng.integers(2, n + 1)) if n > 2 else 2), cuts(int(rng.integers(2, m)))
    shared = rng.permutation(ours)[:2]      # so that there are spans in the middle
    theirs = sorted({*theirs[:-len(shared) - 1], *shared.tolist(), size})
    ours_in, theirs_in = common_spans(ours, theirs)
    more = dict(spans=np.zeros(n, np.int32), **{f'teacher_{name}': np.zeros(most, np.int32) for name in ('tokens', 'targets', 'segments', 'spans')})
    whole, m = rng.integers(0, vocabulary, most + 1), max(m, len(theirs))
    more['spans'][n - len(ours):] = ours_in
    more['teacher_tokens'][:m], more['teacher_targets'][:m], more['teacher_segments'][:m] = whole[:m], whole[1:m + 1], 1
    more['teacher_spans'][m - len(theirs):m] = theirs_in
    out.append({**one, **more})
  return out


def _uld(key, keywords, **shape):
  """A teacher of another vocabulary."""
  roles = {'student': role(1, **shape), 'teacher': role(2, **{**shape, 'vocab_size': VOCAB + 8})}
  rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
  plain = spanned(rng, texts(rng, ROWS))
  return Example(METHODS['uld'](roles, **keywords), roles, ('student',), rows_lib.unpacked(plain, length=LENGTH).batch(range(ROWS)), keywords, plain)


def _icl(key, keywords, **shape):
  """Episodes and plain texts in one row, told apart token by token; weights of episodes are those of any example."""
  roles = {'student': role(1, **shape), 'teacher': role(2, **shape)}
  rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
  made = [{**one, 'plain': np.full(len(one['tokens']), n % 3 == 0, np.int32)} for n, one in enumerate(texts(rng, ROWS * 5))]
  bins = rows_lib.pack([len(e['tokens']) for e in made], length=LENGTH, most=3)[:ROWS]
  chosen = [made[i] for members in bins for i in members]
  numbers = iter(range(len(chosen)))
  packed = rows_lib.Rows(chosen, [[next(numbers) for _ in members] for members in bins], length=LENGTH)
  return Example(METHODS['icl'](roles, **keywords), roles, ('student',), packed.batch(range(len(packed))), keywords, chosen)


def _contrast(key, keywords, **shape):
  roles = {'student': role(1, **shape)}
  return Example(contrast(roles, **keywords), roles, ('student',), grouped_batch(key), keywords)


def _retrieve(key, keywords, **shape):
  """Rows of members, each with two good and two bad demonstrations; the last member of some rows is absent."""
  roles = {'student': role(1, **shape), 'prompt': role(2, **shape)}
  batch = grouped_batch(key, length=8)
  rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
  B, G, M = ROWS, MEMBERS, 10
  lengths = rng.integers(2, M + 1, (B, G, 2, 2))
  more = dict(examples=rng.integers(0, 2 ** 32, (B, G, 2), dtype=np.uint32), contexts=rng.integers(0, VOCAB, (B, G, 2, 2, M)).astype(np.int32),
              contexts_segments=(np.arange(M) < lengths[..., None]).astype(np.int32))
  return Example(METHODS['retrieve'](roles, **keywords), roles, ('student', 'prompt'), {**batch, **more}, keywords)


def _reinforce(key, keywords, **shape):
  roles = {'student': role(1, **shape), 'critic': role(2, **shape), 'reference': role(3, **shape)}
  plain, batch = packed_batch(key, reward=True)
  return Example(reinforce(roles, **keywords), roles, ('student', 'critic'), batch, keywords, plain)


EXAMPLES: Mapping[str, Callable[..., Example]] = dict(sft=_sft, logit_kd=_logit_kd, gkd=_gkd, minillm=_minillm, uld=_uld, icl=_icl, contrast=_contrast, reinforce=_reinforce, retrieve=_retrieve)


def example(name: str, key: jax.Array, *, shape: str = 'llama', dtype: str = 'float32', dropout: float = 0.1, **keywords) -> Example:
  """The example of a method: roles, a batch of 16 rows, the method made with `keywords`."""
  return EXAMPLES[name](key, keywords, shape=shape, dtype=dtype, dropout=dropout)


def recorder(rate: float = 0.1) -> Optimizer:
  """Gradient descent whose state is the last gradient: what a law compares."""
  def update(grads, state, params=None):
    return jax.tree.map(lambda g: -rate * g, grads), grads
  return Optimizer(optax.GradientTransformation(lambda params: jax.tree.map(jnp.zeros_like, params), update), lambda step: rate)


class Fixed:
  """Rows that are there already, with the face of `data.rows.Rows`."""

  def __init__(self, batch: Mapping[str, Any]):
    self._batch = batch

  def __len__(self):
    return len(self._batch['row'])

  def batch(self, numbers):
    return jax.tree.map(lambda x: x[np.asarray(numbers)], dict(self._batch))


def drawn(model: Model, seed: int = 0, *, spread: float = 0.02, norms: float = 1.0):
  """Params as `init` has them, kernels of one spread and norms of blocks at `norms`, drawn by numpy: to compile `init` takes seconds."""
  rng = np.random.default_rng(seed)
  flat = tree.flatten(jax.eval_shape(model.init, jax.random.key(0)))
  return tree.unflatten({path: jnp.asarray(spread * rng.standard_normal(leaf.shape) if leaf.ndim > 1 and path.rpartition('/')[2] not in ('scale', 'bias') else
                                           np.full(leaf.shape, path.endswith('scale') * (norms if leaf.ndim > 1 else 1.0)), leaf.dtype) for path, leaf in flat.items()})


def grouped_batch(key: jax.Array, *, rows: int = ROWS, members: int = MEMBERS, length: int = 8) -> dict[str, Any]:
  """Rows of several short texts on a second axis; some members are absent (weight 0)."""
  rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
  lengths = rng.integers(2, length + 1, (rows, members))
  weights = rng.choice(np.asarray([0, 1, 2], np.float32), (rows, members), p=[0.2, 0.4, 0.4])
  weights[:, 0] = 1.0
  return dict(
      row=rng.integers(0, 2 ** 32, (rows, 2), dtype=np.uint32), weights=weights,
      tokens=rng.integers(0, VOCAB, (rows, members, length)).astype(np.int32),
      segments=(np.arange(length)[None, None] < lengths[..., None]).astype(np.int32))


def contrast(roles, *, task=None, text=None, keep: float = 0.9, queue: int = 40, temperature: float = 0.5) -> Method:
  """Each member of a row finds its own slow embedding among those of its row and of a queue of earlier ones.

  The labels (slow embeddings) come from memory, so they cannot be early.
  """
  net = roles['student'].model

  def embed(params, batch, key=None):
    B, G, L = batch['tokens'].shape
    key_R = None if key is None else jax.vmap(lambda one: jax.random.split(one, G))(row_keys(key, batch)).reshape(B * G)
    flat = {name: batch[name].reshape(B * G, L) for name in ('tokens', 'segments')}
    out = net.apply(params, flat, key_B=key_R)
    real = (flat['segments'] > 0)[:, :, None]
    mean = jnp.sum(jnp.where(real, out['hidden'].astype(jnp.float32), 0.0), 1) / jnp.maximum(jnp.sum(real, 1), 1)
    unit = mean * jax.lax.rsqrt(jnp.sum(jnp.square(mean), -1, keepdims=True) + 1e-6)
    return jnp.where(batch['weights'][..., None] > 0, unit.reshape(B, G, -1), 0.0), out

  def label(params, batch, key):
    return {'slow': embed(params['memory']['slow'], batch)[0]}

  def loss(params, batch, key):
    weights = batch['weights']
    asked, out = embed(params['student'], batch, key)
    told = jnp.where(weights[..., None] > 0, batch['label']['slow'], 0.0)
    near = jnp.einsum('bgd,bhd->bgh', asked, told, precision='highest') / temperature
    far = jnp.einsum('bgd,qd->bgq', asked, params['memory']['queue'], precision='highest') / temperature
    logits = jnp.concatenate([jnp.where(weights[:, None, :] > 0, near, -1e9), far], -1)
    own = jnp.broadcast_to(jnp.arange(weights.shape[1])[None], weights.shape)
    terms = {'contrast': Mean.of(token_losses.cross_entropy(logits, own), weights)}
    if 'penalty' in out:
      terms['penalty'] = Mean.of(out['penalty'].reshape(weights.shape), (weights > 0).astype(jnp.float32))
    hits = jnp.argmax(jax.lax.stop_gradient(logits), -1) == own
    return terms, {'found': Mean.of(hits, weights)}, {'told': told}

  def after(state, batch, stats):
    told = stats['told'].reshape(-1, stats['told'].shape[-1])
    slow = jax.tree.map(lambda old, new: keep * old + (1 - keep) * new, state.memory['slow'], state.params['student'])
    return {'slow': slow, 'queue': jnp.concatenate([told, state.memory['queue']])[:queue]}

  def memory(params):
    wide = params['student']['embed']['tokens'].shape[1]
    return {'slow': params['student'], 'queue': jax.random.normal(jax.random.key(5), (queue, wide)) / wide ** 0.5}

  return Method(loss, label, after=after, memory=memory, early=False)


def by_example(values_BE: jax.Array, segments_BL: jax.Array) -> jax.Array:
  """The value of each token's example, [B, L]; at padding that of the first example."""
  return jnp.take_along_axis(values_BE, jnp.maximum(segments_BL - 1, 0), axis=1)


def reinforce(roles, *, task=None, text=None, stay: float = 0.1) -> Method:
  """The student draws targets, the host pays for even ones, a critic learns what to expect, a frozen reference holds the student back.

  The weights of the term 'stay' are the reference's probabilities: weights that need a label.
  """
  student, critic, reference = (roles[name].model for name in ('student', 'critic', 'reference'))

  def label(params, batch, key):
    return {'logps': score.score(reference, params['reference'], batch)}

  def loss(params, batch, key):
    weights, key_B = batch['weights'], row_keys(key, batch)
    acts = student.apply(params['student'], batch, key_B=key_B)
    hopes = critic.apply(params['critic'], batch, key_B=key_B)
    reward = by_example(batch['reward'], batch['segments'])

    def measure(logits, critic_logits, targets, logps, reward):
      says, value = -token_losses.cross_entropy(logits, targets), critic_logits[..., 0]
      gain = reward - jax.lax.stop_gradient(value)
      return {'policy': -says * gain, 'critic': jnp.square(value - reward), 'stay': jnp.square(says - logps)}
    values = token_losses.per_token(measure, weights, acts, hopes, batch['targets'], batch['label']['logps'], reward)
    likely = jnp.where(weights > 0, jnp.exp(batch['label']['logps']), 0.0)
    terms = {'policy': Mean.of(values['policy'], weights), 'critic': Mean.of(values['critic'], weights),
             'stay': Mean.of(values['stay'], weights * likely).scale(stay), **penalty(acts)}
    return terms, {'reward': Mean.of(reward, weights)}, {}

  def draw(params, batch, key):
    out = student.apply(params, batch)
    drawn = jax.vmap(jax.random.categorical)(keys.fold_ids(key, batch['row']), out['head'].logits(out['hidden']))
    learns, segments = batch['weights'] > 0, batch['segments']
    targets = jnp.where(learns, drawn, batch['targets']).astype(jnp.int32)
    follows = learns[:, :-1] & (segments[:, :-1] == segments[:, 1:])
    return jnp.concatenate([batch['tokens'][:, :1], jnp.where(follows, targets[:, :-1], batch['tokens'][:, 1:])], 1), targets

  @functools.lru_cache(maxsize=None)
  def drawer(sharding):
    return jax.jit(draw, out_shardings=sharding)

  def rollout(state, frozen, batch, key):
    """Draws on the devices, pays on the host for the rows that lie here, remembers by jit on the global batch."""
    sharding = batch['row'].sharding
    tokens, targets = drawer(sharding)(state.params['student'], batch, key)
    paid = pay(*(local_rows(x) for x in (targets, batch['weights'], batch['segments'])), most=batch['examples'].shape[1])
    reward = jax.make_array_from_process_local_data(sharding, paid)
    kept = {name: value for name, value in batch.items() if name != 'label'}       # labels of other tokens are no labels
    return {**kept, 'tokens': tokens, 'targets': targets, 'reward': reward}, {'paid': remember(state.memory['paid'], reward)}

  remember = jax.jit(lambda old, reward: 0.9 * old + 0.1 * jnp.mean(reward))
  return Method(loss, label, rollout=rollout, memory=lambda params: {'paid': jnp.zeros(())})


def local_rows(array: jax.Array) -> np.ndarray:
  """The rows of a global array that lie on this host, in order, once each."""
  pieces = {shard.index[0].start or 0: np.asarray(shard.data) for shard in array.addressable_shards}
  return np.concatenate([pieces[start] for start in sorted(pieces)])


def pay(targets_BL, weights_BL, segments_BL, *, most: int) -> np.ndarray:
  """The share of even ids among the learnt targets of each example, [B, E]."""
  out = np.zeros((len(targets_BL), most), np.float32)
  for e in range(most):
    mine = (segments_BL == e + 1) & (weights_BL > 0)
    out[:, e] = ((targets_BL % 2 == 0) & mine).sum(1) / np.maximum(mine.sum(1), 1)
  return out
