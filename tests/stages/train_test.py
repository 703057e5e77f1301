"""Train: from texts or labels, resumed, validated, stopped early, left as a checkpoint."""
import gc
import importlib
import json

import numpy as np
import pytest

from distill_jax.core import tree
from distill_jax.data import shards
from distill_jax.stages import roles
from distill_jax.train.checkpoint import Checkpoints

stage = importlib.import_module('distill_jax.stages.train')

OPTIM = dict(lr=1e-2, warmup=2, decay='cosine', decay_steps=6, weight_decay=0.1)
HOW = dict(save=2, log=1)


@pytest.fixture
def settings(small):
  return dict(roles=dict(student=small.student), task=small.task, method=dict(method='sft'), batch=8, length=256, optim=OPTIM, how=HOW)


def params_of(directory):
  return tree.flatten(roles.load_role(dict(load=str(directory))).params)


def assert_same(a, b):
  assert a.keys() == b.keys()
  for path in a:
    np.testing.assert_array_equal(a[path], b[path], err_msg=path)


def test_more_steps_continue_the_same_run(small, call, settings):
  summary = call('train', 'straight', steps=6, **{**settings, 'how': dict(save=1, log=1, keep=1)})
  assert (summary['kind'], summary['steps'], summary['examples'], summary['dropped']) == ('train', 6, 6, 0)
  assert summary['best'] is None and summary['final']['loss'] > 0 and summary['parameters'] > 1000
  saved = Checkpoints(call.out('straight') / 'checkpoints')
  assert saved.latest() == 6 and [path.name for path in (call.out('straight') / 'checkpoints').iterdir() if path.name.isdigit()] == ['6'], 'old ones go'
  saved.close()
  assert call('train', 'halves', steps=3, **settings)['steps'] == 3
  assert call('train', 'halves', steps=6, **settings)['steps'] == 6
  assert_same(params_of(call.out('straight') / 'student'), params_of(call.out('halves') / 'student'))
  moved = params_of(call.out('straight') / 'student')
  assert max(np.abs(moved[path] - x).max() for path, x in tree.flatten(roles.load_role(small.student).params).items()) > 1e-3
  assert roles.load_role(dict(load=str(call.out('straight') / 'student'))).text.fingerprint == small.text.fingerprint

  steps = [json.loads(line)['step'] for line in (call.out('halves') / 'metrics.jsonl').read_text().splitlines()]
  assert steps == [1, 2, 3, 4, 5, 6]
  again = call('train', 'halves', steps=6, **settings)      # killed after its last checkpoint
  assert again['steps'] == 6
  assert_same(params_of(call.out('straight') / 'student'), params_of(call.out('halves') / 'student'))


KD = dict(method='logit_kd', k=3, alpha=0.7)


@pytest.fixture
def labelled(small, call):
  pair = dict(student=small.student, teacher=small.teacher)
  call('label', 'label', roles=pair, method=KD, task=small.task, length=256, how=dict(batch=8))
  return pair


def test_labels_from_shards_and_live_ones_teach_the_same(small, call, settings, labelled):
  """The same rows, the same labels up to float noise: early and late runs stay together."""
  both = {**settings, 'method': KD, 'steps': 2}
  early = call('train', 'early', ['label'], **{**both, 'roles': dict(student=small.student)})
  late = call('train', 'late', **{**both, 'roles': labelled})
  assert early['examples'] == late['examples'] == 6
  assert early['final']['divergence'] == pytest.approx(late['final']['divergence'], rel=1e-4)
  a, b = params_of(call.out('early') / 'student'), params_of(call.out('late') / 'student')
  assert max(np.abs(a[path] - b[path]).max() for path in a) < 2e-3


def test_labels_of_another_teacher_are_refused(small, call, settings, labelled):
  with pytest.raises(ValueError, match='not made from what is used now .*teacher'):
    call('train', 'train', ['label'], steps=2, **{**settings, 'method': KD, 'roles': dict(student=small.student, teacher=small.student)})


@pytest.mark.parametrize('changed', [dict(k=2), dict(temperature=2.0), dict(k=None)])
def test_labels_made_with_other_settings_are_refused(small, call, settings, labelled, changed):
  with pytest.raises(ValueError, match='not made from what is used now .*labels'):
    call('train', 'train', ['label'], steps=2, **{**settings, 'method': {**KD, **changed}, 'roles': labelled})


def test_labels_need_the_length_they_were_made_with(small, call, settings, labelled):
  with pytest.raises(ValueError, match=r'length=16, but the labelled examples go up to \d+ tokens'):
    call('train', 'train', ['label'], steps=2, **{**settings, 'method': KD, 'length': 16})


def test_texts_and_labels_do_not_mix(small, call, settings, labelled, texts):
  texts('grade', [(next(small.made.examples('train')), '#### 1', {})])
  with pytest.raises(ValueError, match='one label stage, or texts'):
    call('train', 'train', ['label', 'grade'], steps=2, **{**settings, 'method': KD})


