"""Attention against its formula, and the ways that hold no [T, S] array against the one that does."""
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.core import mesh as mesh_lib
from distill_jax.models import attention
from distill_jax.models.transformer import transformer
from distill_jax.models.attention import Sight

B, H, K, T, C = 2, 4, 2, 40, 8


def normal(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


def seen(mask):
  """A Sight of nothing but its mask."""
  return Sight(jnp.ones(mask.shape[:2], jnp.int32), jnp.zeros(mask.shape[:2], jnp.int32), None, (None, None), mask_BTS=jnp.asarray(mask))


@pytest.fixture
def small(monkeypatch):
  """Blocks of 8 queries in groups of few."""
  monkeypatch.setattr(attention, 'BLOCK', 8)
  monkeypatch.setattr(attention, 'GROUPS', 3)


@pytest.mark.parametrize('kv_heads', [1, 2, 4])
def test_attention_is_its_formula(kv_heads):
  q, k, v = np.asarray(normal(0, 2, 4, 5, 8)), np.asarray(normal(1, 2, kv_heads, 6, 8)), np.asarray(normal(2, 2, kv_heads, 6, 8))
  mask = np.asarray(jax.random.bernoulli(jax.random.key(3), 0.6, (2, 5, 6))) | (np.arange(6) == 0)
  bias = np.asarray(normal(4, 4, 5, 6))
  got = attention.attend(*map(jnp.asarray, (q, k, v)), seen(mask), scale=0.3, cap=2.0, bias_HTS=jnp.asarray(bias))
  for b in range(2):
    for h in range(4):
      scores = 2 * np.tanh(q[b, h] @ k[b, h // (4 // kv_heads)].T * 0.3 / 2) + bias[h]
      shares = np.where(mask[b], np.exp(scores), 0)
      np.testing.assert_allclose(got[b, h], shares / shares.sum(-1, keepdims=True) @ v[b, h // (4 // kv_heads)], atol=1e-5)


def test_scores_are_divided_by_the_root_of_the_width():
  q, k, v = (normal(i, 1, 2, 3, 16) for i in range(3))
  sight = seen(jnp.ones((1, 3, 3), bool))
  np.testing.assert_array_equal(attention.attend(q, k, v, sight), attention.attend(q, k, v, sight, scale=0.25))


def test_attention_that_may_see_nothing_is_finite_with_finite_gradients():
  q, k, v = (normal(i, 1, 2, 3, 4) for i in range(3))
  sight = seen(jnp.zeros((1, 3, 3), bool))
  assert np.isfinite(attention.attend(q, k, v, sight)).all()
  for gradient in jax.grad(lambda *x: jnp.sum(attention.attend(*x, sight) ** 2), (0, 1, 2))(q, k, v):
    assert np.isfinite(gradient).all()


def rows(length=T):
  """Packed rows: segments with padding at the end, slots."""
  segments = np.zeros((B, length), np.int32)
  segments[0, :17], segments[0, 17:length - 3] = 1, 2
  segments[1, :length - 9] = 1
  return jnp.asarray(segments), jnp.arange(length, dtype=jnp.int32)


def own(plain, *, window=None, causal=True, length=T):
  segments, slots = rows(length)
  return attention.look(segments, slots[None], slots if causal else None, window=window, plain=plain)


def compare(sights, arrays, *, real, atol=2e-6, **more):
  """Outputs where something stands, and gradients, of two Sights."""
  weight = normal(9, *arrays[0].shape) * real[:, None, :, None]

  def both(sight):
    def total(*x):
      out = attention.attend(*x, sight, **more)
      return jnp.sum(out * weight), out * real[:, None, :, None]
    return jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True))(*arrays)
  ((a, one), grads_a), ((b, two), grads_b) = map(both, sights)
  assert a == pytest.approx(float(b), abs=1e-4)
  np.testing.assert_allclose(one, two, atol=atol)
  for x, y in zip(grads_a, grads_b):
    np.testing.assert_allclose(x, y, atol=5 * atol)


@pytest.mark.parametrize('more', [dict(), dict(window=5), dict(window=23), dict(causal=False), dict(causal=False, window=6), dict(length=37)])
def test_blocks_are_the_whole(small, more):
  length = more.get('length', T)
  arrays = normal(0, B, H, length, C), normal(1, B, K, length, C), normal(2, B, K, length, C)
  whole, blocks = own(1 << 20, **more), own(0, **more)
  assert whole.mask_BTS is not None and blocks.mask_BTS is None
  compare((whole, blocks), arrays, real=whole.segments_BT > 0, cap=3.0, bias_HTS=normal(4, H, length, length))


@pytest.mark.parametrize('quantised', [False, True])
def test_blocks_over_a_cache_are_the_whole(small, quantised):
  """Queries at slots 7 .. of a cache that holds more, after a prefix that all rows share."""
  segments = jnp.where(jnp.arange(60)[None] < jnp.array([[50], [44]]), 1, 0)
  held = dict(segments=segments, positions=jnp.broadcast_to(jnp.arange(60)[None], (B, 60)), shared=dict(segments=jnp.ones((1, 6), jnp.int32), positions=jnp.arange(6)[None]))
  slots = jnp.int32(7) + jnp.arange(T)
  look = functools.partial(attention.look, segments[:, 7:7 + T], jnp.broadcast_to(slots[None], (B, T)), slots, held)
  more = dict(shared=[(normal(5, 1, K, 6, C), normal(6, 1, K, 6, C))])
  if quantised:
    more['scales'] = jnp.abs(normal(7, B, K, 60)), jnp.abs(normal(8, B, K, 60))
  arrays = normal(0, B, H, T, C), normal(1, B, K, 60, C), normal(2, B, K, 60, C)
  for window in (None, 11):
    compare((look(window=window), look(window=window, plain=0)), arrays, real=segments[:, 7:7 + T] > 0, **more)


def test_rows_behind_a_prefix_see_it_as_if_it_were_theirs():
  """Two levels: one prefix for all four rows, one for each two of them, which differ in length."""
  k, v, q = normal(0, 4, K, 9, C), normal(1, 4, K, 9, C), normal(2, 4, H, 1, C)
  outer, inner = (normal(3, 1, K, 3, C), normal(4, 1, K, 3, C)), (normal(5, 2, K, 5, C), normal(6, 2, K, 5, C))
  first, second = jnp.ones((1, 3), jnp.int32), jnp.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
  own = jnp.array([[1] * 9, [1] * 4 + [0] * 5, [1] * 7 + [0] * 2, [1] * 9])
  at = lambda first, segments: first + jnp.cumsum(segments, 1) - 1
  positions = at(jnp.array([[8], [8], [6], [6]]), own)
  held = dict(segments=own, positions=positions, shared=dict(
      segments=second, positions=at(3, second), shared=dict(segments=first, positions=at(0, first), shared=None)))
  together = lambda outer, inner, own, axis: jnp.concatenate([jnp.repeat(outer, 4, 0), jnp.repeat(inner, 2, 0), own], axis)
  whole = dict(segments=together(first, second, own, 1), positions=together(at(0, first), at(3, second), positions, 1))
  for window in (None, 6):
    look = lambda held, slots: attention.look(jnp.ones((4, 1), jnp.int32), positions.max(1, keepdims=True), jnp.array([slots]), held, window=window)
    got = attention.attend(q, k, v, look(held, 8), shared=[outer, inner])
    expected = attention.attend(q, *(together(o, i, x, 2) for o, i, x in zip(outer, inner, (k, v))), look(whole, 16))
    np.testing.assert_allclose(got, expected, atol=2e-6)


def test_a_window_takes_positions_of_the_prefix_into_account():
  held = dict(segments=jnp.ones((1, 4), jnp.int32), positions=6 + jnp.arange(4)[None], shared=dict(segments=jnp.ones((1, 6), jnp.int32), positions=jnp.arange(6)[None]))
  mask = attention.look(jnp.ones((1, 4), jnp.int32), 6 + jnp.arange(4)[None], jnp.arange(4), held, window=3).mask_BTS
  assert [np.flatnonzero(row).tolist() for row in np.asarray(mask[0])] == [[4, 5, 6], [5, 6, 7], [6, 7, 8], [7, 8, 9]]


@pytest.mark.parametrize('heads, kv_heads, window, cap', [(4, 2, None, None), (4, 4, 40, 5.0)])
def test_the_kernel_for_tpu_is_the_whole(heads, kv_heads, window, cap):
  """Interpreted, in bits of 128."""
  whole = own(1 << 20, window=window, length=256)
  arrays = normal(0, B, heads, 256, 64), normal(1, B, kv_heads, 256, 64), normal(2, B, kv_heads, 256, 64)
  real = (whole.segments_BT > 0)[:, None, :, None]
  weight = normal(3, *arrays[0].shape) * real
  kernel = functools.partial(attention._splash, sight=whole, cap=cap, interpret=True)
  plain = functools.partial(attention.attend, sight=whole, scale=1.0, cap=cap)
  arrays = (arrays[0] / 8, *arrays[1:])
  one, two = (jax.jit(jax.value_and_grad(lambda *x: jnp.sum(f(*x) * weight), (0, 1, 2)))(*arrays) for f in (kernel, plain))
  np.testing.assert_allclose(one[0], two[0], rtol=1e-3)
  for x, y in zip(one[1], two[1]):
    np.testing.assert_allclose(x, y, atol=1e-4)


def test_a_mesh_changes_nothing(small):
  """Rows, heads and length over devices, blocks and kernel alike; keys are repeated where there are fewer of them than devices."""
  mesh = mesh_lib.make_mesh(dict(data=2, tensor=4))
  arrays = normal(0, B, H, T, C), normal(1, B, K, T, C), normal(2, B, K, T, C)
  whole, blocks = own(1 << 20, window=9), own(0, window=9)

  def run(rules, sight):
    def loss(*x):
      with mesh_lib.on(mesh, mesh_lib.rules_with(rules)):
        q = mesh_lib.constrain(x[0], 'batch', 'heads', 'length', None)
        return jnp.sum(attention.attend(q, *x[1:], sight) * (whole.segments_BT > 0)[:, None, :, None] ** 2)
    return jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(*arrays)

  expected = run(dict(), whole)
  for rules in (dict(), dict(length='tensor', heads=None)):
    got = run(rules, blocks)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(expected)):
      np.testing.assert_allclose(x, y, rtol=1e-5, atol=2e-5)


def test_the_kernel_runs_on_a_mesh_each_device_its_heads():
  mesh = mesh_lib.make_mesh(dict(data=2, tensor=4))
  whole = own(1 << 20, length=256)
  arrays = normal(0, B, H, 256, 64), normal(1, B, K, 256, 64), normal(2, B, K, 256, 64)

  @jax.jit
  def kernel(*x):
    with mesh_lib.on(mesh):
      return attention._splash(*x, whole, None, interpret=True)

  real = (whole.segments_BT > 0)[:, None, :, None]
  np.testing.assert_allclose(kernel(*arrays) * real, attention.attend(*arrays, whole, scale=1.0) * real, atol=2e-5)


@pytest.mark.parametrize('window', [None, pytest.param(100, marks=pytest.mark.slow)])
def test_long_rows_make_no_array_of_all_pairs(window):
  """In the compiled gradient of a model, forward and backward."""
  length = 2048
  model = transformer(
      vocab_size=32, width=16, layers=2, heads=2, mlp_width=16, max_length=length, pattern=('local',) if window else ('global',), window=window)
  params = jax.eval_shape(model.init, jax.random.key(0))

  def loss(params, tokens):
    return jnp.sum(model.apply(params, dict(tokens=tokens))['hidden'])

  text = jax.jit(jax.grad(loss)).lower(params, jax.ShapeDtypeStruct((1, length), jnp.int32)).compile().as_text()
  shapes = {tuple(map(int, shape.split(','))) for shape in re.findall(r'\[(\d+(?:,\d+)+)\]', text)}
  assert not [shape for shape in shapes if sum(size >= length // 2 for size in shape) > 1]
