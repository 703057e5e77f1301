"""Tables for the terminal: the stages of a recipe, a forecast, the results, the results over seeds."""
import collections
import math
from typing import Any, Callable, Mapping, Sequence

from distill_jax import pipeline
from distill_jax import results
from distill_jax.core import marks
from distill_jax.train.log import duration


def show(table) -> None:
  """Prints a rich table; where the output is no terminal, 160 columns wide."""
  from rich.console import Console
  console = Console(highlight=False)
  if not console.is_terminal:
    console = Console(highlight=False, width=160)
  title, caption, table.title, table.caption = table.title, table.caption, None, None     # rich would fold them at the table's width
  console.print(f'\n[bold]{title}[/bold]')
  console.print(table)
  if caption:
    console.print(caption)


def _table(title: str, columns: Sequence[str], *, left: int = 1, caption: str | None = None):
  from rich import box
  from rich.table import Table
  table = Table(title=title, caption=caption, box=box.SIMPLE_HEAD, pad_edge=False)
  for number, column in enumerate(columns):
    table.add_column(column, justify='left' if number < left else 'right', overflow='fold')
  return table


def size(count: float) -> str:
  """Bytes for people: '12.3 MB'."""
  for unit in ('B', 'kB', 'MB', 'GB'):
    if count < 1000:
      return f'{count:.0f} {unit}' if unit == 'B' else f'{count:.1f} {unit}'
    count /= 1000
  return f'{count:.1f} TB'


def percent(value: float) -> str:
  """'62.5'; nan is a dash."""
  return '-' if math.isnan(value) else f'{100 * value:.1f}'


def listing(steps: Mapping[str, pipeline.Step], sources: pipeline.Sources | None = None) -> None:
  """Every stage: the function it calls, its state, how long it took, its mark; below, what differs where it is stale."""
  from rich.markup import escape
  table = _table('Stages', ('stage', 'function', 'reads', 'state', 'time', 'mark'), left=4)
  differing = []
  for step in steps.values():
    kind, lines = pipeline.state(step)
    old = marks.read_json(step.out / 'DONE') or marks.read_json(step.out / 'STARTED') or {}
    if kind == 'started' and old.get('steps') != step.steps:
      kind = f'started ({old["steps"]} of {step.steps} steps)'
    table.add_row(step.name, step.stage, escape(', '.join(step.details['inputs'])), kind,
                  duration(old['seconds']) if 'seconds' in old else '', step.mark)
    differing += [f'{step.name}: {line}' for line in lines]
  show(table)
  if differing:
    print('Stale because (there -> asked for):\n  ' + '\n  '.join(differing))


def forecast(steps: Mapping[str, pipeline.Step], sources: pipeline.Sources) -> None:
  """Rows, tokens, truncations, disk and time of the stages that are still to run, with totals."""
  table = _table('Forecast (nothing was run)', ('stage', 'function', 'rows', 'tokens', 'truncated', 'disk', 'time'), left=2)
  total = dict(rows=0, tokens=0, truncated=0, bytes=0, seconds=0)
  made = pipeline.forecast(steps, sources)
  for name, step in steps.items():
    figures = made.get(name)
    if name not in made:
      table.add_row(name, step.stage, *[''] * 4, 'done')
    elif figures is None:
      table.add_row(name, step.stage, *['?'] * 5)
    else:
      total = {key: total[key] + (figures.get(key) or 0) for key in total}
      table.add_row(name, step.stage, *_figures(figures))
  table.add_section()
  table.add_row('together', '', *_figures(total))
  show(table)
  notes = [f'{name}: {note}' for name, figures in made.items() for note in (figures or {}).get('notes', ())]
  if notes:
    print('\n'.join(notes))


def _figures(figures: Mapping[str, Any]) -> list[str]:
  counts = [f'{figures[key]:,.0f}' if figures.get(key) is not None else '' for key in ('rows', 'tokens', 'truncated')]
  return counts + [size(figures['bytes']) if figures.get('bytes') is not None else '',
                   duration(figures['seconds']) if figures.get('seconds') is not None else '']


def interval(figures: Mapping[str, Any], key: str = 'accuracy', write: Callable[[float], str] = percent) -> str:
  """'62.5 [55.0, 70.0]'; without the brackets where there are no bounds."""
  bounds = [figures.get(name) for name in ('low', 'high')]
  known = not any(bound is None or math.isnan(bound) for bound in bounds)
  return write(figures[key]) + (f' [{", ".join(map(write, bounds))}]' if known else '')


