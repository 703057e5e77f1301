"""Adapters as a function Model -> Model: what is computed, what learns, what is merged, what is refused."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.compress import lora as lora_lib
from distill_jax.compress.lora import lora
from distill_jax.core import mesh as mesh_lib, tree
from distill_jax.models import MODELS
from distill_jax.train import optim

MIXED = dict(vocab_size=32, width=16, layers=3, heads=2, kv_heads=1, mlp_width=24, max_length=32, pattern=('local', 'global'), window=3)
BATCH = dict(tokens=np.arange(20).reshape(2, 10) % 32)
SETTINGS = dict(rank=4, alpha=8, targets=('attention/[qv]', 'mlp/down'))


def noisy(model, seed=1):
  rng = np.random.default_rng(seed)
  shapes = tree.flatten(jax.eval_shape(model.init, jax.random.key(0)))
  return tree.unflatten({path: jnp.asarray(0.3 * rng.standard_normal(x.shape) + path.endswith('scale'), jnp.float32) for path, x in shapes.items()})


@functools.partial(jax.jit, static_argnums=0)
def _logits(model, params):
  out = model.apply(params, BATCH)
  return out['head'].logits(out['hidden'])


def logits(model, params):
  return np.asarray(_logits(model, params))


def by_hand(params, scale):
  """Params of the base, merged with numpy in float64."""
  flat = {path: np.asarray(x, np.float64) for path, x in tree.flatten(params).items()}
  out = {path: x for path, x in flat.items() if 'lora' not in path}
  for path in [path for path in flat if path.endswith('lora_a')]:
    place = path.removesuffix('lora_a')
    out[place + 'kernel'] = out[place + 'kernel'] + scale * (flat[path] @ flat[place + 'lora_b'])
  return tree.unflatten({path: jnp.asarray(x, jnp.float32) for path, x in out.items()})


def test_fresh_adapters_change_nothing():
  base, model = MODELS['transformer'](**MIXED), lora(MODELS['transformer'](**MIXED), **SETTINGS)
  params = jax.jit(model.init)(jax.random.key(0))
  own, rest = lora_lib.split(params)
  shapes = {path: x.shape for path, x in tree.flatten(own).items()}
  assert shapes['layers/0/attention/q/lora_a'] == (1, 16, 4) and shapes['rest/0/attention/v/lora_b'] == (4, 8)
  assert len(shapes) == 2 * 3 * 3, 'q, v and down of the two places of the pattern and of the remainder'
  assert min(np.abs(x).max() for path, x in tree.flatten(own).items() if path.endswith('lora_a')) > 0.1
  np.testing.assert_array_equal(logits(model, params), logits(base, rest))


@pytest.mark.parametrize('scaling, scale', [('lora', 8 / 4), ('rslora', 8 / 4 ** 0.5)])
def test_it_is_the_base_with_other_kernels(scaling, scale):
  base, model = MODELS['transformer'](**MIXED), lora(MODELS['transformer'](**MIXED), **SETTINGS, scaling=scaling)
  params = noisy(model)
  told, by_base = logits(model, params), logits(base, by_hand(params, scale))
  assert np.abs(told - logits(base, lora_lib.split(params)[1])).max() > 0.1
  np.testing.assert_allclose(told, by_base, atol=1e-5)
  assert lora_lib.scale_of(model.config) == scale
  np.testing.assert_allclose(logits(base, lora_lib.merge(params, scale)), by_base, atol=1e-5)
  np.testing.assert_allclose(logits(model, model.ready(params)), by_base, atol=1e-5)
  assert not [path for path in tree.flatten(model.ready(params)) if 'lora' in path]


def test_a_narrow_base_is_merged_with_one_rounding():
  model = lora(MODELS['transformer'](**MIXED), **SETTINGS)
  params = noisy(model)
  own, base = lora_lib.split(params)
  params = tree.merge(own, tree.cast(base, 'bfloat16'))
  merged = lora_lib.merge(params, 2.0)
  kernel, exact = merged['layers']['0']['attention']['q']['kernel'], by_hand(params, 2.0)['layers']['0']['attention']['q']['kernel']
  assert kernel.dtype == jnp.float32 and merged['layers']['0']['attention']['k']['kernel'].dtype == jnp.bfloat16
  np.testing.assert_array_equal(kernel.astype(jnp.bfloat16), exact.astype(jnp.bfloat16))
  assert np.isfinite(logits(model, params)).all()


def test_only_adapters_learn_over_a_narrow_base():
  model = lora(MODELS['transformer'](**MIXED), **SETTINGS)
  own, base = lora_lib.split(noisy(model))
  params = tree.merge(own, tree.cast(base, 'bfloat16'))
  learns, stays = tree.split(params, model.trainable)
  assert jax.tree.structure(learns) == jax.tree.structure(own) and {x.dtype for x in jax.tree.leaves(learns)} == {jnp.dtype('float32')}
  assert {x.dtype for x in jax.tree.leaves(stays)} == {jnp.dtype('bfloat16')}
  assert optim.moments(optim.optimizer(lr=1e-3, steps=1).transform.init(learns)) <= 2 * tree.count(own) + 8


def test_adapters_lie_on_the_mesh_as_their_kernels_do():
  model = lora(MODELS['transformer'](**MIXED), **SETTINGS)
  mesh = mesh_lib.make_mesh(dict(fsdp=2, tensor=2), devices=jax.devices()[:4])
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  where = {path: tuple(x.spec) for path, x in tree.flatten(mesh_lib.of_params(mesh, shapes, model.axes)).items()}
  assert where['layers/0/attention/q/lora_a'] == (None, 'fsdp', None) and where['layers/0/attention/q/lora_b'] == (None, None, 'tensor')
  assert where['rest/0/mlp/down/lora_a'] == ('tensor', None) and where['rest/0/mlp/down/lora_b'] == (None, 'fsdp')


def test_the_same_settings_are_the_same_model():
  base = MODELS['transformer'](**MIXED)
  assert lora(base, **SETTINGS) is lora(MODELS['transformer'](**MIXED), **{**SETTINGS, 'targets': list(SETTINGS['targets'])})
  assert hash(lora(base, **SETTINGS)) != hash(lora(base, **{**SETTINGS, 'rank': 2}))
  assert lora(base, rank=2).config['lora'] == dict(rank=2, alpha=2.0, targets=('.*',), scaling='lora')
  assert len(lora_lib.maps(base)) == 3 * 7


@pytest.mark.parametrize('settings, message', [
    (dict(rank=0), 'rank=0 must be at least 1'),
    (dict(rank=2, scaling='sqrt'), "scaling='sqrt'; choose one of lora, rslora"),
    (dict(rank=2, targets=('q_proj',)), "targets 'q_proj'; the maps are attention/k, attention/o, attention/q, attention/v, mlp/down"),
    (dict(rank=2, targets=()), 'leaves nothing to learn'),
])
def test_settings_that_are_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    lora(MODELS['transformer'](**MIXED), **settings)


def test_one_adapter_a_model():
  with pytest.raises(ValueError, match='has an adapter already'):
    lora(lora(MODELS['transformer'](**MIXED), rank=2), rank=2)
