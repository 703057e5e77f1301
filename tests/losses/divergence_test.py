"""Divergences: hand values, torch, formulas of the papers in float64, laws, -inf on any side."""
import functools
import math

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies

from distill_jax.losses.divergence import forward_kl, jsd, reverse_kl, skew_kl

INF = -np.inf
P, Q = np.array([0.7, 0.2, 0.1]), np.array([0.5, 0.3, 0.2])      # teacher, student
ALL = dict(
    forward=forward_kl, reverse=reverse_kl, jsd_half=functools.partial(jsd, beta=0.5), jsd_low=functools.partial(jsd, beta=0.1),
    jsd_high=functools.partial(jsd, beta=0.9), skew=functools.partial(skew_kl, skew=0.1))
JITTED = {name: jax.jit(function, static_argnames='temperature') for name, function in ALL.items()}
each = pytest.mark.parametrize('name', list(ALL))


def log(p):
  with np.errstate(divide='ignore'):
    return jnp.asarray(np.log(p), jnp.float32)


def softmax64(x):
  x = np.asarray(x, np.float64)
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def kl64(p, q):
  with np.errstate(divide='ignore', invalid='ignore'):
    return np.where(p > 0, p * (np.log(p) - np.log(q)), 0.0).sum(-1)


def reference(name, student, teacher, temperature=1.0):
  """The papers' formulas in float64."""
  s, t = softmax64(np.asarray(student, np.float64) / temperature), softmax64(np.asarray(teacher, np.float64) / temperature)
  if name == 'forward':
    value = kl64(t, s)
  elif name == 'reverse':
    value = kl64(s, t)
  elif name == 'skew':
    value = kl64(t, 0.1 * t + 0.9 * s)
  else:
    beta = dict(jsd_half=0.5, jsd_low=0.1, jsd_high=0.9)[name]
    m = beta * t + (1 - beta) * s
    value = beta * kl64(t, m) + (1 - beta) * kl64(s, m)
  return value * temperature ** 2


def random_pair(seed, shape=(6, 50), scale=3.0):
  return tuple(scale * jax.random.normal(key, shape) for key in jax.random.split(jax.random.key(seed)))


def gradients(function, student, teacher):
  """Of the sum, with respect to (student, teacher); inf + inf in the sum does not matter to it."""
  return jax.jit(jax.grad(lambda s, t: jnp.sum(function(s, t)), (0, 1)))(student, teacher)


def test_hand_values():
  assert forward_kl(log(Q), log(P)) == pytest.approx(0.0851228, abs=1e-6)
  assert reverse_kl(log(Q), log(P)) == pytest.approx(0.5 * math.log(5 / 7) + 0.3 * math.log(1.5) + 0.2 * math.log(2), abs=1e-6)
  m = (P + Q) / 2
  assert jsd(log(Q), log(P), beta=0.5) == pytest.approx(0.5 * kl64(P, m) + 0.5 * kl64(Q, m), abs=1e-6)
  assert skew_kl(log(Q), log(P), skew=0.1) == pytest.approx(kl64(P, 0.1 * P + 0.9 * Q), abs=1e-6)
  # constants under any shift of the logits: a distribution, not a vector
  assert forward_kl(log(Q) + 7.0, log(P) - 3.0) == pytest.approx(0.0851228, abs=2e-6)
  np.testing.assert_allclose(gradients(forward_kl, log(P) + 7.0, log(P))[0], 0.0, atol=1e-6)      # nothing to learn from oneself, shifted


@each
@pytest.mark.parametrize('temperature', [1.0, 2.5])
def test_formula_of_the_paper(name, temperature):
  student, teacher = random_pair(0)
  got = JITTED[name](student, teacher, temperature=temperature)
  assert got.dtype == jnp.float32 and got.shape == (6,)
  np.testing.assert_allclose(got, reference(name, student, teacher, temperature), rtol=2e-5, atol=1e-6)


@each
def test_gradient_against_float64_differences(name):
  student, teacher = (np.asarray(x, np.float64) for x in random_pair(1, shape=(9,), scale=1.5))
  got = gradients(functools.partial(ALL[name], temperature=2.0), jnp.asarray(student, jnp.float32), jnp.asarray(teacher, jnp.float32))
  for side, grad in enumerate(got):
    for i in range(9):
      ends = []
      for step in (1e-5, -1e-5):
        pair = [student.copy(), teacher.copy()]
        pair[side][i] += step
        ends.append(reference(name, *pair, temperature=2.0))
      assert grad[i] == pytest.approx((ends[0] - ends[1]) / 2e-5, abs=2e-5)


