"""Codec: a teacher's top-k labels of one example in few bytes, at a loss that is known before.

Shape suffixes: L tokens of an example, K most entries of a token; n entries that a token has.

What is written, one after the other (format 1): header, counts (only where a token has fewer than K entries), ids, scales (only where they
pay), values, tails. All but the header are integers as in data/bits.py; an example is read whole, examples apart from one another.
* ids: a token's ids in rising order as gaps, Rice or Exp-Golomb, the order falling with log2 n: for a random set about 0.15 bits an id
  above the log2 C(V, n) / n that it has.
* values: sqrt(p) in whole steps of sqrt(6 nats / n). Between near distributions KL is 2 sum (sqrt p - sqrt q)^2 (the square root makes the
  Fisher metric flat: Amari and Nagaoka 2000, section 2.6), so equal steps in sqrt(p) lose the least for their number; rounding has variance
  step^2 / 12, hence the loss is 2 n step^2 / 12 = `nats` a token, and at most 3.5 times that. At k = 64 and nats = 2e-4 these are the 231
  levels of an 8-bit code, but most entries of a real top k are small, and small numbers take few bits. scales: the Exp-Golomb order of each
  token's values, since flat and peaked distributions alternate.
* tails: what is missing to 1, in units of 2^-24, the finest that 1 - sum of float32 probabilities can show. Decoding scales the values so
  that it is met.
Draws (data/draws.py) are exact: their counts are written instead of values and tails. Tokens at the beginning that have no entry (a
prompt's) take no room.
"""
from typing import NamedTuple

import numpy as np

from distill_jax.data import bits

NAME, VERSION = 'compact', 1
NATS = 2e-4      # lost a token by default
_UNITS = 1 << 24
_SMALL = 0.25    # what a value below half a step is read as, in steps
_SQUARES = np.square(np.concatenate([[_SMALL], np.arange(1.0, 4096)]))
_LOGS = np.log(_SQUARES)
_STREAMS = ('counts', 'ids', 'scales', 'values', 'tails')
_SCALES = range(12)
_NONE = 255      # code of a stream that is not there: all tokens have K entries, all values one scale
_ABSENT = bits.Written(_NONE, np.zeros(0, np.uint8), np.zeros(0, np.uint8))


class Parts(NamedTuple):
  """Bytes of an encoded example by part."""
  header: int
  counts: int
  ids: int
  scales: int
  values: int
  tails: int


def check(top_ids_LK: np.ndarray, top_logps_LK: np.ndarray, *, vocab_size: int) -> None:
  """ValueError names the first token whose labels are no distribution, and why."""
  ids, logps = np.asarray(top_ids_LK), np.asarray(top_logps_LK, np.float32)
  if ids.ndim != 2 or ids.shape != logps.shape or not ids.shape[1]:
    raise ValueError(f'top-k labels: ids {ids.shape} and log-probabilities {logps.shape} must both be [tokens, k]')
  if ids.shape[1] > vocab_size:
    raise ValueError(f'top-k labels: k={ids.shape[1]} is above the vocabulary, {vocab_size}')
  there = ids >= 0
  with np.errstate(over='ignore'):
    sums = np.exp(np.where(there, logps, -np.inf), dtype=np.float64).sum(-1)
  in_order = np.sort(ids, axis=-1)
  faults = {
      'a NaN': np.isnan(np.where(there, logps, 0)).any(-1),
      f'an id outside the vocabulary of {vocab_size}': (ids >= vocab_size).any(-1),
      'one id twice': ((in_order[:, 1:] == in_order[:, :-1]) & (in_order[:, 1:] >= 0)).any(-1),
      'only -inf': there.any(-1) & (sums == 0),
      'probabilities that sum to more than 1': sums > 1.01,      # float16 log-probabilities come to 1.002
  }
  for what, rows in faults.items():
    if rows.any():
      raise ValueError(f'the teacher\'s labels of token {np.flatnonzero(rows)[0]} hold {what} ({rows.sum()} of {len(rows)} tokens do)')


