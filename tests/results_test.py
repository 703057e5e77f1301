"""Pairs, sign test and intervals against hand values."""
import json
import math

import pytest

from distill_jax import results
from distill_jax.core import marks


def test_sign_test_by_hand():
  assert results.Pairs(3, 0, 0, 5).p == 1.0
  assert results.Pairs(0, 5, 0, 0).p == pytest.approx(2 / 32)
  assert results.Pairs(9, 8, 1, 9).p == pytest.approx(2 * (1 + 9) / 512)
  assert results.Pairs(0, 4, 4, 0).p == 1.0
  assert results.Pairs(0, 0, 2000, 0).p == pytest.approx(0, abs=1e-300)


def test_pair_counts_only_problems_of_both():
  row = lambda *grades: dict(grades=list(grades))
  a = dict(x=row(1.0), y=row(1.0), z=row(0.0), w=row(0.0), only_a=row(1.0), s=row(1.0, 0.0, 0.0))
  b = dict(x=row(1.0), y=row(0.0), z=row(1.0), w=row(0.0), only_b=row(1.0), s=row(1.0, 1.0, 0.0))
  assert results.pair(a, b) == (1, 1, 2, 1)
  assert results.Pairs(1, 1, 2, 1) + results.Pairs(1, 0, 0, 0) == results.Pairs(2, 1, 2, 1)


def test_t_interval_by_hand():
  mean, low, high = results.t_interval([0.8, 0.7, 0.9])
  assert (mean, low, high) == pytest.approx((0.8, 0.8 - 4.302653 * 0.1 / math.sqrt(3), 0.8 + 4.302653 * 0.1 / math.sqrt(3)), abs=1e-6)
  mean, low, high = results.t_interval([0.8])
  assert mean == 0.8 and math.isnan(low) and math.isnan(high)


def make(workdir, accuracy):
  """A workdir with evaluate stages a and b; accuracy {stage: right of 10}."""
  for stage, right in accuracy.items():
    (workdir / stage).mkdir(parents=True)
    rows = [dict(split='test', id=str(i), grades=[float(i < right)], texts=['']) for i in range(10)]
    (workdir / stage / 'predictions.jsonl').write_text('\n'.join(map(json.dumps, rows)) + '\n')
    marks.write_json(workdir / stage / 'DONE', dict(seconds=1, finished='', summary=dict(
        kind='evaluate', title=stage.upper(), splits=dict(test=dict(n=10, accuracy=right / 10, low=0, high=1)))))


def test_compare_over_seeds(tmp_path):
  recipe = dict(stages=dict(a={}, b={}), run=['a', 'b'], compare=[('A', 'b', 'test'), ('a', 'nobody', 'test'), ('a', 'b', 'nowhere')])
  for seed, (a, b) in enumerate([(5, 5), (6, 5), (5, 4)]):
    make(tmp_path / str(seed), dict(a=a, b=b))
  directories = [tmp_path / str(seed) for seed in range(3)]
  (one,) = results.compare(directories, recipe)
  assert (one.a, one.b, one.split, one.pairs) == ('A', 'B', 'test', (14, 2, 0, 14))
  assert one.by_seed == pytest.approx([0, 0.1, 0.1]) and one.difference[0] == pytest.approx(0.2 / 3)
  assert one.verdict == 'no difference shown'
  rows = results.over_seeds(directories, recipe)
  assert [(row['title'], row['by_seed']) for row in rows] == [('A', [0.5, 0.6, 0.5]), ('B', [0.5, 0.5, 0.4])]
  assert one._replace(pairs=results.Pairs(0, 0, 9, 0)).verdict == 'B better'
