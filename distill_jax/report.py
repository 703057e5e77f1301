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
  body = [_head(workdir, recipe, done), _results(workdir, recipe, done), _beside(workdir, recipe, done), _curves(workdir, done), _training(done),
          _writing(done), _rejections(done), _labels(done), _exports(done), _samples(done), _times(done), _how_made(workdir, recipe)]
  path = workdir / 'report.html'
  temporary = path.with_name('.report.html.tmp')
  temporary.write_text(page.document(recipe.get('title') or workdir.name, body), encoding='utf-8')
  temporary.replace(path)
  return path


def _head(workdir, recipe, done):
  out = [f'<h1>{page.escape(recipe.get("title") or workdir.name)}</h1>']
  run = recipe['run']
  finished = [name for name in run if name in done]
  last = max((entry['finished'] for entry in done.values()), default='')
  seconds = sum(entry['seconds'] for entry in done.values())
  state = f'{len(finished)} of {len(run)} stages done' if len(finished) < len(run) else f'all {len(run)} stages done'
  out.append(f'<p class="soft">{state}, last {page.escape(last.replace("T", " "))}, {duration(seconds)} in all, seed {recipe.get("seed", 0)}. '
             f'{page.escape(" → ".join(run))}</p>')
  notes = list(recipe.get('notes') or ())
  notes += [note for entry in done.values() for note in entry['summary'].get('notes', ())]
  if notes:
    out.append('<div class="notes">' + ''.join(f'<p>{page.escape(note)}</p>' for note in dict.fromkeys(notes)) + '</div>')
  return '\n'.join(out)


def _colours(done):
  """One colour a title, the same in every figure."""
  titles = dict.fromkeys(results.title(name, summary) for kind in ('train', 'evaluate') for name, summary in results.of_kind(done, kind).items())
  return {title: page.COLOURS[number % len(page.COLOURS)] for number, title in enumerate(titles)}


def _interval(figures):
  return (percent(figures['accuracy']), f'[{percent(figures["low"])}, {percent(figures["high"])}]')


def _results(workdir, recipe, done):
  arms = results.of_kind(done, 'evaluate')
  if not arms:
    return ''
  names = results.splits(arms)
  titles = [results.title(stage, summary) for stage, summary in arms.items()]
  panels = {split: [(f['accuracy'], f['low'], f['high']) if (f := summary['splits'].get(split)) else None for summary in arms.values()]
            for split in names}
  rows = [[title, *(_interval(summary['splits'][name]) if name in summary['splits'] else '' for name in names),
           'yes' if summary.get('calculator') else 'no', summary.get('samples', 1), f'{summary.get("temperature", 0):g}']
          for title, summary in zip(titles, arms.values())]
  counts = ', '.join(f'{name}: {f["n"]}' for name in names for f in [next(s['splits'][name] for s in arms.values() if name in s['splits'])])
  out = ['<h2>Results</h2>', '<p>Right answers in percent, with the 95 % interval over problems.</p>',
         page.table(['arm', *names, 'calculator', 'samples', 'temperature'], rows), f'<p class="soft">Problems a split: {page.escape(counts)}</p>',
         page.intervals(titles, panels, _colours(done))]
  tries = [[title, split, k, (percent(f['value']), f'[{percent(f["low"])}, {percent(f["high"])}]')]
           for title, summary in zip(titles, arms.values()) for split, figures in summary['splits'].items()
           for k, f in figures.get('pass_at', {}).items() if summary.get('samples', 1) > 1]
  if tries:
    out += ['<h3>pass@k</h3>', '<p class="soft">Unbiased estimate from all samples of a problem.</p>', page.table(['arm', 'split', 'k', 'pass@k'], tries)]
  lines = []
  for one in results.compare([workdir], recipe):
    p = one.pairs
    lines.append([f'{one.a} − {one.b}', one.split, f'{100 * one.difference[0]:+.1f}', p.both, p.only_a, p.only_b, p.neither, f'{p.p:.2g}', one.verdict])
  if lines:
    out += ['<h3>Compared, problem by problem</h3>',
            page.table(['arms', 'split', 'points', 'both right', 'first only', 'second only', 'neither', 'p (sign test)', 'verdict'], lines),
            '<p class="soft">Two-sided sign test on the problems that exactly one arm has right; one training run each, so it says nothing about other seeds '
            '(<code>--seeds=3</code> does).</p>']
  return '\n'.join(out)


def _compared_arms(recipe, arms):
  """The pairs of evaluate stages to lay side by side, with a split."""
  pairs = {}
  for first, second, split in recipe.get('compare') or ():
    a, b = results.arm(arms, first), results.arm(arms, second)
    if a and b:
      pairs.setdefault((a, b), split)
  if not pairs and len(arms) > 1:
    a, b, *_ = arms
    pairs[a, b] = next(iter(arms[a]['splits']), None)
  return pairs


