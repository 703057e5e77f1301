"""Sampling with a cache: many samples a prompt, randomness by example id.

`sample` is pure, arrays in and arrays out, for use inside a jit; `write` takes and gives strings, and is where tools and stop strings work.

Shape suffixes: B prompts, P tokens of a prompt, N samples, T new tokens.
"""
import functools
import time
from typing import Any, Callable, NamedTuple, Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from distill_jax.core import mesh as mesh_lib
from distill_jax.core.types import Model, Role
from distill_jax.decode import batching, loop, watch
from distill_jax.decode.loop import Sampled, Settings

Array = jax.Array
ALIKE = 32      # what all prompts begin with is read once in pieces of so many tokens


def sample(model: Model, params, prompts_BP: Array, segments_BP: Array, ids_B2: Array, key: Array, *, max_new_tokens: int, samples: int = 1,
           temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0, eos_id: int, pad_id: int, allowed: int | None = None,
           cache_dtype: str | None = None, mesh: Mesh | None = None) -> Sampled:
  """Continues each prompt `samples` times, up to EOS or `max_new_tokens`; pure, to be called under jax.jit.

  prompts int32 [B, P], LEFT padded; segments int32 [B, P], 1 on the prompt and 0 on padding; a row of padding only yields no tokens.
  temperature 0 is greedy (the key is not used); top_k and top_p as `pick.draw`. ids uint32 [B, 2]: the key of a text is `key` folded
  with its prompt's id and its sample number, then with the number of the token, so neighbours and order do not matter: at the same
  compiled shape the same bits, at another the same text up to near-ties. allowed: ids from here on are never drawn (a padded
  vocabulary). mesh: rows are split over it, params stay as the caller placed them.
  A model with an encoder reads the whole prompt there and starts from its start_id. Stop strings and tools that watch the text as it grows need the host: see `write`.
  """
  settings = loop.check(Settings(max_new_tokens, samples, temperature, top_p, top_k, eos_id, pad_id, allowed, cache_dtype))
  return loop.run(model, settings, mesh, params, prompts_BP, segments_BP, ids_B2, key)


def write(role: Role, params, prompts: Sequence[str], ids: Sequence[np.ndarray], key: Array, *, max_new_tokens: int, samples: int = 1,
          temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0, batch: int = 64, stop: Sequence[str] = (),
          writer: Callable[[str], str] | None = None, length: int | None = None, cache_dtype: str | None = None,
          progress: Callable[[int], None] | None = None, mesh: Mesh | None = None) -> tuple[list[list[dict]], dict]:
  """Continues each prompt `samples` times -> (texts by prompt in the given order and by sample, stats).

  A text is dict(text, tokens int32 with EOS and without padding, logp: their summed log-probability, finished: ended by EOS or a stop
  string, reason: 'eos' | 'stop' | 'length'). stats: prompts, texts, tokens, cut_prompts (longer than fits, cut from the left),
  shared_tokens (what all prompts begin with and is read once), seconds, tokens_per_second (written ones).
  ids: the content id of each prompt, uint32 [2]. batch: rows (prompts x samples) that are held at a time; one that has ended makes room
  for the next text. A prompt is read once for its samples. length: prompts of up to so many tokens are compiled for, longer ones cut
  (default: the longest of these); calls with equal settings and lengths compile nothing new. Texts at the same compiled shapes are
  equal up to near-ties, whatever the order and number of prompts. stop: a text is cut before the first of these. writer: text so far ->
  what must stand next ('' for nothing), asked before every token (a step then waits for the host). cache_dtype: 'float32' | 'bfloat16' |
  'int8' (a scale a vector); default: the model's. progress: called with the number of prompts done. mesh: rows are split over it.
  """
  began = time.perf_counter()
  text, model = role.text, role.model
  if len(ids) != len(prompts):
    raise ValueError(f'write: {len(prompts)} prompts and {len(ids)} ids; every prompt needs its content id')
  settings = loop.check(Settings(max_new_tokens, samples, float(temperature), float(top_p), int(top_k),
                                 -1 if text.eos_id is None else text.eos_id, text.pad_id, text.vocab_size, cache_dtype))
  pieces = watch.Pieces(text) if stop or writer else None
  room = _room(model, max_new_tokens, length)
  rows, cut = _encode(text, prompts, room, model.start_id)
  static = (_static(model, mesh), settings, mesh)
  params, place = _place(model, params, mesh)
  shared, rest = _share(static, params, rows)
  longest = max(map(len, rest), default=1) if length is None else room - shared.length
  sizes = batching.shapes(static[0], settings, params, mesh, batch=batch, longest=longest - 1, texts=len(prompts) * samples)
  static = (static[0], settings._replace(source=sizes.reads[-1]) if model.start_id is not None else settings, mesh)
  texts: list[list[Any]] = [[None] * samples for _ in prompts]
  done, tokens = 0, 0
  for out in batching.run(static, params, _ready(static[0], params), rest, ids, key, shared=shared.cache, offset=shared.length, sizes=sizes,
                          place=place, watching=lambda: watch.Watch(pieces, stop) if pieces else None, writer=writer):
    texts[out.prompt][out.sample] = _finish(text, settings, out, stop)
    tokens += len(out.tokens)
    if all(texts[out.prompt]):
      done += 1
      if progress is not None:
        progress(done)
  seconds = time.perf_counter() - began
  return texts, dict(prompts=len(prompts), texts=len(prompts) * samples, tokens=tokens, cut_prompts=cut, shared_tokens=shared.length,
                     seconds=seconds, tokens_per_second=tokens / seconds)


