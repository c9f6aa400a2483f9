"""Reads the recipe's sources, mixes its tasks, and splits both into training and held-out examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from spintune.data.columns import ColumnMap
from spintune.data.formats import AUTO
from spintune.data.sources import Collection, Source, read_sources
from spintune.data.split import (
    TENTH,
    WithoutHeldoutTurns,
    split_examples,
    split_unseen,
    without_prompts_of,
    without_trained_turns,
)
from spintune.data.tables import source_digest
from spintune.errors import DataError, SpintuneError
from spintune.mixtures.mixture import Mixture, load_mixture
from spintune.mixtures.report import materialize
from spintune.models.loading import load_tokenizer
from spintune.progress import Progress, Silent, unless_quick
from spintune.recipe import SYNTH, HeldoutSection, Recipe
from spintune.record_files import Joined, RecordFile, Selection
from spintune.records import Example, write_records
from spintune.results import DataFacts
from spintune.run_models import training_files
from spintune.stages.context import RunContext
from spintune.stages.synth import examples_file
from spintune.typed_json import JsonObject

_STRIDE = 1000  # examples between two reports of progress
HELDOUT_PROMPT = "heldout_prompt"
"""Why a training example is dropped whose prompt is in data.heldout."""


@dataclass(frozen=True)
class DataOutcome:
    """Training and held-out examples, and what happened to every row that was read."""

    train: Sequence[Example]
    heldout: Sequence[Example]
    facts: DataFacts


def data_stage(context: RunContext) -> DataFacts:
    """Writes data/train.jsonl and data/heldout.jsonl; returns how many rows went where.

    With ``spin.prompts``, data/seen.jsonl and data/unseen.jsonl are written too: the training examples that SFT sees,
    and those that it does not.
    """
    recipe = context.recipe
    mixture, given = mixture_of(recipe, context.cache), recipe.data.heldout
    inputs = {
        "data": [_set(section) for section in context.settings["data"]["train"]],
        "fraction": recipe.data.eval_fraction,
        "most": recipe.data.eval_limit,
        "seed": recipe.seed,
        "contents": [source_digest(source.path, source.split) for source in sources_of(recipe)],
        "mixture": mixture and _mixture_inputs(context, mixture),
        **({"heldout": [_heldout_inputs(source) for source in heldout_sources_of(recipe)]} if given else {}),
        **_set({"on_bad_row": recipe.data.on_bad_row}),
        **({"turns": "all"} if recipe.learns_every_turn else {}),
        **({"unseen": _unseen_share(recipe)} if context.prompts else {}),
    }
    facts = context.run.finished("data", inputs, DataFacts)
    if facts is None:
        data = read_data(recipe, mixture, context.progress)
        _write(context.train_file, data.train, context.progress)
        _write(context.heldout_file, data.heldout, context.progress)
        files, facts = [context.train_file, context.heldout_file], data.facts
        if context.prompts:
            question = mixture.question if mixture else lambda example: None
            share = _unseen_share(recipe)
            seen, unseen = split_unseen(context.train, share, recipe.seed, question, context.progress)
            _write(context.seen_file, seen, context.progress)
            _write(context.unseen_file, unseen, context.progress)
            files += [context.seen_file, context.unseen_file]
            facts = replace(facts, seen=len(seen), unseen=len(unseen))
            context.progress.note(f"{facts.training}; self-play plays on those {_PLAYED[context.prompts]}")
        context.run.finish("data", inputs, files, facts)
        if facts.heldout:
            _warn_of_trained_prompts(context)
    return facts


def _warn_of_trained_prompts(context: RunContext) -> None:
    """Says how many held-out prompts the recipe's model was trained on, where a run on this machine trained it."""
    try:
        _count_trained_prompts(context)
    except (SpintuneError, OSError) as error:  # in files of another run, which this one can do without
        context.progress.note(f"whether {context.recipe.model} was trained on held-out prompts is not known: {error}")


def _count_trained_prompts(context: RunContext) -> None:
    for run, file in training_files(context.recipe.model).items():
        fresh = without_prompts_of(context.heldout, RecordFile(file, Example), context.progress)
        if known := len(context.heldout) - len(fresh):
            context.progress.note(
                f"{known:,} of {len(context.heldout):,} held-out examples have prompts that {context.recipe.model} was "
                f"trained on, which flatters it; hold out what its run did: data.heldout={run}/data/heldout.jsonl, "
                "or the same seed and data.eval_fraction"
            )


def _write(path: Path, examples: Sequence[Example], progress: Progress) -> None:
    with unless_quick(progress, len(examples)).task(f"writing {path.name}", len(examples), "examples") as task:

        def counted() -> Iterator[Example]:
            for number, example in enumerate(examples, 1):
                yield example
                if number % _STRIDE == 0:
                    task.advance(_STRIDE)
            task.advance(len(examples) % _STRIDE)

        write_records(path, counted())


_PLAYED = {"seen": "that it sees", "unseen": "that it does not see"}


def _unseen_share(recipe: Recipe) -> float:
    share = recipe.spin and recipe.spin.unseen_share
    return share or 0.5