def plain(value: float) -> str:
  """Four digits; nan is a dash."""
  return '-' if math.isnan(value) else f'{value:.4g}'


def accuracies(workdir, recipe):
  """The results of a workdir as a rich table: an arm a row, a split a column with its 95 % interval. None: nothing of that kind."""
  arms = results.of_kind(results.finished(workdir, recipe), 'evaluate')
  arms = {name: summary for name, summary in arms.items() if summary.get('splits')}
  names = results.splits(arms)
  rows = [(results.title(stage, summary), *(interval(summary['splits'][name]) if name in summary['splits'] else '' for name in names))
          for stage, summary in arms.items()]
  return _filled('Right answers in %, with 95 % interval (bootstrap over problems)', ('arm', *names), rows,
                 caption=f'problems: {counts([(results.title(stage, summary), summary) for stage, summary in arms.items()])}')


def counts(titled) -> str:
  """'test 200, dev 100 (teacher 50)': problems of each split, and which arms had another number of them. titled: [(title, summary)]."""
  out = []
  for split in dict.fromkeys(split for _, summary in titled for split in summary['splits']):
    of = {title: summary['splits'][split].get('n') for title, summary in titled if split in summary['splits']}
    usual = collections.Counter(of.values()).most_common(1)[0][0]
    others = ', '.join(f'{title} {n}' for title, n in of.items() if n != usual)
    out.append(f'{split} {usual}' + (f' ({others})' if others else ''))
  return ', '.join(out)


def further(workdir, recipe) -> list:
  """What else was measured, as rich tables: pass@k, accuracy by group, other metrics, the comparisons of config.compare."""
  arms = results.of_kind(results.finished(workdir, recipe), 'evaluate')
  titled = [(results.title(stage, summary), summary) for stage, summary in arms.items()]
  passed, found = pass_at_rows(titled), metric_rows(titled)
  out = [_filled('pass@k in %, unbiased, with 95 % interval', ('arm', 'split', 'samples', 'k', 'pass@k'),
                 [(title, split, samples, k, interval(figures, 'value')) for title, split, samples, k, figures in passed], left=2)]
  for split in results.splits(arms):
    names = results.groups(arms, split)
    for first in range(0, len(names), GROUPS):
      chosen = names[first:first + GROUPS]
      out.append(_filled(f'Right answers in % by group, {split}', ('arm', *chosen), group_rows(titled, split, chosen)))
  out.append(_filled('Other measures, with 95 % interval', ('arm', 'split', 'measure', 'value'),
                     [(title, split, name, interval(figures, 'value', plain)) for title, split, name, figures in found], left=3))
  out.append(_compared(results.compare([workdir], recipe), seeds=False))
  return [table for table in out if table is not None]


GROUPS = 6      # columns of a table by group


def pass_at_rows(titled) -> list[tuple]:
  """(arm, split, samples, k, figures) of every arm with several samples a problem. titled: [(title, summary)]."""
  return [(title, split, summary['samples'], k, figures) for title, summary in titled if summary.get('samples', 1) > 1
          for split, all_k in (summary.get('splits') or {}).items() for k, figures in (all_k.get('pass_at') or {}).items()]


def group_rows(titled, split: str, groups: Sequence[str]) -> list[tuple[str, ...]]:
  """(arm, '62.5 [55.0, 70.0] of 40', ...) of every arm with groups on this split."""
  rows = []
  for title, summary in titled:
    if of := (summary.get('groups') or {}).get(split):
      rows.append((title, *(f'{interval(of[group])} of {of[group]["n"]}' if group in of else '' for group in groups)))
  return rows


def metric_rows(titled) -> list[tuple]:
  """(arm, split, measure, figures) of whatever else was measured."""
  return [(title, split, name, figures) for title, summary in titled for split, of in (summary.get('metrics') or {}).items()
          for name, figures in of.items()]


def _filled(title: str, head: Sequence[str], rows: Sequence[Sequence[Any]], *, left: int = 1, caption: str | None = None):
  """A table of text that may hold anything; None where it has no rows."""
  if not rows:
    return None
  from rich.markup import escape
  table = _table(title, [escape(str(name)) for name in head], left=left, caption=caption and escape(caption))
  for row in rows:
    table.add_row(*(escape(str(cell)) for cell in row))
  return table


