"""The models of a run: iterates on disk, and an iterate loaded into memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from spintune.engine.logprobs import LogProbEngine
from spintune.generation.build import build_generator
from spintune.generation.protocol import Generator
from spintune.models.loading import LoadedModel
from spintune.models.lora import merge
from spintune.models.saving import save_folder
from spintune.run_folder import MANIFEST, read_manifest
from spintune.tokens.rows import RowRenderer, Turns
from spintune.tokens.template_options import TemplateOptions
from spintune.tokens.templates import keep_template
from spintune.tokens.turns import GenerationPrompt

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True)
class Iterate:
    """A model of the run.

    Attributes:
        name: in tables: base, sft, iterate-1, ...
        location: a Hugging Face folder, or what the recipe calls the model.
        digest: of its contents.
        adapter: folder of a LoRA adapter to load on top of the recipe's model instead of ``location``, or None.
    """

    name: str
    location: str
    digest: str
    adapter: Path | None = None

    @property
    def is_there(self) -> bool:
        """False for an iterate that was deleted and cannot be loaded any more."""
        return self.adapter is not None or not self.is_discarded

    @property
    def is_discarded(self) -> bool:
        """Whether the run deleted its folder, or was killed while it did."""
        return _is_discarded(Path(self.location))

    @property
    def location_is_there(self) -> bool:
        """Whether the whole model can be read, and not only an adapter of it."""
        return not self.is_discarded

    def measured(self, stage: str) -> str | None:
        """The digest of inputs for which ``stage`` had measured this iterate when it was deleted, or None."""
        return read_manifest(Path(self.location).parent).measured.get(stage)

    def how_to_train_again(self) -> str:
        """What to delete, so that a repeated command trains a deleted iterate and the deleted ones it started from."""
        place = Path(self.location).parent
        manifests = [place / MANIFEST]
        for number in range(int(self.name.rpartition("-")[2]) - 1, 0, -1):
            earlier = place.parent / f"iterate-{number}"
            if not _is_discarded(earlier / "model"):
                break
            manifests.insert(0, earlier / MANIFEST)
        return f"delete {' and '.join(map(str, manifests))}, and the same command trains {self.name} again"


def _is_discarded(model: Path) -> bool:
    beside = model.parent / MANIFEST
    return beside.is_file() and model.name in read_manifest(model.parent).deleted


class LoadedIterate:
    """An iterate in memory, with the engine that scores and the generator that answers.

    Attributes:
        template: name of the chat template.
        generation_prompt: how prompts end; see the recipe.
        template_options: variables of the template; see the recipe.
        adapted: the model with the adapter that is trained; None when all weights are.
    """

    def __init__(
        self,
        iterate: Iterate,
        loaded: LoadedModel,
        template: str,
        engine: LogProbEngine,
        adapted: PeftModel | None = None,
        generator: str | None = None,
        generation_prompt: GenerationPrompt = "served",
        template_options: TemplateOptions | None = None,
    ) -> None:
        self.iterate, self.loaded, self.template, self.adapted = iterate, loaded, template, adapted
        self.engine, self.generation_prompt, self.template_options = engine, generation_prompt, template_options or {}
        self.generator: Generator = build_generator(engine, loaded.tokenizer, self.renderer("last").stop_ids, generator)
        self.serve: Callable[[LoadedIterate], Generator] | None = None
        """Makes the generator of another engine, for the iterate as it is on disk; None for the built-in one."""
        self._served: tuple[str, Generator] | None = None

    @property
    def writer(self) -> Generator:
        """What writes the answers of the iterate as it is on disk: the engine that the recipe names.

        ``generator`` writes with the weights in memory, also while they are trained.
        """
        if self.serve is None:
            return self.generator
        if self._served is None or self._served[0] != self.iterate.digest:
            self._served = self.iterate.digest, self.serve(self)
        return self._served[1]

    def renderer(self, turns: Turns) -> RowRenderer:
        """What writes conversations as tokens of this model; ``turns`` says which assistant turns are trained."""
        return self.loaded.renderer(self.template, turns, self.generation_prompt, self.template_options)

    def save(self, folder: Path) -> None:
        """Writes a Hugging Face folder with the template and stop tokens of training. An adapter is merged for good."""
        if not self.loaded.encoder_decoder:
            keep_template(self.loaded.tokenizer, self.template, self.template_options)
        model = self.loaded.model if self.adapted is None else merge(self.adapted)
        stop_ids = self.renderer("last").stop_ids
        save_folder(model, self.loaded.tokenizer, folder, self.loaded.source, stop_ids)
