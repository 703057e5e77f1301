"""Label: what a frozen teacher says of each example, in parts, or a refusal."""
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax import methods
from distill_jax.core.types import Method
from distill_jax.data import cache, codec, rows as rows_lib, shards, whole
from distill_jax.stages import records, roles

train = importlib.import_module('distill_jax.stages.train')

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
    learnt = np.asarray(row['weights']) > 0
    assert 0 < learnt.sum() < n and np.all(ids[~learnt] == -1), 'a prompt has no labels: nothing asks for them'
    np.testing.assert_allclose(logps[learnt], np.sort(logits[learnt], -1)[:, :-4:-1], atol=1e-4)
    np.testing.assert_allclose(np.take_along_axis(logits, ids, -1)[learnt], logps[learnt], atol=1e-4)
  assert tokens == summary['tokens']

  before = {path.name: path.read_bytes() for path in call.out('label').glob('part-*.arrow')}
  assert len(before) == 2
  (call.out('label') / min(before)).unlink()
  call('label', 'label', method=KD, part=4, count=6, **settings)
  assert {path.name: path.read_bytes() for path in call.out('label').glob('part-*.arrow')} == before


def test_labels_of_half_the_bytes(call, settings):
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


# caches


def read(call, name):
  """The examples of a label stage as training reads them."""
  examples = train.Labelled(shards.open_shards(call.out(name)))
  return [examples[i] for i in range(len(examples))]


def test_a_compact_cache_holds_the_same_labels_in_fewer_bytes(call, settings):
  raw = call('label', 'raw', method=dict(KD, k=16), count=6, **settings)
  compact = call('label', 'compact', method=dict(KD, k=16), count=6, part=4, cache=dict(codec='compact'), **settings)
  assert compact['bytes'] < raw['bytes'] / 3 and compact['codec'] == 'compact' and 0 < compact['nats_lost'] < 1.2 * codec.NATS
  assert shards.open_shards(call.out('compact')).manifest['codec'] == dict(
      name='compact', version=1, vocab_size=320, mass=1.0, nats=codec.NATS, draws=None)
  for a, b in zip(read(call, 'raw'), read(call, 'compact'), strict=True):
    assert set(a) == set(b) and len(b) == len(a) and 'source' not in b
    for name in ('id', 'tokens', 'targets', 'weights'):
      np.testing.assert_array_equal(a[name], b[name])
    told = a['weights'] > 0
    assert (b['label/top_ids'][~told] == -1).all() and (b['label/top_logps'][~told] == 0).all()
    np.testing.assert_array_equal(np.sort(a['label/top_ids'][told]), b['label/top_ids'][told])
    order = np.argsort(a['label/top_ids'], -1)
    p, q = np.exp(np.take_along_axis(a['label/top_logps'], order, -1)), np.exp(b['label/top_logps'])
    np.testing.assert_allclose(q[told], p[told], atol=0.02)


@pytest.mark.slow
def test_what_a_compact_cache_teaches(small, call, settings):
  """A run on decoded labels stays beside one on live ones, within a small multiple of the nats that coding may lose."""
  pair, task = settings['roles'], small.task
  call('label', 'label', method=KD, cache=dict(codec='compact'), **settings)
  keywords = dict(method=dict(KD, alpha=0.7), task=task, steps=2, batch=8, length=512, optim=dict(lr=1e-2), how=dict(log=1))
  early = call('train', 'early', ['label'], roles=dict(student=small.student), **keywords)
  late = call('train', 'late', roles=pair, **keywords)
  assert early['examples'] == late['examples'] == 6
  for name in ('divergence', 'cross_entropy', 'loss'):
    assert early['final'][name] == pytest.approx(late['final'][name], abs=5e-3), name
  examples = train.Labelled(shards.open_shards(call.out('label')))
  batch = rows_lib.packed([examples[i] for i in range(6)], length=512).batch([0])
  assert batch['label']['top_ids'].shape == (1, 512, 3) and batch['label']['top_logps'].dtype == np.float32


