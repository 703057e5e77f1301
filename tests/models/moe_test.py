"""Layers of experts: both ways to compute them are the dense formula, nothing is dropped, and unused experts cost nothing."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoder_shapes import EXPERTS

from distill_jax.core import mesh as mesh_lib, tree
from distill_jax.models import moe
from distill_jax.models.transformer import transformer

N, D, F, E = 24, 8, 12, 5


def given(count=N, chosen=2, normed=True, crowd=0.0):
  """x, shares, experts, kernels; crowd: how much the router likes the first expert more."""
  keys = jax.random.split(jax.random.key(0), 5)
  kernels = tuple(jax.random.normal(key, shape) for key, shape in zip(keys, [(E, D, F), (E, D, F), (E, F, D)]))
  logits = jax.random.normal(keys[3], (count, E)) + crowd * (jnp.arange(E) == 0)[None]
  return (jax.random.normal(keys[4], (count, D)), *moe.route(logits, chosen, normed=normed), kernels), logits


def dense(x_ND, shares_NK, experts_NK, kernels, act):
  """Every expert for every token, weighted by its share or by 0."""
  gate, up, down = kernels
  weights_NE = jnp.sum(jax.nn.one_hot(experts_NK, E) * shares_NK[..., None], axis=1)
  inner_ENF = act(jnp.einsum('nd,edf->enf', x_ND, gate)) * jnp.einsum('nd,edf->enf', x_ND, up)
  return jnp.einsum('enf,efd,ne->nd', inner_ENF, down, weights_NE)


@pytest.mark.parametrize('crowd', [0.0, 100.0])
@pytest.mark.parametrize('count, chosen', [(N, 2), pytest.param(1, 1, marks=pytest.mark.slow), (7, 5)])
def test_both_ways_are_the_dense_formula(count, chosen, crowd):
  args, _ = given(count, chosen, crowd=crowd)
  def both(way):
    total = lambda kernels: (jnp.sum((out := way(*args[:3], kernels, jax.nn.silu)) ** 2), out)
    return jax.jit(jax.value_and_grad(total, has_aux=True))(args[3])
  (_, right), gradient = both(dense)
  for way in (moe.few, moe.many):
    (_, found), other = both(way)
    np.testing.assert_allclose(found, right, atol=1e-4, rtol=1e-5)
    for one, two in zip(other, gradient, strict=True):
      np.testing.assert_allclose(one, two, atol=1e-5 * float(jnp.abs(two).max()))


def test_the_kernel_of_other_chips_is_the_same():
  """jax.lax.ragged_dot, what a TPU runs."""
  (x, shares, experts, kernels), _ = given()
  order = jnp.argsort(experts.reshape(-1), stable=True)
  counts = jnp.bincount(experts.reshape(-1), length=E)
  args = jnp.take(x, order // 2, axis=0), jnp.take(experts.reshape(-1), order), counts, kernels, jax.nn.silu
  np.testing.assert_allclose(moe._ragged(*args), moe._blocks(*args), atol=1e-4)


def test_the_router_takes_the_largest_shares_of_a_softmax():
  (_, shares, experts, _), logits = given(normed=False)
  p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  np.testing.assert_array_equal(experts, np.argsort(-p, axis=-1)[:, :2])
  np.testing.assert_allclose(shares, -np.sort(-p, axis=-1)[:, :2], rtol=1e-5)
  np.testing.assert_allclose(given()[0][1].sum(-1), 1.0, rtol=1e-6)


def test_experts_that_are_not_chosen_are_not_computed():
  """All products stand in one loop over blocks of rows; there are as many as the pairs of token and expert need, and one an expert more."""
  args, _ = given(512)
  eqns = jax.make_jaxpr(lambda *args: moe.many(*args, jax.nn.silu))(*args).eqns
  loop, = (eqn for eqn in eqns if eqn.primitive.name == 'scan')
  products = [eqn for eqn in loop.params['jaxpr'].eqns if eqn.primitive.name == 'dot_general']
  rows = loop.params['length'] * products[0].outvars[0].aval.shape[0]
  assert len(products) == 3 and not any(eqn.primitive.name == 'dot_general' for eqn in eqns)
  assert 512 * 2 <= rows <= 512 * 2 + E * moe.BLOCK


def test_experts_lie_on_their_mesh_axis():
  mesh = mesh_lib.make_mesh(dict(fsdp=2, tensor=2, expert=2), devices=jax.devices()[:8])
  model = transformer(**{**EXPERTS, 'vocab_size': 64})
  where = tree.flatten(mesh_lib.of_params(mesh, jax.eval_shape(model.init, jax.random.key(0)), model.axes))
  assert tuple(where['layers/0/mlp/experts/gate/kernel'].spec) == (None, 'expert', 'fsdp', 'tensor')
  assert tuple(where['layers/0/mlp/experts/down/kernel'].spec) == (None, 'expert', 'tensor', 'fsdp')
  assert tuple(where['layers/0/mlp/router/kernel'].spec) == (None, 'fsdp', 'expert')
  assert tuple(where['layers/1/mlp/gate/kernel'].spec) == (None, 'fsdp', 'tensor')
