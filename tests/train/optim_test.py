"""Schedules, what decays, clipping, and settings that are refused."""
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distill_jax.core import tree
from distill_jax.models import MODELS
from distill_jax.train import optim


def rates(at, **keywords):
  rate = optim.optimizer(**keywords).rate
  return [float(rate(jnp.asarray(step))) for step in at]


def test_constant_linear_and_cosine():
  assert rates([0, 50, 99], lr=0.5, steps=100) == [0.5] * 3
  np.testing.assert_allclose(rates([0, 50, 100, 200], lr=0.5, steps=100, decay='linear', final=0.1), [0.5, 0.275, 0.05, 0.05], rtol=1e-6)
  np.testing.assert_allclose(rates([0, 50, 100, 200], lr=0.5, steps=100, decay='cosine'), [0.5, 0.25, 0.0, 0.0], atol=1e-7)


def test_warmup_comes_before_the_decay_and_both_end_at_the_last_step():
  got = rates([0, 5, 10, 55, 100], lr=1.0, steps=100, warmup=10, decay='linear')
  np.testing.assert_allclose(got, [0.0, 0.5, 1.0, 0.5, 0.0], atol=1e-6)


def test_a_run_that_grows_keeps_the_schedule_it_was_given():
  given = dict(lr=1.0, decay='cosine', decay_steps=40)
  assert rates(range(40), steps=40, **given) == rates(range(40), steps=80, **given)
  assert rates([20], lr=1.0, decay='cosine', steps=40) != rates([20], lr=1.0, decay='cosine', steps=80)


@pytest.mark.parametrize('keywords, message', [
    (dict(decay='exponential'), "decay='exponential': one of constant, linear, cosine"),
    (dict(name='lion'), "name='lion': one of adamw, sgd, adafactor"),
])
def test_unknown_names_list_the_known_ones(keywords, message):
  with pytest.raises(ValueError, match=message):
    optim.optimizer(lr=1e-3, steps=10, **keywords)


@pytest.mark.parametrize('shape', [dict(), dict(norm='layer', positions='learned', gated=False, attention_bias=True, mlp_bias=True)])
def test_norms_and_biases_do_not_decay_stacked_or_not(shape):
  model = MODELS['transformer'](vocab_size=8, width=4, layers=3, heads=2, mlp_width=8, max_length=8, pattern=('global', 'global'), **shape)
  params = jax.eval_shape(model.init, jax.random.key(0))
  mask = tree.flatten(optim.decay_mask(params))
  assert mask.keys() == tree.flatten(params).keys()
  assert any(path.startswith('layers/') for path in mask) and any(path.startswith('rest/') for path in mask)
  for path, decays in mask.items():
    assert decays is not path.endswith(('scale', 'bias')), path
  assert mask['embed/tokens'] and mask['layers/0/mlp/up/kernel']


@pytest.mark.parametrize('name', ['adamw', 'adafactor'])
def test_decay_moves_only_what_the_mask_names(name):
  params = {'kernel': jnp.ones((2, 2)), 'scale': jnp.ones(2)}
  transform = optim.optimizer(lr=0.1, steps=10, name=name, weight_decay=0.5).transform
  updates, _ = transform.update(jax.tree.map(jnp.zeros_like, params), transform.init(params), params)
  assert float(jnp.abs(updates['scale']).max()) == 0.0 < float(jnp.abs(updates['kernel']).min())


def test_adamw_is_the_published_one():
  params, grads = {'kernel': jnp.asarray([1.0, -2.0])}, {'kernel': jnp.asarray([0.3, -0.1])}
  transform = optim.optimizer(lr=0.01, steps=10, weight_decay=0.1, b1=0.9, b2=0.95, eps=1e-6, clip=None).transform
  updates, _ = transform.update(grads, transform.init(params), params)
  # after bias correction the first step is g / (|g| + eps), then the decay
  expected = [-0.01 * (g / (abs(g) + 1e-6) + 0.1 * p) for g, p in [(0.3, 1.0), (-0.1, -2.0)]]
  np.testing.assert_allclose(updates['kernel'], expected, rtol=1e-5)


def test_clip_is_by_the_norm_of_all_gradients():
  params = {'a': jnp.zeros(1), 'b': jnp.zeros(1)}
  grads = {'a': jnp.asarray([3.0]), 'b': jnp.asarray([4.0])}
  transform = optim.optimizer(lr=1.0, steps=10, name='sgd', b1=0.0, clip=1.0).transform
  updates, _ = transform.update(grads, transform.init(params), params)
  np.testing.assert_allclose([updates['a'][0], updates['b'][0]], [-0.6, -0.8], rtol=1e-6)
  free = optim.optimizer(lr=1.0, steps=10, name='sgd', b1=0.0, clip=None).transform
  np.testing.assert_allclose(free.update(grads, free.init(params), params)[0]['b'], [-4.0])


def test_moments_counts_what_the_state_holds():
  params = {'kernel': jnp.zeros((3, 4))}
  state = optim.optimizer(lr=1.0, steps=1).transform.init(params)
  assert optim.moments(state) == 2 * 12 + 2       # two moments, two counters
  assert optim.moments(optax.sgd(1.0).init(params)) == 0
