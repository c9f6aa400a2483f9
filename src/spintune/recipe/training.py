"""Settings of training: SFT, self-play, and LoRA."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, Self, TypeVar, get_args

from pydantic import Field, field_validator

from spintune.recipe import losses
from spintune.recipe.losses import SelfPlayLoss
from spintune.recipe.section import (
    AUTO_RATE,
    Count,
    LearningRate,
    NonNegative,
    OptimizerName,
    Positive,
    PositiveShare,
    ScheduleName,
    Section,
    Share,
    ShareBelowOne,
    WholeNumber,
    known_in,
    offered,
)

T = TypeVar("T")


LossName = Annotated[str, known_in(losses.LOSSES), offered(loss.name for loss in losses.BUILT_IN)]


ANSWER_TOKENS = 256
"""Length of generated answers, at most, where nothing else is said. [tokens]"""


def answer_limit(longest: int, most: int = ANSWER_TOKENS) -> int:
    """The maximum length of generated answers: a quarter more than the longest real one, from 16 on. [tokens]"""
    return min(most, max(16, math.ceil(1.25 * longest)))


DECAY = 0.1
"""Share of the steps in which wsd lowers the learning rate, by default."""


class TrainingSection(Section):
    """Settings that SFT and SPIN share."""

    schedule: ScheduleName
    optimizer: OptimizerName = "adamw"
    """adamw; adamw8bit, with moments of 8 bits (needs bitsandbytes); muon for the matrices of hidden layers, with adamw
    for the rest (needs torch 2.9); rmsprop with torch's defaults, as in the SPIN scripts; or adafactor, as for FLAN-T5
    (which used learning_rate 5e-4, schedule constant, warmup 0)."""
    warmup: Share = 0.1
    """Share of the steps over which the learning rate rises from 0. [share] Default: SPIN paper, appendix B."""
    min_lr_rate: ShareBelowOne | None = None
    """Learning rate that cosine, linear and wsd fall to. [share of the peak] Default: 0."""
    decay: PositiveShare | None = None
    """Last part of the steps, over which wsd lowers the learning rate. [share] Default: 0.1 (MiniCPM, arXiv
    2404.06395)."""
    weight_decay: NonNegative = 0.0
    """Weight decay of matrices; norms and biases have none. Default: SPIN paper (none)."""
    max_grad_norm: NonNegative = 1.0
    """Gradients are clipped to this norm; 0 turns clipping off. Default: transformers."""
    checkpoint_minutes: NonNegative = 10.0
    """Time between checkpoints; 0 saves one after every step. [minutes]"""
    checkpoint_write: Literal["auto", "async", "sync"] = "auto"
    """How checkpoints are written. async: the state is copied into the machine's memory, and training goes on while the
    copy is written. sync: training waits. auto: async where weights and moments are on GPUs, else sync, since a copy
    takes as much memory as they do."""

    def _problems(self) -> Iterator[str]:
        if self.min_lr_rate is not None and self.schedule not in ("cosine", "linear", "wsd"):
            yield f"min_lr_rate would do nothing with schedule: {self.schedule}; it needs cosine, linear or wsd"
        if self.decay is not None and self.schedule != "wsd":
            yield f"decay would do nothing with schedule: {self.schedule}; it needs wsd"
        if self.schedule == "wsd" and self.warmup + self.decay_share > 1:
            yield f"warmup ({self.warmup:g}) and decay ({self.decay_share:g}) are more than all steps; lower one"
        if self.schedule == "inverse_sqrt" and not self.warmup:
            yield "inverse_sqrt falls from the end of the warm-up, by how long that was; set warmup above 0"

    @property
    def decay_share(self) -> float:
        """Share of the steps in which wsd lowers the learning rate."""
        return DECAY if self.decay is None else self.decay


class SftSection(TrainingSection):
    """Supervised fine-tuning."""

    epochs: Positive = 1.0
    """Passes over the training rows; may be fractional. [epochs]"""
    max_steps: Count | None = None
    """Stop after this many optimizer steps. [steps] Default: no limit."""
    learning_rate: LearningRate = 2e-5
    """Peak learning rate; auto finds one by a ladder of short runs, judged by held-out loss. Default: Stanford Alpaca
    and Zephyr SFT (2e-5)."""
    schedule: ScheduleName = "cosine"
    """After warm-up: cosine, linear, constant, wsd (constant, then linear over the last part) or inverse_sqrt (T5).
    Default: Zephyr SFT."""
    tokens_per_step: Count = 4096
    """Prompt and response tokens per optimizer step. [tokens]"""
    dropout: ShareBelowOne = 0.0
    """Dropout in the layers of an encoder-decoder; FLAN-T5 used 0.05. [share] Default: none."""
    eval_every: Positive | None = None
    """How often the held-out loss is measured, beside once at the end. [epochs] Default: 1, since rows repeat from
    epoch to epoch only."""
    keep: Literal["best", "last"] | None = None
    """Weights that SFT ends with: those of the evaluated step with the least held-out loss, or those of its last step.
    Default: best where enough examples are held out to choose by, 20 of about half of them."""
    patience: Count | None = None
    """End SFT after this many evaluations without a lower held-out loss. [evaluations] Default: never."""
    samples: WholeNumber = 4
    """Held-out prompts that the model answers at each evaluation, saved in sft/samples.jsonl. [prompts]"""

    def _problems(self) -> Iterator[str]:
        yield from super()._problems()
        evaluations = math.ceil(self.epochs / (self.eval_every or 1) - 1e-9)
        if self.patience is not None and self.patience + 1 >= evaluations:
            yield (
                f"patience: {self.patience} would do nothing with {evaluations} evaluation{'s' * (evaluations > 1)}, "
                "of which the first may be the best; lower eval_every or raise epochs"
            )


class StopSection(Section):
    """Rules that end self-play before its last iteration. Each is off unless it is set."""

    start_loss: bool = False
    """Stop when the held-out loss does not differ significantly from its start (ln 2 for logistic): nothing is left to
    learn."""
    real_logprob_drop: Positive | None = None
    """Stop when the mean log-probability of held-out real answers has fallen by more than this since iterate 0. [nats
    per answer]"""
    patience: Count | None = None
    """Stop after this many iterations without a better iterate by evaluation.metric. [iterations]"""


@dataclass(frozen=True)
class IterationSettings:
    """The settings of one iteration, with schedules and the default λ resolved."""

    lambda_: float
    loss: str
    learning_rate: float | Literal["auto"] | None
    """Peak; None: chosen by the number of parameters."""
    epochs: float


PER_ITERATION = ("lambda", "loss", "learning_rate", "epochs")
"""Keys of the spin section that take a list with a value for each iteration."""


class SpinSection(TrainingSection):
    """Self-play fine-tuning (SPIN, arXiv 2401.01335)."""

    iterations: Count = 1
    """Iterations of self-play. Default: the best number in NVIDIA's rerun (NeMo-Aligner, spin.rst)."""
    lambda_: Positive | list[Positive] | None = Field(default=None, alias="lambda")
    """λ of the loss, which scales ratios and margins (α in GSIL and T-SPIN, τ in IPO). A list gives one value per
    iteration. Default: 0.1 (SPIN scripts), 1 for space and t_spin, 0.01 for gsil_* (their papers and scripts)."""
    loss: LossName | list[LossName] = "logistic"
    """Loss per pair: logistic, hinge, exponential, correlation (SPIN, eq. 4.7), ipo, space, gsil_*, t_spin, or one that
    you register. A list gives one per iteration. Default: SPIN paper."""
    mu: Positive = 1.0
    """μ of space: weight of generated answers. [factor] Default: SPACE paper."""
    shift: float = Field(default=0.0, allow_inf_nan=False)
    """b of gsil_*. [nats] At 0, p_data is a stable fixed point; at 2, as in the GSIL script, it is not
    (docs/explanation/losses.md)."""
    history_weight: NonNegative = 0.1
    """β of t_spin: weight of the term that compares with iterate 0's answers, from iteration 2 on. Default: T-SPIN
    paper."""
    gamma: NonNegative = 0.0
    """Weight of an additional loss term: the negative log-likelihood per token of the real answer. [factor] Default:
    SPIN paper (none)."""
    length_normalize: bool = False
    """Divide log-probabilities by the tokens of the answer. Default: SPIN paper (sums)."""
    reference_mixture: Share = 0.0
    """α of α-SPIN: share of iterate 0 in the reference. 0 is SPIN, 1 a fixed reference. [share]"""
    negatives: Count = 1
    """Generated answers per prompt. [answers]"""
    turns: Literal["last", "all"] = "last"
    """Assistant turns to generate: the last one, or all, each from a prompt of its own."""
    prompts: Literal["all", "seen", "unseen"] | None = None
    """Training prompts that self-play answers. all: those that SFT trains on, which are all. unseen: a share of them is
    kept out of SFT, and self-play plays on that alone, as does the baseline. seen: of the same split, those that SFT
    trains on. Default: all."""
    unseen_share: PositiveShare | None = None
    """Share of the training prompts that SFT does not see, with prompts: unseen or seen. [share] Default: 0.5."""
    replay: WholeNumber = 0
    """Also train on the pairs of this many earlier iterations, scored again by the current opponent. [iterations] SPIN
    paper: 1."""
    replay_weight: Positive = 1.0
    """Weight of a replayed pair relative to a new one. [factor] Default: SPIN paper."""
    history: Count = 1
    """Each prompt is answered by one of this many latest iterates, drawn at random (fictitious play, arXiv 2404.04291).
    1 is the opponent alone. [iterates]"""
    refresh: Count | Literal["step"] = 1
    """Phases per iteration. Each regenerates answers with the current player, which becomes the opponent; step does so
    at every optimizer step. [phases] 1 is SPIN; IRFT (arXiv 2405.17888) uses 5."""
    generated: str | None = None
    """File of generated answers for iteration 1, as real/generated or prompt/chosen/rejected rows. The model answers
    the prompts that the file lacks. [path]"""
    keep: Literal["all", "best", "last"] = "all"
    """Iterates whose weights stay on disk. best: the best so far, and those that the next iteration needs. last: the
    newest is the run's model, and only it and those stay. Others are evaluated, then their weights are deleted."""
    stop: StopSection = StopSection()
    """When to end before the last iteration."""
    baseline: Literal["none", "sft"] = "none"
    """sft: for comparison, also train iterate 0 further by SFT, with as many steps and tokens."""
    baseline_learning_rate: LearningRate | None = None
    """Peak learning rate of the baseline; auto finds one of its own. Default: that of sft (auto where that is auto), or
    its default without an sft section."""
    learning_rate: LearningRate | list[LearningRate] | None = None
    """Peak learning rate; a list gives one value per iteration. auto finds one in iteration 1, for all; in a list, in
    its iteration. Default: 5e-7 for 7 billion parameters (SPIN paper); smaller models get more, by the inverse square
    root of their size, up to 5e-6 (our choice)."""
    epochs: Positive | list[Positive] = 1.0
    """Passes over the pairs per iteration; a list gives one value per iteration. [epochs] Default: NVIDIA's rerun (SPIN
    paper: 2)."""
    schedule: ScheduleName = "linear"
    """After warm-up: cosine, linear, constant, wsd (constant, then linear over the last part) or inverse_sqrt (T5).
    Default: SPIN scripts."""
    pairs_per_step: Count = 64
    """Pairs per optimizer step. [pairs] Default: SPIN paper."""
    max_new_tokens: Count | Literal["auto"] = ANSWER_TOKENS
    """Maximum length of generated and of real answers; auto is a quarter more than the longest real one, from 16 to
    256. [tokens] Default: SPIN scripts."""
    temperature: NonNegative = 1.0
    """Sampling temperature of generated answers; 0 is greedy. Default: 1, since the theory needs the model's own
    distribution."""
    top_p: PositiveShare = 1.0
    """Sample from the likeliest tokens with this total probability; 1 keeps all. [share]"""
    top_k: WholeNumber = 0
    """Sample from this many likeliest tokens; 0 keeps all. [tokens]"""

    @field_validator("refresh", mode="before")
    @classmethod
    def _number_of_phases(cls, value: object) -> object:
        if value != "step" and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ValueError(f"give a number of phases, 1 or more, or step (given: {value!r:.60})")
        return value

    @field_validator("prompts")
    @classmethod
    def _all_is_no_split(cls, value: str | None) -> str | None:
        return None if value == "all" else value

    @field_validator("stop", mode="before")
    @classmethod
    def _stop_has_rules(cls, value: object) -> object:
        if value is None:
            raise ValueError("it is empty; give a rule such as {start_loss: true}, or leave it out")
        return value

    @property
    def draws_plainly(self) -> bool:
        """Whether answers are samples of the model itself, not of a sharpened or truncated distribution."""
        return self.temperature == 1 and self.top_p == 1 and self.top_k == 0

    @property
    def longest_answer(self) -> int:
        """``max_new_tokens`` as a number; for auto the most that it can be, until a run has read its data."""
        return ANSWER_TOKENS if self.max_new_tokens == "auto" else self.max_new_tokens

    def settled(self, longest: int) -> Self:
        """With a number for ``max_new_tokens: auto``, by the longest real answer. [tokens]"""
        if self.max_new_tokens != "auto":
            return self
        return self.model_copy(update={"max_new_tokens": answer_limit(longest)})

    def _problems(self) -> Iterator[str]:
        yield from super()._problems()
        for key in PER_ITERATION:
            value = getattr(self, "lambda_" if key == "lambda" else key)
            if isinstance(value, list) and len(value) != self.iterations:
                yield f"{key} lists {len(value)} values for {self.iterations} iterations; give one for each"
        yield from self._unused()
        if self.refresh != 1:
            yield from self._set_beside("refresh answers every prompt with the current player", _OTHER_WRITERS)
        if self.history > 1 and self.generated:
            yield "generated gives the answers that history would draw; leave one out"
        for loss in self._losses:
            if loss.needs_first_answers:
                yield from self._set_beside(
                    f"{loss.name} reads iterate 0's own answers", {"refresh": 1, "generated": None}
                )
            if self.reference_mixture and loss.kind == "likelihoods":
                yield f"{loss.name} has no reference; leave out reference_mixture"
            if self.reference_mixture and loss.kind == "ratios":
                margins = ", ".join(other.name for other in losses.BUILT_IN if other.kind == "margin")
                yield f"{loss.name} reads no margin; reference_mixture works only with {margins}"
        rates = self.learning_rate if isinstance(self.learning_rate, list) else [self.learning_rate]
        if self.refresh == "step" and AUTO_RATE in rates:
            yield "learning_rate: auto needs answers to try rates on before training; with refresh: step, give a rate"
        if self.negatives > 1 and self.temperature == 0:
            yield "greedy answers to one prompt are all the same; set temperature above 0 or negatives to 1"
        if self.keep == "last" and self.stop.patience is not None:
            yield "with keep: last the newest iterate counts as the best one; leave out stop.patience"
        if self.stop.patience is not None and self.stop.patience >= self.iterations:
            yield (
                f"stop.patience: {self.stop.patience} would do nothing with {self.iterations} "
                f"iteration{'s' * (self.iterations > 1)}; leave it out, or raise iterations"
            )

    def _unused(self) -> Iterator[str]:
        uses = {
            "replay_weight": (self.replay > 0, "replay above 0"),
            "baseline_learning_rate": (self.baseline != "none", "baseline: sft"),
            "unseen_share": (self.prompts is not None, "prompts: unseen or seen"),
        }
        for option in get_args(losses.LossOption):
            readers = [loss.name for loss in losses.BUILT_IN if option in loss.options]
            uses[option] = (any(option in loss.options for loss in self._losses), f"loss: {' or '.join(readers)}")
        for key, (used, needs) in uses.items():
            if key in self.model_fields_set and not used:
                yield f"{key} would do nothing here: it needs {needs}; leave it out"

    def _set_beside(self, reason: str, off: Mapping[str, object]) -> Iterator[str]:
        for key, value in off.items():
            if getattr(self, key) != value:
                yield f"{reason}; leave out {key}"

    @property
    def _losses(self) -> list[SelfPlayLoss]:
        return [losses.LOSSES[name] for name in (self.loss if isinstance(self.loss, list) else [self.loss])]

    def loss_in(self, iteration: int) -> SelfPlayLoss:
        """The loss of iteration 1, 2, ..."""
        return losses.LOSSES[_scheduled(self.loss, iteration)]

    def finds_rate(self, iteration: int) -> bool:
        """Whether an iteration looks for its learning rate by itself; ``auto`` for all looks in the first alone."""
        listed = isinstance(self.learning_rate, list)
        return self.in_iteration(iteration).learning_rate == AUTO_RATE and (listed or iteration == 1)

    def in_iteration(self, iteration: int) -> IterationSettings:
        """Settings of iteration 1, 2, ..."""
        loss = self.loss_in(iteration)
        return IterationSettings(
            loss.default_lambda if self.lambda_ is None else _scheduled(self.lambda_, iteration),
            loss.name,
            self.learning_rate[iteration - 1] if isinstance(self.learning_rate, list) else self.learning_rate,
            _scheduled(self.epochs, iteration),
        )


