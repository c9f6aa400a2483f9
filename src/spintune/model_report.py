"""What ``spintune doctor --model`` says: the paths that a model takes, why, and what they cost on this machine."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from spintune.engine.logprobs import LogProbEngine
from spintune.engine.paths import ModelPaths
from spintune.engine.speed import Price, ScoringSpeed, price, scoring_speed
from spintune.errors import ModelError, SpintuneError
from spintune.generation.build import find_paths
from spintune.kernels.usage import KernelUsage, kernel_usage
from spintune.models.loading import load_model
from spintune.progress import Progress
from spintune.tokens.template_options import options_of
from spintune.tokens.templates import template_source
from spintune.training.footprint import TrainingFootprint, footprint


@dataclass(frozen=True)
class ModelReport:
    """A model as spintune sees it.

    Attributes:
        parameters: numbers that are trained without LoRA.
        stop_tokens: the tokens that end an answer, by id.
        positions: tokens of the longest sequence; None for no limit.
        window: tokens that a layer sees; None where every layer sees all.
        price: of a model that cannot be packed, where it is cheap to find out.
        problems: what has to be solved before the model can be trained, a line each.
    """

    model: str
    architecture: str
    model_type: str
    parameters: int
    tokenizer: str
    vocabulary: int
    template: str
    stop_tokens: dict[int, str]
    positions: int | None
    window: int | None
    paths: ModelPaths | None
    kernels: KernelUsage
    memory: TrainingFootprint
    speed: ScoringSpeed | None
    price: Price | None
    problems: tuple[str, ...]

    def lines(self) -> list[tuple[str, str]]:
        """Subjects and what to say of each."""
        stops = ", ".join(f"{text!r} ({id})" for id, text in self.stop_tokens.items())
        memory, unit = self.memory, 2**30
        limits = [f"{self.positions} positions" if self.positions else "no limit of positions"]
        limits += [f"window of {self.window} tokens"] if self.window else []
        paths = [line.partition(": ") for line in (self.paths.lines() if self.paths else [])]
        return [
            ("architecture", f"{self.architecture} ({self.model_type}), {_short(self.parameters)} parameters"),
            ("tokenizer", f"{self.tokenizer}, {self.vocabulary} tokens"),
            ("template", self.template),
            ("answers end at", stops or "no token"),
            ("limits", ", ".join(limits)),
            *((subject, why) for subject, _, why in paths),
            ("kernels", str(self.kernels)),
            ("training memory", f"{memory.total / unit:.2f} GiB and activations: weights {memory.weights / unit:.2f}, "
             f"gradients {memory.gradients / unit:.2f}, moments of AdamW {memory.moments / unit:.2f}; LoRA needs less"),
            *([("speed", _speed_text(self.speed))] if self.speed else []),
            *([("price", str(self.price))] if self.price else []),
        ]  # fmt: skip


def report_model(name: str, cache: Path, progress: Progress, template: str = "tokenizer") -> ModelReport:
    """Loads a model and tries it, in seconds for a small one. Raises ModelError for one that cannot be loaded."""
    problems: list[str] = []

    def attempt(what: str, make: Callable[[], object]) -> None:
        try:
            make()
        except SpintuneError as error:
            problems.append(f"{what}: {error}")

    with progress.task(f"checking {name}", 4, "steps") as task:
        loaded = load_model(name, cache=cache)
        task.advance()
        engine = LogProbEngine(loaded.model, loaded.autocast)
        found: list[ModelPaths] = []
        attempt("generation", lambda: found.append(find_paths(engine, loaded.tokenizer)))
        task.advance()
        attempt("saving", loaded.rehearse_saving)
        stops: set[int] = set(loaded.stop_ids)
        attempt("template", lambda: stops.update(loaded.renderer(template).stop_ids))
        kernels = kernel_usage(loaded.model, loaded.autocast)
        task.advance()
        speed = scoring_speed(engine, loaded.max_input_length)
        alone = price(engine, loaded.max_input_length)
        task.advance()
    config = loaded.model.config.get_text_config()
    count = sum(p.numel() for p in loaded.model.parameters() if p.requires_grad)
    return ModelReport(
        model=name,
        architecture=type(loaded.model).__name__,
        model_type=loaded.model.config.model_type,
        parameters=count,
        tokenizer=type(loaded.tokenizer).__name__,
        vocabulary=len(loaded.tokenizer),
        template="none needed: text to text" if loaded.encoder_decoder else template_text(loaded.tokenizer),
        stop_tokens=_texts(loaded.tokenizer, stops),
        positions=loaded.max_input_length,
        window=_window(config),
        paths=found[0] if found else None,
        kernels=kernels,
        memory=footprint(loaded.model),
        speed=speed,
        price=alone,
        problems=tuple(problems),
    )


def _texts(tokenizer: PreTrainedTokenizerBase, ids: set[int]) -> dict[int, str]:
    return {id: str(tokenizer.convert_ids_to_tokens(id)) for id in sorted(ids)}


def template_text(tokenizer: PreTrainedTokenizerBase) -> str:
    """Which chat template a decoder has, and the options that it reads."""
    if not tokenizer.chat_template:
        return "none; set data.template"
    options: list[str] = []
    with contextlib.suppress(ModelError):  # the renderer says what is wrong with the template
        options = options_of(tokenizer, template_source(tokenizer, "tokenizer"))
    return "the tokenizer's own" + (f"; data.template_options may set {', '.join(options)}" if options else "")


def _window(config: object) -> int | None:
    used = getattr(config, "use_sliding_window", True)
    window: int | None = getattr(config, "sliding_window", None)
    return window if used else None


def _speed_text(speed: ScoringSpeed) -> str:
    if speed.packed is None:
        return f"{speed.plain:.0f} tokens/s one row at a time; training takes three times as long a token"
    factor = speed.packed / speed.plain
    rate = f"{speed.packed:.0f} tokens/s packed, {factor:.1f} times one row at a time"
    return f"{rate}; training takes three times as long"


def _short(number: int) -> str:
    for unit, size in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)
