"""Pairs, comparisons and figures over seeds against hand values and numpy."""
import json
import math

import numpy as np
import pytest

from distill_jax import results
from distill_jax import tables
from distill_jax.core import marks, statistics


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
  assert (one.a, one.b, one.split, one.measure, one.pairs, one.problems) == ('A', 'B', 'test', 'accuracy', (14, 2, 0, 14), 10)
  assert one.by_seed == pytest.approx([0, 0.1, 0.1]) and one.difference[0] == pytest.approx(0.2 / 3)
  assert one.verdict == 'no difference shown'
  rows = results.over_seeds(directories, recipe)
  assert [(row['title'], row['by_seed']) for row in rows] == [('A', [0.5, 0.6, 0.5]), ('B', [0.5, 0.5, 0.4])]
  assert [row['n'] for row in rows] == [10, 10] and rows[0]['interval'] == results.t_interval([0.5, 0.6, 0.5])
  assert one._replace(pairs=results.Pairs(0, 0, 9, 0)).verdict == 'B better'


SAMPLES, KS = 5, (1, 3)


def sampled(workdir, stage, grades, seed, *, groups=True):
  """An evaluate stage with `grades` [problems, samples]; a problem's group is its number modulo 2. Problems lie in another order in every seed."""
  (workdir / stage).mkdir(parents=True)
  order = np.random.default_rng(seed).permutation(len(grades))
  rows = [dict(split='test', id=f'p{i}', grades=list(grades[i]), texts=[''] * SAMPLES, values={'rank': float(grades[i].sum() / 10)},
               **({'group': i % 2} if groups else {})) for i in map(int, order)]
  (workdir / stage / 'predictions.jsonl').write_text('\n'.join(map(json.dumps, rows)) + '\n')
  passed = {str(k): np.mean([statistics.pass_at(SAMPLES, int(row.sum()), k) for row in grades]) for k in KS}
  marks.write_json(workdir / stage / 'DONE', dict(seconds=1, finished='', summary=dict(
      kind='evaluate', title=stage.upper(), samples=SAMPLES, splits=dict(test=dict(
          n=len(grades), accuracy=grades.mean(), low=0.0, high=1.0, pass_at={k: dict(value=v, low=0.0, high=1.0) for k, v in passed.items()})),
      **(dict(groups=dict(test={str(g): dict(n=len(grades[g::2]), accuracy=grades[g::2].mean(), low=0.0, high=1.0) for g in (0, 1)})) if groups else {}),
      metrics=dict(test=dict(rank=dict(value=grades.sum(1).mean() / 10), f1=dict(value=0.5 + seed / 10, low=0.1, high=0.9))))))


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
  """(directories of three seeds, {arm: grades [seeds, problems, samples]})"""
  home, rng = tmp_path_factory.mktemp('seeds'), np.random.default_rng(1)
  ease = rng.random((1, 40, 1))
  grades = {'a': (rng.random((3, 40, SAMPLES)) < ease).astype(float), 'b': (rng.random((3, 40, SAMPLES)) < ease**2).astype(float)}
  for seed in range(3):
    for stage, of in grades.items():
      sampled(home / f'seed-{seed}', stage, of[seed], seed)
  return [home / f'seed-{seed}' for seed in range(3)], grades


RECIPE = dict(stages=dict(a={}, b={}), run=['a', 'b'], compare=[('a', 'b', 'test'), ('A', 'b', 'test', 'pass@3'), ('a', 'b', 'test', 'rank'),
                                                                 ('a', 'b', 'test', 'f1')])


def passing(grades, k):
  """Spec'd otherwise than by binomials: 1 if n - c < k, else 1 - the product of (1 - k / i) over i = n - c + 1 .. n."""
  n, c = grades.shape[-1], int(grades.sum())
  return 1.0 if n - c < k else 1 - np.prod(1 - k / np.arange(n - c + 1, n + 1))


