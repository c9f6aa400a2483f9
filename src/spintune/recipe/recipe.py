"""The recipe: one closed, typed configuration of a run. Every field names its unit and the source of its default."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from spintune.checkers import TASKS
from spintune.data.bad_rows import OnBadRow
from spintune.data.columns import problem_of
from spintune.data.formats import AUTO, BUILTIN_FORMATS, FORMATS
from spintune.recipe.evaluation import FILES_OF, HELDOUT, MT_BENCH, QUESTIONS, EvaluationSection, JudgeSection
from spintune.recipe.generate import GenerateSection
from spintune.recipe.mixture import MixtureSection
from spintune.recipe.section import (
    AUTO_RATE,
    Count,
    NonNegative,
    Positive,
    Section,
    Share,
    ShareBelowOne,
    WholeNumber,
    known_in,
)
from spintune.recipe.synthesis import SynthSection
from spintune.recipe.training import LoraSection, SftSection, SpinSection, TrainingSection
from spintune.trackers import TRACKERS
from spintune.typed_json import JsonObject

DEFAULT_MODEL = "smollm2-135m-instruct"
"""The model when none is named; an alias that :mod:`spintune.models.loading` knows."""

SYNTH = "synth"
"""The source of data.train that stands for the output of the synth stage."""

_EVAL_LIMIT = 1000


def _option_value(value: object) -> object:
    if isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise ValueError(f"give true, false, a number or a text (given: {value!r:.60})")


OptionValue = Annotated[bool | int | float | str, BeforeValidator(_option_value)]


HOLD_OUT = "set data.eval_fraction above 0, or give data.heldout"
"""What to do about a setting that needs held-out examples."""


class _AnySource(Section):
    """What sources of training and of held-out examples have."""

    path: str
    """builtin:NAME, a data file (.json, .jsonl, .ndjson, .csv, .tsv, .xlsx, .parquet, .arrow or .feather, also with
    .gz, .zst, .bz2 or .xz), a folder or pattern of such files (data/*.jsonl), a folder of save_to_disk, a hub id
    (owner/name), or synth, the output of the synth section."""
    format: Annotated[str, known_in(FORMATS, AUTO)] = Field(
        AUTO, description=f"Row format: {', '.join(one.name for one in BUILTIN_FORMATS)}; auto decides by the keys."
    )
    limit: Count | None = None
    """Use only the first rows. [examples] Default: all."""
    split: str = "train"
    """Split of a hub data set, or of a folder whose file names tell splits."""
    config: str | None = None
    """Configuration of a hub data set, or sheet of an .xlsx file. Default: the only one."""
    stream: bool | None = None
    """Whether a hub data set is read from the hub a piece at a time, in every run, and not downloaded before; with a
    limit, reading ends soon after it. Default: false, a download is kept for other runs."""
    on_bad_row: OnBadRow | None = None
    """What to do about rows that cannot be read. Default: data.on_bad_row."""
    columns: dict[str, str | None] | None = None
    """Which keys of the rows hold what, where no format foresees them: prompt, response, messages, chosen, rejected,
    system, history, context, tools, reasoning, label or weight, each with a key (a dot leads into an object). null
    leaves a key of that meaning out (also images). Default: the names that formats know."""

    def _problems(self) -> Iterator[str]:
        if problem := problem_of(self.columns or {}):
            yield problem


class SourceSection(_AnySource):
    """One source of training examples."""

    weight: Positive = 1.0
    """Share of the rows to use; above 1 repeats rows. [factor]"""


class HeldoutSection(_AnySource):
    """One source of held-out examples."""

    split: str = "test"
    """Split of a hub data set, or of a folder whose file names tell splits."""

    def _problems(self) -> Iterator[str]:
        yield from super()._problems()
        if self.path == SYNTH:
            yield "synth is written to train on; name data of your own"


class DataSection(Section):
    """Examples to train on and to hold out."""

    train: list[SourceSection] = Field(default=[])
    """Training examples: one source or a list of them. Give this, a mixture, or both."""
    heldout: list[HeldoutSection] | None = None
    """Held-out examples of your own: one source or a list of them. Nothing of train is held out then, but its rows with
    a prompt that is here are dropped. Default: a part of train; format and columns: those of train, where its sources
    share them."""
    mixture: MixtureSection | None = None
    """A mixture of many tasks in many phrasings."""
    eval_fraction: ShareBelowOne | None = None
    """Share of the prompts held out from training. [share] Default: 0.1, common practice; of fewer than 1,000 prompts
    more, so that 100 are held out to judge by, up to 0.3; up to 0.4 where that gives the 50 to choose a model by."""
    eval_limit: Count = _EVAL_LIMIT
    """Maximum number of held-out prompts of train; every model answers each. [prompts] Default: 1,000 prompts give a
    proportion to within 3 points."""
    max_length: Annotated[int, Field(ge=8)] = 1024
    """Maximum length of prompt and response together. [tokens] Default: SPIN scripts."""
    max_input_length: Count | None = None
    """Maximum length of the prompt. [tokens] Default: what max_length leaves; FLAN: 2048."""
    max_target_length: Count | None = None
    """Maximum length of the response, which is cut there. [tokens] Default: what max_length leaves; FLAN: 512."""
    template: Annotated[str, Field(pattern=r"^(tokenizer(:.+)?|alpaca|chatml|plain)$")] = "tokenizer"
    """Chat template: the tokenizer's own (``tokenizer``, or ``tokenizer:NAME`` for one of several), or a built-in one
    (``alpaca``, ``chatml``, ``plain``)."""
    generation_prompt: Literal["served", "bare"] = "served"
    """How prompts end: as the template's generation prompt does when the model is served, which may open a block of
    reasoning; or bare, as the template's text before an answer does."""
    template_options: dict[str, OptionValue] | None = None
    """Variables that the chat template reads besides the conversation, with their values: enable_thinking,
    reasoning_effort, ... Saved models have them as defaults of their template. Default: none."""
    turns: Literal["last", "all"] = "last"
    """Assistant turns that SFT trains on."""
    on_bad_row: OnBadRow | None = None
    """What to do about rows that cannot be read: stop, naming the first ten, or drop and count them. Default: stop."""

    @property
    def bad_row_policy(self) -> OnBadRow:
        """What is done about rows that cannot be read, unless a source says otherwise."""
        return self.on_bad_row or "stop"

    @property
    def holds_nothing_out(self) -> bool:
        """Whether the recipe says that no example is held out."""
        return self.eval_fraction == 0 and self.heldout is None

    @property
    def without_long_ones(self) -> str:
        """What to do about held-out examples none of which fits, beside longer rows."""
        return "give shorter ones in data.heldout" if self.heldout else "set data.eval_fraction to 0"

    def _problems(self) -> Iterator[str]:
        if self.mixture and not self.train:
            if self.eval_limit != _EVAL_LIMIT:
                yield "eval_limit would do nothing for a mixture; leave it out, or set mixture.heldout_rows"
            if self.turns == "all":
                yield "turns: all would do nothing for a mixture, whose examples have one answer; leave it out"
        if self.heldout is None:
            return
        if self.mixture and not self.train:
            yield "heldout is in place of a part of train, and a mixture holds out of its own tasks; leave it out"
        if self.eval_fraction is not None and self.mixture is None:
            yield "eval_fraction would do nothing beside heldout, which is all that is held out; leave one out"
        if self.eval_limit != _EVAL_LIMIT:
            yield "eval_limit would do nothing beside heldout; leave it out, or write heldout: {path: FILE, limit: N}"

    @field_validator("train", "heldout", mode="before")
    @classmethod
    def _one_or_many(cls, value: object, field: ValidationInfo) -> list[object] | None:
        if value is None and field.field_name == "heldout":
            return None
        sources = value if isinstance(value, list) else [value]
        if not sources:
            raise ValueError("name at least one source")
        return [{"path": source} if isinstance(source, str) else source for source in sources]


class Recipe(Section):
    """Everything that a run does."""

    out: str
    """Run folder. [path]"""
    model: str
    """Alias, local folder, GGUF file, or hub id[@revision]."""
    seed: WholeNumber = 0
    """Seed of the held-out split, the order of rows, and sampling."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of matrix products: auto is bfloat16 on a GPU that supports it or with weights: bfloat16, float32
    elsewhere."""
    weights: Literal["float32", "bfloat16"] | None = None
    """Number format that weights are trained and saved in. bfloat16 takes half; updates are computed in float32 and
    rounded stochastically. With lora, that of the frozen weights: adapters and merged models stay float32. Default:
    float32, and for frozen weights that of matrix products."""
    tokens_per_forward: Count = 1024
    """Tokens computed at once; changes speed and memory, not results. [tokens] Default: measured on 2 cores."""
    recompute: Share = 0.0
    """Share of the layers that the backward pass recomputes instead of keeping their activations. Saves memory, costs
    up to a third of the time, changes no result. [share]"""
    offload: Literal["optimizer", "activations", "both"] | None = None
    """GPU only: what is kept in the memory of the CPU: the optimizer's moments, whose updates are then computed there
    (of a sharded model also weights and gradients); activations, which are the inputs of layers that recompute names;
    or both. Default: nothing."""
    parallel: Literal["auto", "replicate", "shard"] | None = None
    """With many processes: each holds the model (replicate), or a part of its weights, gradients and moments (shard).
    Default: auto, which shards a model whose training state does not fit a GPU."""
    copies: Count | None = None
    """With parallel: shard, how many sharded copies of the model there are, such as one for each node. Default: 1."""
    compile: bool = False
    """GPU only: compile norms and activations with dynamic shapes."""
    router_aux_loss: NonNegative | None = None
    """Weight of the load-balancing loss of a mixture of experts, added to the loss that is trained; 0 turns it off.
    [factor] Default: the model's router_aux_loss_coef if its config sets output_router_logits, else 0."""
    generator: str | None = None
    """Generator that writes answers: batch, plain, or one that you register. Default: the fastest built-in one that is
    right for the model."""
    generate: GenerateSection | None = None
    """Another engine that writes answers, such as vLLM; leave out for the built-in generator."""
    tracking: list[Annotated[str, known_in(TRACKERS)]] = Field(default=[])
    """Trackers that get the numbers of each step: tensorboard, trackio, wandb, mlflow, or one that a package registers;
    a name or a list. metrics.jsonl is always written."""
    synth: SynthSection | None = None
    """Generation of instruction data; leave out to skip it."""
    data: DataSection = DataSection()
    """Examples to train on and to hold out."""
    lora: LoraSection | None = None
    """Low-rank adapters; leave out to train all weights."""
    sft: SftSection | None = None
    """Supervised fine-tuning; leave out to skip it."""
    spin: SpinSection | None = None
    """Self-play fine-tuning; leave out to skip it."""
    eval: list[str] = Field(default=[HELDOUT])
    """Evaluations of every model of the run: heldout, ifeval, questions, mt-bench, spin-paper (six standard
    benchmarks), any other task of lm-evaluation-harness, or the YAML file of your own task."""
    evaluation: EvaluationSection = EvaluationSection()
    """Files and settings of the evaluations in eval."""
    judge: JudgeSection | None = None
    """A model that judges answers; leave out to skip it."""

    @model_validator(mode="after")
    def _tasks_check_their_answers(self) -> Self:
        """The tasks of a mixture have rules for right answers, which hold unless the recipe names a checker."""
        evaluation = self.evaluation
        if self.data.mixture and evaluation.checker is None and (self.spin or HELDOUT in self.eval):
            return self.model_copy(update={"evaluation": evaluation.model_copy(update={"checker": TASKS})})
        return self

    @property
    def learns_every_turn(self) -> bool:
        """Whether SFT or self-play trains on earlier answers of a conversation too."""
        return "all" in (self.data.turns, self.spin and self.spin.turns)

    def _problems(self) -> Iterator[str]:
        judged = HELDOUT in self.eval and self.data.heldout is None
        if not self.data.train and self.data.mixture is None and (self.sft or self.spin or judged):
            yield "data: nothing to train on; give train (a source or a list of sources) or a mixture"
        yield from self._evaluation_problems()
        yield from self._memory_problems()
        if any(source.path == SYNTH for source in self.data.train) and self.synth is None:
            yield "data.train names synth, but there is no synth section; add synth: {}"
        if self.sft and self.data.holds_nothing_out and not self.data.mixture:
            for key in ("eval_every", "patience", "keep"):
                if getattr(self.sft, key) not in (None, "last"):
                    yield f"sft.{key} would do nothing without held-out examples; {HOLD_OUT}"
        if self.spin and self.spin.turns == "all" and self.data.mixture and not self.data.train:
            yield "spin.turns: all would do nothing for a mixture, whose examples have one answer; leave it out"
        if self.spin and self.spin.prompts and not self.sft:
            yield f"spin.prompts: {self.spin.prompts} needs an sft section, which sees the other prompts; add sft: {{}}"
        if self.generate and self.generate.is_served:
            if self.generator:
                yield f"generator: {self.generator} is not of generate.engine: {self.generate.engine}; leave one out"
            if self.spin and self.spin.refresh != 1:
                yield (
                    "spin.refresh: the player writes while it trains, which only the built-in generator can; leave it "
                    f"or generate.engine: {self.generate.engine} out"
                )
        stop = self.spin and self.spin.stop
        if stop and (stop.start_loss or stop.real_logprob_drop or stop.patience) and self.data.holds_nothing_out:
            yield f"spin.stop needs held-out examples; {HOLD_OUT}"

        if self.data.holds_nothing_out:
            rates = {"sft": self.sft and self.sft.learning_rate, "spin": self.spin and self.spin.learning_rate}
            for key, rate in rates.items():
                if AUTO_RATE in (rate if isinstance(rate, list) else [rate]):
                    yield f"{key}.learning_rate: auto needs held-out examples; {HOLD_OUT}"

    @property
    def needs_whole_weights(self) -> str | None:
        """A setting that does not go with weights that are divided among devices; None if all do."""
        for key, section in (("sft", self.sft), ("spin", self.spin)):
            if section and section.optimizer not in ("adamw", "rmsprop"):
                return f"{key}.optimizer: {section.optimizer}"
        if self.lora:
            return f"lora.base: {self.lora.base}" if self.lora.base else None
        return "weights: bfloat16" if self.weights == "bfloat16" else None

    def _memory_problems(self) -> Iterator[str]:
        if self.parallel == "shard" and self.needs_whole_weights:
            yield f"parallel: shard does not go with {self.needs_whole_weights}; leave one of them out"
        if self.copies and self.parallel != "shard":
            yield "copies works only with parallel: shard; leave it out"
        for key, section in (("sft", self.sft), ("spin", self.spin)):
            if self.lora and section and section.optimizer == "muon":
                yield (
                    f"{key}.optimizer: muon makes the update of a whole matrix orthogonal, and lora trains two factors "
                    "of it; take adamw, or leave lora out"
                )
        trains = bool(self.sft or self.spin)
        for key in ("weights", "offload"):
            if getattr(self, key) and not trains:
                yield f"{key} would do nothing here: it needs sft or spin; leave it out"
        if self.offload in ("activations", "both") and not self.recompute:
            yield f"offload: {self.offload} keeps the inputs of layers that are computed again; set recompute above 0"
        if self.weights == "bfloat16" and self.precision == "float32":
            yield "weights: bfloat16 are multiplied in bfloat16; leave out precision: float32, or weights"
        if self.weights == "bfloat16" and self.lora and self.lora.between == "merge":
            yield (
                "lora.between: merge would round the merged weights to bfloat16 at each stage; leave it out, or weights"
            )

    def _evaluation_problems(self) -> Iterator[str]:
        for name, key in FILES_OF.items():
            there = getattr(self.evaluation, key) is not None
            if name in self.eval and not there:
                yield f"eval names {name}; give its file as evaluation.{key}"
            if there and name not in self.eval:
                yield f"evaluation.{key} would do nothing here: eval does not name {name}"
        for key in ("metric", "checker", "samples"):
            if key in self.evaluation.model_fields_set and not (self.spin or HELDOUT in self.eval):
                yield f"evaluation.{key} would do nothing here: it needs spin, or heldout in eval; leave it out"
        if (asked := self.evaluation.needs_heldout) and self.data.holds_nothing_out and not self.data.mixture:
            yield f"evaluation.{asked} needs held-out examples; {HOLD_OUT}"
        if self.evaluation.checker == TASKS and not self.data.mixture:
            yield "evaluation.checker: tasks needs the tasks of a data.mixture; name another checker, or leave it out"
        if self.evaluation.rivals and QUESTIONS not in self.eval:
            yield "evaluation.rivals need the questions they answer; give evaluation.questions and eval: [questions]"
        if MT_BENCH in self.eval and self.judge is None:
            yield "eval: mt-bench is rated by a judge; give a judge section"
        if self.judge and not {HELDOUT, QUESTIONS, MT_BENCH} & set(self.eval):
            yield f"the judge has nothing to judge; eval needs {HELDOUT}, {QUESTIONS} or {MT_BENCH}"
        for key, names in (("eval", self.eval), ("tracking", self.tracking)):
            if repeated := [name for name in names if names.count(name) > 1]:
                yield f"{key} names {repeated[0]} twice"

    @field_validator("tracking", mode="before")
    @classmethod
    def _one_or_many_trackers(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @field_validator("weights")
    @classmethod
    def _float32_is_the_default(cls, value: str | None) -> str | None:
        return None if value == "float32" else value

    def identity(self) -> JsonObject:
        """The settings that decide results: no output folder, trackers, checkpoint times or request limits."""
        not_results = {"checkpoint_minutes", "checkpoint_write"}
        request_limits = {"concurrency", "timeout_seconds", "max_retries", "budget"}
        generate = self.generate.decides() if self.generate and self.generate.is_served else None
        values = self.model_dump(
            mode="json",
            by_alias=True,
            exclude={
                "out": True,
                "tracking": True,
                "generate": True,
                "parallel": True,
                "copies": True,
                "synth": {"teacher": request_limits},
                "judge": request_limits,
                "sft": not_results,
                "spin": {*not_results, "keep"},
            },
        )
        return {**values, "generate": generate}

    def copies_checkpoints(self, section: TrainingSection, on_gpu: bool) -> bool:
        """Whether a section's checkpoints are written from a copy in the machine's memory, while training goes on."""
        on_gpu = on_gpu and self.offload not in ("optimizer", "both")
        return section.checkpoint_write == "async" or (section.checkpoint_write == "auto" and on_gpu)
