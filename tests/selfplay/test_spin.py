"""One iteration of SPIN end to end, and the standing of a player by hand."""

from __future__ import annotations

import math

import pytest

from spintune.models.sampling import Sampling
from spintune.progress import Silent
from spintune.recipe import SpinSection
from spintune.records import Pair
from spintune.selfplay.opponent import play
from spintune.selfplay.spin import standing, train_iteration
from spintune.tokens.chat import Row
from spintune.training.checkpoint import Checkpoints
from spintune.training.objectives import SelfPlay

STOP = 1
# the real answers count down from the last token of the prompt
ROWS = [Row(f"row{i}", (2, 20 - i), (*range(19 - i, 15 - i, -1), STOP), (True,) * 5, True) for i in range(12)]


@pytest.fixture
def opponent(random_player, tmp_path):
    """The player at the start, and its pairs."""
    engine, generator = random_player()
    played = play(engine, generator, ROWS, Sampling(8, seed=3), 40, 200, tmp_path / "pairs", "tag", Silent(), "play")
    assert len(played.kept) > 8
    return engine, played.kept


def iterate(engine, pairs, section, folder, iteration=1):
    reports = []
    checkpoints = Checkpoints(folder / "checkpoints", 1e9)
    steps = train_iteration(
        engine, pairs, section, iteration, 0, 200, checkpoints, Silent(), lambda step: None, reports.append
    )
    return steps, reports


def test_an_iteration_starts_at_ln_2_and_learns_to_tell_the_sides_apart(opponent, tmp_path):
    engine, pairs = opponent
    section = SpinSection(pairs_per_step=4, epochs=4.0, learning_rate=2e-3, lambda_=0.5)
    objective = SelfPlay("logistic", 0.5)
    before = standing(engine, pairs, objective, 200)
    steps, reports = iterate(engine, pairs, section, tmp_path)
    after = standing(engine, pairs, objective, 200)

    assert reports[0].loss == pytest.approx(math.log(2), abs=1e-6)
    assert steps == len(reports) == 4 * math.ceil(len(pairs) / 4)
    assert before.loss == pytest.approx(math.log(2), abs=1e-6)
    assert before.margin == pytest.approx(0, abs=1e-6)
    assert after.margin > 1
    assert after.accuracy == 1
    assert after.loss < 0.5
    assert after.real_ratio > 0 > after.generated_ratio
    assert reports[-1].facts["margin"] > reports[0].facts["margin"]


def test_settings_that_are_lists_follow_the_iteration(opponent, tmp_path):
    engine, pairs = opponent
    section = SpinSection(
        iterations=2, pairs_per_step=6, epochs=[1.0, 2.0], loss=["logistic", "hinge"], learning_rate=[1e-4, 1e-6]
    )
    steps, reports = iterate(engine, pairs, section, tmp_path, iteration=2)
    assert steps == 2 * math.ceil(len(pairs) / 6)
    assert reports[0].loss == pytest.approx(1, abs=1e-6)
    assert max(report.learning_rate for report in reports) == pytest.approx(1e-6)


def test_standing_by_hand(random_player):
    engine, _ = random_player()
    objective = SelfPlay("logistic", 2.0)
    sides = [((4, 5, 6), (7,)), ((8,), (9, 10, 11, 12, 13))]
    bare = [Pair("id", (3,), real, generated, "text", True, True, 0.0, 0.0) for real, generated in sides]
    (real_1, generated_1), (real_2, generated_2) = engine.score([objective.query(pair) for pair in bare], 100)
    # the opponent found: real 1 less likely by 0.25, generated 1 by 0.5; real 2 by 1.5, generated 2 more by 0.5
    pairs = [
        Pair("id", (3,), *sides[0], "text", True, False, real_1 - 0.25, generated_1 - 0.5),
        Pair("id", (3,), *sides[1], "text", False, False, real_2 - 1.5, generated_2 + 0.5),
    ]
    result = standing(engine, pairs, objective, 100).to_json()
    assert result == pytest.approx(
        {
            "pairs": 2,
            # margins -0.25 and 2, times λ = 2
            "loss": (math.log1p(math.exp(0.5)) + math.log1p(math.exp(-4))) / 2,
            "real_ratio": (0.25 + 1.5) / 2,
            "generated_ratio": (0.5 - 0.5) / 2,
            "margin": (-0.25 + 2) / 2,
            "accuracy": 0.5,
            "real_logprob": (real_1 + real_2) / 2,
            "generated_logprob": (generated_1 + generated_2) / 2,
            "real_tokens": 2,
            "generated_tokens": 3,
            "real_cut": 0.5,
            "generated_cut": 1,
        },
        abs=1e-5,
    )


def test_without_pairs_there_is_no_standing(random_player):
    assert standing(random_player()[0], [], SelfPlay(), 100) is None
