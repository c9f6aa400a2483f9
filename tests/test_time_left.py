"""How long a run will still take: by hand, with a clock that tests move."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from spintune.pipeline import run_recipe
from spintune.progress import TRIAL_STEPS, ExpectedStage, ExpectedTask, Silent
from spintune.recipe import parse_recipe
from spintune.records import Example, Message
from spintune.stages.schedule import SFT_TRAINING, DataSize, data_size, expected_stages, token_lengths, training_of
from spintune.time_left import RELATIVE_COST, RunTimes
from spintune.tokens.chat import ChatRenderer

STAGES = [
    ExpectedStage("data"),
    ExpectedStage("SFT", (ExpectedTask("steps", 10, 100),)),
    ExpectedStage("answers", (ExpectedTask("answers", 20, 50), ExpectedTask("pairs", 20, 200))),
    ExpectedStage("training", (ExpectedTask("steps", 5, 400),)),
]


class Clock:
    seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def times(clock: Clock) -> RunTimes:
    found = RunTimes(clock)
    found.expect(STAGES)
    return found


def step(times: RunTimes, clock: Clock, task: object, seconds: float, items: float = 1) -> None:
    clock.seconds += seconds
    times.advance(task, items)  # type: ignore[arg-type]


def test_nothing_is_said_before_anything_was_measured(times: RunTimes) -> None:
    times.begin_stage("SFT")
    times.begin_task("SFT", 10, "steps")
    assert (times.stage_left(), times.run_left(), times.share_done()) == (None, None, 0)
    assert (times.stage, times.number, times.count) == ("SFT", 2, 4)


def test_the_rest_follows_from_the_seconds_of_a_token(times: RunTimes, clock: Clock) -> None:
    """4 of 10 steps of 100 tokens in 8 s: 0.02 s for a token of training, so 12 s here and 40 s for 5 · 400 later.

    Scoring 20 · 200 and writing take as much of that as the table says.
    """
    times.begin_stage("SFT")
    task = times.begin_task("SFT", 10, "steps")
    for _ in range(4):
        step(times, clock, task, 2.0)
    assert times.stage_left() == pytest.approx(12)
    assert times.share_done() == pytest.approx(0.4)
    writing = 20 * 50 * 0.02 * RELATIVE_COST["generate"] / RELATIVE_COST["train"]
    left = times.run_left()
    assert left is not None
    assert left.seconds == pytest.approx(12 + writing + 20 * 200 * 0.02 / RELATIVE_COST["train"] + 40)
    assert not left.at_least
    clock.seconds += 1.5  # a step under way is a part of what is left
    assert times.stage_left() == pytest.approx(10.5)


def test_what_is_measured_replaces_the_guess_and_late_stages_count_more(times: RunTimes, clock: Clock) -> None:
    """0.02 s a token in SFT and 1 s beside it; then writing is measured: 20 answers of 50 tokens in 40 s."""
    times.begin_stage("SFT")
    task = times.begin_task("SFT", 10, "steps")
    step(times, clock, task, 20.0, 10)
    times.end_task(task)
    clock.seconds += 1
    times.end_stage()
    times.begin_stage("answers")
    task = times.begin_task("answers", 20, "answers")
    step(times, clock, task, 20.0, 10)
    left = times.stage_left()
    worth = 500 * RELATIVE_COST["train"] + 500 * RELATIVE_COST["generate"]
    assert left == pytest.approx(20 + 20 * 200 * (10 + 20) / worth)
    whole = times.run_left()
    assert whole is not None
    assert whole.seconds == pytest.approx((left or 0) + 5 * 400 * 0.02 + 1)  # and as long beside the tasks as before


def test_what_an_earlier_command_did_says_nothing_about_the_time(times: RunTimes, clock: Clock) -> None:
    times.begin_stage("SFT")
    task = times.begin_task("SFT", 10, "steps")
    times.advance(task, 8, restored=True)
    assert times.stage_left() is None
    step(times, clock, task, 3.0)
    assert times.stage_left() == pytest.approx(3)
    assert task.item_seconds == pytest.approx(3)


def test_a_task_inside_of_another_has_its_own_time(times: RunTimes, clock: Clock) -> None:
    """A phase writes answers between two steps: its 30 s are none of the steps'."""
    times.begin_stage("SFT")
    outer = times.begin_task("SFT", 10, "steps")
    step(times, clock, outer, 2.0)
    inner = times.begin_task("phase", 3, "answers")
    step(times, clock, inner, 30.0, 3)
    times.end_task(inner)
    step(times, clock, outer, 2.0)
    assert outer.item_seconds == pytest.approx(2)
    assert times.stage_left() == pytest.approx(16)


