"""Cross-entropy and the way from hidden states to a loss per token."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.core.mean import Mean
from distill_jax.core.types import Head
from distill_jax.losses import divergence, sweep, tokens

INF = -np.inf


def normal(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def out_of(seed, shape=(2, 5, 8), vocabulary=11):
  return {'hidden': normal(seed, *shape), 'head': Head(normal(seed + 100, shape[-1], vocabulary), bias_V=normal(seed + 200, vocabulary))}


def test_hand_value():
  """The expected cross-entropy of q under p is the entropy of p plus KL(p || q)."""
  p, q = np.array([0.7, 0.2, 0.1]), np.array([0.5, 0.3, 0.2])
  logits = jnp.broadcast_to(jnp.asarray(np.log(q), jnp.float32)[None], (3, 3))
  values = tokens.cross_entropy(logits, jnp.arange(3))
  np.testing.assert_allclose(values, -np.log(q), rtol=1e-6)
  assert float((p * values).sum()) == pytest.approx(0.8869414, abs=1e-6)


def test_against_torch():
  torch = pytest.importorskip('torch')
  logits, targets = normal(0, 4, 7, 13), np.random.default_rng(1).integers(0, 13, (4, 7))
  theirs = torch.tensor(np.asarray(logits), requires_grad=True)
  want = torch.nn.functional.cross_entropy(theirs.reshape(-1, 13), torch.tensor(targets).reshape(-1), reduction='none')
  want.sum().backward()
  values, grad = jax.value_and_grad(lambda x: jnp.sum(tokens.cross_entropy(x, jnp.asarray(targets))))(logits)
  assert values == pytest.approx(float(want.detach().sum()), rel=1e-5)
  np.testing.assert_allclose(tokens.cross_entropy(logits, jnp.asarray(targets)).reshape(-1), want.detach(), rtol=1e-5)
  np.testing.assert_allclose(grad, theirs.grad, rtol=1e-4, atol=1e-6)


def test_float32_from_half_precision_and_far_logits():
  logits = jnp.asarray([[3e4, 0.0, -3e4], [1.0, 2.0, 3.0]], jnp.bfloat16)
  values = tokens.cross_entropy(logits, jnp.asarray([1, 2]))
  assert values.dtype == jnp.float32 and float(values[0]) == pytest.approx(3e4, rel=1e-2)
  assert float(values[1]) == pytest.approx(float(np.log(np.exp([-2, -1, 0]).sum())), rel=1e-5)


def test_minus_infinity_has_finite_gradients():
  logits = jnp.asarray([[INF, 1.0, 2.0], [1.0, INF, 2.0], [INF, INF, INF], [INF, INF, 1.0]])
  targets = jnp.asarray([1, 1, 0, 2])
  values, grad = jax.vmap(jax.value_and_grad(lambda x, t: tokens.cross_entropy(x, t)))(logits, targets)
  np.testing.assert_allclose(values, [np.log1p(np.e), np.inf, np.inf, 0.0], rtol=1e-6)
  assert np.all(np.isfinite(grad))


def test_target_outside_the_vocabulary_is_loud():
  values = tokens.cross_entropy(normal(2, 4, 5), jnp.asarray([0, -1, 5, 4]))
  assert np.isnan(values).tolist() == [False, True, True, False]


def test_per_token_is_the_function_of_the_logits():
  student, teacher, weights = out_of(3), out_of(4, shape=(2, 5, 6)), jnp.ones((2, 5))
  seen = tokens.per_token(divergence.forward_kl, weights, student, teacher)
  want = divergence.forward_kl(student['head'].logits(student['hidden']), teacher['head'].logits(teacher['hidden']))
  np.testing.assert_array_equal(seen, want)
  targets = jnp.asarray(np.random.default_rng(5).integers(0, 11, (2, 5)))
  want = tokens.cross_entropy(student['head'].logits(student['hidden']), targets)
  np.testing.assert_array_equal(tokens.per_token(tokens.cross_entropy, weights, student, targets), want)


def test_several_values_from_one_call():
  student, targets = out_of(3), jnp.zeros((2, 5), jnp.int32)
  both = lambda logits, targets: {'ce': tokens.cross_entropy(logits, targets), 'hit': jnp.argmax(logits, -1) == targets}
  weights = jnp.ones((2, 5)).at[0, 0].set(0.0)
  seen = tokens.per_token(both, weights, student, targets)
  np.testing.assert_array_equal(seen['ce'], tokens.per_token(tokens.cross_entropy, weights, student, targets))
  assert seen['hit'].dtype == jnp.float32 and seen['ce'][0, 0] == 0


@pytest.mark.parametrize('garbage', [0, np.nan, np.inf, 1e30])
def test_weight_zero_hides_everything(garbage):
  """Values and gradients are bitwise those of clean data, whatever stands under weight 0: hidden states, labels, targets."""
  weights = jnp.ones((2, 5)).at[0, 2:].set(0.0).at[1, 0].set(0.0)
  hidden = weights == 0
  ids = jnp.asarray(np.random.default_rng(6).permuted(np.tile(np.arange(11), (2, 5, 1)), axis=-1)[..., :4])
  logps = jnp.log(jnp.full((2, 5, 4), 0.2))
  targets = jnp.asarray(np.random.default_rng(7).integers(0, 11, (2, 5)))

  def function(student_logits, teacher_logits, labels, targets):
    return (tokens.cross_entropy(student_logits, targets) + divergence.jsd(student_logits, teacher_logits, beta=0.3)
            + divergence.top_k_kl(student_logits, labels['ids'], labels['logps']))

  @jax.jit
  def value(params, labels, targets):
    student, teacher = ({'hidden': h, 'head': Head(w)} for h, w in params)
    per_BL = tokens.per_token(function, weights, student, teacher, labels, targets)
    return Mean.of(per_BL, weights).value, per_BL

  clean = [(out['hidden'], out['head'].weight_DV) for out in (out_of(8), out_of(9))]
  dirty = [(jnp.where(hidden[..., None], garbage, h), w) for h, w in clean]
  labels = {'ids': ids, 'logps': logps}
  bad = {'ids': jnp.where(hidden[..., None], 2**31 - 1, ids), 'logps': jnp.where(hidden[..., None], garbage, logps)}
  run = jax.value_and_grad(value, has_aux=True)
  (a, per_a), grads_a = run(clean, labels, targets)
  (b, per_b), grads_b = run(dirty, bad, jnp.where(hidden, -12345, targets))
  assert np.isfinite(a) and a == b and np.all(per_b[hidden] == 0)
  np.testing.assert_array_equal(per_a, per_b)
  for x, y in zip(jax.tree.leaves(grads_a), jax.tree.leaves(grads_b)):
    np.testing.assert_array_equal(x, y)
  assert all(np.all(grads_b[i][0][hidden] == 0) for i in (0, 1))


@pytest.mark.parametrize('widths', [(11, 16), (16, 11), (11, 11)])
def test_vocabularies_of_other_widths(widths):
  """Ids that only one side has count for neither: the result is that of the shared ids, and so is the gradient."""
  student, teacher = out_of(10, vocabulary=widths[0]), out_of(11, vocabulary=widths[1])
  known, weights = min(widths), jnp.ones((2, 5))
  shared = [x['head'].logits(x['hidden'])[..., :known] for x in (student, teacher)]
  for function in (divergence.forward_kl, divergence.reverse_kl, functools.partial(divergence.jsd, beta=0.5)):
    seen = tokens.per_token(function, weights, student, teacher)
    np.testing.assert_allclose(seen, function(*shared), rtol=1e-4, atol=1e-6)

    def total(hidden, head):
      return jnp.sum(tokens.per_token(function, weights, {'hidden': hidden, 'head': head}, teacher))

    grads = jax.tree.leaves(jax.grad(total, (0, 1))(student['hidden'], student['head']))
    assert all(np.all(np.isfinite(g)) for g in grads)
  assert [x.shape[-1] for x in sweep.align(shared + [jnp.zeros((2, 5, 16))])] == [16, 16, 16]


def test_labels_are_not_taken_for_outs():
  """A dict without a head, and a label that is called hidden, go to the function as they are."""
  student, weights = out_of(12), jnp.ones((2, 5))
  label = {'hidden': jnp.full((2, 5, 8), 2.0)}
  seen = tokens.per_token(lambda logits, marks: jnp.sum(marks['hidden'], -1), weights, student, label)
  np.testing.assert_array_equal(seen, jnp.full((2, 5), 16.0))