@pytest.mark.parametrize('name', ['raw', 'compact'])
def test_mass_prunes_each_token(call, settings, name):
  call('label', 'whole', method=dict(KD, k=16), count=3, **settings)
  summary = call('label', 'pruned', method=dict(KD, k=16), count=3, cache=dict(codec=name, mass=0.5), **settings)
  counts = []
  for a, b in zip(read(call, 'whole'), read(call, 'pruned'), strict=True):
    for token in np.flatnonzero(a['weights'] > 0):
      p = np.exp(a['label/top_logps'][token].astype(np.float64))
      n = min(int((np.cumsum(p) < 0.5).sum()) + 1, 16)
      assert sorted(b['label/top_ids'][token][b['label/top_ids'][token] >= 0]) == sorted(a['label/top_ids'][token][:n])
      counts.append(n)
  assert min(counts) < max(counts) and summary['kept_mass'] > 0.3


def test_random_draws_are_kept_exactly_and_follow_the_example(call, settings):
  every = dict(KD, k=320)
  for name, count, kind in (('draws', 3, 'compact'), ('raw', 3, 'raw'), ('more', 5, 'compact')):
    call('label', name, method=every, count=count, cache=dict(codec=kind, draws=20), **settings)
  found = {tuple(e['id']): e for e in read(call, 'more')}
  for a, b in zip(read(call, 'draws'), read(call, 'raw'), strict=True):
    told = a['weights'] > 0
    counts = np.where(a['label/top_ids'] >= 0, 20 * np.exp(a['label/top_logps']), 0)[told]
    np.testing.assert_allclose(counts, np.rint(counts), atol=1e-3)
    np.testing.assert_allclose(counts.sum(-1), 20, atol=1e-3)
    ordered = np.argsort(np.where(b['label/top_ids'] < 0, 999, b['label/top_ids']), -1)
    np.testing.assert_array_equal(a['label/top_ids'][told], np.take_along_axis(b['label/top_ids'], ordered, -1)[told])
    np.testing.assert_array_equal(a['label/top_ids'], found[tuple(a['id'])]['label/top_ids'])
  with pytest.raises(ValueError, match='whole distribution, but the labels of the method hold 0.* set the k of the method'):
    call('label', 'few', method=KD, count=3, cache=dict(draws=20), **settings)


def test_a_cache_is_for_top_k_labels(call, settings):
  with pytest.raises(ValueError, match="is for top-k labels, and method 'logit_kd' makes label/hidden; give the method k="):
    call('label', 'label', method=dict(method='logit_kd'), count=2, cache=dict(codec='compact'), **settings)
  with pytest.raises(ValueError, match=r'mass=0 must lie in \(0, 1\]'):
    call('label', 'label', method=KD, count=2, cache=dict(mass=0), **settings)
  with pytest.raises(ValueError, match='k=321 must lie in 1..320'):
    call('label', 'label', method=dict(KD, k=321), count=2, cache=dict(codec='compact'), **settings)


@pytest.mark.parametrize('name', ['raw', 'compact'])
@pytest.mark.parametrize('value, words', [(jnp.nan, 'a NaN'), (-jnp.inf, 'only -inf')])
def test_a_broken_teacher_is_named_by_example_and_token(call, settings, monkeypatch, name, value, words):
  def broken(roles, **_):
    def label(params, batch, key):
      ids = jnp.broadcast_to(jnp.arange(2, dtype=jnp.int32).reshape(1, 1, 2), (*batch['tokens'].shape, 2))
      return {'top_ids': ids, 'top_logps': jnp.where((batch['positions'] == 11)[..., None], value, jnp.full(ids.shape, -1.0))}
    return Method(None, label=label)
  monkeypatch.setitem(methods.METHODS, 'broken', broken)
  with pytest.raises(ValueError, match=f'label: example [0-9a-f]{{16}}: the teacher.s labels of token 11 hold {words}'):
    call('label', 'label', method=dict(method='broken'), count=2, cache=dict(codec=name), **settings)


