"""Stubs of gcloud, xpk, sbatch, srun, scontrol, scancel and python: they record their arguments and answer as a test tells them."""
import os
import pathlib
import shutil
import signal
import subprocess
import time
from typing import NamedTuple

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
REAL = ('gcloud', 'xpk', 'sbatch', 'srun', 'scontrol', 'scancel', 'kubectl', 'ssh', 'scp', 'python', 'python3')   # never the machine's own

# Appends the arguments to $STUBS/calls/TOOL, a NUL after each, RS NUL after a call.
# next_line FILE: its first line, which goes unless it is the last.
RECORD = '''#!/bin/bash
tool=$(basename "$0")
{ printf '%s\\0' "$@"; printf '\\036\\0'; } >>"$STUBS/calls/$tool"
next_line() {
  [ -f "$1" ] || return 1
  head -n 1 "$1"
  [ "$(wc -l <"$1")" -lt 2 ] || sed -i 1d "$1"
}
'''

# Workers are directories $STUBS/workers/0, 1, ...: homes on as many machines. ssh evaluates the command as a remote shell does;
# Ctrl-C ends the connection and not what runs there.
GCLOUD = RECORD + '''
over_ssh() {
  local pipe=$STUBS/pipe.$$ reader code
  rm -f "$pipe"
  mkfifo "$pipe"
  cat <"$pipe" &
  reader=$!
  trap 'kill "$reader"; exit 130' INT
  (cd "$1" && HOME=$1 exec setsid bash -c "$command" >"$pipe" 2>"$pipe.errors" </dev/null) &
  wait $!
  code=$?
  wait "$reader"
  cat "$pipe.errors" >&2
  return "$code"
}
for arg; do
  case $arg in --worker=*) worker=${arg#*=} ;; --command=*) command=${arg#*=} ;; esac
done
case "$3 $4 $1 $2" in
  *'config get-value') next_line "$STUBS/answers/config.${3##*/}"; exit ;;
  *' describe '*)
    answer=$(next_line "$STUBS/answers/describe")
    case $answer in
      NOT_FOUND*) echo "ERROR: (gcloud.describe) NOT_FOUND: Resource was not found" >&2; exit 1 ;;
      PERMISSION*) echo "ERROR: (gcloud.describe) PERMISSION_DENIED: tpu.nodes.get" >&2; exit 1 ;;
    esac
    echo "$answer"; exit ;;
  *' create '* | *' delete '*)
    for home in "$STUBS"/workers/*; do rm -rf "$home"; mkdir "$home"; done
    rm -f "$STUBS/answers/unreachable"
    exit "$(next_line "$STUBS/answers/create" || echo 0)" ;;
esac
[ ! -f "$STUBS/answers/unreachable" ] || { echo 'ssh: connect to host: Connection refused' >&2; exit 1; }
[ "$worker" != all ] && homes=$STUBS/workers/$worker || homes=$STUBS/workers/*
status=0
for home in $homes; do
  case $4 in
    scp) cp "$5" "$home/" ;;
    ssh) over_ssh "$home" || { code=$?; [ "$status" -ne 0 ] || status=$code; } ;;
  esac
done
exit $status
'''

# The program: its exit codes stand in $STUBS/answers/codes.WORKER (or .PROCESS), a line a start.
# `wait` waits for a signal, `stubborn` ignores it, `preempt` takes the machine away.
PYTHON = RECORD + '''
[ "$1" = -m ] || exit 0
case $2 in
  venv) mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; exit ;;
  distill_jax.main) ;;
  *) exit 0 ;;
esac
name=$(basename "$HOME")
for arg; do case $arg in --process=*) name=${arg#*=} ;; esac; done
{ printf '%s\\0' "$@"; printf '\\036\\0'; } >>"$STUBS/calls/main.$name"
env >"$STUBS/calls/environment.$name"
pwd >"$STUBS/calls/directory.$name"
echo "hello from $name"
answer=$(next_line "$STUBS/answers/codes.$name" || echo 0)
case $answer in
  wait)
    trap 'echo saving; exit 75' TERM
    trap 'exit 130' INT
    touch "$STUBS/calls/ready.$name"
    while :; do sleep 0.05; done ;;
  stubborn) trap '' TERM; while :; do sleep 0.05; done ;;
  preempt) touch "$STUBS/answers/unreachable"; kill -9 $PPID $$ ;;
  slow*) sleep "${answer#slow}"; exit 0 ;;
esac
echo "bye from $name" >&2
printf 'no newline at the end'
exit "$answer"
'''

ANSWERING = RECORD + '''
next_line "$STUBS/answers/$tool.out"
exit "$(next_line "$STUBS/answers/$tool.code" || echo 0)"
'''

