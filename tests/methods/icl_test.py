"""In-context distillation: which tokens learn what, by an independent computation in numpy; contexts, candidates, schedule, bad input."""
import functools

import examples
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.core.types import Role, State
from distill_jax.data import rows as rows_lib, text as text_lib
from distill_jax.methods import METHODS
from distill_jax.models import MODELS
from distill_jax.stages import records
from distill_jax.train import step as step_lib


@functools.cache
def words():
  return text_lib.train_bpe(['a b c d\nyes\nno\nup\ndown yes no up down'] * 4, size=330)


@functools.cache
def role(seed, **more):
  text = words()
  model = MODELS['transformer'](vocab_size=text.vocab_size, width=16, layers=1, heads=2, mlp_width=16, max_length=64, init='fan_in', **more)
  return Role(model, text, jax.tree.map(lambda x: 2 * x if x.ndim > 1 else x, model.init(jax.random.key(seed))))


def made(pairs, *, abouts=None, length=48, pack=None, **keywords):
  """(method, batch) of (prompt, completion) pairs."""
  roles = {'student': role(1), 'teacher': role(2)}
  method = METHODS['icl'](roles, **keywords)
  rows = [dict(id=f'{n}', sample=0, prompt=p, completion=c, example=(abouts or {}).get(n, {})) for n, (p, c) in enumerate(pairs)]
  found = records.render(words(), rows, more=method.more)
  order = {tuple(e['id']): n for n, e in enumerate(found)}
  made = rows_lib.unpacked(found, length=length)
  batch = made.batch(range(len(found)))
  assert len(order) == len(pairs)
  return method, batch, [made.bins[b][0] for b in range(len(found))], found


def terms(method, batch):
  return computed(method, {'student': role(1).params, 'teacher': role(2).params}, batch)


def computed(method, params, batch):
  label = method.label or (lambda *_: {})
  return jax.jit(lambda params, batch: method.loss(params, {**batch, 'label': label(params, batch, None)}, None))(params, batch)


@functools.cache
def reader(which):
  model = role(which).model
  def read(params, batch):
    out = model.apply(params, batch)
    return jax.nn.log_softmax(out['head'].logits(out['hidden']))
  return jax.jit(read)


def logps(which, batch):
  batch = {name: batch[name] for name in ('tokens', 'segments', 'positions')}
  return np.asarray(reader(which)(role(which).params, batch), np.float64)


PAIRS = [('a\nyes\n\n\nb', '\nno'), ('c\nup\n\n\nd', '\ndown up'), ('', 'a b c d'), ('d', '\nyes'), ('', 'up no')]


def test_label_tokens_alone_learn_and_an_example_is_one_mean():
  """Masked mean by hand: losses 1 and 3 of a label are 2; examples of means 2 and 1 are 1.5, not the mean over tokens."""
  _, batch, order, found = made(PAIRS)
  for example, (prompt, completion) in zip(found, PAIRS):
    weights, n = example['weights'], len(words().encode(completion))
    if not prompt:
      assert example['plain'].all() and (weights == 1).all()
      continue
    assert not example['plain'].any() and weights[-1] == 0      # the end of the text
    np.testing.assert_allclose(weights[-n - 1:-1], 1 / n)
    assert not weights[:-n - 1].any()
    np.testing.assert_array_equal(example['targets'][-n - 1:-1], words().encode(completion))
  two = np.asarray([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]), np.asarray([[1.0, 3.0, 9.0], [1.0, 9.0, 9.0]])
  assert (two[0] * two[1]).sum() / two[0].sum() == 1.5


@pytest.mark.parametrize('alpha', [0.5, 0.0, 1.0])
def test_the_whole_loss_by_hand(alpha):
  method, batch, order, found = made(PAIRS, alpha=alpha, beta=0.3)
  ours, metrics, _ = terms(method, batch)
  lq, lp = logps(1, batch), logps(2, batch)
  episodes, plain = [], []
  for b, n in enumerate(order):
    at = np.flatnonzero(batch['weights'][b] > 0)
    hard = -lq[b, at, batch['targets'][b, at]]
    soft = -(np.exp(lp[b, at]) * lq[b, at]).sum(-1)
    losses = alpha * hard + (1 - alpha) * soft
    if PAIRS[n][0]:
      episodes.append(losses.mean())
    else:
      plain.extend(losses)
  assert float(ours['icl'].value) == pytest.approx(np.mean(episodes), rel=1e-5)
  assert float(ours['icl'].weight) == pytest.approx(3)      # examples
  assert float(ours['lm'].value) == pytest.approx(0.3 * np.mean(plain), rel=1e-5)
  assert (method.label is None) == (alpha == 1) and ('divergence' in metrics) == (alpha < 1)


def test_without_the_language_term_plain_texts_say_nothing():
  method, batch, order, _ = made(PAIRS)
  more = terms(method, batch)[0]
  only, part, *_ = made([p for p in PAIRS if p[0]])
  assert set(more) == {'icl'}
  assert float(more['icl'].value) == pytest.approx(float(terms(only, part)[0]['icl'].value), rel=1e-5)


