"""Means, intervals and conclusions over seeds, by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from spintune.evaluation.scores import ScoreScale
from spintune.evaluation.statistics import Interval
from spintune.results import BenchmarkResults, BestModel, RunResults
from spintune.sweeps.page import write_page
from spintune.sweeps.results import CHOSEN, SeedEstimate, SweepResults, SweptRun, summarize
from spintune.sweeps.tables import ONE_SEED, difference_table, gain_table, model_table, notes, setting_table
from spintune.typed_json import from_json, to_json


def run_results(best: str | None, **losses: float) -> RunResults:
    """A run with the held-out loss of each model, and accuracies of a benchmark beside it."""
    chosen = BestModel(best, f"spin/{best}/model", "it is") if best else None
    interval = Interval(0.5, 0.4, 0.6)
    return RunResults(
        best=chosen,
        heldout={
            name.replace("_", "-"): {
                "nll_per_token": Interval(loss, loss - 9, loss + 9),
                "nll_per_byte": Interval(loss / 4, 0, 9),
                "perplexity_per_token": interval,
                "exact_match": Interval(loss / 10, 0, 1),
            }
            for name, loss in losses.items()
        },
        models={name.replace("_", "-"): "" for name in losses},
        benchmarks={
            "ifeval": BenchmarkResults(
                {name.replace("_", "-"): 3 for name in losses},
                {"strict": ScoreScale("higher", True)},
                {name.replace("_", "-"): {"strict": Interval(1 - loss / 10, 0, 1)} for name, loss in losses.items()},
            )
        },
    )


def swept(
    found: Mapping[tuple[str, int], RunResults | None], metric: str = "nll", key: str = "spin.loss"
) -> SweepResults:
    """A sweep over one key and seeds; a run without results has not been run."""
    runs = [
        SweptRun(f"{value}-{seed}", {key: value, "seed": seed}, seed, "finished" if results else "not run")
        for (value, seed), results in found.items()
    ]
    done = {run.name: results for run, results in zip(runs, found.values(), strict=True) if results}
    axes = {key: [value for value, _ in found], "seed": [seed for _, seed in found]}
    return summarize("1", axes, runs, done, metric)


TWO = swept(
    {
        ("a", 0): run_results("iterate-1", base=9, sft=5, iterate_1=4),
        ("b", 0): run_results("iterate-1", base=9, sft=5, iterate_1=3),
        ("a", 1): run_results("sft", base=9, sft=6, iterate_1=7),
        ("b", 1): run_results("iterate-1", base=9, sft=6, iterate_1=5),
        ("a", 2): run_results("iterate-1", base=9, sft=7, iterate_1=5),
        ("b", 2): run_results("iterate-1", base=9, sft=7, iterate_1=4),
    }
)


def test_means_over_seeds() -> None:
    """SFT: 5, 6, 7, whose mean is 6 ± 4.3027/√3. The chosen models of a: 4, 6, 5."""
    a, b = TWO.settings
    assert (a.name, a.values, a.seeds, a.chosen) == (
        "spin.loss=a",
        {"spin.loss": "a"},
        [0, 1, 2],
        {"iterate-1": 2, "sft": 1},
    )
    half = 4.302653 / math.sqrt(3)
    for found, mean in ((a.models["sft"], 6), (b.models["sft"], 6), (a.models[CHOSEN], 5), (b.models[CHOSEN], 4)):
        loss = found["nll_per_token"]
        assert (loss.mean, loss.low, loss.high) == pytest.approx((mean, mean - half, mean + half), abs=1e-6)
        assert loss.seeds == 3
    assert a.models["base"]["nll_per_token"] == SeedEstimate(9, 9, 9, 3)
    assert a.models["sft"]["ifeval/strict"].mean == pytest.approx(0.4)
    assert set(TWO.measures) == {"nll_per_token", "exact_match", "ifeval/strict"}


def test_differences_are_paired_by_seed() -> None:
    """Chosen, a - b: 1, 1, 1. Iterates of a beside SFT: -1, +1, -2, mean -2/3, deviation √(7/3), half 3.7946."""
    (difference,) = TWO.differences
    assert (difference.first, difference.second, difference.seeds) == ("spin.loss=a", "spin.loss=b", [0, 1, 2])
    assert difference.measures["nll_per_token"] == SeedEstimate(1, 1, 1, 3)
    assert list(TWO.settings[0].gains) == ["iterate-1 - sft", "chosen - sft"]
    gain = TWO.settings[0].gains["iterate-1 - sft"]["nll_per_token"]
    half = 4.302653 * math.sqrt(7 / 3) / math.sqrt(3)
    assert (gain.mean, gain.low, gain.high) == pytest.approx((-2 / 3, -2 / 3 - half, -2 / 3 + half), abs=1e-6)


def test_the_best_setting_is_better_than_each_other_beyond_doubt() -> None:
    assert TWO.best == "spin.loss=b"
    assert TWO.conclusion == (
        "spin.loss=b is best in held-out loss, paired by seed: better by 1 to 1 than spin.loss=a."
    )


def test_a_higher_measure_turns_the_order() -> None:
    found = swept(
        {(name, seed): run_results("sft", sft=loss + seed) for name, loss in (("a", 1), ("b", 2)) for seed in (0, 1)},
        "exact_match",
    )
    assert found.measure == "exact_match"
    assert found.best == "spin.loss=b"


def test_no_setting_is_best_where_one_cannot_be_told_apart() -> None:
    """c is 1 better than b in every seed, and than a by 3 and 1: 2 ± 12.706·√2/√2."""
    losses = {("a", 0): 4, ("b", 0): 2, ("c", 0): 1, ("a", 1): 3, ("b", 1): 3, ("c", 1): 2}
    found = swept({key: run_results("sft", sft=loss) for key, loss in losses.items()})
    assert found.best is None
    assert found.conclusion == (
        "No setting is called best: spin.loss=c has the best mean held-out loss, but cannot be told from spin.loss=a "
        "(better by -10.7 to 14.7)."
    )


def test_one_seed_says_nothing_of_luck(tmp_path: Path) -> None:
    found = swept({("a", 0): run_results("sft", sft=1), ("b", 0): run_results("sft", sft=2)})
    assert found.settings[0].models["sft"]["nll_per_token"] == SeedEstimate(1, None, None, 1)
    assert found.best is None
    assert "spin.loss=b (fewer than two seeds in common)" in found.conclusion
    assert ONE_SEED in notes(found)
    write_page(found, "one", tmp_path / "page.html")
    assert "One seed has no interval" in (tmp_path / "page.html").read_text()
    assert ONE_SEED not in notes(TWO)


def test_settings_with_other_seeds_are_compared_on_common_ones() -> None:
    losses = {("a", 0): 1, ("a", 1): 2, ("a", 2): 30, ("b", 1): 3, ("b", 2): 32, ("b", 3): 99}
    found = swept({key: run_results("sft", sft=loss) for key, loss in losses.items()})
    (difference,) = found.differences
    assert difference.seeds == [1, 2]
    assert difference.measures["nll_per_token"].mean == -1.5


def test_a_setting_without_a_finished_run_ends_no_race() -> None:
    found = swept({("a", 0): run_results("sft", sft=1), ("a", 1): run_results("sft", sft=1), ("b", 0): None})
    assert found.conclusion == "No setting is called best: 1 of 2 have no finished run."
    assert setting_table(found).rows[0].label == "spin.loss=a"


def test_without_a_common_measure_no_setting_is_called_best() -> None:
    bare = replace(run_results("sft", sft=1), heldout={}, benchmarks={})
    found = swept({("a", 0): bare, ("b", 0): bare})
    assert (found.best, found.conclusion) == (None, "No setting is called best: the runs have no measure in common.")


def test_seeds_alone_are_one_setting() -> None:
    runs = [SweptRun(f"seed={seed}", {"seed": seed}, seed, "finished") for seed in (0, 1)]
    done = {f"seed={seed}": run_results(None, base=2, sft=1) for seed in (0, 1)}
    found = summarize("1", {"seed": [0, 1]}, runs, done, "nll")
    assert [setting.name for setting in found.settings] == ["all runs"]
    assert found.settings[0].chosen == {"sft": 2}  # the last that was trained
    assert (found.best, found.conclusion, found.differences) == (None, "", [])


def test_models_with_other_tokens_are_compared_by_bytes() -> None:
    found = swept({(name, seed): run_results("sft", sft=4 + seed) for name in "ab" for seed in (0, 1)}, key="model")
    assert found.measure == "nll_per_byte"
    assert "nll_per_token" not in found.measures
    assert found.settings[0].models["sft"]["nll_per_byte"].mean == 1.125


def test_sweep_json_is_read_as_it_was_written() -> None:
    assert from_json(SweepResults, to_json(TWO), Path("sweep.json")) == TWO


# Shown ---------------------------------------------------------------------------------------------------------------


def test_tables_show_means_intervals_and_verdicts() -> None:
    table = setting_table(TWO)
    assert [column.title for column in table.columns] == ["held-out loss", "exact match", "strict"]
    assert [(row.label, row.note) for row in table.rows] == [
        ("spin.loss=a", "3 seeds: iterate-1 in 2, sft in 1"),
        ("spin.loss=b", "3 seeds: iterate-1"),
    ]
    loss = table.rows[0].cells[0]
    assert loss is not None
    assert (loss.mean, loss.interval) == ("5.000", "2.516 to 7.484")
    differences = difference_table(TWO)
    assert differences is not None
    cells = differences.rows[0].cells
    assert differences.rows[0].label == "spin.loss=a − spin.loss=b"
    assert [(one.mean, one.verdict) for one in cells if one] == [
        ("+1.000", "worse"),
        ("+10.0", "better"),
        ("−10.0", "worse"),
    ]
    assert [row.label for row in model_table(TWO, TWO.settings[0]).rows] == ["base", "sft", "iterate-1"]
    gains = gain_table(TWO, TWO.settings[0])
    assert gains is not None
    assert [row.label for row in gains.rows] == ["iterate-1 − sft", "chosen − sft"]


def test_many_settings_are_compared_with_the_one_of_the_best_mean() -> None:
    found = swept({(name, seed): run_results("sft", sft=ord(name)) for name in "dcbaefg" for seed in (0, 1)})
    assert (found.first, len(found.differences)) == ("spin.loss=a", 21)
    table = difference_table(found)
    assert table is not None
    assert len(table.rows) == 6
    assert all("spin.loss=a" in row.label for row in table.rows)


def test_the_page_says_what_was_tried_and_escapes_it(tmp_path: Path) -> None:
    runs = [
        SweptRun("a", {"seed": 0, "model": "<script>"}, 0, "failed", "no <b>room</b>"),
        SweptRun("b", {"seed": 1, "model": "m"}, 1, "not run"),
    ]
    write_page(
        summarize("1", {"seed": [0, 1], "model": ["<script>", "m"]}, runs, {}, "nll"), "all", tmp_path / "p.html"
    )
    page = (tmp_path / "p.html").read_text()
    assert "no &lt;b&gt;room&lt;/b&gt;" in page
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert 'href="a/"' in page
    assert 'href="b/"' not in page
