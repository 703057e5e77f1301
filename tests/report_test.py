"""The report and the figures in it, from summaries written by hand."""
import html.parser
import json
import math
import pathlib
import re

import numpy as np
import pytest

from distill_jax import page
from distill_jax import report
from distill_jax import results
from distill_jax import tables
from distill_jax.core import marks

RECIPE = {
    'seed': 0, 'title': 'GSM8K distilled: a small teacher, a smaller student', 'run': [
        'generate', 'grade', 'label', 'train_kd', 'train_answers', 'eval_teacher', 'eval_base', 'eval_answers', 'eval_kd', 'export'],
    'tasks': {'problems': {'task': 'gsm8k'}}, 'roles': {'teacher': {'load': 'bundled:teacher'}},
    'compare': [('eval_kd', 'Answers only', 'test'), ('eval_kd', 'eval_answers', 'test_range')]}
RECIPE['stages'] = {name: {'stage': name.split('_')[0].replace('eval', 'evaluate')} for name in RECIPE['run']}
SPLITS = {'test': 200, 'test_range': 100, 'test_family': 100}


def _done(workdir, name, summary, seconds=12.0):
  (workdir / name).mkdir(parents=True, exist_ok=True)
  marks.write_json(workdir / name / 'DONE', dict(fingerprint='f', mark='m', steps=None, details={}, seconds=seconds, continued=False,
                                                 summary=summary, finished='2026-01-02T03:04:05'))


def _evaluated(workdir, name, title, rates, rng, text):
  rows, splits = [], {}
  for (split, n), rate in zip(SPLITS.items(), rates):
    grades = rng.random(n) < rate
    for i, right in enumerate(grades):
      question = f'Maya has {i + 3} boxes with {i % 7 + 2} <pens> & gives 4 away. How many pens does Maya have in the end?'
      rows.append(dict(split=split, id=f'{split}{i:04d}', question=question, gold='#### 14', texts=[text(i, right)], grades=[float(right)]))
    p = float(grades.mean())
    half = 1.96 * math.sqrt(p * (1 - p) / n)
    low, high = max(0, p - half), min(1, p + half)
    splits[split] = dict(n=n, accuracy=p, low=low, high=high, pass_at={'1': dict(value=p, low=low, high=high)})
  examples = [dict(question=r['question'], answer=r['gold'], prediction=r['texts'][0], right=bool(r['grades'][0])) for r in rows[:3]]
  _done(workdir, name, dict(kind='evaluate', title=title, role='student', calculator=False, temperature=0.0, samples=1, splits=splits,
                            examples=examples), 9.4)
  (workdir / name / 'predictions.jsonl').write_text('\n'.join(map(json.dumps, rows)), encoding='utf-8')


def _trained(workdir, name, title, scale, rng):
  _done(workdir, name, dict(
      kind='train', title=title, steps=600, parameters=1_200_000, trained_parameters=1_200_000, tokens_per_second=15321.0, seconds=143.0,
      feed_share=0.004, final={'loss': 0.31 * scale}, best=dict(step=500, metric='accuracy', value=0.52) if scale == 1 else None,
      stopped_early=None), 150)
  with open(workdir / name / 'metrics.jsonl', 'w', encoding='utf-8') as file:
    for step in range(10, 610, 10):
      loss = scale * (0.3 + 3 * math.exp(-step / 90)) * (1 + 0.08 * float(rng.normal()))
      file.write(json.dumps({'step': step, 'loss': loss, 'lr/student': 1e-3}) + '\n')
      if step % 100 == 0:
        accuracy = 0.6 / scale * (1 - math.exp(-step / 200))
        file.write(json.dumps({'step': step, 'validate/accuracy': accuracy, 'validate/loss': scale * 0.4}) + '\n')
    file.write('{"step": 610, "lo')


def _worked(i, right):
  boxes, pens = i + 3, i % 7 + 2
  return f'He has {boxes} * {pens} = <<{boxes}*{pens}={boxes * pens}>> pens.\nThen 4 are given away.\n#### {14 if right else 15}'


