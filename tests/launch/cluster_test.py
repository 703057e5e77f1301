"""launch/xpk.sh, launch/slurm.sh and launch/slurm_job.sh against stubs."""
import os
import shlex
import signal
import subprocess

import pytest

RUN = ('--', '--config=configs/gsm8k.py:tiny', '--workdir=gs://b/kd')
XPK = ('--cluster=pods', '--name=kd', '--type=v5litepod-256', '--zone=z', '--project=p')
NASTY = ["it''s \"so\"", '$HOME `id` $(id) \\ ; & | * ? ~ # !', '', '{a, b}', 'é=%s']


def flags(call):
  return dict(arg.removeprefix('--').partition('=')[::2] for arg in call if arg.startswith('--'))


def printed(dry):
  """The commands of a dry run."""
  return [shlex.split(line) for line in dry.stdout.splitlines() if not line.startswith('#')]


def test_an_xpk_workload_installs_the_code_and_restarts_on_75(stubs):
  stubs.insert('xpk', 'ls code; cat env.names')
  done = stubs.run('xpk.sh', *XPK, '--slices=2', '--restarts=3', '--env=HF_TOKEN', *RUN, *NASTY, HF_TOKEN='s3cr3t')
  assert done.returncode == 0, done.stderr
  assert 'setup.cfg' in done.stdout and 'HF_TOKEN\n' in done.stdout
  (call,) = stubs.calls('xpk')
  assert call[:2] == ['workload', 'create']
  given = flags(call)
  command = given.pop('command')
  assert given == {
      'workload': 'kd', 'cluster': 'pods', 'zone': 'z', 'project': 'p', 'tpu-type': 'v5litepod-256', 'num-slices': '2',
      'base-docker-image': 'python:3.12', 'script-dir': 'code', 'env-file': 'env.names', 'max-restarts': '3', 'restart-on-exit-codes': '75',
      'termination-grace-period-seconds': '120'}
  assert 's3cr3t' not in str(call) + done.stdout + done.stderr
  assert '\n' not in command
  subprocess.run(['bash', '-c', f'({command})'], env=stubs.environment | {'HOME': '/nowhere/pod'}, check=True, capture_output=True)
  assert stubs.calls('python3')[0] == ['-m', 'pip', 'install', '--quiet', '--editable', '.[tpu]']
  assert stubs.calls('main.pod') == [['-m', 'distill_jax.main', *RUN[1:], *NASTY]]


def test_an_image_that_holds_the_code_runs_as_it_is(stubs):
  assert stubs.run('xpk.sh', *XPK, '--image=gcr.io/p/kd', *RUN).returncode == 0
  given = flags(stubs.calls('xpk')[0])
  assert given['docker-image'] == 'gcr.io/p/kd' and 'script-dir' not in given and 'base-docker-image' not in given
  assert given['command'] == 'exec python3 -m distill_jax.main --config=configs/gsm8k.py:tiny --workdir=gs://b/kd'


def test_waiting_for_an_xpk_workload_returns_its_end(stubs):
  stubs.answer('xpk.code', 0, 125, 0)
  done = stubs.run('xpk.sh', *XPK, '--wait', '--delete', *RUN)
  assert done.returncode == 125
  assert [call[:2] for call in stubs.calls('xpk')] == [['workload', 'create'], ['workload', 'list'], ['workload', 'delete']]
  assert flags(stubs.calls('xpk')[1])['wait-for-job-completion'] == 'kd'


def test_an_xpk_dry_run_prints_exactly_what_runs(stubs):
  arguments = (*XPK, '--env=HF_TOKEN', '--wait', '--delete')
  dry = stubs.run('xpk.sh', *arguments, '--dry-run', *RUN, *NASTY, HF_TOKEN='s3cr3t')
  assert dry.returncode == 0 and 'HF_TOKEN=***' in dry.stdout and 's3cr3t' not in dry.stdout
  assert not stubs.calls('xpk')
  assert stubs.run('xpk.sh', *arguments, *RUN, *NASTY, HF_TOKEN='s3cr3t').returncode == 0
  assert printed(dry) == [['xpk', *call] for call in stubs.calls('xpk')]


@pytest.mark.parametrize('arguments,message', [
    (('--name=kd', *RUN), '--cluster is missing'), (('--cluster=c', '--name=kd', *RUN), '--type is missing'),
    ((*XPK, '--', '--config=x'), '--workdir=gs://'), ((*XPK, '--name=Kd', *RUN), 'small letters'),
    ((*XPK, '--name=' + 41 * 'a', *RUN), 'longer than'), ((*XPK, '--image=a', '--base-image=b', *RUN), 'give one of'),
    ((*XPK, *RUN, 'two\nlines'), 'line break'),
    ((*XPK, '--delete', *RUN), 'needs --wait'), ((*XPK, '--tpu=x', *RUN), "unknown flag '--tpu'")])
def test_wrong_xpk_commands_say_what_is_wrong(stubs, arguments, message):
  done = stubs.run('xpk.sh', *arguments)
  assert (done.returncode, message in done.stderr) == (2, True), done.stderr
  assert not stubs.calls('xpk')


@pytest.mark.parametrize('tool,script,arguments', [
    ('xpk', 'xpk.sh', (*XPK, *RUN)), ('gcloud', 'xpk.sh', (*XPK, *RUN)), ('sbatch', 'slurm.sh', RUN)])
