"""Label: what a frozen teacher says of each example, in parts, or a refusal."""
import jax
import numpy as np
import pytest

from distill_jax import methods
from distill_jax.core.types import Method
from distill_jax.data import shards
from distill_jax.stages import roles

KD = dict(method='logit_kd', k=3)


@pytest.fixture
def settings(small):
  return dict(roles=dict(student=small.student, teacher=small.teacher), task=small.task, length=512, how=dict(batch=8))


def test_labels_of_each_example(small, call, settings):
  summary = call('label', 'label', method=KD, part=4, count=6, **settings)
  opened = shards.open_shards(call.out('label'))
  assert (summary['kind'], summary['rows'], summary['k'], summary['dropped'], summary['cut']) == ('label', 6, 3, 0, 0)
  assert 0.05 < summary['kept_mass'] < 1
  teacher = roles.load_role(small.teacher)
  assert opened.manifest['fingerprints']['teacher'] == teacher.fingerprint and 'student' not in opened.manifest['fingerprints']

  @jax.jit
  def says(params, tokens):
    out = teacher.model.apply(params, {'tokens': tokens})
    return jax.nn.log_softmax(out['head'].logits(out['hidden']))
  tokens = 0
  for row in opened:
    n = len(row['tokens'])
    tokens += n
    assert len(row['targets']) == len(row['weights']) == n
    ids, logps = np.asarray(row['label/top_ids']), np.asarray(row['label/top_logps'])
    assert ids.shape == logps.shape == (n, 3)
    padded = np.zeros((1, 512), np.int32)
    padded[0, :n] = row['tokens']
    logits = np.asarray(says(teacher.params, padded))[0, :n]
    np.testing.assert_allclose(logps, np.sort(logits, -1)[:, :-4:-1], atol=1e-4)
    np.testing.assert_allclose(np.take_along_axis(logits, ids, -1), logps, atol=1e-4)
  assert tokens == summary['tokens']

  before = {path.name: path.read_bytes() for path in call.out('label').glob('part-*.arrow')}
  assert len(before) == 2
  (call.out('label') / min(before)).unlink()
  call('label', 'label', method=KD, part=4, count=6, **settings)
  assert {path.name: path.read_bytes() for path in call.out('label').glob('part-*.arrow')} == before


def test_compact_labels(call, settings):
  call('label', 'label', method=KD, count=2, dtype='float16', **settings)
  row = shards.open_shards(call.out('label'))[0]
  assert np.asarray(row['label/top_logps']).dtype == np.float16 and np.asarray(row['label/top_ids']).dtype == np.int32


def test_examples_that_are_too_long_are_counted(call, settings):
  lengths = [len(tokens) for tokens in _tokens(call, settings)]
  half = sorted(lengths)[len(lengths) // 2]
  for overlong, name in (('drop', 'dropped'), ('cut', 'cut')):
    summary = call('label', overlong, method=KD, count=6, overlong=overlong, **{**settings, 'length': half})
    assert summary[name] == sum(n > half for n in lengths) > 0
    assert max(len(tokens) for tokens in shards.open_shards(call.out(overlong)).column('tokens')) <= half


def _tokens(call, settings):
  call('label', 'first', method=KD, count=6, **settings)
  return shards.open_shards(call.out('first')).column('tokens')


def test_methods_without_early_labels_are_refused(call, settings, monkeypatch):
  with pytest.raises(ValueError, match="label: method 'sft' has no labels; leave this stage out"):
    call('label', 'label', method=dict(method='sft'), **settings)
  late = lambda roles, *, task=None, text=None: Method(None, label=lambda *_: {}, early=False)
  monkeypatch.setitem(methods.METHODS, 'contrast', late)
  with pytest.raises(ValueError, match="'contrast' labels from memory or a trained role"):
    call('label', 'label', method=dict(method='contrast'), **settings)


def test_an_unknown_method_lists_those_there_are(call, settings):
  with pytest.raises(ValueError, match="method: no 'dpo'; there is sft, logit_kd"):
    call('label', 'label', method=dict(method='dpo'), **settings)


def test_a_teacher_with_other_ids_is_refused_with_the_first_that_differ(small, call, settings):
  with pytest.raises(ValueError, match=r'teacher and student have different token ids: id \d+ is .* use sft'):
    call('label', 'label', method=KD, **{**settings, 'roles': dict(student=small.student, teacher=small.other)})


def test_a_batch_that_does_not_lie_over_the_devices(call, settings):
  with pytest.raises(ValueError, match='batch=12 cannot be cut'):
    call('label', 'label', method=KD, **{**settings, 'how': dict(batch=12)})
