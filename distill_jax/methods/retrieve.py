"""Learning to retrieve demonstrations: two encoders, a contrast of a question with the demonstrations of its whole batch (EPR, Rubin 2022,
arXiv 2112.08633; the loss of DPR, Karpukhin 2020, arXiv 2004.04906).

Shape suffixes: B rows, G members of a row, K demonstrations of each kind, L tokens of a question, M tokens of a demonstration, D width.
"""
import jax
import jax.numpy as jnp

from distill_jax.core import keys
from distill_jax.core.mean import Mean
from distill_jax.core.types import Method, Model
from distill_jax.losses import contrast

POSITIVES = ('sampled', 'first')
DRAW = 0x64726177      # tells the draws of demonstrations from dropout


def retrieve(roles, *, task=None, text=None, positive: str = 'sampled', chunk: int | None = None) -> Method:
  """L = mean over members i of -log softmax over the 2G contexts of its row of E_X(x_i) . E_P(e), at its own positive.

  Contexts: one positive and one hard negative of every member; no temperature, no cosine. E_X, E_P: the last state of the first token of
  the roles 'student' (reads questions) and 'prompt' (reads demonstrations), two encoders with weights of their own. A member of weight 0 is absent: neither asked nor a context. Another
  member's positive that happens to be good for this one counts against it, as in the paper (nothing is masked).

  Axis 0 means independence, so a contrast batch is one row of G members, sharded over its second axis (rule 'group'); the vectors of the whole
  row are gathered for the softmax. chunk: so many members of a row go through the encoders at a time, and backwards too (their states are
  made again there), so that a large G needs little memory; the loss stays that of the whole row. None: all at once.
  positive: 'sampled' from the K best (the paper) or the 'first' of them (its release); the negative is drawn from the K worst. Draws
  follow (seed, step, id of the member); without a key, as in validation, the first of each.

  batch: 'tokens', 'segments' [B, G, L], 'examples' [B, G, 2], 'weights' [B, G], 'contexts', 'contexts_segments' [B, G, 2, K, M]: positives,
  best first, and negatives, worst first. Metrics: found, the share of members whose own positive is nearest.
  """
  if positive not in POSITIVES:
    raise ValueError(f'retrieve: positive={positive!r}, one of {", ".join(POSITIVES)}')
  if chunk is not None and chunk < 1:
    raise ValueError(f'retrieve: chunk={chunk} must be at least 1')
  query, prompt = roles['student'].model, roles['prompt'].model

  def loss(params, batch, key):
    key_BG = None if key is None else _member_keys(key, batch['examples'])
    chosen_BG2M, segments_BG2M = _draw(batch, key_BG, positive)
    B, G = batch['weights'].shape
    real_BG = batch['weights'] > 0
    asked, asked_penalty = _encode(query, params['student'], batch['tokens'], batch['segments'], _fold(key_BG, 1), chunk)
    flat = lambda x: x.reshape(B, G * 2, -1)
    keys_BC = None if key_BG is None else jnp.stack([_fold(key_BG, 2), _fold(key_BG, 3)], 2).reshape(B, G * 2)
    told, told_penalty = _encode(prompt, params['prompt'], flat(chosen_BG2M), flat(segments_BG2M), keys_BC, None if chunk is None else 2 * chunk)
    there_BC = jnp.repeat(real_BG, 2, axis=1)
    asked = jnp.where(real_BG[..., None], asked, 0.0)
    told = jnp.where(there_BC[..., None], told, 0.0)
    own_G = 2 * jnp.arange(G)
    values_BG, found_BG = contrast.in_batch(asked, told, own_G, there_BC)
    terms = {'contrast': Mean.of(values_BG, batch['weights'])}
    if asked_penalty is not None or told_penalty is not None:
      told_BG = None if told_penalty is None else jnp.sum(told_penalty.reshape(B, G, 2), -1)
      both = sum(x for x in (asked_penalty, told_BG) if x is not None)
      terms['penalty'] = Mean.of(both, real_BG.astype(jnp.float32))
    return terms, {'found': Mean.of(found_BG, batch['weights'])}, {}

  return Method(loss)


def _member_keys(key, examples_BG2):
  B, G, _ = examples_BG2.shape
  return keys.fold_ids(key, examples_BG2.reshape(B * G, 2)).reshape(B, G)


def _fold(key_BG, number: int):
  return None if key_BG is None else jax.vmap(jax.vmap(lambda key: jax.random.fold_in(key, number)))(key_BG)


def _draw(batch, key_BG, positive: str):
  """(tokens, segments) [B, G, 2, M]: the positive and the negative of this step."""
  B, G, _, K, _ = batch['contexts'].shape
  place_BG2 = jnp.zeros((B, G, 2), jnp.int32)
  if key_BG is not None:
    draw = lambda key: jax.random.randint(jax.random.fold_in(key, DRAW), (2,), 0, K)
    place_BG2 = jax.vmap(jax.vmap(draw))(key_BG)
    if positive == 'first':
      place_BG2 = place_BG2.at[:, :, 0].set(0)
  take = lambda x: jnp.take_along_axis(x, place_BG2[..., None, None], axis=3)[:, :, :, 0]
  return take(batch['contexts']), take(batch['contexts_segments'])


def _encode(model: Model, params, tokens_BNL, segments_BNL, key_BN, chunk: int | None):
  """(float32 [B, N, D], the penalty [B, N] or None) of the first token of each text, `chunk` texts of a row at a time."""
  B, N, L = tokens_BNL.shape
  C = N if chunk is None else min(chunk, N)
  if N % C:
    raise ValueError(f'retrieve: chunk={chunk} does not divide the {N} members of a row')

  def part(given):
    tokens, segments, key_BC = given
    rows = dict(tokens=tokens.reshape(B * C, L), segments=segments.reshape(B * C, L))
    out = model.apply(params, rows, key_B=None if key_BC is None else key_BC.reshape(B * C))
    first = (out['encoded'] if 'encoded' in out else out['hidden'])[:, 0].astype(jnp.float32)
    return first.reshape(B, C, -1), out['penalty'].reshape(B, C) if 'penalty' in out else None

  if C == N:
    return part((tokens_BNL, segments_BNL, key_BN))
  # strided, as microbatches are, so that no member leaves its device
  cut = lambda x: jnp.moveaxis(x.reshape((B, C, N // C) + x.shape[2:]), 2, 0)
  join = lambda x: jnp.moveaxis(x, 0, 2).reshape((B, N) + x.shape[3:])
  vectors, penalty = jax.lax.map(jax.checkpoint(part, prevent_cse=False), jax.tree.map(cut, (tokens_BNL, segments_BNL, key_BN)))
  return join(vectors), None if penalty is None else join(penalty)
