"""Likelihood of given texts: many candidates behind many prompts, each prompt read once for all of its candidates.

A prompt is read into a cache; its logits say how likely every candidate begins. Candidates of several tokens go on from there side by
side, reading the one copy of their prompt.

Shape suffixes: M prompts, W tokens of a prompt, K candidates of a prompt, C of them that go on at once, R = M C rows, T tokens of a row.
"""
import functools
from typing import Any, NamedTuple, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from distill_jax.core import hosts, mesh as mesh_lib
from distill_jax.core.types import Role
from distill_jax.decode import batching, loop, pool, sample
from distill_jax.losses import distribution, tokens

Array = jax.Array
PROMPTS = 8      # fewest prompts that are read at a time, where the rows allow it: reading one costs nearly as much as reading some


def of_texts(role: Role, params, prompts: Sequence[str], texts: Sequence[Sequence[str]], *, given: Sequence[Sequence[str]] | None = None,
             batch: int = 64, mesh: Mesh | None = None) -> list[list[tuple[float, int]]]:
  """For each prompt and each of its candidates texts[i]: (log p(candidate | prompt) in nats, summed over its tokens; how many these are).

  Prompt and candidate are tokenised apart, as rows for training are; no end of text is added. Numbers are those of `score.score` of the
  whole row, up to float noise. given[i][k]: what stands between prompt i and its candidate k and is read, not counted (a question whose answer
  is the candidate); tokenised apart, too. batch: rows that are held at a time; prompts of like length go together. mesh: rows are split over it.
  ValueError: a candidate of no tokens; a prompt that leaves a candidate no room in the model. Demonstrations that are too long are cut
  where prompts are made, by whole demonstrations or tokens as the protocol has it (data/episodes.py), never here.
  """
  if len(texts) != len(prompts):
    raise ValueError(f'of_texts: {len(prompts)} prompts and {len(texts)} lists of candidates; each prompt needs its own')
  given = [[''] * len(several) for several in texts] if given is None else given
  if [*map(len, given)] != [*map(len, texts)]:
    raise ValueError('of_texts: given= needs a text, maybe an empty one, for each candidate of each prompt')
  rows = sample._encode(role.text, prompts, None, role.model.start_id)[0]
  wanted, skips = _candidates(role, prompts, rows, texts, given)
  if not any(wanted):
    return [[] for _ in prompts]
  settings = loop.Settings(1)
  params, place = sample._place(role.model, params, mesh)
  static = sample._static(role.model, mesh), settings, mesh
  shared, rest = sample._share(static, params, [rows[i] for i, some in enumerate(wanted) if some])
  rest = dict(zip([i for i, some in enumerate(wanted) if some], rest))
  sizes = _sizes(rest, wanted, batch, mesh)
  of = lambda values, chosen: [values[i] for i in chosen]
  pending = [(chosen, *_ask(static, params, shared, of(rest, chosen), of(wanted, chosen), of(skips, chosen), sizes, place, role.text.pad_id))
             for chosen in _chunks(rest, wanted, sizes)]
  out: list[list[tuple[float, int]]] = [[] for _ in prompts]
  for chosen, begins, goes_on in pending:
    begins_MK = np.array(hosts.to_host(begins), np.float64)
    for m, i in enumerate(chosen):
      begins_MK[m, [k for k, skip in enumerate(skips[i]) if skip]] = 0.0
    for where, asked, sums in goes_on:      # picked on the host: on the device every number of them would be a program of its own
      np.add.at(begins_MK, tuple(np.asarray(where).T), np.asarray(hosts.to_host(sums), np.float64)[asked])
    for m, i in enumerate(chosen):
      out[i] = [(float(begins_MK[m, k]), len(ids) - skips[i][k]) for k, ids in enumerate(wanted[i])]
  return out