def test_candidates_are_the_same_for_both_sides():
  names = ['yes', 'no', 'up', 'down']
  ids = [words().encode(name) for name in names]
  assert all(len(i) == 1 for i in ids)
  method, batch, order, _ = made([('a ', 'yes'), ('b ', 'down')], candidates=names, alpha=0.25)
  ours = terms(method, batch)[0]['icl']
  kept = sorted(i[0] for i in ids)
  lq, lp = (x[..., kept] - np.log(np.exp(x[..., kept]).sum(-1, keepdims=True)) for x in (logps(1, batch), logps(2, batch)))
  want = []
  for b in range(2):
    (at,) = np.flatnonzero(batch['weights'][b])
    want.append(-0.25 * lq[b, at, kept.index(batch['targets'][b, at])] - 0.75 * (np.exp(lp[b, at]) * lq[b, at]).sum())
  assert float(ours.value) == pytest.approx(np.mean(want), rel=1e-5)


def test_a_context_of_the_teachers_own():
  """Context distillation: the student sees no demonstrations; the teacher is read at the same label tokens behind its own prompt."""
  pairs, abouts = [('b', '\nno'), ('d', '\ndown up')], {0: dict(teacher_prompt='a\nyes\n\n\nb'), 1: dict(teacher_prompt='c\nup\n\n\nd')}
  method, batch, order, _ = made(pairs, abouts=abouts, alpha=0.0, teacher_length=24)
  ours = terms(method, batch)[0]['icl']
  _, theirs, other, _ = made([(abouts[n]['teacher_prompt'], c) for n, (_, c) in enumerate(pairs)])
  lq, lp, want = logps(1, batch), logps(2, theirs), []
  for b, n in enumerate(order):
    at, over = np.flatnonzero(batch['weights'][b]), np.flatnonzero(theirs['weights'][other.index(n)])
    want.append(-(np.exp(lp[other.index(n), over]) * lq[b, at]).sum(-1).mean())
  assert float(ours.value) == pytest.approx(np.mean(want), rel=1e-5)
  same, rows, *_ = made(pairs, abouts={n: dict(teacher_prompt=p) for n, (p, _) in enumerate(pairs)}, alpha=0.0, teacher_length=24)
  plain, straight, *_ = made(pairs, alpha=0.0)
  assert float(terms(same, rows)[0]['icl'].value) == pytest.approx(float(terms(plain, straight)[0]['icl'].value), rel=1e-5)
  with pytest.raises(ValueError, match='say how long its rows are with teacher_length='):
    made(pairs, abouts=abouts)
  with pytest.raises(ValueError, match='for the teacher, teacher_length=4'):
    made(pairs, abouts=abouts, teacher_length=4)


def test_the_control_of_equal_entropy_knows_nothing_of_the_wrong_ids():
  pairs = [('a', '\nyes'), ('b', '\nno')]
  method, batch, *_ = made(pairs, alpha=0.0, soft='smoothed')
  found = terms(method, batch)
  lq, lp = logps(1, batch), logps(2, batch)
  at = batch['weights'] > 0
  own = -(np.exp(lp) * lp).sum(-1)[at]
  assert float(found[1]['soft'].value) == pytest.approx(float(found[0]['icl'].value), rel=1e-6)
  # cross-entropy to p is at least the entropy of p, which is the teacher's
  assert float(found[0]['icl'].value) > own.mean() > 0.5


def test_schedule_is_a_function_of_the_step():
  method, batch, *_ = made(PAIRS, alpha=dict(start=0.0, end=1.0, steps=4))
  params, values = {'student': role(1).params, 'teacher': role(2).params}, []
  state = State(jnp.zeros((), jnp.int32), params, {}, method.memory(params))
  for step in (0, 1, 2, 4, 9):
    memory = state.memory if step == 0 else method.after(state._replace(step=jnp.int32(step)), batch, {})
    found = computed(method, {**params, 'memory': memory}, batch)[1]
    values.append((float(found['alpha'].value), float(found['hard'].value), float(found['soft'].value)))
  np.testing.assert_allclose([v[0] for v in values], [0, 0.25, 0.5, 1, 1], rtol=1e-6)
  fixed = [float(terms(made(PAIRS, alpha=a)[0], batch)[0]['icl'].value) for a in (0.0, 0.25)]
  assert fixed[0] == pytest.approx(values[0][2], rel=1e-5) and fixed[1] == pytest.approx(0.75 * values[1][2] + 0.25 * values[1][1], rel=1e-5)


