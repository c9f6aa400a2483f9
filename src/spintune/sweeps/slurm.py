"""A sweep as a job array of Slurm: one task for each run, and runs that need what others compute start after them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from spintune.storage import atomic_file
from spintune.sweeps.plan import SweepPlan
from spintune.sweeps.sharing import waves


def write_job(plan: SweepPlan, command: Sequence[str], path: Path) -> int:
    """Writes a script that submits the sweep and is its job.

    Args:
        command: the words of the sweep on a command line.

    Returns the number of arrays that it submits, one after another. Raises StorageError.
    """
    groups = waves([run.recipe for run in plan.runs])
    with atomic_file(path) as file:
        file.write(_script(plan, command, path.absolute(), groups).encode())
    return len(groups)


def _script(plan: SweepPlan, command: Sequence[str], path: Path, groups: Sequence[Sequence[int]]) -> str:
    submit = []
    for number, group in enumerate(groups):
        after = ' --dependency="afterany:${wave%%;*}"' if number else ""
        submit.append(f'    wave=$(sbatch --parsable --array={_indices(group)}{after} "$script") || exit')
    return f"""#!/bin/bash
# A sweep of {len(plan.runs)} runs, one for each task of an array. Submit it with: bash {shlex.quote(str(path))}
# Set the time of one run, and add what your cluster needs: --partition, --account, --gres=gpu:1, --mem
#SBATCH --job-name=spintune-sweep
#SBATCH --time=04:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append

script={shlex.quote(str(path))}
cd {shlex.quote(str(Path.cwd()))} || exit
if [ -z "${{SLURM_ARRAY_TASK_ID:-}}" ]; then
    # runs of an array share no work; those of the next copy what its runs have computed
{chr(10).join(submit)}
    exit
fi
srun {shlex.join(command)} --only "$SLURM_ARRAY_TASK_ID/{len(plan.runs)}"
code=$?
if [ "$code" -eq 75 ]; then
    scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID"
fi
exit "$code"
"""


def _indices(places: Sequence[int]) -> str:
    """Places from 0 as indices from 1: ``1-3,7``."""
    ranges: list[list[int]] = []
    for index in (place + 1 for place in places):
        if ranges and ranges[-1][1] == index - 1:
            ranges[-1][1] = index
        else:
            ranges.append([index, index])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)
