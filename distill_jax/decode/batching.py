"""Continuous batching on the host: prompts enter a pool of rows, rows of like length go on together a few tokens at a time, and what has
ended makes room at once. Nothing is compiled anew: the shapes are those of `shapes`.

Short rows do not attend to the slots that long ones need, since they are taken in turns by length; how many go
at a time follows from what a step reads: the weights once a turn, the caches of its rows. Texts of one prompt go on side by side and
read one copy of it.
"""
import concurrent.futures
import functools
import math
from typing import Any, Callable, Iterator, NamedTuple, Sequence

import jax
import numpy as np

from distill_jax.core import hosts, mesh as mesh_lib
from distill_jax.decode import loop, pool as pool_lib, watch

TURN = 16          # tokens of a turn
SHORTEST = 48      # narrowest width at which prompts are read, tokens
NARROWEST = 64     # narrowest width at which rows are taken, slots; half of it where prompts stand apart
TOGETHER = 4       # most texts of one prompt that read it at once; so many that end at different times leave few of their places empty
AT_ONCE = {'cpu': 2}      # by platform; a turn's many small operations leave the second core idle (elsewhere turns would only take memory)
CACHE_SHARE = 2    # a turn reads at least so many times the bytes of the weights from its caches, where the pool is large enough


class Written(NamedTuple):
  """One text. tokens: up to its end, EOS counted; logps: theirs; stopped: by a stop string."""
  prompt: int
  sample: int
  tokens: list[int]
  logps: list[float]
  stopped: bool


class Row:
  """A text that stands in a row of the pool. used: slots that hold its tokens; behind: where its prompt stands, None: in these slots."""

  def __init__(self, prompt: int, sample: int, used: int, behind: int | None, seen: watch.Watch | None):
    self.prompt, self.sample, self.used, self.behind, self.seen = prompt, sample, used, behind, seen
    self.tokens: list[int] = []
    self.logps: list[float] = []


class Shapes(NamedTuple):
  """What is compiled. rows: of the pool; reads: widths of prompts, the longest last; widths: slots that are taken, all of a row last;
  taken: rows of a turn, None for all as they lie; prompts: read at a time; together: texts of a prompt that read one copy of it in a turn
  (1: prompts stand in the rows); places: for such copies; alone: whether turns of single rows behind a copy are compiled as well; at_once:
  turns that the device does side by side."""
  rows: int
  reads: tuple[int, ...]
  widths: tuple[int, ...]
  taken: int | None
  prompts: int
  together: int = 1
  places: int = 0
  alone: bool = False
  at_once: int = 1


