"""A run that did not move, or moved too far, says so first and names a number to change."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spintune.console import print_outcome_of, print_results
from spintune.export.card import model_card
from spintune.report.findings import finding
from spintune.report.movement import movement, movement_of_run
from spintune.report.page import render
from spintune.report.reading import read_run
from spintune.results import (
    DiagnosisFacts,
    HardwareFacts,
    HeldoutPairFacts,
    IterationResults,
    LaterPairCounts,
    PairFacts,
    RunResults,
    SftFacts,
)
from spintune.selfplay.diagnostics import AnswerProfile, KlEstimate

HARDWARE = HardwareFacts(None, None, None)


def sft(start: float | None, end: float) -> RunResults:
    return RunResults(sft=SftFacts(10, {}, 0, 5, end, 2e-5, {}, HARDWARE, start_loss=start))


def play(diagnosis: dict[str, Any] | None = None, rate: float = 5e-6, **heldout: Any) -> RunResults:
    pairs: Any = PairFacts.__new__(PairFacts)
    numbers: dict[str, Any] = {
        "pairs": 100,
        "start_loss": 0.6931,
        "loss": 0.64,
        "loss_error": 0.001,
        "real_ratio": 0.5,
        "generated_ratio": -1.5,
        "margin": 2.0,
        "accuracy": 0.8,
        "real_logprob": -20.0,
        "generated_logprob": -20.0,
        "real_tokens": 20.0,
        "generated_tokens": 25.0,
        "real_cut": 0.0,
        "generated_cut": 0.0,
        "learned": True,
        **heldout,
    }
    real = AnswerProfile(100, (diagnosis or {}).get("real_tokens", 20.0), 0.0, 0.5, 0.7, 0.01)
    own = {"answers": 100, "tokens": 24.0, "cut": 0.0, "distinct_1": 0.5, "distinct_2": 0.7, "repetition": 0.02}
    own.update({key: value for key, value in (diagnosis or {}).items() if key not in ("kl", "real_tokens")})
    mean = (diagnosis or {}).get("kl", 1.5)
    kl = None if mean is None else KlEstimate(mean, 0.1)
    found = DiagnosisFacts(1.0, kl, kl, AnswerProfile(**own), real, 0.1)
    facts = HeldoutPairFacts(**numbers, intervals={})
    one = IterationResults(1, rate, 40, 600, 9000, LaterPairCounts(0, {}), facts, {}, HARDWARE, pairs, found)
    return RunResults(spin=[one])


def test_runs_that_moved_and_learned_say_nothing() -> None:
    assert movement(sft(1.3, 0.9)) == movement(play()) == movement(RunResults()) == []
    assert movement(sft(None, 0.9)) == []  # an earlier version did not write the start


def test_sft_that_changed_nothing_or_did_harm_names_another_rate() -> None:
    (little,) = movement(sft(1.3, 1.2995))
    assert little.startswith("SFT hardly changed the model")
    assert "from 2e-05 to 0.0002" in little
    (worse,) = movement(sft(1.3, 1.5))
    assert worse.startswith("SFT made the model worse")
    assert "from 2e-05 to 6.3e-06" in worse


def test_a_baseline_that_changed_nothing_or_did_harm_names_its_own_rate() -> None:
    (little,) = movement(RunResults(baseline=sft(1.3, 1.2995).sft))
    assert little.startswith("The baseline, more SFT, hardly changed the model")
    assert little.endswith("Raise spin.baseline_learning_rate from 2e-05 to 0.0002, or use auto.")
    (worse,) = movement(RunResults(sft=sft(1.3, 0.9).sft, baseline=sft(0.9, 1.2).sft))
    assert worse.startswith("The baseline, more SFT, made the model worse")
    assert worse.endswith("Lower spin.baseline_learning_rate from 2e-05 to 6.3e-06, or use auto.")


@pytest.mark.parametrize("show", [print_results, print_outcome_of])
def test_a_terminal_shows_it_before_anything_else(
    show: Callable[[RunResults, str], None], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    results = replace(sft(1.3, 1.2995), stopped="nothing left to learn")
    show(results, str(tmp_path))
    out = capsys.readouterr().out
    assert out.startswith("SFT hardly changed the model")
    assert out.count("hardly changed") == 1


def test_page_and_card_show_it_before_any_other_finding(whole: Callable[..., Any], tmp_path: Path) -> None:
    made = whole()
    manifest = made.path / "sft/manifest.json"
    told = json.loads(manifest.read_text())
    told["facts"]["start_loss"] = told["facts"]["heldout_loss"]
    manifest.write_text(json.dumps(told))
    run = read_run(made.path)
    (moved,) = movement_of_run(run)
    assert moved.startswith("SFT hardly changed the model")
    begins = moved.partition(".")[0]
    page, card = render([run], tmp_path), model_card(run, "sft")
    assert re.search(r"</h1>\s*<ul class=\"moved\"><li>SFT hardly changed the model: ", page)
    assert card.index(begins) < card.index(finding(run).sentence)
    assert card[: card.index(begins)].endswith("## What was found\n\n")


def test_a_player_that_hardly_moved_needs_a_higher_rate() -> None:
    (told,) = movement(play({"kl": 0.06}, loss=0.693, generated_ratio=-0.03, learned=False))
    assert told.startswith("Iteration 1 learned nothing, for the player hardly moved")
    assert "0.06 nats an answer" in told
    assert "from 5e-06 to 5e-05" in told


def test_a_player_that_moved_and_learned_nothing_needs_a_lower_one() -> None:
    (told,) = movement(play({"kl": 4.0}, rate=1e-3, loss=0.70, learned=False))
    assert "learned nothing, though the player moved: " in told
    assert "it is 4.00 nats an answer from its opponent" in told
    assert "from 0.001 to 0.00032" in told


def test_a_good_opponent_of_short_answers_is_no_alarm() -> None:
    """Two answers of a token, the real one first. Only the other makes pairs, and it became less likely."""
    opponent, player = (0.9, 0.1), (0.99, 0.01)
    divergence = sum(p * math.log(p / q) for p, q in zip(player, opponent, strict=True))
    rejected = math.log(player[1] / opponent[1])
    assert (divergence, rejected) == pytest.approx((0.0713, -2.3026), abs=1e-4)
    real = math.log(player[0] / opponent[0])
    tokens = {"tokens": 1.0, "real_tokens": 1.0}
    ratios = {"real_ratio": real, "generated_ratio": rejected, "real_tokens": 1.0, "generated_tokens": 1.0}
    assert movement(play({"kl": divergence} | tokens, **ratios)) == []
    assert movement(play({"kl": None} | tokens, **ratios)) == []  # answers that are no plain samples


def test_answers_that_are_no_plain_samples_show_by_their_probabilities_whether_the_player_moved() -> None:
    (told,) = movement(play({"kl": None}, loss=0.693, real_ratio=0.02, generated_ratio=-0.03, learned=False))
    assert "learned nothing, for the player hardly moved" in told
    assert "log-probabilities of answers changed by 0.03 nats. Raise" in told


def test_a_loss_that_fell_by_less_than_chance_is_not_called_nothing() -> None:
    (told,) = movement(play({"kl": 2.4}, rate=5e-5, pairs=31, loss=0.5466, loss_error=0.18, learned=False))
    assert told == (
        "Whether iteration 1 learned anything cannot be told from 31 held-out pairs: the held-out pair loss began at "
        "0.6931 and is 0.5466, with a standard error of 0.18. Hold out more (data.eval_fraction) to know."
    )
    (told,) = movement(play({"kl": 2.4}, rate=5e-5, pairs=1, loss=0.5466, loss_error=None, learned=False))
    assert told.endswith(
        "from 1 held-out pair: the held-out pair loss began at 0.6931 and is 0.5466. "
        "Hold out more (data.eval_fraction) to know."
    )


@pytest.mark.parametrize(
    ("diagnosis", "heldout", "words"),
    [
        ({"kl": 14.0}, {}, "it is 14.0 nats an answer away"),
        ({}, {"real_ratio": -3.0}, "real answers became less likely, by 3.0 nats each"),
        ({"tokens": 60.0}, {}, "its answers have 60 tokens, those it learned from at most 25"),
        ({"repetition": 0.4}, {}, "40% of what it writes repeats itself"),
    ],
)
def test_each_sign_of_running_away_is_told_even_where_the_loss_fell(
    diagnosis: dict[str, Any], heldout: dict[str, Any], words: str
) -> None:
    (told,) = movement(play(diagnosis, rate=1e-3, **heldout))
    assert told.startswith("Iteration 1 ran away from its opponent: ")
    assert words in told
    assert "Lower spin.learning_rate from 0.001 to 0.00032, or use auto." in told