def _candidates(role: Role, prompts, rows, texts, given) -> tuple[list[list[list[int]]], list[list[int]]]:
  """(the ids of what is given and every candidate, checked; how many of these are given)."""
  before = iter(role.text.encode_many([text for several in given for text in several]))
  ids = iter(role.text.encode_many([text for several in texts for text in several]))
  wanted = [[next(ids) for _ in several] for several in texts]
  asked = [[next(before) for _ in several] for several in texts]
  most = (role.model.config or {}).get('max_length')
  for i, several in enumerate(wanted):
    for k, (text, candidate) in enumerate(zip(texts[i], several)):
      if not candidate:
        raise ValueError(f'of_texts: the candidate {text!r} of prompt {i} ({prompts[i][-40:]!r}) has no tokens, so it has no likelihood: leave '
                         'it out or write it out')
      candidate = several[k] = asked[i][k] + candidate
      held = len(candidate) if role.model.start_id is not None else len(rows[i]) + len(candidate) - 1
      if most is not None and held > most:
        raise ValueError(f'of_texts: prompt {i} has {len(rows[i])} tokens and its candidate {text!r} {len(candidate)}; the model reads '
                         f'{most}: take fewer or shorter demonstrations')
  return wanted, [[len(ids) for ids in several] for several in asked]


class Sizes(NamedTuple):
  """What is compiled. widths: of prompts; prompts: M; candidates: K; together: C; apart: rows get copies of their prompt, since they lie on
  several devices."""
  widths: tuple[int, ...]
  prompts: int
  candidates: int
  together: int
  apart: bool


def _power(count: int) -> int:
  return 1 << (max(count, 1) - 1).bit_length()


