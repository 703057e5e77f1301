"""Sampling with a cache: one jitted loop, many samples a prompt, randomness by example id.

`sample` is pure, arrays in and arrays out, for use inside a jit; `write` takes and gives strings, and is where tools and stop strings work.

Shape suffixes: B prompts, P tokens of a prompt, N samples, T new tokens.
"""
import functools
import time
from typing import Any, Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from distill_jax.core import mesh as mesh_lib
from distill_jax.core.types import Model, Role
from distill_jax.decode import loop, watch
from distill_jax.decode.loop import Sampled, Settings

Array = jax.Array
SHORTEST = 16      # prompt lengths are compiled at powers of two from here on
STRIDE = 16        # tokens between two looks for stop strings


def sample(model: Model, params, prompts_BP: Array, segments_BP: Array, ids_B2: Array, key: Array, *, max_new_tokens: int, samples: int = 1,
           temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0, eos_id: int, pad_id: int, allowed: int | None = None,
           mesh: Mesh | None = None) -> Sampled:
  """Continues each prompt `samples` times, up to EOS or `max_new_tokens`; pure, to be called under jax.jit.

  prompts int32 [B, P], LEFT padded; segments int32 [B, P], 1 on the prompt and 0 on padding; a row of padding only yields no tokens.
  temperature 0 is greedy (the key is not used); top_k and top_p as `pick.draw`. ids uint32 [B, 2]: the key of a text is `key` folded
  with its prompt's id and its sample number, then with the number of the token, so neighbours and order do not matter: at the same
  compiled shape the same bits, at another the same text up to near-ties. allowed: ids from here on are never drawn (a padded
  vocabulary). mesh: rows are split over it, params stay as the caller placed them.
  Stop strings and tools that watch the text as it grows need the host: see `write`.
  """
  settings = loop.check(Settings(max_new_tokens, samples, temperature, top_p, top_k, eos_id, pad_id, allowed))
  state = loop.start(model, settings, mesh, params, prompts_BP, segments_BP, ids_B2, key)
  state = loop.advance(model, settings, mesh, params, state, max_new_tokens)
  return loop.result(settings, state)


