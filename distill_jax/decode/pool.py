"""A pool of rows that wait for their turn: prompts enter it, some of its rows are taken, go on by a few tokens, and are put back.

A row's slots hold its prompt from slot 0 on and its new tokens behind, or its new tokens alone where prompts stand in a cache of their
own, one row a prompt, that all texts of one prompt read. Rows that are taken together get a cache as wide as the longest of them needs,
with the slots of the turn behind it, so that all write the same slot. Pure functions.

Shape suffixes: R rows of the pool, G rows that are taken, M prompts, W tokens of a prompt, F rows that are filled, T tokens of a turn,
Q prompts that rows are taken behind.
"""
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from distill_jax.core import keys as keys_lib
from distill_jax.core.types import Model
from distill_jax.decode import loop
from distill_jax.decode.loop import Progress, Settings

Array = jax.Array


class Pool(NamedTuple):
  """Rows between two turns. last: the token that the model reads next, at `position`; number: tokens of the text so far; used: slots that
  hold tokens; key: one a row."""
  last_R: Array
  position_R: Array
  number_R: Array
  used_R: Array
  key_R: Array
  cache: Any


def make(model: Model, settings: Settings, mesh: Mesh | None, rows: int, slots: int) -> Pool:
  """An empty pool."""
  zeros = jnp.zeros((rows,), jnp.int32)
  axes = loop.axes_of(model, settings)
  cache = loop.empty(model, settings, rows, slots)
  return loop.split_rows(Pool(zeros, zeros, zeros, zeros, jax.random.split(jax.random.key(0), rows), cache), axes, mesh)


def empty(model: Model, settings: Settings, mesh: Mesh | None, rows: int, slots: int):
  """A cache in which no prompt stands yet. It lies as `enter` leaves it."""
  return loop.split_cache(model.cache(rows, slots, settings.cache_dtype), loop.axes_of(model, settings), mesh)


def prefix(model: Model, settings: Settings, params, tokens_P: Array):
  """The cache of what all prompts begin with: one row, every slot in use."""
  P = tokens_P.shape[0]
  cache = model.cache(1, P, settings.cache_dtype)
  return model.apply(params, dict(tokens=tokens_P[None], positions=jnp.arange(P)[None]), cache=cache)['cache']


def read(model: Model, settings: Settings, mesh: Mesh | None, slots: int, params, shared, offset, before_MW: Array, lengths_M: Array):
  """The caches of M prompts, each read once, widened to the slots of the pool.

  before: all tokens but the last of each prompt, padded at the right; lengths: how many; offset: tokens of the shared prefix before them.
  """
  axes = loop.axes_of(model, settings)
  M, W = before_MW.shape
  real_MW = jnp.arange(W)[None] < lengths_M[:, None]
  if model.start_id is not None:      # an encoder reads them; no token of the decoder stands in the cache yet
    cache = loop.split_cache(loop.empty(model, settings, M, slots), axes, mesh)
    return model.apply(params, loop.as_source(before_MW, real_MW.astype(jnp.int32), jnp.arange(W)[None] * real_MW), cache=cache)['cache']
  cache = loop.split_cache(loop.with_shared(model.cache(M, W, settings.cache_dtype), shared), axes, mesh)
  positions_MW = jnp.where(real_MW, offset + jnp.arange(W)[None], 0)
  cache = model.apply(params, dict(tokens=before_MW, segments=real_MW.astype(jnp.int32), positions=positions_MW), cache=cache)['cache']
  return jax.tree.map(lambda x, axes: loop.pad(x, axes.slot, slots - W), loop.with_shared(cache, None), axes)


def lay(model: Model, settings: Settings, mesh: Mesh | None, pool: Pool, cache, offset, lengths_M: Array, last_M: Array, ids_M2: Array,
        key: Array, rows_F: Array, source_F: Array, sample_F: Array) -> Pool:
  """Rows `rows` of the pool begin anew: row f with prompt source[f] of `cache` and the key of its sample number sample[f]. A row past the
  end of the pool is nobody's."""
  axes = loop.axes_of(model, settings)
  put = lambda held_R, new_F: held_R.at[rows_F].set(new_F, mode='drop')
  rows = lambda held, new, axes: held if axes.row < 0 else held.at[(slice(None),) * axes.row + (rows_F,)].set(
      jnp.take(new, source_F, axis=axes.row, mode='clip'), mode='drop')
  key_F = jax.vmap(jax.random.fold_in)(keys_lib.fold_ids(key, ids_M2)[source_F], sample_F)
  if model.start_id is not None:
    lengths_M = jnp.zeros_like(lengths_M)
  return loop.split_rows(Pool(
      put(pool.last_R, last_M[source_F]), put(pool.position_R, offset + lengths_M[source_F]), put(pool.number_R, jnp.zeros_like(rows_F)),
      put(pool.used_R, lengths_M[source_F]), put(pool.key_R, key_F), jax.tree.map(rows, pool.cache, cache, axes)), axes, mesh)


