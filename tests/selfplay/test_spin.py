"""One iteration of SPIN end to end, and the metrics of a player by hand."""

from __future__ import annotations

import math
from dataclasses import asdict
from statistics import fmean

import pytest

from spintune.generation.sampling import Sampling
from spintune.progress import Silent
from spintune.recipe import SpinSection
from spintune.records import Answer, Pair
from spintune.selfplay.filters import without_degenerate
from spintune.selfplay.opponent import sample_pairs, score_pairs
from spintune.selfplay.pair_metrics import HeldoutPairMetrics, PairMetrics, summarize_pairs
from spintune.selfplay.phases import PhasedBatches, Phases
from spintune.selfplay.shards import Shards
from spintune.selfplay.spin import (
    batches_of,
    default_rate,
    iteration_optimization,
    measure_pairs,
    objective_of,
    rate_losses,
    train_iteration,
)
from spintune.tokens.rows import TokenRow
from spintune.training.checkpoint import Checkpoints
from spintune.training.loop import TrainingHooks
from spintune.training.objectives import SelfPlay

STOP = 1
# the real answers count down from the last token of the prompt
ROWS = [TokenRow(f"row{i}", (2, 20 - i), (*range(19 - i, 15 - i, -1), STOP), (True,) * 5, True) for i in range(12)]


@pytest.fixture
def opponent(random_player, tmp_path):
    """The player at the start, and its pairs."""
    engine, generator = random_player()
    shards = Shards(tmp_path / "pairs", "tag", Silent())
    written = sample_pairs(generator, ROWS, Sampling(8, seed=3), 1, 40, "iterate-0", shards, "play")
    kept = without_degenerate(written).kept
    assert len(kept) > 8
    return engine, score_pairs(engine, kept, "opponent", shards, "score")


def summary(engine, pairs, objective) -> HeldoutPairMetrics:
    return summarize_pairs(pairs, measure_pairs(engine, pairs, objective), [objective.start([one]) for one in pairs])


def iterate(engine, pairs, section, folder, iteration=1):
    reports = []
    checkpoints = Checkpoints(folder / "checkpoints", 1e9)
    batches = batches_of(pairs, section, iteration, 0)
    objective, optimization = objective_of(section, iteration), iteration_optimization(section, iteration, 0, 10**6)
    with Silent().task("SPIN", len(batches), "steps") as task:
        hooks = TrainingHooks(on_step=reports.append)
        train_iteration(engine, batches, objective, optimization, checkpoints, task, hooks)
    return len(batches), reports


def test_an_iteration_starts_at_ln_2_and_learns_to_tell_the_sides_apart(opponent, tmp_path):
    engine, pairs = opponent
    section = SpinSection(pairs_per_step=4, epochs=4.0, learning_rate=2e-3, lambda_=0.5)
    objective = SelfPlay("logistic", 0.5)
    before = summary(engine, pairs, objective)
    steps, reports = iterate(engine, pairs, section, tmp_path)
    after = summary(engine, pairs, objective)

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


def test_metrics_by_hand(random_player):
    engine, _ = random_player()
    objective = SelfPlay("logistic", 2.0)

    def pair(real, generated, real_score=0.0, generated_score=0.0, real_complete=True):
        answers = Answer(real, "text", real_complete, real_score), Answer(generated, "text", False, generated_score)
        return Pair("id", (3,), answers[0], (answers[1],))

    sides = [((4, 5, 6), (7,)), ((8,), (9, 10, 11, 12, 13))]
    queries = [objective.query(pair(*side)) for side in sides]
    (real_1, generated_1), (real_2, generated_2) = engine.score(queries)
    # the opponent found: real 1 less likely by 0.25, generated 1 by 0.5; real 2 by 1.5, generated 2 more by 0.5
    pairs = [
        pair(*sides[0], real_1 - 0.25, generated_1 - 0.5),
        pair(*sides[1], real_2 - 1.5, generated_2 + 0.5, real_complete=False),
    ]
    gains = [math.log(2) - math.log1p(math.exp(0.5)), math.log(2) - math.log1p(math.exp(-4))]
    measured = measure_pairs(engine, pairs, objective)
    assert [one.margin for one in measured] == pytest.approx([-0.25, 2], abs=1e-5)
    assert [one.loss for one in measured] == pytest.approx([math.log(2) - gain for gain in gains], abs=1e-5)
    assert asdict(summary(engine, pairs, objective)) == pytest.approx(
        {
            "pairs": 2,
            "start_loss": math.log(2),
            # of two numbers the standard error of the mean is half their distance
            "loss_error": abs(gains[0] - gains[1]) / 2,
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
            "learned": False,
        },
        abs=1e-5,
    )


def test_a_player_has_learned_when_its_loss_can_be_told_from_the_start(opponent, tmp_path):
    engine, pairs = opponent
    objective = SelfPlay("logistic", 0.5)
    assert not summary(engine, pairs, objective).learned
    iterate(engine, pairs, SpinSection(pairs_per_step=4, epochs=4.0, learning_rate=2e-3, lambda_=0.5), tmp_path)
    assert summary(engine, pairs, objective).learned