def test_pairs_have_one_of_each_in_every_row():
  found = made(PAIRS * 1 + [('a\nup\n\n\nc', '\nno')])[3]
  bins = rows_lib.pairs(found, length=64)
  assert len(bins) == 4 and all([bool(found[i]['plain'][0]) for i in members] == [False, True] for members in bins)
  assert sorted(members[0] for members in bins) == [0, 1, 3, 5] and {members[1] for members in bins} == {2, 4}
  rows = rows_lib.Rows(found, bins, length=64)
  assert rows.batch(range(4))['segments'].max() == 2
  with pytest.raises(ValueError, match='there are 0 and 2'):
    rows_lib.pairs([found[2], found[4]], length=64)
  longest = max(len(e['tokens']) for e in found if not e['plain'].any())
  assert {members[1] for members in rows_lib.pairs(found, length=longest + 3)} == {4}      # the shorter text alone
  with pytest.raises(ValueError, match='no plain text has room'):
    rows_lib.pairs(found, length=longest + 1)


def test_an_encoder_fills_in_the_mask():
  text = text_lib.train_bpe(['a was born in yes.'] * 3, size=300, mask=True)
  model = MODELS['encoder'](vocab_size=text.vocab_size, width=16, layers=1, heads=2, mlp_width=16, max_length=64, lm_head=True)
  roles = {name: Role(model, text, model.init(jax.random.key(n))) for n, name in enumerate(('student', 'teacher'))}
  method = METHODS['icl'](roles, beta=1.0)
  mask = text.tokenizer.mask_token_id
  label = words_of(text)
  rows = [dict(id='0', sample=0, prompt=f'a was born in yes. a was born in{text.tokenizer.mask_token}.', completion=label, example={}),
          dict(id='1', sample=0, prompt='', completion='a was born in yes. ' * 5, example={})]
  episode, plain = records.render(text, rows, more=method.more)
  (at,) = np.flatnonzero(episode['weights'])
  assert episode['tokens'][at] == mask and [episode['targets'][at]] == text.encode(label) and (episode['tokens'] == mask).sum() == 1
  asked = np.flatnonzero(plain['weights'])
  assert len(asked) == round(0.15 * len(plain['tokens'])) and plain['plain'].all()
  whole = text.encode('a was born in yes. ' * 5)
  np.testing.assert_array_equal(plain['targets'][asked], np.asarray(whole)[asked])
  still = np.setdiff1d(np.arange(len(whole)), asked)
  np.testing.assert_array_equal(plain['tokens'][still], np.asarray(whole)[still])
  batch = rows_lib.unpacked([episode, plain], length=64).batch([0, 1])
  params = {name: one.params for name, one in roles.items()}
  found = computed(method, params, batch)[0]
  assert float(found['icl'].weight) == 1 and float(found['lm'].weight) == len(asked) and np.isfinite(float(found['icl'].value))
  with pytest.raises(ValueError, match='has 2 masks'):
    method.more(text.tokenizer.mask_token * 2, label, episode)
  with pytest.raises(ValueError, match='a mask is one token'):
    method.more(text.tokenizer.mask_token, 'xyz', episode)


def words_of(text):
  """A text of one token."""
  return next(word for word in (' yes', 'yes', ' in', 'a') if len(text.encode(word)) == 1)


@pytest.mark.parametrize('keywords, says', [
    (dict(alpha=1.5), 'the share of the gold label'), (dict(beta=-1), 'must be at least 0'), (dict(soft='hard'), 'one of teacher, smoothed'),
    (dict(alpha=dict(start=0, end=1)), 'a schedule is dict'), (dict(candidates=['yes', 'yes no']), "candidate 'yes no' is .* tokens"),
    (dict(candidates=['yes', 'yes']), 'are one token')])
def test_bad_settings(keywords, says):
  with pytest.raises(ValueError, match=says):
    made(PAIRS, **keywords)


def test_bad_rows():
  with pytest.raises(ValueError, match="label 'up' is not in the candidate set of 2 tokens"):
    made([('a ', 'up')], candidates=['yes', 'no'])
  with pytest.raises(ValueError, match="label '' has no tokens"):
    made([('a ', '')])
  with pytest.raises(ValueError, match='name one in roles, or set alpha=1'):
    METHODS['icl']({'student': role(1)})


def test_rows_with_a_context_are_cut_like_others():
  """Microbatches change nothing where the teacher reads rows of its own."""
  pairs, abouts = [(c, '\nno up') for c in 'abcd'], {n: dict(teacher_prompt=f'a\nyes\n\n\n{c}') for n, c in enumerate('abcd')}
  method, batch, *_ = made(pairs, abouts=abouts, teacher_length=24)
  roles = {'student': role(1)._replace(text=None), 'teacher': role(2)._replace(text=None)}
  optimizers = {'student': examples.recorder()}
  state = step_lib.init_state(method, roles, {name: one.params for name, one in roles.items()}, optimizers)
  grads = [jax.jit(step_lib.make_step(method, roles, optimizers, microbatches=m))(state, {'teacher': roles['teacher'].params}, batch, jax.random.key(0))[0].opt
           for m in (1, 2)]
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-6), *grads)
