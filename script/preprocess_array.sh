#!/usr/bin/env bash
#SBATCH --job-name=tsan-preprocess
#SBATCH --array=1-16
#SBATCH --cpus-per-task=1
#SBATCH --mem=3G
#SBATCH --time=24:00:00
#PBS -N tsan-preprocess
#PBS -J 1-16
#PBS -l select=1:ncpus=1:mem=3gb
#PBS -l walltime=24:00:00
#$ -N tsan-preprocess
#$ -t 1-16
#$ -l h_vmem=3G
#$ -S /bin/bash
#BSUB -J tsan-preprocess[1-16]
#BSUB -n 1
#BSUB -W 24:00
#
# Thousands of scans on a cluster: an array of one-core jobs, each of which does its share, all into
# one folder. Edit the block and the 16 of the array above, then, from the repository's folder:
#   sbatch script/preprocess_array.sh                 SLURM
#   qsub script/preprocess_array.sh                   PBS Pro, OpenPBS, SGE
#   bsub < script/preprocess_array.sh                 LSF
# A share that was cut off is submitted again: what is done is skipped. At the end, once more
#   bash script/preprocess.sh SCANS... --output_dir OUT
# tries again what failed and makes the page of all pictures.
set -euo pipefail

SCANS=(scans)        # as for script/preprocess.sh; seen by all machines, the same for all jobs
OUTPUT=scans_on_grid # the same
SHARES=16            # as in the array above

# Schedulers run a copy of this file from elsewhere.
cd "${SLURM_SUBMIT_DIR:-${PBS_O_WORKDIR:-${SGE_O_WORKDIR:-${LS_SUBCWD:?submit it as an array}}}}"
SHARE="${SLURM_ARRAY_TASK_ID:-${PBS_ARRAY_INDEX:-${SGE_TASK_ID:-${LSB_JOBINDEX:?no array index}}}}"

bash script/preprocess.sh "${SCANS[@]}" --output_dir "$OUTPUT" --shard "$SHARE/$SHARES" --jobs 1 "$@"
