"""The sampling loop on the device: read the prompts once, then one token a row at a time into a cache. Pure functions.

Shape suffixes: B prompts, P tokens of a prompt, N samples, R rows, T new tokens, V vocabulary.
"""
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from distill_jax.core import keys as keys_lib
from distill_jax.core import mesh as mesh_lib
from distill_jax.core.types import Model
from distill_jax.decode import pick

Array = jax.Array
LEG = 32      # fewest tokens between two widenings of the cache
LEGS = 4      # most widenings, each of which is compiled


class Sampled(NamedTuple):
  """tokens int32 [B, N, T], `pad_id` after the end; lengths int32 [B, N], EOS counted; logps float32 [B, N, T], of the model's own
  distribution (temperature 1, nothing cut) at each token, 0 after the end."""
  tokens_BNT: Array
  lengths_BN: Array
  logps_BNT: Array


class Settings(NamedTuple):
  """How to continue; all of it is fixed when the loop is compiled. allowed: ids from here on are never drawn (None: all may be).
  cache_dtype: of the cache (None: the model's own). source: slots for an encoder's tokens, where the model has one."""
  max_new_tokens: int
  samples: int = 1
  temperature: float = 1.0
  top_p: float = 1.0
  top_k: int = 0
  eos_id: int = -1
  pad_id: int = 0
  allowed: int | None = None
  cache_dtype: str | None = None
  source: int = 0


class Progress(NamedTuple):
  """The loop between two tokens. step: tokens in the buffers; last: the token that the model reads next, at `position`; number: tokens of
  the text so far; key: one a row; tokens, logps: buffers of what was written since the state was made."""
  step: Array
  last_R: Array
  position_R: Array
  number_R: Array
  ended_R: Array
  key_R: Array
  tokens_RT: Array
  logps_RT: Array
  cache: Any


class Axes(NamedTuple):
  """Which axis of an array of a cache counts rows and which slots, -1 for none."""
  row: int
  slot: int


def check(settings: Settings) -> Settings:
  """`settings`, or a ValueError that names what is wrong."""
  if settings.max_new_tokens < 1 or settings.samples < 1:
    raise ValueError(f'sample: max_new_tokens={settings.max_new_tokens} and samples={settings.samples} must be at least 1')
  if settings.temperature < 0 or settings.top_k < 0 or not 0 < settings.top_p <= 1:
    raise ValueError(f'sample: temperature={settings.temperature} must be >= 0 (0: greedy), top_k={settings.top_k} >= 0 (0: all), '
                     f'top_p={settings.top_p} in (0, 1]')
  return settings