def _rounded(count: int) -> int:
  """Tokens that rows are compiled for: powers of two, from 16 on multiples of 8."""
  return _power(count) if count <= 16 else -(-count // 8) * 8


def _sizes(rest, wanted, batch: int, mesh: Mesh | None) -> Sizes:
  pieces = 1 if mesh is None else mesh_lib.row_count(mesh)
  longest = -(-max(max(map(len, rest.values())) - 1, 1) // 16) * 16
  several = max(sum(len(ids) > 1 for ids in wanted[i]) for i in rest)
  together = min(_power(several), max(batch // PROMPTS, 1))
  prompts = -(-min(max(batch // together, 1), _power(len(rest))) // pieces) * pieces
  return Sizes(batching.halves(longest, batching.SHORTEST), prompts, _power(max(len(wanted[i]) for i in rest)), together, pieces > 1)


def _chunks(rest, wanted, sizes: Sizes):
  """Prompts that go together: of one width, with candidates of like length; the longest first."""
  width = lambda i: batching.fit(len(rest[i]) - 1, sizes.widths) if len(rest[i]) > 1 else sizes.widths[0]
  order = sorted(rest, key=lambda i: (-width(i), -max(map(len, wanted[i])), i))
  chunk: list[int] = []
  for i in order:
    if chunk and (len(chunk) == sizes.prompts or width(i) != width(chunk[0])):
      yield chunk
      chunk = []
    chunk.append(i)
  yield chunk


def _ask(static, params, shared, rows, wanted, skips, sizes: Sizes, place, pad_id: int):
  """(log p of the first token of each candidate [M, K], [(places (m, k), which rows they are, log p of the other tokens [R]), ...])."""
  M, width = sizes.prompts, batching.fit(max(max(map(len, rows)) - 1, 1), sizes.widths)
  before, lengths, last = np.full((M, width), pad_id, np.int32), np.zeros(M, np.int32), np.full(M, pad_id, np.int32)
  firsts = np.zeros((M, sizes.candidates), np.int32)
  for m, (row, several) in enumerate(zip(rows, wanted)):
    lengths[m], last[m] = len(row) - 1, row[-1]
    before[m, :lengths[m]] = row[:-1]
    firsts[m, :len(several)] = [ids[0] for ids in several]
  before, lengths, last, firsts = place(before, lengths, last, firsts)
  begins, cache = _begin(*_with_source(static, width), params, shared.cache, np.int32(shared.length), before, lengths, last, firsts)
  rest = [[k for k, ids in enumerate(several) if len(ids) > 1] for several in wanted]
  goes_on, C = [], sizes.together
  for at in range(0, max(map(len, rest)), C):
    held = [(m, c, k) for m, ks in enumerate(rest) for c, k in enumerate(ks[at:at + C])]
    T = _rounded(max(len(wanted[m][k]) - 1 for m, _, k in held))
    given, counts, before_them = np.full((M, C, T + 1), pad_id, np.int32), np.zeros((M, C), np.int32), np.zeros((M, C), np.int32)
    for m, c, k in held:
      counts[m, c] = len(wanted[m][k]) - 1
      given[m, c, :counts[m, c] + 1], before_them[m, c] = wanted[m][k], skips[m][k]
    rows_R, counts_R, skips_R = place(given.reshape(M * C, T + 1), counts.reshape(M * C), before_them.reshape(M * C))
    sums = _go_on(*static, sizes.apart, C, params, cache, np.int32(shared.length), lengths, rows_R, counts_R, skips_R)
    # those that are asked for, in the order of `held`
    goes_on.append(([(m, k) for m, _, k in held], [m * C + c for m, c, _ in held], sums))
  return begins, goes_on


def _with_source(static, width: int):
  model, settings, mesh = static
  return model, settings._replace(source=width) if model.start_id is not None else settings, mesh


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _begin(model, settings, mesh, params, shared, offset, before_MW: Array, lengths_M: Array, last_M: Array, firsts_MK: Array):
  """(float32 log p [M, K] of the first tokens, the cache of the whole prompts)."""
  slots = before_MW.shape[1] + 1 if model.start_id is None else 1
  cache = loop.with_shared(pool.read(model, settings, mesh, slots, params, shared, offset, before_MW, lengths_M), shared)
  at_M = offset + lengths_M if model.start_id is None else jnp.zeros_like(lengths_M)
  step = dict(tokens=last_M[:, None], segments=jnp.ones_like(last_M)[:, None], positions=at_M[:, None])
  out = model.apply(params, step, cache=cache)
  z = distribution.scaled(out['head'].logits(out['hidden'][:, -1]))
  return jnp.take_along_axis(z, firsts_MK, axis=1) - distribution.log_sum(z), out['cache']


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _go_on(model, settings, mesh, apart: bool, C: int, params, cache: Any, offset, lengths_M: Array, rows_RT: Array, counts_R: Array,
           skips_R: Array) -> Array:
  """float32 [R]: log p of tokens 1, 2, ... of each row, of which counts[r] are there and those from skips[r] on are asked for. Row r has
  prompt r // C."""
  R, T = rows_RT.shape[0], rows_RT.shape[1] - 1
  real_RT = jnp.arange(T)[None] < counts_R[:, None]
  axes = loop.axes_of(model, settings)
  if not apart and isinstance(cache, dict) and 'shared' in cache:
    cache = loop.with_shared(model.cache(R, T, settings.cache_dtype), cache)
  else:
    copy = lambda x, axes: loop.pad(x if axes.row < 0 else jnp.repeat(x, C, axis=axes.row), axes.slot, T)
    cache = loop.with_shared(jax.tree.map(copy, loop.with_shared(cache, None), axes), loop.shared_of(cache))
    cache = loop.split_cache(cache, axes, mesh)
  first_R = jnp.repeat(offset + lengths_M + 1 if model.start_id is None else jnp.ones_like(lengths_M), C)
  step = dict(tokens=rows_RT[:, :-1], segments=real_RT.astype(jnp.int32), positions=jnp.where(real_RT, first_R[:, None] + jnp.arange(T)[None], 0))
  out = model.apply(params, step, cache=cache)
  asked_RT = real_RT & (1 + jnp.arange(T)[None] >= skips_R[:, None])
  return -jnp.sum(tokens.per_token(tokens.cross_entropy, asked_RT.astype(jnp.float32), out, rows_RT[:, 1:]), axis=1)
