"""The recipe: one closed, typed configuration of a run, read from YAML with dotted overrides.

Every field names its unit and where its default comes from. Unknown keys are errors with a suggestion.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from spintune.errors import RecipeError

LossName = Literal[
    "logistic",
    "hinge",
    "exponential",
    "correlation",
    "ipo",
    "space",
    "gsil_bernoulli",
    "gsil_brier",
    "gsil_hinge",
    "gsil_kliep",
    "gsil_lsif",
    "t_spin",
]
ScheduleName = Literal["cosine", "linear", "constant"]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]

DEFAULT_MODEL = "smollm2-135m-instruct"
"""What runs where no model is named; an alias of models/loading.py."""

SYNTH = "synth"
"""The source of data.train that stands for what the synth stage wrote."""

_MAX_BYTES = 1_000_000


class Section(BaseModel):
    """A closed, frozen group of settings."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True)


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
    train: list[SourceSection] = Field(description="Supervised examples: one source or a list of them.")
    eval_fraction: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.1, description="Prompts held out from training. [share] Common practice."
    )
    max_length: Annotated[int, Field(ge=8)] = Field(
        1024, description="Prompt and response together. [tokens] Default: the SPIN authors' training scripts."
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


class BudgetSection(Section):
    """What a teacher may cost. It stops before a request that could pass it; everything paid for is kept."""

    tokens: Count | None = Field(None, description="Of prompts and answers together. [tokens] Default: no limit.")
    dollars: Positive | None = Field(None, description="At the prices below. [US dollars] Default: no limit.")
    prompt_price: NonNegative = Field(0.0, description="Of what the teacher reads. [dollars a million tokens]")
    completion_price: NonNegative = Field(0.0, description="Of what it writes. [dollars a million tokens]")

    @model_validator(mode="after")
    def _dollars_have_prices(self) -> BudgetSection:
        if self.dollars and not (self.prompt_price or self.completion_price):
            raise ValueError("a budget in dollars needs prompt_price and completion_price")
        return self


class TeacherSection(Section):
    """An endpoint that speaks OpenAI's protocol. Its key comes from the environment and goes to this host alone."""

    url: str = Field(description="Its base, such as https://api.openai.com/v1 or http://127.0.0.1:8000/v1.")
    model: str = Field(description="As the endpoint calls it.")
    style: Literal["chat", "completions"] = Field("chat", description="Which of its two ways to ask.")
    key_variable: str | None = Field(
        None,
        description="Environment variable of the key. Default: OPENAI_API_KEY for api.openai.com, else no key.",
    )
    concurrency: Count = Field(8, description="Requests under way at a time. [requests]")
    timeout_seconds: Positive = Field(300.0, description="For one attempt. [seconds]")
    max_retries: Annotated[int, Field(ge=0)] = Field(5, description="After refusals that may pass. [attempts]")
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", description="Newer models of some providers want max_completion_tokens."
    )
    extra: dict[str, Any] = Field(
        default={}, description="More fields of each request, such as {reasoning_effort: low}; null leaves one out."
    )
    budget: BudgetSection = Field(default=BudgetSection.model_validate({}), description="What it may cost.")


class FilterSection(Section):
    """Which instructions and examples of a teacher are dropped. Defaults: the method's paper."""

    fewest_words: Count = Field(4, description="Of an instruction. [words] Default: Self-Instruct.")
    most_words: Count = Field(150, description="Of an instruction. [words] Default: Self-Instruct.")
    keywords: list[str] | None = Field(
        None, description="Whole words that no instruction may have. Default: the method's own list."
    )
    starts: list[str] = Field(default=["Write a program"], description="Beginnings that none may have.")
    ascii_start: bool | None = Field(
        None, description="The first character must be ASCII. Default: yes, unless novelty_tokens is unicode."
    )
    refusals: bool = Field(True, description="Drop answers such as 'As an AI language model'.")
    novelty: Annotated[float, Field(gt=0, le=1)] = Field(
        0.7, description="Highest ROUGE-L with any other instruction. [F-measure] Default: Self-Instruct; 1 is off."
    )
    novelty_tokens: Literal["reference", "unicode"] = Field(
        "reference",
        description="Words of ROUGE-L: reference has a-z and 0-9 alone, as rouge_score; unicode reads every script.",
    )


class DecontaminateSection(Section):
    """Removes examples that share a run of words with evaluation data."""

    files: list[str] = Field(description="Evaluation files, in any format that data.train takes.")
    ngram: Annotated[int, Field(ge=2)] = Field(13, description="Length of a shared run. [words] Default: GPT-3's.")


