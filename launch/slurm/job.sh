#!/bin/bash
# {{title}}
# Written by python -m launch slurm. Watch it: python -m launch status {{run}} --follow
{{directives}}
#SBATCH --output={{run}}/slurm/%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=USR1@{{save_seconds}}

# After a requeue Slurm runs this script again from the top, with the same job id and run folder.
run={{run}}
python={{python}}
cd {{cwd}} || exit 2
{{setup}}
read -r MASTER_ADDR MASTER_PORT < <("$python" -m launch.slurm.address) || exit 1
export MASTER_ADDR MASTER_PORT

# Slurm signals the tasks too when it ends the job: they save a checkpoint, and this script waits for them.
trap : TERM USR1
srun {{srun}} \
    {{command}}
code=$?

# 75: requeue the job. If this script exited then, the job would be over, so it waits until Slurm ends it.
trap '' TERM USR1
"$python" -m launch.slurm.requeue "$run" "$code" --max-restarts {{max_restarts}}
code=$?
if [ "$code" -eq 75 ]; then
    for _ in {1..10}; do # SLURM's controller may be away for a moment
        scontrol requeue "$SLURM_JOB_ID" && sleep 600
        sleep 15
    done
fi
exit "$code"
