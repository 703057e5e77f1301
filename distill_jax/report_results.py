"""The results of a report: accuracies, pass@k, groups, other measures, the comparisons, and answers side by side."""
from typing import Any, Mapping

from distill_jax import page
from distill_jax import results
from distill_jax import tables
from distill_jax.tables import percent


def _interval(figures: Mapping[str, Any], key: str = 'accuracy', write=percent):
  """A cell: the figure, and its bounds after it."""
  value, _, bounds = tables.interval(figures, key, write).partition(' ')
  return (value, bounds) if bounds else value


def figures(workdir, recipe, done, colours) -> str:
  """Everything that was measured. colours: {title: colour}."""
  arms = results.of_kind(done, 'evaluate')
  if not arms:
    return ''
  titled = [(results.title(stage, summary), summary) for stage, summary in arms.items()]
  return '\n'.join(('<h2>Results</h2>', _accuracies(titled, colours), _pass_at(titled), _groups(titled, arms), _others(titled),
                    _compared(workdir, recipe)))


def _accuracies(titled, colours):
  titled = [(title, summary) for title, summary in titled if summary.get('splits')]
  if not titled:
    return ''
  names = list(dict.fromkeys(split for _, summary in titled for split in summary['splits']))
  rows, panels = [], {split: [] for split in names}
  for title, summary in titled:
    of = {split: summary['splits'].get(split) for split in names}
    rows.append([title, *(_interval(f) if f else '' for f in of.values()), 'yes' if summary.get('calculator') else 'no',
                 summary.get('samples', 1), f'{summary.get("temperature", 0):g}'])
    for split, f in of.items():
      panels[split].append((f['accuracy'], f['low'], f['high']) if f else None)
  return '\n'.join((
      '<p>Right answers in percent, with the 95 % interval by bootstrap over problems.</p>',
      page.table(['arm', *names, 'calculator', 'samples', 'temperature'], rows),
      page.soft(f'Problems a split: {tables.counts(titled)}.'),
      page.intervals([title for title, _ in titled], panels, colours)))


def _pass_at(titled):
  rows = [[title, split, samples, k, _interval(of, 'value')] for title, split, samples, k, of in tables.pass_at_rows(titled)]
  if not rows:
    return ''
  return '<h3>pass@k</h3>' + page.soft('In percent; unbiased estimate from all samples of a problem, 95 % interval by bootstrap over problems.') + page.table(
      ['arm', 'split', 'samples', 'k', 'pass@k'], rows)


def _groups(titled, arms):
  out = []
  for split in results.splits(arms):
    names = results.groups(arms, split)
    for first in range(0, len(names), tables.GROUPS):
      chosen = names[first:first + tables.GROUPS]
      rows = [[title, *(tuple(cell.split(' ', 1)) if cell else '' for cell in cells)] for title, *cells in tables.group_rows(titled, split, chosen)]
      out.append(page.table(['arm', *chosen], rows) if first else page.soft(f'{split}:') + page.table(['arm', *chosen], rows))
  return '<h3>By group</h3>' + page.soft('Right answers in percent, 95 % interval over problems, number of problems.') + '\n'.join(out) if out else ''


def _others(titled):
  rows = [[title, split, name, _interval(of, 'value', tables.plain)] for title, split, name, of in tables.metric_rows(titled)]
  return '<h3>Other measures</h3>' + page.table(['arm', 'split', 'measure', 'value'], rows) if rows else ''


def _compared(workdir, recipe):
  rows = []
  for one in results.compare([workdir], recipe):
    low, high = (tables.points(one, bound) for bound in one.over_problems)
    difference = tables.points(one, one.difference[0])
    where = one.split if one.measure == 'accuracy' else f'{one.split}, {one.measure}'
    rows.append([f'{one.a} − {one.b}', where, difference if low == '-' else (difference, f'[{low}, {high}]'), *one.pairs,
                 f'{one.pairs.p:.2g}', one.verdict])
  if not rows:
    return ''
  head = ['arms', 'split', 'points', 'both right', 'first only', 'second only', 'neither', 'p (sign test)', 'verdict']
  return '<h3>Compared, problem by problem</h3>' + page.table(head, rows) + page.soft(
      'Interval: 95 %, of the paired difference by bootstrap over problems. Two-sided sign test on the problems on which one arm is above the '
      'other (of several samples: by the measure of the problem). One training run each: it says nothing about other seeds (--seeds=3 does).')


def _side_by_side(recipe, arms):
  """{(stage, stage): split}: what config.compare names, else the first two arms."""
  pairs = {}
  for first, second, split, *_ in recipe.get('compare') or ():
    a, b = results.arm(arms, first), results.arm(arms, second)
    if a and b:
      pairs.setdefault((a, b), split)
  if not pairs and len(arms) > 1:
    a, b, *_ = arms
    pairs[a, b] = next(iter(arms[a].get('splits') or ()), None)
  return pairs


def _first(row):
  """(text, whether right) of the first sample."""
  return row['texts'][0], (row.get('grades') or [0.0])[0] > 0


def beside(workdir, recipe, done, *, most=(4, 2, 2, 1)):
  """Same questions, both answers: a few that only the first has right, only the second, both, neither."""
  arms, out = results.of_kind(done, 'evaluate'), []
  for (a, b), split in _side_by_side(recipe, arms).items():
    ours, theirs = ({key: row for key, row in results.predictions(workdir / name, split).items() if row.get('texts') and 'question' in row and 'gold' in row}
                    for name in (a, b))
    kinds = {(True, False): [], (False, True): [], (True, True): [], (False, False): []}
    for name in sorted(ours.keys() & theirs.keys()):
      kinds[_first(ours[name])[1], _first(theirs[name])[1]].append(name)
    if not any(kinds.values()):
      continue
    titles = [results.title(name, arms[name]) for name in (a, b)]
    counts = [len(names) for names in kinds.values()]
    out += [f'<h3>{page.escape(titles[0])} beside {page.escape(titles[1])}, on {page.escape(split)}</h3>', page.soft(
        f'First answers. Only the first right: {counts[0]}, only the second: {counts[1]}, both: {counts[2]}, neither: {counts[3]}. '
        f'Shown are up to {most[0]}, {most[1]}, {most[2]} and {most[3]} of these, by id, not chosen by hand.')]
    for names, count in zip(kinds.values(), most):
      out += [card(ours[name], [(title, *_first(rows[name])) for title, rows in zip(titles, (ours, theirs))]) for name in names[:count]]
  return '<h2>Side by side</h2>' + '\n'.join(out) if out else ''


def card(row, answers):
  """One question with its answer and what one or two arms wrote: (who, text, whether right)."""
  gold = str(row['gold']).rsplit('####', 1)[-1].strip()
  return page.card(row['question'], f'answer: {gold}', [(who, page.tag(right), text) for who, text, right in answers])