@pytest.mark.parametrize(
    ("falls", "learned"),
    [
        ([0.5], False),  # a single pair has no standard error
        ([0.4, 0.6], False),  # 0.5 is five standard errors of 0.1, and t has a quantile of 12.706 for one degree
        ([0.4, 0.4625], True),  # 13.8 standard errors of 0.03125
        ([0.0, 0.4, 0.5], False),  # 0.3 is 1.96 standard errors of 0.1528, and t(2) = 4.303
        ([0.3, 0.4, 0.5], True),  # 0.4 is 6.9 standard errors of 0.0577
        ([0.4, 0.4], True),
        ([-0.4, -0.4], False),
    ],
)
def test_few_pairs_need_a_larger_fall(falls: list[float], learned: bool) -> None:
    answer = Answer((1,), "", True)
    metrics = [PairMetrics("id", 1 - fall, 0, 0, 0, 0, 0, 0) for fall in falls]
    found = summarize_pairs([Pair("id", (3,), answer, (answer,))] * len(falls), metrics, [1.0] * len(falls))
    assert found.learned == learned


def test_the_default_rate_rises_with_the_inverse_root_of_the_size_up_to_a_limit():
    assert default_rate(7 * 10**9 // 4) == pytest.approx(1e-6)
    assert default_rate(70 * 10**9) == pytest.approx(5e-7 / math.sqrt(10))
    assert default_rate(100_000) == 5e-6


def phased(section, prompts=10):
    asked = []

    def pairs_of(phase, which):
        asked.append((phase, list(which)))
        return {prompt: (phase, prompt) for prompt in which if prompt != 4}  # the answer to prompt 4 cannot teach

    return PhasedBatches(Phases(prompts, section, 1, 0), pairs_of), asked


def test_phases_divide_the_steps_of_spin_and_each_is_asked_for_once():
    section = SpinSection(pairs_per_step=2, refresh=3, epochs=1.0)
    batches, asked = phased(section)
    whole = batches_of(list(range(10)), section, 1, 0)
    assert len(batches) == len(whole) == 5
    assert batches.opponent_resets == {0, 1, 3}  # 5 steps in 3 phases
    read = [batches[step] for step in range(5)]
    # the same prompts in the same steps as without phases, but for prompt 4
    assert [[prompt for _, prompt in step] for step in read] == [[p for p in whole[s] if p != 4] for s in range(5)]
    assert [{phase for phase, _ in step} for step in read] == [{0}, {1}, {1}, {2}, {2}]
    assert [phase for phase, _ in asked] == [0, 1, 2]
    assert sorted(prompt for _, which in asked for prompt in which) == list(range(10))


def test_a_phase_per_step_asks_before_every_step_and_one_phase_asks_once():
    per_step, asked = phased(SpinSection(pairs_per_step=4, refresh="step", epochs=2.0))
    assert per_step.opponent_resets == set(range(6))
    for step in range(6):
        per_step[step]
    assert [len(which) for _, which in asked] == [4, 4, 2, 4, 4, 2]
    once, _ = phased(SpinSection(pairs_per_step=4, epochs=2.0))
    assert once.opponent_resets == {0}
    assert once.phases.prompts(0) == list(range(10))


class CountedReads(list[int]):
    """A list that counts how often it is read."""

    reads = 0

    def __getitem__(self, place):
        self.reads += 1
        return super().__getitem__(place)

    def __iter__(self):
        return (self[place] for place in range(len(self)))


def test_finding_the_phase_of_a_step_does_not_read_all_of_them():
    phases = Phases(1000, SpinSection(pairs_per_step=2, refresh=300), 1, 0)
    expected = [max(phase for phase, start in enumerate(phases.starts) if start <= step) for step in range(500)]
    phases.starts = CountedReads(phases.starts)
    assert [phases.phase_of(step) for step in range(500)] == expected
    assert phases.starts.reads <= 500 * 9  # 300 phases are told apart by 9 yes-or-no questions


def test_a_resumed_run_asks_for_the_phase_it_is_in_and_no_earlier_one():
    batches, asked = phased(SpinSection(pairs_per_step=2, refresh=5))
    batches[3]
    assert [phase for phase, _ in asked] == [3]


def test_rates_are_judged_by_what_is_told_apart_and_by_the_real_answers(opponent):
    engine, pairs = opponent
    expected = [math.log(2) - pair.real.opponent / len(pair.real.ids) for pair in pairs]
    assert rate_losses(engine, pairs) == pytest.approx(expected, rel=1e-5)


def test_a_rate_that_ruins_the_player_is_worse_than_none_however_well_it_tells_answers_apart(random_player, tmp_path):
    """Answers of 30 tokens against 5: nearly any move of the weights lowers the former by more than the latter."""
    engine, _ = random_player()
    long = [Answer(tuple(2 + (place + n) % 18 for n in range(30)), "", False) for place in range(len(ROWS))]
    pairs = [Pair(row.example_id, row.prompt_ids, Answer(row.response_ids, "", True), (answer,), writer="iterate-0")
             for row, answer in zip(ROWS, long, strict=True)]  # fmt: skip
    pairs = list(score_pairs(engine, pairs, "opponent", Shards(tmp_path / "pairs", "tag", Silent()), "score"))
    start = fmean(rate_losses(engine, pairs))
    section = SpinSection.model_validate({"lambda": 1.0, "learning_rate": 1.0, "pairs_per_step": 4, "epochs": 4.0})
    iterate(engine, pairs, section, tmp_path)
    assert fmean(one.loss for one in measure_pairs(engine, pairs, SelfPlay("logistic", lambda_=1.0))) < 0.05
    assert fmean(rate_losses(engine, pairs)) > start
