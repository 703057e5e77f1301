# shellcheck shell=bash
# Sourced by tpu.sh and queued.sh: one job on all workers of a TPU slice, run again while its exit code says so.
#
# The script that sources it defines   look     sets STATE (NOT_FOUND, READY, LOST, FAILED, or what gcloud says) and KIND (accelerator type)
#                                      create   asks for the resource
#                                      remove   deletes it
#                                      spot     whether it may be preempted

AGAIN=75    # EX_TEMPFAIL: saved, the same command continues
JOB=distill_jax_job    # directory on the workers
ON_WORKER="bash $JOB/on_worker.sh"
flag_name='' flag_zone='' flag_project='' flag_type='' flag_version=''
flag_restarts=0 flag_commit=HEAD flag_git='' flag_setup='' flag_grace=120 flag_poll=20
switch_delete='' switch_stop=''
# shellcheck disable=SC2034    # ANSWER is for the scripts that source this
STATE='' KIND='' ANSWER='' CODE=''

# The runtime image that the documentation of Cloud TPU gives for JAX.
runtime_version() {
  case $1 in
    v2-* | v3-* | v4-*) echo tpu-ubuntu2204-base ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) wrong "--version: which runtime image for type $1? gcloud compute tpus tpu-vm versions list --zone=$flag_zone" ;;
  esac
}

# The value of a gcloud property where the flag is missing.
configured() {
  local value=''
  if command -v gcloud >/dev/null; then value=$(gcloud config get-value "$1" 2>/dev/null) || value=''; fi
  [ -n "$value" ] || wrong "no $2: give --$2, or \`gcloud config set $1 ...\`"
  printf '%s' "$value"
}

read_pod_flags() {
  read_flags "$@"
  need_flags name
  need_numbers restarts grace poll
  case $flag_name in *[!a-z0-9-]* | [!a-z]* | *-) wrong "--name $flag_name: small letters, digits and -, a letter first" ;; esac
  need_gcloud
  [ -n "$flag_zone" ] || flag_zone=$(configured compute/zone zone)
  [ -n "$flag_project" ] || flag_project=$(configured core/project project)
  if [ ${#ARGS[@]} -eq 0 ] && [ -n "$switch_delete$switch_stop" ]; then return; fi
  need_arguments
  [ -z "$switch_stop" ] || wrong '--stop ends what runs; it takes no program after --'
  if [ -n "$flag_type" ] && [ -z "$flag_version" ]; then flag_version=$(runtime_version "$flag_type"); fi
  case $(workdir) in
    gs://*) ;;
    *)
      if spot && [ "$flag_restarts" -gt 0 ]; then
        wrong '--workdir=gs://BUCKET/DIR is needed: the disk of a preempted VM is lost, the next could not continue (or --restarts 0)'
      fi
      say 'warning: --workdir is not gs://...: results stay on the workers and go with them' ;;
  esac
}

# tpu VERB ... and on WORKER COMMAND: gcloud for this resource.
tpu() { run gcloud compute tpus tpu-vm "$@" "--zone=$flag_zone" "--project=$flag_project"; }

on() { tpu ssh "$flag_name" "--worker=$1" "--command=$2" --ssh-flag=-oServerAliveInterval=30 --ssh-flag=-oServerAliveCountMax=4; }

# ask COMMAND ...: sets ANSWER to its standard output, or NOT_FOUND; any other error ends the script.
# shellcheck disable=SC2034
ask() {
  if [ -n "$switch_dry_run" ]; then "$@"; return; fi
  if ANSWER=$("$@" 2>"$stage/error"); then return; fi
  ANSWER=NOT_FOUND
  grep -qiE 'not_found|not found' "$stage/error" || { cat "$stage/error" >&2; fail "gcloud could not describe $flag_name (above)"; }
}

# Name of the job: the same command and code have the same.
identify() {
  commit=$flag_commit
  if [ -z "$flag_git" ]; then
    commit=$(commit_of "$flag_commit")
    warn_of_changes "$commit"
  fi
  id="$commit $(quote "$flag_git" "${ARGS[@]}" | cksum | tr ' ' -)"
}