def make(workdir: pathlib.Path):
  """A workdir as a finished run leaves it, with invented figures."""
  rng = np.random.default_rng(0)
  overlap = dict(count=3, of=6000, n=13, count_of_30_words=1, examples=[dict(text='a <b> c', shared='a b c')], held_out='test')
  _done(workdir, 'generate', dict(
      kind='generate', questions=1500, samples=4, texts=6000, tokens=423456, seconds=88.0, tokens_per_second=4812.0,
      teacher='bundled:teacher', overlap=overlap, unfinished=31,
      notes=['This is generated data and a small bundled teacher: figures say nothing about GSM8K itself.']), 88)
  _done(workdir, 'grade', dict(
      kind='grade', texts=6000, kept=4321, questions=1500, questions_kept=1402,
      reasons={'wrong answer': 1203, 'no answer': 44, 'repeated': 380, 'over the cap': 52},
      examples=[dict(question='How many <b>?', completion='x <script>alert(1)</script>', reason='wrong answer')]), 2.1)
  _done(workdir, 'label', dict(kind='label', rows=4321, tokens=300123, k=16, kept_mass=0.9987, seconds=21.0, bytes=33_000_000), 21)
  _trained(workdir, 'train_kd', 'CoT + KD', 1.0, rng)
  _trained(workdir, 'train_answers', 'Answers only', 1.6, rng)
  _evaluated(workdir, 'eval_teacher', 'Teacher', (0.84, 0.7, 0.55), rng, _worked)
  _evaluated(workdir, 'eval_base', 'Student, untrained', (0.01, 0.0, 0.0), rng, lambda i, right: '')
  _evaluated(workdir, 'eval_answers', 'Answers only', (0.14, 0.06, 0.07), rng, lambda i, right: f'#### {14 if right else 15}')
  _evaluated(workdir, 'eval_kd', 'CoT + KD', (0.56, 0.4, 0.22), rng, _worked)
  _done(workdir, 'export', dict(kind='export', directory='/x/runs/gsm8k/export/student', proved=True, max_logit_difference=3.4e-6,
                                same_greedy=True, bytes=4_800_000, notes=[]), 6.2)
  marks.write_json(workdir / 'run.json', dict(
      command='python -m distill_jax.main --config=configs/gsm8k.py', versions={'python': '3.11.7', 'jax': '0.10.2'}, devices='1 x cpu',
      host='Linux x86_64, 2 cores'))


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  path = tmp_path_factory.mktemp('gsm8k')
  make(path)
  return path


class Page(html.parser.HTMLParser):
  """Which tags a page opens and does not close, what it loads, its text."""
  EMPTY = {'meta', 'br', 'use', 'path', 'link', 'img'}

  def __init__(self):
    super().__init__()
    self.open, self.loads, self.tags, self.words = [], [], [], []

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.loads += [value for name, value in attrs if name in ('src', 'href', 'xlink:href') and not value.startswith('#')]
    if tag not in self.EMPTY:
      self.open.append(tag)

  def handle_endtag(self, tag):
    if tag not in self.EMPTY:
      assert self.open.pop() == tag

  def handle_data(self, data):
    self.words.append(data)


def read(path):
  parsed = Page()
  parsed.feed(path.read_text(encoding='utf-8'))
  assert parsed.open == []
  return parsed


def test_a_page_that_stands_alone(workdir):
  parsed = read(report.write(workdir, RECIPE))
  assert parsed.loads == [] and 'script' not in parsed.tags and 'link' not in parsed.tags
  assert parsed.tags.count('svg') == 2
  text = ' '.join(parsed.words)
  assert '<script>alert(1)</script>' in text, 'shown as text'
  assert '2 <pens> & gives' in text
  for words in ('Results', 'Side by side', 'Learning curves', 'Training', 'What the teacher wrote', 'What was kept of it', 'Teacher labels',
                'Export', 'Sample predictions', 'Time', 'How this was made', 'small bundled teacher', 'Kept 4,321 of 6,000',
                '3 of 6,000 texts share a run of 13 words with one, 1 a run of 30', 'mass in the top k',
                '99.87 %', '3.4e-06', 'CoT + KD beside Answers only, on test', 'sign test', 'python -m distill_jax.main'):
    assert words in text, words
  assert not list(workdir.glob('.report*'))


def test_figures_in_the_page_are_those_of_the_summaries(workdir):
  text = (report.write(workdir, RECIPE)).read_text(encoding='utf-8')
  summary = marks.read_json(workdir / 'eval_kd' / 'DONE')['summary']
  for figures in summary['splits'].values():
    assert f'{100 * figures["accuracy"]:.1f} <span class="soft">[{100 * figures["low"]:.1f}, {100 * figures["high"]:.1f}]' in text
  pairs = results.pair(results.predictions(workdir / 'eval_kd', 'test'), results.predictions(workdir / 'eval_answers', 'test'))
  assert f'Only the first right: {pairs.only_a}, only the second: {pairs.only_b}, both: {pairs.both}, neither: {pairs.neither}' in text
  assert len(re.findall('&#10003; right', text)) > 5 and len(re.findall('&#10007; wrong', text)) > 5


