"""``spintune compare`` and ``spintune report`` on real runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Run = Callable[..., dict[str, Any]]
Spintune = Callable[..., Any]


def test_models_of_a_run_are_compared_on_the_same_items(run: Run, spintune: Spintune, tmp_path: Path) -> None:
    results = run(tmp_path / "run", data={"eval_fraction": 0.4}, spin=None)
    found = spintune("compare", str(tmp_path / "run"), "--json")
    assert found.code == 0, found.err
    comparison = json.loads(found.out)
    assert comparison["names"] == ["base", "sft"]
    (nll,) = [one for one in comparison["differences"] if one["measure"] == "nll_per_token"]
    expected = results["heldout"]["base"]["nll_per_token"]["mean"] - results["heldout"]["sft"]["nll_per_token"]["mean"]
    assert abs(nll["difference"]["mean"] - expected) < 1e-9
    text = spintune("compare", str(tmp_path / "run"), "--against", "sft").out
    assert "base is worse than sft on" in text
    assert "16 items" in text


def test_two_runs_are_told_apart_by_their_folders(run: Run, spintune: Spintune, tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("two", 0)):
        run(tmp_path / name, data={"eval_fraction": 0.4}, spin=None, seed=seed)
    found = spintune("compare", f"{tmp_path / 'one'}:sft", f"{tmp_path / 'two'}:sft")
    assert found.code == 0, found.err
    assert "cannot be told apart" in found.out


def test_what_cannot_be_compared_is_one_line(finished: Path, spintune: Spintune, tmp_path: Path) -> None:
    for arguments, words in (
        ((str(tmp_path),), "no run folder and no file of answers"),
        ((f"{finished}:sft",), "nothing to be compared with"),
        ((f"{finished}:nobody",), "no held-out answers of 'nobody'; use one of: base, iterate-1, iterate-2, sft"),
        ((str(finished), "--against", "nobody"), "--against nobody is none of base"),
        ((str(finished),), "items"),  # 8 held-out examples are too few for any test
    ):
        result = spintune("compare", *arguments)
        assert result.code in (2, 3)
        assert words in result.err
        assert len(result.err.strip().splitlines()) == 1


def test_a_report_is_one_file_with_the_numbers_of_the_run(finished: Path, spintune: Spintune, tmp_path: Path) -> None:
    result = spintune("report", str(finished), "--out", str(tmp_path / "page.html"))
    assert result.code == 0, result.err
    assert result.out.strip() == str(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    loss = json.loads((finished / "results.json").read_text())["heldout"]["sft"]["nll_per_token"]["mean"]
    assert f"{loss:.3f}" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
