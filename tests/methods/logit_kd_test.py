"""Distillation on logits against numbers worked out in numpy, and settings that are refused."""
import types

import examples
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.core.types import Head, Model, Role
from distill_jax.losses import divergence
from distill_jax.methods import METHODS

V = 7
BATCH = dict(tokens=np.asarray([[0, 1, 2], [3, 4, -9]], np.int32), targets=np.asarray([[1, 2, 3], [4, 0, -9]], np.int32),
             segments=np.asarray([[1, 1, 1], [1, 1, 0]], np.int32), weights=np.asarray([[0, 1, 2], [0.5, 1, 0]], np.float32),
             row=np.zeros((2, 2), np.uint32))
PAIRS = [(1, 2, 1.0), (2, 3, 2.0), (3, 4, 0.5), (4, 0, 1.0)]


def table(size=V, text=None):
  """A model whose logits are looked up."""
  def apply(params, batch, *, key_B=None, **_):
    return {'hidden': jnp.take(params['logits'], jnp.where(batch['segments'] > 0, batch['tokens'], 0), axis=0), 'head': Head(jnp.eye(size))}
  return Role(Model(None, apply, (), None), text)


def params(student_size=V, teacher_size=V):
  rng = np.random.default_rng(0)
  return {'student': {'logits': rng.normal(size=(5, student_size)).astype(np.float32)},
          'teacher': {'logits': 2 * rng.normal(size=(5, teacher_size)).astype(np.float32)}}


def measure(given=None, **keywords):
  roles, given = {'student': table(), 'teacher': table()}, given or params()
  method = METHODS['logit_kd'](roles, **keywords)
  return jax.jit(lambda given: method.loss(given, {**BATCH, 'label': method.label(given, BATCH, None)}, None))(given)


def softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize('temperature', [1.0, 2.5])
def test_forward_kl_beside_cross_entropy(temperature):
  terms, metrics, _ = measure(alpha=0.3, temperature=temperature)
  t, s = (softmax(params()[name]['logits'] / temperature) for name in ('teacher', 'student'))
  kl = temperature ** 2 * (t * np.log(t / s)).sum(-1)
  ce = -np.log(softmax(params()['student']['logits']))
  expected = sum(w * kl[token] for token, _, w in PAIRS) / 4.5
  hard = sum(w * ce[token, target] for token, target, w in PAIRS) / 4.5
  assert float(metrics['divergence'].value) == pytest.approx(expected, rel=1e-4)
  assert float(metrics['cross_entropy'].value) == pytest.approx(hard, rel=1e-5)
  assert float(terms['distillation'].value) == pytest.approx(0.3 * expected + 0.7 * hard, rel=1e-4)
  assert float(terms['distillation'].weight) == 4.5


@pytest.mark.parametrize('temperature', [1.0, 2.5])
def test_top_k_counts_the_rest_as_one_class(temperature):
  _, metrics, _ = measure(k=2, temperature=temperature)
  t, s = (softmax(params()[name]['logits'].astype(np.float64) / temperature) for name in ('teacher', 'student'))
  expected = 0.0
  for token, _, w in PAIRS:
    kept = np.argsort(-t[token])[:2]
    p, q = (np.append(x[token, kept], 1 - x[token, kept].sum()) for x in (t, s))
    expected += w * temperature ** 2 * (p * np.log(p / q)).sum() / 4.5
  assert float(metrics['divergence'].value) == pytest.approx(expected, rel=1e-4)
  assert expected < float(measure(temperature=temperature)[1]['divergence'].value)
  assert float(measure(k=V, temperature=temperature)[1]['divergence'].value) == pytest.approx(
      float(measure(temperature=temperature)[1]['divergence'].value), rel=1e-4)


@pytest.mark.parametrize('keywords', [dict(objective='reverse_kl'), dict(objective='jsd', beta=0.3), dict(objective='skew_kl', skew=0.1)])
def test_every_objective_is_the_divergence_of_its_name(keywords):
  _, metrics, _ = measure(**keywords)
  settings = {name: value for name, value in keywords.items() if name != 'objective'}
  student, teacher = (jnp.asarray(params()[name]['logits']) for name in ('student', 'teacher'))
  each = jax.jit(lambda a, b: getattr(divergence, keywords['objective'])(a, b, **settings))(student, teacher)
  assert float(metrics['divergence'].value) == pytest.approx(sum(w * float(each[token]) for token, _, w in PAIRS) / 4.5, rel=1e-5)