class SynthSection(Section):
    """A teacher writes instruction data from seed tasks; data.train: synth trains on it."""

    method: Literal["self_instruct", "alpaca"] = Field(
        "self_instruct", description="self_instruct (arXiv 2212.10560) or alpaca (Stanford Alpaca)."
    )
    seeds: str = Field("builtin:seeds", description="Seed tasks: builtin:seeds, or a file as the papers have it.")
    instructions: Count = Field(200, description="New instructions to accept. [instructions] The papers: 52,000.")
    teacher: TeacherSection | None = Field(
        None, description="Who writes. Default: the recipe's own model, on this machine."
    )
    requests_per_round: Count = Field(
        32, description="Requests between two looks at what is new. [requests] The paper's code: 5."
    )
    patience: Count = Field(4, description="Rounds without anything new before it stops. [rounds]")
    temperature: NonNegative | None = Field(
        None, description="Of new instructions. Default: 0.7 for self_instruct, 1 for alpaca (their code)."
    )
    top_p: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="Of new instructions. [share] Default: 0.5 for self_instruct, 1 for alpaca (their code)."
    )
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = Field(
        None, description="Of new instructions. Default: 2 for self_instruct, 0 for alpaca (their code)."
    )
    max_tokens: Count | None = Field(
        None, description="Of a reply with new instructions. [tokens] Default: 1024 and 3072 (their code)."
    )
    instance_tokens: Count = Field(
        300, description="Of a reply with instances; self_instruct alone. [tokens] Default: the paper."
    )
    filters: FilterSection = Field(default=FilterSection.model_validate({}), description="What is dropped.")
    decontaminate: DecontaminateSection | None = Field(None, description="Evaluation data to keep out.")
    format: Literal["alpaca", "chat", "parquet"] = Field(
        "alpaca", description="Of the file for others: alpaca.json, chat.jsonl or examples.parquet."
    )

    @model_validator(mode="after")
    def _every_option_is_used(self) -> SynthSection:
        if self.method == "alpaca" and "instance_tokens" in self.model_fields_set:
            raise ValueError("instance_tokens would do nothing here: it is for method: self_instruct; leave it out")
        return self


class SftSection(TrainingSection):
    epochs: Positive = Field(1.0, description="Passes over the training rows; fractions are allowed. [epochs]")
    max_steps: Count | None = Field(None, description="Stop after this many optimizer steps. [steps]")
    learning_rate: Positive = Field(2e-5, description="Peak. Default: Stanford Alpaca, Zephyr SFT (2e-5).")
    schedule: ScheduleName = Field("cosine", description="Decay after warm-up. Default: Zephyr SFT.")
    tokens_per_step: Count = Field(4096, description="Prompt and response tokens of an optimizer step. [tokens]")
    samples: Annotated[int, Field(ge=0)] = Field(
        4, description="Held-out prompts answered at each evaluation, into sft/samples.jsonl. [prompts]"
    )


LAMBDAS: dict[str, float] = {"space": 1.0, "t_spin": 1.0} | {
    f"gsil_{form}": 0.01 for form in ("bernoulli", "brier", "hinge", "kliep", "lsif")
}
"""λ of a loss when the recipe names none, from each paper or its scripts; 0.1 for all others (SPIN's scripts)."""


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
        losses = set(self.loss if isinstance(self.loss, list) else [self.loss])
        uses = {
            "mu": ("space" in losses, "the loss space"),
            "shift": (any(name.startswith("gsil_") for name in losses), "the losses gsil_*"),
            "history_weight": ("t_spin" in losses, "the loss t_spin"),
            "replay_weight": (self.replay > 0, "replay above 0"),
            "baseline_learning_rate": (self.baseline != "none", "baseline: sft"),
        }
        for key, (used, needs) in uses.items():
            if key in self.model_fields_set and not used:
                raise ValueError(f"{key} would do nothing here: it is for {needs}; leave it out")
        return self

    @model_validator(mode="after")
    def _opponents_are_possible(self) -> SpinSection:
        if self.refresh != 1:
            for key, off in (("replay", 0), ("history", 1), ("reference_mixture", 0), ("generated", None)):
                if getattr(self, key) != off:
                    raise ValueError(f"refresh renews every answer from the newest player; it goes without {key}")
        if self.history > 1 and self.generated:
            raise ValueError("generated gives the answers that history would draw; leave one out")
        losses = self.loss if isinstance(self.loss, list) else [self.loss]
        if "t_spin" in losses:
            for key, off in (("refresh", 1), ("generated", None)):
                if getattr(self, key) != off:
                    raise ValueError(f"t_spin looks back to iterate 0's own answers; it goes without {key}")
            if self.reference_mixture:
                raise ValueError("t_spin has no reference; it goes without reference_mixture")
        if self.reference_mixture and any(name == "space" or name.startswith("gsil_") for name in losses):
            raise ValueError("reference_mixture is for losses of the margin: elsewhere its normaliser does not cancel")
        if self.negatives > 1 and self.temperature == 0:
            raise ValueError("greedy answers to one prompt are all the same; set temperature above 0 or negatives to 1")
        return self

    def at(self, name: str, iteration: int) -> Any:
        """Value of a setting that may be a schedule, in iteration 1, 2, ..."""
        value = getattr(self, name)
        if name == "lambda_" and value is None:
            return LAMBDAS.get(self.at("loss", iteration), 0.1)
        return value[iteration - 1] if isinstance(value, list) else value


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


