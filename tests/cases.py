"""Cases of the laws: a method with keywords, a shape and a dtype; one step of it, compiled once; and what it means to be near.

A bound is the largest difference of an array relative to its largest entry (or to a hundredth of the largest gradient of its role, where
that is more).
"""
import dataclasses
import functools
from typing import Any, NamedTuple

import examples
import jax
import numpy as np
import pytest
from flax.core import FrozenDict

from distill_jax.core import mesh as mesh_lib, tree
from distill_jax.data import feed
from distill_jax.train import step as step_lib

BOUND = {'float32': 2e-5, 'bfloat16': 8e-2}      # across compiled shapes; at one shape bits are equal
KEY = 7


@dataclasses.dataclass(frozen=True)
class Case:
  """One method with keywords, a shape and a dtype."""
  name: str
  shape: str
  dtype: str
  keywords: tuple = ()

  def __str__(self):
    return '-'.join([self.name, *(f'{k}{v}' for k, v in self.keywords), self.shape, self.dtype])


KD4 = (('k', 4),)
LORA = Case('logit_kd', 'lora', 'float32')      # adapters over a frozen base
T5 = Case('logit_kd', 't5', 'float32', KD4)      # an encoder-decoder: rows have sources
ICL = Case('icl', 'llama', 'float32', (('alpha', FrozenDict(start=0.25, end=0.75, steps=8)), ('beta', 0.5), ('soft', 'teacher')))
ULD, MINILLM = Case('uld', 'llama', 'float32'), Case('minillm', 'llama', 'float32')
RETRIEVE = Case('retrieve', 'bert', 'float32', (('chunk', 2),))
DENSE = Case('logit_kd', 'gpt2', 'float32')
FIRST = [Case('sft', 'llama', 'float32'), DENSE, Case('logit_kd', 'llama', 'float32', KD4),
         Case('contrast', 'gpt2', 'float32'), Case('reinforce', 'llama', 'float32'), LORA,
         Case('gkd', 'gpt2', 'float32', (('on_policy', 0.5),)), ULD, MINILLM, T5, ICL, RETRIEVE]
HALF = [Case('logit_kd', 'gpt2', 'bfloat16', KD4)]
# the other pairs of shape and dtype: `pytest -m slow`
REST = [Case('sft', 't5', 'float32'), Case('sft', 't5', 'bfloat16'), Case('sft', 'gpt2', 'bfloat16'), Case('logit_kd', 'llama', 'bfloat16'),
        Case('sft', 'gpt2', 'float32'), Case('sft', 'llama', 'bfloat16'), Case('logit_kd', 'llama', 'float32'),
        Case('logit_kd', 'gpt2', 'bfloat16'), Case('contrast', 'llama', 'bfloat16'), Case('reinforce', 'gpt2', 'bfloat16')]
CASES = FIRST + HALF + REST


def over(cases, slow=()):
  """slow: cases of which another law already compiles the like; they wait, as REST does, for `pytest -m slow`."""
  return pytest.mark.parametrize('case', [pytest.param(case, marks=[pytest.mark.slow] * (case in (*REST, *slow))) for case in cases], ids=str)


class Outcome(NamedTuple):
  """What one step did, as numpy: gradients and new params by role, terms and metrics, memory."""
  grads: Any
  params: Any
  means: Any
  memory: Any


@functools.lru_cache(maxsize=None)
def made(case: Case) -> examples.Example:
  return examples.example(case.name, jax.random.key(3), shape=case.shape, dtype=case.dtype, **dict(case.keywords))


@functools.lru_cache(maxsize=None)
def mesh_of(devices: int):
  return mesh_lib.make_mesh({'data': -1}, devices=jax.devices()[:devices])


@functools.lru_cache(maxsize=None)
def step_of(case: Case, microbatches: int, devices: int):
  one = made(case)
  optimizers = {name: examples.recorder() for name in one.trained}
  bare = {name: role._replace(params=None) for name, role in one.roles.items()}
  return jax.jit(step_lib.make_step(one.method, bare, optimizers, microbatches=microbatches, mesh=mesh_of(devices)))


@functools.lru_cache(maxsize=None)
def program_of(case: Case, microbatches: int, devices: int):
  """`step_of`, compiled for the case's own batch."""
  return step_of(case, microbatches, devices).lower(*inputs(case, devices)).compile()


