"""launch/tpu.sh and launch/queued.sh against a stub gcloud whose workers are directories and whose ssh evaluates the command."""
import os
import shlex
import signal
import stat
import subprocess
import time

import pytest

WHERE = ('--name=kd', '--zone=z', '--project=p', '--poll=0')
TPU = (*WHERE, '--type=v5litepod-16')
RUN = ('--', '--config=configs/gsm8k.py:tiny', '--workdir=gs://b/kd')
NASTY = [
    "--config.x='it''s, \"so\"'", '--workdir=gs://b/a  b', '$HOME `id` $(id) \\ ; & | * ? ~ # ! {a,b} <x>', '', 'line\nbreak\n', "'",
    'é,ü=%s']


def verbs(calls):
  """The calls that change something, in short."""
  short = []
  for call in calls:
    if call[0] == 'config':
      continue
    verb = call[3]
    command = next((arg.split('=', 1)[1] for arg in call if arg.startswith('--command=')), '')
    if verb == 'ssh':
      verb = command.rpartition('on_worker.sh ')[2]
    if verb != 'describe' and not verb.startswith('state'):
      short.append(verb)
  return short


def program(stubs, worker):
  return stubs.calls(f'main.{worker}')


@pytest.mark.parametrize('script,states', [('tpu.sh', ('NOT_FOUND', 'CREATING v5litepod-16', 'READY v5litepod-16')),
                                           ('queued.sh', ('NOT_FOUND', 'WAITING_FOR_RESOURCES v5litepod-16', 'ACTIVE v5litepod-16'))])
def test_creates_installs_runs_streams_and_leaves_the_resource(stubs, script, states):
  stubs.answer('describe', *states)
  done = stubs.run(script, *TPU, '--spot', *RUN)
  assert done.returncode == 0, done.stderr
  assert 'hello from 0' in done.stdout and 'hello from 1' not in done.stdout
  assert verbs(stubs.calls('gcloud')) == ['create', 'scp', 'install', 'start', 'follow', 'finish 120 120']
  for worker in '01':
    assert program(stubs, worker) == [['-m', 'distill_jax.main', '--config=configs/gsm8k.py:tiny', '--workdir=gs://b/kd']]
    home = stubs.place / 'workers' / worker
    assert stubs.said(f'directory.{worker}').strip() == str(home / 'distill_jax_job' / 'code')
    assert (home / 'distill_jax_job' / 'code' / 'setup.cfg').exists()
  installed = [call for call in stubs.calls('python') if 'pip' in call]
  assert installed == 2 * [['-m', 'pip', 'install', '--quiet', '--editable', 'code[tpu]']]
  for state in states[1:]:
    assert state.split()[0] in done.stderr.replace('kd: READY', 'kd: ACTIVE READY')


def test_arguments_survive_ssh(stubs):
  stubs.answer('describe', 'READY v5litepod-16')
  done = stubs.run('tpu.sh', *TPU, '--', *NASTY)
  assert done.returncode == 0, done.stderr
  for worker in '01':
    assert program(stubs, worker) == [['-m', 'distill_jax.main', *NASTY]]


def test_values_of_the_environment_arrive_and_are_shown_nowhere(stubs):
  secret = "s3cr3t 'quoted' $x\nsecond line"
  stubs.answer('describe', 'READY v5litepod-16')
  done = stubs.run('tpu.sh', *TPU, '--env', 'HF_TOKEN', '--env=OTHER', *RUN, HF_TOKEN=secret, OTHER='other-value')
  dry = stubs.run('tpu.sh', *TPU, '--env', 'HF_TOKEN', '--env=OTHER', '--dry-run', *RUN, HF_TOKEN=secret, OTHER='other-value')
  assert done.returncode == dry.returncode == 0, done.stderr
  assert 'HF_TOKEN=***' in dry.stdout and 'OTHER=***' in dry.stdout
  told = done.stdout + done.stderr + dry.stdout + dry.stderr + str(stubs.calls('gcloud'))
  assert 's3cr3t' not in told and 'other-value' not in told
  for worker in '01':
    assert f'HF_TOKEN={secret}\n' in stubs.said(f'environment.{worker}')
    kept = stubs.place / 'workers' / worker / 'distill_jax_job' / 'environment'
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600