def test_a_task_corrects_what_was_expected_of_it(times: RunTimes, clock: Clock) -> None:
    """Half of the pairs were dropped: 3 steps in place of 5."""
    times.begin_stage("training")
    task = times.begin_task("SPIN iteration 1", 3, "steps")
    step(times, clock, task, 4.0)
    assert times.stage_left() == pytest.approx(8)


def test_a_stage_under_way_learns_how_many_tokens_its_work_has(times: RunTimes, clock: Clock) -> None:
    """200 tokens a step and not 100: 0.01 s for each, and 5 steps of 800 later."""
    times.begin_stage("SFT")
    training = ExpectedStage("training", (ExpectedTask("steps", 5, 800),))
    times.expect([STAGES[0], ExpectedStage("SFT", (ExpectedTask("steps", 10, 200),)), training])
    task = times.begin_task("SFT", 10, "steps")
    step(times, clock, task, 2.0)
    left = times.run_left()
    assert left is not None
    assert left.seconds == pytest.approx(9 * 2.0 + 5 * 800 * 0.01)


def test_lengths_are_those_of_the_tokenizer_once_it_is_there(tiny_model: Path) -> None:
    renderer = ChatRenderer(AutoTokenizer.from_pretrained(tiny_model))
    examples = [
        Example((Message("user", "fox " * words), Message("assistant", "owl " * (words + 1)))) for words in (2, 4)
    ]
    rows = [renderer.row(example) for example in examples]
    guessed = data_size(examples, examples, 4, 100, chooses=True, measured=True)
    assert guessed.answer == (4 * 3 + 4 * 5) / 2 / 4 + 1
    size = data_size(examples, examples, 4, 100, chooses=True, measured=True, lengths=partial(token_lengths, renderer))
    assert size.prompt == sum(len(row.prompt_ids) for row in rows) / 2
    assert size.answer == sum(len(row.response_ids) for row in rows) / 2
    assert size.answer != guessed.answer


def test_a_run_says_again_what_it_takes_when_its_model_is_there(tmp_path: Path, tiny_model: Path) -> None:
    class Told(Silent):
        def __init__(self) -> None:
            self.expected: list[Sequence[ExpectedStage]] = []

        def expect(self, stages: Sequence[ExpectedStage]) -> None:
            self.expected.append(stages)

    (tmp_path / "rows.json").write_text(json.dumps([{"prompt": f"Say {n}.", "completion": "owl " * 9} for n in "abcd"]))
    data = {"train": str(tmp_path / "rows.json"), "eval_fraction": 0.25, "max_length": 96}
    values = {"out": str(tmp_path / "run"), "model": str(tiny_model), "data": data, "sft": {"max_steps": 1}, "eval": []}
    told = Told()
    run_recipe(parse_recipe(values, "test"), tmp_path / "cache", told)
    renderer = ChatRenderer(AutoTokenizer.from_pretrained(tiny_model))
    row = renderer.row(Example((Message("user", "Say a."), Message("assistant", "owl " * 9))))
    (steps,) = (task for one in told.expected[-1] for task in one.tasks or () if task.unit == "steps")
    assert steps.tokens == 3 * (len(row.prompt_ids) + len(row.response_ids))
    assert len(told.expected) == 3
    # nothing is trained, so that nobody asks how long the rows of training are, or whether a template can write them
    told = Told()
    values = {**values, "out": str(tmp_path / "judged"), "sft": None, "eval": ["heldout"]}
    run_recipe(parse_recipe(values, "test"), tmp_path / "cache", told)
    assert len(told.expected) == 2


def test_what_judging_an_iterate_takes_is_expected() -> None:
    """Held-out pairs told apart, answers to them, references, two models' scores of the answers (three from the second
    iteration on), and greedy answers."""
    values = {"out": "o", "model": "m", "data": {"train": "x.json"}, "spin": {"iterations": 2, "max_new_tokens": 50}}
    size = DataSize(seen=64, played=64, heldout=60, prompt=30, answer=10, chooses=True, measured=True)
    stages = {one.name: one.tasks or () for one in expected_stages(parse_recipe(values, "test"), "eval", size)}
    judged = [(task.unit, task.items, task.tokens) for task in stages[training_of(1)] if task.unit != TRIAL_STEPS][1:]
    scores = [("pairs", 30, 40)]
    assert judged == [
        ("pairs", 60, 50),
        ("answers", 60, 10),
        ("references", 60, 40),
        *scores * 2,
        ("answers", 60, 10),
    ]
    assert [task.items for task in stages[training_of(2)] if task.unit == "pairs"] == [60, 30, 30, 30]
    values["spin"] = {"iterations": 2, "temperature": 0.7}  # how far it is from others is known of plain draws alone
    sharpened = {one.name: one.tasks or () for one in expected_stages(parse_recipe(values, "test"), "eval", size)}
    assert [task.items for task in sharpened[training_of(2)] if task.unit == "pairs"] == [60]


