#!/usr/bin/env bash
# Trains imagenet_deit_b under Slurm, one task a GPU, on as many nodes as it is given.
#
#   sbatch [--nodes=N] [option ...] THIS_FILE [key=value ...]
#
# Submit from the folder that is to hold runs/: the run folder is RECIPE/JOB in there, and what tasks say
# goes to a file beside it (a folder in --output would have to exist: Slurm does not make it, and the job
# would fail without a word). Options of sbatch go before those below, key=value before the recipe's.
#
# Before the time limit the tasks get SIGUSR1: they save and leave, and the job ends with 75. Another job
# goes on with: restrain resume RUN_FOLDER, or --run with that folder.
#SBATCH --job-name=imagenet_deit_b
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@120
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
#SBATCH --requeue
set -euo pipefail

# Not by way of $0: Slurm runs a copy of this script from its spool folder.
cd "$SLURM_SUBMIT_DIR"
export PATH="$PWD/.venv/bin:$PATH"
command -v restrain >/dev/null || {
  echo "error: no restrain on PATH: submit from a folder with .venv, or name it in the site file" >&2
  exit 2
}
# Since Slurm 22.05 a step does not take --cpus-per-task over from its job.
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"

# A task that has left may not take the others with it: one of them may still be writing the checkpoint.
# exec: signals to the batch step reach srun, and srun's exit code is the job's.
exec srun --kill-on-bad-exit=0 restrain train imagenet_deit_b "$@"
