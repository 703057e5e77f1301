"""The command line over fake devices; with the TPU's compiler where it is installed (`pytest -m slow`)."""
import json
import os
import pathlib
import subprocess
import sys

import jax
import pytest
from stages.programs_test import recipe

from distill_jax import plan, plan_table
from distill_jax.core import chips
from distill_jax.stages import programs

ROOT = pathlib.Path(__file__).resolve().parent.parent
CHIP = chips.Chip(memory=2 ** 34, flops=1e12, bandwidth=1e11, links=1e10, axes=2)


def eight(memory=None):
  """Eight CPU devices, with the memory of a chip where it is given."""
  return chips.Slice('cpu:8', memory and CHIP._replace(memory=memory + chips.RESERVED), jax.devices())


@pytest.fixture(scope='module')
def planned():
  return plan.plan(recipe(mesh=dict(fsdp=8)), eight(), only='distill')


def test_a_plan_on_a_cpu_has_no_roofline_and_says_so(planned, capsys):
  (stage,) = planned['stages']
  (row,) = stage['rows']
  assert row['fits'] is None and 'roofline' not in row
  assert row['flops'] * 8 > row['model_flops'] > 0 and row['bytes'] > 0
  assert row['collectives']['all-gather']['count'] > 1
  assert row['total'] == sum(row['compiler'][name] for name in ('arguments', 'results', 'temporaries'))
  assert row['predicted_total'] == sum(row['predicted'].values()) == pytest.approx(row['peak'], rel=0.05)
  assert json.loads(json.dumps(planned)) == planned
  plan_table.show(planned)
  plan_table.explain([planned])
  said = capsys.readouterr().out
  assert 'no roofline' in said and 'distill' in said and 'bundled:student' in said
  assert max(map(len, said.splitlines())) <= 100


def test_a_step_that_does_not_fit_is_shown_with_what_makes_it_fit(capsys):
  """Memory between that of the step and that of half a batch at a time; the change is then really compiled."""
  made = recipe(mesh=dict(data=8))
  made['stages']['distill']['batch'] = 128
  (program,) = programs.programs_of(made, 'distill', jax.devices())
  whole = plan.measure(program, None)
  made['how']['microbatches'] = 2
  half = plan.measure(*programs.programs_of(made, 'distill', jax.devices()), None)
  made['how']['microbatches'] = 1
  where = eight(max(half['total'], half['rough']) * 1.02)
  assert where.chip.memory - chips.RESERVED < whole['total']
  found = plan.plan(made, where, only='distill')
  first, *others = found['stages'][0]['rows']
  assert first['fits'] is False and 'change' not in first
  (last,) = others
  assert last['fits'] is True and '--config.' in last['change']
  plan_table.show(found)
  said = capsys.readouterr().out
  assert last['change'] in said.replace('\n', '') and 'no' in said


def test_a_mesh_that_does_not_divide_is_refused_and_another_offered():
  made = recipe(mesh=dict(fsdp=5, data=-1))
  where = chips.Slice('cpu:5', CHIP, jax.devices()[:5])
  rows = plan.plan_stage(made, 'distill', where, prompt=32)
  assert 'cannot be cut' in rows[0]['refused'] or 'not divisible' in rows[0]['refused']
  assert rows[0]['fits'] is False


@pytest.mark.parametrize('only, said', [('grade', 'no step for a chip'), ('nothing', 'there is no stage')])
def test_stages_without_steps_are_refused(only, said):
  with pytest.raises(ValueError, match=said):
    plan.plan(recipe(), eight(), only=only)


def test_stages_of_one_program_are_compiled_once():
  made = recipe()
  made['stages']['again'] = dict(made['stages']['evaluate'], title='again', splits=('dev',), roles=dict(student='base'))
  made['stages']['longer'] = dict(made['stages']['evaluate'], max_new_tokens=64)
  assert plan.same(made, 'evaluate') == plan.same(made, 'again') != plan.same(made, 'longer')


def command(*arguments, **environment):
  return subprocess.run([sys.executable, '-m', 'distill_jax.plan', *arguments], cwd=ROOT, capture_output=True, text=True, timeout=900,
                        env={**os.environ, 'HF_HUB_OFFLINE': '1', **environment})


def test_one_line_for_an_unknown_slice():
  found = command('--config=configs/gsm8k.py:tiny', '--topology=v9:2x2')
  assert found.returncode == 1 and found.stderr.count('\n') == 1
  assert "topology 'v9:2x2' is not known" in found.stderr and 'v5e:4x4' in found.stderr


def test_the_command(tmp_path):
  found = command('--config=configs/gsm8k.py:tiny', '--topology=cpu:8', '--only=label', f'--json={tmp_path / "plan.json"}',
                  '--config.stages.label.length=128')
  assert found.returncode == 0, found.stderr
  assert 'label' in found.stdout and 'Traceback' not in found.stderr
  (one,) = json.loads((tmp_path / 'plan.json').read_text())
  assert one['topology'] == 'cpu:8' and one['stages'][0]['rows'][0]['tokens'] == 16 * 128


@pytest.mark.slow
@pytest.mark.parametrize('topology', ['v5e:2x2', 'v6e:2x4', 'v5p:2x2x1'])
def test_with_the_compiler_of_the_chip(topology):
  pytest.importorskip('libtpu', reason='the TPU compiler is not installed: pip install libtpu')
  made = recipe(mesh=dict(fsdp=-1))
  found = plan.plan(made, chips.slice_of(topology))
  rows = [row for stage in found['stages'] for row in stage['rows']]
  assert [row['step'] for row in rows] == ['read', 'write', 'label', 'train', 'read', 'write']
  for row in rows:
    assert row['fits'] is True and 0 < row['roofline']['mfu'] < 1 and row['flops'] > 0
    assert abs(row['difference']) < 0.05 and row['peak'] <= 1.05 * row['total']
  assert rows[3]['collectives']['all-gather']['count'] > 1


@pytest.mark.slow
def test_the_loss_is_cut_as_on_the_chip_and_not_as_on_this_machine():
  pytest.importorskip('libtpu', reason='the TPU compiler is not installed: pip install libtpu')
  made = recipe(mesh=dict(data=-1))
  made['stages']['distill'] |= dict(batch=256, length=256)
  counts = [programs.programs_of(made, 'distill', chips.slice_of(name).devices)[0].rounds for name in ('cpu:4', 'v5e:2x2')]
  assert counts[0] > counts[1]
