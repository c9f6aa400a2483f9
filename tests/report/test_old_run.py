"""A run folder of version 0.1.0, as it was before facts were typed, is read as it always was: see ``old_run/``.

It is a run of a tiny model: written data, a mixture, SFT, one iteration, the baseline, every kind of evaluation, and a
judge. Weights, and what nothing reads, were cut out of it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spintune.errors import RunError
from spintune.export.card import model_card
from spintune.export.model import export_model
from spintune.export.pairs import ExportedPairs, export_pairs
from spintune.report.page import write_report
from spintune.report.reading import read_run
from spintune.run_models import final_model
from spintune.storage import digest_file

Make = Callable[..., Any]

MODELS = ["base", "sft", "iterate-1", "sft-more"]


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A copy, as reports and exports stand in the folder that they are made of."""
    return Path(shutil.copytree(Path(__file__).parent / "old_run", tmp_path / "old_run"))


def results(old: Path) -> Any:
    return json.loads((old / "results.json").read_text())


def test_its_page_shows_the_numbers_of_its_results(old: Path, page: Make) -> None:
    run = read_run(old)
    assert run.missing == ()
    assert [model.name for model in run.models] == MODELS
    read = page(write_report([old]))
    found = results(old)
    for name, measures in found["heldout"].items():
        row = next(row for row in read.row(name) if len(row) == 6)
        loss = measures["nll_per_token"]
        assert row[1] == f"{loss['mean']:.3f}{loss['low']:.3f} to {loss['high']:.3f}"
        assert row[4].startswith(f"{measures['answer_tokens']['mean']:.1f}")
    for name in MODELS:
        scores = next(row for row in read.row(name) if len(row) == 9)
        rouge_l = found["benchmarks"]["questions"]["scores"][name]["rouge_l"]
        assert scores[5] == f"{rouge_l['mean']:.3f}{rouge_l['low']:.3f} to {rouge_l['high']:.3f}"
        assert scores[8].startswith("7.00")  # all that the judge of this run gives


def test_its_page_tells_its_data_costs_and_judge(old: Path, page: Make) -> None:
    read = page(write_report([old]))
    assert read.row("writing: candidates")[0][:5] == [
        "writing: candidates",
        "24 tasks",
        "12",
        "",
        "more than wanted 7, not new 5",
    ]
    assert read.row("reading")[0][:5] == ["reading", "52 rows", "28", "", "over limit 24"]
    assert read.row("halves")[0] == ["halves", "50.00", "50.00", "5", "22", "0.23", "2"]
    assert read.row("iteration 1: pairs")[0][1] == "36 answers"
    assert read.row("iterate-1 over parrot")[0][4] == "0 / 0 / 4"
    assert read.row("heldout")[0] == ["heldout", "14", "2 (14.3 %)", "0"]
    assert read.row("held-out tasks")[0][1] == str(results(old)["tasks"]["accuracy"]["sft"]["held-out tasks"]["items"])
    assert [one["title"] for one in read.data] == ["held-out examples", "ifeval", "questions", "mt-bench"]
    assert [len(one["items"]) for one in read.data] == [14, 4, 4, 3]
    assert "This run is not finished." not in read.text


def test_its_card_and_its_model_are_exported(old: Path, tmp_path: Path) -> None:
    card = model_card(read_run(old), "iterate-1")
    loss = results(old)["heldout"]["iterate-1"]["nll_per_token"]
    assert f"| iterate-1 | {loss['mean']:.3f} ({loss['low']:.3f} to {loss['high']:.3f}) |" in card
    assert "heldout: iterate-1 is preferred to sft in 50 % (27 to 73 %) of 14 contests" in card
    manifest = old / "spin/iterate-1/manifest.json"
    document = json.loads(manifest.read_text())
    config = document["files"]["model/config.json"] | {"sha256": digest_file(old / "spin/iterate-1/model/config.json")}
    manifest.write_text(json.dumps({**document, "files": {"model/config.json": config}}))  # the others were cut out
    assert export_model(old, tmp_path / "out") == "iterate-1"
    assert (tmp_path / "out" / "README.md").read_text() == model_card(read_run(old), "iterate-1", checked=True)
    assert (tmp_path / "out" / "config.json").is_file()


def test_its_pairs_are_exported(old: Path, tmp_path: Path) -> None:
    assert export_pairs(old, tmp_path / "pairs.jsonl") == ExportedPairs(1, 5, 0)
    (row,) = map(json.loads, (tmp_path / "pairs.jsonl").read_text().splitlines())
    assert (row["prompt"], row["chosen"]) == ("Say fox 1 times.", "fox")


def test_its_models_are_compared_and_its_best_one_is_found(old: Path, spintune: Make) -> None:
    ended = spintune("compare", old, "--json")
    assert ended.code == 0
    assert sorted(json.loads(ended.out)["names"]) == sorted(MODELS)
    with pytest.raises(RunError, match=r"spin/iterate-1/model/.*: is gone"):  # cut out
        final_model(old)
