"""A small Llama that learns a world: SFT and self-play by spintune's own functions, and what its answers are worth."""

from __future__ import annotations

import contextlib
import math
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from word_models import MAX_LENGTH, write_word_model

from self_play.worlds import Problem, World
from spintune.engine.logprobs import LogProbEngine
from spintune.engine.query import Query
from spintune.generation.build import build_generator
from spintune.generation.sampling import Sampling
from spintune.models.loading import load_model
from spintune.progress import Silent
from spintune.recipe import SftSection, SpinSection
from spintune.records import Pair
from spintune.selfplay.filters import IDENTICAL, without_degenerate
from spintune.selfplay.opponent import sample_pairs, score_pairs
from spintune.selfplay.phases import PhasedBatches, Phases
from spintune.selfplay.shards import Shards
from spintune.selfplay.spin import batches_of, learns_from_identical, measure_pairs, objective_of, train_iteration
from spintune.tokens.chat import ChatRenderer
from spintune.tokens.rows import TokenRow
from spintune.training.batches import Batches, steps_by_tokens, steps_of_equal_tokens
from spintune.training.checkpoint import Checkpoints
from spintune.training.loop import Steps, TrainingHooks, train
from spintune.training.objectives import NegativeLogLikelihood
from spintune.training.optimization import Optimization, optimization_of
from spintune.training.sft import heldout_loss

NEVER = 1e9
"""Minutes between checkpoints: trainings here take seconds, and a stopped study repeats one."""

TEMPERATURES = (0.0, 0.3, 0.5, 0.7, 1.0)


@dataclass(frozen=True)
class Work:
    """What a training cost, and for self-play what it saw."""

    steps: int
    tokens: int
    kept: int = 0
    """Pairs that were played."""
    identical: int = 0
    """Generated answers that equal the real one."""
    margin: float = 0.0
    """On the pairs of the last phase, after training. [nats per answer]"""


Weights = Mapping[str, Tensor]