class Recipe(Section):
    out: str = Field(description="The run folder. [path]")
    model: str = Field(description="Alias, local folder, GGUF file, or hub id[@revision].")
    seed: Annotated[int, Field(ge=0)] = Field(0, description="Decides split, order and sampling.")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Type of matrix products: auto is bfloat16 on a GPU that has it, float32 elsewhere."
    )
    tokens_per_forward: Count = Field(
        1024,
        description="Tokens computed at once; changes speed and memory, not results. [tokens] Measured on 2 cores.",
    )
    tracking: list[Literal["tensorboard"]] = Field(
        default=[], description="Besides metrics.jsonl, which is always kept."
    )
    synth: SynthSection | None = Field(None, description="Written instruction data; leave out to skip it.")
    data: DataSection
    lora: LoraSection | None = Field(None, description="Low-rank adapters; leave out to train all weights.")
    sft: SftSection | None = Field(None, description="Supervised fine-tuning; leave out to skip it.")
    spin: SpinSection | None = Field(None, description="Self-play fine-tuning; leave out to skip it.")
    eval: list[Literal["heldout"]] = Field(default=["heldout"], description="What judges every model of the run.")

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
        manner = {"teacher": {"concurrency", "timeout_seconds", "max_retries", "budget"}}
        return self.model_dump(
            mode="json",
            by_alias=True,
            exclude={"out": True, "tracking": True, "synth": manner, "sft": unsaved, "spin": unsaved},
        )


def load_recipe(path: Path | None, overrides: list[str] | None = None, base: dict[str, Any] | None = None) -> Recipe:
    """Reads a recipe file (or starts from ``base``) and applies ``key.path=value`` overrides, values in YAML.

    Raises RecipeError, one line for each thing that is wrong.
    """
    values = dict(base or {})
    name = "command line"
    if path is not None:
        name = str(path)
        values = _read_yaml(path)
    for override in overrides or []:
        _apply(values, override)
    return parse_recipe(values, name)


def parse_recipe(values: dict[str, Any], name: str) -> Recipe:
    """Checks plain values. Raises RecipeError."""
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        lines = [f"{name}: {_explain(problem)}" for problem in error.errors() if _is_about_its_kind(problem)]
        raise RecipeError("\n".join(dict.fromkeys(lines))) from error


def recipe_schema() -> dict[str, Any]:
    """JSON Schema of a recipe file, for editors."""
    schema = Recipe.model_json_schema(by_alias=True)
    # what the validator above also takes: one source instead of a list, a path instead of a source
    source = {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/SourceSection"}]}
    train = schema["$defs"]["DataSection"]["properties"]["train"]
    train.pop("items")
    train.pop("type")
    train["anyOf"] = [*source["anyOf"], {"type": "array", "items": source}]
    return schema


class _Loader(yaml.SafeLoader):
    """Safe YAML without aliases (no billion laughs), without repeated keys, and with 2e-5 as a number."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.constructor.ConstructorError(None, None, "aliases are not allowed", self.peek_event().start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is no text", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        value = super().construct_yaml_int(node)
        if value.bit_length() > 63:
            raise yaml.constructor.ConstructorError(None, None, "an integer of more than 64 bits", node.start_mark)
        return value

    def construct_number(self, node: yaml.ScalarNode) -> float:
        return float(self.construct_scalar(node))


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_constructor("!exponent", _Loader.construct_number)
_Loader.add_implicit_resolver("!exponent", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789"))


def _parse_yaml(text: str, name: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 -- a SafeLoader
    except RecursionError:
        raise RecipeError(f"{name}: nested too deeply; this is not a recipe") from None
    except ValueError as error:  # a number or a date of the right form but of no value, such as 2024-13-45
        raise RecipeError(f"{name}: a value cannot be read ({error}); write it in quotes if it is text") from error
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise RecipeError(f"{name}{line}: {error.problem or 'not valid YAML'}") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{name}: not valid YAML ({str(error).splitlines()[0]})") from error


def read_yaml(path: Path, what: str) -> dict[str, Any]:
    """The keys of a YAML file, safely read; ``what`` ("recipe", "task") names it in errors. Raises RecipeError."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        close = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.y*ml")], 1)
        hint = f"; did you mean {path.parent / close[0]}?" if close else ""
        raise RecipeError(f"{what} {path} does not exist{hint}") from None
    except OSError as error:
        raise RecipeError(f"{what} {path} cannot be read ({error.strerror})") from error
    if len(data) > _MAX_BYTES:
        raise RecipeError(f"{what} {path} is larger than {_MAX_BYTES} bytes; this is not a {what}")
    try:
        values = _parse_yaml(data.decode(), str(path))
    except UnicodeDecodeError:
        raise RecipeError(f"{what} {path} is not UTF-8 text") from None
    if not isinstance(values, dict):
        hint = "; see recipes/quickstart.yaml for an example" if what == "recipe" else ""
        raise RecipeError(f"{what} {path} holds no keys{hint}")
    return values