def test_paired_differences_agree_with_numpy(drawn):
  directories, grades = drawn
  accuracy, passed, rank, f1 = results.compare(directories, RECIPE)
  value = {'accuracy': lambda g: g.mean(-1), 'pass@3': lambda g: np.apply_along_axis(passing, -1, g, 3), 'rank': lambda g: g.sum(-1) / 10}
  for one in (accuracy, passed, rank):
    apart = value[one.measure](grades['a']) - value[one.measure](grades['b'])       # [seeds, problems]
    assert one.by_seed == pytest.approx(apart.mean(1)) and one.difference[0] == pytest.approx(apart.mean())
    assert one.difference == pytest.approx(statistics.t_interval(list(apart.mean(1))))
    draws = np.random.default_rng(5).choice(apart.mean(0), (20000, 40)).mean(1)
    assert one.over_problems == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])), abs=0.01) and one.problems == 40
    assert (one.pairs.only_a, one.pairs.only_b) == ((apart > 1e-9).sum(), (apart < -1e-9).sum())
    assert sum(one.pairs) == 120
  # pairing tells more than two arms apart: problems differ in ease far more than the arms do
  alone = np.subtract(*np.quantile(np.random.default_rng(5).choice(grades['a'].mean((0, 2)), (5000, 40)).mean(1), [0.975, 0.025]))
  assert accuracy.over_problems[1] - accuracy.over_problems[0] < alone
  # a measure that is no mean over problems has no pairs: only what the summaries say
  assert f1.by_seed == pytest.approx([0, 0, 0]) and f1.problems == 0 and math.isnan(f1.over_problems[0]) and f1.verdict == 'no difference shown'


def test_every_measure_over_seeds(drawn):
  directories, grades = drawn
  a, b = results.over_seeds(directories, RECIPE)
  assert (a['stage'], a['title'], a['split'], a['n']) == ('a', 'A', 'test', 40) and b['title'] == 'B'
  expected = np.apply_along_axis(passing, -1, grades['a'], 3)
  assert a['pass_at']['3']['by_seed'] == pytest.approx(expected.mean(1)) and set(a['pass_at']) == {'1', '3'}
  for figure, values in ((a, grades['a'].mean(-1)), (a['pass_at']['3'], expected), (a['groups']['1'], grades['a'].mean(-1)[:, 1::2]),
                         (a['metrics']['rank'], grades['a'].sum(-1) / 10)):
    assert figure['by_seed'] == pytest.approx(values.mean(1)) and figure['interval'] == pytest.approx(statistics.t_interval(list(values.mean(1))))
    draws = np.random.default_rng(5).choice(values.mean(0), (20000, values.shape[1])).mean(1)
    assert figure['over_problems'] == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])), abs=0.012) and figure['n'] == values.shape[1]
  assert a['metrics']['f1']['by_seed'] == [0.5, 0.6, 0.7] and a['metrics']['f1']['n'] == 0


def test_the_tables_show_every_measure(drawn, capsys):
  directories, grades = drawn
  rows, compared = results.over_seeds(directories, RECIPE), results.compare(directories, RECIPE)
  tables.seeds(rows, compared, 3)
  said = capsys.readouterr().out
  passed = [f'{100 * value:.1f}' for value in np.apply_along_axis(passing, -1, grades['a'], 3).mean(1)]
  for words in ('pass@k in %, unbiased, 3 seeds', '  '.join(passed), 'Right answers in % by group, test', 'of 20', '0.5  0.6  0.7', 'A - B', 'test, pass@3',
                f'{100 * compared[1].difference[0]:+.1f}', 'over problems'):
    assert words in said, words
  for table in tables.further(directories[0], RECIPE):
    tables.show(table)
  said = capsys.readouterr().out
  for words in ('pass@k in %', 'by group, test', 'f1', '0.5 [0.1, 0.9]', 'A - B', 'test, pass@3', '--seeds=3 does'):
    assert words in said, words
  assert tables.further(directories[0], dict(stages={}, run=[])) == []


def test_arms_with_other_numbers_of_problems_are_named():
  splits = lambda n: dict(splits=dict(test=dict(n=n), dev=dict(n=5)))
  assert tables.counts([('a', splits(200)), ('b', splits(200)), ('c', splits(40))]) == 'test 200 (c 40), dev 5'


def test_other_seeds_may_have_other_problems(tmp_path):
  """Each problem counts once, with the mean of the seeds that have it."""
  for seed, ids in enumerate((range(0, 6), range(3, 9))):
    for stage, right in (('a', 1.0), ('b', 0.0)):
      (tmp_path / str(seed) / stage).mkdir(parents=True)
      rows = [dict(split='test', id=str(i), grades=[right if i % 3 else 0.0], texts=['']) for i in ids]
      (tmp_path / str(seed) / stage / 'predictions.jsonl').write_text('\n'.join(map(json.dumps, rows)))
      marks.write_json(tmp_path / str(seed) / stage / 'DONE', dict(seconds=1, finished='', summary=dict(
          kind='evaluate', splits=dict(test=dict(n=6, accuracy=right * 2 / 3, low=0, high=1)))))
  (one,) = results.compare([tmp_path / '0', tmp_path / '1'], dict(stages=dict(a={}, b={}), run=['a', 'b'], compare=[['a', 'b', 'test']]))
  assert one.problems == 9 and one.by_seed == pytest.approx([2 / 3, 2 / 3])
  assert one.over_problems == statistics.bootstrap([float(i % 3 > 0) for i in range(9)])
