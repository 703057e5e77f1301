#!/usr/bin/env bash
# Many processes on this machine: `python -m distill_jax.main`, one coordinator, a free port.
#
#   launch/local.sh -n 4 -- --config=configs/gsm8k.py:tiny --workdir=runs/four
#
#   -n N, --processes N   how many (required)
#   --devices D           CPU devices of each process (default: as XLA_FLAGS says)
#   --port PORT           of the coordinator (default: a free one)
#   --grace SECONDS       from SIGTERM to SIGKILL when one has failed (default 60)
#   --dry-run             print the commands, run nothing
#
# Every line is prefixed with the number of its process. SIGTERM and Ctrl-C go to all. When one fails the others are ended; the exit
# code is that of the first that failed. JAX_PLATFORMS is cpu unless set; PYTHON names the interpreter (default: python).
set -euo pipefail
# shellcheck source=launch/parts.sh
. "$(dirname "${BASH_SOURCE[0]}")/parts.sh"

flag_n='' flag_processes='' flag_devices='' flag_port='' flag_grace=60
unset flag_env    # what is exported here reaches the processes anyway
read_flags "$@"
flag_processes=${flag_processes:-$flag_n}
[ -n "$flag_processes" ] || wrong 'how many processes? -n N'
need_numbers processes grace
[ "$flag_processes" -gt 0 ] || wrong "-n $flag_processes: at least one process"
[ -z "$flag_devices" ] || need_numbers devices
[ -z "$flag_port" ] || need_numbers port
need_arguments
python=${PYTHON:-python}
need_tool "$python" 'activate the environment that distill_jax is installed in, or set PYTHON'

# A port nobody listens on, below those that the system hands out by itself.
free_port() {
  local port
  while port=$((20000 + RANDOM % 12000)); (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do :; done
  echo "$port"
}

export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu} PYTHONUNBUFFERED=1
settings=("JAX_PLATFORMS=$JAX_PLATFORMS")
if [ -n "$flag_devices" ]; then
  export XLA_FLAGS="${XLA_FLAGS:+$XLA_FLAGS }--xla_force_host_platform_device_count=$flag_devices"
  settings=("${settings[@]}" "XLA_FLAGS=$XLA_FLAGS")
fi
port=${flag_port:-$(free_port)}

# command_of I: sets COMMAND. One process alone needs no coordinator.
command_of() {
  COMMAND=("$python" -m distill_jax.main)
  [ "$flag_processes" -eq 1 ] || COMMAND=("${COMMAND[@]}" "--coordinator=localhost:$port" "--processes=$flag_processes" "--process=$1")
  COMMAND=("${COMMAND[@]}" "${ARGS[@]}")
}

if [ -n "$switch_dry_run" ]; then
  for ((i = 0; i < flag_processes; i++)); do
    command_of "$i"
    run env "${settings[@]}" "${COMMAND[@]}"
  done
  exit 0
fi

place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT

# Lines of standard input behind a number. It outlives the signals: the last lines are the interesting ones.
prefix() {
  trap '' INT TERM
  local line
  while IFS= read -r line || [ -n "$line" ]; do printf '[%s] %s\n' "$1" "$line"; done
}

# start I: a process in a process group of its own, which leaves its exit code in $place/I.code.
start() {
  command_of "$1"
  mkfifo "$place/$1.pipe"
  prefix "$1" <"$place/$1.pipe" &
  set -m    # a group of its own, and Ctrl-C not ignored as in other background processes: each signal arrives once
  (
    set +e
    trap : INT TERM
    "${COMMAND[@]}"
    code=$?
    trap '' INT TERM    # mv inherits it: another signal must not lose the code
    echo "$code" >"$place/$1.new" && mv "$place/$1.new" "$place/$1.code"
    exit "$code"
  ) </dev/null >"$place/$1.pipe" 2>&1 &
  groups=(${groups[@]+"${groups[@]}"} $!)
  set +m
}

# forward SIGNAL to every process that still runs.
forward() {
  local i
  for ((i = 0; i < ${#groups[@]}; i++)); do
    [ -f "$place/$i.code" ] || kill -s "$1" -- "-${groups[i]}" 2>/dev/null || true
  done
}

groups=() told=''
trap 'told=INT; forward INT' INT
trap 'told=TERM; forward TERM' TERM
for ((i = 0; i < flag_processes; i++)); do
  [ -n "$told" ] || start "$i"
done

first='' failed_at=0 seen=' '
while :; do
  running=0
  for ((i = 0; i < ${#groups[@]}; i++)); do
    if [ -f "$place/$i.code" ]; then
      code=$(cat "$place/$i.code")
    elif kill -0 "${groups[i]}" 2>/dev/null || [ -f "$place/$i.code" ]; then
      running=$((running + 1))
      continue
    else
      wait "${groups[i]}" && code=0 || code=$?    # its shell was killed, too
    fi
    case $seen in *" $i "*) continue ;; esac
    seen="$seen$i "
    [ "$code" -ne 0 ] || continue
    [ -n "$told" ] || say "process $i ended with exit code $code"
    if [ -z "$first" ]; then
      first=$code failed_at=$SECONDS
      [ -n "$told" ] || forward TERM    # who was told already is saving now
    fi
  done
  [ "$running" -gt 0 ] || break
  if [ -n "$first" ] && [ $((SECONDS - failed_at)) -ge "$flag_grace" ]; then forward KILL; fi
  sleep 0.1 &
  wait $! || true
done
wait || true    # for the last lines
exit "${first:-0}"