def _read_yaml(path: Path) -> dict[str, Any]:
    values = read_yaml(path, "recipe")
    for section in ("synth", "sft", "spin", "lora"):
        if section in values and values[section] is None:
            raise RecipeError(f"{path}: {section} is empty; write {section}: {{}} for its defaults, or leave it out")
    return values


def _apply(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        raise RecipeError(f"override {override!r} is not of the form key.path=value")
    target = values
    for part in parts[:-1]:
        if target.get(part) is None:
            target[part] = {}
        if not isinstance(target[part], dict):
            raise RecipeError(f"override {override!r}: {part} is not a section")
        target[part] = target = dict(target[part])
    target[parts[-1]] = _parse_yaml(text, f"override {key}")


def _explain(problem: Any) -> str:
    where = ".".join(str(part) for part in problem["loc"] if not _is_type_tag(part))
    if problem["type"] == "extra_forbidden":
        return f"unknown key {where}{_suggestion(problem['loc'])}"
    if problem["type"] == "missing":
        return f"{where} is missing; {_description(problem['loc'])}"
    message = problem["msg"].removeprefix("Value error, ")
    given = "" if problem["type"] == "value_error" else f" (given: {problem['input']!r:.60})"
    return f"{where}: {message}{given}" if where else message


def _is_about_its_kind(problem: Any) -> bool:
    """Of a setting that takes one value or a list, pydantic tells what is wrong as either; one of them was meant."""
    if _is_type_tag(problem["loc"][-1] if problem["loc"] else ""):
        return isinstance(problem["input"], list) == str(problem["loc"][-1]).startswith("list[")
    return True


def _is_type_tag(part: Any) -> bool:
    """pydantic adds the name of the alternative it tried; readers know only keys."""
    return isinstance(part, str) and (part in {"float", "int", "constrained-float", "constrained-int"} or "[" in part)


def _section_of(location: tuple[Any, ...]) -> type[BaseModel]:
    section: type[BaseModel] = Recipe
    children: dict[str, type[BaseModel]] = {
        "data": DataSection,
        "synth": SynthSection,
        "teacher": TeacherSection,
        "budget": BudgetSection,
        "filters": FilterSection,
        "decontaminate": DecontaminateSection,
        "sft": SftSection,
        "spin": SpinSection,
        "lora": LoraSection,
        "stop": StopSection,
        "train": SourceSection,
    }
    for part in location[:-1]:
        section = children.get(str(part), section)
    return section


def _keys(section: type[BaseModel]) -> dict[str, str]:
    return {field.alias or name: field.description or "" for name, field in section.model_fields.items()}


def _suggestion(location: tuple[Any, ...]) -> str:
    keys = _keys(_section_of(location))
    close = difflib.get_close_matches(str(location[-1]), keys, 1)
    if close:
        return f"; did you mean {close[0]}?"
    elsewhere = [
        f"{name}.{location[-1]}"
        for name, section in (
            ("data", DataSection),
            ("synth", SynthSection),
            ("sft", SftSection),
            ("spin", SpinSection),
        )
        if location[-1] in _keys(section)
    ]
    return f"; did you mean {elsewhere[0]}?" if elsewhere else f"; known here: {', '.join(keys)}"


def _description(location: tuple[Any, ...]) -> str:
    return _keys(_section_of(location)).get(str(location[-1]), "")
