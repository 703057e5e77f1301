"""Choosing: rank, vote and F1 by hand; episodes to answers on disk with a small model; bad options."""
import importlib
import json

import jax
import numpy as np
import pytest

from distill_jax.data import shards
from distill_jax.decode import score
from distill_jax.stages import records
from distill_jax.stages.roles import load_role

choose_lib = importlib.import_module('distill_jax.stages.choose')


def test_rank_by_hand():
  logits = [2, 5, 5, 1]
  assert choose_lib.rank(logits, 2) == 1 and choose_lib.rank(logits, 0) == 3 and choose_lib.rank(logits, 3) == 4


def test_majority_vote():
  A, B, C = [2.0, 1.0, 0.0], [1.0, 2.0, 0.0], [0.0, 1.0, 2.0]
  assert choose_lib.vote(np.asarray([A, B, B, A, B])) == 1
  assert choose_lib.vote(np.asarray([A, A, B, B, [1.0, 1.5, 0.0]])) == 1
  # as many votes: the higher mean probability
  assert choose_lib.vote(np.asarray([A, [0.0, 9.0, 0.0]])) == 1 and choose_lib.vote(np.asarray([[9.0, 0.0, 0.0], B])) == 0


def test_draws_of_a_query_come_together_and_many_options_are_ranked():
  options = [f'o{i}' for i in range(12)]
  line = lambda draw, scores: dict(id='q', task='t', draw=draw, question='?', gold='o2', options=options, scores=scores)
  rows = [line(1, [0.0] * 11 + [1.0]), line(0, [0.0, 0.0, 2.0] + [1.0] * 9)]
  (each,), (voted,) = choose_lib._together(rows, 'each'), choose_lib._together(rows, 'vote')
  assert each['texts'] == ['o2', 'o11'] and each['grades'] == [1.0, 0.0] and voted['texts'] == ['o2']
  assert each['values'] == {'P@1': 0.5, 'P@10': 1.0, 'MRR': 0.75}
  assert choose_lib._together([{**rows[0], 'options': options[:3], 'scores': [0.0, 1.0, 2.0]}], 'each')[0]['values'] == {}


def test_macro_f1_by_hand():
  assert choose_lib.f1('001', '011') == pytest.approx(2 / 3, abs=1e-4)
  assert choose_lib.f1('001', '000') == pytest.approx(0.4)      # a class that is never predicted: recall 0 decides
  assert choose_lib.f1('0011', '0011') == 1
  assert choose_lib.f1('01', '10') == 0


def write(call, name, rows):
  """An episodes stage's directory with these records."""
  out = call.out(name)
  out.mkdir()
  shards.write_part(out, 0, 1, records.columns(rows))
  shards.finish(out, count=1, fingerprints={}, kind='texts')


def test_episodes_are_answered_by_the_mean_loss_of_their_options(small, call):
  task = dict(task='families', family='maps', tested=True, counts=SMALL)
  made = call('episodes', 'test', task=task, split='test', pool='shots', k=2, draws=2)
  assert (made['rows'], made['queries'], made['tasks']) == (8, 4, 2)
  again = call('episodes', 'again', task=task, split='test', pool='shots', k=2, draws=2)
  assert records.read(call.out('test')) == records.read(call.out('again')) and again['rows'] == 8
  rows = records.read(call.out('test'))
  assert all(row['prompt'].count('\n\n\n') == 2 and row['completion'] == '\n' + row['example']['output'] for row in rows)
  each = call('choose', 'each', ['test'], roles=dict(student=small.student))
  role = load_role(small.student)
  want, length = [], 96
  scored = jax.jit(lambda row: score.score(role.model, role.params, row))
  for row in rows:
    scores = []
    for option in row['example']['options']:
      asked, ids = role.text.encode(row['prompt']), role.text.encode('\n' + option)
      line, real = np.zeros((1, length + 1), np.int32), (np.arange(length) < len(asked) + len(ids) - 1)[None].astype(np.int32)
      line[0, :len(asked) + len(ids)] = asked + ids
      logps = scored(dict(tokens=line[:, :-1], targets=line[:, 1:], segments=real, positions=real * np.arange(length)))
      scores.append(float(np.asarray(logps)[0, len(asked) - 1:len(asked) + len(ids) - 1].mean()))
    want.append((row['id'], row['example']['options'][int(np.argmax(scores))]))
  told = [json.loads(line) for line in (call.out('each') / 'predictions.jsonl').read_text().splitlines()]
  assert sorted((row['id'], text) for row in told for text in row['texts']) == sorted(want)
  figures = each['splits']['test']
  assert figures['n'] == 4 and figures['tasks'] == 2 and figures['accuracy'] == pytest.approx(np.mean([g for row in told for g in row['grades']]))
  assert set(each['metrics']['test']) == {'macro_f1'}
  voted = call('choose', 'voted', ['test'], roles=dict(student=small.student), decide='vote')
  assert all(len(json.loads(line)['grades']) == 1 for line in (call.out('voted') / 'predictions.jsonl').read_text().splitlines())
  assert voted['decide'] == 'vote'