def alike(batch, other) -> bool:
  """Whether two batches fit one compiled program."""
  shapes = lambda of: jax.tree.map(lambda x: (np.shape(x), np.asarray(x).dtype), dict(of))
  return shapes(batch) == shapes(other)


def inputs(case: Case, devices: int, batch=None, params=None):
  """(state, frozen, batch, key) on the devices."""
  one = made(case)
  optimizers = {name: examples.recorder() for name in one.trained}
  params = params or one.params
  state = step_lib.init_state(one.method, one.roles, params, optimizers)
  frozen = {name: value for name, value in params.items() if name not in one.trained}
  state, frozen = jax.device_put((state, frozen), mesh_lib.replicated(mesh_of(devices)))
  return state, frozen, feed.put(dict(one.batch if batch is None else batch), mesh_of(devices)), jax.random.key(KEY)


def run(case: Case, microbatches: int = 1, devices: int = 1, batch=None, params=None) -> Outcome:
  make = program_of if batch is None or alike(batch, made(case).batch) else step_of
  state, means = make(case, microbatches, devices)(*inputs(case, devices, batch, params))
  return Outcome(*jax.device_get((state.opt, state.params, means, state.memory)))


@functools.lru_cache(maxsize=None)
def reference(case: Case) -> Outcome:
  """One microbatch on one device."""
  return run(case)


def assert_near(a: Outcome, b: Outcome, bound: float, *, memory: bool = True):
  """Gradients role by role, terms and metrics; the weights of means must be equal."""
  assert a.grads.keys() == b.grads.keys()
  for role in a.grads:
    ours, theirs = tree.flatten(a.grads[role]), tree.flatten(b.grads[role])
    assert ours.keys() == theirs.keys()
    largest = max(np.abs(x).max() for x in ours.values())
    assert largest > 1e-4, f'{role}: no gradient to compare'
    for path, x in ours.items():
      scale = max(np.abs(x).max(), 1e-2 * largest)
      assert np.abs(x - theirs[path]).max() <= bound * scale, f'{role}/{path}: {np.abs(x - theirs[path]).max() / scale:.1e}'
  assert a.means.keys() == b.means.keys()
  for name, x in a.means.items():
    y = b.means[name]
    assert np.allclose(x.weight, y.weight, rtol=bound, atol=0), name
    # a metric that counts may flip at a near-tie of bfloat16
    slack = 0.02 * x.weight if bound > 1e-3 and name in ('accuracy', 'found') else 1e-6
    assert np.allclose(x.total, y.total, rtol=bound, atol=slack), f'{name}: {x.total} {y.total}'
  if memory:
    same = lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=bound * max(np.abs(x).max(initial=0.0), 1e-3))
    jax.tree.map(same, a.memory, b.memory)


def assert_same(a, b):
  """Equal bits."""
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


def plain(one: examples.Example, method):
  """(params, batch) -> (gradients of the trained roles, means), without dropout."""
  def both(params, batch):
    frozen = {name: value for name, value in params.items() if name not in one.trained}
    if method.label is not None:
      batch = {**batch, 'label': method.label(params, batch, None)}

    def objective(learned):
      terms, metrics, _ = method.loss({**frozen, **learned}, batch, None)
      return sum(term.value for term in terms.values()), {**terms, **metrics}
    return jax.grad(objective, has_aux=True)({name: params[name] for name in one.trained})
  return jax.jit(both)


@functools.lru_cache(maxsize=None)
def plain_of(case: Case):
  return plain(made(case), made(case).method)


@functools.lru_cache(maxsize=None)
def remembering(case: Case):
  """Params by role, and the memory."""
  one = made(case)
  return {**one.params, 'memory': jax.device_get(one.method.memory(one.params))}


@functools.lru_cache(maxsize=None)
def labels_of(case: Case):
  """Labels in a jit of their own, as the label stage makes them, at the shape of the batch."""
  one = made(case)
  label = jax.jit(lambda params, batch: one.method.label(params, batch, jax.random.key(step_lib.LABEL_KEY)))
  return lambda batch: jax.device_get(label({name: role.params for name, role in one.roles.items() if name not in one.trained}, batch))
