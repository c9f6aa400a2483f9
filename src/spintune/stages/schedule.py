"""What a run is going to do: its stages in order, and from its data about how many tokens each takes.

The estimate is for people who wait. It takes four characters for a token until a model's tokenizer is there, answers of
a trained model to be as long as real ones, and those of a model as it comes to be as long as they may, since it often
has not learned when to stop. Only proportions matter: seconds come from what was measured (:mod:`spintune.time_left`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from spintune.data.tables import open_tables
from spintune.evaluation.selection import prompt_text
from spintune.progress import TRIAL_STEPS, ExpectedStage, ExpectedTask
from spintune.recipe import HELDOUT, SYNTH, Recipe, SftSection, SpinSection
from spintune.recipe.section import AUTO_RATE
from spintune.records import Example
from spintune.run_folder import MANIFEST
from spintune.tokens.rows import RowRenderer
from spintune.training.ladder_plan import BACKWARD, MIN_STEPS, SHARE, USUAL_RUNGS

WRITE, DATA, MEASURE, SFT_TRAINING, BASELINE_TRAINING, EVALUATION = (
    "write data",
    "data",
    "measure base",
    "SFT",
    "more SFT, the baseline",
    "evaluation",
)
_CHARACTERS = 4  # of a token
_TEMPLATE = 12  # tokens that a chat template adds to a prompt
_SAMPLE = 200  # examples whose length is looked at


def check_data_files(recipe: Recipe) -> None:
    """Raises DataError where a source is not there; not for a run that has read all of them, and without a network."""
    if (Path(recipe.out) / "data" / MANIFEST).is_file():
        return
    for source in (*recipe.data.train, *(recipe.data.heldout or ())):
        if source.path != SYNTH:
            open_tables(source.path, source.split, source.config)


def answers_of(iteration: int) -> str:
    """The name of the stage that writes an iteration's answers."""
    return f"iteration {iteration}: answers"


def training_of(iteration: int) -> str:
    """The name of the stage that trains an iterate."""
    return f"iteration {iteration}: training"


def folder_of(name: str) -> str | None:
    """The folder of a stage inside of the run's; None for the evaluations, which have many."""
    fixed = {
        WRITE: "synth",
        DATA: "data",
        MEASURE: "likelihood/base",
        SFT_TRAINING: "sft",
        BASELINE_TRAINING: "spin/baseline-sft",
    }
    if name in fixed or name == EVALUATION:
        return fixed.get(name)
    iterate = f"spin/iterate-{name.split()[1].rstrip(':')}"
    return f"{iterate}/pairs" if name.endswith("answers") else iterate


@dataclass(frozen=True)
class DataSize:
    """The data of a run: how many examples, and mean lengths. [tokens]

    Attributes:
        seen, played: examples that SFT and self-play train on.
        chooses: whether enough examples are held out to choose models and rates by.
        measured: whether every model is measured on held-out examples as soon as it is made.
    """

    seen: int
    played: int
    heldout: int
    prompt: float
    answer: float
    chooses: bool
    measured: bool


def guessed_lengths(examples: Sequence[Example], characters: float = _CHARACTERS) -> tuple[float, float]:
    """Mean tokens of prompts and of answers, by the characters of a token."""
    prompt = fmean(len(prompt_text(one)) for one in examples) / characters + _TEMPLATE
    return prompt, fmean(len(one.answer) for one in examples) / characters + 1


def token_lengths(renderer: RowRenderer, examples: Sequence[Example]) -> tuple[float, float]:
    """Mean tokens of prompts and of answers."""
    rows = renderer.rows(examples)
    return fmean(len(row.prompt_ids) for row in rows), fmean(len(row.response_ids) for row in rows)


