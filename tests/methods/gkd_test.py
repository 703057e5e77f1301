"""Generalised KD against torch and TRL on the same tensors; its rollouts inside the real loop; settings that are refused."""
import examples
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.core import mesh as mesh_lib
from distill_jax.core.types import Head, Model, Role, State
from distill_jax.data import feed
from distill_jax.methods import METHODS

B, L, V = 3, 5, 11
RNG = np.random.default_rng(0)
LOGITS = {name: 2 * RNG.normal(size=(B, L, V)).astype(np.float32) for name in ('student', 'teacher')}
BATCH = dict(tokens=RNG.integers(0, V, (B, L)).astype(np.int32), targets=RNG.integers(0, V, (B, L)).astype(np.int32),
             segments=np.ones((B, L), np.int32), weights=np.asarray([[0, 1, 1, 1, 1], [0, 0, 1, 1, 0], [1, 0, 0, 0, 0]], np.float32),
             row=np.zeros((B, 2), np.uint32))


def given():
  """A model whose params are its logits."""
  def apply(params, batch, *, key_B=None, **_):
    return {'hidden': params['logits'], 'head': Head(jnp.eye(V))}
  return Role(Model(None, apply, (), None))


def measured(beta, temperature):
  """(loss, its gradient by the student's logits)."""
  method = METHODS['gkd']({'student': given(), 'teacher': given()}, beta=beta, temperature=temperature, on_policy=0.0)
  def loss(student):
    params = {'student': {'logits': student}, 'teacher': {'logits': LOGITS['teacher']}}
    return method.loss(params, {**BATCH, 'label': method.label(params, BATCH, None)}, None)[0]['divergence'].value
  value, grad = jax.jit(jax.value_and_grad(loss))(LOGITS['student'])
  return float(value), np.asarray(grad)


def torch_loss(student, teacher, beta, temperature):
  """Equation 1 of the paper, in float64, over tokens that count."""
  import torch
  s, t = (torch.softmax(x.double() / temperature, -1) for x in (student, teacher))
  kl = lambda p, q: (p * (p / q).log()).sum(-1)
  m = beta * t + (1 - beta) * s
  each = kl(t, s) if beta == 0 else kl(s, t) if beta == 1 else beta * kl(t, m) + (1 - beta) * kl(s, m)
  return each[torch.tensor(BATCH['weights'] > 0)].mean()


def trl_loss(student, teacher, beta, temperature):
  import torch
  gkd = pytest.importorskip('trl.experimental.gkd', reason='trl is not installed: the same numbers are checked against torch above')
  labels = torch.tensor(np.where(BATCH['weights'] > 0, BATCH['targets'], -100))
  return gkd.GKDTrainer.generalized_jsd_loss(student, teacher, labels=labels, beta=beta, temperature=temperature)


@pytest.mark.parametrize('theirs', [torch_loss, trl_loss])
@pytest.mark.parametrize('beta, temperature', [(0, 1.0), (0.5, 1.0), (1, 1.0), (0.1, 2.0), (0.9, 1.0), (1, 2.0)])
def test_loss_and_gradient_are_those_of(theirs, beta, temperature):
  """Both ends and the inside; ours has the factor temperature ** 2, which they lack."""
  import torch
  student, teacher = (torch.tensor(LOGITS[name]) for name in ('student', 'teacher'))
  student.requires_grad_(True)
  expected = theirs(student, teacher, beta, temperature) * temperature ** 2
  expected.backward()
  value, grad = measured(beta, temperature)
  assert value == pytest.approx(float(expected.detach()), rel=2e-5)
  np.testing.assert_allclose(grad, student.grad.numpy(), rtol=1e-4, atol=1e-6)


def test_ends_are_the_limits_of_the_inside_per_beta():
  """jsd / beta -> forward_kl, jsd / (1 - beta) -> reverse_kl; the value itself jumps at the ends, as TRL's does."""
  assert measured(1e-4, 1.0)[0] / 1e-4 == pytest.approx(measured(0, 1.0)[0], rel=2e-2)
  assert measured(1 - 1e-4, 1.0)[0] / 1e-4 == pytest.approx(measured(1, 1.0)[0], rel=2e-2)


@pytest.mark.parametrize('keywords, message', [
    (dict(beta=1.5), r'beta=1.5 must lie in \[0, 1\]: 0 is forward_kl, 1 is reverse_kl'),
    (dict(beta=-0.1), 'beta=-0.1'),
    (dict(on_policy=1.2), 'on_policy=1.2 is the share of rows'),
    (dict(on_policy=-1), 'on_policy=-1 is the share'),
    (dict(max_new_tokens=0), 'max_new_tokens=0 must be at least 1'),
])
def test_settings_that_are_refused(keywords, message):
  with pytest.raises(ValueError, match=message):
    METHODS['gkd']({'student': given(), 'teacher': given()}, **keywords)


def test_the_teacher_must_be_there():
  with pytest.raises(ValueError, match='name a teacher in roles'):
    METHODS['gkd']({'student': given()})


def rolled(one, batch, devices=2, step=3):
  mesh = mesh_lib.make_mesh({'data': -1}, devices=jax.devices()[:devices])
  params = jax.device_put(one.params, mesh_lib.replicated(mesh))
  state = State(jnp.zeros((), jnp.int32), {'student': params['student']}, {}, {'kept': 1})
  return one.method.rollout(state, {'teacher': params['teacher']}, feed.put(dict(batch), mesh), jax.random.fold_in(jax.random.key(0), step))


def test_a_share_of_rows_is_written_and_labels_are_dropped():
  one = examples.example('gkd', jax.random.key(3), on_policy=0.5)
  stale = {'hidden': np.zeros((examples.ROWS, examples.LENGTH, examples.WIDTH), np.float32)}
  rows, memory = rolled(one, {**one.batch, 'label': stale})
  assert memory == {'kept': 1} and 'label' not in rows and set(rows) == {*one.batch, 'wrote', 'ended'}
  wrote = np.asarray(rows['wrote'][:, 0]) > 0
  assert 3 <= wrote.sum() <= 13 and rows['tokens'].sharding.is_equivalent_to(rows['row'].sharding, 2)
  same = (np.asarray(rows['targets']) == one.batch['targets']).all(1)
  assert same[~wrote].all() and not same[wrote].all()
  later, _ = rolled(one, one.batch, step=4)
  assert (np.asarray(later['wrote']) != np.asarray(rows['wrote'])).any(), 'another step draws other rows'


def test_without_a_share_the_data_stay_and_may_be_packed_and_labelled_early():
  one = examples.example('gkd', jax.random.key(3), on_policy=0.0)
  rows, _ = rolled(one, one.batch)
  assert one.method.early and set(rows) == set(one.batch)
  np.testing.assert_array_equal(rows['tokens'], one.batch['tokens'])
  assert not examples.example('gkd', jax.random.key(3)).method.early


def test_packed_rows_are_refused_before_a_step():
  one = examples.example('gkd', jax.random.key(3))
  with pytest.raises(ValueError, match='gkd: rollouts continue one prompt a row.*pack=False'):
    rolled(one, examples.packed_batch(jax.random.key(3))[1])
