"""How a recipe trains: SFT, self-play, LoRA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import AfterValidator, Field, WithJsonSchema, field_validator, model_validator

from spintune.errors import RecipeError
from spintune.recipe import losses
from spintune.recipe.losses import SelfPlayLoss
from spintune.recipe.section import Count, NonNegative, Positive, ScheduleName, Section, Share


def _known_loss(name: str) -> str:
    try:
        losses.get(name)
    except RecipeError as error:
        raise ValueError(str(error)) from error
    return name


LossName = Annotated[
    str,
    AfterValidator(_known_loss),
    # editors offer the built-in names and accept a registered one
    WithJsonSchema({"anyOf": [{"enum": [loss.name for loss in losses.BUILT_IN]}, {"type": "string"}]}),
]


class TrainingSection(Section):
    """What SFT and SPIN share."""

    schedule: ScheduleName
    optimizer: Literal["adamw", "rmsprop", "adafactor"] = Field(
        "adamw",
        description="adamw, rmsprop with torch's defaults as in the SPIN authors' scripts, or adafactor as for FLAN-T5 "
        "(there with learning_rate 5e-4, schedule constant, warmup 0).",
    )
    warmup: Share = Field(0.1, description="Part of the steps with a rising rate. [share] SPIN paper, appendix B.")
    weight_decay: NonNegative = Field(0.0, description="AdamW, matrices only. Default: SPIN paper (none).")
    max_grad_norm: NonNegative = Field(1.0, description="Gradient clipping; 0 is off. Default: transformers.")
    checkpoint_minutes: NonNegative = Field(
        10.0, description="Time between checkpoints; 0 writes one at every step. [minutes]"
    )


class SftSection(TrainingSection):
    epochs: Positive = Field(1.0, description="Passes over the training rows; fractions are allowed. [epochs]")
    max_steps: Count | None = Field(None, description="Stop after this many optimizer steps. [steps]")
    learning_rate: Positive = Field(2e-5, description="Peak. Default: Stanford Alpaca, Zephyr SFT (2e-5).")
    schedule: ScheduleName = Field("cosine", description="Decay after warm-up. Default: Zephyr SFT.")
    tokens_per_step: Count = Field(4096, description="Prompt and response tokens of an optimizer step. [tokens]")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Of an encoder-decoder model's own layers; FLAN-T5: 0.05. [share] Default: none."
    )
    samples: Annotated[int, Field(ge=0)] = Field(
        4, description="Held-out prompts answered at each evaluation, into sft/samples.jsonl. [prompts]"
    )


class StopSection(Section):
    """When self-play ends before its last iteration. Each rule is off unless it is set."""

    start_loss: bool = Field(
        False,
        description="Stop when the held-out loss cannot be told from its start (ln 2): nothing is left to learn.",
    )
    real_logprob_drop: Positive | None = Field(
        None,
        description="Stop when held-out real answers lost more than this since iterate 0, on average. [nats an answer]",
    )
    patience: Count | None = Field(
        None,
        description="Stop after this many iterations without a new best iterate by spin.metric. [iterations]",
    )


@dataclass(frozen=True)
class IterationSettings:
    """The settings of one iteration, after schedules and defaults."""

    lambda_: float
    loss: str
    learning_rate: float | None
    """Peak; None: by the size of the model."""
    epochs: float


T = TypeVar("T")


def _scheduled(value: T | list[T], iteration: int) -> T:
    return value[iteration - 1] if isinstance(value, list) else value


class SpinSection(TrainingSection):
    iterations: Count = Field(
        1, description="Rounds of self-play. Default: the best in NVIDIA's rerun (NeMo-Aligner, spin.rst)."
    )
    lambda_: Positive | list[Positive] | None = Field(
        None,
        alias="lambda",
        description="λ of the loss (α of GSIL and T-SPIN, τ of IPO); a list gives one value an iteration. Default: 0.1 "
        "(SPIN scripts), 1 for space and t_spin, 0.01 for gsil_* (their papers and scripts).",
    )
    loss: LossName | list[LossName] = Field(
        "logistic",
        description="logistic, hinge, exponential, correlation (SPIN, eq. 4.7), ipo, space, gsil_*, t_spin; a list "
        "gives one an iteration. Default: SPIN paper.",
    )
    mu: Positive = Field(1.0, description="μ of space: weight of generated answers. [factor] Default: SPACE paper.")
    shift: float = Field(
        0.0,
        description="b of gsil_*. [nats] 0 keeps p_data once it is reached; the GSIL script has 2, which does not "
        "(docs/spin.md).",
        allow_inf_nan=False,
    )
    history_weight: NonNegative = Field(
        0.1, description="β of t_spin's look back to iterate 0's answers, from iteration 2 on. Default: T-SPIN paper."
    )
    gamma: NonNegative = Field(
        0.0, description="Weight of the negative log-likelihood of real answers a token, added to the loss."
    )
    length_normalize: bool = Field(
        False, description="Log-probabilities a token instead of an answer. Default: SPIN paper (sums)."
    )
    reference_mixture: Share = Field(
        0.0, description="α of α-SPIN: share of iterate 0 in the reference; 0 is SPIN, 1 a fixed reference. [share]"
    )
    negatives: Count = Field(1, description="Generated answers to each prompt. [answers]")
    turns: Literal["last", "all"] = Field(
        "last", description="Assistant turns that are played: the last, or every one as a prompt of its own."
    )
    replay: Annotated[int, Field(ge=0)] = Field(
        0,
        description="Also train on the answers of this many earlier iterations, scored again under the current "
        "opponent. [iterations] The paper: 1.",
    )
    replay_weight: Positive = Field(
        1.0, description="Weight of an earlier pair, relative to a new one. [factor] Default: SPIN paper."
    )
    history: Count = Field(
        1,
        description="Each prompt is answered by one of this many latest iterates, drawn at random (fictitious play, "
        "arXiv 2404.04291); 1 is the opponent alone. [iterates]",
    )
    refresh: Count | Literal["step"] = Field(
        1,
        description="Stretches of an iteration, each with answers of the newest player, which is its own opponent "
        "then; step is one each step. [stretches] 1 is SPIN, IRFT (arXiv 2405.17888) has 5.",
    )
    generated: str | None = Field(
        None,
        description="Answers for iteration 1 from a file of real/generated or prompt/chosen/rejected rows; prompts "
        "that it lacks are played. [path]",
    )
    metric: Literal["nll", "rouge_l", "exact_match"] = Field(
        "nll", description="What makes an iterate the best, on held-out examples: nll is the loss a token."
    )
    stop: StopSection = Field(
        default=StopSection.model_validate({}), description="When to end before the last iteration."
    )
    baseline: Literal["none", "sft"] = Field(
        "none", description="sft: also train iterate 0 further by SFT, for as many steps and tokens, and compare."
    )
    baseline_learning_rate: Positive | None = Field(
        None, description="Peak of the baseline. Default: sft.learning_rate, with or without an sft section."
    )
    learning_rate: Positive | list[Positive] | None = Field(
        None,
        description="Peak; a list gives one value an iteration. Default: 5e-7 for 7 billion weights (SPIN paper), and, "
        "as a judgement, more for smaller models: with the inverse root of their size, up to 5e-6.",
    )
    epochs: Positive | list[Positive] = Field(
        1.0, description="Passes over the pairs in an iteration. [epochs] Default: NVIDIA's rerun (the paper: 2)."
    )
    schedule: ScheduleName = Field("linear", description="Decay after warm-up. Default: SPIN scripts.")
    pairs_per_step: Count = Field(64, description="Pairs of an optimizer step. [pairs] Default: SPIN paper.")
    max_new_tokens: Count = Field(
        256, description="Length budget of generated and of real answers alike. [tokens] Default: SPIN scripts."
    )
    temperature: NonNegative = Field(1.0, description="Of the opponent's answers; 0 is greedy. Default: the theory.")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="Nucleus of the opponent's answers. [share]")
    top_k: Annotated[int, Field(ge=0)] = Field(0, description="Most likely tokens kept; 0 keeps all. [tokens]")

    @model_validator(mode="after")
    def _schedules_are_long_enough(self) -> SpinSection:
        for name, key in (("lambda_", "lambda"), ("loss", "loss"), ("learning_rate",) * 2, ("epochs",) * 2):
            value = getattr(self, name)
            if isinstance(value, list) and len(value) != self.iterations:
                raise ValueError(f"{key} lists {len(value)} values for {self.iterations} iterations; give one for each")
        return self

    @field_validator("refresh", mode="before")
    @classmethod
    def _stretches(cls, value: Any) -> Any:
        if value != "step" and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ValueError(f"give a number of stretches, 1 or more, or step (given: {value!r:.60})")
        return value

    @field_validator("stop", mode="before")
    @classmethod
    def _stop_has_rules(cls, value: Any) -> Any:
        if value is None:
            raise ValueError("it is empty; give a rule such as {start_loss: true}, or leave it out")
        return value

    @model_validator(mode="after")
    def _every_option_is_used(self) -> SpinSection:
        uses = {
            "replay_weight": (self.replay > 0, "replay above 0"),
            "baseline_learning_rate": (self.baseline != "none", "baseline: sft"),
        }
        for option in get_args(losses.LossOption):
            readers = [loss.name for loss in losses.BUILT_IN if option in loss.options]
            uses[option] = (any(option in loss.options for loss in self._losses), f"loss: {' or '.join(readers)}")
        for key, (used, needs) in uses.items():
            if key in self.model_fields_set and not used:
                raise ValueError(f"{key} would do nothing here: it needs {needs}; leave it out")
        return self

    @model_validator(mode="after")
    def _opponents_are_possible(self) -> SpinSection:
        if self.refresh != 1:
            for key, off in (("replay", 0), ("history", 1), ("reference_mixture", 0), ("generated", None)):
                if getattr(self, key) != off:
                    raise ValueError(f"refresh renews every answer from the newest player; it goes without {key}")
        if self.history > 1 and self.generated:
            raise ValueError("generated gives the answers that history would draw; leave one out")
        for loss in self._losses:
            self._loss_is_possible(loss)
        if self.negatives > 1 and self.temperature == 0:
            raise ValueError("greedy answers to one prompt are all the same; set temperature above 0 or negatives to 1")
        return self

    def _loss_is_possible(self, loss: SelfPlayLoss) -> None:
        if loss.needs_first_answers:
            for key, off in (("refresh", 1), ("generated", None)):
                if getattr(self, key) != off:
                    raise ValueError(f"{loss.name} reads iterate 0's own answers; it goes without {key}")
        if self.reference_mixture and loss.kind == "likelihoods":
            raise ValueError(f"{loss.name} has no reference; it goes without reference_mixture")
        if self.reference_mixture and loss.kind == "ratios":
            margins = ", ".join(other.name for other in losses.BUILT_IN if other.kind == "margin")
            raise ValueError(f"{loss.name} reads no margin; reference_mixture works only with {margins}")

    @property
    def _losses(self) -> list[SelfPlayLoss]:
        return [losses.get(name) for name in (self.loss if isinstance(self.loss, list) else [self.loss])]

    def in_iteration(self, iteration: int) -> IterationSettings:
        """Settings of iteration 1, 2, ..."""
        loss = _scheduled(self.loss, iteration)
        return IterationSettings(
            losses.get(loss).default_lambda if self.lambda_ is None else _scheduled(self.lambda_, iteration),
            loss,
            None if self.learning_rate is None else _scheduled(self.learning_rate, iteration),
            _scheduled(self.epochs, iteration),
        )

    def loss_in(self, iteration: int) -> SelfPlayLoss:
        """The loss of iteration 1, 2, ..."""
        return losses.get(_scheduled(self.loss, iteration))


class LoraSection(Section):
    """Train low-rank adapters instead of all weights (arXiv 2106.09685). Each iterate is saved merged as well."""

    rank: Count = Field(16, description="Width of the adapters. [dimensions]")
    alpha: Positive = Field(32.0, description="Scale: alpha / rank, or alpha / √rank with rslora. Default: 2 x rank.")
    targets: str | list[str] = Field(
        "all-linear", description="Adapted layers: names, a pattern, or all-linear (all but the head). Default: QLoRA."
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="Of the adapters' input. [share]")
    rslora: bool = Field(False, description="Rank-stabilised scale (arXiv 2312.03732).")
    dora: bool = Field(False, description="Weight-decomposed adapters (arXiv 2402.09353).")
    between: Literal["continue", "merge"] = Field(
        "continue", description="At each new stage go on with the adapter, or merge it and begin a fresh one."
    )
