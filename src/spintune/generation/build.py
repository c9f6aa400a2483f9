"""Which generator a model gets: the fastest that is right for it, or one that a user registers."""

from __future__ import annotations

from collections.abc import Callable

from transformers import PreTrainedTokenizerBase

from spintune.engine.logprobs import LogProbEngine
from spintune.engine.paths import ModelPaths
from spintune.generation.batch import BatchGenerator
from spintune.generation.plain import PlainGenerator
from spintune.generation.protocol import Generator
from spintune.plugins import Table

GeneratorFactory = Callable[[LogProbEngine, PreTrainedTokenizerBase, frozenset[int]], Generator]
"""Makes a generator of an engine (its model, precision and settings), a tokenizer and the ids that end an answer."""

GENERATORS: Table[GeneratorFactory] = Table(
    "generator", "spintune.generators", {"batch": BatchGenerator, "plain": PlainGenerator}
)


def register_generator(name: str, factory: GeneratorFactory) -> None:
    """Offers a generator under ``name``; other packages do so with an entry point of the group ``spintune.generators``.

    Raises RecipeError when the name is taken by another factory.
    """
    GENERATORS.register(name, factory)


def build_generator(
    engine: LogProbEngine, tokenizer: PreTrainedTokenizerBase, stop_ids: frozenset[int], name: str | None = None
) -> Generator:
    """The generator called ``name``, or without a name the fastest built-in one that is right for the engine's model.

    Raises RecipeError when no generator has that name, ModelError when the model does not suit it.
    """
    return GENERATORS[name or ("batch" if engine.packed else "plain")](engine, tokenizer, stop_ids)


def find_paths(engine: LogProbEngine, tokenizer: PreTrainedTokenizerBase) -> ModelPaths:
    """How the engine scores and generates, as its checks found out.

    Raises ModelError when no generator of this package is right for the model.
    """
    if engine.packed:
        return ModelPaths("packed", engine.why, "batch", "it scores packed rows")
    return ModelPaths("one row at a time", engine.why, "plain", "it cannot be packed")