class Player:
    """A model in memory whose weights are trained, kept and put back."""

    def __init__(self, world: World, seed: int, width: int = 64, layers: int = 2) -> None:
        self.world, self.seed = world, seed
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            write_word_model(folder, seed, world.words, width, layers)
            self.loaded = load_model(str(folder), cache=folder, precision="float32")
        self.engine = LogProbEngine(self.loaded.model, self.loaded.autocast, tokens_per_forward=8192)
        self.renderer = ChatRenderer(self.loaded.tokenizer)
        self.generator = build_generator(self.engine, self.loaded.tokenizer, self.renderer.stop_ids)

    @property
    def weights(self) -> Weights:
        """A copy of all weights."""
        return {name: value.detach().clone() for name, value in self.loaded.model.named_parameters()}

    def put_back(self, weights: Weights) -> None:
        """Makes the model what it was."""
        with torch.no_grad():
            for name, parameter in self.loaded.model.named_parameters():
                parameter.copy_(weights[name])

    def rows(self, problems: Sequence[Problem]) -> list[TokenRow]:
        """Problems as tokens."""
        return self.renderer.rows([problem.example for problem in problems])

    # SFT ----------------------------------------------------------------------------------------------------------

    def sft(self, rows: Sequence[TokenRow], section: SftSection, epoch: int) -> Work:
        """One epoch or more at a constant rate; ``epoch`` is how many came before."""
        steps = steps_by_tokens(
            [row.tokens for row in rows], section.tokens_per_step, section.epochs, self.seed + 1000 * epoch
        )
        return self._sft(rows, steps, optimization_of(section, section.learning_rate, self.seed + epoch))

    def sft_round(self, rows: Sequence[TokenRow], budget: Work, rate: float, number: int) -> Work:
        """As many steps and tokens as a round of self-play took, with its schedule."""
        steps = steps_of_equal_tokens(
            [row.tokens for row in rows], budget.steps, budget.tokens, self.seed, first_epoch=100 * number
        )
        return self._sft(rows, steps, optimization_of(SpinSection(), rate, self.seed + number))

    def _sft(self, rows: Sequence[TokenRow], steps: Sequence[Sequence[int]], optimization: Optimization) -> Work:
        with _checkpoints() as checkpoints:
            train(self.engine, Batches(rows, steps), NegativeLogLikelihood(), optimization, checkpoints)
        return Work(len(steps), sum(rows[index].tokens for step in steps for index in step))

    def loss(self, rows: Sequence[TokenRow]) -> float:
        """Nats a token."""
        return heldout_loss(self.engine, rows)

    # Self-play ----------------------------------------------------------------------------------------------------

    def play(
        self, rows: Sequence[TokenRow], section: SpinSection, rate: float, iteration: int, fill: bool = False
    ) -> Work | None:
        """One iteration of self-play; None where no pair is left to learn from.

        ``fill`` repeats the pairs, so that right answers of the opponent, from which nothing is learned, leave the
        number of steps as it is.
        """
        objective = objective_of(section, iteration)
        identical, latest = 0, list[Pair]()

        def pairs_of(phase: int, prompts: Sequence[int]) -> dict[int, Pair]:
            nonlocal identical, latest
            answers = self._answers([rows[prompt] for prompt in prompts], section, iteration, phase)
            found = without_degenerate(answers, learns_from_identical(section, iteration))
            identical += found.dropped[IDENTICAL]
            latest = self._scored(found.kept)
            places = {row.prompt_ids: prompt for prompt, row in enumerate(rows)}
            return {places[pair.prompt_ids]: pair for pair in latest}

        batches: Steps[Pair]
        if section.refresh == 1:
            pairs = list(pairs_of(0, range(len(rows))).values())
            if not pairs:
                return None
            wanted = math.ceil(len(rows) / section.pairs_per_step)
            if fill:
                section = section.model_copy(update={"epochs": math.ceil(len(rows) / len(pairs))})
            batches = batches_of(pairs, section, iteration, self.seed)
            batches = Batches(pairs, batches.steps[:wanted]) if fill else batches
        else:
            batches = PhasedBatches(Phases(len(rows), section, iteration, self.seed), pairs_of)
        played = _Counted(batches)
        optimization = optimization_of(section, rate, self.seed + iteration)
        with _checkpoints() as checkpoints, Silent().task("", 0, "") as task:
            train_iteration(self.engine, played, objective, optimization, checkpoints, task, TrainingHooks())
        tokens = sum(objective.query(pair).tokens for step in played.seen for pair in step)
        margin = statistics.fmean(one.margin for one in measure_pairs(self.engine, latest, objective)) if latest else 0
        return Work(sum(map(bool, played.seen)), tokens, sum(map(len, played.seen)), identical, margin)

    def mistakes(self, rows: Sequence[TokenRow], number: int) -> list[TokenRow]:
        """The rows that the model answers otherwise at temperature 1: the pairs that self-play would keep."""
        pairs = self._answers(rows, SpinSection(max_new_tokens=2 * self.world.longest), number, 0)
        wrong = {pair.prompt_ids for pair in without_degenerate(pairs, False).kept}
        return [row for row in rows if row.prompt_ids in wrong]

    def _answers(self, rows: Sequence[TokenRow], section: SpinSection, iteration: int, phase: int) -> list[Pair]:
        seed = self.seed * 1_000_003 + iteration * 1009 + phase
        sampling = Sampling(2 * self.world.longest, section.temperature, section.top_p, section.top_k, seed)
        with tempfile.TemporaryDirectory() as folder:
            shards = Shards(Path(folder), "answers", Silent())
            return sample_pairs(
                self.generator, rows, sampling, section.negatives, MAX_LENGTH, "opponent", shards, "answers"
            )

    def _scored(self, pairs: Sequence[Pair]) -> list[Pair]:
        with tempfile.TemporaryDirectory() as folder:
            return score_pairs(self.engine, pairs, "opponent", Shards(Path(folder), "scores", Silent()), "scores")

    # Measures -----------------------------------------------------------------------------------------------------

    def accuracy(self, problems: Sequence[Problem], temperature: float) -> float:
        """Share of right answers. At temperature 1 with one right answer it is known exactly: the mean likelihood."""
        rows = self.rows(problems)
        if temperature == 1 and self.world.one_answer:
            scores = self.engine.score([Query(row.prompt_ids, (row.response_ids,)) for row in rows])
            return statistics.fmean(math.exp(score) for (score,) in scores)
        answers = self._write(rows, temperature, 1)
        return statistics.fmean(
            self.world.is_right(problem, answer) for problem, answer in zip(problems, answers, strict=True)
        )

    def variety(self, problems: Sequence[Problem], temperature: float, samples: int = 4) -> float:
        """Different right answers among several samples to a prompt, on average."""
        rows = self.rows(problems)
        found: list[set[tuple[str, ...]]] = [set() for _ in problems]
        for draw in range(samples):
            for problem, answer, right in zip(problems, self._write(rows, temperature, 2 + draw), found, strict=True):
                if self.world.is_right(problem, answer):
                    right.add(answer)
        return statistics.fmean(map(len, found))

    def _write(self, rows: Sequence[TokenRow], temperature: float, seed: int) -> list[tuple[str, ...]]:
        sampling = Sampling(2 * self.world.longest, temperature, seed=seed)
        answers = self.generator.generate([row.prompt_ids for row in rows], sampling)
        words = self.loaded.tokenizer.convert_ids_to_tokens
        return [tuple(words(a.ids[:-1])) if a.finish_reason == "stop" else () for a in answers]


class _Counted:
    """Steps that remember what was trained on."""

    def __init__(self, steps: Steps[Pair]) -> None:
        self.steps, self.seen = steps, list[list[Pair]]()
        self.opponent_resets = steps.opponent_resets

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, step: int) -> list[Pair]:
        self.seen.append(self.steps[step])
        return self.seen[-1]


@contextlib.contextmanager
def _checkpoints() -> Iterator[Checkpoints]:
    with tempfile.TemporaryDirectory() as folder:
        yield Checkpoints(Path(folder), NEVER)
