"""Bits: every integer comes back; a reader that goes bit by bit reads the same; the cheapest code is the cheapest."""
import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from distill_jax.data import bits

NUMBERS = st.lists(st.one_of(st.integers(0, 9), st.integers(0, 300_000), st.integers(0, 1 << 40)), min_size=1, max_size=40)


def read_slowly(written, orders):
  """One number after the other, from the description in the head of the file."""
  stream = lambda data: iter([byte >> i & 1 for byte in data.tolist() for i in range(8)])
  unary, plain, out = stream(written.unary), stream(written.plain), []
  for more in orders:
    order, high = max(written.code % 64 + more, 0), 0
    while not next(unary):
      high += 1
    heavy = written.code >= 64
    low = sum(next(plain) << i for i in range(order + high if heavy else order))
    out.append(low + (1 << order + high) - (1 << order) if heavy else low + (high << order))
  return out


@settings(max_examples=100, deadline=None)
@given(NUMBERS, st.data())
def test_round_trip_and_a_reader_that_goes_bit_by_bit(numbers, data):
  more = data.draw(st.one_of(st.integers(-20, 5), st.lists(st.integers(-20, 5), min_size=len(numbers), max_size=len(numbers))))
  more = more if isinstance(more, int) else np.array(more)
  written = bits.write(np.array(numbers), more)
  before = data.draw(st.binary(max_size=5))
  found = bits.padded(before + written.unary.tobytes() + written.plain.tobytes())
  at = len(before)
  assert bits.read(found, at, at + len(written.unary), len(numbers), written.code, more).tolist() == numbers
  assert read_slowly(written, np.broadcast_to(more, len(numbers)).tolist()) == numbers


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 5000), min_size=1, max_size=30))
def test_no_other_code_is_shorter(numbers):
  written = bits.write(np.array(numbers))
  rice = lambda b: sum((x >> b) + 1 + b for x in numbers)
  heavy = lambda m: sum(2 * math.floor(math.log2(x + 2 ** m)) - m + 1 for x in numbers)
  least = min(min(rice(order), heavy(order)) for order in range(20))
  assert least <= 8 * (len(written.unary) + len(written.plain)) < least + 16      # each stream ends with a whole byte


def test_geometric_numbers_take_about_their_entropy():
  numbers = np.random.default_rng(0).geometric(1 / 2374, 20_000) - 1
  p = 1 / 2374
  entropy = (-p * math.log2(p) - (1 - p) * math.log2(1 - p)) / p
  written = bits.write(numbers)
  assert 8 * (len(written.unary) + len(written.plain)) / len(numbers) < entropy + 0.15


def test_what_is_cut_short_is_an_error():
  written = bits.write(np.arange(100))
  data = bits.padded(written.unary.tobytes() + written.plain.tobytes())
  with pytest.raises(ValueError, match='100 were written|1000 were written'):
    bits.read(data, 0, len(written.unary), 1000, written.code)
  with pytest.raises(ValueError, match='beyond the end'):
    bits.read(bits.padded(written.unary.tobytes()), 0, len(written.unary), 100, written.code)


@given(st.lists(st.integers(0, 1 << 50), max_size=12), st.binary(max_size=4))
def test_varints(numbers, before):
  data = bits.padded(before + bits.varints(numbers).tobytes())
  if numbers:
    found, end = bits.read_varints(data, len(before), len(numbers))
    assert found == numbers and end == len(data) - bits.PAD


def test_varints_that_do_not_end():
  with pytest.raises(ValueError, match='0 numbers where 1'):
    bits.read_varints(np.full(20, 255, np.uint8), 0, 1)