@pytest.mark.parametrize('script,ready', [('tpu.sh', 'READY'), ('queued.sh', 'ACTIVE')])
def test_a_dry_run_prints_exactly_what_runs(stubs, script, ready):
  flags = (*TPU, '--spot', '--delete', '--restarts=0', *RUN)
  dry = stubs.run(script, *flags[:-3], '--dry-run', *RUN)
  assert dry.returncode == 0, dry.stderr
  assert not stubs.calls('gcloud')
  describe, *printed = [shlex.split(line) for line in dry.stdout.splitlines() if not line.startswith('#')]
  stubs.answer('describe', 'NOT_FOUND', f'{ready} v5litepod-16')
  done = stubs.run(script, *flags)
  assert done.returncode == 0, done.stderr
  first, *ran = [['gcloud', *call] for call in stubs.calls('gcloud')]
  assert first == describe
  assert [call for call in ran if call != describe] == printed
  assert ran[-1][4] == 'delete' and 'describe' in describe


def test_exit_code_75_runs_again_on_the_same_machine(stubs):
  stubs.answer('describe', 'READY v5litepod-16')
  stubs.answer('codes.0', 75, 75, 0)
  stubs.answer('codes.1', 75, 0)
  done = stubs.run('tpu.sh', *TPU, '--restarts=2', *RUN)
  assert done.returncode == 0, done.stderr
  assert verbs(stubs.calls('gcloud')).count('start') == 3 and 'create' not in verbs(stubs.calls('gcloud'))
  assert program(stubs, '0') == 3 * [program(stubs, '0')[0]]


def test_restarts_are_limited(stubs):
  stubs.answer('describe', 'READY v5litepod-16')
  stubs.answer('codes.0', 75)
  done = stubs.run('tpu.sh', *TPU, '--restarts=1', *RUN)
  assert done.returncode == 75 and 'no restarts left of --restarts 1' in done.stderr
  assert len(program(stubs, '0')) == 2


@pytest.mark.parametrize('codes,expected', [((2, 134), 2), ((0, 1), 1)])
def test_an_error_stops(stubs, codes, expected):
  stubs.answer('describe', 'READY v5litepod-16')
  for worker, code in enumerate(codes):
    stubs.answer(f'codes.{worker}', code)
  done = stubs.run('tpu.sh', *TPU, '--restarts=5', *RUN)
  assert done.returncode == expected, done.stderr
  assert len(program(stubs, '0')) == 1


@pytest.mark.parametrize('codes,on_demand,on_spot', [
    ('0 0', 0, 0), ('1 0', 1, 1), ('0 1', 1, 1), ('130 130', 130, 130), ('137 1', 137, 75), ('1 137', 1, 75), ('75 1', 75, 75),
    ('1 75', 75, 75), ('stopped 0', 1, 1), ('stopped 3', 3, 3), ('75 stopped', 75, 75), ('0', 0, 0)])
def test_one_exit_code_of_many(stubs, codes, on_demand, on_spot):
  lines = '\n'.join(f'worker {place} exit {code}' for place, code in enumerate(codes.split()))
  for spot, expected in (('false', on_demand), ('true', on_spot)):
    script = f'. launch/parts.sh; . launch/pod.sh; spot() {{ {spot}; }}; judge "$1"; exit $CODE'
    assert subprocess.run(['bash', '-c', script, 'x', lines], cwd=stubs.checkout, capture_output=True).returncode == expected


def test_a_preempted_queued_resource_is_deleted_created_and_continues(stubs):
  states = ('ACTIVE', 'SUSPENDED', 'SUSPENDED', 'NOT_FOUND', 'PROVISIONING', 'ACTIVE')
  stubs.answer('describe', *(f'{state} v5litepod-16' for state in states))
  stubs.answer('codes.0', 'preempt', 0)
  done = stubs.run('queued.sh', *TPU, '--spot', '--restarts=1', *RUN)
  assert done.returncode == 0, done.stderr
  assert verbs(stubs.calls('gcloud')) == [
      'scp', 'install', 'start', 'follow', 'delete', 'create', 'scp', 'install', 'start', 'follow', 'finish 120 120']
  assert 'restart 1 of 1' in done.stderr


