"""Statistics of measured figures: unbiased pass@k, intervals by bootstrap over problems and by Student's t over seeds, the sign test."""
import math
import statistics
from typing import Sequence

import numpy as np

BLOCK = 4_000_000     # draws of problems held at once


def pass_at(n: int, c: int, k: int) -> float:
  """Unbiased estimate that one of k samples is right, c of n being right: 1 - C(n-c, k) / C(n, k) (Chen et al. 2021, arXiv 2107.03374)."""
  if not 0 < k <= n:
    raise ValueError(f'pass@{k} needs at least {k} samples, there are {n}')
  return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def bootstrap(values: Sequence[float] | np.ndarray, *, seed: int = 0, draws: int = 2000, level: float = 0.95) -> tuple[float, float]:
  """(low, high) of the mean of `values` [problems]: percentile bootstrap over problems (Efron 1979). (nan, nan) where there are none."""
  values = np.asarray(values, np.float64)
  if not len(values):
    return math.nan, math.nan
  generator, means, most = np.random.default_rng(seed), [], max(1, BLOCK // len(values))
  for first in range(0, draws, most):
    means.append(values[generator.integers(0, len(values), (min(most, draws - first), len(values)))].mean(1))
  low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
  return float(low), float(high)


def t_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
  """(mean, low, high) by Student's t over independent values; with one value low and high are nan."""
  mean = statistics.fmean(values)
  if len(values) < 2:
    return mean, math.nan, math.nan
  from scipy import stats      # comes with jax
  half = float(stats.t.ppf((1 + level) / 2, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
  return mean, mean - half, mean + half


def sign_test(first: int, second: int) -> float:
  """Two-sided exact sign test: the chance of a split of `first` against `second` at least this uneven, were both sides equally likely."""
  n, least = first + second, min(first, second)
  return min(1.0, 2 * sum(math.comb(n, i) for i in range(least + 1)) / 2**n) if n else 1.0