@pytest.mark.parametrize('keywords, message', [
    (dict(objective='tvd'), "objective='tvd', one of forward_kl, reverse_kl, jsd, skew_kl"),
    (dict(objective='reverse_kl', k=4), 'needs k=None'),
    (dict(objective='jsd'), "takes \\['beta'\\], given \\[\\]"),
    (dict(beta=0.5), "takes no further setting, given \\['beta'\\]"),
    (dict(objective='skew_kl', beta=0.5), "takes \\['skew'\\], given \\['beta'\\]"),
])
def test_settings_that_do_not_go_together(keywords, message):
  with pytest.raises(ValueError, match=message):
    METHODS['logit_kd']({'student': table(), 'teacher': table()}, **keywords)


def test_without_a_teacher_targets_must_come_with_the_batch():
  with pytest.raises(ValueError, match='name a teacher in roles, or set k'):
    METHODS['logit_kd']({'student': table()})
  method = METHODS['logit_kd']({'student': table()}, k=2)
  assert method.label is None
  label = METHODS['logit_kd']({'student': table(), 'teacher': table()}, k=2).label(params(), BATCH, None)
  terms, _, _ = jax.jit(lambda student: method.loss({'student': student}, {**BATCH, 'label': label}, None))(params()['student'])
  assert float(terms['distillation'].value) == pytest.approx(float(measure(k=2)[0]['distillation'].value), rel=1e-6)


def test_tokenizers_that_differ_are_refused_when_both_are_known():
  def require_same(other, *, what):
    raise ValueError(f'{what} have different token ids')
  text = types.SimpleNamespace(require_same=require_same)
  with pytest.raises(ValueError, match='teacher and student have different token ids'):
    METHODS['logit_kd']({'student': table(text=text), 'teacher': table(text=text)})
  METHODS['logit_kd']({'student': table(text=text), 'teacher': table()})


@pytest.mark.parametrize('keywords', [dict(), dict(k=3), dict(objective='reverse_kl')])
def test_vocabularies_padded_to_other_widths(keywords):
  roles, given = {'student': table(V), 'teacher': table(V + 2)}, params(V, V + 2)
  method = METHODS['logit_kd'](roles, **keywords)
  def total(student):
    batch = {**BATCH, 'label': method.label({**given, 'student': student}, BATCH, None)}
    return sum(term.value for term in method.loss({**given, 'student': student}, batch, None)[0].values())
  value, grads = jax.jit(jax.value_and_grad(total))(given['student'])
  assert np.isfinite(float(value)) and np.isfinite(np.asarray(grads['logits'])).all()


def test_labels_are_what_can_be_kept():
  one = examples.example('logit_kd', jax.random.key(0), dropout=0.0, k=4)
  shapes = jax.eval_shape(lambda params: one.method.label(params, one.batch, None), one.params)
  assert shapes['top_ids'].shape == shapes['top_logps'].shape == (examples.ROWS, examples.LENGTH, 4)
  assert (shapes['top_ids'].dtype, shapes['top_logps'].dtype) == (jnp.int32, jnp.float32)


def test_hidden_states_kept_as_float32_make_the_same_logits_as_live_ones():
  """A bfloat16 teacher: its head multiplies in bfloat16 whether its states come live or from a float32 cache."""
  one = examples.example('logit_kd', jax.random.key(0), dropout=0.0, dtype='bfloat16')
  loss = jax.jit(lambda params, batch: one.method.loss(params, batch, None)[1]['divergence'])
  label = jax.jit(lambda params: one.method.label(params, one.batch, None))(one.params)
  live = loss(one.params, {**one.batch, 'label': label})
  cached = loss(one.params, {**one.batch, 'label': jax.tree.map(lambda x: x.astype(jnp.float32), label)})
  assert float(live.value) == float(cached.value)