_OTHER_WRITERS = {"replay": 0, "history": 1, "reference_mixture": 0, "generated": None}
"""Settings that take answers or scores from other models than the current player, with their values when off."""


def _scheduled(value: T | list[T], iteration: int) -> T:
    return value[iteration - 1] if isinstance(value, list) else value


class LoraSection(Section):
    """Train low-rank adapters instead of all weights (arXiv 2106.09685). Each iterate is also saved merged."""

    rank: Count = 16
    """Rank of the adapters. [dimensions]"""
    alpha: Positive = 32.0
    """The update is scaled by alpha / rank, or alpha / √rank with rslora. Default: twice the default rank."""
    targets: str | list[str] = "all-linear"
    """Layers to adapt: names, a regular expression, or all-linear (all but the head). Default: QLoRA."""
    dropout: ShareBelowOne = 0.0
    """Dropout of the adapters' input. [share]"""
    rslora: bool = False
    """Rank-stabilized scale (arXiv 2312.03732)."""
    dora: bool = False
    """Weight-decomposed adapters (DoRA, arXiv 2402.09353)."""
    between: Literal["continue", "merge"] = "continue"
    """At each new stage, continue with the adapter, or merge it and start a fresh one."""
    base: Literal["nf4"] | None = None
    """Format of the frozen weights of linear layers: nf4 is 4-bit NormalFloat with quantized scales (QLoRA, arXiv
    2305.14314; needs bitsandbytes). Default: that of the other frozen weights."""

    def _problems(self) -> Iterator[str]:
        if self.base and self.between == "merge":
            yield (
                "between: merge would round the merged weights to 4 bits at each stage, and lose most of what was "
                "learned; leave it out, or base"
            )
