"""What memory is for: parts of real programs add up, agree with the compiler, and move as they must."""
import functools

import jax
import pytest
from stages.programs_test import recipe

from distill_jax.core import live
from distill_jax.stages import memory, programs

CASES = [('distill', 0), ('label', 0), ('generate', 0), ('generate', 1)]


@functools.cache
def compiled(stage, number=0, fsdp=4, **changes):
  """(program, memory analysis, Peak)."""
  made = recipe(mesh=dict(data=-1, fsdp=fsdp))
  for role in ('base', 'teacher'):
    made['roles'][role]['overrides'] = {**made['roles'][role].get('overrides', {}), **changes}
  program = programs.programs_of(made, stage, jax.devices())[number]
  done = program.function.lower(*program.arguments).compile()
  return program, done.memory_analysis(), live.read(done.as_text(), platform='cpu')


@pytest.mark.parametrize('stage, number', CASES)
def test_what_is_read_from_a_program_is_what_the_compiler_says(stage, number):
  program, said, peak = compiled(stage, number)
  whole = said.argument_size_in_bytes + said.output_size_in_bytes - said.alias_size_in_bytes + said.temp_size_in_bytes
  assert peak.total == pytest.approx(whole, rel=0.05)
  parts = memory.split(program, peak)
  assert sum(parts.values()) == pytest.approx(peak.total) and set(parts) <= set(memory.NAMES)
  for name in ('params', 'optimiser'):
    if name in program.parts:
      assert parts[name] == pytest.approx(programs.bytes_of(program.parts[name]), rel=0.01), name
  for name in ('cache', 'rows'):      # what the program does not read is not passed in
    assert parts.get(name, 0) <= (programs.bytes_of(program.parts[name]) if name in program.parts else 0)


def test_only_training_has_gradients_and_activations():
  for stage, number in CASES:
    parts = memory.split(compiled(stage, number)[0], compiled(stage, number)[2])
    assert ('gradients' in parts, 'activations' in parts) == (stage == 'distill',) * 2


def test_more_is_kept_where_less_is_recomputed():
  kept = [memory.split(program, peak)['activations'] for program, _, peak in (compiled('distill'), compiled('distill', remat='none'))]
  assert kept[1] > 2 * kept[0] > 0


def test_weights_that_are_cut_are_gathered():
  whole, cut = (memory.split(program, peak) for program, _, peak in (compiled('label', fsdp=1), compiled('label')))
  assert cut['params'] == pytest.approx(whole['params'] / 4, rel=0.05)
  assert cut['weights'] > whole.get('weights', 0)
