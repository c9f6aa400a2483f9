"""What ``compare`` prints fits where it is printed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from spintune.cli.results import _sweep_notes
from spintune.console import _pairs_of_models, print_comparison
from spintune.evaluation.comparison import MeasuredItems, compare


@pytest.mark.parametrize(("everything", "columns"), [(False, 60), (True, 80)])
def test_differences_fit_into_their_columns(everything: bool, columns: int, capsys: pytest.CaptureFixture[str]) -> None:
    tables = {
        name: {
            measure: MeasuredItems({str(n): float(n % 7 < lead) for n in range(40)})
            for measure in ("nll_per_token", "exact_match", "checker (json)")
        }
        for name, lead in (("base", 1), ("iterate-1", 6))
    }
    shown = compare(tables)
    lines = [line for line, _ in _pairs_of_models(shown.differences, everything)]
    assert max(map(len, lines)) <= columns
    assert any(line.startswith("  checker (json)") and line.endswith("worse") for line in lines)
    if not everything:
        print_comparison(shown)
        assert capsys.readouterr().out.startswith("base is worse than iterate-1 on 3 of 3 measures")


def test_runs_of_a_sweep_are_told_of_its_report(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text(json.dumps({}))
    told = list(_sweep_notes([str(tmp_path / "seed=0"), f"{tmp_path / 'seed=1'}:sft"]))
    assert told == [f"{tmp_path.name} is a sweep: its report.html and sweep.json compare its settings over seeds"]
    assert list(_sweep_notes([str(tmp_path / "seed=0")])) == []
    assert list(_sweep_notes(["a.jsonl", "b.jsonl"])) == []
