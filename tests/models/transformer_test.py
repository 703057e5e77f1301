"""What the decoder promises: packing, padding, the cache, dropout by row, its axes, and that equal keywords are one Model."""
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoder_shapes import ALL, BOTH, EXPERTS, GEMMA, GPT2, GPT_J, LLAMA, MIXED, NEWER

from distill_jax.core import tree
from distill_jax.models import MODELS
from distill_jax.models.transformer import transformer

shapes = pytest.mark.parametrize('shape', BOTH.values(), ids=BOTH)
all_shapes = pytest.mark.parametrize('shape', ALL.values(), ids=ALL)
with_newer = pytest.mark.parametrize('shape', [*ALL.values(), *NEWER.values()], ids=[*ALL, *NEWER])


@functools.lru_cache
def _params(model):
  # biases and scales away from 0 and 1, and weights wide enough that attention is not flat; not drawn by `init`, which takes seconds to compile
  rng = np.random.default_rng(1)
  flat = tree.flatten(jax.eval_shape(model.init, jax.random.key(0)))
  return tree.unflatten({path: jnp.asarray(path.endswith('scale') + 0.1 * rng.standard_normal(leaf.shape), leaf.dtype) for path, leaf in flat.items()})


def tokens(seed, *shape):
  return jax.random.randint(jax.random.key(seed), shape, 0, 61)


@functools.partial(jax.jit, static_argnums=0, static_argnames='want')
def apply(model, params, batch, **how):
  out = model.apply(params, batch, **how)
  return {**out, 'logits': out['head'].logits(out['hidden'])}


def test_equal_keywords_are_one_model_that_jit_takes_as_static():
  model = transformer(**LLAMA)
  assert model is transformer(**LLAMA) is MODELS['transformer'](**dict(model.config)) is transformer(**LLAMA, pattern=['global'])
  assert model is transformer(**json.loads(json.dumps(dict(model.config))))
  assert hash(model) == hash(transformer(**LLAMA)) and model != transformer(**{**LLAMA, 'heads': 2})
  assert model.config['head_dim'] == 8 and model.config['dropout'] == 0.0
  apply(model, _params(model), dict(tokens=tokens(0, 1, 4)))
  before = apply._cache_size()
  apply(transformer(**LLAMA), _params(model), dict(tokens=tokens(1, 1, 4)))
  assert apply._cache_size() == before


@with_newer
def test_every_weight_matches_one_row_of_axes(shape):
  model = transformer(**shape)
  params = _params(model)
  axes = tree.flatten(tree.axes_of(params, model.axes))
  assert set(axes) == set(tree.flatten(params))
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
  assert axes['embed/tokens'] == ('vocab', 'embed') and axes['layers/0/attention/q/kernel'] == ('layer', 'embed', 'heads')


def test_paths_of_weights():
  llama, mixed = (set(tree.flatten(_params(transformer(**shape)))) for shape in (LLAMA, MIXED))
  assert {'embed/tokens', 'norm/scale', 'layers/0/attention/q/kernel', 'layers/0/mlp/gate/kernel'} <= llama
  assert not any('bias' in path or path.startswith(('head', 'rest', 'embed/positions')) for path in llama)
  assert {'head/kernel', 'layers/1/attention/q/kernel', 'rest/0/attention/q/kernel'} <= mixed
  gpt2 = set(tree.flatten(_params(transformer(**GPT2))))
  assert {'embed/positions', 'norm/bias', 'layers/0/attention/o/bias', 'layers/0/mlp/up/bias'} <= gpt2


@shapes
def test_fresh_weights_have_the_stated_spread(shape):
  flat = tree.flatten(transformer(**{**shape, 'width': 64, 'mlp_width': 256}).init(jax.random.key(0)))
  assert np.std(flat['layers/0/attention/q/kernel']) == pytest.approx(0.02, rel=0.05)
  for path in ('attention/o', 'mlp/down'):
    assert np.std(flat[f'layers/0/{path}/kernel']) == pytest.approx(0.02 / np.sqrt(6), rel=0.05)
  assert (flat['norm/scale'] == 1).all()
  assert all((leaf == 0).all() for path, leaf in flat.items() if path.endswith('bias'))
  layers = flat['layers/0/attention/q/kernel']
  assert np.abs(layers[0] - layers[1]).max() > 0.01
  fan_in = tree.flatten(transformer(**{**shape, 'width': 64, 'init': 'fan_in'}).init(jax.random.key(0)))
  assert np.std(fan_in['layers/0/attention/q/kernel']) == pytest.approx(1 / 8, rel=0.05)


