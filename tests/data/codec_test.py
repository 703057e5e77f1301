"""Codec: ids come back exactly, probabilities within the loss that was named, tails to rounding; size near the bound; bad input named."""
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from distill_jax.data import cache as cache_lib, codec
from distill_jax.losses import divergence


def make(tokens, k, size, *, seed=0, slope=1.0, kept=(0.5, 0.999)):
  """Random sets of ids with probabilities that fall as rank ** -slope."""
  rng = np.random.default_rng(seed)
  ids = np.stack([rng.choice(size, k, replace=False) for _ in range(tokens)])
  z = -slope * np.log(np.arange(1, k + 1)) + 0.3 * rng.normal(size=(tokens, k))
  p = np.exp(z) / np.exp(z).sum(-1, keepdims=True) * rng.uniform(*kept, (tokens, 1))
  return ids.astype(np.int32), np.log(p).astype(np.float32)


@st.composite
def labels(draw):
  """(ids, log-probabilities, vocabulary): anything a teacher may say, in any order, with absent entries and -inf among them."""
  size = draw(st.sampled_from((1, 2, 17, 899, 151_936, 1 << 20)))
  tokens, k = draw(st.integers(1, 6)), draw(st.integers(1, min(size, 40)))
  rng = np.random.default_rng(draw(st.integers(0, 1 << 30)))
  ids = np.stack([rng.choice(size, k, replace=False) for _ in range(tokens)])
  logits = draw(st.sampled_from((0.0, 1.0, 5.0, 30.0))) * rng.normal(size=(tokens, k))
  p = np.exp(logits - logits.max(-1, keepdims=True))
  p *= (1 - draw(st.sampled_from((0.0, 1e-9, 1e-4, 0.3, 0.999)))) / p.sum(-1, keepdims=True)
  with np.errstate(divide='ignore'):
    logps = np.log(p.astype(np.float32)).astype(np.float32)
  gone = rng.random((tokens, k)) < draw(st.sampled_from((0.0, 0.0, 0.3, 1.0)))
  gone[:draw(st.integers(0, tokens))] |= draw(st.booleans())
  return np.where(gone, -1, ids), np.where(gone, 0, logps), size


def in_order(ids, logps):
  """(ids, log-probabilities) in rising order, absent and impossible ones last as -1 and 0."""
  there = (ids >= 0) & (logps > -np.inf)
  order = np.argsort(np.where(there, ids, 1 << 40), -1)
  return [np.take_along_axis(np.where(there, x, other), order, -1) for x, other in ((ids, -1), (logps, 0))]


@settings(max_examples=300, deadline=None)
@given(labels(), st.sampled_from((1e-5, 2e-4, 1e-2)), st.randoms())
def test_round_trip(given_labels, nats, random):
  ids, logps, size = given_labels
  there = ids >= 0
  if (there.any(-1) & (np.where(there, np.exp(logps), 0).sum(-1) == 0)).any():
    return      # a distribution of -inf alone: refused, see below
  data = codec.encode(ids, logps, vocab_size=size, nats=nats)
  found_ids, found = codec.decode(data)
  assert found_ids.dtype == np.int32 and found.dtype == np.float32
  true_ids, true = in_order(ids, logps)
  np.testing.assert_array_equal(found_ids, true_ids)
  there = found_ids >= 0
  assert (found[~there] == 0).all() and np.isfinite(found).all()

  p, q = (np.where(there, np.exp(x.astype(np.float64)), 0) for x in (true, found))
  tails = [np.maximum(1 - x.sum(-1), 0) for x in (p, q)]
  told = there.any(-1)
  np.testing.assert_allclose(tails[1][told], tails[0][told], rtol=0, atol=2 ** -24 + 4e-7)
  terms = [np.where(x > 0, x * np.log(np.maximum(x, 1e-300) / np.maximum(y, 2 ** -25)), 0) for x, y in zip((p, tails[0]), (q, tails[1]))]
  kl = terms[0].sum(-1) + terms[1] - (p.sum(-1) + tails[0]) + (q.sum(-1) + tails[1])
  assert (kl[told] <= 3.5 * nats + 2e-6).all(), 'the loss is the one that was named'
  np.testing.assert_allclose(codec.lost(ids, logps, data)[told], np.maximum(kl[told], 0), atol=1e-7)

  columns = list(range(ids.shape[1]))
  random.shuffle(columns)
  np.testing.assert_array_equal(codec.encode(ids[:, columns], logps[:, columns], vocab_size=size, nats=nats), data)
  assert sum(codec.parts(data)) == len(data)