def test_a_missing_tool_is_named(without, tool, script, arguments):
  done = without(tool).run(script, *arguments)
  assert done.returncode == 1 and f'{tool} is not installed: ' in done.stderr
  assert without('srun').run(script, *arguments[:-3], '--dry-run', *arguments[-3:]).returncode == 0


@pytest.mark.parametrize('per,tasks', [('node', 1), ('gpu', 8)])
def test_slurm_submits(stubs, per, tasks):
  arguments = ('--name=kd', '--nodes=2', '--gpus=8', f'--per={per}', '--time=1:0:0', '--sbatch=--partition=gpu --account=me',
               '--restarts=3')
  dry = stubs.run('slurm.sh', *arguments, '--dry-run', *RUN, *NASTY)
  assert not stubs.calls('sbatch')
  done = stubs.run('slurm.sh', *arguments, *RUN, *NASTY)
  assert done.returncode == dry.returncode == 0, done.stderr
  assert printed(dry) == [['sbatch', *call] for call in stubs.calls('sbatch')]
  assert stubs.calls('sbatch') == [[
      '--job-name=kd', '--output=kd-%j.out', '--nodes=2', f'--ntasks-per-node={tasks}', '--gpus-per-node=8', '--time=1:0:0',
      '--partition=gpu', '--account=me', str(stubs.checkout / 'launch' / 'slurm_job.sh'), '--restarts=3', *RUN, *NASTY]]


@pytest.mark.parametrize('arguments,message', [
    (('--per=gpu', *RUN), 'how many GPUs'), (('--per=core', *RUN), 'node or gpu'), (('--nodes=x', *RUN), 'not a whole number'),
    ((), 'nothing to run'), (('--env=NOT_THERE', *RUN), 'not set here'), (('--partition=x', *RUN), "unknown flag '--partition'")])
def test_wrong_slurm_commands_say_what_is_wrong(stubs, arguments, message):
  done = stubs.run('slurm.sh', *arguments)
  assert (done.returncode, message in done.stderr) == (2, True), done.stderr
  assert not stubs.calls('sbatch')


JOB = dict(SLURM_JOB_ID='42', HOME='/nowhere/task')


def test_the_batch_script_asks_slurm_for_the_signal_and_the_requeue(stubs):
  directives = {line for line in (stubs.checkout / 'launch' / 'slurm_job.sh').read_text().splitlines() if line.startswith('#SBATCH')}
  assert directives == {'#SBATCH --requeue', '#SBATCH --signal=B:TERM@120', '#SBATCH --open-mode=append'}


@pytest.mark.parametrize('code,state,restarted,expected,requeued', [
    (75, 'RUNNING', 0, 0, True), (75, 'RUNNING', 3, 75, False), (75, 'CANCELLED', 0, 75, False), (0, 'RUNNING', 0, 0, False),
    (1, 'RUNNING', 0, 1, False), (2, 'RUNNING', 0, 2, False), (137, 'RUNNING', 0, 137, False)])
def test_a_slurm_job_requeues_itself_on_75_only(stubs, code, state, restarted, expected, requeued):
  stubs.answer('codes.task', code)
  stubs.answer('scontrol.out', f'JobId=42 JobState={state} Reason=None')
  done = stubs.run('slurm_job.sh', '--restarts=3', *RUN, *NASTY, **JOB, SLURM_RESTART_COUNT=str(restarted))
  assert done.returncode == expected, done.stderr
  assert (['requeue', '42'] in stubs.calls('scontrol')) == requeued
  assert stubs.calls('main.task') == [['-m', 'distill_jax.main', *RUN[1:], *NASTY]]
  assert stubs.calls('srun')[0][:2] == ['--kill-on-bad-exit=0', '--wait=180']


@pytest.mark.parametrize('gpus,tasks,expected', [('8', '1', '0,1,2,3,4,5,6,7'), ('8', '8', None), ('1', '1', None), (None, None, None)])
def test_a_task_alone_on_its_node_takes_all_gpus(stubs, gpus, tasks, expected):
  job = JOB | ({'SLURM_GPUS_ON_NODE': gpus, 'SLURM_NTASKS_PER_NODE': tasks} if gpus else {})
  assert stubs.run('slurm_job.sh', *RUN, **job).returncode == 0
  lines = [line for line in stubs.said('environment.task').splitlines() if line.startswith('JAX_LOCAL_DEVICE_IDS=')]
  assert lines == ([f'JAX_LOCAL_DEVICE_IDS={expected}'] if expected else [])


def test_the_time_limit_lets_the_tasks_save_and_requeues(stubs):
  stubs.answer('codes.task', 'wait')
  stubs.answer('scontrol.out', 'JobState=RUNNING')
  stubs.insert('scancel', 'kill -TERM "$(cat "$STUBS/task")"')
  stubs.insert('srun', 'echo $$ >"$STUBS/task"')
  job = stubs.start('slurm_job.sh', *RUN, **JOB)
  stubs.wait_for('ready.task')
  os.kill(job.pid, signal.SIGTERM)      # B: the batch shell only
  said, errors = job.communicate(timeout=60)
  assert job.returncode == 0, errors
  assert 'saving' in said and stubs.calls('scancel') == [['--signal=TERM', '42']] and ['requeue', '42'] in stubs.calls('scontrol')


@pytest.mark.parametrize('arguments,job,message', [((), JOB, 'nothing to run'), (RUN, {}, 'not in a SLURM job')])
def test_a_batch_script_that_is_run_wrongly_says_so(stubs, arguments, job, message):
  done = stubs.run('slurm_job.sh', *arguments, **job)
  assert done.returncode == 2 and message in done.stderr
