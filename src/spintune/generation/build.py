"""Which generator a model gets: the fastest that is right for it, or one that a user registers."""

from __future__ import annotations

from functools import partial

from transformers import PreTrainedTokenizerBase

from spintune.engine.logprobs import LogProbEngine
from spintune.engine.paths import ModelPaths, ScorePath, length_phrases
from spintune.generation.batch import BatchGenerator
from spintune.generation.checked import DEFINITION, CheckedGenerator, GeneratorFactory
from spintune.generation.plain import PlainGenerator
from spintune.generation.protocol import Generator
from spintune.plugins import Table

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

    A built-in one is checked against plain forwards when it is first asked, and a slower one takes over where it
    differs. Without a slower one, because it was named or because there is none, that raises ModelError.

    Raises RecipeError when no generator has that name, ModelError when the model does not suit it.
    """
    if name is None:
        return _checked(engine, tokenizer, stop_ids)
    generator = GENERATORS[name](engine, tokenizer, stop_ids)  # what it refuses, it refuses now
    if GENERATORS[name] not in (BatchGenerator, PlainGenerator):
        return generator  # what a user's own generator draws from is the user's choice
    return CheckedGenerator(engine, tokenizer, stop_ids, {name: GENERATORS[name]})


def _checked(engine: LogProbEngine, tokenizer: PreTrainedTokenizerBase, stop_ids: frozenset[int]) -> CheckedGenerator:
    candidates: dict[str, GeneratorFactory] = {"batch": BatchGenerator} if engine.packed else {}
    candidates |= {"plain": PlainGenerator, DEFINITION: partial(PlainGenerator, cached=False)}
    return CheckedGenerator(engine, tokenizer, stop_ids, candidates)


def find_paths(engine: LogProbEngine, tokenizer: PreTrainedTokenizerBase, name: str | None = None) -> ModelPaths:
    """How the engine scores and generates, as its checks found out; a generator of a ``name`` is the user's choice.

    Raises ModelError when no generator of this package is right for the model.
    """
    if name is None:
        generation, _, why = _checked(engine, tokenizer, frozenset()).chosen
    else:
        generation, why = name, "the recipe names it"
    scores: ScorePath = "packed" if engine.packed else "one row at a time"
    return ModelPaths(scores, engine.why, generation, why, length_phrases(engine))