@pytest.mark.parametrize('slope', [0.0, 1.0, 3.0])
def test_size_and_loss_at_the_size_of_a_real_vocabulary(slope):
  """k = 64, V = 151,936, random sets: at most 170 bytes a token and 1e-3 nats, peaked or flat; ids within 1.1 bytes of the bound."""
  ids, logps = make(200, 64, 151_936, slope=slope)
  data = codec.encode(ids, logps, vocab_size=151_936)
  assert len(data) / len(ids) <= 170
  lost = codec.lost(ids, logps, data)
  assert lost.max() < 5e-4 and lost.mean() < 1.1 * codec.NATS
  bound = (math.lgamma(151_937) - math.lgamma(65) - math.lgamma(151_936 - 63)) / math.log(2) / 8
  assert bound == pytest.approx(100.7, abs=0.1)
  assert bound < codec.parts(data).ids / len(ids) < bound + 1.3


def test_a_loss_hardly_sees_the_coding():
  """top_k_kl of decoded labels differs by no more than Pinsker allows: TV <= sqrt(KL / 2), times the spread of what is averaged."""
  ids, logps = make(50, 12, 300, slope=1.5)
  data = codec.encode(ids, logps, vocab_size=300)
  student = jnp.asarray(2 * np.random.default_rng(1).normal(size=(50, 300)), jnp.float32)
  both = [jax.value_and_grad(lambda z: divergence.top_k_kl(z, *pair).sum())(student) for pair in ((ids, logps), codec.decode(data))]
  reach = np.sqrt(codec.lost(ids, logps, data) / 2)
  log_s = np.asarray(jax.nn.log_softmax(student))
  spread = np.ptp(log_s, -1) + np.log(300)
  assert abs(both[0][0] - both[1][0]) <= (2 * reach * spread).sum()
  assert (np.abs(both[0][1] - both[1][1]).sum(-1) <= 2 * reach + 1e-5).all(), 'the gradient is student - teacher'


def test_counts_of_draws_are_exact():
  rng = np.random.default_rng(0)
  counts = rng.multinomial(50, rng.dirichlet(np.full(30, 0.2)), 40)
  logps = np.where(counts > 0, np.log(np.maximum(counts, 1) / 50), 0).astype(np.float32)
  ids = np.where(counts > 0, rng.permutation(1000)[:30], -1)
  data = codec.encode(ids, logps, vocab_size=1000, draws=50)
  found_ids, found = codec.decode(data)
  true_ids, true = in_order(ids, logps)
  np.testing.assert_array_equal(found_ids, true_ids)
  np.testing.assert_allclose(found, true, atol=1e-6)
  assert codec.parts(data).tails == 0
  with pytest.raises(ValueError, match='no counts of 49 draws'):
    codec.encode(ids, logps, vocab_size=1000, draws=49)


def test_a_prompt_without_labels_takes_no_room():
  ids, logps = make(40, 8, 500)
  without = [np.concatenate([np.full((1000, 8), other, x.dtype), x]) for x, other in ((ids, -1), (logps, 0))]
  short, long = (codec.encode(*pair, vocab_size=500) for pair in ((ids, logps), without))
  assert len(long) <= len(short) + 3
  np.testing.assert_array_equal(codec.decode(long)[0][1000:], codec.decode(short)[0])
  assert (codec.decode(long)[0][:1000] == -1).all()


@pytest.mark.parametrize('change, words', [
    (dict(logps=(3, 1, np.nan)), 'token 3 hold a NaN'),
    (dict(logps=(slice(5, 7), slice(None), -np.inf)), r'token 5 hold only -inf \(2 of 9'),
    (dict(ids=(2, 0, 40)), 'token 2 hold an id outside the vocabulary of 40'), (dict(ids=(4, slice(0, 2), 7)), 'token 4 hold one id twice'),
    (dict(logps=(8, 0, 0.5)), 'token 8 hold probabilities that sum to more than 1')])
def test_bad_labels_are_named(change, words):
  ids, logps = make(9, 4, 40)
  for name, (row, column, value) in change.items():
    dict(ids=ids, logps=logps)[name][row, column] = value
  with pytest.raises(ValueError, match=words):
    codec.encode(ids, logps, vocab_size=40)