# What is sent to the workers, in $stage. The environment goes in a file of mode 600, never in a command line.
pack() {
  local name
  mkdir "$stage/job"
  cp "$ROOT/launch/on_worker.sh" "$stage/job/"
  [ -n "$flag_git" ] || git -C "$ROOT" archive --output="$stage/job/code.tar" "$commit"
  printf '%s\n' "git=$(quote "$flag_git")" "commit=$(quote "$commit")" extra=tpu "setup=$(quote "$flag_setup")" >"$stage/job/settings"
  quote -m distill_jax.main "${ARGS[@]}" >"$stage/job/command"
  for name in ${ENV_NAMES[@]+"${ENV_NAMES[@]}"}; do printf 'export %s=%s\n' "$name" "$(quote "${!name}")"; done >"$stage/job/environment"
  echo "$id" >"$stage/job/id"
  COPYFILE_DISABLE=1 tar -czf "$stage/$JOB.tgz" -C "$stage/job" .
}

begin() {
  note "$JOB.tgz holds on_worker.sh, the environment (mode 600), the command, and the code: ${flag_git:-$ROOT} at $commit"
  note "  python $(quote -m distill_jax.main "${ARGS[@]}" | tr '\n' ' ')"
  note_env
  (cd "$stage" && tpu scp "$JOB.tgz" "$flag_name:" --worker=all) &&
    on all "mkdir -p $JOB && tar -xzf $JOB.tgz -C $JOB && rm $JOB.tgz && $ON_WORKER install" &&
    on all "$ON_WORKER start"
}

# Counts a restart, once for each start of the job; ends the script when they are used up.
again() {
  [ -z "$counted" ] || return 0
  counted=yes
  if [ "$restarts" -ge "$flag_restarts" ]; then
    say "$1; no restarts left of --restarts $flag_restarts. The same command continues."
    conclude "$AGAIN"
  fi
  restarts=$((restarts + 1))
  say "$1; restart $restarts of $flag_restarts"
}

conclude() {
  [ -z "$switch_delete" ] || { say "deleting $flag_name"; remove || say "$flag_name could not be deleted (above)"; }
  exit "$1"
}

# What a resource that is there already would be made anew as.
remember_kind() {
  flag_type=${flag_type:-$KIND}
  [ -n "$flag_version" ] || flag_version=$(runtime_version "$flag_type" 2>/dev/null) || flag_version=''
}

# Returns when the resource is ready, which it makes or makes anew where needed.
make_ready() {
  local said=''
  while :; do
    look
    [ "$STATE" = "$said" ] || say "$flag_name: $STATE"
    said=$STATE
    case $STATE in
      NOT_FOUND) need_flags type; create || fail "gcloud could not create $flag_name (above)" ;;
      READY)
        [ -z "$flag_type" ] || [ "$KIND" = "$flag_type" ] ||
          wrong "$flag_name exists with type $KIND, not $flag_type: take another --name, or delete it (--delete)"
        remember_kind
        return ;;
      LOST) remember_kind; need_flags type version; again "$flag_name was preempted"; remove ;;
      FAILED)
        say "$flag_name failed; this says why: gcloud compute tpus queued-resources describe $flag_name --zone=$flag_zone"
        fail '--delete without a program removes it' ;;
      *) sleep "$flag_poll" ;;
    esac
  done
}

# What to do about a step that failed: again when the resource is gone, else the end.
blame() {
  look
  [ "$STATE" != READY ] || fail "$1 failed on $flag_name (above)"
  again "$flag_name is gone ($STATE)"
}

# A line for each worker: none, or what on_worker.sh says.
states() { on all "$ON_WORKER state 2>/dev/null || echo none"; }

# Starts the job where it does not run yet. Fails when the workers cannot be reached.
attach_or_begin() {
  local states line here=0 all=0
  states=$(states) || return 1
  while IFS= read -r line; do
    case $line in
      "running $id") here=$((here + 1)) ;;
      'running '*) fail "$flag_name runs another job (${line#running }): end it with --stop, or take another --name" ;;
    esac
    all=$((all + 1))
  done <<<"$states"
  if [ "$here" -eq "$all" ]; then say 'it runs there already; following it'; return; fi
  [ "$here" -eq 0 ] || on all "$ON_WORKER finish 0 $flag_grace"    # the rest of a start that broke
  begin
}