@all_shapes
def test_later_tokens_do_not_reach_earlier_ones(shape):
  model = transformer(**shape)
  a = tokens(0, 2, 10)
  b = a.at[:, 6:].set(tokens(1, 2, 4))
  one, two = (apply(model, _params(model), dict(tokens=x))['logits'] for x in (a, b))
  np.testing.assert_allclose(one[:, :6], two[:, :6], atol=5e-5)
  assert np.abs(one[:, 6:] - two[:, 6:]).max() > 1e-2


@with_newer
def test_packed_is_unpacked(shape):
  model = transformer(**shape)
  a, b = tokens(0, 1, 5), tokens(1, 1, 4)
  row = dict(
      tokens=jnp.concatenate([a, b, jnp.array([[10 ** 9, -5]])], 1), segments=jnp.array([[1] * 5 + [2] * 4 + [0] * 2]),
      positions=jnp.array([[*range(5), *range(4), 0, 0]]))
  packed = apply(model, _params(model), row)['logits']
  alone = [apply(model, _params(model), dict(tokens=x))['logits'] for x in (a, b)]
  np.testing.assert_allclose(packed[:, :9], jnp.concatenate(alone, 1), atol=5e-5)


@all_shapes
def test_padding_means_nothing_and_stays_finite(shape):
  model = transformer(**shape)
  segments = jnp.array([[0, 0, 1, 1, 1, 2, 2, 0], [0] * 8])
  positions = jnp.array([[9, 9, 0, 1, 2, 0, 1, 10 ** 6], [-3] * 8])

  def logits(params, garbage):
    batch = dict(tokens=jnp.where(segments > 0, tokens(0, 2, 8), garbage), segments=segments, positions=positions)
    return apply(model, params, batch)['logits']

  one, two = logits(_params(model), -2 ** 31), logits(_params(model), 2 ** 31 - 1)
  assert np.isfinite(one).all()
  np.testing.assert_array_equal(one[segments > 0], two[segments > 0])
  gradients = jax.grad(lambda params: jnp.sum(jnp.where((segments > 0)[..., None], logits(params, -1), 0) ** 2))(_params(model))
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_a_local_layer_sees_its_window():
  model = transformer(**{**LLAMA, 'layers': 1, 'pattern': ('local',), 'window': 3})
  a = tokens(0, 1, 10)
  b = a.at[0, 4].set((a[0, 4] + 1) % 61)
  one, two = (apply(model, _params(model), dict(tokens=x))['logits'][0] for x in (a, b))
  moved = np.abs(one - two).max(-1) > 1e-6
  assert moved.tolist() == [False] * 4 + [True] * 3 + [False] * 3


def test_a_pattern_of_equal_layers_is_no_pattern():
  plain, twice = transformer(**{**LLAMA, 'layers': 5}), transformer(**{**LLAMA, 'layers': 5, 'pattern': ('global', 'global')})
  params = _params(plain)
  block = params['layers']['0']
  params2 = {
      **{name: params[name] for name in ('embed', 'norm')},
      'layers': {str(i): jax.tree.map(lambda leaf: leaf[i:4:2], block) for i in range(2)},
      'rest': {'0': jax.tree.map(lambda leaf: leaf[4], block)}}
  batch, keys = dict(tokens=tokens(0, 2, 7)), jax.random.split(jax.random.key(2), 2)
  plain, twice = (transformer(**{**model.config, 'dropout': 0.2}) for model in (plain, twice))
  one, two = apply(plain, params, batch, key_B=keys, want=('layers',)), apply(twice, params2, batch, key_B=keys, want=('layers',))
  for name in ('logits', 'layers'):
    np.testing.assert_allclose(one[name], two[name], atol=5e-5)


@all_shapes
def test_layers_are_what_leaves_each_block(shape):
  model = transformer(**shape)
  params, batch = _params(model), dict(tokens=tokens(0, 2, 6))
  out = apply(model, params, batch, want=('layers',))
  assert out['layers'].shape == (shape['layers'], 2, 6, 32) and 'layers' not in apply(model, params, batch)
  last = out['layers'][-1]
  last = last - (last.mean(-1, keepdims=True) if shape is GPT2 else 0)
  normed = last / jnp.sqrt(jnp.mean(last ** 2, -1, keepdims=True) + 1e-5) * params['norm']['scale'].reshape(1, 1, -1)
  normed = normed + params['norm']['bias'].reshape(1, 1, -1) if shape is GPT2 else normed
  np.testing.assert_allclose(out['hidden'], normed, atol=1e-4)
  with pytest.raises(ValueError, match='attention.*it has layers'):
    model.apply(params, batch, want=('attention',))