SMALL = dict(features=8, labels=8, carriers=4, classes=2, tasks=3, tested=2, examples=4, queries=2, shots=4, subjects=9, objects=3, relations=2, held=1, turns=1, lists=8)


def test_a_teacher_may_see_another_context(call):
  task = dict(task='families', family='maps', counts=SMALL)
  call('episodes', 'tune', task=task, k=0, teacher=dict(k=2))
  call('episodes', 'full', task=task, k=2)
  for row, other in zip(records.read(call.out('tune')), records.read(call.out('full'))):
    assert row['prompt'] == row['example']['input'] and row['example']['teacher_prompt'] == other['prompt'] and row['id'] == other['id']
  call('episodes', 'wrong', task=task, k=2, teacher=dict(labels='shuffled'))
  pairs = [(row['prompt'], row['example']['teacher_prompt']) for row in records.read(call.out('wrong'))]
  assert any(a != b for a, b in pairs) and all(sorted(a.split()) == sorted(b.split()) for a, b in pairs)


def test_single_examples_and_whole_prompts_are_cut_by_tokens(small, call):
  call('episodes', 'test', task=small.task, split='train', form='plain')
  assert all(row['prompt'] == '' and row['completion'] for row in records.read(call.out('test')))
  task = dict(task='families', family='maps', counts=SMALL)
  role, text = dict(student=small.student), load_role(small.student).text
  call('episodes', 'whole', task=task, k=3)
  count = lambda row: len(text.encode(row['prompt'])) + len(text.encode(row['completion']))
  sizes = [count(row) for row in records.read(call.out('whole'))]
  cut = call('episodes', 'cut', task=task, k=3, roles=role, length=max(sizes) - 1)
  rows = records.read(call.out('cut'))
  assert cut['left_out'] == sum(size == max(sizes) for size in sizes) and max(map(count, rows)) < max(sizes)
  call('episodes', 'left', task=task, k=3, roles=role, length=max(sizes) - 1, cut='tokens')
  whole = {row['id']: row['prompt'] for row in records.read(call.out('whole'))}
  for row in records.read(call.out('left')):
    assert whole[row['id']].endswith(row['prompt']) and count(row) <= max(sizes) - 1
  call('episodes', 'capped', task=task, k=1, roles=role, cap=8)
  for row in records.read(call.out('capped')):
    shown = row['prompt'].split('\n')[0]
    assert len(text.encode(shown)) <= 6
  with pytest.raises(ValueError, match='need roles= with one role, whose tokenizer counts'):
    call('episodes', 'bad', task=task, k=1, length=32)
  with pytest.raises(ValueError, match='no mask token'):
    call('episodes', 'bad2', task=task, k=1, roles=role, masked=True)
  with pytest.raises(ValueError, match='labels are one of given, shuffled'):
    call('episodes', 'bad3', task=task, k=1, labels='none')


@pytest.mark.parametrize('options, output, says', [
    (['a', 'b'], 'c', "right answer 'c' is not among its 2 options"), (['a', ''], 'a', "option '' of t has no tokens"),
    (['a', 'a'], 'a', 'are the same tokens')])
def test_bad_options(small, call, options, output, says):
  e = dict(id='1', task='t', input='x', output=output, options=options)
  write(call, 'test', [records.record(e, 'x', '\n' + output)])
  with pytest.raises(ValueError, match=says):
    call('choose', 'out', ['test'], roles=dict(student=small.student))


def test_options_with_one_first_token_are_told_apart_by_the_others(small, call):
  e = dict(id='1', task='t', input='x', output='aab', options=['aab', 'aac', 'a'])
  write(call, 'test', [records.record(e, 'x', '\naab')])
  call('choose', 'out', ['test'], roles=dict(student=small.student))
  (row,) = [json.loads(text) for text in shards.open_shards(call.out('out') / 'test').column('prediction')]
  assert len(set(row['scores'])) == 3