def test_a_killed_process_is_run_again_on_spot_only(stubs):
  stubs.answer('describe', 'ACTIVE v5litepod-16')
  stubs.answer('codes.0', 137, 0)
  assert stubs.run('queued.sh', *TPU, '--spot', *RUN).returncode == 0
  stubs.answer('codes.0', 137, 0)
  assert stubs.run('queued.sh', *TPU, *RUN).returncode == 137


def test_an_interrupted_launcher_follows_again_and_others_are_refused(stubs):
  stubs.answer('describe', 'READY v5litepod-16')
  stubs.answer('codes.0', 'wait')
  stubs.answer('codes.1', 'wait')
  first = stubs.start('tpu.sh', *TPU, *RUN)
  stubs.wait_for('ready.0', 'ready.1')
  os.killpg(first.pid, signal.SIGINT)
  said = first.communicate(timeout=60)[1]
  assert first.returncode == 130 and 'kd and what runs there go on' in said
  other = stubs.run('tpu.sh', *TPU, '--', '--config=configs/other.py')
  assert other.returncode == 1 and 'runs another job' in other.stderr
  second = stubs.start('tpu.sh', *TPU, *RUN)
  time.sleep(0.5)
  stopped = stubs.run('tpu.sh', *WHERE, '--stop')
  assert stopped.returncode == 0 and stopped.stdout.count('exit stopped') == 2
  said, errors = second.communicate(timeout=60)
  assert second.returncode == 75, errors
  assert 'hello from 0' in said and 'saving' in said and 'it runs there already' in errors
  assert len(program(stubs, '0')) == 1


def test_who_hangs_is_ended_and_the_failure_is_told(stubs):
  stubs.answer('describe', 'READY v5litepod-16')
  stubs.answer('codes.0', 3)
  stubs.answer('codes.1', 'stubborn')
  done = stubs.run('tpu.sh', *TPU, '--grace=0', '--restarts=3', *RUN)
  assert done.returncode == 3, done.stderr
  assert 'exit stopped' in done.stderr


def test_what_a_run_left_in_the_code_directory_stays_and_files_no_longer_sent_go(stubs):
  stubs.answer('describe', 'READY v5litepod-16')
  assert stubs.run('tpu.sh', *TPU, *RUN).returncode == 0
  job = stubs.place / 'workers' / '0' / 'distill_jax_job'
  (job / 'code' / 'runs').mkdir()
  (job / 'code' / 'runs' / 'result').write_text('x')
  (job / 'code' / 'gone.py').write_text('x')
  (job / 'code.files').write_text((job / 'code.files').read_text() + 'gone.py\n')
  assert stubs.run('tpu.sh', *TPU, *RUN).returncode == 0
  assert (job / 'code' / 'runs' / 'result').exists() and (job / 'code' / 'setup.cfg').exists() and not (job / 'code' / 'gone.py').exists()


def test_code_from_git(stubs, tmp_path):
  origin = tmp_path / 'origin'
  stubs.answer('describe', 'READY v5litepod-16')
  subprocess.run(['bash', '-c', f'''
      git init -q {origin} && cd {origin} && echo 1 >a && git add a
      git -c user.name=a -c user.email=a@b commit -qm a && git tag one && git rm -q a'''], check=True)
  done = stubs.run('tpu.sh', *TPU, f'--git={origin}', '--commit=one', '--setup=echo "set up" >../setup_ran', *RUN)
  assert done.returncode == 0, done.stderr
  assert (tmp_path / 'workers' / '1' / 'distill_jax_job' / 'code' / 'a').read_text() == '1\n'
  assert (tmp_path / 'workers' / '1' / 'setup_ran').read_text() == 'set up\n'


def test_delete_alone_deletes_and_runs_nothing(stubs):
  done = stubs.run('queued.sh', *WHERE, '--delete')
  assert done.returncode == 0
  assert [call[2:5] for call in stubs.calls('gcloud')] == [['queued-resources', 'delete', 'kd']]