def run(model: Model, settings: Settings, mesh: Mesh | None, params, prompts_BP, segments_BP, ids_B2, key) -> Sampled:
  """Prompts to texts, all of them side by side to the end of the longest. The cache is widened on the way, so that the first tokens do
  not attend to the slots of the last ones."""
  T = settings.max_new_tokens
  legs = max(min(LEGS, T // LEG), 1)
  ends = [T * (i + 1) // legs for i in range(legs)]
  state = start(model, settings, mesh, params, prompts_BP, segments_BP, ids_B2, key, room=ends[0])
  params = model.ready(params)
  for before, end in zip([ends[0], *ends], ends):
    widen = lambda x, axes: pad(x, axes.slot, end - before)
    state = advance(model, settings, mesh, params, state._replace(cache=jax.tree.map(widen, state.cache, axes_of(model, settings))), end)
  fold = lambda x: x.reshape((-1, settings.samples) + x.shape[1:])
  return Sampled(fold(state.tokens_RT), fold(state.number_R), fold(state.logps_RT))


def start(model: Model, settings: Settings, mesh: Mesh | None, params, prompts_BP, segments_BP, ids_B2, key, *, room: int) -> Progress:
  """Reads all but the last token of each prompt, once a prompt, and lays out `samples` rows for it, with slots for `room` tokens."""
  B, P = prompts_BP.shape
  N, T = settings.samples, settings.max_new_tokens
  axes = axes_of(model, settings)
  segments_BP = (segments_BP > 0).astype(jnp.int32)
  positions_BP = jnp.maximum(jnp.cumsum(segments_BP, axis=1) - 1, 0)
  last_B, at_B = prompts_BP[:, -1], None
  if model.start_id is not None:
    cache = split_cache(empty(model, settings._replace(source=P), B, room), axes, mesh)
    cache = model.apply(params, as_source(prompts_BP, segments_BP, positions_BP), cache=cache)['cache']
    last_B, at_B = jnp.full((B,), model.start_id, jnp.int32), jnp.zeros((B,), jnp.int32)
  else:
    cache = split_cache(empty(model, settings, B, P - 1 + room), axes, mesh)
  if model.start_id is None and P > 1:
    before = dict(tokens=prompts_BP[:, :-1], segments=segments_BP[:, :-1], positions=positions_BP[:, :-1])
    cache = model.apply(params, before, cache=cache)['cache']
  cache = jax.tree.map(lambda x, axes: x if axes.row < 0 or N == 1 else jnp.repeat(x, N, axis=axes.row), cache, axes)
  key_BN = jax.vmap(lambda k: jax.vmap(lambda n: jax.random.fold_in(k, n))(jnp.arange(N)))(keys_lib.fold_ids(key, ids_B2))
  lengths_B = jnp.sum(segments_BP, axis=1, dtype=jnp.int32)
  each = lambda x_B: jnp.repeat(x_B, N, axis=0)
  return split_rows(Progress(
      step=jnp.zeros((), jnp.int32), last_R=each(last_B).astype(jnp.int32), position_R=each(jnp.maximum(lengths_B - 1, 0) if at_B is None else at_B),
      number_R=jnp.zeros((B * N,), jnp.int32), ended_R=each(lengths_B == 0), key_R=key_BN.reshape(B * N),
      tokens_RT=jnp.full((B * N, T), settings.pad_id, jnp.int32), logps_RT=jnp.zeros((B * N, T), jnp.float32), cache=cache), axes, mesh)


def advance(model: Model, settings: Settings, mesh: Mesh | None, params, state: Progress, until, forced_R=None, stopped_R=None) -> Progress:
  """Runs until `until` tokens stand in the buffers or all rows have ended.

  forced int32 [R]: what must stand next, -1 for a free choice; holds for the first token of this call.
  stopped bool [R]: rows to end before it.
  """
  axes = axes_of(model, settings)
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
    number_R = state.number_R + live_R
    ended_R = state.ended_R | (number_R >= settings.max_new_tokens)
    new = Progress(
        step=state.step + 1, last_R=chosen_R, position_R=state.position_R + 1, number_R=number_R,
        ended_R=ended_R | (chosen_R == settings.eos_id) if settings.eos_id >= 0 else ended_R, key_R=state.key_R,
        tokens_RT=put(state.tokens_RT, chosen_R), logps_RT=put(state.logps_RT, logp_R), cache=out['cache'])
    return split_rows(new, axes, mesh), jnp.full_like(forced_R, -1)

  forced_R = jnp.full_like(state.last_R, -1) if forced_R is None else forced_R
  return jax.lax.while_loop(more, one, (state, forced_R))[0]


def _choose(settings: Settings, logits_RV: Array, state: Progress) -> Array:
  if settings.allowed is not None and settings.allowed < logits_RV.shape[-1]:
    ids = jax.lax.broadcasted_iota(jnp.int32, logits_RV.shape, 1)
    logits_RV = jnp.where(ids < settings.allowed, logits_RV, -jnp.inf)
  if settings.temperature == 0:
    return pick.greedy(logits_RV)
  uniform_R = jax.vmap(lambda key, number: jax.random.uniform(jax.random.fold_in(key, number)))(state.key_R, state.number_R)
  return pick.draw(uniform_R, logits_RV, temperature=settings.temperature, top_p=settings.top_p, top_k=settings.top_k)


def empty(model: Model, settings: Settings, rows: int, slots: int):
  """The model's cache with nothing in it."""
  sourced = {} if model.start_id is None else dict(source=settings.source)
  return model.cache(rows, slots, settings.cache_dtype, **sourced)


def as_source(prompts_BP: Array, segments_BP: Array, positions_BP: Array) -> dict[str, Array]:
  """Prompts as the batch keys that an encoder reads."""
  return dict(source=prompts_BP, source_segments=segments_BP, source_positions=positions_BP)


def axes_of(model: Model, settings: Settings):
  """The Axes of each array of the model's cache: those that grow with the number of rows, and with the number of slots."""
  shape = lambda rows, slots: jax.eval_shape(lambda: model.cache(rows, slots, settings.cache_dtype))
  grown = lambda a, b: next((i for i, (m, n) in enumerate(zip(a.shape, b.shape)) if m != n), -1)
  return jax.tree.map(lambda one, rows, slots: Axes(grown(one, rows), grown(one, slots)), shape(1, 8), shape(2, 8), shape(1, 16))


def split_cache(cache, axes, mesh: Mesh | None):
  """`cache` with the row axis of every array spread over the mesh; what no axes are known of (a shared prefix) as it is."""
  if mesh is None:
    return cache
  def put(x, axes):
    spec = PartitionSpec(*[None] * axes.row, mesh_lib.RULES['batch']) if axes.row >= 0 else PartitionSpec()
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))
  return with_shared(jax.tree.map(put, with_shared(cache, None), axes), shared_of(cache))


def split_rows(state, axes, mesh: Mesh | None):
  """A NamedTuple of arrays of rows and a cache, spread over the mesh."""
  if mesh is None:
    return state
  rows = NamedSharding(mesh, PartitionSpec(mesh_lib.RULES['batch']))
  put = lambda x: jax.lax.with_sharding_constraint(x, rows if x.ndim else NamedSharding(mesh, PartitionSpec()))
  return type(state)(**{name: split_cache(x, axes, mesh) if name == 'cache' else put(x) for name, x in state._asdict().items()})


def shared_of(cache):
  """What stands under 'shared' in a cache, None where nothing does."""
  return cache.get('shared') if isinstance(cache, dict) else None


def with_shared(cache, shared):
  """`cache` with this prefix before every row; a cache that cannot have one stays as it is."""
  return {**cache, 'shared': shared} if isinstance(cache, dict) and 'shared' in cache else cache


def pad(x: Array, axis: int, more: int) -> Array:
  """`x` with `more` zeros at the end of an axis; axis -1: as it is."""
  return x if axis < 0 or not more else jnp.pad(x, [(0, more if i == axis else 0) for i in range(x.ndim)])
