"""Real processes on one machine: the tiny recipe through every stage, kills, other process counts. Minutes: `pytest -m slow tests/hosts_run_test.py`."""
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

ROOT = pathlib.Path(__file__).resolve().parent.parent
LONGER = ('--config.tasks.gsm8k.counts.train=32', '--config.stages.distill.steps=40', '--config.stages.distill.how.save=10',
          '--config.stages.label.part=8', '--config.stages.generate.part=4')
BITWISE = ('generate/part-00000-of-00008.arrow', 'distill/student/params.safetensors', 'answers/student/params.safetensors',
           'export/model/model.safetensors', 'evaluate_distilled/predictions.jsonl')


class Run:
  """`count` processes of one command, each with two devices, their output in files."""

  def __init__(self, workdir: pathlib.Path, count: int, extra=(), cache=None):
    with socket.socket() as free:
      free.bind(('127.0.0.1', 0))
      port = free.getsockname()[1]
    place = lambda i: [f'--coordinator=127.0.0.1:{port}', f'--processes={count}', f'--process={i}'] if count > 1 else []
    environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': '--xla_force_host_platform_device_count=2', 'PYTHONUNBUFFERED': '1',
                   'JAX_COMPILATION_CACHE_DIR': str(cache or workdir.parent / 'cache')}
    workdir.parent.mkdir(exist_ok=True, parents=True)
    self.files = [workdir.parent / f'{workdir.name}-{i}.txt' for i in range(count)]
    self.processes = []
    for i, path in enumerate(self.files):
      with open(path, 'w', encoding='utf-8') as file:
        command = [sys.executable, '-m', 'distill_jax.main', '--config=configs/gsm8k.py:tiny', f'--workdir={workdir}', *LONGER, *extra, *place(i)]
        self.processes.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True))

  def said(self, i: int) -> str:
    return self.files[i].read_text(encoding='utf-8', errors='replace')

  def wait(self, seconds: float = 900) -> list[int]:
    until = time.monotonic() + seconds
    return [process.wait(max(until - time.monotonic(), 1)) for process in self.processes]

  def wait_for(self, text: str, seconds: float = 300) -> None:
    until = time.monotonic() + seconds
    while text not in self.said(0):
      assert time.monotonic() < until and self.processes[0].poll() is None, self.said(0)[-3000:]
      time.sleep(0.1)


@pytest.fixture(scope='module')
def calm(tmp_path_factory):
  """Undisturbed run of two processes."""
  workdir = tmp_path_factory.mktemp('hosts') / 'calm'
  run = Run(workdir, 2)
  assert run.wait() == [0, 0], run.said(0)[-3000:] + run.said(1)[-3000:]
  return workdir


def weights(workdir, stage='distill'):
  return load_file(workdir / stage / 'student' / 'params.safetensors')


def assert_bitwise(a, b):
  for name in BITWISE:
    assert (a / name).read_bytes() == (b / name).read_bytes(), name


def continued(calm, count, name):
  """A run of `count` processes from the calm run's texts."""
  workdir = calm.parent / name
  for stage in ('generate', 'grade'):
    shutil.copytree(calm / stage, workdir / stage)
  run = Run(workdir, count)
  assert run.wait() == [0] * count, run.said(0)[-3000:]
  return workdir


@pytest.mark.slow
def test_two_processes_give_the_same_bits_again(calm):
  run = Run(calm.parent / 'again', 2)
  assert run.wait() == [0, 0], run.said(0)[-3000:]
  assert_bitwise(calm, calm.parent / 'again')
  assert 'begins' not in run.said(1), 'one process speaks'


@pytest.mark.slow
@pytest.mark.parametrize('count', [1, 4])
def test_other_process_counts_from_the_same_text_agree(calm, count):
  ours, theirs = weights(calm), weights(continued(calm, count, f'of-{count}'))
  worst = max(float(np.abs(ours[name] - theirs[name]).max() / max(np.abs(ours[name]).max(), 1e-3)) for name in ours)
  print(f'{count} processes against 2: largest difference {worst:.1e} of the largest weight of its array')
  assert ours.keys() == theirs.keys() and worst < 5e-3


@pytest.mark.slow
@pytest.mark.parametrize('stage, mark, victim', [('generate', 'generate  4/64 texts', 1), ('generate', 'generate  0/64', 0), ('label', 'label: begins', 1),
                                                 ('distill', 'distill  1', 1), ('distill', 'distill  1', 0)])
