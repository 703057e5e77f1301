"""The sampling loop on the device: read the prompts once, then one token a row at a time into a cache. Pure functions.

Shape suffixes: B prompts, P tokens of a prompt, N samples, R = B x N rows (sample fastest), T new tokens, V vocabulary.
"""
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from distill_jax.core import keys as keys_lib
from distill_jax.core import mesh as mesh_lib
from distill_jax.core.types import Model
from distill_jax.decode import pick

Array = jax.Array


class Sampled(NamedTuple):
  """tokens int32 [B, N, T], `pad_id` after the end; lengths int32 [B, N], EOS counted; logps float32 [B, N, T], of the model's own
  distribution (temperature 1, nothing cut) at each token, 0 after the end."""
  tokens_BNT: Array
  lengths_BN: Array
  logps_BNT: Array


class Settings(NamedTuple):
  """How to continue; all of it is fixed when the loop is compiled. allowed: ids from here on are never drawn (None: all may be)."""
  max_new_tokens: int
  samples: int = 1
  temperature: float = 1.0
  top_p: float = 1.0
  top_k: int = 0
  eos_id: int = -1
  pad_id: int = 0
  allowed: int | None = None


class Progress(NamedTuple):
  """The loop between two tokens. last: the token that the model reads next, at `position`; key: one a row; step: tokens written."""
  step: Array
  last_R: Array
  position_R: Array
  ended_R: Array
  tokens_RT: Array
  logps_RT: Array
  lengths_R: Array
  key_R: Array
  cache: Any


def check(settings: Settings) -> Settings:
  """`settings`, or a ValueError that names what is wrong."""
  if settings.max_new_tokens < 1 or settings.samples < 1:
    raise ValueError(f'sample: max_new_tokens={settings.max_new_tokens} and samples={settings.samples} must be at least 1')
  if settings.temperature < 0 or settings.top_k < 0 or not 0 < settings.top_p <= 1:
    raise ValueError(f'sample: temperature={settings.temperature} must be >= 0 (0: greedy), top_k={settings.top_k} >= 0 (0: all), '
                     f'top_p={settings.top_p} in (0, 1]')
  return settings


def start(model: Model, settings: Settings, mesh: Mesh | None, params, prompts_BP, segments_BP, ids_B2, key) -> Progress:
  """Reads all but the last token of each prompt, once a prompt, and lays out `samples` rows for it."""
  B, P = prompts_BP.shape
  N, T = settings.samples, settings.max_new_tokens
  segments_BP = (segments_BP > 0).astype(jnp.int32)
  cache = _split_rows(model.cache(B, P - 1 + T, None), _row_axes(model, P - 1 + T), mesh)
  if P > 1:
    positions_BP = jnp.maximum(jnp.cumsum(segments_BP, axis=1) - 1, 0)
    before = dict(tokens=prompts_BP[:, :-1], segments=segments_BP[:, :-1], positions=positions_BP[:, :-1])
    cache = model.apply(params, before, cache=cache)['cache']
  axes = _row_axes(model, P - 1 + T)
  cache = jax.tree.map(lambda x, axis: x if axis < 0 or N == 1 else jnp.repeat(x, N, axis=axis), cache, axes)
  key_B = keys_lib.fold_ids(key, ids_B2)
  key_BN = jax.vmap(lambda k: jax.vmap(lambda n: jax.random.fold_in(k, n))(jnp.arange(N)))(key_B)
  lengths_B = jnp.sum(segments_BP, axis=1, dtype=jnp.int32)
  each = lambda x_B: jnp.repeat(x_B, N, axis=0)
  state = Progress(
      step=jnp.zeros((), jnp.int32), last_R=each(prompts_BP[:, -1]).astype(jnp.int32), position_R=each(jnp.maximum(lengths_B - 1, 0)),
      ended_R=each(lengths_B == 0), tokens_RT=jnp.full((B * N, T), settings.pad_id, jnp.int32),
      logps_RT=jnp.zeros((B * N, T), jnp.float32), lengths_R=jnp.zeros((B * N,), jnp.int32), key_R=key_BN.reshape(B * N), cache=cache)
  return _split_state(state, axes, mesh)


