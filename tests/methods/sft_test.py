"""Supervised fine-tuning against numbers worked out in numpy."""
import examples
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.core.types import Head, Model, Role
from distill_jax.methods import METHODS
from distill_jax.methods.sft import hard, row_keys


def table(penalty=None):
  """A model whose logits are looked up: no neighbours, no dropout."""
  def apply(params, batch, *, key_B=None, **_):
    out = {'hidden': jnp.take(params['logits'], jnp.where(batch['segments'] > 0, batch['tokens'], 0), axis=0), 'head': Head(jnp.eye(5))}
    return out if penalty is None else {**out, 'penalty': jnp.full(len(batch['tokens']), penalty)}
  return Role(Model(None, apply, (), None))


BATCH = dict(tokens=np.asarray([[0, 1, 2], [3, 4, -9]], np.int32), targets=np.asarray([[1, 2, 3], [4, 0, -9]], np.int32),
             segments=np.asarray([[1, 1, 1], [1, 1, 0]], np.int32), weights=np.asarray([[0, 1, 2], [0.5, 1, 0]], np.float32),
             row=np.zeros((2, 2), np.uint32))
LOGITS = np.random.default_rng(0).normal(size=(5, 5)).astype(np.float32)


def measure(logits, penalty=None):
  method = METHODS['sft']({'student': table(penalty)})
  return jax.jit(lambda logits: method.loss({'student': {'logits': logits}}, BATCH, None))(logits)


def test_cross_entropy_and_accuracy_over_weighted_targets():
  terms, metrics, stats = measure(LOGITS)
  logps = LOGITS - np.log(np.exp(LOGITS).sum(-1, keepdims=True))
  pairs = [(1, 2, 1.0), (2, 3, 2.0), (3, 4, 0.5), (4, 0, 1.0)]
  expected = -sum(w * logps[token, target] for token, target, w in pairs) / 4.5
  right = sum(w * (logps[token].argmax() == target) for token, target, w in pairs) / 4.5
  assert float(terms['cross_entropy'].value) == pytest.approx(expected, rel=1e-5)
  assert float(terms['cross_entropy'].weight) == 4.5
  assert float(metrics['accuracy'].value) == pytest.approx(right)
  assert stats == {} and set(terms) == {'cross_entropy'}


def test_a_penalty_is_a_term_of_its_own_over_rows():
  terms, _, _ = measure(LOGITS, 0.25)
  assert (float(terms['penalty'].value), float(terms['penalty'].weight)) == (0.25, 2.0)


def test_the_shift_is_not_made_again():
  """Targets are predicted at their own place: a model that knows target[t] from token[t] has no loss."""
  logits = np.full((5, 5), -30, np.float32)
  for token, target in [(0, 1), (1, 2), (2, 3), (3, 4), (4, 0)]:
    logits[token, target] = 30
  terms, metrics, _ = measure(logits)
  assert float(terms['cross_entropy'].value) < 1e-6 and float(metrics['accuracy'].value) == 1.0


def test_a_keyword_it_does_not_have_is_pythons_own_error():
  with pytest.raises(TypeError, match='alpha'):
    METHODS['sft']({'student': table()}, alpha=0.5)


def test_dropout_follows_the_row():
  rows = np.asarray([[1, 2], [3, 4], [1, 2]], np.uint32)
  made = jax.random.key_data(row_keys(jax.random.key(0), {'row': rows}))
  assert made[0].tolist() == made[2].tolist() != made[1].tolist()
  assert row_keys(None, {'row': rows}) is None


def test_hard_has_no_gradient_through_accuracy():
  grads = jax.grad(lambda logits: hard(logits, jnp.zeros((1, 2), jnp.int32))['accuracy'].sum())(jnp.ones((1, 2, 5)))
  np.testing.assert_array_equal(grads, np.zeros((1, 2, 5)))


def test_tiny_students_of_both_shapes_learn_a_batch_by_heart():
  one = examples.example('sft', jax.random.key(0), dropout=0.0)
  loss = jax.jit(jax.value_and_grad(lambda params: one.method.loss({'student': params}, one.batch, None)[0]['cross_entropy'].value))
  params = one.params['student']
  first = float(loss(params)[0])
  for _ in range(30):
    value, grads = loss(params)
    params = jax.tree.map(lambda p, g: p - 1.0 * g, params, grads)
  assert float(value) < 0.8 * first


@pytest.mark.parametrize('cross_entropies, expected', [
    (([np.log(8)] * 2, [np.log(8)] * 4), np.log(8)), (([1.0, 1.0], [3.0] * 4), 14 / 6)])
def test_a_batch_counts_its_tokens_not_its_texts(cross_entropies, expected):
  """Two texts of 2 and 4 targets over 8 ids. The mean over texts of means over tokens would be 2.0 in the second case."""
  logits = np.zeros((8, 8), np.float32)
  for token, loss in enumerate(x for text in cross_entropies for x in text):
    p = np.exp(-loss)      # of target 0; the rest is shared by the others
    logits[token] = np.log((1 - p) / 7)
    logits[token, 0] = np.log(p)
  batch = dict(tokens=np.asarray([[0, 1, 7, 7], [2, 3, 4, 5]], np.int32), targets=np.zeros((2, 4), np.int32), row=np.zeros((2, 2), np.uint32),
               segments=np.asarray([[1, 1, 0, 0], [1, 1, 1, 1]], np.int32), weights=np.asarray([[1, 1, 0, 0], [1, 1, 1, 1]], np.float32))
  def apply(params, batch, **_):
    return {'hidden': jnp.take(params, batch['tokens'], axis=0), 'head': Head(jnp.eye(8))}
  method = METHODS['sft']({'student': Role(Model(None, apply, (), None))})
  terms, _, _ = jax.jit(lambda logits: method.loss({'student': logits}, batch, None))(logits)
  assert float(terms['cross_entropy'].value) == pytest.approx(expected, rel=1e-5) and float(terms['cross_entropy'].weight) == 6.0