def test_a_killed_process_ends_the_others_and_the_rerun_has_the_same_bits(calm, stage, mark, victim):
  workdir = calm.parent / f'killed-{stage}-{victim}'
  shutil.rmtree(workdir, ignore_errors=True)
  run = Run(workdir, 2)
  run.wait_for(f'{stage}: begins' if mark.startswith('generate  4') else mark)
  time.sleep(2.0)
  os.killpg(run.processes[victim].pid, signal.SIGKILL)
  began = time.monotonic()
  code = run.processes[1 - victim].wait(60)
  print(f'{stage}: the other ended {time.monotonic() - began:.1f} s after')
  assert code == 75 and f'process {victim}' in run.said(1 - victim) and 'the same command on all continues' in run.said(1 - victim)
  again = Run(workdir, 2)
  assert again.wait() == [0, 0], again.said(0)[-3000:]
  assert_bitwise(calm, workdir)


@pytest.mark.slow
def test_eight_then_four_then_two_by_two_devices_stay_on_the_curve(calm):
  """The same rows and randomness on other meshes: losses of 60 steps with two changes of devices against an undisturbed run."""
  def run(name, devices, steps, mesh):
    workdir = calm.parent / name
    if not workdir.exists():
      for stage in ('generate', 'grade', 'label'):
        shutil.copytree(calm / stage, workdir / stage)
    done = subprocess.run(
        [sys.executable, '-m', 'distill_jax.main', '--config=configs/gsm8k.py:tiny', f'--workdir={workdir}', '--only=distill', *LONGER,
         f'--config.stages.distill.steps={steps}', '--config.stages.distill.optim.decay_steps=60', f'--config.stages.distill.how.mesh={mesh}'],
        cwd=ROOT, capture_output=True, text=True, timeout=600, env={
            **os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}',
            'JAX_COMPILATION_CACHE_DIR': str(calm.parent / 'cache')})
    assert done.returncode == 0, done.stderr[-3000:]
    lines = (workdir / 'distill' / 'metrics.jsonl').read_text().splitlines()
    return {row['step']: row['loss'] for row in map(json.loads, lines)}
  whole = run('curve', 8, 60, {'data': 8})
  run('changed', 8, 20, {'data': 8})
  run('changed', 4, 40, {'data': 4})
  changed = run('changed', 4, 60, {'data': 2, 'fsdp': 2})
  assert sorted(changed) == sorted(whole) and len(whole) == 60
  worst = max(abs(changed[step] / whole[step] - 1) for step in whole)
  print(f'largest relative difference of the loss over 60 steps: {worst:.1e}')
  assert worst < 1e-2


@pytest.mark.slow
def test_sigterm_to_one_process_saves_and_all_say_again(calm):
  workdir = calm.parent / 'preempted'
  run = Run(workdir, 2)
  run.wait_for('distill  1')
  os.kill(run.processes[1].pid, signal.SIGTERM)
  assert run.wait(120) == [75, 75], run.said(0)[-2000:] + run.said(1)[-2000:]
  assert 'asked to stop: saved after step' in run.said(0)
  assert Run(workdir, 2).wait() == [0, 0]
  assert_bitwise(calm, workdir)


@pytest.mark.slow
def test_a_copy_that_spans_both_processes(calm):
  """Tensor-parallel over all four devices: the vocabulary of the bundled models (899) does not divide, so that a student of our own is made."""
  fresh = ["--config.roles.base={'model': {'model': 'transformer', 'width': 64, 'layers': 2, 'heads': 4, 'mlp_width': 128, 'max_length': 320, 'vocab_size': 904}, "
           "'tokenizer': 'bundled:student'}"]
  workdir = calm.parent / 'spans'
  for stage in ('generate', 'grade'):
    shutil.copytree(calm / stage, workdir / stage)
  run = Run(workdir, 2, extra=["--config.run=['generate', 'grade', 'answers', 'evaluate_answers']", "--config.stages.answers.how.mesh={'tensor': 4}",
                               "--config.stages.evaluate_answers.how.mesh={'tensor': 4}", *fresh])
  assert run.wait() == [0, 0], run.said(0)[-3000:]
  assert weights(workdir, 'answers')['embed/tokens'].shape == (904, 64)


@pytest.mark.slow
@pytest.mark.parametrize('devices, said', [(2, 'has another'), (8, 'process 1 has 8 devices, process 0 has 2')])
def test_hosts_with_other_commands_are_refused(tmp_path, devices, said):
  run = Run(tmp_path / 'x', 2)
  run.processes[1].kill()
  run.processes[1].wait()
  place = ['--processes=2', '--process=1']
  coordinator = next(argument for argument in run.processes[0].args if argument.startswith('--coordinator'))
  other = subprocess.run([sys.executable, '-m', 'distill_jax.main', '--config=configs/gsm8k.py:tiny', f'--workdir={tmp_path / "x"}', coordinator, *place],
                         cwd=ROOT, capture_output=True, text=True, timeout=120, env={
                             **os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}'})
  assert other.returncode == 1 and run.wait(60)[0] == 1
  assert said in other.stderr and (devices != 2 or 'start the same code with the same command on all' in other.stderr)
