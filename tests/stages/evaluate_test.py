"""Evaluate: unbiased pass@k, intervals, predictions on file, parts."""
import importlib
import json

import numpy as np
import pytest

stage = importlib.import_module('distill_jax.stages.evaluate')


def test_scores_are_means_over_problems():
  rows = [dict(grades=[1.0, 0.0, 1.0, 0.0]), dict(grades=[0.0] * 4), dict(grades=[1.0] * 4)]
  scores = stage.scores(rows, 4, (1, 2))
  assert scores['n'] == 3 and scores['accuracy'] == pytest.approx(0.5)
  assert scores['pass_at']['1']['value'] == pytest.approx(0.5)
  assert scores['pass_at']['2']['value'] == pytest.approx((5 / 6 + 0 + 1) / 3)
  assert 0 <= scores['low'] <= 0.5 <= scores['high'] <= 1
  assert scores['pass_at']['2']['low'] <= scores['pass_at']['2']['value'] <= scores['pass_at']['2']['high']


def test_predictions_parts_and_restart(small, call):
  settings = dict(roles=dict(student=small.student), task=small.task, splits=('test', 'dev'), max_new_tokens=8, samples=3, ks=(1, 3),
                  temperature=1.0, part=2, how=dict(batch=16), title='the student')
  summary = call('evaluate', 'evaluate', **settings)
  assert set(summary['splits']) == {'test', 'dev'} and summary['title'] == 'the student' and summary['role'] == 'student'
  assert summary['splits']['test']['n'] == 3 and set(summary['splits']['test']['pass_at']) == {'1', '3'}
  rows = [json.loads(line) for line in (call.out('evaluate') / 'predictions.jsonl').read_text().splitlines()]
  asked = [(split, e) for split in ('test', 'dev') for e in small.made.examples(split)]
  assert [(r['split'], r['id'], r['gold']) for r in rows] == [(split, e['id'], small.made.answer(e)) for split, e in asked]
  for row, (_, example) in zip(rows, asked):
    assert row['grades'] == [small.made.grade(example, text) for text in row['texts']] and len(row['texts']) == 3
  assert summary['splits']['dev']['accuracy'] == pytest.approx(np.mean([r['grades'] for r in rows if r['split'] == 'dev']))
  assert summary['examples'][0]['question'] == asked[0][1]['question']

  part = sorted((call.out('evaluate') / 'test').glob('part-*.arrow'))[1]
  before = part.read_bytes()
  part.unlink()
  (call.out('evaluate') / 'predictions.jsonl').unlink()
  call('evaluate', 'evaluate', **settings)
  assert part.read_bytes() == before
  assert [json.loads(line) for line in (call.out('evaluate') / 'predictions.jsonl').read_text().splitlines()] == rows


@pytest.mark.parametrize('changed, message', [
    (dict(roles={}), r'one role, got \[\]'),
    (dict(ks=(1, 5)), r'pass@5 needs samples >= 5, got 1'),
    (dict(samples=4), '4 greedy samples are all the same text; set temperature'),
    (dict(count=0), "no examples in split 'test'"),
])
def test_settings_that_do_not_go_together(small, call, changed, message):
  with pytest.raises(ValueError, match=message):
    call('evaluate', 'evaluate', **{**dict(roles=dict(student=small.student), task=small.task), **changed})


def test_accuracy_by_group():
  rows = [dict(group=g, grades=[x]) for g, x in (('10', 1.0), ('2', 0.0), ('2', 1.0), ('b', 0.0), ('2', 1.0))]
  table = stage.by_group(rows)
  assert list(table) == ['2', '10', 'b'] and [t['n'] for t in table.values()] == [3, 1, 1]
  assert table['2']['accuracy'] == pytest.approx(2 / 3) and table['2']['low'] < 2 / 3 < table['2']['high'] and table['b']['high'] == 0.0


def test_measures_stand_beside_the_accuracy(small, call, monkeypatch):
  made = small.made._replace(measures=lambda example, text: dict(length=len(text), **({'odd': 1.0} if int(example['id'], 16) % 2 else {})))
  monkeypatch.setattr(stage.records, 'make_task', lambda definition: made)
  summary = call('evaluate', 'evaluate', roles=dict(student=small.student), task=small.task, splits=('train',), max_new_tokens=8, samples=2,
                 temperature=1.0, how=dict(batch=16))
  rows = [json.loads(line) for line in (call.out('evaluate') / 'predictions.jsonl').read_text().splitlines()]
  assert all(row['values']['length'] == pytest.approx(np.mean([len(text) for text in row['texts']])) for row in rows)
  odd = [row for row in rows if 'odd' in row['values']]
  assert 0 < len(odd) < len(rows) and summary['metrics']['train']['odd'] == dict(n=len(odd), value=1.0, low=1.0, high=1.0)
  figures = summary['metrics']['train']['length']
  assert figures['value'] == pytest.approx(np.mean([row['values']['length'] for row in rows]))
  assert figures['n'] == len(rows) and figures['low'] <= figures['value'] <= figures['high']