@pytest.mark.parametrize('shape, dtype', [(shape, 'float32') for shape in (ALL | NEWER).values()] + [
    pytest.param(shape, 'bfloat16', marks=pytest.mark.slow) for shape in ALL.values()])
def test_decoding_with_a_cache_is_the_whole_forward(shape, dtype):
  model = transformer(**shape, dtype=dtype)
  params = _params(model)
  text, lengths = tokens(0, 3, 9), [6, 3, 1]      # prompts of 6, 3 and 1 tokens, left padded to 6; then 3 more each
  whole = apply(model, params, dict(tokens=text))['logits']
  segments, positions = np.zeros((3, 6), np.int32), np.zeros((3, 6), np.int32)
  prompts = np.full((3, 6), -9, np.int32)
  for row, length in enumerate(lengths):
    segments[row, 6 - length:], positions[row, 6 - length:] = 1, np.arange(length)
    prompts[row, 6 - length:] = text[row, :length]
  cache = model.cache(3, 11, None)
  assert cache['k'][0].dtype == dtype
  out = apply(model, params, dict(tokens=jnp.asarray(prompts), segments=segments, positions=positions), cache=cache)
  at_most = 1e-4 if dtype == 'float32' else 0.15
  for row, length in enumerate(lengths):
    np.testing.assert_allclose(out['logits'][row, 6 - length:], whole[row, :length], atol=at_most)
  for step in range(3):
    at = jnp.array([[length + step] for length in lengths])
    out = apply(model, params, dict(tokens=jnp.take_along_axis(text, at, 1), positions=at), cache=out['cache'])
    np.testing.assert_allclose(out['logits'], jnp.take_along_axis(whole, at[..., None], 1), atol=at_most)
  assert out['cache']['index'] == 9


@pytest.mark.parametrize('shape, dtype', [(shape, dtype) for dtype in ('float32', 'bfloat16') for shape in ALL.values()] + [
    (EXPERTS, 'float32')])
def test_params_made_ready_for_decoding_are_the_same_network(shape, dtype):
  """Layer by layer and cast once: with a cache and without, and what leaves each block."""
  model = transformer(**shape, dtype=dtype)
  params = _params(model)
  ready = model.ready(params)
  assert 'layers' not in ready and len(ready['rest']) == shape['layers']
  assert all(x.dtype == (dtype if x.ndim > 1 else 'float32') for x in jax.tree.leaves(ready))
  batch = dict(tokens=tokens(0, 2, 7))
  for how in (dict(want=('layers',)), dict(cache=model.cache(2, 9, None))):
    one, two = apply(model, params, batch, **how), apply(model, ready, batch, **how)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
      np.testing.assert_allclose(np.asarray(a, np.float32), np.asarray(b, np.float32), atol=1e-5 if dtype == 'float32' else 0.1)
  again = model.ready(ready)
  assert jax.tree.structure(again) == jax.tree.structure(ready)


def test_a_cache_may_be_of_another_dtype_and_keeps_it():
  model = transformer(**LLAMA)
  text = tokens(0, 2, 5)
  out = apply(model, _params(model), dict(tokens=text), cache=model.cache(2, 8, jnp.bfloat16))
  assert out['cache']['k'][0].dtype == jnp.bfloat16 and out['hidden'].dtype == jnp.float32
  np.testing.assert_allclose(out['logits'], apply(model, _params(model), dict(tokens=text))['logits'], atol=0.1)


@shapes
def test_bfloat16_products_keep_float32_weights(shape):
  exact, short = transformer(**shape), transformer(**shape, dtype='bfloat16')
  one, two = (apply(model, _params(exact), dict(tokens=tokens(0, 2, 8))) for model in (exact, short))
  assert two['hidden'].dtype == jnp.bfloat16 and two['logits'].dtype == jnp.float32
  np.testing.assert_allclose(one['logits'], two['logits'], atol=0.15)
  gradients = jax.grad(lambda params: jnp.sum(apply(short, params, dict(tokens=tokens(0, 2, 8)))['logits']))(_params(exact))
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize('remat', ['full', pytest.param('dots', marks=pytest.mark.slow)])
def test_remat_changes_no_gradient(remat):
  batch, keys = dict(tokens=tokens(0, 2, 8)), jax.random.split(jax.random.key(0), 2)

  def gradients(**how):
    model = transformer(**MIXED, dropout=0.1, **how)
    return jax.jit(jax.grad(lambda params: jnp.sum(apply(model, params, batch, key_B=keys)['logits'] ** 2)))(_params(transformer(**MIXED)))

  for one, two in zip(*map(jax.tree.leaves, (gradients(), gradients(remat=remat)))):
    np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-3 * np.abs(one).max())


