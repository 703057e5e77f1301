"""Results of a workdir: what the stages wrote down, pairs of arms over the same problems, intervals over seeds."""
import json
import math
import pathlib
import statistics
from typing import Any, Mapping, NamedTuple, Sequence

from distill_jax.core import marks


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
  return list(dict.fromkeys(split for summary in arms.values() for split in summary.get('splits', {})))


def predictions(directory: pathlib.Path, split: str | None = None) -> dict[str, dict[str, Any]]:
  """{id: row} of predictions.jsonl; {} where there is none."""
  path = pathlib.Path(directory) / 'predictions.jsonl'
  if not path.is_file():
    return {}
  with open(path, encoding='utf-8') as file:
    rows = [json.loads(line) for line in file if line.strip()]
  return {row['id']: row for row in rows if split is None or row['split'] == split}


class Pairs(NamedTuple):
  """Two arms on the same problems. A problem that both have right or both wrong says nothing about which is better."""
  both: int
  only_a: int
  only_b: int
  neither: int

  @property
  def p(self) -> float:
    """Two-sided exact sign test: the chance of a split of only_a against only_b at least this uneven, were both equally good."""
    n, least = self.only_a + self.only_b, min(self.only_a, self.only_b)
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(least + 1)) / 2**n) if n else 1.0

  def __add__(self, other):
    return Pairs(*(x + y for x, y in zip(self, other, strict=True)))


def pair(a: Mapping[str, dict], b: Mapping[str, dict]) -> Pairs:
  """Counts over the problems that both predicted. With several texts a problem, the mean grade is compared; ties count as
  'both' from a mean of one half on."""
  counts = [0, 0, 0, 0]
  for name in a.keys() & b.keys():
    x, y = (statistics.fmean(row['grades']) if row['grades'] else 0.0 for row in (a[name], b[name]))
    counts[1 if x > y else 2 if y > x else 0 if x >= 0.5 else 3] += 1
  return Pairs(*counts)


def t_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
  """(mean, low, high) by Student's t over independent values; with one value low and high are nan."""
  mean = statistics.fmean(values)
  if len(values) < 2:
    return mean, math.nan, math.nan
  from scipy import stats      # comes with jax
  half = float(stats.t.ppf((1 + level) / 2, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
  return mean, mean - half, mean + half


class Compared(NamedTuple):
  """Arm a against arm b on a split: accuracies by seed, the paired difference with its interval, the sign test over seeds x problems."""
  a: str
  b: str
  split: str
  difference: tuple[float, float, float]
  by_seed: list[float]
  pairs: Pairs

  @property
  def verdict(self) -> str:
    """'A better', 'B better' or 'no difference shown' (sign test at 5 %)."""
    if self.pairs.p >= 0.05:
      return 'no difference shown'
    return f'{self.a if self.pairs.only_a > self.pairs.only_b else self.b} better'


def compare(workdirs: Sequence[pathlib.Path], recipe: Mapping[str, Any]) -> list[Compared]:
  """The comparisons of config.compare, over one workdir a seed; those whose arms or split are not there are left out."""
  out = []
  done = [of_kind(finished(workdir, recipe), 'evaluate') for workdir in workdirs]
  for first, second, split in recipe.get('compare') or ():
    rows = []
    for workdir, arms in zip(workdirs, done, strict=True):
      a, b = arm(arms, first), arm(arms, second)
      if a is None or b is None or split not in arms[a]['splits'] or split not in arms[b]['splits']:
        continue
      difference = arms[a]['splits'][split]['accuracy'] - arms[b]['splits'][split]['accuracy']
      both = pair(predictions(pathlib.Path(workdir) / a, split), predictions(pathlib.Path(workdir) / b, split))
      rows.append((difference, both, title(a, arms[a]), title(b, arms[b])))
    if rows:
      differences = [row[0] for row in rows]
      pairs = sum((row[1] for row in rows), Pairs(0, 0, 0, 0))
      out.append(Compared(rows[0][2], rows[0][3], split, t_interval(differences), differences, pairs))
  return out


def over_seeds(workdirs: Sequence[pathlib.Path], recipe: Mapping[str, Any]) -> list[dict[str, Any]]:
  """One row per arm and split: title, split, by_seed accuracies, (mean, low, high)."""
  out: dict[tuple, dict[str, Any]] = {}
  for workdir in workdirs:
    for name, summary in of_kind(finished(workdir, recipe), 'evaluate').items():
      for split, figures in summary.get('splits', {}).items():
        row = out.setdefault((name, split), dict(stage=name, title=title(name, summary), split=split, by_seed=[]))
        row['by_seed'].append(figures['accuracy'])
  return [{**row, 'interval': t_interval(row['by_seed'])} for row in out.values()]