def _beside(workdir, recipe, done, *, most=(4, 2, 2, 1)):
  """Same questions, both answers: a few that only the first has right, only the second, both, neither."""
  arms, out = results.of_kind(done, 'evaluate'), []
  for (a, b), split in _compared_arms(recipe, arms).items():
    ours, theirs = results.predictions(workdir / a, split), results.predictions(workdir / b, split)
    kinds = [[], [], [], []]
    for name in sorted(ours.keys() & theirs.keys()):
      x, y = (bool(rows[name]['grades']) and rows[name]['grades'][0] > 0 for rows in (ours, theirs))
      kinds[{(True, False): 0, (False, True): 1, (True, True): 2, (False, False): 3}[x, y]].append(name)
    if not any(kinds):
      continue
    titles = [results.title(name, arms[name]) for name in (a, b)]
    if not out:
      out.append('<h2>Side by side</h2>')
    out.append(f'<h3>{page.escape(titles[0])} beside {page.escape(titles[1])}, on {page.escape(split)}</h3>'
               f'<p class="soft">First answers. Only the first right: {len(kinds[0])}, only the second: {len(kinds[1])}, both: {len(kinds[2])}, '
               f'neither: {len(kinds[3])}. Shown are up to {most[0]}, {most[1]}, {most[2]} and {most[3]} of these, by id, not chosen by hand.</p>')
    for names, count in zip(kinds, most):
      out += [_card(ours[name]['question'], ours[name]['gold'],
                    [(title, rows[name]['texts'][0] if rows[name]['texts'] else '', bool(rows[name]['grades']) and rows[name]['grades'][0] > 0)
                     for title, rows in zip(titles, (ours, theirs))]) for name in names[:count]]
  return '\n'.join(out)


def _card(question, gold, answers):
  sides = ''.join(f'<div><div class="who"><span>{page.escape(who)}</span>{page.tag(right)}</div>{page.text(text)}</div>' for who, text, right in answers)
  layout = ' class="pair"' if len(answers) > 1 else ' class="pair" style="grid-template-columns:1fr"'
  answer = str(gold).rsplit('####', 1)[-1].strip()
  return (f'<div class="card"><div class="question">{page.escape(question.strip())}<span class="count">answer: {page.escape(answer)}</span></div>'
          f'<div{layout}>{sides}</div></div>')


def _metrics(directory):
  path = directory / 'metrics.jsonl'
  if not path.is_file():
    return []
  rows = []
  for line in path.read_text(encoding='utf-8').splitlines():
    try:
      rows.append(json.loads(line))
    except json.JSONDecodeError:
      continue                  # a line cut by a kill
  return rows


def _curves(workdir, done):
  stages = results.of_kind(done, 'train')
  titles = {name: results.title(name, summary) for name, summary in stages.items()}
  panels: dict[str, dict] = {}
  for name, title in titles.items():
    rows = _metrics(workdir / name)
    for key in dict.fromkeys(key for row in rows for key in row):
      if key == 'loss' or key.startswith('validate/'):
        points = [(row['step'], row[key]) for row in rows if key in row and math.isfinite(row[key])]
        panels.setdefault(key, {})[title] = tuple(zip(*points)) if points else ((), ())
  if not panels:
    return ''
  order = sorted(panels, key=lambda key: key != 'loss')
  return ('<h2>Learning curves</h2><p class="soft">Loss of every training stage, and what was measured on the way. Losses of stages with other '
          'terms are not comparable.</p>' + page.curves({key: panels[key] for key in order}, _colours(done)))


def _training(done):
  rows = []
  for name, s in results.of_kind(done, 'train').items():
    best = s.get('best')
    rows.append([results.title(name, s), f'{s.get("steps", 0):,}' + (' (stopped early)' if s.get('stopped_early') else ''),
                 _count(s.get('trained_parameters')), f'{s["tokens_per_second"]:,.0f}' if s.get('tokens_per_second') else '',
                 f'{100 * s["feed_share"]:.1f} %' if s.get('feed_share') is not None else '', duration(s.get('seconds', 0)),
                 f'{s["final"]["loss"]:.4f}' if 'loss' in (s.get('final') or {}) else '',
                 f'{best["metric"]} {best["value"]:.4g} at step {best["step"]}' if best else ''])
  if not rows:
    return ''
  return '<h2>Training</h2>' + page.table(['stage', 'steps', 'trained parameters', 'tokens a second', 'waiting for data', 'time', 'last loss', 'best'], rows)


def _count(number):
  if number is None:
    return ''
  for unit, factor in (('B', 1e9), ('M', 1e6), ('k', 1e3)):
    if number >= factor:
      return f'{number / factor:.2f} {unit}'
  return str(number)


def _overlap(summary):
  overlap = summary.get('overlap')
  if not overlap:
    return ''
  shown = ''.join(page.text(str(example)) for example in overlap.get('examples', ())[:3])
  return (f'<p>Overlap with the test split: {overlap["count"]:,} of {overlap["of"]:,} texts share {overlap["n"]} words in a row with a test problem.</p>'
          + (f'<details><summary>Examples</summary>{shown}</details>' if shown else ''))