def advance(model: Model, settings: Settings, mesh: Mesh | None, params, state: Progress, until, forced_R=None, stopped_R=None) -> Progress:
  """Runs to `until` tokens or until all rows have ended.

  forced int32 [R]: what must stand next, -1 for a free choice; holds for the first token of this call.
  stopped bool [R]: rows to end before it.
  """
  axes = _row_axes(model, settings.max_new_tokens)
  if stopped_R is not None:
    state = state._replace(ended_R=state.ended_R | stopped_R)

  def more(carry):
    state, _ = carry
    return (state.step < until) & ~jnp.all(state.ended_R)

  def one(carry):
    state, forced_R = carry
    step = dict(tokens=state.last_R[:, None], segments=jnp.ones_like(state.last_R)[:, None], positions=state.position_R[:, None])
    out = model.apply(params, step, cache=state.cache)
    logits_RV = out['head'].logits(out['hidden'][:, -1])
    chosen_R = _choose(settings, logits_RV, state)
    chosen_R = jnp.where(forced_R >= 0, forced_R, chosen_R)
    live_R = ~state.ended_R
    chosen_R = jnp.where(live_R, chosen_R, settings.pad_id)
    logp_R = jnp.where(live_R, pick.log_prob(logits_RV, chosen_R), 0.0)
    put = lambda rows_RT, column_R: jax.lax.dynamic_update_slice(rows_RT, column_R[:, None], (0, state.step))
    new = Progress(
        step=state.step + 1, last_R=chosen_R, position_R=state.position_R + 1,
        ended_R=state.ended_R | (chosen_R == settings.eos_id) if settings.eos_id >= 0 else state.ended_R,
        tokens_RT=put(state.tokens_RT, chosen_R), logps_RT=put(state.logps_RT, logp_R), lengths_R=state.lengths_R + live_R,
        key_R=state.key_R, cache=out['cache'])
    return _split_state(new, axes, mesh), jnp.full_like(forced_R, -1)

  forced_R = jnp.full_like(state.last_R, -1) if forced_R is None else forced_R
  return jax.lax.while_loop(more, one, (state, forced_R))[0]


def result(settings: Settings, state: Progress) -> Sampled:
  """The tokens so far, by prompt and sample."""
  fold = lambda x: x.reshape((-1, settings.samples) + x.shape[1:])
  return Sampled(fold(state.tokens_RT), fold(state.lengths_R), fold(state.logps_RT))


def _choose(settings: Settings, logits_RV: Array, state: Progress) -> Array:
  if settings.allowed is not None and settings.allowed < logits_RV.shape[-1]:
    ids = jax.lax.broadcasted_iota(jnp.int32, logits_RV.shape, 1)
    logits_RV = jnp.where(ids < settings.allowed, logits_RV, -jnp.inf)
  if settings.temperature == 0:
    return pick.greedy(logits_RV)
  uniform_R = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, state.step)))(state.key_R)
  return pick.draw(uniform_R, logits_RV, temperature=settings.temperature, top_p=settings.top_p, top_k=settings.top_k)


def _row_axes(model: Model, length: int):
  """Which axis of each array of a model's cache counts rows, -1 for none: the one that grows with the number of rows."""
  one, two = (jax.eval_shape(functools.partial(model.cache, rows, length, None)) for rows in (1, 2))
  return jax.tree.map(lambda a, b: next((i for i, (m, n) in enumerate(zip(a.shape, b.shape)) if m != n), -1), one, two)


def _split_rows(tree, axes, mesh: Mesh | None):
  """`tree` with the row axis of every array spread over the mesh."""
  if mesh is None:
    return tree
  def put(x, axis):
    spec = PartitionSpec(*[None] * axis, mesh_lib.RULES['batch']) if axis >= 0 else PartitionSpec()
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))
  return jax.tree.map(put, tree, axes)


def _split_state(state: Progress, cache_axes, mesh: Mesh | None) -> Progress:
  return _split_rows(state, Progress(-1, *[0] * 7, cache_axes), mesh)
