"""Report: one self-contained HTML page of a workdir, no network needed. Each section is a function; '' where it has nothing to show."""
import json
import math
import pathlib
from typing import Any, Mapping

from distill_jax import page
from distill_jax import results
from distill_jax.core import marks
from distill_jax.tables import percent, size
from distill_jax.train.log import duration


def write(workdir: pathlib.Path, recipe: Mapping[str, Any]) -> pathlib.Path:
  """Writes workdir/report.html from what the finished stages wrote down, and returns its path."""
  workdir = pathlib.Path(workdir)
  done = results.finished(workdir, recipe)
  body = [
      _head(workdir, recipe, done), _results(workdir, recipe, done), _beside(workdir, recipe, done), _curves(workdir, done),
      _training(done), _writing(done), _services(done), _rejections(done), _labels(done), _exports(done), _samples(done), _times(done),
      _how_made(workdir, recipe)]
  path = workdir / 'report.html'
  temporary = path.with_name('.report.html.tmp')
  temporary.write_text(page.document(recipe.get('title') or workdir.name, body), encoding='utf-8')
  temporary.replace(path)
  return path


def _head(workdir, recipe, done):
  run = recipe['run']
  finished = sum(name in done for name in run)
  last = max((entry['finished'] for entry in done.values()), default='').replace('T', ' ')
  seconds = sum(entry['seconds'] for entry in done.values())
  state = f'{finished} of {len(run)} stages done' if finished < len(run) else f'all {len(run)} stages done'
  notes = [*(recipe.get('notes') or ()), *(note for entry in done.values() for note in entry['summary'].get('notes', ()))]
  return ''.join((
      f'<h1>{page.escape(recipe.get("title") or workdir.name)}</h1>',
      page.soft(f'{state}, last {last}, {duration(seconds)} in all, seed {recipe.get("seed", 0)}. {" → ".join(run)}'),
      page.notes(dict.fromkeys(notes))))


def _colours(done):
  """One colour a title, the same in every figure."""
  titles = dict.fromkeys(results.title(name, s) for kind in ('train', 'evaluate') for name, s in results.of_kind(done, kind).items())
  return {title: page.COLOURS[number % len(page.COLOURS)] for number, title in enumerate(titles)}


def _interval(figures, key='accuracy'):
  return (percent(figures[key]), f'[{percent(figures["low"])}, {percent(figures["high"])}]')


def _results(workdir, recipe, done):
  arms = results.of_kind(done, 'evaluate')
  if not arms:
    return ''
  names = results.splits(arms)
  titles = [results.title(stage, summary) for stage, summary in arms.items()]
  rows, panels, counts = [], {split: [] for split in names}, {}
  for title, summary in zip(titles, arms.values()):
    figures = {split: summary['splits'].get(split) for split in names}
    rows.append([title, *(_interval(f) if f else '' for f in figures.values()), 'yes' if summary.get('calculator') else 'no',
                 summary.get('samples', 1), f'{summary.get("temperature", 0):g}'])
    for split, f in figures.items():
      panels[split].append((f['accuracy'], f['low'], f['high']) if f else None)
      counts.update({split: f['n']} if f else {})
  return '\n'.join((
      '<h2>Results</h2><p>Right answers in percent, with the 95 % interval over problems.</p>',
      page.table(['arm', *names, 'calculator', 'samples', 'temperature'], rows),
      page.soft('Problems a split: ' + ', '.join(f'{split}: {n}' for split, n in counts.items())),
      page.intervals(titles, panels, _colours(done)), _pass_at(titles, arms), _compared(workdir, recipe)))


def _pass_at(titles, arms):
  rows = [[title, split, k, _interval(figures, 'value')] for title, summary in zip(titles, arms.values()) if summary.get('samples', 1) > 1
          for split, all_k in summary['splits'].items() for k, figures in all_k.get('pass_at', {}).items()]
  if not rows:
    return ''
  said = page.soft('Unbiased estimate from all samples of a problem.')
  return '<h3>pass@k</h3>' + said + page.table(['arm', 'split', 'k', 'pass@k'], rows)


def _compared(workdir, recipe):
  rows = [[f'{one.a} − {one.b}', one.split, f'{100 * one.difference[0]:+.1f}', *one.pairs, f'{one.pairs.p:.2g}', one.verdict]
          for one in results.compare([workdir], recipe)]
  if not rows:
    return ''
  head = ['arms', 'split', 'points', 'both right', 'first only', 'second only', 'neither', 'p (sign test)', 'verdict']
  return '<h3>Compared, problem by problem</h3>' + page.table(head, rows) + page.soft(
      'Two-sided sign test on the problems that exactly one arm has right. One training run each: it says nothing about other seeds '
      '(--seeds=3 does).')


