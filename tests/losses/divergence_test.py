"""Divergences: hand values, torch, formulas of the papers in float64, laws, -inf on any side."""
import functools
import math

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies

from distill_jax.losses import divergence
from distill_jax.losses.divergence import forward_kl, jsd, reverse_kl, skew_kl, top_k_kl

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


# --- top-k with a rest class

def keep(teacher, k, temperature=1.0):
  logps, ids = jax.lax.top_k(jax.nn.log_softmax(teacher / temperature), k)
  return ids, logps


def test_rest_class_example():
  """99 % of the student's mass lies outside the teacher's top 2: renormalised targets see nothing, the rest class nearly all."""
  teacher, student = np.full(10, 0.05 / 8), np.full(10, 0.99 / 8)
  teacher[:2], student[:2] = [0.65, 0.30], np.array([0.65, 0.30]) / 0.95 * 0.01
  ids, logps = keep(log(teacher), 2)
  renormalised = kl64(teacher[:2] / 0.95, student[:2] / 0.01)
  assert renormalised == pytest.approx(0.0, abs=1e-6)
  true = kl64(teacher, student)
  got = float(top_k_kl(log(student), ids, logps))
  assert true == pytest.approx(float(forward_kl(log(student), log(teacher))), rel=1e-5)
  assert got > 3.0 and got <= true + 1e-6


def test_rest_class_numbers():
  """Teacher .6 .3 on its top 2 and a tail of .1; student 1 % on the two in the same ratio and a flat rest."""
  teacher = np.concatenate([[0.6, 0.3], np.full(8, 0.1 / 8)])
  student = np.concatenate([np.array([2 / 3, 1 / 3]) * 0.01, np.full(8, 0.99 / 8)])
  ids, logps = keep(log(teacher), 2)
  want = 0.9 * math.log(90) + 0.1 * math.log(0.1 / 0.99)
  assert float(top_k_kl(log(student), ids, logps)) == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize('temperature', [1.0, 2.0])
def test_top_k_is_the_kl_of_k_plus_one_classes(temperature):
  student, teacher = random_pair(10)
  ids, logps = keep(teacher, 5, temperature)
  t, s = softmax64(teacher / temperature), softmax64(student / temperature)
  pick = lambda p: np.take_along_axis(p, np.asarray(ids), -1)
  t, s = (np.concatenate([pick(p), 1 - pick(p).sum(-1, keepdims=True)], -1) for p in (t, s))
  got = top_k_kl(student, ids, logps, temperature=temperature)
  np.testing.assert_allclose(got, kl64(t, s) * temperature ** 2, rtol=1e-4, atol=1e-6)
  assert np.all(got <= forward_kl(student, teacher, temperature=temperature) + 1e-5)


