"""Records: what stages hand on, and the examples made of them."""
import numpy as np
import pytest

from distill_jax.stages import records


def test_records_come_back_from_their_shards(small, texts, tmp_path):
  example = next(small.made.examples('train'))
  texts('generate', [(example, 'one\n#### 1', {}), (example, '', dict(finished=False, logp=-2.5, given=1))])
  first, second = records.read(tmp_path / 'generate')
  assert first['example'] == example and first['prompt'] == small.made.prompt(example) and first['completion'] == 'one\n#### 1'
  assert (first['sample'], first['finished'], first['given']) == (0, True, -1)
  assert (second['sample'], second['finished'], second['given'], second['logp']) == (1, False, 1, -2.5)


def test_other_shards_are_no_texts(small, call):
  call('label', 'label', roles=dict(student=small.student, teacher=small.teacher), method=dict(method='logit_kd', k=2), task=small.task,
       count=2, length=512, how=dict(batch=8))
  with pytest.raises(ValueError, match='holds labels, not texts'):
    records.read(call.out('label'))


def test_people_and_what_is_learnt(small):
  row = records.people(small.made, 'train', 2)[0]
  assert len(records.people(small.made, 'train', 2)) == 2
  prompt, answer = row['prompt'], row['completion']
  final = records.make_task({**small.task, 'answers': 'final'})
  assert records.pair(row, target='written', task=None) == (prompt, answer)
  assert records.pair(row, target='prompt', task=None) == ('', prompt)
  assert final.answer(row['example']).startswith('#### ')
  assert records.pair(row, target='gold', task=final) == (prompt, final.answer(row['example']))


def test_examples_follow_their_text(small):
  rows = records.people(small.made, 'train', 2)
  a, b = records.render(small.text, rows)
  assert small.text.decode(a['tokens'].tolist() + a['targets'][-1:].tolist()) == rows[0]['prompt'] + rows[0]['completion']
  assert a['targets'][-1] == small.text.eos_id and a['weights'][-1] == 1
  again = records.render(small.text, [rows[0], {**rows[0], 'sample': 1}, {**rows[0], 'completion': 'other'}])
  assert tuple(again[0]['id']) == tuple(a['id'])
  assert len({tuple(e['id']) for e in again} | {tuple(b['id'])}) == 4


def test_targets_that_cannot_be_rendered(small):
  with pytest.raises(ValueError, match="target='answer': one of written, gold, prompt"):
    records.render(small.text, [], target='answer')
  with pytest.raises(ValueError, match="target='gold' needs task="):
    records.render(small.text, [], target='gold')
  with pytest.raises(ValueError, match="no task 'squad'; there is"):
    records.make_task(dict(task='squad'))


def test_bootstrap_covers_the_mean_and_is_repeatable():
  values = np.asarray([1.0] * 30 + [0.0] * 70)
  low, high = records.bootstrap(values)
  assert (low, high) == records.bootstrap(values)
  assert low < 0.3 < high and high - low == pytest.approx(2 * 1.96 * np.sqrt(0.3 * 0.7 / 100), rel=0.1)
  assert records.bootstrap(np.ones(5)) == (1.0, 1.0)