def read_data(
    recipe: Recipe,
    mixture: Mixture | None,
    progress: Progress = Silent(),  # noqa: B008
) -> DataOutcome:
    """The examples of a recipe's sources, and of its mixture, which :func:`mixture_of` loads."""
    sources = sources_of(recipe)
    collection = read_sources(sources, recipe.seed, progress) if sources else Collection(())
    train: Sequence[Example]
    heldout: Sequence[Example]
    dropped = collection.dropped
    if recipe.data.heldout:
        given = read_sources(heldout_sources_of(recipe), recipe.seed, progress)
        train, heldout, dropped = collection.examples, given.examples, dropped + given.dropped
        collection = Collection((*collection.sources, *given.sources))
    else:
        train, heldout = split_examples(
            collection.examples, recipe.data.eval_fraction, recipe.seed, recipe.data.eval_limit, progress
        )
    # a source with a weight above 1 repeats rows; judging one twice would only narrow the intervals
    before, heldout = len(heldout), _distinct(heldout)
    repeated = collection.repeated - (before - len(heldout))
    report = None
    if recipe.data.mixture and mixture:
        mixed = materialize(mixture, recipe.data.mixture.examples, progress)
        tested = mixture.heldout(recipe.data.mixture.heldout_rows)
        train = Joined([train, mixed.examples])
        heldout = _distinct(Joined([heldout, [element.example() for element in tested]]))
        report = mixed.report
    if report or recipe.data.heldout:  # two sources may have a prompt in common
        before = len(train)
        train = _apart(train, heldout, progress)
        dropped = dropped + Counter({HELDOUT_PROMPT: before - len(train)})
    if recipe.learns_every_turn:  # and an earlier turn may be another conversation's last
        train = WithoutHeldoutTurns(train, heldout)
        heldout = without_trained_turns(heldout, train, progress)
    facts = DataFacts(
        mixture=report,
        read=collection.read,
        repeated=repeated,
        dropped=dict(dropped),
        train=len(train),
        heldout=len(heldout),
        trimmed=collection.trimmed or None,
        ignored_keys=dict(collection.ignored),
    )
    return DataOutcome(train, heldout, facts)


def _apart(examples: Sequence[Example], heldout: Sequence[Example], progress: Progress) -> Sequence[Example]:
    """The examples to train on. Raises DataError when none is left."""
    train = without_prompts_of(examples, heldout, progress)
    if examples and not train:
        raise DataError(
            "every training example has a held-out prompt, so none is left to train on; "
            "name other data in data.train or data.heldout, or another split of it"
        )
    if dropped := len(examples) - len(train):
        progress.note(f"{dropped:,} of {len(examples):,} examples are not trained on: held-out ones have their prompts")
    return train


def _distinct(examples: Sequence[Example]) -> Sequence[Example]:
    places: dict[str, int] = {}
    for place, example in enumerate(examples):
        places.setdefault(example.id, place)
    return Selection(examples, places.values())


def mixture_of(recipe: Recipe, cache: Path) -> Mixture | None:
    """The mixture of a recipe, which counts tokens with the model's tokenizer; None if the recipe has none."""
    data = recipe.data
    if data.mixture is None:
        return None
    tokenizer = load_tokenizer(recipe.model, cache=cache).backend_tokenizer

    def count_tokens(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False).ids)

    longest = data.max_input_length or data.max_length
    fraction = TENTH if data.eval_fraction is None else data.eval_fraction  # of each task
    return load_mixture(data.mixture, recipe.seed, fraction, longest, count_tokens, data.bad_row_policy)


def _set(settings: JsonObject) -> JsonObject:
    """Without keys that are not set and that earlier versions did not have, whose finished stages stay so."""
    return {key: value for key, value in settings.items() if value is not None or key == "limit"}


def sources_of(recipe: Recipe) -> list[Source]:
    """The recipe's sources; the one called ``synth`` is the file that the synth stage writes."""
    generated = str(examples_file(Path(recipe.out)))
    default = {"on_bad_row": recipe.data.bad_row_policy}
    sources = [
        Source(**{**default, **section.model_dump(exclude_none=True), "columns": section.columns})
        for section in recipe.data.train
    ]
    return [replace(source, path=generated) if source.path == SYNTH else source for source in sources]


def heldout_sources_of(recipe: Recipe) -> list[Source]:
    """The recipe's sources of held-out examples. Unsaid, format and columns are those that training sources share.

    Columns that decide a format take the place of a shared format, and a format that of columns that decide another.
    """
    shared: JsonObject = {}
    for key in ("format", "columns"):
        values = [getattr(section, key) for section in recipe.data.train]
        if values and all(value == values[0] for value in values):
            shared[key] = values[0]
    default = {"on_bad_row": recipe.data.bad_row_policy, **shared}
    sources = []
    for one in recipe.data.heldout or ():
        given = _given(one)
        source = Source(**{**default, "split": one.split, **given})
        decided = ColumnMap(source.columns or {}).format
        if decided and source.format not in (AUTO, decided):
            source = replace(source, format=AUTO) if "format" not in given else source
            source = replace(source, columns=None) if "columns" not in given else source
        sources.append(source)
    return sources


def _given(section: HeldoutSection) -> JsonObject:
    """The settings of a source that its recipe names."""
    return {key: value for key in section.model_fields_set if (value := getattr(section, key)) is not None}


def _heldout_inputs(source: Source) -> JsonObject:
    return {**_set(asdict(source)), "content": source_digest(source.path, source.split)}


def _mixture_inputs(context: RunContext, mixture: Mixture) -> JsonObject:
    """What decides the examples of a mixture."""
    data = context.settings["data"]
    lengths = {key: data[key] for key in ("max_length", "max_input_length")}
    contents = [pool.task.digest for pool in mixture.pools]
    model = str(Path(context.recipe.model))  # without a trailing slash
    return {**data["mixture"], "folder": None, "model": model, **lengths, "contents": contents}
