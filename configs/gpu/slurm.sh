#!/bin/bash
# A pretraining run under Slurm that goes on after each end of its time and each preemption, until it is finished:
#   sbatch configs/gpu/slurm.sh RUN --config 7b --data SHARDS
#   sbatch --nodes 1 configs/gpu/slurm.sh RUN --config qwen3-600m --data SHARDS
# Submit from an environment in which `fledge` is found; RUN and SHARDS are on a shared file system. Not measured on a GPU.
#SBATCH --job-name=fledge
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
# Five minutes before the end, SIGUSR1 makes all processes write a checkpoint and exit with 130; a preemption does by SIGTERM.

run=${1:?usage: sbatch slurm.sh RUN [options of fledge pretrain train]}
shift
trap : TERM USR1 # this script waits for the processes that the same signal stops

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export WORLD_SIZE=$SLURM_NTASKS LOCAL_WORLD_SIZE=$SLURM_NTASKS_PER_NODE

if [ -f "$run/config.yaml" ]; then # written last of what makes a run
  set -- --resume "$run"
else
  set -- --out "$run" "$@"
fi
# One task a GPU and no launcher between: launchers die of SIGUSR1.
srun bash -c 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID exec fledge pretrain train "$@"' fledge "$@"
code=$?
if [ "$code" -eq 130 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