def test_a_stage_of_which_nobody_knows_makes_it_at_least(times: RunTimes, clock: Clock) -> None:
    times.expect([*STAGES, ExpectedStage("evaluation", None)])
    times.begin_stage("training")
    task = times.begin_task("SPIN iteration 1", 5, "steps")
    step(times, clock, task, 1.0)
    left = times.run_left()
    assert left is not None
    assert (left.seconds, left.at_least) == (pytest.approx(4), True)


def test_stages_that_are_skipped_or_unknown_do_not_count(times: RunTimes, clock: Clock) -> None:
    assert not times.begin_stage("judge")
    assert times.begin_stage("training")  # self-play stopped early, so to speak
    assert not times.begin_stage("SFT")  # inside of another
    assert (times.number, times.worked) == (4, False)
    times.end_stage()
    assert times.stage is None


def test_a_task_outside_of_stages_goes_by_its_own_rate(clock: Clock) -> None:
    times = RunTimes(clock)
    task = times.begin_task("verify", 100, "MB")
    step(times, clock, task, 5.0, 25)
    assert (times.stage_left(), times.share_done()) == (pytest.approx(15), 0.25)
    times.end_task(task)
    assert times.stage_left() is None


def test_a_task_of_unknown_length_counts_without_an_end(clock: Clock) -> None:
    times = RunTimes(clock)
    task = times.begin_task("reading", math.inf, "rows")
    step(times, clock, task, 5.0, 25)
    assert (times.stage_left(), times.share_done(), task.left) == (None, None, None)


def test_the_short_runs_that_find_a_rate_are_expected_and_tell_the_cost_of_training(clock: Clock) -> None:
    spin = {"iterations": 2, "learning_rate": "auto", "baseline": "sft", "baseline_learning_rate": 1e-5}
    values = {"out": "o", "model": "m", "data": {"train": "x.json"}, "sft": {"learning_rate": "auto"}, "spin": spin}
    size = DataSize(seen=640, played=640, heldout=100, prompt=30, answer=10, chooses=True, measured=False)
    stages = {one.name: one.tasks or () for one in expected_stages(parse_recipe(values, "test"), "eval", size)}
    trials = {name: [task for task in tasks if task.unit == TRIAL_STEPS] for name, tasks in stages.items()}
    assert [name for name, tasks in trials.items() if tasks] == [SFT_TRAINING, training_of(1)]
    (ladder,), steps = trials[training_of(1)], stages[training_of(1)][1]
    assert (steps.unit, steps.items, steps.tokens) == ("steps", 10, 64 * 50)
    # a fifth of what the stage costs, 5 for each of its tokens, while training costs 3
    assert ladder.items * ladder.tokens == pytest.approx(0.2 * 10 * 64 * 50 * 5 / 3)
    times = RunTimes(clock)
    times.expect([ExpectedStage("training", stages[training_of(1)][:2])])
    times.begin_stage("training")
    task = times.begin_task("learning rate", ladder.items, TRIAL_STEPS)
    step(times, clock, task, 12.0, ladder.items / 2)
    assert times.stage_left() == pytest.approx(12.0 + 2 * 12.0 * 15 / 5)
    without = expected_stages(parse_recipe(values, "test"), "eval", replace(size, chooses=False))
    assert not [task for one in without for task in one.tasks or () if task.unit == TRIAL_STEPS]


def test_limits_phases_and_replay_are_expected() -> None:
    """640 prompts: 10 steps in an epoch, and not as many as max_steps allows; five phases of 128 prompts each, of which
    the first is written before training; 20 steps where the pairs of the iteration before are played again."""
    values = {"out": "o", "model": "m", "data": {"train": "x.json"}, "sft": {"max_steps": 10_000, "epochs": 1}}
    size = DataSize(seen=640, played=640, heldout=0, prompt=30, answer=10, chooses=False, measured=False)

    def items(unit: str, **spin: object) -> list[list[float]]:
        recipe = parse_recipe({**values, "spin": {"pairs_per_step": 64, **spin}}, "test")
        stages = expected_stages(recipe, "eval", size)
        return [[task.items for task in one.tasks or () if task.unit == unit] for one in stages]

    assert items("steps", iterations=1)[1] == [math.ceil(640 * 40 / parse_recipe(values, "test").sft.tokens_per_step)]
    assert items("answers", iterations=1, refresh=5)[2:4] == [[128], [128] * 4]
    assert items("pairs", iterations=1, refresh=5)[2:4] == [[128], [128] * 4]
    assert items("steps", iterations=2, replay=1)[2:6] == [[], [10], [], [20]]
    assert items("pairs", iterations=2, replay=1)[2:6] == [[640], [], [1280], []]