@each
@hypothesis.settings(max_examples=25, deadline=None, derandomize=True)
@hypothesis.given(seed=strategies.integers(0, 2**31 - 1), scale=strategies.sampled_from([0.01, 1.0, 10.0, 60.0]))
def test_never_negative_and_blind_to_shifts(name, seed, scale):
  student, teacher = np.float32(scale) * np.random.default_rng(seed).standard_normal((2, 3, 17)).astype(np.float32)
  value = JITTED[name](student, teacher)
  assert np.all(np.isfinite(value)) and np.all(value >= -1e-6)
  shifted = JITTED[name](student + np.float32(5), teacher - np.float32(5))
  np.testing.assert_allclose(value, shifted, rtol=1e-3, atol=1e-4 * max(1.0, scale / 10))


@each
def test_nothing_at_equality(name):
  logits, _ = random_pair(2, shape=(4, 1000))
  logits = logits.at[:, ::7].set(INF)
  function = functools.partial(ALL[name], temperature=1.5)
  value, grads = jax.jit(function)(logits, logits), jax.jit(functools.partial(gradients, function))(logits, logits)
  assert np.all(value == 0.0)
  rounding = np.spacing(jax.nn.softmax(logits / 1.5), dtype=np.float32)
  assert all(np.all(np.abs(g) <= 4 * rounding) for g in grads)


@each
def test_temperature_squared_keeps_the_size_of_gradients(name):
  student, teacher = random_pair(3, scale=0.5)
  plain = ALL[name](student, teacher)
  np.testing.assert_allclose(ALL[name](student * 4, teacher * 4, temperature=4.0), 16 * plain, rtol=1e-4)
  hot, hotter = (np.linalg.norm(gradients(functools.partial(ALL[name], temperature=t), student, teacher)[0]) for t in (50.0, 100.0))
  assert hot == pytest.approx(hotter, rel=0.05)


@each
def test_half_precision_logits_are_computed_in_float32(name):
  student, teacher = (x.astype(jnp.bfloat16) for x in random_pair(4))
  got = ALL[name](student, teacher)
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, reference(name, student.astype(jnp.float32), teacher.astype(jnp.float32)), rtol=2e-5, atol=1e-6)


PATTERNS = {      # student, teacher
    'student': ([1.0, INF, 0.5, 2.0], [0.3, 1.0, 0.2, 0.1]),
    'teacher': ([0.3, 1.0, 0.2, 0.1], [1.0, INF, 0.5, 2.0]),
    'both': ([0.3, INF, 0.2, 0.1], [1.0, INF, 0.5, 2.0]),
    'different': ([0.3, INF, 0.2, 0.1], [1.0, 0.4, INF, 2.0]),
    'disjoint': ([INF, INF, 0.2, 0.1], [1.0, 0.4, INF, INF]),
    'one left': ([INF, INF, INF, 0.1], [INF, INF, INF, 3.0]),
    'huge': ([-1e38, 0.0, 1.0, 2.0], [3e4, -3e4, 0.0, -1e38]),
    'student all': ([INF] * 4, [1.0, 0.4, 0.3, 2.0]),
    'teacher all': ([1.0, 0.4, 0.3, 2.0], [INF] * 4),
    'all': ([INF] * 4, [INF] * 4),
}


@each
@pytest.mark.parametrize('temperature', [0.5, 3.0])
def test_minus_infinity(name, temperature):
  students, teachers = (jnp.asarray([rows[i] for rows in PATTERNS.values()], jnp.float32) for i in (0, 1))
  values = JITTED[name](students, teachers, temperature=temperature)
  grads = gradients(functools.partial(ALL[name], temperature=temperature), students, teachers)
  for side, grad in zip((students, teachers), grads):
    assert np.all(np.isfinite(grad)) and np.all(grad[side == INF] == 0)
  for row, (pattern, value) in enumerate(zip(PATTERNS, values)):
    if 'all' in pattern:
      assert value == 0 and all(np.all(g[row] == 0) for g in grads), pattern
    elif pattern == 'huge':
      assert not np.isnan(value)
    else:
      with np.errstate(divide='ignore', invalid='ignore'):
        want = float(reference(name, students[row], teachers[row], temperature))
      assert value == pytest.approx(want, rel=1e-5, abs=1e-6), pattern