def test_a_page_of_a_run_that_has_barely_begun(tmp_path):
  parsed = read(report.write(tmp_path, RECIPE))
  assert '0 of 10 stages done' in ' '.join(parsed.words)
  _done(tmp_path, 'generate', dict(kind='generate'))
  _done(tmp_path, 'grade', dict(kind='grade', kept=0, texts=0))
  _done(tmp_path, 'label', dict(kind='label'))
  _done(tmp_path, 'train_kd', dict(kind='train'))
  _done(tmp_path, 'export', dict(kind='export', proved='not proved: no torch'))
  text = ' '.join(read(report.write(tmp_path, RECIPE)).words)
  assert 'not proved: no torch' in text


def test_titles_with_dollars_and_tags_pass_through(tmp_path):
  splits = {'a$b$': dict(n=3, accuracy=0.5, low=0.1, high=0.9)}
  for name, title in (('eval_kd', 'x <b>$\\frac$'), ('eval_base', 'y & z')):
    _done(tmp_path, name, dict(kind='evaluate', title=title, splits=splits))
  parsed = read(report.write(tmp_path, RECIPE))
  assert 'b' not in parsed.tags
  table = tables.accuracies(tmp_path, RECIPE)
  assert table.row_count == 2


def test_pass_at_k_is_shown_for_several_samples(tmp_path):
  passed = {'1': dict(value=0.5, low=0.1, high=0.9), '4': dict(value=0.75, low=0.3, high=0.95)}
  figures = dict(n=4, accuracy=0.5, low=0.1, high=0.9, pass_at=passed)
  _done(tmp_path, 'eval_kd', dict(kind='evaluate', title='KD', samples=8, temperature=0.7, splits=dict(test=figures)))
  text = report.write(tmp_path, RECIPE).read_text(encoding='utf-8')
  assert 'pass@k' in text and '75.0 <span class="soft">[30.0, 95.0]' in text


def test_groups_other_measures_and_intervals_of_differences_are_shown(tmp_path):
  for name, title, right in (('eval_kd', 'KD', 6), ('eval_answers', 'Answers only', 2)):
    groups = {f'{g} <steps>': dict(n=5, accuracy=right / 10, low=0.125, high=0.875) for g in range(8)}
    _done(tmp_path, name, dict(kind='evaluate', title=title, splits=dict(test=dict(n=10, accuracy=right / 10, low=0.2, high=0.8)),
                               groups=dict(test=groups), metrics=dict(test={'macro-F1': dict(value=0.4321, low=0.4, high=0.5), 'MRR': dict(value=0.25)})))
    rows = [dict(split='test', id=str(i), question='q', gold='1', texts=['1'], grades=[float(i < right)]) for i in range(10)]
    (tmp_path / name / 'predictions.jsonl').write_text('\n'.join(map(json.dumps, rows)), encoding='utf-8')
  path = report.write(tmp_path, {**RECIPE, 'compare': [('KD', 'Answers only', 'test')]})
  text = re.sub(r'<[^>]*>', '', path.read_text(encoding='utf-8'))
  read(path)
  (one,) = results.compare([tmp_path], {**RECIPE, 'compare': [('KD', 'Answers only', 'test')]})
  low, high = one.over_problems
  assert 0 < low < 0.4 < high
  for words in ('By group', '7 &lt;steps&gt;', '60.0 [12.5, 87.5] of 5', 'Other measures', '0.4321 [0.4, 0.5]', 'MRR0.25',
                f'+40.0 [+{100 * low:.1f}, +{100 * high:.1f}]'):
    assert words in text, words


def test_an_arm_without_accuracy_has_its_measures(tmp_path):
  _done(tmp_path, 'eval_kd', dict(kind='evaluate', title='KD', metrics=dict(test={'P@10': dict(value=0.5)})))
  text = report.write(tmp_path, RECIPE).read_text(encoding='utf-8')
  assert 'P@10' in text and '<svg' not in text and tables.accuracies(tmp_path, RECIPE) is None


def test_many_splits_stand_below_each_other():
  """Three of long names in a line, each line with the arms that it has an interval of: no label is written where nothing stands."""
  some, none = (0.5, 0.4, 0.6), None
  panels = {f'meta_with_a_long_name_{i}': [some, none] for i in range(3)} | {f'multi_with_a_long_name_{i}': [none, some] for i in range(2)}
  svg = page.intervals(['first', 'second'], panels, dict(first='#000000', second='#111111'))
  words = re.findall(r'<text[^>]*>([^<]*)</text>', svg)
  assert words.count('first') == words.count('second') == 1 and all(words.count(name) == 1 for name in panels)
  at = {word: float(re.search(rf'<text[^>]*(?:translate\([-\d.]+ |y="| y=")([-\d.]+)[^>]*>{word}</text>', svg)[1]) for word in ('first', 'second', *panels)}
  assert at['meta_with_a_long_name_0'] == at['meta_with_a_long_name_2'] < at['first'] < at['multi_with_a_long_name_0'] < at['second']
