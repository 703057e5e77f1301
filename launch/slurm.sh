#!/usr/bin/env bash
# Submits to SLURM: launch/slurm_job.sh on GPU (or CPU) nodes, requeued by itself on exit code 75.
#
#   launch/slurm.sh --name kd --nodes 2 --gpus 8 --time 12:00:00 --sbatch=--partition=gpu \
#     -- --config=configs/gsm8k.py:full --workdir=/shared/kd
#
#   --name NAME           of the job (default distill_jax)
#   --nodes N             how many nodes (default 1)
#   --gpus G              GPUs of each node (default: none, runs on the CPU)
#   --per node|gpu        one process for each node (default) or for each GPU
#   --time LIMIT          time limit; 120 s before it the program saves and the job is requeued
#   --restarts N          how often the job may requeue itself (default 20)
#   --env NAME            fail here unless this variable is exported (SLURM passes the whole environment); values are never printed
#   --sbatch='FLAG ...'   more flags for sbatch, such as --sbatch='--partition=gpu --account=me'
#   --dry-run             print what would be run, run nothing
#
# Before: `pip install -e '.[gpu]'` into an environment that all nodes see, and activate it. The log: NAME-JOBID.out in this directory.
set -euo pipefail
# shellcheck source=launch/parts.sh
. "$(dirname "${BASH_SOURCE[0]}")/parts.sh"

flag_name=distill_jax flag_nodes=1 flag_gpus=0 flag_per=node flag_time='' flag_restarts=20 flag_sbatch=''
read_flags "$@"
need_numbers nodes gpus restarts
need_arguments
need_tool sbatch 'run this on a login node of the SLURM cluster'
tasks=1
case $flag_per in
  node) ;;
  gpu)
    [ "$flag_gpus" -gt 0 ] || wrong '--per gpu: how many GPUs has a node? --gpus G'
    tasks=$flag_gpus ;;
  *) wrong "--per $flag_per: node or gpu" ;;
esac

submit=(sbatch "--job-name=$flag_name" "--output=$flag_name-%j.out" "--nodes=$flag_nodes" "--ntasks-per-node=$tasks")
[ "$flag_gpus" -eq 0 ] || submit=("${submit[@]}" "--gpus-per-node=$flag_gpus")
[ -z "$flag_time" ] || submit=("${submit[@]}" "--time=$flag_time")
if [ -n "$flag_sbatch" ]; then
  read -r -a more <<<"$flag_sbatch"
  submit=("${submit[@]}" "${more[@]}")
fi
submit=("${submit[@]}" "$ROOT/launch/slurm_job.sh" "--restarts=$flag_restarts" -- "${ARGS[@]}")
note_env
note "launch/slurm_job.sh asks for --requeue --signal=B:TERM@120 and runs on the first node:"
note "  srun --kill-on-bad-exit=0 --wait=180 python -m distill_jax.main $(quote "${ARGS[@]}" | tr '\n' ' ')"
run "${submit[@]}"