SRUN = RECORD + '''
while [ $# -gt 0 ]; do case $1 in --*) shift ;; *) break ;; esac; done
exec "$@"
'''


class Stubs(NamedTuple):
  place: pathlib.Path       # bin, calls, answers, workers
  checkout: pathlib.Path    # a small one, with launch/ as it is here
  environment: dict         # PATH has the stubs and the machine's ordinary tools only
  started: list             # the processes of start()

  def answer(self, name: str, *lines):
    """What a stub says next: one line a call, the last one for ever."""
    (self.place / 'answers' / name).write_text(''.join(f'{line}\n' for line in lines))

  def calls(self, tool: str) -> list[list[str]]:
    """The arguments of every call so far."""
    file = self.place / 'calls' / tool
    return [call.split('\0')[:-1] for call in file.read_text().split('\x1e\0')[:-1]] if file.exists() else []

  def said(self, name: str) -> str:
    return (self.place / 'calls' / name).read_text()

  def run(self, script: str, *arguments: str, timeout: float = 20, **environment) -> subprocess.CompletedProcess:
    """launch/SCRIPT with the stubs, in a directory of its own."""
    return subprocess.run([self.checkout / 'launch' / script, *arguments], env=self.environment | environment, cwd=self.place,
                          capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL)

  def start(self, script: str, *arguments: str, **environment) -> subprocess.Popen:
    process = subprocess.Popen([self.checkout / 'launch' / script, *arguments], env=self.environment | environment, cwd=self.place,
                               text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, start_new_session=True)
    self.started.append(process)
    return process

  def wait_for(self, *names: str):
    """Until all these files of calls/ are there."""
    until = time.monotonic() + 10
    while not all((self.place / 'calls' / name).exists() for name in names):
      assert time.monotonic() < until, names
      time.sleep(0.02)

  def insert(self, tool: str, line: str):
    """What a stub does besides, after it recorded its arguments."""
    file = self.place / 'bin' / tool
    file.write_text(f'{RECORD}\n{line}\n{file.read_text().removeprefix(RECORD)}')

  def end_everything(self):
    for process in self.started:
      if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
      process.communicate()
    for pid in filter(str.isdigit, os.listdir('/proc')):
      try:
        with open(f'/proc/{pid}/environ') as file:
          ours = f'STUBS={self.place}\0' in file.read()
      except OSError:
        continue
      if ours:
        os.kill(int(pid), signal.SIGKILL)


@pytest.fixture(scope='session')
def ordinary_tools(tmp_path_factory):
  """A directory with the machine's tools, without those that are stubbed: a test never reaches a real cloud."""
  place = tmp_path_factory.mktemp('tools')
  for folder in ('/bin', '/usr/bin'):
    for tool in os.listdir(folder):
      if tool not in REAL and not (place / tool).is_symlink():
        (place / tool).symlink_to(f'{folder}/{tool}')
  return place


@pytest.fixture(scope='session')
def checkout(tmp_path_factory):
  """A git checkout with launch/, setup.cfg and a recipe: sent in no time."""
  place = tmp_path_factory.mktemp('checkout')
  shutil.copytree(ROOT / 'launch', place / 'launch')
  shutil.copy(ROOT / 'setup.cfg', place)
  for command in (['init'], ['add', '.'], ['-c', 'user.name=a', '-c', 'user.email=a@b', 'commit', '-m', 'all']):
    subprocess.run(['git', *command], cwd=place, check=True, capture_output=True)
  return place


@pytest.fixture
def stubs(tmp_path, ordinary_tools, checkout):
  for name in ('bin', 'calls', 'answers', 'workers/0', 'workers/1'):
    (tmp_path / name).mkdir(parents=True)
  texts = dict.fromkeys(('xpk', 'sbatch', 'scontrol', 'scancel'), ANSWERING) | dict(gcloud=GCLOUD, python=PYTHON, python3=PYTHON, srun=SRUN)
  for tool, text in texts.items():
    (tmp_path / 'bin' / tool).write_text(text)
    (tmp_path / 'bin' / tool).chmod(0o755)
  environment = dict(PATH=f'{tmp_path / "bin"}:{ordinary_tools}', STUBS=str(tmp_path), HOME=str(tmp_path), LANG='C.UTF-8')
  made = Stubs(tmp_path, checkout, environment, [])
  yield made
  made.end_everything()


@pytest.fixture
def without(stubs):
  """without(TOOL): the stubs, but that tool is not installed."""
  def remove(tool: str) -> Stubs:
    (stubs.place / 'bin' / tool).unlink()
    return stubs
  return remove