def _side_by_side(recipe, arms):
  """{(stage, stage): split}: what config.compare names, else the first two arms."""
  pairs = {}
  for first, second, split in recipe.get('compare') or ():
    a, b = results.arm(arms, first), results.arm(arms, second)
    if a and b:
      pairs.setdefault((a, b), split)
  if not pairs and len(arms) > 1:
    a, b, *_ = arms
    pairs[a, b] = next(iter(arms[a]['splits']), None)
  return pairs


def _first(row):
  """(text, whether right) of the first sample."""
  return (row['texts'] or [''])[0], (row['grades'] or [0.0])[0] > 0


def _beside(workdir, recipe, done, *, most=(4, 2, 2, 1)):
  """Same questions, both answers: a few that only the first has right, only the second, both, neither."""
  arms, out = results.of_kind(done, 'evaluate'), []
  for (a, b), split in _side_by_side(recipe, arms).items():
    ours, theirs = results.predictions(workdir / a, split), results.predictions(workdir / b, split)
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
      out += [_card(ours[name], [(title, *_first(rows[name])) for title, rows in zip(titles, (ours, theirs))]) for name in names[:count]]
  return '<h2>Side by side</h2>' + '\n'.join(out) if out else ''


def _card(row, answers):
  """One question with its answer and what one or two arms wrote: (who, text, whether right)."""
  gold = str(row['gold']).rsplit('####', 1)[-1].strip()
  return page.card(row['question'], f'answer: {gold}', [(who, page.tag(right), text) for who, text, right in answers])


def _metrics(directory):
  path = directory / 'metrics.jsonl'
  rows = []
  for line in path.read_text(encoding='utf-8').splitlines() if path.is_file() else ():
    try:
      rows.append(json.loads(line))
    except json.JSONDecodeError:
      continue                  # a line cut by a kill
  return rows


def _curves(workdir, done):
  panels: dict[str, dict] = {}
  for name, summary in results.of_kind(done, 'train').items():
    rows = _metrics(workdir / name)
    for key in dict.fromkeys(key for row in rows for key in row):
      if key == 'loss' or key.startswith('validate/'):
        points = [(row['step'], row[key]) for row in rows if key in row and math.isfinite(row[key])]
        panels.setdefault(key, {})[results.title(name, summary)] = tuple(zip(*points)) if points else ((), ())
  if not panels:
    return ''
  panels = {key: panels[key] for key in sorted(panels, key=lambda key: key != 'loss')}
  return '<h2>Learning curves</h2>' + page.soft(
      'Loss of every training stage, and what was measured on the way. Losses of stages with other terms are not comparable.'
  ) + page.curves(panels, _colours(done))


def _training(done):
  rows = []
  for name, s in results.of_kind(done, 'train').items():
    best, share, rate, figures = s.get('best'), s.get('feed_share'), s.get('tokens_per_second'), s.get('figures') or {}
    speed = f'{figures["speed/tflops"]:.3g}' if 'speed/tflops' in figures else ''
    speed += f' ({100 * figures["speed/mfu"]:.1f} %)' if 'speed/mfu' in figures else ''
    rows.append([
        results.title(name, s), f'{s.get("steps", 0):,}' + (' (stopped early)' if s.get('stopped_early') else ''),
        page.count(s.get('trained_parameters')), f'{rate:,.0f}' if rate else '', speed, f'{100 * share:.1f} %' if share is not None else '',
        duration(s.get('seconds', 0)), f'{s["final"]["loss"]:.4f}' if 'loss' in (s.get('final') or {}) else '',
        f'{best["metric"]} {best["value"]:.4g} at step {best["step"]}' if best else ''])
  head = ['stage', 'steps', 'trained parameters', 'tokens a second', 'TFLOP/s (MFU)', 'waiting for data', 'time', 'last loss', 'best']
  return '<h2>Training</h2>' + page.table(head, rows) if rows else ''


def _overlap(summary):
  overlap = summary.get('overlap')
  if not overlap:
    return ''
  longer = f', {overlap["count_of_30_words"]:,} a run of 30' if 'count_of_30_words' in overlap else ''
  said = (f'Overlap with held-out problems ({overlap.get("held_out", "test")}): {overlap["count"]:,} of {overlap["of"]:,} texts share a '
          f'run of {overlap["n"]} words with one{longer}.')
  shown = ''.join(page.soft(f'shared: {example["shared"]}') + page.text(example['text']) for example in overlap.get('examples', ())[:3])
  return f'<p>{page.escape(said)}</p>' + page.folded('Examples', shown)


def _writing(done):
  out = []
  for name, s in results.of_kind(done, 'generate').items():
    number = lambda key: f'{s[key]:,.0f}' if s.get(key) is not None else None
    out += [
        f'<h3>{page.escape(name)}</h3>', page.soft(f'Teacher: {s["teacher"]}') if s.get('teacher') else '',
        page.facts([('questions', number('questions')), ('samples a question', number('samples')), ('texts', number('texts')),
                    ('tokens', page.count(s.get('tokens')) or None), ('never ended', number('unfinished')),
                    ('prompts cut', number('cut_prompts')), ('tokens a second', number('tokens_per_second'))]), _overlap(s)]
  return '<h2>What the teacher wrote</h2>' + '\n'.join(out) if out else ''