def test_infinite_only_where_kl_is():
  student, teacher = (jnp.asarray(x, jnp.float32) for x in PATTERNS['student'])
  assert forward_kl(student, teacher) == np.inf and np.isfinite(reverse_kl(student, teacher))
  assert np.isfinite(jsd(student, teacher, beta=0.5)) and np.isfinite(skew_kl(student, teacher, skew=0.1))
  # what is left of the gradient pushes the ids both can reach towards the teacher
  grad = gradients(forward_kl, student, teacher)[0]
  assert grad[1] == 0 and np.max(np.abs(grad)) > 0.01


def test_padded_vocabulary_changes_nothing():
  student, teacher = random_pair(5)
  wide = [jnp.pad(x, ((0, 0), (0, 14)), constant_values=INF) for x in (student, teacher)]
  for function in ALL.values():
    np.testing.assert_allclose(function(*wide), function(student, teacher), rtol=1e-5, atol=1e-7)


def test_nan_is_not_hidden():
  student, teacher = random_pair(6)
  for function in ALL.values():
    assert np.isnan(function(student.at[0, 0].set(np.nan), teacher)[0])


def test_jsd_ends_and_symmetry():
  student, teacher = random_pair(7)
  np.testing.assert_allclose(jsd(student, teacher, beta=0.5), jsd(teacher, student, beta=0.5), rtol=1e-4)
  np.testing.assert_allclose(jsd(student, teacher, beta=0.3), jsd(teacher, student, beta=0.7), rtol=1e-4)
  assert np.all(jsd(student, teacher, beta=0.5) <= math.log(2) + 1e-6)
  np.testing.assert_allclose(jsd(student, teacher, beta=1e-4) / 1e-4, forward_kl(student, teacher), rtol=0.1)
  student, teacher = random_pair(7, scale=1.0)
  np.testing.assert_allclose(jsd(student, teacher, beta=1 - 1e-3) / 1e-3, reverse_kl(student, teacher), rtol=0.02)
  for bad in (0.0, 1.0, -0.1):
    with pytest.raises(ValueError, match='strictly between'):
      jsd(student, teacher, beta=bad)
    with pytest.raises(ValueError, match='skew 0 is forward_kl'):
      skew_kl(student, teacher, skew=bad)
  with pytest.raises(ValueError, match='temperature'):
    forward_kl(student, teacher, temperature=0.0)


def test_skew_is_bounded():
  student, teacher = jnp.asarray([[100.0, 0.0]]), jnp.asarray([[0.0, 100.0]])
  assert skew_kl(student, teacher, skew=0.1)[0] == pytest.approx(-math.log(0.1), rel=1e-5)


@pytest.mark.parametrize('temperature', [1.0, 2.0])
def test_against_torch(temperature):
  torch = pytest.importorskip('torch')
  student, teacher = random_pair(8)
  s = torch.tensor(np.asarray(student), requires_grad=True)
  t = torch.tensor(np.asarray(teacher))
  want = torch.nn.functional.kl_div(
      torch.log_softmax(s / temperature, -1), torch.log_softmax(t / temperature, -1), log_target=True, reduction='none').sum(-1)
  (want * temperature ** 2).sum().backward()
  np.testing.assert_allclose(forward_kl(student, teacher, temperature=temperature), want.detach() * temperature ** 2, rtol=1e-5)
  grad = gradients(functools.partial(forward_kl, temperature=temperature), student, teacher)[0]
  np.testing.assert_allclose(grad, s.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('beta', [0.1, 0.5, 0.8])
def test_against_trl(beta):
  trl = pytest.importorskip('trl')
  torch = pytest.importorskip('torch')
  trainer = getattr(trl, 'GKDTrainer', None) or pytest.importorskip('trl.experimental.gkd').GKDTrainer
  student, teacher = random_pair(9, shape=(2, 3, 11))
  want = trainer.generalized_jsd_loss(torch.tensor(np.asarray(student)), torch.tensor(np.asarray(teacher)), beta=beta, reduction='sum')
  np.testing.assert_allclose(jnp.sum(jsd(student, teacher, beta=beta)), want, rtol=1e-5)
