#!/usr/bin/env bash
# TPU slices of a GKE cluster, as an XPK workload that is restarted on exit code 75 and after a preemption.
#
#   launch/xpk.sh --cluster pods --name kd --type v5litepod-256 --slices 2 --env HF_TOKEN \
#     -- --config=configs/gsm8k.py:full --workdir=gs://BUCKET/kd
#
#   --cluster CLUSTER     the GKE cluster, made by `xpk cluster create` (required)
#   --name NAME           of the workload (required)
#   --type TYPE           TPU type of the cluster (required)
#   --slices N            how many slices (default 1)
#   --image IMAGE         run in this image, which holds distill_jax and its environment; the code here is not sent
#   --base-image IMAGE    put the code on top of this one and install it at the start (default python:3.12)
#   --commit COMMIT       of this checkout to put there (default HEAD)
#   --zone, --project     default: gcloud's configuration
#   --env NAME            pass this environment variable (any number of times); values are never printed
#   --restarts N          how often to run again (default 20)
#   --grace SECONDS       how long a pod has to save when it is ended (default 120)
#   --wait                stay until the workload ends (exit code 0 done, 125 failed)
#   --delete              delete the workload; with a program after --: at the end (needs --wait)
#   --dry-run             print what would be run, run nothing
#
# The log: `kubectl logs -f -l jobset.sigs.k8s.io/jobset-name=NAME`, or the link that XPK prints.
set -euo pipefail
# shellcheck source=launch/parts.sh
. "$(dirname "${BASH_SOURCE[0]}")/parts.sh"

flag_cluster='' flag_name='' flag_type='' flag_slices=1 flag_image='' flag_base_image='' flag_commit=HEAD flag_zone='' flag_project=''
flag_restarts=20 flag_grace=120 switch_wait='' switch_delete=''
read_flags "$@"
need_flags cluster name
need_numbers slices restarts grace
case $flag_name in *[!a-z0-9-]* | [!a-z]* | *-) wrong "--name $flag_name: small letters, digits and -, a letter first" ;; esac
[ ${#flag_name} -le 40 ] || wrong "--name $flag_name: longer than XPK's 40 characters"
[ -z "$flag_image" ] || [ -z "$flag_base_image" ] || wrong 'give one of --image (runs as it is) and --base-image (the code is added)'
need_tool xpk 'pip install xpk (https://github.com/AI-Hypercomputer/xpk)'
need_gcloud

cluster=("--cluster=$flag_cluster")
[ -z "$flag_zone" ] || cluster=("${cluster[@]}" "--zone=$flag_zone")
[ -z "$flag_project" ] || cluster=("${cluster[@]}" "--project=$flag_project")
remove() { run xpk workload delete "--workload=$flag_name" "${cluster[@]}" --force; }
if [ ${#ARGS[@]} -eq 0 ] && [ -n "$switch_delete" ]; then remove; exit; fi

need_flags type
need_arguments
[ -z "$switch_delete" ] || [ -n "$switch_wait" ] || wrong '--delete at the end of the program needs --wait'
case "$(workdir)" in gs://*) ;; *) wrong "--workdir=gs://BUCKET/DIR is needed: a pod's own disk goes with the pod" ;; esac
# exec: SIGTERM reaches the program itself. One line: XPK writes the command into a line of YAML.
program="exec python3 -m distill_jax.main $(quote "${ARGS[@]}")"
case $program in *$'\n'*) wrong 'an argument holds a line break; XPK cannot pass it: put the value into the recipe' ;; esac

stage=.
if [ -z "$switch_dry_run" ]; then
  umask 077
  stage=$(mktemp -d)
  trap 'rm -rf "$stage"' EXIT
fi
create=(xpk workload create "--workload=$flag_name" "${cluster[@]}" "--tpu-type=$flag_type" "--num-slices=$flag_slices")
if [ -n "$flag_image" ]; then
  create=("${create[@]}" "--docker-image=$flag_image")
else
  commit=$(commit_of "$flag_commit")
  warn_of_changes "$commit"
  note "code/ holds $ROOT at $commit"
  if [ -z "$switch_dry_run" ]; then
    mkdir -m 755 "$stage/code"
    (umask 022; git -C "$ROOT" archive "$commit" | tar -xf - -C "$stage/code")
  fi
  create=("${create[@]}" "--base-docker-image=${flag_base_image:-python:3.12}" --script-dir=code)
  program="python3 -m pip install --quiet --editable '.[tpu]' && $program"
fi
if [ ${#ENV_NAMES[@]} -gt 0 ]; then
  note_env
  note 'env.names holds those names; XPK takes the values from the environment'
  [ -n "$switch_dry_run" ] || printf '%s\n' "${ENV_NAMES[@]}" >"$stage/env.names"
  create=("${create[@]}" --env-file=env.names)
fi
create=("${create[@]}" "--command=$program" "--max-restarts=$flag_restarts" --restart-on-exit-codes=75
  "--termination-grace-period-seconds=$flag_grace")
(cd "$stage" && run "${create[@]}")
if [ -n "$switch_wait" ]; then
  code=0
  run xpk workload list "${cluster[@]}" "--wait-for-job-completion=$flag_name" || code=$?
  [ -z "$switch_delete" ] || remove
  exit "$code"
fi
