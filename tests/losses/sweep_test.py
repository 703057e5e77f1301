"""The sweep by chunks: values and gradients of the dense formula in float64, on one device and with a sharded vocabulary; what it skips."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.core import mesh as mesh_lib
from distill_jax.core.types import Head
from distill_jax.losses import divergence, tokens

B, L, D, V = 4, 9, 16, 40
WEIGHTS = np.random.default_rng(0).choice(np.asarray([0, 0, 1, 2], np.float32), (B, L))
TARGETS = np.random.default_rng(1).integers(0, V, (B, L)).astype(np.int32)


def normal(seed, *shape):
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def outs():
  """(student, teacher): hidden states, weight and bias as numpy."""
  return [dict(hidden=normal(i, B, L, width), weight=normal(i + 10, width, V), bias=normal(i + 20, V)) for i, width in ((2, D), (3, 2 * D))]


def as_out(x, scale=None, cap=None):
  return {'hidden': x['hidden'], 'head': Head(x['weight'], x['bias'], scale, cap)}


def dense64(student, teacher, *, alpha, temperature, scale, cap):
  """(1 - alpha) cross-entropy + alpha KL(T || S), weighted sum, and its gradient, plainly and in float64."""
  def value(student):
    def logits(x):
      z = jnp.einsum('bld,dv->blv', x['hidden'], x['weight']) + x['bias'].reshape(1, 1, V)
      z = z if scale is None else z * scale
      return z if cap is None else cap * jnp.tanh(z / cap)
    s, t = logits(student), logits(teacher)
    hard = -jnp.take_along_axis(jax.nn.log_softmax(s), TARGETS[..., None], -1)[..., 0]
    ls, lt = jax.nn.log_softmax(s / temperature), jax.nn.log_softmax(t / temperature)
    soft = temperature ** 2 * jnp.sum(jnp.exp(lt) * (lt - ls), -1)
    return jnp.sum(WEIGHTS * ((1 - alpha) * hard + alpha * soft))
  with jax.enable_x64(True):
    wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), (student, teacher))
    student, teacher = wide
    return jax.device_get(jax.value_and_grad(value)(student))


def both(alpha, temperature):
  def function(logits, teacher_logits, targets):
    hard, soft = tokens.cross_entropy(logits, targets), divergence.forward_kl(logits, teacher_logits, temperature=temperature)
    return {'loss': (1 - alpha) * hard + alpha * soft, 'hard': hard}
  return function


def by_means(function, student, teacher, chunk, **head):
  def total(student):
    return tokens.means(function, WEIGHTS, as_out(student, **head), as_out(teacher, **head), TARGETS, chunk=chunk)['loss'].total
  return jax.jit(jax.value_and_grad(total))(student)


def by_per_token(function, student, teacher, chunk, **head):
  def total(student):
    return jnp.sum(WEIGHTS * tokens.per_token(function, WEIGHTS, as_out(student, **head), as_out(teacher, **head), TARGETS, chunk=chunk)['loss'])
  return jax.jit(jax.value_and_grad(total))(student)


def assert_near(got, want, bound=2e-5):
  assert float(got[0]) == pytest.approx(float(want[0]), rel=bound)
  for name, x in want[1].items():
    np.testing.assert_allclose(got[1][name], x, rtol=0, atol=bound * np.abs(x).max(), err_msg=name)


@pytest.mark.parametrize('way', [by_means, by_per_token])
@pytest.mark.parametrize('chunk', [1, 5, 7, 36, None])
@pytest.mark.parametrize('temperature, scale, cap', [(1.0, None, None), (2.0, 0.5, 3.0)])
def test_the_dense_formula_in_float64(way, chunk, temperature, scale, cap):
  """Chunks that do not divide the tokens, temperature, scale and soft cap."""
  student, teacher = outs()
  want = dense64(student, teacher, alpha=0.3, temperature=temperature, scale=scale, cap=cap)
  assert_near(way(both(0.3, temperature), student, teacher, chunk, scale=scale, cap=cap), want)


@pytest.mark.parametrize('way', [by_means, by_per_token])
@pytest.mark.parametrize('sizes', [dict(data=8), dict(data=2, fsdp=2, tensor=2), dict(tensor=8)], ids=str)
def test_sharded_rows_and_vocabulary(way, sizes):
  """Eight devices, the vocabulary cut over 'tensor': the same numbers, and the head's gradient lies as the head does."""
  student, teacher = outs()
  student, teacher = (jax.tree.map(lambda x: np.concatenate([x, x]) if x.ndim == 3 else x, one) for one in (student, teacher))
  weights, targets = np.concatenate([WEIGHTS, WEIGHTS]), np.concatenate([TARGETS, TARGETS])
  mesh, function = mesh_lib.make_mesh(sizes), both(0.3, 1.0)
  lay = lambda axes: jax.sharding.NamedSharding(mesh, mesh_lib.spec(axes))
  where = dict(hidden=lay(('batch', None, None)), weight=lay(('embed', 'vocab')), bias=lay(('vocab',)))

  @functools.partial(jax.jit, static_argnums=2)
  def run(student, teacher, mesh):
    def total(student):
      with mesh_lib.on(mesh):
        if way is by_means:
          return tokens.means(function, weights, as_out(student), as_out(teacher), targets, chunk=3)['loss'].total
        return jnp.sum(weights * tokens.per_token(function, weights, as_out(student), as_out(teacher), targets, chunk=3)['loss'])
    return jax.value_and_grad(total)(student)

  want = run(student, teacher, None)
  got = run(jax.device_put(student, where), jax.device_put(teacher, where), mesh)
  assert_near(got, jax.device_get(want))


