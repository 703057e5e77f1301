"""Train with a live teacher: rows that the student writes itself, and a teacher of another tokenizer."""
import json

import pytest

OPTIM = dict(lr=1e-2, warmup=1, decay='cosine')


@pytest.fixture
def settings(small):
  return dict(task=small.task, batch=8, length=192, optim=OPTIM, steps=2, pack=False, roles=dict(student=small.student, teacher=small.teacher))


def test_rollouts_are_counted_in_the_metrics(call, settings):
  done = call('train', 'train', **settings, method=dict(method='gkd', on_policy=0.5, max_new_tokens=4))
  lines = [json.loads(line) for line in (call.out('train') / 'metrics.jsonl').read_text().splitlines()]
  assert [line['step'] for line in lines] == [1, 2] and done['steps'] == 2
  for line in lines:
    assert 0 < line['on_policy'] < 1 and 0 <= line['finished'] <= 1 and 1 <= line['written_tokens'] <= 4
  with pytest.raises(ValueError, match='rollouts continue one prompt a row.*set pack=False'):
    call('train', 'packed', **{**settings, 'pack': True, 'length': 512}, method=dict(method='gkd', max_new_tokens=4))


def test_a_teacher_of_another_tokenizer(small, call, settings):
  """Token by token it is refused; over spans of text it teaches, with labels of a label stage. (Early is late: the laws.)"""
  roles = dict(student=small.student, teacher=small.other)
  with pytest.raises(ValueError, match='teacher and student have different token ids.*or uld'):
    call('train', 'gkd', **{**settings, 'roles': roles}, method=dict(method='gkd', on_policy=0.0))
  method = dict(method='uld', teacher_length=320)
  call('label', 'label', roles=roles, method=method, task=small.task, length=192, how=dict(batch=8))
  done = call('train', 'train', ['label'], **{**settings, 'roles': roles}, method=method)
  assert done['steps'] == 2 and 0.05 < done['final']['divergence'] < 2
  with pytest.raises(ValueError, match='teacher_length=20: raise it'):
    call('train', 'short', **{**settings, 'roles': roles}, method=dict(method='uld', teacher_length=20))
  with pytest.raises(ValueError, match="'teacher_tokens' belongs to a whole row: it cannot be packed"):
    call('train', 'packed', **{**settings, 'roles': roles, 'pack': True, 'length': 512}, method=method)