def encode(top_ids_LK: np.ndarray, top_logps_LK: np.ndarray, *, vocab_size: int, nats: float = NATS,
           draws: int | None = None) -> np.ndarray:
  """The labels of one example as uint8 [bytes]; `decode` reads them.

  top_ids: int [L, K], distinct, in any order, -1 where there is none (an entry of -inf counts as none); top_logps: float [L, K], of the
  full softmax.  nats: KL(labels || decoded) a token that may be lost, above 0.  draws: the labels are counts of so many draws, exact.
  ValueError as `check`.
  """
  check(top_ids_LK, top_logps_LK, vocab_size=vocab_size)
  tokens, width = np.shape(top_ids_LK)
  there = (np.asarray(top_ids_LK) >= 0) & (np.asarray(top_logps_LK, np.float32) > -np.inf)
  told = np.flatnonzero(there.any(-1))
  first = int(told[0]) if len(told) else tokens
  there, ids = there[first:], np.where(there, top_ids_LK, vocab_size)[first:].astype(np.int64)      # absent ones go last
  order = np.argsort(ids, axis=-1)
  ids, there = np.take_along_axis(ids, order, -1), np.take_along_axis(there, order, -1)
  logps = np.take_along_axis(np.asarray(top_logps_LK, np.float64)[first:], order, -1)
  p = np.exp(np.where(there, logps, -np.inf))
  gaps, counts_L = np.diff(ids, axis=-1, prepend=-1) - 1, there.sum(-1)
  if draws:
    values, tails = _whole(p * draws, there, draws) - 1, _ABSENT
  else:
    values = np.rint(np.sqrt(p / (6 * nats) * counts_L[:, None])).astype(np.int64)
    tails = bits.write(np.rint((1 - p.sum(-1)) * _UNITS).clip(0, _UNITS - 1).astype(np.int64)[counts_L > 0])
  where = there.nonzero()[0]
  streams = (
      bits.write(width - counts_L) if (counts_L < width).any() else _ABSENT, bits.write(gaps[there], _fewer(counts_L)[where]),
      *_values(values, there), tails)
  sizes = [len(part) for stream in streams for part in stream[1:]]
  header = bits.varints([tokens, first, width, draws or 0, *sizes])
  codes = np.array([VERSION, *[stream.code for stream in streams]], np.uint8)
  return np.concatenate([codes, header, *[part for stream in streams for part in stream[1:]]])


def decode(data) -> tuple[np.ndarray, np.ndarray]:
  """(top_ids int32 [L, K], top_logps float32 [L, K]) of an encoded example: ids in rising order, then -1 with log-probability 0.

  1 - sum exp(top_logps) is the tail that was written, to float32 rounding. ValueError for bytes that are not a whole example, or of a
  newer format.
  """
  opened = _open(data)
  tokens, width = opened.tokens - opened.first, opened.width
  try:
    counts_L = _counts(opened)
    if counts_L is None:
      there, n, fewer = None, _possible(opened, tokens * width), _fewer(width)
    else:
      n = _possible(opened, int(counts_L.sum()))
      there, fewer = np.arange(width) < counts_L[:, None], np.repeat(_fewer(counts_L), counts_L)
    spread = lambda flat: flat.reshape(tokens, width) if there is None else _place(there, flat)
    ids = spread(_stream(opened, 'ids', n, fewer) + 1).cumsum(-1) - 1
    scales = 0 if opened.codes['scales'] == _NONE else np.repeat(_stream(opened, 'scales', tokens), width if counts_L is None else counts_L)
    values = _stream(opened, 'values', n, scales)
    if opened.draws:
      logps = spread(np.log((values + 1) / opened.draws))
    else:
      logs, squares = _curve(values)
      sums_L = spread(squares).sum(-1)
      logps = spread(logs) + np.log(_kept(opened, counts_L) / np.where(sums_L > 0, sums_L, 1))[:, None]
    top_ids, top_logps = np.full((opened.tokens, width), -1, np.int32), np.zeros((opened.tokens, width), np.float32)
    top_ids[opened.first:] = ids if there is None else np.where(there, ids, -1)
    top_logps[opened.first:] = logps if there is None else np.where(there, logps, 0)
  except (ValueError, IndexError, OverflowError, MemoryError) as error:
    raise ValueError(f'these bytes are not whole labels of an example: {error}') from error
  return top_ids, top_logps


def parts(data) -> Parts:
  """How many bytes each part of an encoded example takes."""
  opened = _open(data)
  at = [opened.at[name][0] for name in _STREAMS] + [len(opened.data) - bits.PAD]
  return Parts(at[0], *np.diff(at).tolist())


def lost(top_ids_LK: np.ndarray, top_logps_LK: np.ndarray, data) -> np.ndarray:
  """KL(labels || what `data` decodes to), nats [L], over the kept entries and one rest class; ValueError where the ids differ."""
  ids, logps = np.asarray(top_ids_LK), np.asarray(top_logps_LK, np.float64)
  ids = np.where((ids >= 0) & (logps > -np.inf), ids, np.iinfo(np.int32).max)
  order = np.argsort(ids, axis=-1)
  ids, logps = np.take_along_axis(ids, order, -1), np.take_along_axis(logps, order, -1)
  found_ids, found = decode(data)
  there = found_ids >= 0
  if not np.array_equal(np.where(ids == np.iinfo(np.int32).max, -1, ids), found_ids):
    raise ValueError('decoding gives other ids than were encoded')
  p, q = (np.where(there, np.exp(np.where(there, x, 0), dtype=np.float64), 0) for x in (logps, found))
  p, q = (np.concatenate([x, np.maximum(1 - x.sum(-1, keepdims=True), 0)], -1) for x in (p, q))
  log_q = np.log(np.maximum(q, 1 / (2 * _UNITS)))      # a tail that is written as 0 is below half a unit
  terms = np.where(p > 0, p * (np.log(np.where(p > 0, p, 1)) - log_q), 0)
  return np.maximum((terms - p + q).sum(-1), 0)


