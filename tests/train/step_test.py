"""The exact step on toys small enough to work out by hand."""
import examples
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.core import mesh as mesh_lib
from distill_jax.core.mean import Mean
from distill_jax.core.types import Method, Model, Role
from distill_jax.train import optim, step as step_lib

ROWS = 8


def line(trainable=('.*',)):
  """y = a x + b, two scalars."""
  return Role(Model(None, lambda params, batch, **_: params['a'] * batch['x'] + params['b'], (), None, trainable))


PARAMS = {'a': jnp.float32(2.0), 'b': jnp.float32(-1.0)}


def two_terms(roles):
  """A squared error and a size, each under weights of its own."""
  def loss(params, batch, key):
    y = roles['student'].model.apply(params['student'], batch)
    return ({'error': Mean.of(jnp.square(y - batch['y']), batch['weights']), 'size': Mean.of(jnp.abs(y), batch['other'])},
            {'mean': Mean.of(y, batch['weights'])}, {'y': y})
  return Method(loss)


def batch_of(seed=0):
  rng = np.random.default_rng(seed)
  batch = {name: rng.normal(size=ROWS).astype(np.float32) for name in ('x', 'y')}
  weights = np.asarray([3, 0, 1, 0, 0.5, 0, 2, 0], np.float32)      # the odd rows, one half of the microbatches, weigh nothing
  return {**batch, 'weights': weights, 'other': np.asarray([0, 1, 0, 0, 4, 0, 0, 2], np.float32), 'row': np.arange(ROWS)}


def by_hand(batch):
  a, b = 2.0, -1.0
  y = a * batch['x'] + b
  w, o = batch['weights'] / batch['weights'].sum(), batch['other'] / batch['other'].sum()
  slope = 2 * (y - batch['y']) * w + np.sign(y) * o
  return dict(a=(slope * batch['x']).sum(), b=slope.sum(), error=(w * (y - batch['y']) ** 2).sum(), size=(o * np.abs(y)).sum())


def one_step(method, roles, batch, *, params=None, microbatches=1, optimizers=None, frozen=None, mesh=None):
  optimizers = optimizers or {'student': examples.recorder()}
  params = params or {'student': PARAMS}
  state = step_lib.init_state(method, roles, params, optimizers)
  step = jax.jit(step_lib.make_step(method, roles, optimizers, microbatches=microbatches, mesh=mesh))
  return step(state, frozen or {}, batch, jax.random.key(0))


@pytest.mark.parametrize('microbatches', [1, 2, 4, 8])
def test_each_term_is_divided_by_its_own_weight_in_the_whole_batch(microbatches):
  roles, batch = {'student': line()}, batch_of()
  state, means = one_step(two_terms(roles), roles, batch, microbatches=microbatches)
  expected = by_hand(batch)
  for name in 'ab':
    np.testing.assert_allclose(state.opt['student'][name], expected[name], rtol=1e-5)
  np.testing.assert_allclose(means['error'].value, expected['error'], rtol=1e-5)
  np.testing.assert_allclose(means['size'].value, expected['size'], rtol=1e-5)
  np.testing.assert_allclose(means['loss'].value, expected['error'] + expected['size'], rtol=1e-5)
  np.testing.assert_allclose(means['grad_norm/student'].value, np.hypot(expected['a'], expected['b']), rtol=1e-5)
  assert float(means['lr/student'].value) == pytest.approx(0.1)
  assert int(state.step) == 1


@pytest.mark.parametrize('microbatches', [1, 4])
def test_a_term_without_weight_counts_0(microbatches):
  roles, batch = {'student': line()}, {**batch_of(), 'other': np.zeros(ROWS, np.float32)}
  state, means = one_step(two_terms(roles), roles, batch, microbatches=microbatches)
  assert float(means['size'].value) == 0.0
  assert np.isfinite(float(state.opt['student']['a'])) and float(means['loss'].value) == float(means['error'].value)


def test_microbatches_are_strided_and_join_undoes_the_cut():
  rows = {'x': np.arange(8), 'y': np.arange(24).reshape(8, 3)}
  parts = step_lib.cut(rows, 4)
  np.testing.assert_array_equal(parts['x'], [[0, 4], [1, 5], [2, 6], [3, 7]])
  jax.tree.map(np.testing.assert_array_equal, step_lib.join(parts), rows)
  with pytest.raises(ValueError, match='8 rows cannot be cut into 3 microbatches'):
    step_lib.cut(rows, 3)