# Streams the log of worker 0 until the job ends, and sets CODE from the exit codes of all workers.
watch() {
  local lines state tries=0
  on 0 "$ON_WORKER follow" || true
  while :; do
    state=$(on 0 "$ON_WORKER state") || state=''
    case $state in
      running*) say 'the connection dropped; the job runs on'; tries=0; on 0 "$ON_WORKER follow again" || true ;;
      '')
        look
        CODE=$AGAIN
        [ "$STATE" = READY ] || return 0
        tries=$((tries + 1))
        [ "$tries" -lt 10 ] || fail "$flag_name is ready but does not answer; the job may still run: the same command follows it"
        sleep "$flag_poll" ;;
      *) break ;;
    esac
  done
  CODE=''
  lines=$(on all "$ON_WORKER finish $flag_grace $flag_grace") || CODE=1    # some worker did not answer
  judge "$lines"
  [ "$CODE" -eq 0 ] || [ "$CODE" -eq "$AGAIN" ] || { look; [ "$STATE" = READY ] || CODE=$AGAIN; }
}

# judge LINES: one exit code of many. Somebody saved: again. Else what failed by itself, before who was stopped because of it.
judge() {
  local line code saved='' failed='' stopped=''
  while IFS= read -r line; do
    case $line in 'worker '*' exit '*) say "$line" ;; *) continue ;; esac
    code=${line##* }
    case $code in
      0) ;;
      "$AGAIN") saved=yes ;;
      137) if spot; then saved=yes; else failed=${failed:-$code}; fi ;;
      stopped) stopped=1 ;;
      *) failed=${failed:-$code} ;;
    esac
  done <<<"$1"
  if [ -n "$saved" ]; then CODE=$AGAIN; else CODE=${failed:-${stopped:-${CODE:-0}}}; fi
}

show_plan() {
  identify
  note "until $flag_name is ready:"
  look
  if [ -n "$flag_type" ]; then note 'unless it exists:'; create; else note 'it must exist (no --type)'; fi
  note 'what runs there?'
  states
  note 'unless it is this job:'
  begin
  note 'the log of worker 0 until it ends (and again where the connection dropped), then the exit code of every worker:'
  on 0 "$ON_WORKER follow"
  on 0 "$ON_WORKER state"
  on all "$ON_WORKER finish $flag_grace $flag_grace"
  if [ "$flag_restarts" -eq 0 ]; then
    note "exit code $AGAIN, or preempted: ends with $AGAIN (no --restarts)"
  else
    note "exit code $AGAIN: the same again; preempted: deleted, created, and the same again; up to $flag_restarts times in all"
  fi
  if [ -n "$switch_delete" ]; then note 'at the end, however it ends:'; remove; else note "$flag_name is left as it is (no --delete)"; fi
}

# What --stop and --delete do where no program is given.
tidy() {
  if [ -n "$switch_stop" ]; then on all "$ON_WORKER finish 0 $flag_grace" || fail "--stop did not reach all workers of $flag_name"; fi
  if [ -n "$switch_delete" ]; then remove; fi
}

run_pod() {
  read_pod_flags "$@"
  restarts=0 counted=''
  if [ ${#ARGS[@]} -eq 0 ]; then tidy; exit; fi
  if [ -n "$switch_dry_run" ]; then stage=.; show_plan; exit; fi
  umask 077
  stage=$(mktemp -d)
  trap 'rm -rf "$stage"' EXIT
  identify
  pack
  trap 'say "interrupted; $flag_name and what runs there go on. The same command follows again, --stop ends the program."; exit 130' INT
  while :; do
    make_ready
    counted=''
    attach_or_begin || { blame 'starting'; continue; }
    watch
    [ "$CODE" -eq "$AGAIN" ] || break
    again 'saved and to be continued'
  done
  say "exit code $CODE"
  conclude "$CODE"
}
