# shellcheck shell=bash
# Sourced by the scripts beside it: flags, errors, quoting, --dry-run, the code to send. Runs on bash 3.2 (macOS) and later.
#
# A script declares its flags by their defaults before it calls read_flags "$@":
#   flag_name=''       --name VALUE or --name=VALUE       switch_spot=''       --spot
# and finds the program's own arguments, those after --, in ARGS.

ARGS=()
ENV_NAMES=()
# shellcheck disable=SC2034
flag_env=''          # --env NAME, any number of times: collected in ENV_NAMES
switch_dry_run=''    # --dry-run
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
ME=launch/$(basename "$0")

say() { printf '%s\n' "$ME: $*" >&2; }

fail() { say "$@"; exit 1; }

wrong() { say "$@"; exit 2; }    # a wrong command

# What the comment at the head of the script says.
print_usage() { sed -n '2,/^[^#]/{s/^# \{0,1\}//p;}' "$0"; }

read_flags() {
  local name value variable
  while [ $# -gt 0 ]; do
    case $1 in
      --) shift; ARGS=("$@"); break ;;
      -h | --help) print_usage; exit 0 ;;
      -n) name=n ;;
      --?*) name=${1#--}; name=${name%%=*} ;;
      *) wrong "unexpected argument '$1': the program's own arguments come after --" ;;
    esac
    case $name in *[!a-z-]*) wrong "unknown flag '${1%%=*}'; --help lists the flags" ;; esac
    variable=switch_${name//-/_}
    if [ -n "${!variable+known}" ]; then
      case $1 in *=*) wrong "--$name takes no value" ;; esac
      printf -v "$variable" yes
      shift
      continue
    fi
    variable=flag_${name//-/_}
    [ -n "${!variable+known}" ] || wrong "unknown flag '${1%%=*}'; --help lists the flags (the program's own flags come after --)"
    case $1 in
      --*=*) value=${1#*=}; shift ;;
      *)
        [ $# -gt 1 ] || wrong "$1 needs a value"
        case $2 in --*) wrong "$1 needs a value, got the flag '$2'" ;; esac
        value=$2; shift 2 ;;
    esac
    [ -n "$value" ] || wrong "--$name: the value is empty"
    if [ "$name" = env ]; then add_env "$value"; else printf -v "$variable" '%s' "$value"; fi
  done
}

# --env NAME: the name only, so that no value stands in a command line, where `ps` and logs show it.
add_env() {
  case $1 in
    *=*) wrong "--env ${1%%=*}=...: give the name only and export the value; a value in a command line can be read by others" ;;
    [0-9]* | *[!A-Za-z0-9_]*) wrong "--env $1: not the name of an environment variable" ;;
  esac
  [ -n "${!1+set}" ] || wrong "--env $1: not set here; export $1=... first"
  ENV_NAMES=(${ENV_NAMES[@]+"${ENV_NAMES[@]}"} "$1")
}

need_flags() {
  local name variable
  for name; do
    variable=flag_${name//-/_}
    [ -n "${!variable}" ] || wrong "--$name is missing; --help shows an example"
  done
}

need_numbers() {
  local name variable
  for name; do
    variable=flag_${name//-/_}
    case ${!variable} in '' | *[!0-9]*) wrong "--$name ${!variable}: not a whole number" ;; esac
  done
}

need_arguments() {
  [ ${#ARGS[@]} -gt 0 ] ||
    wrong "nothing to run: give the program's arguments after --, such as -- --config=configs/gsm8k.py:full --workdir=gs://BUCKET/gsm8k"
}

# need_tool TOOL WHERE-TO-GET-IT. A dry run works without the tool.
need_tool() {
  [ -n "$switch_dry_run" ] || command -v "$1" >/dev/null || fail "$1 is not installed: $2"
}

need_gcloud() { need_tool gcloud 'get the Google Cloud CLI from https://cloud.google.com/sdk/docs/install, then: gcloud init'; }

# The words as a shell reads them back, in one line per newline of theirs: spaces, quotes and commas survive ssh.
quote() {
  local word line=''
  for word; do
    case $word in
      '' | *[!A-Za-z0-9_./:=@%+,-]*)
        word=$(printf '%s.' "$word" | sed "s/'/'\\\\''/g")    # the dot keeps newlines at the end
        word="'${word%.}'" ;;
    esac
    line="$line${line:+ }$word"
  done
  printf '%s' "$line"
}

# Runs the command, or prints it where --dry-run is given.
run() {
  if [ -n "$switch_dry_run" ]; then
    quote "$@"
    echo
  else
    "$@"
  fi
}

# A line of explanation in the output of --dry-run.
note() { [ -z "$switch_dry_run" ] || printf '# %s\n' "$*"; }

note_env() {
  local name
  for name in ${ENV_NAMES[@]+"${ENV_NAMES[@]}"}; do note "with $name=***"; done
}

# The value of --workdir among the program's arguments, or nothing.
workdir() {
  local arg value='' next=''
  for arg in ${ARGS[@]+"${ARGS[@]}"}; do
    [ -z "$next" ] || value=$arg
    next=''
    case $arg in
      --workdir=* | -workdir=*) value=${arg#*=} ;;
      --workdir | -workdir) next=yes ;;
    esac
  done
  printf '%s' "$value"
}

# The full name of the commit that flag $1 asks for, in this checkout.
commit_of() {
  git -C "$ROOT" rev-parse --verify --quiet "$1^{commit}" ||
    fail "no commit '$1' in $ROOT: the code that is sent is a commit of this checkout (or give --git URL)"
}

# What is not committed is not sent: say so.
warn_of_changes() {
  [ -z "$(git -C "$ROOT" status --porcelain --untracked-files=no 2>/dev/null)" ] ||
    say "warning: changes that are not committed are not sent; commit ${1:-HEAD} is"
}