@shapes
def test_dropout_of_a_row_does_not_depend_on_the_cut(shape):
  model = transformer(**shape, dropout=0.2)
  params, text, keys = _params(transformer(**shape)), tokens(0, 4, 8), jax.random.split(jax.random.key(0), 4)
  whole = apply(model, params, dict(tokens=text), key_B=keys)['logits']
  halves = [apply(model, params, dict(tokens=text[i::2]), key_B=keys[i::2])['logits'] for i in range(2)]
  np.testing.assert_allclose(whole, jnp.stack(halves, 1).reshape(whole.shape), atol=5e-5)
  again = apply(model, params, dict(tokens=text[:1].repeat(4, 0)), key_B=keys)['logits']
  assert np.abs(again[0] - again[1]).max() > 1e-2       # other keys, other masks
  np.testing.assert_array_equal(
      apply(model, params, dict(tokens=text))['logits'], apply(transformer(**shape), params, dict(tokens=text))['logits'])


@pytest.mark.parametrize('wrong, message', [
    (dict(norm='batch'), "norm='batch'; choose one of rms, layer"),
    (dict(positions='alibi'), 'rope, learned'),
    (dict(activation='elu'), 'silu, gelu_tanh, gelu, relu'),
    (dict(remat='some'), 'none, full, dots'),
    (dict(kv_heads=3), 'kv_heads=3 does not divide heads=4'),
    (dict(head_dim=7), 'head_dim=7 is odd'),
    (dict(rotary=dict(share=0.4)), '3 of head_dim=8 is odd'),
    (dict(rotary=dict(theta=3.0)), "no 'theta'; it takes share, interleaved"),
    (dict(rotary=dict(scaling=dict(kind='yarn'))), "'yarn'; choose one of linear, llama3, longrope"),
    (dict(rotary=dict(scaling=dict(kind='linear', factors=2.0))), "'linear' takes factor, got factors"),
    (dict(rotary=dict(share=0.5), positions='learned'), 'it belongs to rope'),
    (dict(position_offset=2), 'it belongs to learned'),
    (dict(parallel='both'), 'none, one_norm, two_norms'),
    (dict(parallel='one_norm', post_norms=True), 'no block has both'),
    (dict(head_bias=True), 'a tied head has no bias'),
    (dict(mlps=('experts',)), 'experts=None with mlps'),
    (dict(mlps=('sparse',)), 'sparse.*dense or experts'),
    (dict(experts=dict(count=4, chosen=2, width=8, normed=True)), "mlps=.'dense',"),
    (dict(mlps=('experts',), experts=dict(count=4, chosen=2)), 'chosen, count, normed, width'),
    (dict(mlps=('experts',), experts=dict(count=4, chosen=5, width=8, normed=True)), '1 <= chosen <= count'),
    (dict(mlps=('experts',), experts=dict(count=4, chosen=2, width=8, normed=True), mlp_bias=True), 'experts are gated'),
    (dict(pattern=('global', 'far')), 'far.*global or local'),
    (dict(pattern=()), 'at least one'),
    (dict(pattern=('local',)), 'window=None'),
    (dict(window=4), 'window=4'),
    (dict(dropout=1.0), 'dropout=1.0'),
    (dict(layers=0), 'layers=0 must be at least 1'),
    (dict(heads=0), 'heads=0 must be at least 1'),
    (dict(init='zeros'), 'normal, fan_in'),
    (dict(attention_bias='q'), 'True, False, qkv, o'),
])
def test_keywords_that_make_no_model(wrong, message):
  with pytest.raises(ValueError, match=message):
    transformer(**{**LLAMA, **wrong})


@with_newer
def test_a_config_goes_through_json(shape):
  model = transformer(**shape)
  assert model is transformer(**json.loads(json.dumps(dict(model.config)))) and hash(model.config)


def test_what_a_cap_and_a_bias_of_the_head_do():
  model, plain = transformer(**GEMMA), transformer(**{**GEMMA, 'head_cap': None})
  batch = dict(tokens=tokens(0, 2, 7))
  capped, free = (apply(one, _params(model), batch)['logits'] for one in (model, plain))
  np.testing.assert_allclose(capped, 6 * np.tanh(np.asarray(free) / 6), atol=1e-5)
  params = _params(transformer(**GPT_J))
  moved = {**params, 'head': {**params['head'], 'bias': params['head']['bias'] + 1}}
  one, two = (apply(transformer(**GPT_J), each, batch)['logits'] for each in (params, moved))
  np.testing.assert_allclose(one + 1, two, atol=1e-5)


def test_an_unknown_keyword_is_a_type_error():
  with pytest.raises(TypeError, match='n_layers'):
    transformer(**LLAMA, n_layers=3)
