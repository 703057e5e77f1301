#!/usr/bin/env bash
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
#SBATCH --open-mode=append
# Batch script of slurm.sh: one process a task; on exit code 75 (saved, to be continued) the job goes back into the queue.
#
#   sbatch --nodes=2 --ntasks-per-node=1 --gpus-per-node=8 launch/slurm_job.sh --restarts=20 -- --config=... --workdir=...
set -uo pipefail

restarts=20
case ${1-} in --restarts=*) restarts=${1#*=}; shift ;; esac
[ "${1-}" != -- ] || shift
[ $# -gt 0 ] || { echo 'slurm_job.sh: nothing to run: give the arguments of distill_jax.main after --' >&2; exit 2; }
[ -n "${SLURM_JOB_ID-}" ] || { echo 'slurm_job.sh: not in a SLURM job: submit it with launch/slurm.sh' >&2; exit 2; }

# JAX gives each task the one GPU of its number on the node; a task that is alone on its node takes them all.
gpus=${SLURM_GPUS_ON_NODE:-0}
if [ "$gpus" -gt 1 ] && [ "${SLURM_NTASKS_PER_NODE:-1}" -eq 1 ]; then
  JAX_LOCAL_DEVICE_IDS=$(seq -s , 0 $((gpus - 1)))
  export JAX_LOCAL_DEVICE_IDS
fi
export PYTHONUNBUFFERED=1

# SIGTERM comes to this shell only, 120 s before the time limit: hand it to the tasks (srun itself would kill them).
trap 'told=yes; scancel --signal=TERM "$SLURM_JOB_ID"' TERM
# Who ends first must not cut short who still saves: a task that ends badly does not kill the others before 180 s.
srun --kill-on-bad-exit=0 --wait=180 "${PYTHON:-python}" -m distill_jax.main "$@" &
step=$!
code=127
while    # a signal ends `wait`, not the step; 127: its code was given before
  told=''
  wait "$step"
  ended=$?
  [ "$ended" -eq 127 ] || code=$ended
  [ -n "$told" ]
do :; done

[ "$code" -eq 75 ] || exit "$code"
if [ "${SLURM_RESTART_COUNT:-0}" -ge "$restarts" ]; then
  echo "slurm_job.sh: no restarts left of $restarts; submit the same command again to continue" >&2
  exit 75
fi
# A job that was cancelled ends with 75, too, and must not rise again.
case $(scontrol show job "$SLURM_JOB_ID") in
  *JobState=RUNNING*) ;;
  *) exit 75 ;;
esac
echo "slurm_job.sh: saved; requeueing (restart $((${SLURM_RESTART_COUNT:-0} + 1)) of $restarts)" >&2
scontrol requeue "$SLURM_JOB_ID"
