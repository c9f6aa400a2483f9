"""The recipe as a whole: one closed, typed configuration of a run.

Every field names its unit and where its default comes from.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from spintune.recipe.evaluation import FILES_OF, HELDOUT, MT_BENCH, QUESTIONS, EvaluationSection, JudgeSection
from spintune.recipe.mixture import MixtureSection
from spintune.recipe.section import Count, Positive, Section
from spintune.recipe.synthesis import SynthSection
from spintune.recipe.training import LoraSection, SftSection, SpinSection
from spintune.trackers import TRACKERS

DEFAULT_MODEL = "smollm2-135m-instruct"
"""What runs where no model is named; an alias of models/loading.py."""

SYNTH = "synth"
"""The source of data.train that stands for what the synth stage wrote."""


class SourceSection(Section):
    path: str = Field(
        description="builtin:NAME, a local .json, .jsonl or .parquet file, a hub id (owner/name), or synth: what the "
        "synth section writes."
    )
    format: str = Field(
        "auto", description="alpaca, chat, sharegpt, prompt, qa, seeds, spin or preference; auto looks at the keys."
    )
    weight: Positive = Field(1.0, description="Share of the rows to use; above 1 repeats them. [factor]")
    limit: Count | None = Field(None, description="Use the first rows only. [examples]")
    split: str = Field("train", description="Split of a hub data set.")


class DataSection(Section):
    train: list[SourceSection] = Field(
        default=[], description="Supervised examples: one source or a list of them; or give a mixture."
    )
    mixture: MixtureSection | None = Field(
        None, description="Many tasks in many phrasings, in place of train or beside it."
    )
    eval_fraction: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.1, description="Prompts held out from training. [share] Common practice."
    )
    eval_limit: Count = Field(
        1000,
        description="Prompts of train that are held out at most; each is answered by every model. [prompts] Default: a "
        "share is known to 3 points then.",
    )
    max_length: Annotated[int, Field(ge=8)] = Field(
        1024, description="Prompt and response together. [tokens] Default: the SPIN authors' training scripts."
    )
    max_input_length: Count | None = Field(
        None, description="Prompt alone. [tokens] Default: what max_length leaves; FLAN: 2048."
    )
    max_target_length: Count | None = Field(
        None, description="Response alone, cut there. [tokens] Default: what max_length leaves; FLAN: 512."
    )
    template: Literal["tokenizer", "alpaca", "chatml", "plain"] = Field(
        "tokenizer", description="Chat template: the tokenizer's own, or a built-in one."
    )
    turns: Literal["last", "all"] = Field("last", description="Assistant turns that are trained by SFT.")

    @field_validator("train", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        sources = value if isinstance(value, list) else [value]
        if not sources:
            raise ValueError("name at least one source")
        return [{"path": source} if isinstance(source, str) else source for source in sources]


class Recipe(Section):
    out: str = Field(description="The run folder. [path]")
    model: str = Field(description="Alias, local folder, GGUF file, or hub id[@revision].")
    seed: Annotated[int, Field(ge=0)] = Field(0, description="Decides split, order and sampling.")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="Type of matrix products: auto is bfloat16 on a GPU that has it, float32 elsewhere. Weights stay "
        "float32.",
    )
    tokens_per_forward: Count = Field(
        1024,
        description="Tokens computed at once; changes speed and memory, not results. [tokens] Measured on 2 cores.",
    )
    recompute: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0,
        description="Share of the layers that are computed once more in the backward pass instead of kept; saves "
        "memory, costs up to a third of the time, changes no result.",
    )
    compile: bool = Field(
        False,
        description="On a GPU: what stands between matrix products goes through torch.compile, once for all lengths.",
    )
    tracking: list[str] = Field(
        default=[],
        description="Trackers that get the numbers of each step: tensorboard, or one that a package registers. "
        "metrics.jsonl is always written.",
    )
    synth: SynthSection | None = Field(None, description="Written instruction data; leave out to skip it.")
    data: DataSection = Field(default=DataSection.model_validate({}), description="What to train on and to hold out.")
    lora: LoraSection | None = Field(None, description="Low-rank adapters; leave out to train all weights.")
    sft: SftSection | None = Field(None, description="Supervised fine-tuning; leave out to skip it.")
    spin: SpinSection | None = Field(None, description="Self-play fine-tuning; leave out to skip it.")
    eval: list[str] = Field(
        default=[HELDOUT],
        description="What judges every model of the run: heldout, ifeval, questions, mt-bench, spin-paper (six "
        "standard benchmarks), any other task of lm-evaluation-harness, or the YAML file of a task of one's own.",
    )
    evaluation: EvaluationSection = Field(
        default=EvaluationSection.model_validate({}), description="Files and settings of what eval names."
    )
    judge: JudgeSection | None = Field(None, description="A model as judge of answers; leave out to go without.")

    @field_validator("tracking")
    @classmethod
    def _trackers_exist(cls, value: list[str]) -> list[str]:
        for name in value:
            if name not in TRACKERS:
                raise ValueError(TRACKERS.unknown(name))
        return value

    @model_validator(mode="after")
    def _something_to_train_on(self) -> Recipe:
        if not self.data.train and self.data.mixture is None and (self.sft or self.spin or HELDOUT in self.eval):
            raise ValueError("data: name what to train on: train (a source or a list of them), or a mixture of tasks")
        return self

    @model_validator(mode="after")
    def _evaluations_have_their_files(self) -> Recipe:
        for name, key in FILES_OF.items():
            there = getattr(self.evaluation, key) is not None
            if name in self.eval and not there:
                raise ValueError(f"eval names {name}; give its file as evaluation.{key}")
            if there and name not in self.eval:
                raise ValueError(f"evaluation.{key} would do nothing here: eval does not name {name}")
        if self.evaluation.rivals and QUESTIONS not in self.eval:
            raise ValueError("evaluation.rivals answer the questions; give evaluation.questions and eval: [questions]")
        if MT_BENCH in self.eval and self.judge is None:
            raise ValueError("eval: mt-bench is rated by a judge; give a judge section")
        if self.judge and not {HELDOUT, QUESTIONS, MT_BENCH} & set(self.eval):
            raise ValueError(f"the judge has nothing to judge; eval needs {HELDOUT}, {QUESTIONS} or {MT_BENCH}")
        if repeated := [name for name in self.eval if self.eval.count(name) > 1]:
            raise ValueError(f"eval names {repeated[0]} twice")
        return self

    @model_validator(mode="after")
    def _written_data_is_written(self) -> Recipe:
        if any(source.path == SYNTH for source in self.data.train) and self.synth is None:
            raise ValueError("data.train names synth, and there is no synth section that writes it; add synth: {}")
        return self

    @model_validator(mode="after")
    def _stop_rules_can_look(self) -> Recipe:
        stop = self.spin and self.spin.stop
        if stop and (stop.start_loss or stop.real_logprob_drop or stop.patience) and not self.data.eval_fraction:
            raise ValueError("spin.stop watches held-out examples and there are none; set data.eval_fraction above 0")
        return self

    def identity(self) -> dict[str, Any]:
        """What decides the results: everything but where they go, who watches, and how often state is saved."""
        unsaved = {"checkpoint_minutes"}
        asking = {"concurrency", "timeout_seconds", "max_retries", "budget"}
        return self.model_dump(
            mode="json",
            by_alias=True,
            exclude={
                "out": True,
                "tracking": True,
                "synth": {"teacher": asking},
                "judge": asking,
                "sft": unsaved,
                "spin": unsaved,
            },
        )
