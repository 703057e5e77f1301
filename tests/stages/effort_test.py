"""Operations of a step against what XLA counts."""
import types

import jax
import jax.numpy as jnp
import pytest

from distill_jax.core import chips
from distill_jax.core.types import Role
from distill_jax.models.transformer import transformer
from distill_jax.stages.effort import effort

SIZES = dict(vocab_size=512, width=64, heads=2, mlp_width=256, max_length=64)
HERE = [types.SimpleNamespace(device_kind='cpu')]


def of(roles, trained, **more):
  params = {name: role.model.init(jax.random.key(0)) for name, role in roles.items()}
  return effort(roles, params, trained, **{**dict(tokens=256.0, targets=256.0, length=64.0, labelled=False, devices=HERE), **more})


@pytest.mark.parametrize('tied', [True, False])
def test_a_forward_pass_is_what_the_compiler_counts(tied):
  model = transformer(**SIZES, layers=1, tied=tied)

  def forward(params, tokens):
    out = model.apply(params, dict(tokens=tokens))
    return out['head'].logits(out['hidden'])
  shapes = jax.eval_shape(model.init, jax.random.key(0)), jax.ShapeDtypeStruct((4, 64), jnp.int32)
  counted = jax.jit(forward).lower(*shapes).compile().cost_analysis()['flops']
  mine = of({'teacher': Role(model)}, (), length=128.0).flops      # XLA counts hidden pairs too, so the whole row
  assert mine == pytest.approx(counted, rel=0.06)


def test_what_learns_counts_three_times_and_a_labelled_teacher_not_at_all():
  roles = {'student': Role(transformer(**SIZES, layers=2)), 'teacher': Role(transformer(**SIZES, layers=6))}
  student = of({'student': roles['student']}, ()).flops
  teacher = of({'teacher': roles['teacher']}, ()).flops
  assert of(roles, ('student',)).flops == pytest.approx(3 * student + teacher)
  assert of(roles, ('student',), labelled=True).flops == pytest.approx(3 * student)
  assert of(roles, ('student',), labelled=True, targets=0.0).flops == pytest.approx(3 * (student - 256 * 2 * 64 * 512))


def test_the_peak_is_that_of_all_devices():
  roles = {'student': Role(transformer(**SIZES, layers=1))}
  assert of(roles, ('student',)).peak is None
  two = [types.SimpleNamespace(device_kind='TPU v6 lite')] * 2
  assert of(roles, ('student',), devices=two).peak == 2 * chips.CHIPS['v6e'].flops
  assert chips.peak('NVIDIA H200') == 989e12 and chips.peak('NVIDIA H100 PCIe') == 756e12