@pytest.mark.parametrize('changed, message', [
    (dict(length=8), 'none of 6 examples fits length=8'),
    (dict(batch=12), 'batch=12 cannot be cut into 1 microbatches over 8 devices'),
    (dict(task=None), 'no texts in its inputs and no task'),
    (dict(validate=dict(metric='bleu')), "metric='bleu', one of accuracy, loss"),
    (dict(target='answer'), "target='answer'"),
])
def test_settings_that_are_refused(small, call, settings, changed, message):
  with pytest.raises(ValueError, match=message):
    call('train', 'train', steps=2, **{**settings, **changed})


def scripted(values):
  """A measure that gives these values in turn."""
  it = iter(values)
  return lambda *args, **keywords: lambda params: {'loss': next(it)}


def test_the_best_is_kept_and_patience_ends_the_run(call, settings, monkeypatch):
  monkeypatch.setattr(stage, '_held_out', scripted([3.0, 2.0, 2.5, 2.4, 1.0, 1.0]))
  watched = {**settings, 'validate': dict(metric='loss', every=1, patience=2)}
  summary = call('train', 'watched', steps=6, **watched)
  assert summary['stopped_early'] == 4 == summary['steps'] and summary['best'] == dict(step=2, metric='loss', value=2.0)
  call('train', 'two', steps=2, **settings)
  assert_same(params_of(call.out('watched') / 'student'), params_of(call.out('two') / 'student'))

  # killed after its last checkpoint: it had stopped, and the same command trains no further
  monkeypatch.setattr(stage, '_held_out', scripted([]))
  again = call('train', 'watched', steps=6, **watched)
  assert again['stopped_early'] == 4 and again['best'] == summary['best']
  assert_same(params_of(call.out('watched') / 'student'), params_of(call.out('two') / 'student'))

  # more steps are asked for: it goes on, with new patience
  monkeypatch.setattr(stage, '_held_out', scripted([2.2, 1.5, 1.7]))
  more = call('train', 'watched', steps=7, **watched)
  assert more['steps'] == 7 and more['best'] == dict(step=6, metric='loss', value=1.5) and more['stopped_early'] is None


def test_validation_by_loss_and_by_accuracy(small, call, settings):
  for metric, more in dict(loss={}, accuracy=dict(max_new_tokens=4)).items():
    summary = call('train', metric, steps=2, **{**settings, 'validate': dict(metric=metric, every=2, count=3, batch=8, **more)})
    assert summary['best']['step'] == 2 and summary['best']['metric'] == metric
    numbers = [json.loads(line) for line in (call.out(metric) / 'metrics.jsonl').read_text().splitlines()]
    assert [row for row in numbers if f'validate/{metric}' in row][0]['step'] == 2
  assert summary['best']['value'] == 0.0


def test_a_fresh_student_with_its_own_tokenizer(call, settings):
  fresh = dict(model=dict(width=8, layers=1, heads=2, mlp_width=8, max_length=256), tokenizer=dict(bpe=300))
  summary = call('train', 'fresh', steps=1, **{**settings, 'roles': dict(student=fresh), 'target': 'prompt', 'pack': False})
  role = roles.load_role(dict(load=str(call.out('fresh') / 'student')))
  assert summary['examples'] == 6 and role.text.vocab_size == role.model.config['vocab_size'] <= 300


def test_no_steps_make_a_tokenizer_and_leave_the_model_as_it_begins(call, settings):
  fresh = dict(model=dict(width=8, layers=1, heads=2, mlp_width=8, max_length=256), tokenizer=dict(bpe=300))
  summary = call('train', 'words', steps=0, **{**settings, 'roles': dict(student=fresh)})
  role = roles.load_role(dict(load=str(call.out('words') / 'student')))
  begun = roles.load_role({**fresh, 'tokenizer': str(call.out('words') / 'student')}, seed=0)
  assert summary['steps'] == 0 and role.text.vocab_size > 256
  assert_same(tree.flatten(role.params), tree.flatten(begun.params))


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')      # orbax leaves its other reads unfinished
def test_a_checkpoint_of_another_model_is_one_clear_error(call, settings):
  fresh = dict(model=dict(width=8, layers=1, heads=2, mlp_width=8, max_length=256), tokenizer=dict(bpe=300))
  call('train', 'train', steps=1, **{**settings, 'roles': dict(student=fresh)})
  wider = {**fresh, 'model': {**fresh['model'], 'width': 16}}
  with pytest.raises(ValueError, match='is of another model'):
    call('train', 'train', steps=2, **{**settings, 'roles': dict(student=wider)})
  gc.collect()


def test_labelled_examples_are_read_when_asked_for(call, labelled):
  examples = stage.Labelled(shards.open_shards(call.out('label')))
  assert len(examples) == 6 and examples.lengths == [len(examples[i]['tokens']) for i in range(6)]
  assert set(examples[0]) == {'id', 'tokens', 'targets', 'weights', 'label/top_ids', 'label/top_logps'}
