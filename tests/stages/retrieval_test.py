"""Search, rank, index, infer: what is found for whom, in which order, how it stands in a prompt, and what is refused; a small pipeline to its end."""
import importlib
import json
import types

import jax
import numpy as np
import pytest

from distill_jax.core import tree
from distill_jax.data import text as text_lib
from distill_jax.decode import score
from distill_jax.models import MODELS, weights
from distill_jax.stages import pools, records, roles as roles_lib

infer_lib, rank_lib = (importlib.import_module(f'distill_jax.stages.{name}') for name in ('infer', 'rank'))      # the package names their functions so

TASK = dict(task='commands', counts=dict(train=24, dev=4, test=6))
READER = dict(vocab_size=320, width=16, layers=2, heads=2, mlp_width=32, max_length=96)
ENCODER = dict(model='encoder', width=16, layers=1, heads=2, mlp_width=32, max_length=32)


@pytest.fixture(scope='module')
def toy(tmp_path_factory):
  """task, its pool, and definitions of roles: reader, encoder."""
  home, made = tmp_path_factory.mktemp('reader'), records.make_task(TASK)
  text = text_lib.train_bpe([pools.demonstration(e) for e in made.examples('train')], size=320)
  model = MODELS['transformer'](**READER)
  params = jax.tree.map(lambda x: x * 3 if x.ndim > 1 else x, model.init(jax.random.key(0)))
  weights.write(home, 'transformer', READER, jax.device_get(params))
  text.save(home)
  return types.SimpleNamespace(made=made, pool=list(made.examples('train')), reader=dict(load=str(home)), text=text, encoder=dict(model=ENCODER, tokenizer=str(home)))


def found(call, name, toy):
  return pools.read({name: call.out(name)}, toy.pool, stage='test')


def test_the_query_is_not_among_what_is_found_for_it(toy, call):
  for by in ('bm25', 'random'):
    call('search', by, task=TASK, by=by, split='train', field='target', count=23)
    for name, places in zip(found(call, by, toy).ids, found(call, by, toy).places):
      assert len(places) == len(set(places)) == 23 and name not in {toy.pool[p]['id'] for p in places}
  first = found(call, 'random', toy)
  call('search', 'again', task=TASK, by='random', split='train', count=23)
  call('search', 'other', seed=1, task=TASK, by='random', split='train', count=23)
  same = lambda a, b: all((x == y).all() for x, y in zip(a.places, b.places))
  assert same(first, found(call, 'again', toy)) and not same(first, found(call, 'other', toy))


def test_a_pool_smaller_than_the_candidates(toy, call):
  with pytest.raises(ValueError, match='count=24, but the pool has 24 examples, of which up to 1 are the query itself: ask for at most 23'):
    call('search', 'search', task=TASK, by='bm25', split='train', count=24)
  with pytest.raises(ValueError, match='count=25, but the pool has 24 examples: ask for at most 24'):
    call('search', 'search', task=TASK, by='bm25', split='test', count=25)
  with pytest.raises(ValueError, match='ask for at most 10'):
    call('search', 'search', task=TASK, by='bm25', split='test', count=20, pool_count=10)


def test_copies_of_the_query_are_left_out_by_their_text():
  query, pool = dict(id='a', question='x', target='y'), [dict(id='b', question='x', target='y'), dict(id='c', question='x', target='z'), dict(id='a', question='q', target='y')]
  assert [pools.others(query, pool)(place) for place in range(3)] == [False, True, False]


def test_labels_of_the_worked_example():
  """Mean NLL a .2, b .9, c .1, d .5: c is the positive, b the negative."""
  given = pools.Found(['q'], [np.arange(4)], [np.zeros(4)], '')
  ranked = rank_lib.ordered(given, [[-.2, -.9, -.1, -.5]])
  assert ['abcd'[p] for p in ranked.places[0]] == ['c', 'a', 'd', 'b']
  np.testing.assert_allclose(ranked.scores[0], [-.1, -.2, -.5, -.9])


def test_overlap_of_targets():
  assert rank_lib.overlap('create meeting thursday', 'create the meeting') == pytest.approx(0.8)
  assert rank_lib.overlap('the', 'of') == 0.0 and rank_lib.overlap('lamp lamp vase', 'vase') == pytest.approx(0.5)


@pytest.mark.slow
def test_the_score_is_the_mean_of_the_target_alone(toy, call):
  """Each candidate by itself, through score.py: "x'\\ty'\\nx\\ty", over the tokens of y."""
  call('search', 'candidates', task=TASK, by='bm25', split='test', field='target', count=7)
  summary = call('rank', 'rank', ('candidates',), task=TASK, by='likelihood', split='test', roles=dict(reader=toy.reader), how=dict(batch=32))
  assert summary['pairs'] == 42
  reader, ranked = roles_lib.load_role(toy.reader), found(call, 'rank', toy)
  for query, places, scores in zip(toy.made.examples('test'), ranked.places, ranked.scores):
    assert (np.diff(scores) <= 0).all() and len(set(places)) == 7
    for place, value in list(zip(places, scores))[::3]:
      asked, answer = toy.text.encode(f'{pools.demonstration(toy.pool[place])}\n') + toy.text.encode(f'{query["question"]}\t'), toy.text.encode(query['target'])
      whole = np.asarray(asked + answer)
      logps = np.asarray(score.score(reader.model, reader.params, dict(tokens=whole[None, :-1], targets=whole[None, 1:])))[0]
      assert value == pytest.approx(logps[len(asked) - 1:].mean(), abs=2e-3)


