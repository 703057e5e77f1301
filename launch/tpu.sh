#!/usr/bin/env bash
# One TPU VM, or a pod slice: creates it unless it exists, sends the code, installs, runs on all workers, streams the log of worker 0.
#
#   launch/tpu.sh --name kd --type v5litepod-16 --zone us-west4-a --env HF_TOKEN -- --config=configs/gsm8k.py:full --workdir=gs://BUCKET/kd
#
#   --name NAME           of the TPU VM (required)
#   --type TYPE           accelerator type, such as v5litepod-8 (needed to create it)
#   --version VERSION     runtime image (default: the one for JAX of that type)
#   --zone, --project     default: gcloud's configuration
#   --spot                create it as a spot VM
#   --commit COMMIT       of this checkout to send (default HEAD); with --git a branch, tag or full hash
#   --git URL             the workers fetch the code from there instead
#   --setup COMMAND       shell command on every worker before the installation
#   --env NAME            pass this environment variable (any number of times); values are never printed
#   --restarts N          how often to run again after exit code 75 or a preemption (default 0)
#   --grace SECONDS       how long a worker has to save when it is ended (default 120)
#   --poll SECONDS        between two looks at a state (default 20)
#   --stop                end the program that runs there (it saves), start nothing
#   --delete              delete the TPU VM at the end; without a program after --: now
#   --dry-run             print what would be run, run nothing
#
# The program outlives a dropped connection and Ctrl-C here; the same command follows it again. Exit code: the program's.
set -euo pipefail
# shellcheck source=launch/parts.sh
. "$(dirname "${BASH_SOURCE[0]}")/parts.sh"
# shellcheck source=launch/pod.sh
. "$(dirname "${BASH_SOURCE[0]}")/pod.sh"
switch_spot=''

spot() { [ -n "$switch_spot" ]; }

look() {
  ask tpu describe "$flag_name" '--format=value(state,acceleratorType)'
  read -r STATE KIND <<<"$ANSWER" || true
  KIND=${KIND##*/}
  case $STATE in
    PREEMPTED | TERMINATED) STATE=LOST ;;
    STOPPED | STOPPING) fail "$flag_name is $STATE: \`gcloud compute tpus tpu-vm start $flag_name --zone=$flag_zone\` starts it" ;;
  esac
}

create() { tpu create "$flag_name" "--accelerator-type=$flag_type" "--version=$flag_version" ${switch_spot:+--spot}; }

remove() { tpu delete "$flag_name" --quiet; }

run_pod "$@"
