#!/usr/bin/env bash
# Runs on a TPU VM, where tpu.sh and queued.sh unpack it: installs the code, keeps the program running when ssh drops, says how it ended.
#
#   on_worker.sh install              Python environment and code of this job
#   on_worker.sh start                the program, in the background, output into `log`
#   on_worker.sh state                none | running ID | ended CODE ID | died ID      (ID names command and code)
#   on_worker.sh follow [again]       the log from this start on (again: from now on) until the program ends
#   on_worker.sh finish WAIT GRACE    waits WAIT s for the end, then SIGTERM, after GRACE s SIGKILL; prints `worker HOST exit CODE|stopped`
#
# Beside it: command (the program's arguments, quoted), settings, environment (mode 600), id, code.tar.
# It makes code/ venv/ log log_start exit_code runner.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

running() { [ -f runner ] && grep -q on_worker "/proc/$(cat runner)/cmdline" 2>/dev/null; }

# A Python of 3.11 or newer: the system's, or one that uv fetches.
make_environment() {
  [ ! -x venv/bin/python ] || return 0
  if python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' && python3 -m venv venv; then return 0; fi
  rm -rf venv
  python3 -m pip install --quiet --target=uv uv
  uv/bin/uv venv --quiet --seed --python 3.12 venv
}

# The code as it was sent or as git has it. Only files that were sent are removed again: what a run wrote below code/ stays.
get_code() {
  mkdir -p code
  if [ -n "$git" ]; then
    git init --quiet code
    git -C code fetch --quiet --depth 1 "$git" "$commit"
    git -C code checkout --quiet --force --detach FETCH_HEAD
    return
  fi
  [ ! -f code.files ] || (cd code && grep -v '/$' ../code.files | tr '\n' '\0' | xargs -0 rm -f --)
  tar -xf code.tar -C code
  tar -tf code.tar >code.files
}

install() {
  git='' commit='' extra='' setup=''
  # shellcheck source=/dev/null
  . ./settings
  [ -z "$setup" ] || bash -c "$setup"
  make_environment
  get_code
  venv/bin/python -m pip install --quiet --editable "code[$extra]"
}

start() {
  if running; then return; fi
  rm -f exit_code
  echo "== $(date -u '+%Y-%m-%d %H:%M:%S') UTC, $(cat id)" >>log
  stat -c %s log >log_start
  setsid nohup bash "$PWD/on_worker.sh" run </dev/null >>log 2>&1 &
  echo $! >runner
}

# The program itself, in code/; SIGTERM is passed on and its answer awaited.
run() {
  echo $$ >runner
  # shellcheck source=/dev/null
  . ./environment
  local child told code=127 ended
  cd code
  eval "set -- $(cat ../command)"
  PYTHONUNBUFFERED=1 ../venv/bin/python "$@" &
  child=$!
  trap 'told=yes; kill -TERM "$child" 2>/dev/null' TERM
  set +e
  while    # a signal ends `wait`, not the program; 127: its code was given before
    told=''
    wait "$child"
    ended=$?
    [ "$ended" -eq 127 ] || code=$ended
    [ -n "$told" ]
  do :; done
  echo "$code" >../exit_code.new && mv ../exit_code.new ../exit_code
}

state() {
  if [ ! -f id ]; then echo none
  elif running; then echo "running $(cat id)"
  elif [ -f exit_code ]; then echo "ended $(cat exit_code) $(cat id)"
  elif [ -f runner ]; then echo "died $(cat id)"
  else echo none
  fi
}

follow() {
  local at size ended=''
  at=$(cat log_start)
  [ "${1-}" != again ] || at=$(stat -c %s log)
  while [ -z "$ended" ]; do
    running || ended=yes    # asked before the last look: no line is lost, as `tail --pid` may lose them
    size=$(stat -c %s log)
    [ "$size" -le "$at" ] || head -c "$size" log | tail -c "+$((at + 1))"
    at=$size
    [ -n "$ended" ] || sleep 0.2
  done
}

# wait_for SECONDS: whether the program has ended by then.
wait_for() {
  local until=$((SECONDS + $1))
  while running; do
    [ "$SECONDS" -lt "$until" ] || return 1
    sleep 0.2
  done
}

finish() {
  local how=''
  if ! wait_for "$1"; then
    how=stopped
    kill -TERM "$(cat runner)" 2>/dev/null || true
    wait_for "$2" || kill -KILL -- "-$(cat runner)" 2>/dev/null || true
  fi
  [ -n "$how" ] || how=$(cat exit_code 2>/dev/null || echo 137)    # no code: killed, and so was the shell that would have written it
  echo "worker $(hostname) exit $how"
}

case ${1-} in
  install | start | state | follow | finish | run) "$@" ;;
  *) echo "on_worker.sh: unknown command '${1-}'" >&2; exit 2 ;;
esac