@pytest.mark.parametrize('microbatches', [1, 4])
def test_after_sees_stats_in_the_order_of_the_batch_and_the_new_params(microbatches):
  roles, batch = {'student': line()}, batch_of()
  method = two_terms(roles)._replace(
      after=lambda state, batch, stats: {'y': stats['y'], 'x': batch['x'], 'a': state.params['student']['a']},
      memory=lambda params: {'y': jnp.zeros(ROWS), 'x': jnp.zeros(ROWS), 'a': jnp.zeros(())})
  state, _ = one_step(method, roles, batch, microbatches=microbatches)
  np.testing.assert_allclose(state.memory['y'], 2 * batch['x'] - 1, rtol=1e-6)
  np.testing.assert_array_equal(state.memory['x'], batch['x'])
  assert float(state.memory['a']) == float(state.params['student']['a']) != 2.0


def test_weights_that_are_not_trainable_ride_along():
  roles = {'student': line(trainable=('a',))}
  state, _ = one_step(two_terms(roles), roles, batch_of())
  assert set(state.opt['student']) == {'a'}
  assert float(state.params['student']['b']) == -1.0 and float(state.params['student']['a']) != 2.0


def test_integer_weights_never_learn():
  apply = lambda params, batch, **_: params['a'] * batch['x'] * params['mask'] + params['b']
  roles = {'student': Role(Model(None, apply, (), None, ('.*',)))}
  params = {'student': {**PARAMS, 'mask': jnp.asarray(1, jnp.int8)}}
  state, _ = one_step(two_terms(roles), roles, batch_of(), params=params)
  assert set(state.opt['student']) == {'a', 'b'} and state.params['student']['mask'].dtype == jnp.int8


def test_two_roles_have_two_optimizers():
  roles = {'student': line(), 'critic': line(), 'teacher': line()}

  def loss(params, batch, key):
    y = {name: roles[name].model.apply(params[name], batch) for name in roles}
    away = {name: jnp.square(y[name] - jax.lax.stop_gradient(y['teacher'])) for name in ('student', 'critic')}
    return {name: Mean.of(value, batch['weights']) for name, value in away.items()}, {}, {}
  optimizers = {'student': examples.recorder(0.5), 'critic': optim.optimizer(lr=1e-3, steps=1)}
  params = {name: {**PARAMS, 'b': jnp.float32(i)} for i, name in enumerate(roles)}
  state, means = one_step(Method(loss), roles, batch_of(), params=params, optimizers=optimizers, frozen={'teacher': params['teacher']})
  assert set(state.params) == set(state.opt) == {'student', 'critic'}
  move = {name: float(state.params[name]['b'] - params[name]['b']) for name in state.params}
  assert move['student'] == pytest.approx(-0.5 * float(state.opt['student']['b']))
  assert abs(move['critic']) == pytest.approx(1e-3, rel=1e-3)
  assert {'lr/student', 'lr/critic', 'grad_norm/student', 'grad_norm/critic'} <= set(means)


def labelling(counted, *, weighs: bool):
  """A method whose label is counted, and whose weights need it or not."""
  def label(params, batch, key):
    x = jax.pure_callback(lambda x: counted.append(len(x)) or x, jax.ShapeDtypeStruct(batch['x'].shape, jnp.float32), batch['x'])
    return {'mark': jnp.square(params['teacher']['a'] * x)}

  def loss(params, batch, key):
    y = params['student']['a'] * batch['x'] + params['student']['b']
    mark = batch['label']['mark']
    return {'error': Mean.of(jnp.square(y - mark), batch['weights'] * (mark if weighs else 1.0))}, {}, {}
  return Method(loss, label)