def test_other_orders(toy, call):
  call('search', 'candidates', task=TASK, by='bm25', split='train', field='target', count=12)
  for by in ('as_found', 'overlap', 'shuffled'):
    call('rank', by, ('candidates',), task=TASK, by=by)
  before = found(call, 'candidates', toy)
  assert all((a == b).all() for a, b in zip(before.places, found(call, 'as_found', toy).places))
  shuffled = found(call, 'shuffled', toy).places
  assert all(set(a) == set(b) for a, b in zip(before.places, shuffled)) and any((a != b).any() for a, b in zip(before.places, shuffled))
  for query, places, scores in zip(toy.pool, found(call, 'overlap', toy).places, found(call, 'overlap', toy).scores):
    assert scores.tolist() == pytest.approx(sorted((rank_lib.overlap(toy.pool[p]['target'], query['target']) for p in places), reverse=True))
  with pytest.raises(ValueError, match='searched another pool'):
    call('rank', 'elsewhere', ('candidates',), task={**TASK, 'seed': 5}, by='as_found')


def test_order_in_the_prompt():
  assert pools.prompt(['e1', 'e2', 'e3'], 'x\t') == 'e3\ne2\ne1\nx\t'


def test_prompts_hold_what_fits(toy, call, monkeypatch):
  """As many as fit with the reserved answer counted, by either rule; one; and a demonstration that alone is too long."""
  asked = {}
  monkeypatch.setattr(infer_lib, 'evaluate', lambda out, inputs, *, task, **more: (asked.update({s: [task.prompt(e) for e in task.examples(s)] for s in ('one', 'many')}), {})[1])
  call('search', 'near', task=TASK, by='bm25', count=10)
  near, queries = found(call, 'near', toy), list(toy.made.examples('test'))
  for rule in ('at_most', 'below'):
    summary = call('infer', 'infer', ('near',), task=TASK, roles=dict(reader=toy.reader), context=80, max_new_tokens=20, rule=rule)
    counts = []
    for query, places, one, many in zip(queries, near.places, asked['one'], asked['many']):
      assert one == f'{pools.demonstration(toy.pool[places[0]])}\n{query["question"]}\t'
      shown = many.split('\n')
      counts.append(len(shown) - 1)
      assert shown == [*(pools.demonstration(toy.pool[p]) for p in places[:counts[-1]][::-1]), f'{query["question"]}\t']
      size = lambda text: len(toy.text.encode(text))
      used = size(many) + 20
      more = used + size(f'{pools.demonstration(toy.pool[places[counts[-1]]])}\n')
      assert (used <= 80 < more) if rule == 'at_most' else (used < 80 <= more)
    assert summary['demonstrations'] == dict(one=1.0, many=pytest.approx(np.mean(counts))) and 'on the mean: one 1.0, many' in summary['notes'][0]
  with pytest.raises(ValueError, match='its best demonstration alone needs .* Raise context='):
    call('infer', 'full', ('near',), task=TASK, roles=dict(reader=toy.reader), context=30, max_new_tokens=20)


@pytest.mark.slow
def test_a_small_pipeline_to_its_end(toy, call):
  """Candidates, ranks, two encoders trained along a row of 16 on 8 devices, index, search, answers. An index of another encoder is refused."""
  roles = dict(reader=toy.reader)
  call('search', 'candidates', task=TASK, by='bm25', split='train', field='target', count=10)
  call('rank', 'rank', ('candidates',), task=TASK, by='likelihood', roles=roles)
  learn = dict(task=TASK, method=dict(method='retrieve', chunk=8), optim={role: dict(lr=1e-2) for role in ('student', 'prompt')}, batch=1, length=12, source_length=24, how=dict(log=1))
  trained = call('train', 'learn', ('rank',), roles=dict(student=toy.encoder, prompt=toy.encoder), steps=3, group=16, **learn)
  assert trained['steps'] == 3 and trained['examples'] == 24 and 0 < trained['final']['contrast'] < 20
  made = {role: dict(load=str(call.out('learn') / role)) for role in ('student', 'prompt')}
  assert call('index', 'index', task=TASK, roles=dict(prompt=made['prompt']))['rows'] == 24
  call('search', 'dense', ('index',), task=TASK, by='dense', roles=made, count=5)
  call('search', 'hidden', task=TASK, by='hidden', roles=roles, count=5)
  summary = call('infer', 'infer', ('dense',), task=TASK, roles=roles, context=80, max_new_tokens=8, title='EPR')
  assert summary['kind'] == 'evaluate' and summary['title'] == 'EPR' and [summary['splits'][s]['n'] for s in ('one', 'many')] == [6, 6]
  rows = [json.loads(line) for line in (call.out('infer') / 'predictions.jsonl').read_text().splitlines()]
  assert [row['split'] for row in rows] == ['one'] * 6 + ['many'] * 6 and all('\n' not in row['texts'][0] for row in rows)
  with pytest.raises(ValueError, match='built from another encoder'):
    call('search', 'wrong', ('index',), task=TASK, by='dense', roles=dict(student=made['student'], prompt=made['student']), count=5)
  for wrong, message in [(dict(group=None), 'say how many, group='), (dict(group=12), 'cannot be cut over 8 devices'), (dict(group=32), 'there are 24')]:
    with pytest.raises(ValueError, match=message):
      call('train', 'wrong', ('rank',), roles=dict(student=toy.encoder, prompt=toy.encoder), steps=1, **{**learn, **wrong})


def test_what_a_reader_learns_from(toy, call):
  call('search', 'near', task=TASK, by='bm25', split='train', count=3)
  call('demonstrate', 'texts', ('near',), task=TASK, shots=2)
  for query, places, row in zip(toy.pool, found(call, 'near', toy).places, records.read(call.out('texts'))):
    assert row['prompt'].split('\n') == [pools.demonstration(e) for e in (toy.pool[places[1]], toy.pool[places[0]], query)]