def write(role: Role, params, prompts: Sequence[str], ids: Sequence[np.ndarray], key: Array, *, max_new_tokens: int, samples: int = 1,
          temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0, batch: int = 64, stop: Sequence[str] = (),
          writer: Callable[[str], str] | None = None, length: int | None = None, progress: Callable[[int], None] | None = None,
          mesh: Mesh | None = None) -> tuple[list[list[dict]], dict]:
  """Continues each prompt `samples` times -> (texts by prompt in the given order and by sample, stats).

  A text is dict(text, tokens int32 with EOS and without padding, logp: their summed log-probability, finished: ended by EOS or a stop
  string, reason: 'eos' | 'stop' | 'length'). stats: prompts, texts, tokens, cut_prompts (longer than fits, cut from the left), seconds.
  ids: the content id of each prompt, uint32 [2]. batch: rows (prompts x samples) at a time; the last batch is filled up, so one shape
  is compiled for each prompt length: powers of two by each prompt's own length, or `length` for all. Later calls with equal settings
  compile nothing. stop: a text is cut before the first of these. writer: text so far -> what must stand next ('' for nothing), asked
  before every token (a step then waits for the host). progress: called with the number of prompts done. mesh: rows are split over it.
  """
  began = time.perf_counter()
  text = role.text
  if len(ids) != len(prompts):
    raise ValueError(f'write: {len(prompts)} prompts and {len(ids)} ids; every prompt needs its content id')
  settings = loop.check(Settings(max_new_tokens, samples, float(temperature), float(top_p), int(top_k),
                                 -1 if text.eos_id is None else text.eos_id, text.pad_id, text.vocab_size))
  pieces = watch.Pieces(text) if stop or writer else None
  rows, cut = _encode(text, prompts, _room(role.model, max_new_tokens, length))
  static = (_static(role.model), settings, mesh)
  params, place = _place(role.model, params, mesh)
  at_once = max(batch // samples, 1)
  at_once = at_once if mesh is None else -(-at_once // mesh_lib.row_count(mesh)) * mesh_lib.row_count(mesh)

  texts: list[Any] = [None] * len(prompts)
  done, tokens = 0, 0
  for width, chosen in _batches([len(r) for r in rows], at_once, length, _room(role.model, max_new_tokens, length)):
    arrays = place(*_pad([rows[i] for i in chosen], [ids[i] for i in chosen], at_once, width, settings.pad_id))
    watches = [watch.Watch(pieces, stop) for _ in range(len(chosen) * samples)] if pieces else []
    out = _run(static, params, arrays, key, watches, writer)
    for b, i in enumerate(chosen):
      texts[i] = [_finish(text, settings, out, b, n, watches, stop) for n in range(samples)]
      tokens += sum(len(t['tokens']) for t in texts[i])
    done += len(chosen)
    if progress is not None:
      progress(done)
  seconds = time.perf_counter() - began
  return texts, dict(prompts=len(prompts), texts=len(prompts) * samples, tokens=tokens, cut_prompts=cut, seconds=seconds)


_start = jax.jit(loop.start, static_argnums=(0, 1, 2))


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=(4,))
def _advance(model, settings, mesh, params, state, until, forced_R, stopped_R):
  state = loop.advance(model, settings, mesh, params, state, until, forced_R, stopped_R)
  return state, (state.tokens_RT, state.lengths_R, state.ended_R)


def _run(static, params, arrays, key, watches, writer) -> Sampled:
  """One batch, start to end; with watches, the host looks at every token (a writer) or every few (stop strings)."""
  settings = static[1]
  state = _start(*static, params, *arrays, key)
  rows, T = state.last_R.shape[0], settings.max_new_tokens
  forced, stopped = np.full(rows, -1, np.int32), np.zeros(rows, bool)
  stride = 1 if writer else STRIDE if watches else T
  ended = stopped
  for until in range(stride, T + stride, stride):
    if writer:
      forced = np.array([-1 if r >= len(watches) or ended[r] else watches[r].ask(writer) for r in range(rows)], np.int32)
    state, seen = _advance(*static, params, state, np.int32(min(until, T)), forced, stopped)
    if watches:
      tokens, lengths, ended = (np.asarray(x) for x in seen)
      for r, each in enumerate(watches):
        for token in tokens[r, len(each.tokens):lengths[r]].tolist():
          each.push(token)
      stopped = np.array([r < len(watches) and watches[r].end is not None for r in range(rows)])
      ended = ended | stopped
      if ended.all():
        break
  return Sampled(*(np.asarray(x) for x in loop.result(settings, state)))


def _finish(text, settings: Settings, out: Sampled, b: int, n: int, watches, stop) -> dict:
  """One text of a batch as the caller gets it."""
  end = watches[b * settings.samples + n].end if watches else None
  length = int(out.lengths_BN[b, n]) if end is None else end
  tokens = out.tokens_BNT[b, n, :length].astype(np.int32)
  whole = text.decode(tokens.tolist())
  shown = watch.cut_at(whole, stop)
  ended = length > 0 and int(tokens[-1]) == settings.eos_id
  reason = 'stop' if end is not None or shown != whole else 'eos' if ended else 'length'
  return dict(text=shown, tokens=tokens, logp=float(out.logps_BNT[b, n, :length].sum(dtype=np.float64)), finished=reason != 'length',
              reason=reason)


def _room(model: Model, max_new_tokens: int, length: int | None) -> int | None:
  """The most tokens that a prompt may have, None for any number."""
  most = (model.config or {}).get('max_length')
  if most is None:
    return length
  if most - max_new_tokens < 1:
    raise ValueError(f'write: max_new_tokens={max_new_tokens} leaves no room for a prompt in this model, whose max_length is {most}')
  return most - max_new_tokens if length is None else min(most - max_new_tokens, length)


def _encode(text, prompts: Sequence[str], room: int | None) -> tuple[list[list[int]], int]:
  """(ids of each prompt, how many were cut). With the tokenizer's own first token; a prompt of nothing starts from that, or from EOS."""
  first = [] if text.bos_id is None else [text.bos_id]
  nothing = first or [text.pad_id if text.eos_id is None else text.eos_id]
  rows, cut = [], 0
  for ids in text.encode_many(prompts):
    row = first + list(ids) or nothing
    if room is not None and len(row) > room:
      row = first[:room] + row[len(row) - room + len(first[:room]):]
      cut += 1
    rows.append(row)
  return rows, cut


def _batches(lengths: Sequence[int], at_once: int, length: int | None, room: int | None):
  """(compiled prompt length, places of its prompts), batch by batch. A prompt's compiled length depends on its own length alone."""
  groups: dict[int, list[int]] = {}
  for i, n in enumerate(lengths):
    width = max(SHORTEST, 1 << (n - 1).bit_length()) if length is None else length
    groups.setdefault(width if room is None else min(width, room), []).append(i)
  return [(width, places[i:i + at_once]) for width, places in sorted(groups.items()) for i in range(0, len(places), at_once)]


def _pad(rows, ids, count: int, width: int, pad_id: int):
  """(prompts [count, width], segments, ids), left padded; rows that are missing hold padding only."""
  prompts, segments = np.full((count, width), pad_id, np.int32), np.zeros((count, width), np.int32)
  ids_B2 = np.zeros((count, 2), np.uint32)
  for b, (row, id_2) in enumerate(zip(rows, ids)):
    prompts[b, width - len(row):], segments[b, width - len(row):], ids_B2[b] = row, 1, id_2
  return prompts, segments, ids_B2


def _static(model: Model) -> Model:
  """`model` as a key of compiled functions: its tables, which need not hash, are not read by the loop."""
  return model._replace(axes=(), trainable=(), config=None)


def _place(model: Model, params, mesh: Mesh | None):
  """(params on the devices, function that puts arrays of rows there). Params that lie on this mesh already stay as they lie."""
  if mesh is None:
    return jax.device_put(params), lambda *arrays: arrays
  on_it = lambda x: isinstance(x, jax.Array) and isinstance(x.sharding, NamedSharding) and x.sharding.mesh == mesh
  params = params if all(map(on_it, jax.tree.leaves(params))) else jax.device_put(params, mesh_lib.of_params(mesh, params, model.axes))
  return params, lambda *arrays: jax.device_put(arrays, mesh_lib.rows(mesh))