def test_wrong_shapes():
  ids, logps = make(5, 4, 40)
  with pytest.raises(ValueError, match='k=4 is above the vocabulary, 3'):
    codec.check(ids, logps, vocab_size=3)
  with pytest.raises(ValueError, match=r'must both be \[tokens, k\]'):
    codec.encode(ids, logps[:4], vocab_size=40)


# damage: shards have checksums; bytes from elsewhere must still end in one clear error


def test_a_newer_format_is_refused():
  data = codec.encode(*make(5, 4, 40), vocab_size=40)
  data[0] = codec.VERSION + 1
  with pytest.raises(ValueError, match='format 2, and this program reads up to 1: use a newer distill_jax'):
    codec.decode(data)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_bytes_are_an_error_or_other_labels_never_a_crash(data):
  ids, logps = make(6, 5, 60)
  ids[2, 1:] = -1
  whole = codec.encode(ids, logps, vocab_size=60)
  cut = data.draw(st.integers(0, len(whole) - 1))
  with pytest.raises(ValueError):
    codec.decode(whole[:cut])
  at = data.draw(st.integers(0, len(whole) - 1))
  whole[at] ^= 1 << data.draw(st.integers(0, 7))
  try:
    found_ids, found = codec.decode(whole)
    assert found_ids.shape == found.shape
  except ValueError as error:
    assert 'not whole labels' in str(error) or 'newer' in str(error)


# what is kept


@settings(max_examples=100, deadline=None)
@given(labels(), st.floats(0.01, 0.999))
def test_mass_keeps_the_smallest_set_that_reaches_it(given_labels, mass):
  ids, logps, _ = given_labels
  ids, logps = ids[:, :8], logps[:, :8]
  kept_ids, kept = cache_lib.prune(ids, logps, mass=mass)
  for row in range(len(ids)):
    p = {int(i): math.exp(x) for i, x in zip(ids[row], logps[row]) if i >= 0}
    chosen = [int(i) for i in kept_ids[row] if i >= 0]
    held = sum(p[i] for i in chosen)
    assert all(kept[row][kept_ids[row] < 0] == 0) and set(chosen) <= set(p)
    reach = [n for n in range(len(p) + 1) if max(sum(s) for s in itertools.combinations(p.values(), n)) >= mass - 1e-12]
    if reach and p:
      assert len(chosen) in {max(reach[0], 1), max(min(n for n in range(len(p) + 1) if max(
          sum(s) for s in itertools.combinations(p.values(), n)) >= min(mass + 1e-12, sum(p.values()))), 1)}
      assert held >= mass - 1e-9
    else:
      assert len(chosen) == len(p), 'what does not reach the mass is kept whole'


def test_mass_one_keeps_all():
  ids, logps = make(5, 6, 40)
  kept = cache_lib.prune(ids, logps, mass=1)
  np.testing.assert_array_equal(kept[0], ids)
  np.testing.assert_array_equal(kept[1], logps)


@pytest.mark.parametrize('keywords, words', [
    (dict(mass=0.0), r'mass=0.0 must lie in \(0, 1\]'), (dict(mass=1.5), 'mass=1.5'), (dict(mass=float('nan')), 'mass=nan'),
    (dict(nats=0), 'nats=0 must be above 0'), (dict(codec='zip'), "codec='zip', one of raw, compact"), (dict(draws=0), 'draws=0 must be'),
    (dict(draws=5, mass=0.9), 'draws=5 .* mass=1 only')])
def test_wrong_settings_are_named(keywords, words):
  with pytest.raises(ValueError, match=words):
    cache_lib.make_cache(**keywords)


def test_which_manifests_can_be_read():
  stamp = cache_lib.stamp(cache_lib.make_cache(codec='compact', mass=0.9), vocab_size=50)
  assert cache_lib.is_encoded(dict(codec=stamp)) and not cache_lib.is_encoded({})
  assert not cache_lib.is_encoded(dict(codec=cache_lib.stamp(cache_lib.make_cache(), vocab_size=50)))
  for wrong in (dict(stamp, version=2), dict(stamp, name='ans'), dict(name='raw', version='1')):
    with pytest.raises(ValueError, match='use a newer distill_jax'):
      cache_lib.is_encoded(dict(codec=wrong))
