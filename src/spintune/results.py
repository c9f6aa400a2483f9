"""What the stages of a run find out, as typed records: the facts of their manifests, and ``results.json``.

``spintune.typed_json`` writes and reads them. The field order is the order in the files. A field that a later version
adds needs a default, so that the run folders of earlier versions can still be read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field

from spintune.evaluation.decision import BestModel
from spintune.evaluation.judge import Canary, PairwiseSummary
from spintune.evaluation.rating import RatingSummary
from spintune.evaluation.scores import ScoreScale
from spintune.evaluation.statistics import Interval
from spintune.generation.served.facts import EngineFacts
from spintune.mixtures.report import MixtureReport
from spintune.selfplay.diagnostics import AnswerProfile, KlEstimate
from spintune.selfplay.pair_metrics import HeldoutPairMetrics
from spintune.selfplay.sampler_gap import SamplerGap
from spintune.selfplay.separability import Separability
from spintune.synthesis.filters import FilterCounts
from spintune.teachers.budget import Cost
from spintune.typed_json import OmitEmpty

Intervals = dict[str, Interval]
"""Estimates by measure."""


# Hardware ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HardwareFacts:
    """What training took, apart from time; None where it is not known.

    Attributes:
        share_of_peak: achieved arithmetic over that of the machine's fastest matrix product, in [0, 1].
        best_gflops: speed of that product. [GFLOP/s]
        joules: energy that the processors used. [J]
    """

    share_of_peak: float | None
    best_gflops: float | None
    joules: float | None


# Data and SFT --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SynthFacts:
    """Facts of the stage ``synth``.

    Attributes:
        teacher: name of the model that wrote the examples.
        seeds: file of the seed tasks.
        instructions: distinct instructions among the examples.
        funnel: read, kept and dropped at each step, in order.
        stopped: why it ended early, or None.
        seconds: by kind of work.
        thoughts: replies before which the teacher reasoned.
        left_out: replies to requests without a parameter that the server refuses, by parameter.
    """

    teacher: str
    method: str
    seeds: str
    examples: int
    instructions: int
    funnel: list[FilterCounts]
    stopped: str | None
    cost: Cost
    seconds: dict[str, float]
    thoughts: int = 0
    left_out: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class DataFacts(OmitEmpty):
    """Facts of the stage ``data``: how many rows went where.

    Attributes:
        mixture: target and actual shares of a mixture's tasks; None (and not in the file) without a mixture.
        repeated: rows that a source with a weight above 1 gives again, but for held-out ones, which are judged once.
        dropped: rows by the reason they were dropped for.
        trimmed: conversations that were cut after their last answer to train on.
        ignored_keys: keys that had no use, with the number of rows or turns that had them.
        seen, unseen: training examples that SFT sees, and those kept out of it; None where spin.prompts splits none.
    """

    mixture: MixtureReport | None = None
    read: int
    repeated: int
    dropped: dict[str, int]
    train: int
    heldout: int
    trimmed: int | None = None
    ignored_keys: dict[str, int] = field(default_factory=dict)
    seen: int | None = None
    unseen: int | None = None

    @property
    def training(self) -> str:
        """How many examples there are to train on, and for which stages, in words."""
        split = "" if self.seen is None else f" ({self.seen:,} that SFT sees, {self.unseen:,} that it does not)"
        return f"{self.train:,} to train on{split}"


@dataclass(frozen=True)
class SftFacts:
    """Facts of the stages ``sft`` and ``spin/baseline-sft``.

    Attributes:
        rows: training rows.
        dropped: examples without a row, by reason.
        truncated: rows that were cut to the maximum length.
        steps: that were taken.
        heldout_loss: of the weights that were kept, in nats per token, on the examples that choose or, where they are
            too few, on all; None without held-out examples.
        learning_rate: at its peak.
        seconds: by kind of work.
        unknown: trained tokens that stand for characters that the tokenizer lacks.
        planned_steps: more than were taken where sft.patience ended training; None where an earlier version trained.
        kept_step: the step whose weights were kept; None as before.
        chosen_by: held-out examples by which it was chosen; 0 where it is the last step by rule.
        start_loss: as ``heldout_loss``, before the first step.
    """

    rows: int
    dropped: dict[str, int]
    truncated: int
    steps: int
    heldout_loss: float | None
    learning_rate: float
    seconds: dict[str, float]
    hardware: HardwareFacts
    unknown: int = 0
    planned_steps: int | None = None
    kept_step: int | None = None
    chosen_by: int = 0
    start_loss: float | None = None

    @property
    def kept_earlier(self) -> bool:
        """Whether the weights of an earlier step than the last were kept."""
        return self.kept_step is not None and self.kept_step < self.steps

    @property
    def ended_early(self) -> bool:
        """Whether sft.patience ended training before its last step."""
        return self.planned_steps is not None and self.steps < self.planned_steps


# Self-play -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainPairCounts:
    """Training pairs of an iteration.

    Attributes:
        prompts: training prompts.
        played: prompts that were answered before training began; with ``spin.refresh`` those of the first phase.
        kept: pairs to learn from, one for each of those prompts that has an answer to learn from.
        answers: generated answers in them.
        dropped: the other prompts, by reason, and those without a row. Earlier versions counted answers.
        replayed: pairs of earlier iterations, beside those kept.
        real_cut, generated_cut: answers that were cut at the maximum length.
    """

    prompts: int
    played: int
    kept: int
    answers: int
    dropped: dict[str, int]
    replayed: int
    real_cut: int
    generated_cut: int


@dataclass(frozen=True)
class HeldoutPairCounts:
    """Held-out pairs of an iteration, as in :class:`TrainPairCounts`."""

    kept: int
    dropped: dict[str, int]
    real_cut: int
    generated_cut: int


@dataclass(frozen=True)
class PairFacts:
    """Facts of the stage ``spin/iterate-t/pairs``.

    Attributes:
        separability: of real and generated training answers; None with too few pairs.
        warnings: likely artifacts, as sentences.
        data: digest of the data stage's outputs.
        seconds: by kind of work.
        answers: digest of what the answers depend on; None in runs of earlier versions.
        engine: that wrote the answers; None for the built-in generator.
        gap: between the sampler's and the scorer's log-probability of answers; None where they are not comparable, and
            in runs of earlier versions.
        max_new_tokens: maximum length of answers; None in runs of earlier versions. [tokens]
    """

    train: TrainPairCounts
    heldout: HeldoutPairCounts
    separability: Separability | None
    warnings: list[str]
    data: str
    seconds: dict[str, float]
    answers: str | None = None
    engine: EngineFacts | None = None
    gap: SamplerGap | None = None
    max_new_tokens: int | None = None


@dataclass(frozen=True)
class LaterPairCounts:
    """Pairs that the player itself wrote while it trained (``spin.refresh``)."""

    kept: int
    dropped: dict[str, int]


@dataclass(frozen=True)
class HeldoutPairFacts(HeldoutPairMetrics):
    """The player after an iteration, compared with its opponent; ``intervals`` are of loss, margin and accuracy."""

    intervals: Intervals


@dataclass(frozen=True)
class IterationFacts:
    """Facts of the stage ``spin/iterate-t``.

    Attributes:
        learning_rate: at its peak.
        steps: optimizer steps with at least one pair.
        pairs_seen: pairs of all steps; a pair counts once per epoch.
        tokens: read in all steps.
        heldout: of the held-out pairs that report; None without one.
        seconds: by kind of work.
    """

    iteration: int
    learning_rate: float
    steps: int
    pairs_seen: int
    tokens: int
    later: LaterPairCounts
    heldout: HeldoutPairFacts | None
    seconds: dict[str, float]
    hardware: HardwareFacts


@dataclass(frozen=True)
class DiagnosisFacts:
    """Facts of the stage ``spin/iterate-t/diagnosis``: the iterate's own answers to the held-out prompts that report.

    Attributes:
        nll_per_token: loss on the held-out references. [nats per token]
        kl_opponent, kl_base: divergence from the opponent and from iterate 0; None where answers are no plain samples.
        real: profile of the real answers.
        identical_to_opponent: share of prompts that the opponent answers with the same tokens.
    """

    nll_per_token: float
    kl_opponent: KlEstimate | None
    kl_base: KlEstimate | None
    answers: AnswerProfile
    real: AnswerProfile
    identical_to_opponent: float


@dataclass(frozen=True)
class IterationResults(IterationFacts):
    """An iteration in results.json; ``diagnosis`` is None without held-out examples."""

    pairs: PairFacts
    diagnosis: DiagnosisFacts | None


# Evaluation ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LikelihoodCounts:
    """Facts of the stage ``likelihood/MODEL``: held-out examples that were scored, and those too long for it."""

    items: int
    left_out: int


@dataclass(frozen=True)
class GroupAccuracy:
    """Accuracy on a group of items, or a paired difference of two accuracies, with its 95 % interval."""

    items: int
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class TaskAccuracies:
    """Accuracy on the tasks of a mixture.

    Attributes:
        accuracy: by model, then by group of questions.
        differences: paired, by "MODEL - REFERENCE", then by group.
    """

    accuracy: dict[str, dict[str, GroupAccuracy]]
    differences: dict[str, dict[str, GroupAccuracy]]


@dataclass(frozen=True)
class BenchmarkResults(OmitEmpty):
    """One evaluation of all models.

    Attributes:
        items: by model.
        measures: how each measure is read.
        scores: by model, then by measure.
        clean: the same without contaminated items; empty (and not in the file) when none is contaminated.
    """

    items: dict[str, int]
    measures: dict[str, ScoreScale]
    scores: dict[str, Intervals]
    clean: dict[str, Intervals] = field(default_factory=dict)


@dataclass(frozen=True)
class JudgeResults:
    """What a judge said.

    Attributes:
        canary: by evaluation: whether it tells real answers from constant nonsense.
        pairs: by evaluation, then by "MODEL - MODEL".
        ratings: by model.
        words: the findings as sentences.
        problems: why verdicts are missing.
        judge: name of the judge.
    """

    canary: dict[str, Canary]
    pairs: dict[str, dict[str, PairwiseSummary]]
    ratings: dict[str, RatingSummary]
    words: list[str]
    problems: list[str]
    judge: str
    cost: Cost


@dataclass(frozen=True)
class OverlapFacts:
    """Items of one evaluation that share words with training rows.

    Attributes:
        unclean: ids of items that share 13 words in a row.
        shared_8, shared_13: items that share a run of 8 and of 13 words.
    """

    items: int
    unclean: list[str]
    shared_8: Annotated[int, Field(alias="8")]
    shared_13: Annotated[int, Field(alias="13")]


@dataclass(frozen=True)
class ContaminationFacts:
    """Facts of the stage ``contamination``; ``sets`` by evaluation."""

    training_rows: int
    sets: dict[str, OverlapFacts]


@dataclass(frozen=True)
class EvaluationResults:
    """What ``eval`` and ``judge`` find out about all models; attributes as in :class:`RunResults`."""

    heldout: dict[str, Intervals] = field(default_factory=dict)
    differences: dict[str, Intervals] = field(default_factory=dict)
    tasks: TaskAccuracies | None = None
    judge: JudgeResults | None = None
    benchmarks: dict[str, BenchmarkResults] = field(default_factory=dict)
    conclusions: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    contamination: ContaminationFacts | None = None


# The run -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainingResults:
    """What the stages before ``eval`` find out; attributes as in :class:`RunResults`."""

    synth: SynthFacts | None = None
    data: DataFacts | None = None
    sft: SftFacts | None = None
    spin: list[IterationResults] = field(default_factory=list)
    best: BestModel | None = None
    stopped: str | None = None
    baseline: SftFacts | None = None


@dataclass(frozen=True)
class RunResults(EvaluationResults, TrainingResults, OmitEmpty):
    """``results.json``. A part that the recipe or the command leaves out is None or empty, and not in the file.

    Attributes:
        spin: the iterations, in order.
        best: the model to use, in a run that trains.
        stopped: why self-play ended early, or None.
        baseline: further SFT instead of self-play.
        heldout: estimates on held-out examples, by model and measure.
        differences: paired differences, by "MODEL - MODEL" and measure.
        benchmarks: by evaluation.
        conclusions: what all evaluations together say, as sentences.
        failed: evaluations that could not be done.
        models: by name: a folder, or what the recipe calls the model.
        recipe: digest of the recipe whose run came to its end; None in a run that went on to a part only.
    """

    models: dict[str, str] = field(default_factory=dict)
    recipe: str | None = None

    def keeps_empty(self, field: str) -> bool:
        """``stopped``, ``differences`` and ``conclusions`` are in the file whenever what they are about is."""
        about = {"stopped": self.spin, "differences": self.heldout, "conclusions": self.benchmarks}
        return bool(about.get(field))
