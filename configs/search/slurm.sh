#!/usr/bin/env bash
# One search by eight GPUs of a cluster: every task of the array is a worker, and all spend one budget.
#     mkdir -p runs && sbatch configs/search/slurm.sh --config configs/folder.yaml --space configs/search/wide.yaml --trials 200 --data.root /shared/flowers
# The journal lies on the disk that all nodes share; with a database server instead: STORAGE=postgresql+pg8000://user@host/optuna sbatch ...
# After a time limit, or with more --trials, submit the same line again: workers join the search that is there.
#SBATCH --job-name=search
#SBATCH --array=0-7
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --signal=B:TERM@60
#SBATCH --output=runs/search-%A_%a.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"
storage=${STORAGE:-journal:$PWD/runs/search.journal}
# `exec`, so that SLURM's signal reaches the search itself: it then puts its trial back into the queue.
exec python -m project search --storage "$storage" "$@"
