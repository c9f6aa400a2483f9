"""What every stage works with: the run folder, the examples, and one model in memory."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from spintune.engine.logprobs import LogProbEngine
from spintune.errors import DataError, ModelError
from spintune.generation.build import build_generator
from spintune.models.loading import ALIASES, LoadedModel, load_model, locate_model, model_identity, save_folder
from spintune.models.lora import load_adapter, merge, new_adapter, save_adapter
from spintune.progress import Progress
from spintune.recipe import Recipe, SftSection, SpinSection
from spintune.record_files import RecordFile
from spintune.records import Example, read_records
from spintune.run_folder import Inputs, RunFolder
from spintune.stages.metering import Meter
from spintune.storage import digest_json
from spintune.tokens.cache import TokenCache
from spintune.tokens.rows import RenderedRows, RowRenderer, TokenRow, Turns, render
from spintune.tokens.templates import template_source
from spintune.tracking import Metrics
from spintune.training.checkpoint import Checkpoints
from spintune.training.loop import StepReport

_RENDERING = ("max_length", "max_input_length", "max_target_length", "template", "turns")


@dataclass(frozen=True)
class Iterate:
    """A model of the run.

    Attributes:
        name: in tables: base, sft, iterate-1, ...
        location: an ordinary model folder, or what the recipe calls the model.
        digest: of its contents.
        adapter: folder of a LoRA adapter that goes on top of the recipe's model; None where ``location`` is all.
    """

    name: str
    location: str
    digest: str
    adapter: Path | None = None


class LoadedIterate:
    """An iterate in memory, with what reads, scores and writes for it."""

    def __init__(
        self,
        iterate: Iterate,
        loaded: LoadedModel,
        template: str,
        engine: LogProbEngine,
        adapted: Any = None,
    ) -> None:
        self.iterate, self.loaded, self.template, self.adapted = iterate, loaded, template, adapted
        self.engine = engine
        self.generator = build_generator(engine, loaded.tokenizer, self.renderer("last").stop_ids)

    def renderer(self, turns: Turns) -> RowRenderer:
        return self.loaded.renderer(self.template, turns)

    def save(self, folder: Path) -> None:
        """Writes a Hugging Face folder that stops and renders as it was trained to. An adapter is merged, and gone."""
        if self.template != "tokenizer" and not self.loaded.encoder_decoder:
            self.loaded.tokenizer.chat_template = template_source(self.loaded.tokenizer, self.template)
        model = self.loaded.model if self.adapted is None else merge(self.adapted)
        if model.generation_config is not None:
            model.generation_config.eos_token_id = sorted(self.renderer("last").stop_ids)
        save_folder(model, self.loaded.tokenizer, folder)


@dataclass
class RunContext:
    """One run at work.

    Attributes:
        environment: where keys of endpoints are looked up.
    """

    recipe: Recipe
    run: RunFolder
    cache: Path
    progress: Progress
    metrics: Metrics
    environment: Mapping[str, str]
    _player: LoadedIterate | None = None

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The recipe as plain values, for the inputs of stages."""
        return self.recipe.identity()

    # Examples --------------------------------------------------------------------------------------------------

    @property
    def train_file(self) -> Path:
        return self.run.folder / "data" / "train.jsonl"

    @property
    def heldout_file(self) -> Path:
        return self.run.folder / "data" / "heldout.jsonl"

    @cached_property
    def train(self) -> Sequence[Example]:
        """They stay on disk."""
        return RecordFile(self.train_file, Example)

    @cached_property
    def heldout(self) -> list[Example]:
        return read_records(self.heldout_file, Example)

    def render(
        self, examples: Sequence[Example], renderer: RowRenderer, max_response: int | None = None
    ) -> RenderedRows:
        data = self.recipe.data
        longest = min(filter(None, (max_response, data.max_target_length)), default=None)

        def tokenize() -> RenderedRows:
            return render(examples, renderer, data.max_length, longest, self.progress, data.max_input_length)

        if not isinstance(examples, RecordFile):
            return tokenize()
        lengths = [data.max_length, longest, data.max_input_length]
        content = {"examples": examples.digest(), "renderer": renderer.fingerprint(), "lengths": lengths}
        return TokenCache(self.cache / "tokens").rendered(content, tokenize)

    def render_heldout(
        self, examples: Sequence[Example], renderer: RowRenderer, max_response: int | None = None
    ) -> Sequence[TokenRow]:
        """The rows of held-out examples that fit. Raises DataError when there are examples and none does."""
        try:
            return self.render(examples, renderer, max_response).rows if examples else []
        except DataError as error:
            raise DataError(f"held-out examples: {error}, or set data.eval_fraction to 0") from error

    # Models ----------------------------------------------------------------------------------------------------

    def load(self, iterate: Iterate) -> LoadedIterate:
        """The iterate in memory; what is there already is not read again."""
        if self._player is None or self._player.iterate != iterate:
            self._player = None
            self._player = self._read(iterate)
        return self._player

    def guest(self, name: str) -> LoadedIterate:
        """A model that is none of the run's, such as a judge, in memory: as it is, with a template of its own."""
        iterate = Iterate("guest", name, model_identity(name, self.cache))
        if self._player is None or self._player.iterate != iterate:
            self._player = None
            loaded = load_model(name, cache=self.cache, precision=self.recipe.precision)
            tokens = self.recipe.tokens_per_forward
            engine = LogProbEngine(loaded.model, loaded.autocast, tokens_per_forward=tokens)
            self._player = LoadedIterate(iterate, loaded, "tokenizer", engine)
        return self._player

    def _read(self, iterate: Iterate) -> LoadedIterate:
        recipe = self.recipe
        location = recipe.model if iterate.adapter else iterate.location
        # weights that adapters are merged into must not be rounded at the next stage
        frozen = recipe.lora is not None and recipe.lora.between == "continue"
        loaded = load_model(location, cache=self.cache, precision=recipe.precision, frozen=frozen)
        longest = loaded.max_input_length
        has_rows = recipe.data.train or recipe.data.mixture
        if longest is not None and has_rows and recipe.data.max_length > longest:
            raise ModelError(
                f"data.max_length ({recipe.data.max_length} tokens) is more than {recipe.model} reads ({longest}); "
                "lower it"
            )
        adapted = None
        if recipe.lora and iterate.adapter:
            adapted = load_adapter(loaded.model, iterate.adapter)
        elif recipe.lora:
            adapted = new_adapter(loaded.model, recipe.lora, f"lora/{recipe.seed}/{iterate.name}")
        # iterates of this run carry their template with them
        template = recipe.data.template if location == recipe.model else "tokenizer"
        engine = LogProbEngine(
            loaded.model,
            loaded.autocast,
            recompute=recipe.recompute,
            compiled=recipe.compile,
            tokens_per_forward=recipe.tokens_per_forward,
        )
        return LoadedIterate(iterate, loaded, template, engine, adapted)

    def publish(
        self, player: LoadedIterate, name: str, stage: str, inputs: Inputs, facts: object, *more: Path
    ) -> Iterate:
        """Writes the player as an iterate of the run, then its stage's manifest."""
        folder = self.run.folder / stage
        files = [folder / "model", *more]
        if player.adapted is not None:
            files.append(folder / "adapter")
            inside = player.iterate.adapter is None and Path(player.iterate.location).is_relative_to(self.run.folder)
            location = Path(player.iterate.location)
            # peft knows no aliases
            known = (
                locate_model(self.recipe.model, self.cache)[0] if self.recipe.model in ALIASES else self.recipe.model
            )
            base = str(location.relative_to(self.run.folder)) if inside else known
            save_adapter(player.adapted, folder / "adapter", base)
        player.save(folder / "model")
        self.run.finish(stage, inputs, files, facts)
        iterate = self.published(name, stage)
        if player.adapted is None:
            player.iterate = iterate
        else:  # merging used it up, and what comes back from disk is what a resumed run would read
            self._player = None
        return iterate

    def published(self, name: str, stage: str) -> Iterate:
        """The iterate that a finished stage wrote."""
        folder = self.run.folder / stage
        goes_on = self.recipe.lora is not None and self.recipe.lora.between == "continue"
        adapter = folder / "adapter" if goes_on else None
        return Iterate(name, str(folder / "model"), self.run.digest(stage), adapter)

    # Stages ----------------------------------------------------------------------------------------------------

    def inputs(self, iterate: Iterate, **more: Any) -> dict[str, Any]:
        """What every stage that trains depends on."""
        return {"data": self.run.digest("data"), **self.reading(iterate, **more)}

    def judging(self, iterate: Iterate, **more: Any) -> dict[str, Any]:
        """What judging on held-out examples depends on: these, and not what else was trained on."""
        return {"heldout": self.run.file_digest("data", self.heldout_file.name), **self.reading(iterate, **more)}

    def reading(self, iterate: Iterate, **more: Any) -> dict[str, Any]:
        """What everything that a model reads and writes depends on."""
        return {
            "model": iterate.digest,
            "rendering": {key: self.settings["data"][key] for key in _RENDERING},
            "seed": self.recipe.seed,
            "precision": self.recipe.precision,
            "tokens_per_forward": self.recipe.tokens_per_forward,
            **({"compile": True} if self.recipe.compile else {}),
            "lora": self.settings["lora"],
            **more,
        }

    def checkpoints(self, folder: Path, inputs: dict[str, Any], section: SftSection | SpinSection) -> Checkpoints:
        """Checkpoints of a stage with these inputs; what a stopped run left of other inputs is deleted."""
        tag = digest_json(inputs)[:12]
        for other in folder.glob("checkpoints/*"):
            if other.name != tag:
                delete(other)
        return Checkpoints(folder / "checkpoints" / tag, section.checkpoint_minutes)

    def step_logger(self, stage: str, meter: Meter) -> Callable[[StepReport], None]:
        """Writes each step's report into the run's metrics, and shows it to the meter."""

        def write(report: StepReport) -> None:
            meter.step(report)
            self.metrics.add(
                stage,
                report.step,
                loss=report.loss,
                grad_norm=report.grad_norm,
                learning_rate=report.learning_rate,
                tokens=report.tokens,
                scored=report.scored,
                seconds=report.seconds,
                **report.facts,
            )

        return write


def delete(folder: Path) -> None:
    """Removes a folder of intermediate files, if it is there."""
    shutil.rmtree(folder, ignore_errors=True)