def halves(most: int, least: int) -> tuple[int, ...]:
  """`most` and its halves, in multiples of 16, down to `least`; ascending."""
  sizes = [most]
  while -(-sizes[0] // 32) * 16 >= least and sizes[0] > 16:
    sizes.insert(0, -(-sizes[0] // 32) * 16)
  return tuple(sizes)


def fit(length: int, sizes: Sequence[int]) -> int:
  """The least of `sizes` that holds `length`."""
  return next(size for size in sizes if size >= length)


def shapes(model, settings, params, mesh, *, batch: int, longest: int, texts: int) -> Shapes:
  """For `batch` rows, fewer where there are not so many `texts`, and prompts of up to `longest` tokens besides the last one."""
  N, pieces = settings.samples, 1 if mesh is None else mesh_lib.row_count(mesh)
  whole = lambda count: -(-max(count, 1) // pieces) * pieces
  enough = 1 << (max(texts, 16) - 1).bit_length()
  rows = whole(min(batch, enough) // N) * N
  longest = -(-max(longest, 1) // 16) * 16
  slots = (longest if model.start_id is None else 0) + -(-settings.max_new_tokens // TURN) * TURN
  few = texts <= rows
  empty = functools.partial(loop.empty, model, settings._replace(source=longest), 1)
  cache = jax.eval_shape(lambda: empty(slots))
  together = min(N, TOGETHER) if pieces == 1 and isinstance(cache, dict) and 'shared' in cache else 1
  slots -= longest if together > 1 else 0
  reads, widths = ((longest,), (slots,)) if few else (halves(longest, SHORTEST), halves(slots, NARROWEST if together == 1 else NARROWEST // 2))
  taken = rows if pieces == 1 else None
  bytes_of = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
  of_slots = lambda count: bytes_of(jax.eval_shape(lambda: empty(count)))
  row = of_slots(slots) / 2 + (of_slots(longest) / together if together > 1 else 0)      # about half in use
  while taken and taken > 16 and taken % (2 * together) == 0 and taken / 2 * row >= CACHE_SHARE * bytes_of(params):
    taken //= 2
  if together > 1 and taken % together:
    together = math.gcd(together, taken)
  return Shapes(rows, reads, widths, taken, whole(rows // (4 * N)), together, 2 * rows // N if together > 1 else 0, not few,
                AT_ONCE.get(mesh_lib.platform_of(mesh), 1) if mesh is None or mesh.size == 1 else 1)


def run(static, params, ready, prompts: Sequence[Sequence[int]], ids: Sequence[np.ndarray], key, *, shared, offset: int, sizes: Shapes,
        place: Callable, watching: Callable[[], watch.Watch | None], writer: Callable[[str], str] | None) -> Iterator[Written]:
  """Yields every text of every prompt as it ends, long prompts first.

  prompts: of a model with an encoder, what that reads and then the token that decoding starts from. static: (model, settings, mesh);
  params read the prompts, `ready` the tokens; shared: cache of `offset` tokens that stand before all.
  """
  N, kept = static[1].samples, (static[0], of_pool(static[1]), static[2])
  order = sorted(range(len(prompts)), key=lambda i: (fit(len(prompts[i]) - 1, sizes.reads), -i))
  waiting = [(i, n) for i in order for n in reversed(range(N))]      # its end is next
  held: dict[int, Row] = {}
  used = lambda i: len(prompts[i]) - 1 if static[0].start_id is None else 0
  free = list(range(sizes.rows))
  threads = concurrent.futures.ThreadPoolExecutor(sizes.at_once) if sizes.at_once > 1 else None
  # on CPU a call runs on the thread that waits for it
  side_by_side = map if threads is None else lambda call, items: threads.map(lambda item: jax.block_until_ready(call(item)), items)
  pool = _make(*kept, sizes.rows + (sizes.taken is not None), sizes.widths[-1])      # one row more, for nobody, where rows are taken
  copies = Copies(_empty(*kept, sizes.places, sizes.reads[-1]), list(range(sizes.places)), {}) if sizes.together > 1 else None
  while waiting or held:
    while waiting and (len(free) >= min(sizes.prompts * N, len(waiting)) and (copies is None or copies.free) or not held):
      chosen = _next(waiting, prompts, len(free), sizes, N, copies)
      rows = [free.pop() for _ in chosen]
      before, lengths, last, ids_M2, *into = _arrays(chosen, rows, prompts, ids, sizes, N, static[1].pad_id, place)
      caches = _read(*kept, sizes.widths[-1] if copies is None else sizes.reads[-1], params, shared, np.int32(offset), before, lengths)
      if copies is None:
        pool = _lay(*kept, pool, caches, np.int32(offset), lengths, last, ids_M2, key, *into)
      else:
        pool, cache = _enter(*kept, pool, copies.cache, caches, np.int32(offset), lengths, last, ids_M2, key, *into,
                             copies.place(list(dict.fromkeys(i for i, _ in chosen)), sizes.prompts))
        copies = copies._replace(cache=cache)
      held.update({r: Row(i, n, *((used(i), None) if copies is None else (0, copies.where[i])), watching())
                   for r, (i, n) in zip(rows, chosen)})
    begun = []
    groups = _groups(held, sizes, prompts)
    for at in range(0, len(groups), sizes.at_once):
      wave = [_take_turn(kept, pool, copies, shared, [held.get(r) for r in rows], rows, together, sizes, prompts)
              for rows, together in groups[at:at + sizes.at_once]]
      moved = side_by_side(lambda turn: _move(static, ready, turn, writer), wave)
      for turn, (state, seen) in zip(wave, list(moved)):
        pool = _put(*kept, turn.width, TURN, pool, turn.rows_G, state)
        begun.append((turn.rows, seen))
    for rows, (tokens, logps, number, ended) in begun:      # the device has the later ones still to do while the host reads the first
      tokens, logps, number, ended = hosts.to_host((tokens, logps, number, ended))
      for g, r in enumerate(rows):
        if r in held and (text := _grow(held[r], tokens[g], logps[g], int(number[g]), bool(ended[g]))):
          row = held.pop(r)
          free.append(r)
          if copies is not None and not any(other.prompt == row.prompt for other in held.values()):
            copies.drop(row.prompt)
          yield text


class Copies(NamedTuple):
  """Prompts that texts are being written to. free: places of the cache where none stands; where: the place of each prompt."""
  cache: Any
  free: list[int]
  where: dict[int, int]

  def place(self, wanted: Sequence[int], count: int) -> np.ndarray:
    """Places for these prompts, int32 [count]: their own where they stand already, one past the end for nobody."""
    for i in wanted:
      if i not in self.where:
        self.where[i] = self.free.pop()
    return np.array([self.where[i] for i in wanted] + [len(self.free) + len(self.where)] * (count - len(wanted)), np.int32)

  def drop(self, i: int) -> None:
    """Makes room."""
    self.free.append(self.where.pop(i))


def _next(waiting: list, prompts, free: int, sizes: Shapes, N: int, copies: Copies | None) -> list[tuple[int, int]]:
  """Takes the next texts from the end of `waiting`: of prompts that are read at one width, as many as fit."""
  room = sizes.prompts if copies is None else min(sizes.prompts, len(copies.free))
  chosen: list[tuple[int, int]] = []
  width = lambda i: fit(len(prompts[i]) - 1, sizes.reads)
  while waiting and len(chosen) < min(free, sizes.prompts * N):
    i = waiting[-1][0]
    new = {i, *(j for j, _ in chosen)}
    if len(new) > sizes.prompts or copies and len(new - set(copies.where)) > room or chosen and width(i) != width(chosen[0][0]):
      break
    chosen.append(waiting.pop())
  return chosen


def of_pool(settings):
  """What rows that wait depend on: texts that are drawn in other ways, or more often, are kept by the same programs."""
  return loop.Settings(max_new_tokens=1, pad_id=settings.pad_id, cache_dtype=settings.cache_dtype, source=settings.source)


def _arrays(chosen, rows, prompts, ids, sizes: Shapes, N: int, pad_id: int, place):
  """(before, lengths, last, ids of the prompts; rows, source, sample) as `pool.read` and `pool.lay` take them."""
  wanted = list(dict.fromkeys(i for i, _ in chosen))
  width, M, F = fit(len(prompts[wanted[0]]) - 1, sizes.reads), sizes.prompts, sizes.prompts * N
  before, ids_M2 = np.full((M, width), pad_id, np.int32), np.zeros((M, 2), np.uint32)
  lengths, last = np.zeros(M, np.int32), np.zeros(M, np.int32)
  for m, i in enumerate(wanted):
    lengths[m], last[m], ids_M2[m] = len(prompts[i]) - 1, prompts[i][-1], ids[i]
    before[m, :lengths[m]] = prompts[i][:-1]
  into, source, sample = np.full(F, sizes.rows + 1, np.int32), np.zeros(F, np.int32), np.zeros(F, np.int32)
  for f, (r, (i, n)) in enumerate(zip(rows, chosen)):
    into[f], source[f], sample[f] = r, wanted.index(i), n
  return *place(before, lengths, last, ids_M2), into, source, sample


def _groups(held: dict[int, Row], sizes: Shapes, prompts) -> list[tuple[list[int], int]]:
  """(rows that go on together, how many of them in turn stand behind one copy of a prompt); row `sizes.rows` is nobody's."""
  if sizes.taken is None:
    return [(list(range(sizes.rows)), 1)]
  in_turns = lambda items, count: [items[i:i + count] for i in range(0, len(items), count)]
  by_length = sorted(held, key=lambda r: (held[r].used, r))
  if sizes.together == 1:
    return [(rows, 1) for rows in in_turns(by_length, sizes.taken)]
  by_prompt: dict[int, list[int]] = {}
  for r in by_length:
    by_prompt.setdefault(held[r].prompt, []).append(r)
  chunks = [chunk for rows in by_prompt.values() for chunk in in_turns(rows, sizes.together)]
  alone = [r for chunk in chunks if len(chunk) * 2 <= sizes.together for r in chunk] if sizes.alone else []
  room = -len([c for c in chunks if c[0] not in alone]) % (sizes.taken // sizes.together)
  if len([c for c in chunks if c[0] in alone]) <= room:      # empty places there cost nothing
    alone = []
  longest = lambda rows: (fit(held[rows[-1]].used + 1, (*sizes.widths, sizes.widths[-1] + 1)), len(prompts[held[rows[0]].prompt]), rows)
  chunks = sorted((c for c in chunks if c[0] not in alone), key=longest)
  pad = lambda chunk: chunk + [sizes.rows] * (sizes.together - len(chunk))
  return [*((sum(map(pad, some), []), sizes.together) for some in in_turns(chunks, sizes.taken // sizes.together)),
          *((rows, 1) for rows in in_turns(alone, sizes.taken))]


class Turn(NamedTuple):
  """Rows that were taken. texts: theirs, None where there is none; width: slots of each."""
  rows: list[int]
  texts: list[Row | None]
  width: int
  rows_G: np.ndarray | None
  state: Any


def _take_turn(kept, pool, copies: Copies | None, shared, texts: list[Row | None], rows: list[int], together: int, sizes: Shapes, prompts) -> Turn:
  """Takes these rows of the pool; copies of their prompts come along."""
  width = fit(max(text.used for text in texts if text), sizes.widths)
  count = sizes.taken or sizes.rows
  live = np.array([text is not None for text in texts] + [False] * (count - len(rows)))
  rows_G = np.array(rows + [sizes.rows] * (count - len(rows)), np.int32) if sizes.taken else None
  if copies is not None:
    read = fit(max(len(prompts[text.prompt]) - 1 for text in texts if text), sizes.reads)
    of_chunk = [next((text.behind for text in texts[at:at + together] if text), 0) for at in range(0, len(texts), together)]
    places = np.array(of_chunk + [0] * (count // together - len(of_chunk)), np.int32)
    shared = _behind(*kept[:2], read, copies.cache, places, shared)
  state = _take(*kept, width, TURN, pool, shared, rows_G, live)
  return Turn(rows, texts + [None] * (count - len(rows)), width, rows_G, state)


def _move(static, params, turn: Turn, writer):
  """A turn of tokens -> (state, what was written)."""
  for text in turn.texts:
    if text:
      text.used += TURN
  if writer:
    return _advance_with(static, params, turn.state, turn.texts, writer)
  return _advance(*static, params, turn.state, np.int32(TURN), None, None)


def _advance_with(static, params, state, texts: list[Row | None], writer):
  """A turn in which a tool is asked before every token. Its watches read along; `_grow` then has nothing left to show them."""
  ended = np.array([text is None for text in texts])
  for step in range(1, TURN + 1):
    forced = np.array([-1 if gone else text.seen.ask(writer) for text, gone in zip(texts, ended)], np.int32)
    state, seen = _advance(*static, params, state, np.int32(step), forced, ended)
    tokens, _, number, ended = map(np.array, hosts.to_host(seen))
    for g, text in enumerate(texts):
      if text and number[g] > len(text.seen.tokens):
        text.seen.push(int(tokens[g, step - 1]))
        ended[g] |= text.seen.end is not None
    if ended.all():
      break
  return state, seen


def _grow(row: Row, tokens: np.ndarray, logps: np.ndarray, number: int, ended: bool) -> Written | None:
  """Adds what a turn wrote to its text -> the text, where that ended it."""
  fresh = number - len(row.tokens)
  row.tokens += tokens[:fresh].tolist()
  row.logps += logps[:fresh].tolist()
  end = None
  if row.seen is not None:
    for token in row.tokens[len(row.seen.tokens):]:
      row.seen.push(token)
    end = row.seen.end
  if end is None and not ended:
    return None
  return Written(row.prompt, row.sample, row.tokens[:end], row.logps[:end], end is not None)


_make = jax.jit(pool_lib.make, static_argnums=(0, 1, 2, 3, 4))
_prefix = jax.jit(pool_lib.prefix, static_argnums=(0, 1))
_read = jax.jit(pool_lib.read, static_argnums=(0, 1, 2, 3))
_lay = jax.jit(pool_lib.lay, static_argnums=(0, 1, 2), donate_argnums=(3,))
_empty = jax.jit(pool_lib.empty, static_argnums=(0, 1, 2, 3, 4))
_enter = jax.jit(pool_lib.enter, static_argnums=(0, 1, 2), donate_argnums=(3, 4))
_behind = jax.jit(pool_lib.behind, static_argnums=(0, 1, 2))
_take = jax.jit(pool_lib.take, static_argnums=(0, 1, 2, 3, 4))
_put = jax.jit(pool_lib.put, static_argnums=(0, 1, 2, 3, 4), donate_argnums=(5,))


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=(4,))
def _advance(model, settings, mesh, params, state: Any, until, forced_G, stopped_G):
  state = loop.advance(model, settings, mesh, params, state, until, forced_G, stopped_G)
  return state, (state.tokens_RT, state.logps_RT, state.number_R, state.ended_R)
