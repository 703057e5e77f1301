"""Report: one self-contained HTML page of a workdir, no network needed. Each section is a function; '' where it has nothing to show."""
import json
import math
import pathlib
from typing import Any, Mapping

from distill_jax import page
from distill_jax import report_results
from distill_jax import results
from distill_jax.core import marks
from distill_jax.tables import size
from distill_jax.train.log import duration


def write(workdir: pathlib.Path, recipe: Mapping[str, Any]) -> pathlib.Path:
  """Writes workdir/report.html from what the finished stages wrote down, and returns its path."""
  workdir = pathlib.Path(workdir)
  done = results.finished(workdir, recipe)
  body = [
      _head(workdir, recipe, done), report_results.figures(workdir, recipe, done, _colours(done)), report_results.beside(workdir, recipe, done), _curves(workdir, done),
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
    cards = [report_results.card({'question': e['question'], 'gold': e['answer']}, [(who, e['prediction'], e['right'])]) for e in s.get('examples', ())]
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