def test_zone_and_project_come_from_the_configuration(stubs):
  stubs.answer('config.zone', 'configured-zone')
  stubs.answer('config.project', 'configured-project')
  dry = stubs.run('tpu.sh', '--name=kd', '--type=v6e-8', '--dry-run', *RUN)
  assert '--zone=configured-zone --project=configured-project' in dry.stdout and 'v2-alpha-tpuv6e' in dry.stdout


@pytest.mark.parametrize('script,arguments,code,message', [
    ('tpu.sh', (*RUN,), 2, '--name is missing'),
    ('tpu.sh', ('--name=kd', '--zone=z', *RUN), 2, 'no project: give --project'),
    ('tpu.sh', ('--name=kd', '--project=p', *RUN), 2, 'no zone: give --zone'),
    ('tpu.sh', (*TPU, '--typ=x', *RUN), 2, "unknown flag '--typ'"),
    ('tpu.sh', (*TPU, '--name', '--spot', *RUN), 2, '--name needs a value'),
    ('tpu.sh', (*TPU, '--spot=yes', *RUN), 2, '--spot takes no value'),
    ('tpu.sh', (*TPU, 'configs/gsm8k.py', *RUN), 2, "unexpected argument 'configs/gsm8k.py'"),
    ('tpu.sh', TPU, 2, 'nothing to run'),
    ('tpu.sh', (*TPU, '--name=KD_1', *RUN), 2, 'small letters'),
    ('tpu.sh', (*TPU, '--restarts=many', *RUN), 2, 'not a whole number'),
    ('tpu.sh', (*TPU, '--type=v9-1', *RUN), 2, '--version'),
    ('tpu.sh', (*TPU, '--env=UNSET_NAME', *RUN), 2, '--env UNSET_NAME: not set here'),
    ('tpu.sh', (*TPU, '--env=TOKEN=abc', *RUN), 2, 'give the name only'),
    ('tpu.sh', (*TPU, '--commit=nonsense', *RUN), 1, "no commit 'nonsense'"),
    ('tpu.sh', (*WHERE, *RUN), 2, '--type is missing'),
    ('queued.sh', (*TPU, '--spot', '--', '--config=x'), 2, '--workdir=gs://BUCKET/DIR is needed'),
])
def test_wrong_commands_say_what_is_wrong(stubs, script, arguments, code, message):
  stubs.answer('describe', 'NOT_FOUND')
  done = stubs.run(script, *arguments)
  assert (done.returncode, message in done.stderr) == (code, True), done.stderr
  assert not verbs(stubs.calls('gcloud'))
  assert 'abc' not in done.stderr


@pytest.mark.parametrize('script,state,code,message', [
    ('tpu.sh', 'READY v5litepod-8', 2, 'kd exists with type v5litepod-8, not v5litepod-16'),
    ('tpu.sh', 'STOPPED v5litepod-16', 1, 'tpu-vm start kd'),
    ('tpu.sh', 'PREEMPTED v5litepod-16', 75, 'no restarts left'),
    ('tpu.sh', 'PERMISSION_DENIED', 1, 'PERMISSION_DENIED: tpu.nodes.get'),
    ('queued.sh', 'FAILED v5litepod-16', 1, 'kd failed'),
])
def test_states_nothing_can_run_on(stubs, script, state, code, message):
  stubs.answer('describe', state)
  done = stubs.run(script, *TPU, *RUN)
  assert (done.returncode, message in done.stderr) == (code, True), done.stderr
  assert not verbs(stubs.calls('gcloud'))


def test_no_capacity(stubs):
  stubs.answer('describe', 'NOT_FOUND')
  stubs.answer('create', 1)
  done = stubs.run('tpu.sh', *TPU, *RUN)
  assert done.returncode == 1 and 'could not create kd' in done.stderr
  assert verbs(stubs.calls('gcloud')) == ['create']


def test_without_gcloud(without):
  done = without('gcloud').run('tpu.sh', *TPU, *RUN)
  assert done.returncode == 1 and 'gcloud is not installed' in done.stderr and 'https://cloud.google.com/sdk' in done.stderr
