"""kill -9 at random moments, the same command again each time: the same bits as an undisturbed run. Minutes: `pytest -m slow tests/interruption_test.py`.

KILLS (default 10) and KILL_SEED (default 0) choose how often and when.
"""
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
OVERRIDES = (
    '--config.tasks.gsm8k.counts.train=48', '--config.stages.generate.part=8', '--config.stages.distill.steps=120', '--config.stages.answers.steps=120',
    '--config.stages.distill.how.save=5', '--config.stages.answers.how.save=5', '--config.stages.label.part=16')
COMPARED = ('distill/student/params.safetensors', 'answers/student/params.safetensors', 'export/model/model.safetensors',
            'evaluate_distilled/predictions.jsonl', 'generate/part-00000-of-00006.arrow')


def command(workdir: pathlib.Path) -> list[str]:
  """A recipe with every stage, about 90 s long on 2 cores."""
  return [sys.executable, '-m', 'distill_jax.main', '--config=configs/gsm8k.py:tiny', f'--workdir={workdir}', *OVERRIDES]


def start(workdir: pathlib.Path) -> subprocess.Popen:
  """The command in a process group of its own, on one device."""
  environment = {name: value for name, value in os.environ.items() if name != 'XLA_FLAGS'} | {'JAX_PLATFORMS': 'cpu'}
  return subprocess.Popen(command(workdir), cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          start_new_session=True)


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_with_the_same_bits(tmp_path):
  began = time.monotonic()
  calm = start(tmp_path / 'calm')
  while not (tmp_path / 'calm' / 'log.txt').exists():
    assert calm.poll() is None, calm.communicate()[0][-3000:]
    time.sleep(0.05)
  startup = time.monotonic() - began      # imports: no kill before that tells anything
  said = calm.communicate(timeout=1200)[0]
  seconds = time.monotonic() - began
  assert calm.returncode == 0, said[-3000:]
  moments, wanted = random.Random(int(os.environ.get('KILL_SEED', '0'))), int(os.environ.get('KILLS', '10'))
  kills, stages = 0, []
  while True:
    process = start(tmp_path / 'killed')
    try:
      wait = startup + moments.uniform(0.4, 2.4) * (seconds - startup) / wanted if kills < wanted else 1200
      said = process.communicate(timeout=wait)[0]
    except subprocess.TimeoutExpired:
      os.killpg(process.pid, signal.SIGKILL)
      process.communicate()
      kills += 1
      stages.append(max((tmp_path / 'killed').glob('*/STARTED'), key=lambda path: path.stat().st_mtime, default=pathlib.Path('none/x')).parent.name)
      continue
    assert process.returncode == 0, said[-3000:]
    break
  print(f'undisturbed {seconds:.0f} s ({startup:.0f} s to the first stage), {kills} kills, in {", ".join(stages)}')
  assert kills == wanted, f'only {kills} kills fell into the run'
  for name in COMPARED:
    assert (tmp_path / 'calm' / name).read_bytes() == (tmp_path / 'killed' / name).read_bytes(), name