def test_per_token_is_linear_in_any_cotangent():
  """Several values, each with weights of its own in the objective."""
  student, teacher = outs()
  mix = normal(30, 2, B, L)

  def objective(student, chunk):
    found = tokens.per_token(both(0.5, 1.0), WEIGHTS, as_out(student), as_out(teacher), TARGETS, chunk=chunk)
    return jnp.sum(mix[0] * found['loss'] + mix[1] * found['hard'])
  whole, cut = (jax.jit(jax.grad(objective), static_argnums=1)(student, chunk) for chunk in (B * L, 4))
  for name in whole:
    np.testing.assert_allclose(cut[name], whole[name], atol=2e-5 * np.abs(whole[name]).max(), rtol=0)


def test_gradients_reach_every_head_of_per_token_and_only_the_students_of_means():
  student, teacher = outs()
  def objective(way, pair):
    found = way(both(0.5, 1.0), WEIGHTS, as_out(pair[0]), as_out(pair[1]), TARGETS, chunk=4)
    return found['loss'].total if way is tokens.means else jnp.sum(WEIGHTS * found['loss'])
  several, single = (jax.jit(jax.grad(functools.partial(objective, way)))((student, teacher)) for way in (tokens.per_token, tokens.means))
  assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(several))
  assert all(np.all(x == 0) for x in jax.tree.leaves(single[1])) and all(np.abs(x).max() > 0 for x in jax.tree.leaves(single[0]))
  np.testing.assert_allclose(single[0]['weight'], several[0]['weight'], rtol=0, atol=2e-5 * np.abs(several[0]['weight']).max())


@pytest.mark.parametrize('chunk', [5, 36])
def test_what_stands_under_weight_zero_changes_nothing(chunk):
  student, teacher = outs()
  bare = WEIGHTS == 0
  dirty = [{**x, 'hidden': np.where(bare[..., None], np.nan, x['hidden'])} for x in (student, teacher)]
  for way in (by_means, by_per_token):
    clean, hidden = way(both(0.3, 1.0), student, teacher, chunk), way(both(0.3, 1.0), *dirty, chunk)
    jax.tree.map(np.testing.assert_array_equal, clean, hidden)
    assert np.all(hidden[1]['hidden'][bare] == 0)


def test_a_batch_without_weight_is_nothing():
  student, teacher = outs()
  found = tokens.means(both(0.3, 1.0), np.zeros((B, L), np.float32), as_out(student), as_out(teacher), TARGETS, chunk=4)
  assert float(found['loss'].total) == 0 and float(found['loss'].weight) == 0


def test_chunks_without_weight_are_not_computed():
  """Counted by a host callback in the function: 12 of 36 tokens have a weight, chunks hold 6."""
  weights = np.zeros(B * L, np.float32)
  weights[np.random.default_rng(5).permutation(B * L)[:12]] = 1.0
  student, teacher = outs()
  seen = []

  def function(logits, targets):
    jax.debug.callback(lambda x: seen.append(1), logits[0, 0, 0])
    return {'loss': tokens.cross_entropy(logits, targets)}
  jax.block_until_ready(jax.jit(lambda: tokens.means(function, weights.reshape(B, L), as_out(student), TARGETS, chunk=6))())
  jax.effects_barrier()
  assert len(seen) == 2


def test_no_array_of_all_logits_is_held():
  """The largest buffer of the compiled gradient is a chunk of logits or the head's gradient, and does not grow with the tokens."""
  def temporaries(length):
    hidden = jax.ShapeDtypeStruct((1, length, 32), jnp.float32)
    weight = jax.ShapeDtypeStruct((32, 4096), jnp.float32)

    def total(hidden, weight):
      out = {'hidden': hidden, 'head': Head(weight)}
      told = jax.lax.stop_gradient({'hidden': hidden * 2, 'head': Head(weight)})
      return tokens.means(both(0.5, 1.0), jnp.ones((1, length)), out, told, jnp.zeros((1, length), jnp.int32), chunk=128)['loss'].total
    return jax.jit(jax.grad(total, (0, 1))).lower(hidden, weight).compile().memory_analysis().temp_size_in_bytes
  short, long = temporaries(512), temporaries(4096)
  assert long < 4096 * 4096 * 4 / 6 and long - short < 3584 * 4096 * 4 / 8


def test_values_of_other_shapes_and_kinds():
  """Integers and further axes, as the label stage asks for them."""
  student, _ = outs()
  top = lambda logits: jax.lax.top_k(logits, 3)
  values, ids = tokens.per_token(top, np.ones((B, L), np.float32), as_out(student), chunk=5)
  want, want_ids = jax.lax.top_k(as_out(student)['head'].logits(student['hidden']), 3)
  assert ids.dtype == jnp.int32 and np.array_equal(ids, want_ids)
  np.testing.assert_allclose(values, want, rtol=1e-5)
