"""Reports of real runs: finished, and stopped at every stage."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from spintune.export.card import model_card
from spintune.report.measures import contenders, difference, estimate, measured, measures_of
from spintune.report.model_tables import scoreboard
from spintune.report.page import write_report
from spintune.report.reading import read_run


def test_a_finished_run_lacks_nothing_and_tells_its_own_numbers(finished: Path, tmp_path: Path) -> None:
    results = json.loads((finished / "results.json").read_text())
    run = read_run(finished)
    assert run.missing == ()
    assert [model.name for model in run.models] == list(results["models"])
    models = {one.model.name: one for one in contenders([run])}
    for measure in measures_of(list(models.values())):
        for name, one in models.items():
            ids = measured(one, measure)
            assert asdict(estimate(one, measure, ids)) == results["heldout"][name][measure.key]
            if name != "sft":
                gap = asdict(difference(one, models["sft"], measure, ids))
                assert gap == results["differences"][f"{name} - sft"][measure.key]
    html = write_report([finished], tmp_path / "page.html").read_text()
    for name, measures in results["heldout"].items():
        for key in ("nll_per_token", "rouge_l"):
            assert f"{measures[key]['mean']:.3f}" in html, name
    for row in (json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()):
        if row["stage"] == "sft":
            assert f"step {row['step']}: training {row['loss']:.4g} nats a token".replace("-", "−") in html


def test_what_a_run_will_say_at_its_end_is_known_before(finished: Path, tmp_path: Path) -> None:
    results = json.loads((finished / "results.json").read_text())
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "results.json").unlink()
    for one in contenders([read_run(tmp_path / "run")]):
        for measure in measures_of([one]):
            found = asdict(estimate(one, measure, measured(one, measure)))
            assert found == results["heldout"][one.model.name][measure.key]


def test_a_run_that_stopped_after_any_stage_has_a_report(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    manifests = sorted((tmp_path / "run").rglob("manifest.json"), key=lambda path: -path.stat().st_mtime_ns)
    assert len(manifests) > 15
    (tmp_path / "run" / "results.json").unlink()
    for manifest in manifests:  # back to the start
        manifest.unlink()
        html = write_report([tmp_path / "run"]).read_text()
        # a likelihood alone, and what follows from the data, are no part of the recipe that a run could lack
        extra = manifest.parent.parent.name in ("likelihood", "heldout") or manifest.parent.name == "contamination"
        assert ("This run is not finished." in html) or extra
    assert "the data; SFT" in html


def test_a_run_of_sft_alone_shows_its_samples(run: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    run(tmp_path / "run", until="sft")
    html = write_report([tmp_path / "run"]).read_text()
    (data,) = re.findall(r'<script type="application/json" id="examples-data">(.*?)</script>', html)
    (shown,) = json.loads(data)
    rows = [json.loads(line) for line in (tmp_path / "run/sft/samples.jsonl").read_text().splitlines()]
    last = max(row["step"] for row in rows)
    for place, step in ((0, 0), (1, last)):
        answers = {item["answers"][place]["texts"][0][0] for item in shown["items"]}
        assert answers == {row["answer"] for row in rows if row["step"] == step}


def test_what_judges_beside_held_out_examples_stands_in_the_page_and_the_card(
    run: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    rows = [{"id": f"q{n}", "instruction": f"Say fox {n} times.", "output": "fox " * n} for n in range(1, 13)]
    for name in ("questions", "parrot"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {"questions": str(tmp_path / "questions.jsonl"), "rivals": [str(tmp_path / "parrot.jsonl")]}
    settings = {"evaluation": {**files, "max_new_tokens": 8}, "eval": ["heldout", "questions"]}
    results = run(tmp_path / "run", **settings, sft={"max_steps": 1}, spin=None)
    found = read_run(tmp_path / "run")
    assert (found.missing, found.rivals, found.results.conclusions) == ((), ("parrot",), results["conclusions"])
    board = scoreboard([found])
    shown = [("rouge_l", 1, 3), ("exact_match", 100, 1), ("characters", 1, 1)]
    for row in board.rows:
        for (key, factor, digits), cell in zip(shown, row.cells, strict=True):
            told = results["benchmarks"]["questions"]["scores"][row.label][key]
            assert cell.mean == f"{told['mean'] * factor:.{digits}f}"
    assert [row.label for row in board.rows] == ["base", "sft", "parrot"]
    html = write_report([tmp_path / "run"]).read_text()
    (data,) = re.findall(r'<script type="application/json" id="examples-data">(.*?)</script>', html)
    sets = {one["title"]: one for one in json.loads(data)}
    answers = (tmp_path / "run/eval/questions/sft/answers.jsonl").read_text().splitlines()
    assert [item["answers"][1]["texts"][0][0] for item in sets["questions"]["items"]] == [
        json.loads(line)["answer"] for line in answers
    ]
    assert "| questions: exact match, % | 12 |" in model_card(found, "sft")


def test_a_card_is_made_of_every_model(finished: Path) -> None:
    run = read_run(finished)
    for model in run.models[1:]:
        assert f"/ {model.name}\n" in model_card(run, model.name)


def test_a_report_needs_neither_torch_nor_transformers(finished: Path, tmp_path: Path) -> None:
    program = (
        "import sys\nfrom pathlib import Path\nfrom spintune.report.page import write_report\n"
        "from spintune.export.card import model_card\n"
        f"write_report([Path({str(finished)!r})], Path({str(tmp_path / 'page.html')!r}))\n"
        "print(*sorted({'torch', 'transformers', 'datasets'} & sys.modules.keys()))"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == ""
