"""The job script of examples/, with an srun and a scontrol that only say what they were told."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "examples/train.sbatch"


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (75, True), (5, False)])
def test_job(tmp_path: Path, code: int, requeued: bool) -> None:
    for name in ("srun", "scontrol"):
        program = tmp_path / name
        program.write_text(
            f'#!/bin/bash\necho {name} "$@" OMP=$OMP_NUM_THREADS >> {tmp_path}/told\n'
            f"[ {name} = scontrol ] || exit {code}\n"
        )
        program.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "4711", "SLURM_CPUS_PER_TASK": "8"}
    done = subprocess.run(["bash", str(SCRIPT), "my.yaml", "seed=2"], env=environment, check=False)
    assert done.returncode == code
    told = (tmp_path / "told").read_text().splitlines()
    assert told[0] == "srun --kill-on-bad-exit=1 spintune run my.yaml seed=2 OMP=8"
    assert told[1:] == (["scontrol requeue 4711 OMP=8"] if requeued else [])


def test_one_task_for_each_gpu() -> None:
    settings = dict(
        line.removeprefix("#SBATCH --").split("=", 1) if "=" in line else (line.removeprefix("#SBATCH --"), "")
        for line in SCRIPT.read_text().splitlines()
        if line.startswith("#SBATCH")
    )
    assert settings["ntasks-per-node"] == settings["gpus-per-node"]
    assert settings["signal"] == "USR1@300"  # before the time is over, so that ranks can save
    assert "requeue" in settings
