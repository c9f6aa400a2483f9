"""What every stage works with: the run folder, the examples, and one model in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from spintune.engine.logprobs import LogProbEngine
from spintune.engine.speed import price
from spintune.errors import DataError, DeletedModelError, ModelError, RunError
from spintune.evaluation.selection import selection_of, too_few
from spintune.generation.build import find_paths
from spintune.generation.protocol import Generator
from spintune.generation.served.facts import EngineFacts
from spintune.mixtures.tasks import load_section
from spintune.models.loading import LoadedModel, default_device, load_model, locate_model, model_identity
from spintune.models.lora import load_adapter, new_adapter, save_adapter
from spintune.models.packaged import ALIASES
from spintune.models.quantized import count_of
from spintune.progress import Progress, StopRequest
from spintune.ranks import is_writer
from spintune.ranks.team import commanding
from spintune.recipe import Recipe, SftSection, SpinSection
from spintune.record_files import RecordFile
from spintune.records import Example, read_records
from spintune.run_folder import BASE, Inputs, RunFolder
from spintune.run_models import written_files
from spintune.stages.followers import forget_model, load_on_ranks, whole_player
from spintune.stages.iterates import Iterate, LoadedIterate
from spintune.stages.lengths import check_input_length, check_row_length
from spintune.stages.needs import check_needs
from spintune.stages.run_engine import RunEngines
from spintune.step_log import StepLog
from spintune.storage import digest_json, remove_folder
from spintune.tokens.cache import TokenCache
from spintune.tokens.rows import RenderedRows, RowRenderer, TokenRow, render
from spintune.tracking import Metrics
from spintune.training.checkpoint import Checkpoints
from spintune.training.routing import Routers
from spintune.typed_json import JsonObject, to_json

if TYPE_CHECKING:  # the HTTP client takes a third of a second to import
    from spintune.generation.served.pool import EnginePool

_RENDERING = ("max_length", "max_input_length", "max_target_length", "template", "turns")


def _without_unset(settings: JsonObject | None) -> JsonObject | None:
    """Settings for the inputs of stages without keys that are not set, so that what earlier versions finished stays."""
    return settings and {key: value for key, value in settings.items() if value is not None}


@dataclass
class RunContext:
    """One run while its stages execute.

    Attributes:
        cache: folder of models and tokens that runs share.
        environment: where the API keys of endpoints are looked up.
        stop: asks training to stop between two steps; ``progress`` stops everything else.
        engines: servers that write the answers; None for the built-in generator.
        when_loaded: called with the first model that is in memory, once.
    """

    recipe: Recipe
    run: RunFolder
    cache: Path
    progress: Progress
    metrics: Metrics
    environment: Mapping[str, str]
    stop: StopRequest = field(default_factory=StopRequest)
    engines: EnginePool | None = None
    when_loaded: Callable[[LoadedIterate], None] | None = None
    _loaded: LoadedIterate | None = None
    _engines: RunEngines = field(default_factory=RunEngines)
    _needs_checked: bool = False
    _paths_told: bool = False

    def settle(self, recipe: Recipe) -> None:
        """Goes on with a recipe in which more is decided."""
        self.recipe = recipe
        vars(self).pop("settings", None)

    @cached_property
    def settings(self) -> JsonObject:
        """The recipe as plain values, for the inputs of stages."""
        return self.recipe.identity()

    # Examples --------------------------------------------------------------------------------------------------------

    @property
    def train_file(self) -> Path:
        return self.run.folder / "data" / "train.jsonl"

    @property
    def heldout_file(self) -> Path:
        return self.run.folder / "data" / "heldout.jsonl"

    @cached_property
    def train(self) -> Sequence[Example]:
        """The training examples, read from disk one by one."""
        return RecordFile(self.train_file, Example)

    @property
    def seen_file(self) -> Path:
        return self.run.folder / "data" / "seen.jsonl"

    @property
    def unseen_file(self) -> Path:
        return self.run.folder / "data" / "unseen.jsonl"

    @property
    def prompts(self) -> Literal["all", "seen", "unseen"] | None:
        """The part of the training examples that self-play plays on (``spin.prompts``); None for all of them."""
        return self.recipe.spin.prompts if self.recipe.spin else None

    @cached_property
    def seen(self) -> Sequence[Example]:
        """The training examples that SFT trains on."""
        return RecordFile(self.seen_file, Example) if self.prompts else self.train

    @cached_property
    def played(self) -> Sequence[Example]:
        """The training examples that self-play plays on, and its baseline trains on."""
        return RecordFile(self.unseen_file, Example) if self.prompts == "unseen" else self.seen

    @cached_property
    def heldout(self) -> list[Example]:
        """The held-out examples."""
        return read_records(self.heldout_file, Example)

    @cached_property
    def task_digests(self) -> list[str]:
        """What decides prompts, targets and right answers of the mixture's tasks."""
        data = self.recipe.data
        found = load_section(data.mixture, data.bad_row_policy).tasks if data.mixture else ()
        return [task.digest for task in found]

    @cached_property
    def selection(self) -> list[Example]:
        """The held-out examples that choose models, steps and rates; the others report on what was chosen."""
        return selection_of(self.heldout)

    @cached_property
    def cannot_choose(self) -> str | None:
        """Why nothing can be chosen by the selection examples, and what to do; None where they are enough."""
        return too_few(len(self.selection), len(self.heldout))

    @cached_property
    def reporting(self) -> list[Example]:
        """The held-out examples that report: all of them in a run that trains nothing or has too few to choose by."""
        if self.cannot_choose or not (self.recipe.sft or self.recipe.spin):
            return self.heldout
        chosen_by = {example.id for example in self.selection}
        return [example for example in self.heldout if example.id not in chosen_by]

    def render(
        self, examples: Sequence[Example], renderer: RowRenderer, max_response: int | None = None
    ) -> RenderedRows:
        """Examples as tokens, within the recipe's lengths. Those of a file are cached.

        Args:
            max_response: maximum length of a response, if lower than the recipe's. [tokens]
        """
        data = self.recipe.data
        longest = min(filter(None, (max_response, data.max_target_length)), default=None)

        def tokenize() -> RenderedRows:
            return render(examples, renderer, data.max_length, longest, self.progress, data.max_input_length)

        if isinstance(examples, RecordFile):
            lengths = [data.max_length, longest, data.max_input_length]
            content = {"examples": examples.digest(), "renderer": renderer.fingerprint(), "lengths": lengths}
            rendered = TokenCache(self.cache / "tokens").rendered(content, tokenize)
        else:
            rendered = tokenize()
        rendered.check_unknown()
        return rendered

    def render_heldout(
        self, examples: Sequence[Example], renderer: RowRenderer, max_response: int | None = None
    ) -> Sequence[TokenRow]:
        """The rows of the held-out examples that fit. Raises DataError when there are examples and none fits."""
        try:
            return self.render(examples, renderer, max_response).rows if examples else []
        except DataError as error:
            raise DataError(f"held-out examples: {error}, or {self.recipe.data.without_long_ones}") from error

    # Models ----------------------------------------------------------------------------------------------------------

    def load(self, iterate: Iterate, stage: str = "", inputs: Inputs | None = None) -> LoadedIterate:
        """The iterate in memory, in place of the previous one; it is read only if it is not in memory yet.

        Args:
            stage, inputs: of a stage that measures the iterate, and may have done so before it was deleted.

        Raises DeletedModelError for one that was deleted. Raises RunError where that leaves a stage in need of it that
        was finished before: its result was lost, and the run would end without it.
        """
        if not iterate.is_there:
            again = iterate.how_to_train_again()
            if inputs is not None and iterate.measured(stage) == digest_json(inputs):
                lost = self.run.lost_file(stage)
                raise RunError(
                    f"{lost}: is gone or damaged, and {iterate.name}, which it is made from, was deleted (spin.keep); "
                    f"restore the file from a copy, or {again}"
                )
            raise DeletedModelError(f"{iterate.location} was deleted (spin.keep) and is needed again; {again}")
        team = commanding()
        player = self._in_memory(iterate, (lambda one: team.call(load_on_ranks, one)) if team else self._read)
        player.serve = self._served if self.engines else None
        if self.when_loaded:
            told, self.when_loaded = self.when_loaded, None
            told(player)
        return player

    def load_by_name(self, name: str) -> LoadedIterate:
        """A model from outside the run, such as a judge, with its own chat template, in place of the previous one."""

        def read(iterate: Iterate) -> LoadedIterate:
            if team := commanding():
                team.call(forget_model)
            loaded = load_model(name, cache=self.cache, precision=self.recipe.precision)
            engine = LogProbEngine(loaded.model, loaded.autocast, tokens_per_forward=self.recipe.tokens_per_forward)
            guest = LoadedIterate(iterate, loaded, "tokenizer", engine, generator=self.recipe.generator)
            if self.engines and self.engines.starts:  # servers at addresses have a model of the run
                guest.serve = self._served
            return guest

        guest = Iterate("guest", name, model_identity(name, self.cache))
        if self._loaded is None or self._loaded.iterate != guest:
            self.release_engines()  # it may be larger than the run's model
        return self._in_memory(guest, read)

    def _in_memory(self, iterate: Iterate, read: Callable[[Iterate], LoadedIterate]) -> LoadedIterate:
        """A server goes on with its model meanwhile: the run's models are of one size, so there is room as before."""
        if self._loaded is None or self._loaded.iterate != iterate:
            self._loaded = None  # its memory is free before the next one is read
            self._loaded = read(iterate)
        return self._loaded

    def read_here(self, iterate: Iterate, unread: bool = False) -> LoadedIterate:
        """The iterate in this rank's memory, in place of the previous one. The writer checks what its files hold.

        Args:
            unread: leave its weights in their files, where they can be read one by one.
        """
        self._loaded = None
        self._loaded = self._read(iterate, unread=unread)
        return self._loaded

    def _read(self, iterate: Iterate, device: torch.device | None = None, unread: bool = False) -> LoadedIterate:
        recipe = self.recipe
        folder = Path(iterate.location).parent
        if is_writer() and iterate.name != BASE and folder.is_relative_to(self.run.folder):
            stage = str(folder.relative_to(self.run.folder))
            for part in ["model"] * (not iterate.is_discarded) + ["adapter"] * bool(iterate.adapter):
                written_files(self.run.folder, stage, part)
        location = recipe.model if iterate.adapter else iterate.location
        # weights that adapters are merged into must not be rounded at the next stage
        frozen = recipe.lora is not None and recipe.lora.between == "continue"
        loaded = load_model(
            location,
            cache=self.cache,
            precision=recipe.precision,
            frozen=frozen,
            weights=recipe.weights,
            base=recipe.lora.base if recipe.lora else None,
            device=device,
            unread=unread,
        )
        probed = loaded.unread.standin if loaded.unread and loaded.unread.standin else loaded.model
        trains_first = bool(recipe.sft or recipe.spin) and not self._needs_checked and is_writer()
        if trains_first:
            loaded.rehearse_saving()
            Routers(probed, recipe.router_aux_loss)  # refuses a coefficient that would do nothing
        weight_bytes = 2 if recipe.weights and not recipe.lora else 4
        saved_bytes = weight_bytes * sum(map(count_of, loaded.model.parameters()))
        check_input_length(recipe, loaded)
        adapted = load_adapter(loaded.model, iterate.adapter) if recipe.lora and iterate.adapter else None
        if recipe.lora and not iterate.adapter:
            adapted = new_adapter(loaded.model, recipe.lora, f"lora/{recipe.seed}/{iterate.name}")
        if trains_first:
            check_needs(recipe, loaded.model, saved_bytes, self.progress)
            self._needs_checked = True  # later iterates are alike
        # an iterate that this run wrote has its template in its tokenizer
        template = recipe.data.template if location == recipe.model else "tokenizer"
        engine = self._engines.engine(recipe, probed, loaded.autocast, (iterate, device, unread))
        check_row_length(recipe, engine)
        self._tell_paths(engine, loaded)
        if loaded.unread:
            engine = engine.over(loaded.model)
        prompts, options = recipe.data.generation_prompt, recipe.data.template_options
        return LoadedIterate(iterate, loaded, template, engine, adapted, recipe.generator, prompts, options)

    def _served(self, player: LoadedIterate) -> Generator:
        """The generator of the recipe's other engine, for an iterate that is in memory."""
        from spintune.generation.served.generator import ServedGenerator
        from spintune.generation.served.pool import served_source

        iterate = player.iterate
        if self.engines is None:
            raise RuntimeError("no engine is named")
        if not iterate.location_is_there:
            raise ModelError(
                f"{iterate.location} was deleted (spin.keep), and {self.engines.section.engine} writes with it; "
                "leave spin.keep or generate out"
            )
        source = served_source(iterate.name, iterate.digest, locate_model(iterate.location, self.cache))
        stop_ids = player.renderer("last").stop_ids
        return ServedGenerator(self.engines, source, player.engine, player.loaded.tokenizer, stop_ids)

    @property
    def written_by(self) -> JsonObject:
        """For facts of stages: the other engine that wrote answers; nothing for the built-in generator."""
        facts = self.engine_facts
        return {"engine": to_json(facts)} if facts else {}

    @property
    def engine_facts(self) -> EngineFacts | None:
        """The other engine that wrote answers last; None for the built-in generator."""
        return self.engines.facts if self.engines else None

    def is_served(self, iterate: Iterate) -> bool:
        """Whether a server has an iterate in memory."""
        return self.engines is not None and self.engines.serves(iterate.digest)

    def release_engines(self) -> None:
        """Ends the servers that the run started, so that training, or the next model, has their memory."""
        if self.engines and self.engines.starts:
            self.engines.release()

    def _tell_paths(self, engine: LogProbEngine, loaded: LoadedModel) -> None:
        """Says once how the run's model scores and generates; its iterates do alike."""
        if self._paths_told or not is_writer():
            return
        self._paths_told = True
        served = self.engines.section.engine if self.engines else None
        paths = find_paths(engine, loaded.tokenizer, served or self.recipe.generator)
        alone = None if loaded.unread else price(engine, loaded.max_input_length)
        self.progress.note("; ".join([*paths.lines(), *([f"price: {alone}"] if alone else [])]))

    def publish(
        self, player: LoadedIterate, name: str, stage: str, inputs: Inputs, facts: object, *files: Path
    ) -> Iterate:
        """Writes the trained player as an iterate of the run, then the stage's manifest.

        Args:
            name: of the new iterate.
            files: other files that the stage wrote.
        """
        folder = self.run.folder / stage
        outputs = [folder / "model", *files]
        whole = whole_player(player, lambda: self._read(player.iterate, torch.device("cpu")))
        if whole.adapted is not None:
            save_adapter(whole.adapted, folder / "adapter", self._adapter_base(player.iterate))
            outputs.append(folder / "adapter")
        whole.save(folder / "model")
        self.finish(stage, inputs, outputs, facts)
        iterate = self.published(name, stage)
        if player.adapted is None:
            player.iterate = iterate
        else:  # merging used the adapter up; a resumed run, too, would read the model from disk
            self._loaded = None
        return iterate

    def finish(self, stage: str, inputs: Inputs, files: Sequence[Path], facts: object) -> None:
        """Writes a stage's manifest, after what it logged is on disk."""
        self.metrics.sync()
        self.run.finish(stage, inputs, files, facts)

    def published(self, name: str, stage: str) -> Iterate:
        """The iterate that a finished stage wrote."""
        folder = self.run.folder / stage
        continues = self.recipe.lora is not None and self.recipe.lora.between == "continue"
        return Iterate(name, str(folder / "model"), self.run.digest(stage), folder / "adapter" if continues else None)

    def _adapter_base(self, iterate: Iterate) -> str:
        """The model that an adapter belongs on, as peft finds it: a hub id, a path, or a path inside the run folder."""
        location = Path(iterate.location)
        if iterate.adapter is None and location.is_relative_to(self.run.folder):
            return str(location.relative_to(self.run.folder))
        return locate_model(self.recipe.model, self.cache)[0] if self.recipe.model in ALIASES else self.recipe.model

    # Inputs of stages ------------------------------------------------------------------------------------------------

    def training_inputs(self, iterate: Iterate, **more: object) -> JsonObject:
        """Inputs of a stage that trains ``iterate`` or makes its training data."""
        coefficient = self.recipe.router_aux_loss
        own = {} if coefficient is None else {"router_aux_loss": coefficient}
        return {"data": self.run.digest("data"), **own, **self.model_inputs(iterate, **more)}

    def heldout_inputs(self, iterate: Iterate, **more: object) -> JsonObject:
        """Inputs of a stage that judges ``iterate`` on held-out examples; training examples do not matter."""
        return {"heldout": self.run.file_digest("data", self.heldout_file.name), **self.model_inputs(iterate, **more)}

    def model_inputs(self, iterate: Iterate, **more: object) -> JsonObject:
        """Inputs of every stage in which ``iterate`` reads or writes."""
        return {
            "model": iterate.digest,
            "rendering": {key: self.settings["data"][key] for key in _RENDERING},
            **({"generation_prompt": "bare"} if self.recipe.data.generation_prompt == "bare" else {}),
            **({"template_options": options} if (options := self.recipe.data.template_options) else {}),
            "seed": self.recipe.seed,
            # a run folder takes no precision that means another; how much is computed at once moves only last bits
            "precision": "auto",
            "tokens_per_forward": 1024,
            **({"compile": True} if self.recipe.compile else {}),
            **({"generator": self.recipe.generator} if self.recipe.generator else {}),
            **({"weights": self.recipe.weights} if self.recipe.weights else {}),
            **({"generate": decided} if (decided := self.settings["generate"]) else {}),
            "lora": _without_unset(self.settings["lora"]),
            **more,
        }

    # Training --------------------------------------------------------------------------------------------------------

    def checkpoints(self, stage: str, inputs: Inputs, section: SftSection | SpinSection, *logs: StepLog) -> Checkpoints:
        """The checkpoints of a stage for these inputs. Those for other inputs are deleted, and trackers forget theirs.

        Args:
            logs: of the stage, beside the metrics: a checkpoint is saved after the lines of its steps.
        """
        self.release_engines()
        self.metrics.trains(stage, digest := digest_json(inputs))
        folder, tag = self.run.folder / stage / "checkpoints", digest[:12]
        for other in folder.glob("*"):
            if other.name != tag:
                remove_folder(other)

        def sync_logs() -> None:
            self.metrics.sync()
            for log in logs:
                log.sync()

        copies = self.recipe.copies_checkpoints(section, default_device().type == "cuda")
        return Checkpoints(folder / tag, section.checkpoint_minutes, sync_logs, copies, tag)