def _services(done):
  rows, together = [], 0.0
  for name, entry in done.items():
    if (s := entry['summary'].get('api')) is None:
      continue
    together += s['cost'] or 0
    rows.append([name, ', '.join(s['served']) or s['model'], f'{s["requests"]:,}', f'{s["retries"]:,}', page.count(s['input_tokens']),
                 page.count(s['output_tokens']), '' if s['latency_median'] is None else f'{s["latency_median"]:.2f} s',
                 '' if s['cost'] is None else f'{s["cost"]:,.4f}'])
  if not rows:
    return ''
  head = ['stage', 'model that answered', 'requests', 'retries', 'tokens read', 'tokens written', 'median latency', 'cost']
  said = 'All runs of each stage together, from its journals. Cost by price= of the role, in its unit'
  return '<h2>Requests to the API</h2>' + page.table(head, rows) + page.soft(f'{said}; {together:,.4f} in all.' if together else f'{said}.')


def _of_each(rows, key, most):
  """The first `most` rows of every value of `key`."""
  taken = {}
  for row in rows:
    taken.setdefault(row[key], []).append(row)
  return [row for several in taken.values() for row in several[:most]]


def _rejections(done):
  out = []
  for name, s in results.of_kind(done, 'grade').items():
    texts = max(s.get('texts', 0), 1)
    bar = lambda what, count, kind: (what, count, f'{count:,}  ({100 * count / texts:.1f} %)', kind)
    reasons = sorted(s.get('reasons', {}).items(), key=lambda item: -item[1])
    cards = [page.card(e['question'], f'rejected: {e["reason"]}', [('', '', e['completion'])])
             for e in _of_each(s.get('examples', ()), 'reason', 2)]
    out += [
        f'<h3>{page.escape(name)}</h3>', f'<p>Kept {s["kept"]:,} of {s.get("texts", 0):,} texts, for {s.get("questions_kept", 0):,} of '
        f'{s.get("questions", 0):,} questions.</p>', page.bars([bar('kept', s['kept'], 'good'), *(bar(*row, 'bad') for row in reasons)]),
        _overlap(s), page.folded('Examples of what was left out', ''.join(cards))]
  return '<h2>What was kept of it</h2>' + '\n'.join(out) if out else ''


def _labels(done):
  rows = [[name, f'{s.get("rows", 0):,}', page.count(s.get('tokens')), s.get('k'),
           f'{100 * s["kept_mass"]:.2f} %' if s.get('kept_mass') is not None else '', size(s.get('bytes', 0)),
           duration(s.get('seconds', 0))]
          for name, s in results.of_kind(done, 'label').items()]
  if not rows:
    return ''
  return '<h2>Teacher labels</h2>' + page.soft(
      "The teacher's top-k log-probabilities of the training tokens; what is not in the top k is one rest class."
  ) + page.table(['stage', 'rows', 'tokens', 'k', 'mass in the top k', 'on disk', 'time'], rows)


def _exports(done):
  rows, word = [], {True: 'yes', False: 'no', None: ''}
  for name, s in results.of_kind(done, 'export').items():
    gap, proved = s.get('max_logit_difference'), s.get('proved')
    rows.append([name, pathlib.Path(str(s.get('directory', ''))).name, proved if isinstance(proved, str) else word[proved],
                 '' if gap is None else f'{gap:.1e}', word[s.get('same_greedy')], size(s.get('bytes') or 0)])
  if not rows:
    return ''
  return '<h2>Export</h2>' + page.soft(
      'Proved: transformers loaded the directory and gave the same logits and the same greedy text.'
  ) + page.table(['stage', 'directory', 'proved', 'largest logit difference', 'same greedy text', 'on disk'], rows)


def _samples(done):
  out = ''
  for name, s in results.of_kind(done, 'evaluate').items():
    who = results.title(name, s)
    cards = [_card({'question': e['question'], 'gold': e['answer']}, [(who, e['prediction'], e['right'])]) for e in s.get('examples', ())]
    out += page.folded(who, ''.join(cards))
  return '<h2>Sample predictions</h2>' + out if out else ''


def _times(done):
  rows = [(name, entry['seconds'], duration(entry['seconds']) + (' (continued)' if entry.get('continued') else ''), '')
          for name, entry in done.items()]
  return '<h2>Time</h2>' + page.bars(rows) if rows else ''


def _how_made(workdir, recipe):
  run = marks.read_json(workdir / 'run.json')
  out = '<h2>How this was made</h2>'
  if run:
    versions = ', '.join(f'{name} {version}' for name, version in run['versions'].items())
    out += f'<pre>{page.escape(run["command"])}</pre>' + page.soft(f'{run["devices"]}; {run["host"]}. {versions}.')
  settings = json.dumps(recipe, indent=1, ensure_ascii=False)
  return out + page.folded('The recipe', f'<pre>{page.escape(settings)}</pre>')