class _Opened(NamedTuple):
  """An encoded example with its header read. codes, at: of each stream its code, and where its unary and plain bytes begin."""
  data: np.ndarray
  tokens: int
  first: int
  width: int
  draws: int
  codes: dict[str, int]
  at: dict[str, tuple[int, int]]


def _open(data) -> _Opened:
  data = bits.padded(data)
  size = len(data) - bits.PAD
  if size and data[0] > VERSION:
    raise ValueError(f'labels of format {data[0]}, and this program reads up to {VERSION}: use a newer distill_jax')
  begin = 1 + len(_STREAMS)
  try:
    (tokens, first, width, draws, *sizes), end = bits.read_varints(data, begin, 4 + 2 * len(_STREAMS))
  except ValueError as error:
    raise ValueError(f'these bytes are not whole labels of an example: {error}') from error
  at = np.cumsum([end, *sizes]).tolist()
  if at[-1] != size or first > tokens:
    raise ValueError(f'these bytes are not whole labels of an example: {size:,} bytes where {at[-1]:,} were written')
  codes, places = data[1:begin].tolist(), zip(at[::2], at[1::2])
  return _Opened(data, tokens, first, width, draws, dict(zip(_STREAMS, codes)), dict(zip(_STREAMS, places)))


def _possible(opened, n):
  """n entries, if there are that many bits."""
  if n > 8 * len(opened.data):
    raise ValueError(f'{n:,} entries in {len(opened.data):,} bytes')
  return n


def _stream(opened, name, n, more=0):
  """n integers of a stream."""
  return bits.read(opened.data, *opened.at[name], n, opened.codes[name], more)


def _counts(opened):
  """Entries of each token, int64 [L]; None where all have K."""
  if opened.codes['counts'] == _NONE:
    return None
  counts_L = opened.width - _stream(opened, 'counts', opened.tokens - opened.first)
  if counts_L.min(initial=0) < 0:
    raise ValueError('more entries of a token than there is room for')
  return counts_L


def _kept(opened, counts_L):
  """The mass that each token's entries hold together, float64 [L]; 1 where it has none."""
  tokens = opened.tokens - opened.first
  if counts_L is None:
    return 1 - _stream(opened, 'tails', tokens) / _UNITS
  kept_L, has_L = np.ones(tokens), counts_L > 0
  kept_L[has_L] -= _stream(opened, 'tails', int(has_L.sum())) / _UNITS
  return kept_L


def _curve(values):
  """(log, value) of the squares that these values stand for, float64: float32 has too few digits for 1 - sum to meet the tail."""
  if values.max(initial=0) < len(_SQUARES):
    return _LOGS[values], _SQUARES[values]
  roots = np.where(values == 0, _SMALL, values)
  return 2 * np.log(roots), np.square(roots)


def _fewer(counts):
  """What is added to the order of gaps where a token has so many entries: int, or int [L]."""
  return 1 - np.frexp(np.maximum(counts, 1))[1].astype(np.int64)


def _values(values_LK, there_LK):
  """(scales, values) as streams: Exp-Golomb orders token by token, where that takes fewer bytes than one code for all."""
  plain = bits.write(values_LK[there_LK])
  costs = np.stack([np.where(there_LK, bits.heavy_bits(values_LK.clip(0), order), 0).sum(-1) for order in _SCALES])
  scales_L = costs.argmin(0)
  scales, scaled = bits.write(scales_L), bits.write(values_LK[there_LK], scales_L[there_LK.nonzero()[0]])
  size = lambda *streams: sum(len(part) for stream in streams for part in stream[1:])
  return (scales, scaled) if size(scales, scaled) < size(plain) else (_ABSENT, plain)


def _whole(counts_LK, there_LK, draws):
  """Counts as whole numbers; ValueError where they are none."""
  found = np.rint(counts_LK).astype(np.int64)
  if np.abs(counts_LK - found)[there_LK].max(initial=0) > 1e-3 or (found[there_LK] < 1).any():
    raise ValueError(f'these labels are no counts of {draws} draws')
  return found


def _place(there_LK, flat):
  """The numbers of all entries at their places [L, K], 0 where there is none."""
  out = np.zeros(there_LK.shape, flat.dtype)
  out[there_LK] = flat
  return out