def _finish(text, settings: Settings, out: batching.Written, stop) -> dict:
  """One text as the caller gets it."""
  whole = text.decode(out.tokens)
  shown = watch.cut_at(whole, stop)
  ended = bool(out.tokens) and out.tokens[-1] == settings.eos_id
  reason = 'stop' if out.stopped or shown != whole else 'eos' if ended else 'length'
  return dict(text=shown, tokens=np.asarray(out.tokens, np.int32), logp=float(np.sum(out.logps, dtype=np.float64)),
              finished=reason != 'length', reason=reason)


class Shared(NamedTuple):
  """What all prompts begin with. cache: of one row, None where nothing is shared; length: its tokens."""
  cache: Any
  length: int


def _share(static, params, rows: list[list[int]]) -> tuple[Shared, list[list[int]]]:
  """(the common beginning, read once, what each prompt has behind it, at least one token)."""
  if len(rows) < 2:
    return Shared(None, 0), rows
  first, last = min(rows), max(rows)
  common = next((i for i, (a, b) in enumerate(zip(first, last)) if a != b), min(len(first), len(last)))
  common = min(common, min(map(len, rows)) - 1) // ALIKE * ALIKE
  can = jax.eval_shape(functools.partial(static[0].cache, 1, 1, static[1].cache_dtype))
  if common == 0 or not (isinstance(can, dict) and 'shared' in can):
    return Shared(None, 0), rows
  return Shared(batching._prefix(static[0], batching.of_pool(static[1]), params, np.asarray(first[:common], np.int32)), common), [row[common:] for row in rows]


_ready = jax.jit(lambda model, params: model.ready(params), static_argnums=0)


def _room(model: Model, max_new_tokens: int, length: int | None) -> int | None:
  """The most tokens that a prompt may have, None for any number."""
  most = (model.config or {}).get('max_length')
  if most is None:
    return length
  if most - max_new_tokens < 1:
    raise ValueError(f'write: max_new_tokens={max_new_tokens} leaves no room for a prompt in this model, whose max_length is {most}')
  return most - max_new_tokens if length is None else min(most - max_new_tokens, length)


def longest(role: Role, prompts: Sequence[str]) -> int:
  """Tokens of the longest of these prompts, with the one before a prompt (or the one that decoding starts from), in multiples of 16."""
  encode = role.text.encode_many if role.model.start_id is None else role.text.encode_whole
  return -(-(max(map(len, encode(prompts))) + 1) // 16) * 16


def _encode(text, prompts: Sequence[str], room: int | None, start_id: int | None = None) -> tuple[list[list[int]], int]:
  """(ids of each prompt, how many were cut). With the tokenizer's own first token; a prompt of nothing starts from that, or from EOS.

  Of a model with an encoder: what that reads, as the tokenizer itself writes a text, and the token that decoding starts from.
  """
  first = [] if text.bos_id is None else [text.bos_id]
  if start_id is not None:
    whole = text.encode_whole(prompts)
    room = max(map(len, whole), default=0) if room is None else max(room - 1, 1)
    keep = lambda ids: ids if len(ids) <= room else (first + ids[len(ids) - room + len(first):])[:room]
    return [keep(ids) + [start_id] for ids in whole], sum(len(ids) > room for ids in whole)
  nothing = first or [text.pad_id if text.eos_id is None else text.eos_id]
  rows, cut = [], 0
  for ids in text.encode_many(prompts):
    row = first + list(ids) or nothing
    if room is not None and len(row) > room:
      row = first[:room] + row[len(row) - room + len(first[:room]):]
      cut += 1
    rows.append(row)
  return rows, cut


def _static(model: Model, mesh: Mesh | None) -> Model:
  """`model` as a key of compiled functions: its tables, which need not hash, are not read by the loop. It computes on the mesh."""
  return _on(model._replace(axes=(), trainable=(), config=None), mesh)


@functools.lru_cache(maxsize=64)
def _on(model: Model, mesh: Mesh | None) -> Model:
  def apply(*args, **keywords):
    with mesh_lib.on(mesh):
      return model.apply(*args, **keywords)
  return model if mesh is None or mesh.size == 1 else model._replace(apply=apply)


def _place(model: Model, params, mesh: Mesh | None):
  """(params on the devices, function that puts arrays of rows there). Params that lie on this mesh already stay as they lie."""
  if mesh is None:
    return jax.device_put(params), lambda *arrays: arrays
  on_it = lambda x: isinstance(x, jax.Array) and isinstance(x.sharding, NamedSharding) and x.sharding.mesh == mesh
  params = params if all(map(on_it, jax.tree.leaves(params))) else jax.device_put(params, mesh_lib.of_params(mesh, params, model.axes))
  return params, lambda *arrays: jax.device_put(arrays, mesh_lib.rows(mesh))
