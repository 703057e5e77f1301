"""MiniLLM: its gradient against that of the reverse KL of whole texts, and what its rollout leaves for the loss."""
import itertools

import examples
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.core import mesh as mesh_lib
from distill_jax.core.types import Head, Model, Role, State
from distill_jax.data import feed
from distill_jax.methods import METHODS

V = 4


def table():
  """A model whose logits are looked up by the last token; row V is that of the prompt."""
  def apply(params, batch, *, key_B=None, **_):
    return {'hidden': jnp.take(params['logits'], batch['tokens'], axis=0), 'head': Head(jnp.eye(V))}
  return Role(Model(None, apply, (), None))


RNG = np.random.default_rng(0)
STUDENT, TEACHER = (RNG.normal(size=(V + 1, V)).astype(np.float32) for _ in range(2))


def text_kl(student):
  """KL(q || p) over all texts of two tokens."""
  q, p = jax.nn.log_softmax(student), jax.nn.log_softmax(TEACHER)
  lq, lp = (x[V][:, None] + x[:V] for x in (q, p))      # [first token, second token]
  return jnp.sum(jnp.exp(lq) * (lq - lp))


def all_texts():
  """Every text of two tokens as a row, each target weighted by the text's probability under the student."""
  q, p = (np.asarray(jax.nn.log_softmax(x)) for x in (STUDENT, TEACHER))
  pairs = np.asarray(list(itertools.product(range(V), range(V))), np.int32)
  tokens = np.stack([np.full(V * V, V), pairs[:, 0]], 1).astype(np.int32)
  old, told = (np.stack([x[V][pairs[:, 0]], x[pairs[:, 0], pairs[:, 1]]], 1) for x in (q, p))
  weights = np.repeat(np.exp(old.sum(1))[:, None], 2, 1)
  returns = np.stack([(told - old)[:, 1], np.zeros(V * V)], 1)
  return dict(tokens=tokens, targets=pairs, segments=np.ones_like(pairs), weights=weights.astype(np.float32), row=np.zeros((V * V, 2), np.uint32),
              importance=np.ones_like(weights, np.float32), returns=returns.astype(np.float32), old_logps=old.astype(np.float32))


def term(batch, student, **keywords):
  method = METHODS['minillm']({'student': table(), 'teacher': table()}, **keywords)
  params = {'student': {'logits': student}, 'teacher': {'logits': TEACHER}}
  return method.loss(params, {**batch, 'label': method.label(params, batch, None)}, None)


def test_expected_gradient_is_that_of_the_reverse_kl_of_texts():
  """Over all texts, weighted by how likely the student writes them, the two parts together are d KL(q || p). (Texts of two tokens: a mean
  of one rest is its sum.)"""
  batch = all_texts()
  found = jax.jit(jax.grad(lambda student: term(batch, student)[0]['minillm'].total))(STUDENT)
  exact = jax.jit(jax.grad(text_kl))(STUDENT)
  np.testing.assert_allclose(found, exact, atol=1e-6)
  single = jax.jit(jax.grad(lambda student: term({**batch, 'returns': 0 * batch['returns']}, student)[0]['minillm'].total))(STUDENT)
  assert np.abs(single - exact).max() > 1e-2, 'the long part is part of it'


def test_a_batch_without_rollouts_is_reverse_kl_of_its_text():
  batch = {name: value for name, value in all_texts().items() if name not in ('importance', 'returns', 'old_logps')}
  terms, metrics, _ = jax.jit(lambda student: term(batch, student))(STUDENT)
  q, p = (np.asarray(jax.nn.log_softmax(x)) for x in (STUDENT, TEACHER))
  each = (np.exp(q) * (q - p)).sum(-1)[batch['tokens']]
  assert float(terms['minillm'].total) == pytest.approx(float((each * batch['weights']).sum()), rel=1e-5)
  assert float(metrics['divergence'].total) == pytest.approx(float(terms['minillm'].total)) and 'returns' not in metrics


def rolled(one, batch):
  mesh = mesh_lib.make_mesh({'data': -1}, devices=jax.devices()[:2])
  params = jax.device_put(one.params, mesh_lib.replicated(mesh))
  state = State(jnp.zeros((), jnp.int32), {'student': params['student']}, {}, {})
  return jax.device_get(one.method.rollout(state, {'teacher': params['teacher']}, feed.put(dict(batch), mesh), jax.random.key(0))[0])


@pytest.mark.parametrize('alpha', [0.2, 0.0])
def test_what_a_rollout_leaves(alpha):
  """Importance weights of the mixture that drew, the mean reward of what follows, and the student's own log-probabilities."""
  one = examples.example('minillm', jax.random.key(3), alpha=alpha, dropout=0.0)
  rows = rolled(one, {name: x for name, x in one.batch.items() if name not in ('importance', 'returns', 'old_logps')})
  assert set(rows) == {*one.batch, 'wrote', 'ended'} and rows['wrote'].all()
  logps = {}
  for name, role in one.roles.items():
    out = jax.jit(role.model.apply)(role.params, rows)
    every = np.asarray(jax.nn.log_softmax(out['head'].logits(out['hidden'])))
    logps[name] = np.take_along_axis(every, rows['targets'][..., None], -1)[..., 0].astype(np.float64)
  q, p = np.exp(logps['student']), np.exp(logps['teacher'])
  on = rows['weights'] > 0
  np.testing.assert_allclose(rows['importance'], np.where(on, q / (alpha * p + (1 - alpha) * q), 0), atol=1e-4)
  np.testing.assert_allclose(rows['old_logps'], np.where(on, logps['student'], 0), atol=1e-4)
  reward, expected = logps['teacher'] - logps['student'], np.zeros(on.shape)
  for b, places in ((b, np.flatnonzero(row)) for b, row in enumerate(on)):
    for n, place in enumerate(places[:-1]):
      expected[b, place] = reward[b, places[n + 1:]].mean()
  np.testing.assert_allclose(rows['returns'], expected, atol=1e-4)
  assert (rows['returns'] != 0).sum() > 40


def test_both_models_write():
  """A teacher that all but always says 7 has its part of the tokens."""
  one = examples.example('minillm', jax.random.key(3), alpha=0.5, dropout=0.0)
  def always(params, batch, **keywords):
    out = one.roles['teacher'].model.apply(params, batch, **keywords)
    return {**out, 'head': out['head']._replace(bias_V=jnp.where(jnp.arange(examples.VOCAB) == 7, 50.0, 0.0))}
  roles = {**one.roles, 'teacher': one.roles['teacher']._replace(model=one.roles['teacher'].model._replace(apply=always))}
  rows = rolled(one._replace(method=METHODS['minillm'](roles, alpha=0.5, max_new_tokens=8)), one.batch)
  written = rows['targets'][rows['weights'] > 0]
  assert 0.35 < (written == 7).mean() < 0.7


def test_packed_rows_are_refused():
  one = examples.example('minillm', jax.random.key(3))
  with pytest.raises(ValueError, match='minillm: rollouts continue one prompt a row.*pack=False'):
    rolled(one, examples.packed_batch(jax.random.key(3))[1])


@pytest.mark.parametrize('keywords, message', [
    (dict(alpha=1.0), 'alpha=1.0 is the teacher'), (dict(alpha=-0.1), 'alpha=-0.1'), (dict(clip=0), 'clip=0 must be above 0'),
    (dict(max_new_tokens=0), 'max_new_tokens=0 must be at least 1')])
def test_settings_that_are_refused(keywords, message):
  with pytest.raises(ValueError, match=message):
    METHODS['minillm']({'student': table(), 'teacher': table()}, **keywords)
