"""The proof of the default command, on records by hand."""

from __future__ import annotations

import pytest
from default_command import by_self_play, gains, tables

EXACT = {"chosen": "sft-more", "metric": "exact_match", "means": {"base": 0.1, "iterate-1": 0.5, "sft-more": 0.4}}
MEANS = {"base": 3.0, "iterate-1": 1.0, "iterate-2": 2.0, "sft-more": 1.5}
LOSS = {"chosen": "iterate-2", "metric": "nll", "means": MEANS}


def test_a_gain_is_above_0_where_the_chosen_model_is_better() -> None:
    assert gains(EXACT) == pytest.approx({"base": 0.3, "sft-more": 0.0})
    assert gains(LOSS) == pytest.approx({"base": 1.0, "sft-more": -0.5})  # nats: less is better


def test_the_last_iterate_is_compared_with_the_baseline() -> None:
    assert by_self_play(EXACT) == pytest.approx(0.1)
    assert by_self_play(LOSS) == pytest.approx(-0.5)


def test_only_a_chosen_model_that_is_worse_over_seeds_fails(capsys: pytest.CaptureFixture[str]) -> None:
    """Three seeds at -0.5, -0.4, -0.6: mean -0.5, t-interval ±4.303 · 0.1 / √3 = ±0.248."""
    losses = [{**LOSS, "means": {**MEANS, "sft-more": baseline}} for baseline in (1.5, 1.6, 1.4)]
    assert tables({"exact": [EXACT] * 3, "nothing yet": []})
    assert not tables({"exact": [EXACT] * 3, "loss": losses})
    assert "| -0.5000 (-0.7484 to -0.2516) | WORSE |" in capsys.readouterr().out