def _bounds(low: float, high: float, write: Callable[[float], str] = percent) -> str:
  return '' if math.isnan(low) else f'[{write(low)}, {write(high)}]'


def _over(figure: Mapping[str, Any], write: Callable[[float], str] = percent) -> list[str]:
  """by seed, mean, t interval over seeds, bootstrap interval over problems, problems."""
  mean, low, high = figure['interval']
  return ['  '.join(map(write, figure['by_seed'])), write(mean), _bounds(low, high, write), _bounds(*figure['over_problems'], write), figure['n'] or '']


def seeds(rows: Sequence[Mapping[str, Any]], compared: Sequence[results.Compared], count: int) -> None:
  """Per arm and split every seed's figure and the mean with its intervals; then the comparisons with their sign tests."""
  over = ('by seed', 'mean', 'over seeds (t)', 'over problems', 'problems')
  made = [_filled(f'Right answers in %, {count} seeds, with 95 % intervals', ('arm', 'split', *over),
                  [(row['title'], row['split'], *_over(row)) for row in rows if row['by_seed']], left=2, caption=(
                      'over problems: bootstrap, a problem counting with its mean over seeds.')),
          _filled(f'pass@k in %, unbiased, {count} seeds', ('arm', 'split', 'k', *over),
                  [(row['title'], row['split'], k, *_over(figure)) for row in rows if set(row['pass_at']) - {'1'} for k, figure in row['pass_at'].items()],
                  left=2)]
  for split in dict.fromkeys(row['split'] for row in rows):
    here = [row for row in rows if row['split'] == split and row['groups']]
    names = list(dict.fromkeys(name for row in here for name in row['groups']))
    for first in range(0, len(names), GROUPS):
      cell = lambda figure: f'{percent(figure["interval"][0])} {_bounds(*figure["over_problems"])} of {figure["n"]}'
      chosen = names[first:first + GROUPS]
      made.append(_filled(f'Right answers in % by group, {split}: mean of {count} seeds, interval over problems', ('arm', *chosen),
                          [(row['title'], *(cell(row['groups'][name]) if name in row['groups'] else '' for name in chosen)) for row in here]))
  made.append(_filled(f'Other measures, {count} seeds', ('arm', 'split', 'measure', *over), [
      (row['title'], row['split'], name, *_over(figure, plain)) for row in rows for name, figure in row['metrics'].items()], left=3))
  for table in (*made, _compared(compared, seeds=True)):
    if table is not None:
      show(table)


def points(one: results.Compared, value: float) -> str:
  """A difference in the unit of its measure: points of a share, else as it is."""
  if math.isnan(value):
    return '-'
  return f'{100 * value:+.1f}' if one.measure == 'accuracy' or one.measure.startswith('pass@') else f'{value:+.4g}'


def _compared(compared: Sequence[results.Compared], *, seeds: bool):
  """The comparisons as a rich table; None where there are none. seeds: with what only several of them have."""
  rows = []
  for one in compared:
    write = lambda value: points(one, value)
    mean, low, high = one.difference
    rows.append((f'{one.a} - {one.b}', one.split + ('' if one.measure == 'accuracy' else f', {one.measure}'),
                 *(['  '.join(map(write, one.by_seed))] if seeds else []), write(mean), *([_bounds(low, high, write)] if seeds else []),
                 _bounds(*one.over_problems, write), f'{one.pairs.only_a} / {one.pairs.only_b}', f'{one.pairs.p:.2g}', one.verdict))
  middle = ('by seed', 'difference', 'over seeds (t)') if seeds else ('difference',)
  return _filled('Compared, in points, with 95 % intervals', ('arms', 'split', *middle, 'over problems', 'first / second only', 'p', 'verdict'), rows,
                 left=2, caption=(
      'p: two-sided sign test' + (' over seeds x problems' if seeds else '') + ', on the problems on which one arm is above the other; it takes '
      + ('seeds and problems' if seeds else 'problems') + ' as independent. over problems: bootstrap of the paired difference'
      + (', seeds pooled by problem.' if seeds else '. One training run each: nothing is said about other seeds (--seeds=3 does).')))
