"""Small models and a tokenizer whose every continuation can be worked out by hand."""
import functools

import jax
import jax.numpy as jnp

from distill_jax.core.types import Head, Model, Role
from distill_jax.data import text as text_lib


@functools.cache
def letters() -> text_lib.Text:
  """Bytes as tokens (and no merges): 256 bytes, <pad> 0, <eos> 1."""
  return text_lib.train_bpe(['a'], size=258)


def chain(follows: dict[str, str], *, size: int = 258, sharp: float = 50.0) -> tuple[Model, dict]:
  """A model whose next byte depends on the last one alone: follows['a'] == 'b' puts b after a; '' is the end.

  Bytes that are not named follow themselves. Its cache holds nothing but a count, with the row axis in second place.
  """
  text = letters()
  table = jnp.eye(size) * sharp
  for before, after in follows.items():
    b = text.encode(before)[0]
    table = table.at[b].set(0.0).at[b, text.encode(after)[0] if after else text.eos_id].set(sharp)
  return _last_token(size), {'table': table}


def _last_token(size: int, most: int | None = None) -> Model:
  def apply(params, batch, *, key_B=None, cache=None, want=()):
    out = {'hidden': jax.nn.one_hot(batch['tokens'], size), 'head': Head(params['table'])}
    if cache is not None:
      out['cache'] = {'count': cache['count'] + batch['tokens'].shape[1]}
    return out
  return Model(lambda key: {'table': jax.random.normal(key, (size, size))}, apply, (('table', '- vocab'),),
               lambda rows, length, dtype: {'count': jnp.zeros((3, rows), jnp.int32)}, config={'max_length': most} if most else None)


@functools.cache
def random_chain(size: int = 258, most: int | None = None) -> Model:
  """A chain with a random table, `most` tokens of context."""
  return _last_token(size, most)


def fading(size: int = 40, width: int = 16) -> Model:
  """A model with memory: h_t = 0.8 h_{t-1} + embedding, in float32; padding leaves h as it is. The cache holds h."""
  def init(key):
    a, b = jax.random.split(key)
    return {'embed': jax.random.normal(a, (size, width)), 'out': jax.random.normal(b, (width, size))}

  def apply(params, batch, *, key_B=None, cache=None, want=()):
    tokens = batch['tokens']
    real_BL = batch.get('segments', jnp.ones_like(tokens)) > 0
    x_BLD = jnp.take(params['embed'], jnp.where(real_BL, tokens, 0), axis=0)
    h_BD = jnp.zeros((tokens.shape[0], width)) if cache is None else cache['h']

    def step(h_BD, now):
      x_BD, real_B = now
      h_BD = jnp.where(real_B[:, None], 0.8 * h_BD + x_BD, h_BD)
      return h_BD, h_BD

    last_BD, h_LBD = jax.lax.scan(step, h_BD, (x_BLD.swapaxes(0, 1), real_BL.swapaxes(0, 1)))
    out = {'hidden': h_LBD.swapaxes(0, 1), 'head': Head(params['out'])}
    return out if cache is None else {**out, 'cache': {'h': last_BD}}

  return Model(init, apply, (('embed', 'vocab -'), ('out', '- vocab')), lambda rows, length, dtype: {'h': jnp.zeros((rows, width))})


def role(model: Model) -> Role:
  """`model` with the byte tokenizer."""
  return Role(model, letters())
