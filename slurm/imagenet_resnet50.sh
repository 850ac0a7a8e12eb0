#!/usr/bin/env bash
# ResNet-50 on ImageNet-1k: one node, eight GPUs, one task a GPU.
#
#   sbatch slurm/imagenet_resnet50.sh data.root=/data/imagenet [key=value ...]
#
# Submit from the folder that is to hold runs/: the run folder is runs/imagenet_resnet50/<job id>, and what the tasks say
# goes to a file beside runs/ (a folder in --output would have to exist: Slurm does not make it, and the job would fail
# without a word). Partition and account: sbatch -p ... -A ...
#
# Two minutes before the time limit the tasks get SIGUSR1: they save and leave, and the job ends with 75. Another job
# goes on with: restrain resume runs/imagenet_resnet50/<job id>, or --run with that folder.
#SBATCH --job-name=imagenet_resnet50
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --mem=0
#SBATCH --time=12:00:00
#SBATCH --signal=USR1@120
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
#SBATCH --requeue
set -euo pipefail

# Not by way of $0: Slurm runs a copy of this script from its spool folder.
cd "$SLURM_SUBMIT_DIR"
export PATH="$PWD/.venv/bin:$PATH"
# Since Slurm 22.05 a step does not take --cpus-per-task over from its job.
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"

# A task that has left may not take the others with it: one of them may still be writing the checkpoint.
# exec: signals to the batch step reach srun, and srun's exit code is the job's.
exec srun --kill-on-bad-exit=0 restrain train imagenet_resnet50 "$@"
