"""A tracker of your own: the numbers of each step go into a CSV file.

python examples/own_tracker.py FILE [MODEL] [OUT]
"""

import csv
import sys
from collections.abc import Mapping
from pathlib import Path

import spintune


class CsvTracker:
    """Rows of stage, step, name and value. Made anew when a run resumes, so it appends."""

    def __init__(self, run: spintune.TrackedRun) -> None:
        self.run = run
        self.file = (run.folder / "numbers.csv").open("a", newline="")
        self.rows = csv.writer(self.file)

    def begin(self, stage: str, step: int) -> None:
        """Nothing to do: a file that is appended to takes no steps back."""

    def add(self, stage: str, step: int, numbers: Mapping[str, float]) -> None:
        if step > self.run.sent.get(stage, 0):  # steps that a resumed run does again are there
            self.rows.writerows((stage, step, name, value) for name, value in numbers.items())

    def finish(self, facts: Mapping[str, str]) -> None:
        """The run is complete: facts["model"] is the one to use, facts["why"] the reason."""

    def close(self) -> None:
        self.file.close()


spintune.register_tracker("csv", CsvTracker)

data = sys.argv[1]
model = sys.argv[2] if len(sys.argv) > 2 else "smollm2-135m-instruct"
out = sys.argv[3] if len(sys.argv) > 3 else "runs/own-tracker"
recipe = {"model": model, "out": out, "data": {"train": data, "max_length": 256}, "sft": {"max_steps": 5}, "eval": []}
spintune.run(recipe, tracking=["csv"])
print((Path(out) / "numbers.csv").read_text())
