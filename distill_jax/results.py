"""Results of a workdir: what the stages wrote down, pairs of arms over the same problems, intervals over problems and over seeds.

A measure is 'accuracy' (mean grade over samples), 'pass@K' (unbiased, of the grades of a problem) or a name that the rows of predictions.jsonl
hold under `values: {name: value}`; it is a mean over problems.
"""
import functools
import json
import math
import pathlib
import statistics
from typing import Any, Iterable, Mapping, NamedTuple, Sequence

from distill_jax.core import marks
from distill_jax.core.statistics import bootstrap, pass_at, sign_test, t_interval


def finished(workdir: pathlib.Path, recipe: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
  """{stage: what DONE says} of the stages that are done: those in `run` first, then the others, in the recipe's order."""
  names = dict.fromkeys([*recipe['run'], *recipe['stages']])
  found = {name: marks.read_json(pathlib.Path(workdir) / name / 'DONE') for name in names}
  return {name: done for name, done in found.items() if done}


def of_kind(done: Mapping[str, dict], kind: str) -> dict[str, dict[str, Any]]:
  """{stage: summary} of the stages whose summary is of this kind."""
  return {name: entry['summary'] for name, entry in done.items() if entry['summary'].get('kind') == kind}


def title(name: str, summary: Mapping[str, Any]) -> str:
  """What an arm is called."""
  return summary.get('title') or name


def arm(arms: Mapping[str, Mapping[str, Any]], name: str) -> str | None:
  """The evaluate stage that `name`, a stage or a title, stands for; None where there is none."""
  if name in arms:
    return name
  return next((stage for stage, summary in arms.items() if summary.get('title') == name), None)


def splits(arms: Mapping[str, Mapping[str, Any]]) -> list[str]:
  """Every split that any arm was evaluated on, in order of appearance."""
  return list(dict.fromkeys(split for summary in arms.values() for split in _splits_of(summary)))


def _splits_of(summary: Mapping[str, Any]) -> list[str]:
  return list(dict.fromkeys(split for key in ('splits', 'groups', 'metrics') for split in summary.get(key) or {}))


def groups(arms: Mapping[str, Mapping[str, Any]], split: str) -> list[str]:
  """Every group that accuracy on a split was broken down by, in order of appearance."""
  return list(dict.fromkeys(group for summary in arms.values() for group in (summary.get('groups') or {}).get(split, ())))


def predictions(directory: pathlib.Path, split: str | None = None) -> dict[str, dict[str, Any]]:
  """{id: row} of predictions.jsonl; {} where there is none."""
  path = pathlib.Path(directory) / 'predictions.jsonl'
  if not path.is_file():
    return {}
  with open(path, encoding='utf-8') as file:
    rows = [json.loads(line) for line in file if line.strip()]
  return {row['id']: row for row in rows if split is None or row.get('split', split) == split}


def _problems(directory: pathlib.Path, split: str) -> dict[str, dict[str, Any]]:
  """`predictions` without their texts."""
  return {name: {key: row[key] for key in ('grades', 'values', 'group') if key in row} for name, row in predictions(directory, split).items()}


def of_problem(row: Mapping[str, Any], measure: str = 'accuracy') -> float | None:
  """What an arm reached on one problem; None where its row does not say. ValueError: pass@K of fewer than K samples."""
  grades = row.get('grades') or []
  if measure == 'accuracy':
    return statistics.fmean(grades) if grades else 0.0 if 'grades' in row else None
  if measure.startswith('pass@'):
    return pass_at(len(grades), sum(grade > 0 for grade in grades), int(measure.removeprefix('pass@')))
  return (row.get('values') or {}).get(measure)


def _values(rows: Mapping[str, dict], measure: str) -> dict[str, float]:
  """{id: value}, of the problems that have one."""
  return {name: value for name, row in rows.items() if (value := of_problem(row, measure)) is not None}


class Pairs(NamedTuple):
  """Two arms on the same problems. A problem on which both reached the same says nothing about which is better."""
  both: int
  only_a: int
  only_b: int
  neither: int

  @property
  def p(self) -> float:
    """Two-sided exact sign test of only_a against only_b."""
    return sign_test(self.only_a, self.only_b)

  def __add__(self, other):
    return Pairs(*(x + y for x, y in zip(self, other, strict=True)))


def pair(a: Mapping[str, dict], b: Mapping[str, dict], measure: str = 'accuracy') -> Pairs:
  """Counts over the problems that both predicted: on which a is above b, b above a; ties count as 'both' from one half on."""
  counts, x, y = [0, 0, 0, 0], _values(a, measure), _values(b, measure)
  for name in x.keys() & y.keys():
    counts[1 if x[name] > y[name] else 2 if y[name] > x[name] else 0 if x[name] >= 0.5 else 3] += 1
  return Pairs(*counts)


def pool(seeds: Iterable[Mapping[str, float]]) -> tuple[int, tuple[float, float]]:
  """(problems, interval of the mean by bootstrap over problems) of {id: value} of several seeds; a problem counts with its mean over seeds."""
  together: dict[str, list[float]] = {}
  for values in seeds:
    for name, value in values.items():
      together.setdefault(name, []).append(value)
  return len(together), bootstrap([statistics.fmean(together[name]) for name in sorted(together)])


class Compared(NamedTuple):
  """Arm a against arm b on a split, by a measure.

  difference: mean of the seeds' paired differences with its t interval over seeds; by_seed: these; over_problems: 95 % interval by bootstrap over
  `problems`, paired by problem, seeds pooled by problem; pairs: for the sign test, over seeds x problems.
  """
  a: str
  b: str
  split: str
  measure: str
  difference: tuple[float, float, float]
  by_seed: list[float]
  problems: int
  over_problems: tuple[float, float]
  pairs: Pairs

  @property
  def verdict(self) -> str:
    """'A better', 'B better' or 'no difference shown' (sign test at 5 %)."""
    if self.pairs.p >= 0.05:
      return 'no difference shown'
    return f'{self.a if self.pairs.only_a > self.pairs.only_b else self.b} better'


def compare(workdirs: Sequence[pathlib.Path], recipe: Mapping[str, Any]) -> list[Compared]:
  """The comparisons of config.compare, (arm, arm, split) or (arm, arm, split, measure), over one workdir a seed; those whose arms or split are
  not there are left out."""
  out, read = [], functools.cache(_problems)
  done = [of_kind(finished(workdir, recipe), 'evaluate') for workdir in workdirs]
  for first, second, split, *more in recipe.get('compare') or ():
    measure = more[0] if more else 'accuracy'
    titles, differences, apart, pairs = None, [], [], Pairs(0, 0, 0, 0)
    for workdir, arms in zip(workdirs, done, strict=True):
      a, b = arm(arms, first), arm(arms, second)
      if a is None or b is None or split not in _splits_of(arms[a]) or split not in _splits_of(arms[b]):
        continue
      rows = [read(pathlib.Path(workdir) / name, split) for name in (a, b)]
      x, y = (_values(several, measure) for several in rows)
      apart.append({name: x[name] - y[name] for name in x.keys() & y.keys()})
      whole = [_figure(arms[name], split, measure) for name in (a, b)]
      if apart[-1]:
        differences.append(statistics.fmean(apart[-1].values()))
      elif None not in whole:
        differences.append(whole[0] - whole[1])
      else:
        continue
      pairs, titles = pairs + pair(*rows, measure), titles or (title(a, arms[a]), title(b, arms[b]))
    if titles:
      out.append(Compared(*titles, split, measure, t_interval(differences), differences, *pool(apart), pairs))
  return out


def _figure(summary: Mapping[str, Any], split: str, measure: str) -> float | None:
  """What a summary says of a split; None where it does not."""
  figures = (summary.get('splits') or {}).get(split) or {}
  if measure == 'accuracy':
    return figures.get('accuracy')
  if measure.startswith('pass@'):
    return (figures.get('pass_at') or {}).get(measure.removeprefix('pass@'), {}).get('value')
  return (summary.get('metrics') or {}).get(split, {}).get(measure, {}).get('value')


def over_seeds(workdirs: Sequence[pathlib.Path], recipe: Mapping[str, Any]) -> list[dict[str, Any]]:
  """One row per arm and split: stage, title, split; n, by_seed, interval (mean, low, high by t over seeds) and over_problems (low, high by
  bootstrap over problems, seeds pooled by problem) of the accuracy; pass_at, groups, metrics: {name: the same of this figure}."""
  seen: dict[tuple, list[tuple]] = {}
  for workdir in workdirs:
    for name, summary in of_kind(finished(workdir, recipe), 'evaluate').items():
      for split in _splits_of(summary):
        seen.setdefault((name, split), []).append((summary, _problems(pathlib.Path(workdir) / name, split)))
  return [dict(stage=name, title=title(name, seeds[0][0]), split=split, **_row(split, seeds)) for (name, split), seeds in seen.items()]


def _row(split: str, seeds: Sequence[tuple[Mapping, Mapping]]) -> dict[str, Any]:
  """The figures of one arm on one split; seeds: (summary, problems) of each."""
  def measured(measure):
    by_seed = [value for summary, _ in seeds if (value := _figure(summary, split, measure)) is not None]
    return _summed(by_seed, [_values(problems, measure) for _, problems in seeds])

  def grouped(group):
    by_seed = [of[group]['accuracy'] for summary, _ in seeds if group in (of := (summary.get('groups') or {}).get(split, {}))]
    return _summed(by_seed, [_values({name: row for name, row in problems.items() if str(row.get('group')) == group}, 'accuracy') for _, problems in seeds])

  names = lambda find: list(dict.fromkeys(name for summary, _ in seeds for name in find(summary) or ()))
  ks = names(lambda summary: ((summary.get('splits') or {}).get(split) or {}).get('pass_at'))
  return dict(**measured('accuracy'),
              pass_at={k: measured(f'pass@{k}') for k in ks},
              groups={name: grouped(name) for name in names(lambda summary: (summary.get('groups') or {}).get(split))},
              metrics={name: measured(name) for name in names(lambda summary: (summary.get('metrics') or {}).get(split))})


def _summed(by_seed: list[float], problems: Sequence[Mapping[str, float]]) -> dict[str, Any]:
  n, over_problems = pool(problems)
  return dict(n=n, by_seed=by_seed, interval=t_interval(by_seed) if by_seed else (math.nan,) * 3, over_problems=over_problems)