def test_short_runs_that_were_made_before_take_no_time(times: RunTimes, clock: Clock) -> None:
    """A ladder that was finished, or copied, begins no task; the steps are those of the stage."""
    times.expect([ExpectedStage("SFT", (ExpectedTask(TRIAL_STEPS, 24, 50), ExpectedTask("steps", 10, 100)))])
    times.begin_stage("SFT")
    task = times.begin_task("SFT", 10, "steps")
    step(times, clock, task, 8.0, 4)
    assert times.stage_left() == pytest.approx(6 * 2.0)
    step(times, clock, task, 12.0, 6)
    assert times.stage_left() == 0
    assert times.share_done() == 1


def test_a_model_that_nobody_trained_is_expected_to_write_as_much_as_it_may() -> None:
    values = {"out": "o", "model": "m", "data": {"train": "x.json"}, "spin": {"iterations": 1, "max_new_tokens": 50}}
    size = DataSize(seen=8, played=8, heldout=4, prompt=30, answer=10, chooses=False, measured=True)

    def written(**sections: object) -> list[float]:
        stages = expected_stages(parse_recipe({**values, **sections}, "test"), "eval", size)
        return [task.tokens for one in stages for task in one.tasks or () if task.unit == "answers"]

    assert written() == [50, 50, 50, 10, 10]  # base measured, base plays (held out, training), iterate 1
    assert written(sft={}) == [50, 10, 10, 10, 10, 10]


def test_answers_that_are_written_at_once_count_before_they_end(times: RunTimes, clock: Clock) -> None:
    """20 answers of 50 tokens. Reading the prompts takes 9 s; 100 tokens later, two answers' worth, time counts."""
    times.begin_stage("answers")
    task = times.begin_task("answers", 20, "answers")
    clock.seconds += 9
    times.advance(task, 0, under_way=20)
    clock.seconds += 0.8
    times.advance(task, 0, under_way=100)
    assert times.stage_left() is None
    clock.seconds += 2
    times.advance(task, 0, under_way=300)  # 200 tokens in 2 s are four answers' worth
    assert task.done == 0
    pairs = 20 * 200 * (2 / 200) / RELATIVE_COST["generate"]
    assert times.stage_left() == pytest.approx(14 * 0.5 + pairs)
    clock.seconds += 1  # one ends after 30 tokens; the others have 370 together
    times.advance(task, 1, under_way=370)
    each = 3 / (1 + 370 / 50 - 2)
    assert task.item_seconds == pytest.approx(each)
    assert task.left == pytest.approx((20 - 1 - 370 / 50) * each)
    times.advance(task, 19, under_way=0)
    times.end_task(task)
    assert task.item_seconds == pytest.approx((9 + 0.8 + 2 + 1) / 20)  # prompts of later answers have to be read too


def test_prompts_are_read_before_answers_that_go_on_from_an_earlier_command(times: RunTimes, clock: Clock) -> None:
    """Of 20 answers 12 are there. 1 of the 8 others, a tenth and more, is written after its prompts were read."""
    times.begin_stage("answers")
    task = times.begin_task("answers", 20, "answers")
    times.advance(task, 12, restored=True, under_way=0)
    clock.seconds += 60
    times.advance(task, 0, under_way=10)
    assert task.left is None
    clock.seconds += 1
    times.advance(task, 0, under_way=50)
    assert task.left is None
    clock.seconds += 2
    times.advance(task, 0, under_way=150)  # 2 more in 2 s; 5 are left
    assert task.left == pytest.approx(5)


def test_answers_that_are_written_one_by_one_count_from_the_first(times: RunTimes, clock: Clock) -> None:
    times.begin_stage("answers")
    task = times.begin_task("answers", 20, "answers")
    clock.seconds += 1
    times.advance(task, 0, under_way=10)
    clock.seconds += 3
    times.advance(task, 1, under_way=0)
    clock.seconds += 4
    times.advance(task, 1, under_way=0)
    assert task.left == pytest.approx(18 * 4)


def test_longer_answers_than_expected_are_never_all_done(times: RunTimes, clock: Clock) -> None:
    """A tenth of the answers is left as long as none has ended."""
    times.begin_stage("answers")
    task = times.begin_task("answers", 20, "answers")
    times.advance(task, 0, under_way=100)
    clock.seconds += 8
    times.advance(task, 0, under_way=20 * 500)
    assert task.left == pytest.approx(1)
    times.advance(task, 20, under_way=0)
    assert (task.done, task.left) == (20, 0)
