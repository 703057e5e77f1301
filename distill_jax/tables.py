"""Tables for the terminal: the stages of a recipe, a forecast, the results, the results over seeds."""
import math
from typing import Any, Mapping, Sequence

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


def accuracies(workdir, recipe):
  """The results of a workdir as a rich table: an arm a row, a split a column with its 95 % interval. None: nothing evaluated yet."""
  from rich.markup import escape
  arms = results.of_kind(results.finished(workdir, recipe), 'evaluate')
  if not arms:
    return None
  names = results.splits(arms)
  table = _table('Right answers in %, with 95 % interval', ('arm', *(escape(name) for name in names)))
  for stage, summary in arms.items():
    cells = []
    for name in names:
      figures = summary['splits'].get(name)
      cells.append('' if figures is None else f'{percent(figures["accuracy"])} [{percent(figures["low"])}, {percent(figures["high"])}]')
    table.add_row(escape(results.title(stage, summary)), *(escape(cell) for cell in cells))
  first = next(iter(arms.values()))['splits']
  table.caption = 'problems: ' + ', '.join(f'{escape(name)} {figures["n"]}' for name, figures in first.items())
  return table


def seeds(rows: Sequence[Mapping[str, Any]], compared: Sequence[results.Compared], count: int) -> None:
  """Per arm and split every seed's figure and the mean with its interval; then the comparisons with their sign tests."""
  from rich.markup import escape
  table = _table(f'Right answers in %, {count} seeds', ('arm', 'split', 'by seed', 'mean', '95 % interval (t)'), left=2)
  for row in rows:
    mean, low, high = row['interval']
    table.add_row(escape(row['title']), escape(row['split']), '  '.join(map(percent, row['by_seed'])), percent(mean),
                  escape(f'[{percent(low)}, {percent(high)}]'))
  show(table)
  if not compared:
    return
  head = ('arms', 'split', 'by seed', 'difference', '95 % interval (t)', 'first / second only', 'p', 'verdict')
  table = _table('Compared, in points', head, left=2, caption=(
      'p: two-sided sign test over seeds x problems, on the problems that exactly one arm has right; it takes seeds and problems as '
      'independent. The interval is over seeds.'))
  for one in compared:
    mean, low, high = one.difference
    table.add_row(escape(f'{one.a} - {one.b}'), escape(one.split), '  '.join(map(percent, one.by_seed)), percent(mean),
                  escape(f'[{percent(low)}, {percent(high)}]'), f'{one.pairs.only_a} / {one.pairs.only_b}', f'{one.pairs.p:.2g}',
                  escape(one.verdict))
  show(table)
