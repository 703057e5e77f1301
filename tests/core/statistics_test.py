"""Statistics against scipy, numpy and what is counted out by hand."""
import itertools
import math

import numpy as np
import pytest
import scipy.stats

from distill_jax.core import statistics


@pytest.mark.parametrize('n, c, k, expected', [
    (5, 2, 3, 0.9), (4, 2, 2, 5 / 6), (100, 1, 10, 0.1), (20, 5, 1, 0.25), (10, 0, 5, 0.0), (100, 3, 100, 1.0), (3, 3, 1, 1.0),
])
def test_pass_at(n, c, k, expected):
  assert statistics.pass_at(n, c, k) == pytest.approx(expected, abs=1e-12)


def test_pass_at_counts_the_draws():
  for n, c, k in itertools.product((4, 5), range(5), (1, 2, 3)):
    draws = list(itertools.combinations([1] * c + [0] * (n - c), k))
    assert statistics.pass_at(n, c, k) == pytest.approx(np.mean([any(draw) for draw in draws]))


@pytest.mark.parametrize('n, k', [(4, 5), (4, 0)])
def test_pass_at_needs_samples(n, k):
  with pytest.raises(ValueError, match=f'pass@{k} needs at least {k} samples, there are 4'):
    statistics.pass_at(n, 1, k)


def test_the_same_share_is_the_same_number_whatever_the_samples():
  """A sign test over per-problem values counts ties, so they must be equal to the last bit."""
  assert statistics.pass_at(4, 2, 2) == 1 - math.comb(2, 2) / math.comb(4, 2) == 1 - 1 / 6 == 1 - 7 / 42
  assert statistics.pass_at(10, 5, 1) == statistics.pass_at(4, 2, 1) == 0.5


def test_bootstrap_agrees_with_scipy():
  values = np.random.default_rng(3).gamma(1.0, size=80)
  theirs = scipy.stats.bootstrap((values,), np.mean, method='percentile', n_resamples=20000, random_state=1).confidence_interval
  assert statistics.bootstrap(values, draws=20000) == pytest.approx(tuple(theirs), abs=0.02)
  wide, narrow = statistics.bootstrap(values), statistics.bootstrap(values, level=0.5)
  assert wide[0] < narrow[0] < values.mean() < narrow[1] < wide[1]


def test_bootstrap_of_three_problems_is_the_distribution_counted_out():
  values = [0.0, 0.25, 1.0]
  means = [np.mean(draw) for draw in itertools.product(values, repeat=3)]
  low, high = statistics.bootstrap(values, draws=50000, level=0.8)
  assert (low, high) == pytest.approx(tuple(np.quantile(means, [0.1, 0.9])), abs=1e-9)


def test_bootstrap_in_blocks_is_bootstrap_at_once(monkeypatch):
  values = np.random.default_rng(0).random(50)
  whole = statistics.bootstrap(values)
  monkeypatch.setattr(statistics, 'BLOCK', 333)
  assert statistics.bootstrap(values) == whole
  assert all(math.isnan(bound) for bound in statistics.bootstrap([]))


def test_t_interval_agrees_with_scipy():
  values = [0.31, 0.28, 0.35, 0.30]
  mean, low, high = statistics.t_interval(values)
  assert (low, high) == pytest.approx(scipy.stats.t.interval(0.95, 3, np.mean(values), scipy.stats.sem(values)))
  assert mean == pytest.approx(np.mean(values)) and math.isnan(statistics.t_interval([0.3])[1])


@pytest.mark.parametrize('first, second', [(0, 0), (5, 0), (4, 4), (8, 1), (3, 20), (264, 27)])
def test_sign_test_agrees_with_scipy(first, second):
  expected = scipy.stats.binomtest(first, first + second).pvalue if first + second else 1.0
  assert statistics.sign_test(first, second) == pytest.approx(expected, rel=1e-9)
