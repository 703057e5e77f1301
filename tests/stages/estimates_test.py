"""Estimates and operations against counts by hand; changes to a recipe."""
import jax
import pytest
from stages.programs_test import recipe

from distill_jax.core import chips, hlo
from distill_jax.stages import estimates, programs

SMALL = chips.Chip(memory=2 ** 30, flops=1e12, bandwidth=1e11, links=1e10, axes=2)


def program(stage, number=0, **how):
  return programs.programs_of(recipe(**how), stage, jax.devices())[number]


def numbers_of(role):
  """Numbers in the matrices of a role but its embedding."""
  config = role.model.config
  return sum(x.size for x in jax.tree.leaves(role.params) if x.ndim > 1 and x.size != config['width'] * config['vocab_size'] and x.shape[-1] > 1
             and x.shape[0] == config['layers'] and x.ndim == 3)


def test_operations_of_training_are_six_a_weight_and_token():
  made = program('distill')
  (role, state), = made.roles.values()
  c = role.model.config
  matrices = numbers_of(role) + c['width'] * c['vocab_size']
  attention = 12 * c['layers'] * c['heads'] * c['head_dim'] * 64 / 2       # causal: half of the 64 tokens of a row are seen
  assert state == 'trained'
  assert estimates.model_flops(made) == pytest.approx(16 * 64 * (6 * matrices + attention))


def test_operations_of_labelling_are_two_a_weight_and_token():
  made = program('label')
  (role, _), = made.roles.values()
  c = role.model.config
  matrices = numbers_of(role) + c['width'] * c['vocab_size']
  assert estimates.model_flops(made) == pytest.approx(8 * 64 * (2 * matrices + 4 * c['layers'] * c['heads'] * c['head_dim'] * 32))


def test_what_is_compiled_costs_what_the_model_needs_and_what_is_recomputed():
  """Products of a compiled label step: the model's, with attention over all pairs; of a train step: those and one more forward pass of the layers."""
  made = program('label')
  work = hlo.read(made.function.lower(*made.arguments).compile().as_text(), unknown=made.rounds)
  (role, _), = made.roles.values()
  c = role.model.config
  whole = estimates.model_flops(made) + 8 * 64 * 4 * c['layers'] * c['heads'] * c['head_dim'] * 32
  assert work.flops * 8 == pytest.approx(whole, rel=0.01)


def test_the_roofline_is_the_slowest_of_three():
  made = program('distill')
  work = lambda flops, size, sent: hlo.Work(flops, size, (hlo.Collective('all-reduce', 1, sent),), 0)
  for bound, one in dict(compute=work(5e11, 1, 1), memory=work(1, 5e10, 1), links=work(1, 1, 5e9)).items():
    line = estimates.roofline(made, one, SMALL)
    assert line.bound == bound and line.seconds == pytest.approx(0.5)
    assert line.tokens == pytest.approx(16 * 64 / 0.5)
    assert line.mfu == pytest.approx(estimates.model_flops(made) / (0.5 * 8 * 1e12))


def test_held_bytes_are_estimated_exactly():
  made = program('distill', mesh=dict(fsdp=8))
  compiled = made.function.lower(*made.arguments).compile().memory_analysis()
  predicted = estimates.rough(made)
  held = sum(predicted[name] for name in made.parts)
  assert held == pytest.approx(compiled.argument_size_in_bytes, rel=0.01)


def test_more_microbatches_and_more_recomputation_take_less():
  def total(change, stage='distill'):
    return sum(estimates.rough(programs.programs_of(estimates.changed(recipe(), change), stage, jax.devices())[0]).values())
  none = total((('roles.base.overrides.remat', 'none'),))
  assert none > total((('roles.base.overrides.remat', 'dots'),)) > total(())
  assert total((('stages.distill.batch', 64),)) > total((('stages.distill.batch', 64), ('stages.distill.how.microbatches', 4)))
  assert total((), 'label') > total((('roles.teacher.params_dtype', 'bfloat16'),), 'label')


def test_changes_are_spelled_as_on_the_command_line_and_leave_the_recipe_alone():
  made = recipe()
  change = (('stages.distill.how.microbatches', 4), ('roles.base.overrides.remat', 'full'))
  other = estimates.changed(made, change)
  assert other['stages']['distill']['how'] == dict(microbatches=4) and made == recipe()
  assert estimates.spell(change, made) == "'--config.stages.distill.how={\"microbatches\": 4}' --config.roles.base.overrides.remat=full"
  mesh = (('stages.label.how.mesh.fsdp', -1), ('stages.label.how.mesh.tensor', 2), ('stages.label.how.batch', 4))
  assert estimates.spell(mesh, made) == "'--config.stages.label.how.mesh={\"fsdp\": -1, \"tensor\": 2}' --config.stages.label.how.batch=4"


def test_changes_never_touch_what_is_learned():
  for stage in ('distill', 'label', 'generate', 'evaluate'):
    for change in estimates.changes(recipe(), stage, 8):
      for path, _ in change:
        assert '.how.' in path or path.endswith(('overrides.remat', 'params_dtype'))
        assert not path.startswith('roles.base.params_dtype')
  first = next(estimates.changes(recipe(), 'distill', 8))
  assert first == (('stages.distill.how.microbatches', 2),)