def enter(model: Model, settings: Settings, mesh: Mesh | None, pool: Pool, prompts, cache, offset, lengths_M: Array, last_M: Array,
          ids_M2: Array, key: Array, rows_F: Array, source_F: Array, sample_F: Array, places_M: Array) -> tuple[Pool, Any]:
  """As `lay`, the prompts of `cache` to places of the cache `prompts`, nothing in the rows -> (pool, prompts)."""
  axes = loop.axes_of(model, settings)
  put = lambda held_R, new_F: held_R.at[rows_F].set(new_F, mode='drop')
  lay_prompt = lambda held, new, axes: held if axes.row < 0 else held.at[(slice(None),) * axes.row + (places_M,)].set(new, mode='drop')
  key_F = jax.vmap(jax.random.fold_in)(keys_lib.fold_ids(key, ids_M2)[source_F], sample_F)
  zeros_F = jnp.zeros_like(rows_F)
  entered = Pool(
      put(pool.last_R, last_M[source_F]), put(pool.position_R, offset + lengths_M[source_F]), put(pool.number_R, zeros_F),
      put(pool.used_R, zeros_F), put(pool.key_R, key_F), {**pool.cache, 'segments': pool.cache['segments'].at[rows_F].set(0, mode='drop')})
  return loop.split_rows(entered, axes, mesh), loop.split_cache(jax.tree.map(lay_prompt, prompts, cache, axes), axes, mesh)


def behind(model: Model, settings: Settings, width: int, prompts, places_Q: Array, shared):
  """The first `width` slots of some of the prompts, as what rows see before their own slots."""
  cut = lambda x, axes: x if axes.row < 0 else jnp.take(
      x if axes.slot < 0 else jax.lax.slice_in_dim(x, 0, width, axis=axes.slot), places_Q, axis=axes.row, mode='clip')
  return loop.with_shared(jax.tree.map(cut, prompts, loop.axes_of(model, settings)), shared)


def take(model: Model, settings: Settings, mesh: Mesh | None, width: int, turn: int, pool: Pool, shared, rows_G: Array | None,
         live_G: Array) -> Progress:
  """Rows `rows` of the pool (None: all as they lie), the first `width` slots of each and room for `turn` tokens."""
  axes = loop.axes_of(model, settings)

  def cut(x, axes):
    if axes.row < 0:
      return x
    if axes.slot >= 0:
      x = jax.lax.slice_in_dim(x, 0, width, axis=axes.slot)
    if rows_G is not None:
      x = jnp.take(x, rows_G, axis=axes.row, mode='clip')
    return loop.pad(x, axes.slot, turn)

  cache = loop.with_shared(jax.tree.map(cut, pool.cache, axes), shared)
  if isinstance(cache, dict) and 'index' in cache:
    cache = {**cache, 'index': jnp.full((), width, jnp.int32)}
  pick = lambda x: x if rows_G is None else x[rows_G]
  count = live_G.shape[0]
  return loop.split_rows(Progress(
      step=jnp.zeros((), jnp.int32), last_R=pick(pool.last_R), position_R=pick(pool.position_R), number_R=pick(pool.number_R),
      ended_R=~live_G, key_R=pick(pool.key_R), tokens_RT=jnp.full((count, turn), settings.pad_id, jnp.int32),
      logps_RT=jnp.zeros((count, turn), jnp.float32), cache=cache), axes, mesh)


def put(model: Model, settings: Settings, mesh: Mesh | None, width: int, turn: int, pool: Pool, rows_G: Array | None,
        state: Progress) -> Pool:
  """The pool with what its rows became in their turn."""
  axes = loop.axes_of(model, settings)
  used_G = pool.used_R if rows_G is None else pool.used_R[rows_G]

  def back(held, new, axes):
    if axes.row < 0:
      return held
    if axes.slot < 0:
      return new if rows_G is None else held.at[(slice(None),) * axes.row + (rows_G,)].set(new)
    new = jax.lax.slice_in_dim(new, width, width + turn, axis=axes.slot)
    if rows_G is None:
      slot = axes.slot - (axes.slot > axes.row)
      lay_row = lambda row, new, at: jax.lax.dynamic_update_slice_in_dim(row, new, at, axis=slot)
      return jax.vmap(lay_row, in_axes=(axes.row, axes.row, 0), out_axes=axes.row)(held, new, used_G)
    numbers = jax.lax.ScatterDimensionNumbers(
        update_window_dims=tuple(i for i in range(held.ndim) if i != axes.row), inserted_window_dims=(axes.row,),
        scatter_dims_to_operand_dims=(axes.row, axes.slot))
    return jax.lax.scatter(held, jnp.stack([rows_G, used_G], axis=1), new, numbers, mode='clip')

  each = lambda held_R, new_G: new_G if rows_G is None else held_R.at[rows_G].set(new_G)
  cache = jax.tree.map(back, pool.cache, loop.with_shared(state.cache, None), axes)
  return loop.split_rows(Pool(
      each(pool.last_R, state.last_R), each(pool.position_R, state.position_R), each(pool.number_R, state.number_R),
      each(pool.used_R, used_G + state.step), pool.key_R, cache), axes, mesh)
