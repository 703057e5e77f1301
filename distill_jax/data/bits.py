"""Bits: non-negative integers in few of them, written and read by whole arrays at once, never number by number.

Two codes, each a unary stream beside a stream of plain bits (bit i of byte j is bit 8 j + i of a stream):
* Rice, order b: x >> b in unary, then b plain bits. Near the entropy of geometric numbers (Rice and Plaunt 1971).
* Exp-Golomb, order m: with y = x + 2^m, floor(log2 y) - m in unary, then floor(log2 y) plain bits. For heavy tails (Teuhola 1978).
The streams lie apart, so that numpy finds all unary ends in one pass and gathers all plain bits in another. `more` is what the reader knows
of each number's scale: it is added to the order (below 0 it stays 0).
"""
from typing import NamedTuple

import numpy as np

ORDERS = range(32)
PAD = 8          # bytes after the last stream, so that the words which plain bits are cut from do not reach beyond the end
_HEAVY = 64      # added to an order: Exp-Golomb
_WIDEST = 48     # plain bits of a number: a word of 8 bytes holds them wherever they begin


class Written(NamedTuple):
  """Integers as bytes: the code that wrote them, its unary stream, its plain bits."""
  code: int
  unary: np.ndarray
  plain: np.ndarray


def write(numbers: np.ndarray, more=0) -> Written:
  """Integers in 0..2^40, [n], in the shortest of all codes. more: int, or int [n]."""
  numbers = np.asarray(numbers, np.int64)
  code = cheapest(numbers, more)
  high, width, low = _split(numbers, code, more)
  ends = np.zeros(int(high.sum()) + len(high), np.uint8)
  ends[np.cumsum(high + 1) - 1] = 1
  return Written(code, np.packbits(ends, bitorder='little'), _plain(low, width))


def read(data: np.ndarray, unary_at: int, plain_at: int, n: int, code: int, more=0) -> np.ndarray:
  """The n integers whose streams begin at these bytes of uint8 `data`, int64 [n]; ValueError where there are fewer.

  data: as `padded` returns it.
  """
  if n == 0:
    return np.zeros(0, np.int64)
  ends = np.unpackbits(data[unary_at:plain_at], bitorder='little').view(bool).nonzero()[0]
  if len(ends) < n or code % _HEAVY not in ORDERS:
    raise ValueError(f'{len(ends)} numbers where {n} were written')
  ends = ends[:n]
  high = np.empty(n, np.int64)
  high[0] = ends[0]
  np.subtract(ends[1:], ends[:-1] + 1, out=high[1:])
  order = _order(code, more)
  width = order if code < _HEAVY else high + order
  if isinstance(width, int):
    widest, last, whole = width, width * n, 1 << min(width, _WIDEST)
    first = np.arange(8 * plain_at, 8 * plain_at + last, width) if width else 0
  else:
    first = np.cumsum(width)
    widest, last, whole = int(width.max()), int(first[-1]), np.left_shift(1, width)
    first -= width
    first += 8 * plain_at
  if widest > _WIDEST or plain_at + (last + 7) // 8 > len(data) - PAD:
    raise ValueError('numbers that reach beyond the end')
  low = _gather(data, first, whole - 1) if last else 0
  if code < _HEAVY:
    return (high << order) + low
  return whole + low - (1 << order if isinstance(order, int) else np.left_shift(1, order))


def padded(data) -> np.ndarray:
  """Bytes as uint8 with the zeros after them that `read` needs."""
  data = np.frombuffer(data, np.uint8)
  out = np.zeros(len(data) + PAD, np.uint8)
  out[:len(data)] = data
  return out


def cheapest(numbers: np.ndarray, more=0) -> int:
  """The code that writes these integers in the fewest bits."""
  codes = [code for order in ORDERS for code in (order, order + _HEAVY)]
  bits_of = lambda code: (_rice_bits if code < _HEAVY else heavy_bits)(numbers, _order(code, more)).sum()
  return min(codes, key=bits_of)


def heavy_bits(numbers: np.ndarray, order) -> np.ndarray:
  """Bits that Exp-Golomb takes for each integer."""
  return 2 * _bit_length(numbers + np.left_shift(1, order)) - 1 - order


def _rice_bits(numbers, order):
  return (numbers >> order) + 1 + order


def _order(code, more):
  """The order of a code, of each number where `more` is an array."""
  if isinstance(more, np.ndarray) and more.ndim:
    return np.maximum(more + code % _HEAVY, 0)
  return max(code % _HEAVY + int(more), 0)


def _split(numbers, code, more):
  """(unary part, width of the plain part, plain part) of each integer."""
  order = _order(code, more) + np.zeros(len(numbers), np.int64)
  if code < _HEAVY:
    return numbers >> order, order, numbers & (np.left_shift(1, order) - 1)
  shifted = numbers + np.left_shift(1, order)
  width = _bit_length(shifted) - 1
  return width - order, width, shifted - np.left_shift(1, width)


def _bit_length(numbers):
  """Bits of integers from 1 to 2^53."""
  return np.frexp(numbers.astype(np.float64))[1].astype(np.int64)


def _plain(low, width):
  """The low `width` bits of each integer, one after the other."""
  ends = np.cumsum(width)
  which = np.repeat(np.arange(len(low)), width)
  place = np.arange(ends[-1] if len(ends) else 0) - (ends - width)[which]
  return np.packbits((low[which] >> place & 1).astype(np.uint8), bitorder='little')


def _gather(data, at, mask):
  """The bits under `mask` of the words that begin at these bits of `data`."""
  words = np.ndarray((len(data) - PAD + 1,), '<i8', buffer=data, strides=(1,))      # the sign fills bits that no mask reaches
  return (words[at >> 3] >> (at & 7)) & mask


def varints(numbers) -> np.ndarray:
  """A few integers >= 0 as uint8, seven bits a byte, the lowest first; the top bit says that more follow."""
  out = bytearray()
  for number in numbers:
    while number > 127:
      out.append(number & 127 | 128)
      number >>= 7
    out.append(number)
  return np.frombuffer(bytes(out), np.uint8)


def read_varints(data: np.ndarray, at: int, n: int) -> tuple[list[int], int]:
  """(n integers that begin at byte `at`, where they end); ValueError where they do not."""
  raw, numbers = bytes(data[at:at + 10 * n]), []
  value = shift = used = 0
  for byte in raw:
    used += 1
    value |= (byte & 127) << shift
    shift += 7
    if byte < 128:
      numbers.append(value)
      value = shift = 0
      if len(numbers) == n:
        return numbers, at + used
  raise ValueError(f'{len(numbers)} numbers where {n} were written')
