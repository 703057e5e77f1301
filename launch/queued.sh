#!/usr/bin/env bash
# A TPU slice through a queued resource: waits for it, runs as tpu.sh does, and after a preemption deletes it, queues again and continues.
#
#   launch/queued.sh --name kd --type v5litepod-64 --zone us-west4-a --spot -- --config=configs/gsm8k.py:full --workdir=gs://BUCKET/kd
#
#   --name NAME           of the queued resource and of its node (required)
#   --type TYPE           accelerator type, such as v5litepod-64 (needed to create it)
#   --version VERSION     runtime image (default: the one for JAX of that type)
#   --zone, --project     default: gcloud's configuration
#   --spot                spot capacity (default: on demand)
#   --reserved            capacity of a reservation
#   --commit COMMIT       of this checkout to send (default HEAD); with --git a branch, tag or full hash
#   --git URL             the workers fetch the code from there instead
#   --setup COMMAND       shell command on every worker before the installation
#   --env NAME            pass this environment variable (any number of times); values are never printed
#   --restarts N          how often to run again after exit code 75 or a preemption (default 20)
#   --grace SECONDS       how long a worker has to save when it is ended (default 120)
#   --poll SECONDS        between two looks at a state (default 20)
#   --stop                end the program that runs there (it saves), start nothing
#   --delete              delete the queued resource at the end; without a program after --: now
#   --dry-run             print what would be run, run nothing
#
# The program outlives a dropped connection and Ctrl-C here; the same command follows it again. Exit code: the program's.
set -euo pipefail
# shellcheck source=launch/parts.sh
. "$(dirname "${BASH_SOURCE[0]}")/parts.sh"
# shellcheck source=launch/pod.sh
. "$(dirname "${BASH_SOURCE[0]}")/pod.sh"
flag_restarts=20 switch_spot='' switch_reserved=''

spot() { [ -n "$switch_spot" ]; }

queued() { run gcloud compute tpus queued-resources "$@" "--zone=$flag_zone" "--project=$flag_project"; }

look() {
  ask queued describe "$flag_name" '--format=value(state.state,tpu.nodeSpec[0].node.acceleratorType)'
  read -r STATE KIND <<<"$ANSWER" || true
  KIND=${KIND##*/}
  case $STATE in
    ACTIVE) STATE=READY ;;
    SUSPENDING | SUSPENDED) STATE=LOST ;;
  esac
}

create() {
  queued create "$flag_name" "--node-id=$flag_name" "--accelerator-type=$flag_type" "--runtime-version=$flag_version" \
    ${switch_spot:+--spot} ${switch_reserved:+--reserved}
}

remove() { queued delete "$flag_name" --force --quiet; }

run_pod "$@"