def _writing(done):
  out = []
  for name, s in results.of_kind(done, 'generate').items():
    texts, tokens = s.get('texts'), s.get('tokens')
    out += [f'<h3>{page.escape(name)}</h3>', f'<p class="soft">Written by {page.escape(s["teacher"])}.</p>' if s.get('teacher') else '', page.facts([
        ('questions', s.get('questions') is not None and f'{s["questions"]:,}' or None), ('samples a question', s.get('samples')),
        ('texts', texts is not None and f'{texts:,}' or None), ('tokens', _count(tokens) or None),
        ('tokens a second', f'{s["tokens_per_second"]:,.0f}' if s.get('tokens_per_second') else None)]), _overlap(s)]
  return '<h2>What the teacher wrote</h2>' + '\n'.join(out) if out else ''


def _rejections(done):
  out = []
  for name, s in results.of_kind(done, 'grade').items():
    reasons, texts = s.get('reasons', {}), max(s.get('texts', 0), 1)
    kept = [('kept', s['kept'], f'{s["kept"]:,}  ({100 * s["kept"] / texts:.1f} %)', 'good')]
    rows = kept + [(reason, count, f'{count:,}  ({100 * count / texts:.1f} %)', 'bad')
                   for reason, count in sorted(reasons.items(), key=lambda item: -item[1]) if reason not in ('kept', 'right')]
    out += [f'<h3>{page.escape(name)}</h3>', f'<p>Kept {s["kept"]:,} of {s.get("texts", 0):,} texts, for {s.get("questions_kept", 0):,} of '
            f'{s.get("questions", 0):,} questions.</p>', page.bars(rows), _overlap(s)]
    cards = [f'<div class="card"><div class="question">{page.escape(e["question"].strip())}<span class="count">rejected: {page.escape(e["reason"])}</span></div>'
             f'<div class="pair" style="grid-template-columns:1fr"><div>{page.text(e["completion"])}</div></div></div>' for e in s.get('examples', ())[:6]]
    out += ['<details><summary>Examples of what was left out</summary>' + ''.join(cards) + '</details>'] if cards else []
  return '<h2>What was kept of it</h2>' + '\n'.join(out) if out else ''


def _labels(done):
  rows = [[name, f'{s.get("rows", 0):,}', _count(s.get('tokens')), s.get('k'), f'{100 * s["kept_mass"]:.2f} %' if s.get('kept_mass') is not None else '',
           size(s.get('bytes', 0)), duration(s.get('seconds', 0))] for name, s in results.of_kind(done, 'label').items()]
  return rows and ('<h2>Teacher labels</h2><p class="soft">The teacher\'s top-k log-probabilities of the training tokens; what is not in the top k '
                   'is one rest class.</p>' + page.table(['stage', 'rows', 'tokens', 'k', 'mass in the top k', 'on disk', 'time'], rows)) or ''


def _exports(done):
  rows = []
  for name, s in results.of_kind(done, 'export').items():
    proved = {True: 'yes', False: 'no'}.get(s.get('proved'), s.get('proved'))
    gap = s.get('max_logit_difference')
    same = {True: 'yes', False: 'no'}.get(s.get('same_greedy'), '')
    rows.append([name, pathlib.Path(str(s.get('directory', ''))).name, proved, '' if gap is None else f'{gap:.1e}', same, size(s.get('bytes') or 0)])
  return rows and ('<h2>Export</h2><p class="soft">Proved: transformers loaded the directory and gave the same logits and the same greedy text.</p>'
                   + page.table(['stage', 'directory', 'proved', 'largest logit difference', 'same greedy text', 'on disk'], rows)) or ''


def _samples(done):
  out = []
  for name, s in results.of_kind(done, 'evaluate').items():
    cards = [_card(e['question'], e['answer'], [(results.title(name, s), e['prediction'], e['right'])]) for e in s.get('examples', ())]
    if cards:
      out.append(f'<details><summary>{page.escape(results.title(name, s))}</summary>{"".join(cards)}</details>')
  return '<h2>Sample predictions</h2>' + ''.join(out) if out else ''


def _times(done):
  rows = [(name, entry['seconds'], duration(entry['seconds']) + (' (continued)' if entry.get('continued') else ''), '') for name, entry in done.items()]
  return '<h2>Time</h2>' + page.bars(rows) if rows else ''


def _how_made(workdir, recipe):
  run = marks.read_json(workdir / 'run.json') or {}
  out = ['<h2>How this was made</h2>']
  if run:
    versions = ', '.join(f'{name} {version}' for name, version in run['versions'].items())
    out += [f'<pre>{page.escape(run["command"])}</pre>', f'<p class="soft">{page.escape(run["devices"])}; {page.escape(run["host"])}. {page.escape(versions)}.</p>']
  settings = json.dumps(recipe, indent=1, ensure_ascii=False)
  return '\n'.join(out) + f'<details><summary>The recipe</summary><pre>{page.escape(settings)}</pre></details>'