@pytest.mark.parametrize('weighs', [True, False])
@pytest.mark.parametrize('microbatches', [1, 4])
def test_labels_are_made_once_a_step(microbatches, weighs):
  counted, batch, roles = [], batch_of(), {'student': line(), 'teacher': line()}
  method, frozen = labelling(counted, weighs=weighs), {'teacher': PARAMS}
  params = {'student': PARAMS, 'teacher': PARAMS}
  late, _ = one_step(method, roles, batch, params=params, microbatches=microbatches, frozen=frozen)
  jax.block_until_ready(late)
  assert counted == [ROWS // microbatches] * microbatches
  counted.clear()
  early, _ = one_step(method, roles, {**batch, 'label': {'mark': np.square(2 * batch['x'])}}, params=params, microbatches=microbatches,
                      frozen=frozen)
  jax.block_until_ready(early)
  assert not counted, 'labels that came with the batch are used'
  np.testing.assert_allclose(early.opt['student']['a'], late.opt['student']['a'], rtol=1e-6)


def test_labels_go_ahead_of_the_scan_only_where_weights_need_them():
  parts = step_lib.cut(batch_of(), 4)
  for weighs in (True, False):
    method = labelling([], weighs=weighs)
    params = {'student': PARAMS, 'teacher': PARAMS}
    label = lambda rows: method.label(params, rows, None)
    labelled = lambda rows: rows if 'label' in rows else {**rows, 'label': label(rows)}
    weights = lambda rows: {n: m.weight for n, m in method.loss(params, rows, None)[0].items()}
    out = step_lib._labelled_first(parts, method, labelled, label, weights)
    assert ('label' in out) is weighs
    assert not weighs or out['label']['mark'].shape == (4, 2)


@pytest.mark.parametrize('function, expected', [
    (lambda x, y: y * 2, False),
    (lambda x, y: (y, x['a']), True),
    (lambda x, y: jnp.zeros_like(x['a']), False),
    (lambda x, y: jax.lax.stop_gradient(x['b']) + y, True),
    (lambda x, y: jax.jit(lambda a, b: b)(x['a'], y), True),      # a call counts as one: errs towards True
    (lambda x, y: jax.lax.scan(lambda c, v: (c + v, None), 0.0, jnp.stack([x['a'], x['b']]))[0], True),
    (lambda x, y: jax.lax.scan(lambda c, v: (c + v, None), 0.0, jnp.stack([y, y]))[0], False),
    (lambda x, y: {'n': jnp.where(x['a'] > 0, 1.0, 2.0)}, True),
    (lambda x, y: x['b'], True),
])
def test_depends(function, expected):
  assert step_lib.depends(function, PARAMS, jnp.float32(1.0)) is expected


def test_memory_that_copies_params_can_be_donated():
  """A slow copy starts as the params themselves; a donated state may not hold one buffer twice."""
  one = examples.example('contrast', jax.random.key(0), dropout=0.0)
  optimizers = {'student': examples.recorder()}
  mesh = mesh_lib.make_mesh({'data': 1}, devices=jax.devices()[:1])
  params = jax.device_put(one.params, mesh_lib.replicated(mesh))
  state = step_lib.start(one.method, one.roles, params, optimizers, mesh)
  nudge = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
  moved = nudge(state)
  np.testing.assert_array_equal(moved.memory['slow']['norm']['scale'], moved.params['student']['norm']['scale'])


def test_the_state_stays_where_it_lies():
  """Moments and copies lie as their weights do, after the first step too: one program for all steps, a resumed run's among them."""
  mesh = mesh_lib.make_mesh({'data': 2, 'fsdp': 2, 'tensor': 2})
  one = examples.example('contrast', jax.random.key(0), shape='gpt2')
  params = {name: jax.device_put(role.params, mesh_lib.of_params(mesh, role.params, role.model.axes)) for name, role in one.roles.items()}
  optimizers = {'student': optim.optimizer(lr=0.1, steps=4, warmup=2)}
  state = step_lib.start(one.method, one.roles, params, optimizers, mesh)
  up = lambda tree: tree['layers']['0']['mlp']['up']['kernel'].sharding
  adam = state.opt['student'][1][0]
  assert up(state.params['student']) == up(adam.mu) == up(adam.nu) == up(state.memory['slow']) != mesh_lib.replicated(mesh)
  before = jax.tree.map(lambda x: x.sharding, state)
  step = step_lib.make_step(one.method, one.roles, optimizers, microbatches=2, mesh=mesh)
  step = step_lib.compiled(step, state)
  for _ in range(2):
    state, means = step(state, {}, jax.device_put(dict(one.batch), mesh_lib.rows(mesh)), jax.random.key(0))
  assert step._cache_size() == 1 and jax.tree.map(lambda x: x.sharding, state) == before
  assert np.isfinite(float(means['loss'].value))
