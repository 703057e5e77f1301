"""The step on meshes of eight devices: the same gradients, nothing gathered but weights layer by layer, state in pieces."""
import functools
import re

import examples
import jax
import numpy as np
import pytest

from distill_jax.core import keys, mesh as mesh_lib, tree
from distill_jax.core.types import Role
from distill_jax.data import feed, rows as rows_lib
from distill_jax.methods import METHODS
from distill_jax.models import MODELS
from distill_jax.train import optim, step as step_lib

V, LENGTH, ROWS = 128, 32, 16
STUDENT = dict(vocab_size=V, width=64, layers=3, heads=4, kv_heads=2, mlp_width=128, max_length=LENGTH, dropout=0.1, init='fan_in')
TEACHER = {**STUDENT, 'width': 128, 'dropout': 0.0}
MESHES = {'data': dict(data=8), 'fsdp': dict(fsdp=8), 'all': dict(data=2, fsdp=2, tensor=2)}
METHOD = {'sft': {}, 'logit_kd': {}, 'logit_kd_top': dict(k=8)}
BOUND = 1e-5


@functools.lru_cache(maxsize=None)
def batch():
  """Packed rows of several examples each, prompts without weight."""
  rng, made = np.random.default_rng(0), []
  for i in range(60):
    size = int(rng.integers(5, 15))
    text = rng.integers(0, V, size + 1).astype(np.int32)
    weights = np.ones(size, np.float32)
    weights[:size // 3] = 0
    made.append(dict(id=keys.content_id(i), tokens=text[:-1], targets=text[1:], weights=weights))
  rows = rows_lib.packed(made, length=LENGTH)
  assert len(rows) >= ROWS and max(map(len, rows.bins)) > 1
  return rows.batch(range(ROWS))


def roles_of(name, sizes, rules):
  mesh = mesh_lib.make_mesh(sizes, devices=jax.devices()[:1] if sizes == dict(data=1) else None)
  roles = {'student': Role(MODELS['transformer'](**STUDENT))}
  if name != 'sft':
    roles['teacher'] = Role(MODELS['transformer'](**TEACHER))
  params = {}
  for number, (role, one) in enumerate(roles.items()):
    where = mesh_lib.of_params(mesh, jax.eval_shape(one.model.init, jax.random.key(0)), one.model.axes, rules)
    params[role] = jax.jit(one.model.init, out_shardings=where)(jax.random.key(number))
  return mesh, roles, params


def prepared(name, sizes, microbatches, optimizer, rules=mesh_lib.RULES):
  """(jitted step, its arguments)."""
  mesh, roles, params = roles_of(name, sizes, rules)
  method = METHODS[name.removesuffix('_top')](roles, **METHOD[name])
  optimizers = {'student': optimizer}
  state = step_lib.start(method, roles, params, optimizers, mesh)
  run = step_lib.compiled(step_lib.make_step(method, roles, optimizers, microbatches=microbatches, mesh=mesh, rules=rules), state)
  frozen = {role: x for role, x in params.items() if role != 'student'}
  return run, (state, frozen, feed.put(batch(), mesh), jax.random.key(1))


@functools.lru_cache(maxsize=None)
def gradients(name, sizes, microbatches, rules=()):
  run, arguments = prepared(name, dict(sizes), microbatches, examples.recorder(), mesh_lib.rules_with(dict(rules)))
  state, means = run(*arguments)
  return jax.device_get((state.opt['student'], means))


def assert_near(got, want):
  for path, x in tree.flatten(want[0]).items():
    np.testing.assert_allclose(tree.flatten(got[0])[path], x, rtol=0, atol=BOUND * max(np.abs(x).max(), 1e-3), err_msg=path)
  for key, mean in want[1].items():
    np.testing.assert_allclose(got[1][key].total, mean.total, rtol=BOUND, atol=1e-6, err_msg=key)


@pytest.mark.parametrize('microbatches', [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize('sizes', list(MESHES))
@pytest.mark.parametrize('name', ['logit_kd', *(pytest.param(name, marks=pytest.mark.slow) for name in ('sft', 'logit_kd_top'))])
def test_one_device_is_eight(name, sizes, microbatches):
  """Gradients and means, packed rows, dropout 0.1."""
  assert_near(gradients(name, tuple(MESHES[sizes].items()), microbatches), gradients(name, (('data', 1),), 1))


def test_four_microbatches_on_a_mesh_of_three_axes():
  assert_near(gradients('logit_kd', tuple(MESHES['all'].items()), 4), gradients('logit_kd', (('data', 1),), 1))


@pytest.mark.parametrize('sizes, rules', [
    (dict(data=2, expert=4), dict(length='expert')),                 # long rows over an axis of their own
    (dict(data=2, fsdp=2, tensor=2), dict(length='tensor')),         # rows cut between the branches, heads within them
], ids=str)
def test_rows_cut_along_their_length(sizes, rules):
  assert_near(gradients('logit_kd', tuple(sizes.items()), 1, tuple(rules.items())), gradients('logit_kd', (('data', 1),), 1))


def collectives(text):
  """[(kind, dimensions)] of a compiled program."""
  found = []
  for line in text.splitlines():
    if match := re.search(r'= (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(-start)?\(', line):
      found += [(match[2], tuple(map(int, dims.split(','))) if dims else ()) for dims in re.findall(r'\w+\[([\d,]*)\]', match[1])]
  return found


@pytest.mark.parametrize('sizes', list(MESHES))
def test_only_weights_are_gathered_and_one_layer_at_a_time(sizes):
  run, arguments = prepared('logit_kd', MESHES[sizes], 2, optim.optimizer(lr=1e-3, steps=10))
  found = collectives(run.lower(*arguments).compile().as_text())
  assert found, 'something must cross devices'
  kinds = {kind for kind, _ in found}
  assert not kinds & {'all-to-all', 'collective-permute'}, kinds
  weights = {leaf.shape for role in (arguments[0].params['student'], arguments[1]['teacher']) for leaf in jax.tree.leaves(role)}
  whole = {shape[1:] for shape in weights if len(shape) == 3 and shape[0] == STUDENT['layers']} | {shape for shape in weights if len(shape) == 2}
  for kind, dims in found:
    if kind == 'all-gather':
      bare = tuple(d for d in dims if d != 1)
      fits = any(len(bare) == len(shape) and all(n % d == 0 for n, d in zip(sorted(shape), sorted(bare))) for shape in whole)
      assert fits, f'{sizes}: gathers {dims}, which is no piece of one weight'


@pytest.mark.parametrize('axis', ['fsdp', 'tensor'])
def test_params_and_moments_lie_in_pieces(axis):
  """Bytes a device of params and optimiser: within 5 % of the whole over the devices on fsdp; no more than the vectors above it on tensor."""
  wide = {**STUDENT, 'width': 256, 'mlp_width': 1024, 'heads': 8, 'kv_heads': 8}
  mesh = mesh_lib.make_mesh({axis: 8})
  role = Role(MODELS['transformer'](**wide))
  params = jax.jit(role.model.init, out_shardings=mesh_lib.of_params(
      mesh, jax.eval_shape(role.model.init, jax.random.key(0)), role.model.axes))(jax.random.key(0))
  state = step_lib.start(METHODS['sft']({'student': role}), {'student': role}, {'student': params}, {'student': optim.optimizer(lr=1e-3, steps=3)}, mesh)
  leaves = jax.tree.leaves((state.params, state.opt))
  share = sum(x.addressable_shards[0].data.nbytes for x in leaves) / sum(x.nbytes for x in leaves)
  assert 1 / 8 <= share <= 1.05 / 8


def test_a_step_that_is_not_finite_changes_nothing():
  run, (state, frozen, rows, key) = prepared('sft', dict(data=8), 1, optim.optimizer(lr=1e-3, steps=10))
  before = jax.device_get(state)
  bad = {**rows, 'weights': rows['weights'].at[3, 20].set(np.inf)}
  after, means = run(state, frozen, bad, key)
  assert float(means['skipped'].total) == 1 and int(after.step) == 1
  for name in ('params', 'opt'):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(getattr(after, name)), getattr(before, name))
  after, means = run(after, frozen, rows, key)
  assert float(means['skipped'].total) == 0 and int(after.step) == 2
  kernel = lambda tree: tree['student']['layers']['0']['mlp']['up']['kernel']
  assert np.abs(kernel(after.params) - kernel(before.params)).max() > 0


def test_the_rows_that_are_not_finite_are_named():
  mesh, roles, params = roles_of('sft', dict(data=8), mesh_lib.RULES)
  method, rows = METHODS['sft'](roles), batch()
  find = step_lib.find_rows(method, roles, {'student': None}, mesh=mesh)
  weights = rows['weights'].copy()
  weights[5, 20] = np.inf
  hexed = lambda pair: ''.join(f'{int(x):08x}' for x in pair)
  said = find(params, {}, feed.put({**rows, 'weights': weights}, mesh), jax.random.key(0))
  assert said.startswith(f'1 of {ROWS} rows do it: {hexed(rows["row"][5])} (examples {hexed(rows["examples"][5][0])}')
  assert 'no row does it alone' in find(params, {}, feed.put(rows, mesh), jax.random.key(0))
