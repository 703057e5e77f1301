"""launch/local.sh: real processes of a stub python."""
import os
import shlex
import signal
import socket
import time

import pytest

RUN = ('--', '--config=configs/gsm8k.py:tiny')


def test_every_process_gets_its_place_and_its_lines_a_number(stubs):
  nasty = ["a 'b\" $c", '', 'x\ny', '{1, 2}']
  done = stubs.run('local.sh', '-n', '3', '--devices=2', *RUN, *nasty, XLA_FLAGS='--xla_x=1')
  assert done.returncode == 0, done.stderr
  ports = set()
  for process in '012':
    (call,) = stubs.calls(f'main.{process}')
    assert call[:2] == ['-m', 'distill_jax.main']
    coordinator, processes, place, *rest = call[2:]
    assert (processes, place, rest) == ('--processes=3', f'--process={process}', ['--config=configs/gsm8k.py:tiny', *nasty])
    ports.add(coordinator)
    lines = [line for line in done.stdout.splitlines() if line.startswith(f'[{process}] ')]
    assert lines == [f'[{process}] {line}' for line in (f'hello from {process}', f'bye from {process}', 'no newline at the end')]
    environment = stubs.said(f'environment.{process}').splitlines()
    assert 'JAX_PLATFORMS=cpu' in environment
    assert 'XLA_FLAGS=--xla_x=1 --xla_force_host_platform_device_count=2' in environment
  assert len(done.stdout.splitlines()) == 9
  (coordinator,) = ports
  host, port = coordinator.removeprefix('--coordinator=').split(':')
  with socket.socket() as free:
    free.bind((host, int(port)))


def test_a_platform_that_is_set_stays_and_one_process_needs_no_coordinator(stubs):
  assert stubs.run('local.sh', '--processes=1', *RUN, JAX_PLATFORMS='cuda').returncode == 0
  assert stubs.calls(f'main.{stubs.place.name}') == [['-m', 'distill_jax.main', RUN[1]]]
  assert 'JAX_PLATFORMS=cuda' in stubs.said(f'environment.{stubs.place.name}').splitlines()


@pytest.mark.parametrize('codes,expected', [((0, 0), 0), ((0, 1), 1), (('wait', 7), 7), ((137, 'wait'), 137), (('slow0.2', 'wait', 2), 2)])
def test_when_one_fails_all_end_with_its_exit_code(stubs, codes, expected):
  for process, code in enumerate(codes):
    stubs.answer(f'codes.{process}', code)
  done = stubs.run('local.sh', '-n', str(len(codes)), *RUN)
  assert done.returncode == expected, done.stderr


def test_one_that_ends_well_ends_nobody(stubs):
  stubs.answer('codes.1', 'slow0.5')
  done = stubs.run('local.sh', '-n', '2', *RUN)
  assert done.returncode == 0 and 'ended with exit code' not in done.stderr


def test_who_does_not_end_is_killed_after_the_grace(stubs):
  stubs.answer('codes.0', 3)
  stubs.answer('codes.1', 'stubborn')
  began = time.monotonic()
  assert stubs.run('local.sh', '-n', '2', '--grace=1', *RUN).returncode == 3
  assert time.monotonic() - began < 8


@pytest.mark.parametrize('number,expected', [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_signals_reach_every_process_once_and_nothing_is_left(stubs, number, expected):
  for process in '01':
    stubs.answer(f'codes.{process}', 'wait')
  launcher = stubs.start('local.sh', '-n', '2', *RUN)
  stubs.wait_for('ready.0', 'ready.1')
  os.killpg(launcher.pid, number)     # as a terminal does: to the whole group
  said, errors = launcher.communicate(timeout=60)
  assert launcher.returncode == expected, errors
  if number == signal.SIGTERM:
    assert said.count('saving') == 2
  time.sleep(0.1)
  assert not [pid for pid in os.listdir('/proc') if pid.isdigit() and _mentions(pid, str(stubs.place / 'bin'))]


def test_a_second_signal_while_an_exit_code_is_written_loses_nothing(stubs):
  """As from a scheduler that signals every process of a job, and a launcher that passes it on, on a slow machine."""
  for process in '01':
    stubs.answer(f'codes.{process}', 'wait')
  slow = stubs.place / 'bin' / 'mv'
  slow.write_text('#!/bin/bash\ntouch "$STUBS/calls/moving.$(basename "$1")"\nsleep 0.5\nexec /bin/mv "$@"\n')
  slow.chmod(0o755)
  launcher = stubs.start('local.sh', '-n', '2', *RUN)
  stubs.wait_for('ready.0', 'ready.1')
  launcher.send_signal(signal.SIGTERM)
  stubs.wait_for('moving.0.new', 'moving.1.new')
  launcher.send_signal(signal.SIGTERM)
  said, errors = launcher.communicate(timeout=60)
  assert launcher.returncode == 75, errors
  assert said.count('saving') == 2


def _mentions(pid: str, text: str) -> bool:
  try:
    with open(f'/proc/{pid}/cmdline') as file:
      return text in file.read()
  except OSError:
    return False


def test_a_dry_run_prints_the_commands(stubs):
  dry = stubs.run('local.sh', '-n', '2', '--port=20001', '--dry-run', *RUN, '--config.x=a b')
  assert [shlex.split(line) for line in dry.stdout.splitlines()] == [
      ['env', 'JAX_PLATFORMS=cpu', 'python', '-m', 'distill_jax.main', '--coordinator=localhost:20001', '--processes=2',
       f'--process={process}', RUN[1], '--config.x=a b'] for process in range(2)]
  assert not stubs.calls('python')


@pytest.mark.parametrize('arguments,message', [
    (RUN, 'how many processes'), (('-n', '0', *RUN), 'at least one'), (('-n', 'two', *RUN), 'not a whole number'),
    (('-n', '2'), 'nothing to run'), (('-n',), '-n needs a value'), (('-n', '2', '--nodes=2', *RUN), "unknown flag '--nodes'"),
    (('-n', '2', '--env=HOME', *RUN), "unknown flag '--env'"), (('-n', '2', '--devices=', *RUN), '--devices: the value is empty')])
def test_wrong_commands_say_what_is_wrong(stubs, arguments, message):
  done = stubs.run('local.sh', *arguments)
  assert (done.returncode, message in done.stderr) == (2, True), done.stderr


def test_without_python(without):
  done = without('python').run('local.sh', '-n', '2', *RUN)
  assert done.returncode == 1 and 'python is not installed' in done.stderr