def data_size(
    seen: Sequence[Example],
    played: Sequence[Example],
    heldout: int,
    max_length: int,
    chooses: bool,
    measured: bool,
    lengths: Callable[[Sequence[Example]], tuple[float, float]] = guessed_lengths,
) -> DataSize:
    """The size of a run's data; ``lengths`` says how long prompts and answers of some examples are."""
    some = [seen[place] for place in range(0, len(seen), max(1, len(seen) // _SAMPLE))]
    prompt, answer = lengths(some) if some else (0.0, 0.0)
    return DataSize(len(seen), len(played), heldout, prompt, min(answer, max_length), chooses, measured)


def expected_stages(recipe: Recipe, until: str, size: DataSize | None = None) -> list[ExpectedStage]:
    """The stages of a run of a recipe, with what they take as far as that is known."""
    names = [WRITE] if recipe.synth else []
    if recipe.synth and until == "synth":
        return [ExpectedStage(name, None) for name in names]
    stages = [*(ExpectedStage(name, None) for name in names), ExpectedStage(DATA)]
    work = _Work(recipe, size) if size else None
    plays = recipe.spin is not None and until != "sft"
    if (recipe.sft or plays) and (size is None or size.measured):
        stages.append(ExpectedStage(MEASURE, tuple(work.measuring(trained=False)) if work else None))
    if recipe.sft:
        stages.append(ExpectedStage(SFT_TRAINING, tuple(work.sft(recipe.sft)) if work else None))
    if recipe.spin and plays:
        for iteration in range(1, recipe.spin.iterations + 1):
            stages.append(
                ExpectedStage(answers_of(iteration), tuple(work.answers(recipe.spin, iteration)) if work else None)
            )
            stages.append(
                ExpectedStage(training_of(iteration), tuple(work.training(recipe.spin, iteration)) if work else None)
            )
        if recipe.spin.baseline == "sft":
            stages.append(ExpectedStage(BASELINE_TRAINING, tuple(work.baseline(recipe.spin)) if work else None))
    if recipe.eval and until == "eval":
        heldout_alone = recipe.eval == [HELDOUT] and recipe.judge is None
        models = 1 + sum(one.name != DATA and not one.name.endswith("answers") for one in stages)
        stages.append(ExpectedStage(EVALUATION, tuple(work.evaluation(models)) if work and heldout_alone else None))
    return stages


@dataclass(frozen=True)
class _Work:
    """The tasks of each stage, for data of a size."""

    recipe: Recipe
    size: DataSize

    def measuring(self, trained: bool = True) -> Iterator[ExpectedTask]:
        """One model on the held-out examples."""
        size, spin = self.size, self.recipe.spin
        if size.heldout:
            written = self._written(spin, trained) if spin else size.answer
            yield ExpectedTask("references", size.heldout, size.prompt + size.answer)
            yield ExpectedTask("answers", size.heldout, written)
            if samples := self.recipe.evaluation.samples:
                yield ExpectedTask("answers", size.heldout * samples, written)

    def _after_training(self) -> Iterator[ExpectedTask]:
        yield from self.measuring() if self.size.measured else ()

    def sft(self, section: SftSection) -> Iterator[ExpectedTask]:
        """SFT, and measuring its model."""
        tokens = self.size.seen * (self.size.prompt + self.size.answer)
        step = min(section.tokens_per_step, tokens)
        steps = math.ceil(section.epochs * tokens / max(1.0, step))
        steps = min(steps, section.max_steps or steps)
        if section.learning_rate == AUTO_RATE:
            yield from self._trials(steps * step, BACKWARD)
        yield ExpectedTask("steps", steps, step)
        yield from self._after_training()

    def answers(self, section: SpinSection, iteration: int) -> Iterator[ExpectedTask]:
        """Writing and scoring the pairs of an iteration."""
        size, written = self.size, self._written(section, self._is_trained(iteration))
        given = bool(section.generated) and iteration == 1
        if iteration == 1 and size.heldout:  # later ones were written when their writer was measured
            yield ExpectedTask("answers", size.heldout * section.negatives, written)
        prompts = self._phase_prompts(section, iteration)
        if not given:
            yield ExpectedTask("answers", prompts * section.negatives, written)
        pair = size.prompt + size.answer + written * section.negatives
        yield ExpectedTask("pairs", prompts + size.played * self._replayed(section, iteration), pair)
        if size.heldout:
            yield ExpectedTask("pairs", size.heldout, pair)

    def training(self, section: SpinSection, iteration: int) -> Iterator[ExpectedTask]:
        """Training an iterate, and measuring it."""
        steps, step = self._steps(section, iteration)
        if section.finds_rate(iteration):
            yield from self._trials(steps * step, BACKWARD + 2)
        yield ExpectedTask("steps", steps, step)
        for _ in range(1, self._phases(section)):
            prompts, written = self._phase_prompts(section, iteration), self._written(section, trained=True)
            yield ExpectedTask("answers", prompts * section.negatives, written)
            yield ExpectedTask("pairs", prompts, self.size.prompt + self.size.answer + written * section.negatives)
        yield from self._judging(section, iteration)

    def _judging(self, section: SpinSection, iteration: int) -> Iterator[ExpectedTask]:
        """How an iterate tells held-out pairs apart, what it answers, and how far it is from earlier ones."""
        size, written = self.size, self._written(section, trained=True)
        if not size.heldout:
            return
        yield ExpectedTask("pairs", size.heldout, size.prompt + size.answer + written * section.negatives)
        yield ExpectedTask("answers", size.heldout * section.negatives, written)
        references, *answers = self.measuring()
        yield references
        reporting = size.heldout / 2 if size.chooses else size.heldout
        models = 2 if iteration == 1 else 3
        for _ in range(models if section.draws_plainly else 0):
            yield ExpectedTask("pairs", reporting, size.prompt + written * section.negatives)
        yield from answers if size.measured else ()

    def baseline(self, section: SpinSection) -> Iterator[ExpectedTask]:
        """As much SFT as self-play took steps and tokens."""
        played = [self._steps(section, iteration) for iteration in range(1, section.iterations + 1)]
        steps, tokens = sum(count for count, _ in played), sum(count * tokens for count, tokens in played)
        if self._baseline_finds_rate(section):
            yield from self._trials(tokens, BACKWARD)
        yield ExpectedTask("steps", steps, tokens / max(1, steps))
        yield from self._after_training()

    def evaluation(self, models: int) -> Iterator[ExpectedTask]:
        """The held-out examples under every model that was not measured when it was made."""
        for _ in range(0 if self.size.measured else models):
            yield from self.measuring()

    def _baseline_finds_rate(self, section: SpinSection) -> bool:
        rate = section.baseline_learning_rate
        return AUTO_RATE in (rate, None if rate or not self.recipe.sft else self.recipe.sft.learning_rate)

    def _trials(self, tokens: float, passes: int) -> Iterator[ExpectedTask]:
        """The ladder that finds the rate of a stage of so many tokens, where there is something to judge it by."""
        if self.size.chooses:
            steps = MIN_STEPS * (1 + USUAL_RUNGS)
            yield ExpectedTask(TRIAL_STEPS, steps, SHARE * passes * tokens / BACKWARD / steps)

    def _is_trained(self, iteration: int) -> bool:
        """Whether the opponent of an iteration is no longer the model as it came."""
        return iteration > 1 or self.recipe.sft is not None

    def _written(self, section: SpinSection, trained: bool) -> float:
        """Tokens of an answer."""
        return min(self.size.answer, section.longest_answer) if trained else section.longest_answer

    def _phases(self, section: SpinSection) -> int:
        return section.refresh if isinstance(section.refresh, int) else 1

    def _phase_prompts(self, section: SpinSection, iteration: int) -> float:
        """Prompts of one phase of an iteration."""
        epochs = section.in_iteration(iteration).epochs
        return self.size.played * min(1.0, epochs / self._phases(section)) if section.refresh != 1 else self.size.played

    def _replayed(self, section: SpinSection, iteration: int) -> int:
        """How many earlier iterations' pairs are trained on again."""
        return min(section.replay, iteration - 1)

    def _steps(self, section: SpinSection, iteration: int) -> tuple[int, float]:
        """Steps of an iteration, and tokens of each."""
        epochs = section.in_iteration(iteration).epochs
        pairs = self.size.played * (1 + self._replayed(section, iteration)) * epochs
        written = self._written(section, self._is_trained(iteration))
        pair = self.size.prompt + self.size.answer + written * section.negatives
        return math.ceil(pairs / section.pairs_per_step), min(section.pairs_per_step, pairs) * pair