def test_a_cache_of_a_newer_format_is_refused(small, call, settings):
  call('label', 'label', method=KD, count=2, cache=dict(codec='compact'), **settings)
  manifest = shards.open_shards(call.out('label')).manifest
  whole.write_json(call.out('label') / shards.MANIFEST, dict(manifest, codec=dict(manifest['codec'], version=cache.CODECS['compact'] + 1)))
  with pytest.raises(ValueError, match="written by codec 'compact' format 2, and this program reads .*use a newer distill_jax"):
    call('train', 'train', ['label'], roles=dict(student=small.student), method=KD, task=small.task, steps=1, batch=8, length=512,
         optim=dict(lr=1e-2))


# a teacher that is shown something first


@pytest.fixture
def shown(small, monkeypatch):
  """Tasks by name: 'asked' puts a line before the prompt, 'other' has another prompt."""
  before = 'One plus two is three.\n\n'
  tasks = dict(asked=small.made._replace(prompt=lambda e: before + small.made.prompt(e)), other=small.made._replace(prompt=lambda e: 'What?'))
  made = records.make_task
  monkeypatch.setattr(records, 'make_task', lambda d: tasks[d['task']] if d['task'] in tasks else made(d))
  return before


@pytest.mark.parametrize('loss_on_prompt', [False, pytest.param(True, marks=pytest.mark.slow)])
def test_labels_of_a_teacher_that_is_shown_something_first(small, call, settings, shown, loss_on_prompt):
  """Every token's label is what the teacher says of it behind the longer prompt, and the rows stay those of the student."""
  call('label', 'plain', method=KD, count=4, loss_on_prompt=loss_on_prompt, **settings)
  summary = call('label', 'label', method=KD, count=4, loss_on_prompt=loss_on_prompt, tasks=dict(asked=dict(task='asked')), **settings)
  assert summary['cut_prompts'] == 0
  teacher = roles.load_role(small.teacher)
  ahead = small.text.encode(shown)
  for row, plain in zip(shards.open_shards(call.out('label')), shards.open_shards(call.out('plain')), strict=True):
    assert all(np.array_equal(row[name], plain[name]) for name in ('tokens', 'targets', 'weights'))
    tokens = np.concatenate([ahead, row['tokens']])[None].astype(np.int32)
    out = teacher.model.apply(teacher.params, {'tokens': tokens})
    says = np.asarray(jax.nn.log_softmax(out['head'].logits(out['hidden'])))[0, len(ahead):]
    learnt = np.asarray(row['weights']) > 0
    ids, logps = np.asarray(row['label/top_ids']), np.asarray(row['label/top_logps'])
    assert learnt.all() == loss_on_prompt
    np.testing.assert_allclose(np.take_along_axis(says, ids, -1)[learnt], logps[learnt], atol=1e-4)
    np.testing.assert_allclose(np.sort(says[learnt], -1)[:, :-4:-1], logps[learnt], atol=1e-4)
    assert not np.allclose(logps[learnt], np.asarray(plain['label/top_logps'])[learnt], atol=1e-3), 'what is shown matters'


def test_what_is_shown_is_cut_from_the_left_and_counted(small, call, settings, shown):
  longest = max(len(tokens) for tokens in _tokens(call, settings))
  settings = {**settings, 'length': longest}
  summary = call('label', 'label', method=KD, count=6, tasks=dict(asked=dict(task='asked')), **settings)
  ahead = len(small.text.encode(shown))
  assert summary['cut_prompts'] == sum(len(tokens) + ahead > longest for tokens in _tokens(call, settings)) > 0
  assert call('label', 'wide', method=KD, count=6, tasks=dict(asked=dict(task='asked')), asked_length=longest + ahead, **settings)['cut_prompts'] == 0


def test_a_prompt_that_does_not_end_in_the_students_is_refused(call, settings, shown):
  with pytest.raises(ValueError, match="prompt of tasks.asked must end in the prompt that the student reads; it ends in 'What\\?'"):
    call('label', 'label', method=KD, count=2, tasks=dict(asked=dict(task='other')), **settings)
  with pytest.raises(ValueError, match="there is only tasks=dict\\(asked='NAME'\\)"):
    call('label', 'label', method=KD, count=2, tasks=dict(student=dict(task='asked')), **settings)
