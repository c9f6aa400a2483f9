"""Every example runs as its first lines say, with a tiny model and small data."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from command_server import Command

FOLDER = Path(__file__).resolve().parents[2] / "examples"
# arguments of each script: {model}, {data} and {out} are a tiny model, a small file and a new folder
ARGUMENTS = {
    "compare_scores.py": [],
    "fine_tune.py": ["{data}", "{model}", "{out}"],
    "generate_and_score.py": ["{model}"],
    "mixture.py": [str(FOLDER / "data" / "capitals.yaml")],
    "novelty.py": ["{data}"],
    "own_checker.py": ["{data}", "{model}", "{out}"],
    "own_format.py": ["{out}"],
    "own_generator.py": ["{model}"],
    "own_loss.py": ["{data}", "{model}", "{out}"],
    "own_metric.py": ["{data}", "{model}", "{out}"],
    "own_teacher.py": [],
    "own_tracker.py": ["{data}", "{model}", "{out}"],
    "self_play.py": ["{data}", "{model}", "{out}"],
}
SAYS = {
    "compare_scores.py": "right or wrong: p = 0.0",
    "fine_tune.py": "held-out loss",
    "generate_and_score.py": "nats in",
    "mixture.py": "capital",
    "novelty.py": "instructions are novel",
    "own_checker.py": "names_all",
    "own_format.py": "2 examples",
    "own_generator.py": "best-of-four: -",
    "own_loss.py": "loss 0.6931 ->",
    "own_metric.py": "starts_alike",
    "own_teacher.py": "healthy breakfast",
    "own_tracker.py": "sft,1,loss,",
    "self_play.py": "use ",
}


def test_every_script_is_tried() -> None:
    assert {path.name for path in FOLDER.glob("*.py")} == ARGUMENTS.keys() | {"write_data.py"}


# those that load a model take several seconds each
SLOW = [script for script, arguments in ARGUMENTS.items() if "{model}" in arguments]


@pytest.mark.parametrize(
    "script", [pytest.param(script, marks=pytest.mark.slow if script in SLOW else ()) for script in ARGUMENTS]
)
def test_it_runs(script: str, tiny_model: Path, alpaca_file: Path, tmp_path: Path) -> None:
    if not (FOLDER / script).exists():
        pytest.skip("not there yet")
    names = {"model": tiny_model, "data": alpaca_file, "out": tmp_path / "out"}
    arguments = [argument.format_map(names) for argument in ARGUMENTS[script]]
    done = Command(FOLDER / script, *arguments, folder=tmp_path, environment={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.wait() == 0, done.err
    assert SAYS[script] in done.out
