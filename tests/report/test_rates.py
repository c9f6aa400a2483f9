"""The rates that short runs tried are in the report and behind --details, a row for each search."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest

from spintune.console import print_results
from spintune.report.page import render
from spintune.report.rates import rates_tried, searches_in, searches_of
from spintune.report.reading import read_run
from spintune.report.stages import costs
from spintune.results import RunResults
from spintune.training.rate_facts import RateFacts, RungFacts

Make = Callable[..., Any]


def found(rate: float, losses: dict[float, float | None], start: float | None = 2.0) -> RateFacts:
    rungs = [RungFacts(tried, 4, loss) for tried, loss in losses.items()]
    return RateFacts(rate, "why", True, False, "loss", start, rungs, 20, 4, 1, 100, 0.2, {"rates": 1.0})


@pytest.fixture
def searched(folder: Make) -> Any:
    """A run whose stages looked for rates: SFT, ten iterations of which two did, and the baseline, which could not."""
    made = folder(spin={"iterations": 10, "baseline": "sft"}).data().sft()
    searches = {
        "spin/baseline-sft": found(1e-5, {}, None),
        "spin/iterate-10": found(5e-7, {1e-6: 1.5, 1e-5: None}),
        "spin/iterate-2": found(1e-5, {1e-5: 1.25}),
        "sft": found(1e-4, {1e-4: 1.0, 1e-5: 1.75}),
    }
    for stage, facts in searches.items():
        made.json(f"{stage}/rates/rates.json", asdict(facts)).stage(f"{stage}/rates", **asdict(facts))
    return made


def test_a_row_for_each_search_and_a_column_for_each_rate(searched: Any) -> None:
    run = read_run(searched.path)
    assert searches_in(searched.path, 10) == searches_of(run)
    (table,) = rates_tried(searches_of(run))
    assert [column.title for column in table.columns] == ["before", "1e-06", "1e-05", "0.0001"]
    texts = [[cell.mean if cell else "-" for cell in row.cells] for row in table.rows]
    assert [row.label for row in table.rows] == ["SFT", "iteration 2", "iteration 10"]
    assert texts == [
        ["2.0000", "-", "1.7500", "1.0000"],
        ["2.0000", "-", "1.2500", "-"],
        ["2.0000", "1.5000", "broke", "-"],
    ]
    assert table.rows[2].note == "loss on 20 rows, 4 steps; taken: 5e-07"
    assert rates_tried({"sft": found(1e-5, {}, None)}) == []


def test_searches_beyond_the_recipe_and_other_folders_do_not_count(searched: Any) -> None:
    """Iterations of a longer recipe lie there from before, and somebody keeps a copy of a run inside of it."""
    copy = asdict(found(1e-4, {1e-4: 1.0}))
    searched.json("old/sft/rates/rates.json", copy).stage("old/sft/rates", **copy)
    assert list(searches_in(searched.path, 3)) == ["sft", "spin/iterate-2", "spin/baseline-sft"]


def test_the_short_runs_are_among_the_costs(searched: Any) -> None:
    """Each before its stage; those of stages that are not done are not there yet."""
    stages = [cost.stage for cost in costs(read_run(searched.path))]
    assert stages[:2] == ["SFT: learning rate", "SFT"]
    (cost,) = [cost for cost in costs(read_run(searched.path)) if cost.stage.endswith("learning rate")]
    assert (cost.did, cost.tokens, cost.seconds) == ("2 short runs", 100, {"rates": 1.0})


def test_it_is_on_the_page_and_behind_details(searched: Any, capsys: pytest.CaptureFixture[str]) -> None:
    page = render([read_run(searched.path)], None)
    assert "Learning rates that were tried" in page
    assert "1.7500" in page
    print_results(RunResults(), str(searched.path), details=True)
    told = capsys.readouterr().out
    assert "Learning rates that short runs tried" in told
    assert "1.7500" in told
    assert "Time: rates 2 s" in told  # of SFT and the baseline; results without iterations have none of theirs