def test_top_k_of_everything_is_forward_kl():
  student, teacher = random_pair(11)
  ids, logps = keep(teacher, 50)
  function = lambda s: jnp.sum(top_k_kl(s, ids, logps))
  np.testing.assert_allclose(top_k_kl(student, ids, logps), forward_kl(student, teacher), rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(jax.grad(function)(student), gradients(forward_kl, student, teacher)[0], rtol=1e-4, atol=1e-6)


def test_top_k_nothing_at_equality():
  logits, _ = random_pair(12)
  for k in (1, 5, 50):
    ids, logps = keep(logits, k)
    value, grad = jax.value_and_grad(lambda s: jnp.sum(top_k_kl(s, ids, logps)))(logits)
    assert abs(float(value)) < 1e-6 and np.max(np.abs(grad)) < 1e-6


def test_top_k_gradient_against_float64_differences():
  student, teacher = random_pair(13, shape=(8,), scale=1.0)
  ids, logps = keep(teacher, 3)
  grad = jax.grad(lambda s: top_k_kl(s, ids, logps))(student)
  t3 = np.exp(np.asarray(logps, np.float64))
  t = np.append(t3, 1 - t3.sum())

  def value(x):
    s3 = softmax64(x)[np.asarray(ids)]
    return kl64(t, np.append(s3, 1 - s3.sum()))

  for i in range(8):
    step = 1e-5 * np.eye(8)[i]
    x = np.asarray(student, np.float64)
    assert grad[i] == pytest.approx((value(x + step) - value(x - step)) / 2e-5, abs=1e-5)


def test_top_k_small_rest_mass_has_digits():
  """The student's rest mass is 1e-9: 1 - sum in float32 would say 0."""
  student = jnp.asarray([20.8, 20.0] + [0.0] * 4, jnp.float32)
  teacher = jnp.asarray([2.0, 1.0] + [0.0] * 4, jnp.float32)
  ids, logps = keep(teacher, 2)
  s, t = softmax64(student), softmax64(teacher)
  want = kl64(np.append(t[:2], t[2:].sum()), np.append(s[:2], s[2:].sum()))
  assert float(top_k_kl(student, ids, logps)) == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize('absent', [-1, 50, 2**31 - 1, -2**31])
def test_absent_entries_go_to_the_rest(absent):
  student, teacher = random_pair(14)
  ids, logps = keep(teacher, 5)
  holed = ids.at[:, 3:].set(absent)
  value, grad = jax.value_and_grad(lambda s: jnp.sum(top_k_kl(s, holed, logps)))(student)
  assert value == pytest.approx(float(jnp.sum(top_k_kl(student, ids[:, :3], logps[:, :3]))), rel=1e-5)
  assert np.all(np.isfinite(grad))
  # the number that stands beside an absent id means nothing
  assert float(jnp.sum(top_k_kl(student, holed, logps.at[:, 3:].set(np.nan)))) == pytest.approx(float(value), rel=1e-6)


def test_top_k_with_nothing_kept_is_zero():
  student, _ = random_pair(15)
  ids, logps = jnp.full((6, 4), -1), jnp.zeros((6, 4))
  np.testing.assert_allclose(top_k_kl(student, ids, logps), 0.0, atol=1e-6)


def test_top_k_minus_infinity():
  student, teacher = random_pair(16)
  ids, logps = keep(teacher, 5)
  rows = jnp.arange(6)
  cases = {
      'kept': student.at[rows, ids[:, 0]].set(INF), 'tail': student.at[:, 7].set(INF), 'all': jnp.full_like(student, INF),
      'whole tail': jnp.where(jax.nn.one_hot(ids, 50).sum(1) > 0, student, INF)}
  for name, logits in cases.items():
    value, grad = jax.value_and_grad(lambda s: jnp.sum(top_k_kl(s, ids, logps)))(logits)
    assert not np.isnan(value) and np.all(np.isfinite(grad)), name
  assert np.isposinf(top_k_kl(cases['kept'], ids, logps)).all() and np.isposinf(top_k_kl(cases['whole tail'], ids, logps)).all()
  assert np.all(np.isfinite(top_k_kl(cases['tail'].at[:, ids[0]].set(0.0), ids, logps)))
  assert np.all(top_k_kl(cases['all'], ids, logps) == 0)


def test_top_k_stored_in_half_precision():
  """Rounded log-probabilities may sum to more than 1; the rest is then empty, not NaN."""
  student, teacher = random_pair(17, scale=8.0)
  ids, logps = keep(teacher, 20)
  rounded = logps.astype(jnp.float16)
  value, grad = jax.value_and_grad(lambda s: jnp.sum(top_k_kl(s, ids, rounded)))(student)
  assert value == pytest.approx(float(jnp.sum(top_k_kl(student, ids, logps))), rel=1e-2) and np.all(np.isfinite(grad))
  over = jnp.log(jnp.full((6, 2), 0.6))
  assert np.all(np.isfinite(top_k_kl(student, ids[:, :2], over)))


def test_shapes_of_any_rank():
  student, teacher = random_pair(18, shape=(2, 3, 4, 10))
  ids, logps = keep(teacher, 3)
  assert top_k_kl(student, ids, logps).shape == (2, 3, 4)
  assert divergence.forward_kl(student[0, 0, 0], teacher[0, 0, 0]).shape == ()
  one = top_k_kl(student[0, 0, 0], ids[0, 0, 0], logps[0, 0, 0])
  assert one.shape == () and float(one) == pytest.approx(float(top_k_kl(student, ids, logps)[0, 0, 0]), rel=1e-6)
