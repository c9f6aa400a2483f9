"""The stage ``synth``: a teacher writes instruction data from seed tasks.

::

    synth/replies.sqlite    every reply, so that nothing is asked or paid twice
    synth/examples.jsonl    the examples kept, each row with its provenance; data.train: synth reads it
    synth/alpaca.json       the same for other tools (or chat.jsonl, or examples.parquet)
    synth/card.md, .json    a description of the examples, to read before training on them; openings.svg is its figure
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from spintune.data.tables import source_digest
from spintune.recipe import SynthSection
from spintune.results import SynthFacts
from spintune.stages.context import RunContext
from spintune.stages.endpoints import budget_of, local_teacher, named_teacher
from spintune.stages.iterates import Iterate
from spintune.storage import atomic_file, write_json, write_json_lines
from spintune.synthesis.alpaca import ALPACA_DECODING
from spintune.synthesis.card import SynthesisCard, as_markdown, describe
from spintune.synthesis.decoding import DecodingSettings
from spintune.synthesis.examples import GeneratedExample, read_seeds
from spintune.synthesis.figure import openings_figure
from spintune.synthesis.files import export_examples
from spintune.synthesis.filters import KEYWORDS, FilterRules
from spintune.synthesis.pipeline import EvaluationTexts, SynthesisOptions, synthesize
from spintune.synthesis.self_instruct import INSTANCE_DECODING, INSTRUCTION_DECODING
from spintune.teachers.protocol import Teacher
from spintune.teachers.replies import Replies
from spintune.tracking import Stopwatch
from spintune.typed_json import from_json, to_json


def synth_stage(context: RunContext, section: SynthSection, base: Iterate) -> SynthFacts:
    """Writes synth/examples.jsonl. Returns what was asked, dropped and kept.

    A stage that ran out of budget is not finished: the same command with a larger budget continues from there.
    """
    folder = context.run.folder / "synth"
    inputs = _inputs(context, section, base)
    facts = context.run.finished("synth", inputs, SynthFacts)
    if facts is not None:
        return facts
    # read before anything is asked: a mistake in these files must not show only after everything is paid for
    seeds, options = read_seeds(section.seeds), _options(section)
    clock = Stopwatch()
    with clock("write"), Replies(folder / "replies.sqlite") as replies:
        teacher = _teacher(context, section, base, replies)
        target, method, seed = section.instructions, section.method, context.recipe.seed
        result = synthesize(seeds, teacher, target, method, seed, replies, options, context.progress)
    budget, words = budget_of(section.teacher), section.filters.novelty_tokens
    card = describe(result, seeds, section.seeds, budget, words, seed)
    files = _publish(folder, section, result.examples, card)
    facts = from_json(SynthFacts, {**to_json(card), "seconds": clock.seconds}, folder)
    if not result.budget_used_up:
        context.run.finish("synth", inputs, files, facts)
    return facts


def examples_file(folder: Path) -> Path:
    """Where the stage of a run folder writes its examples."""
    return folder / "synth" / "examples.jsonl"


def _inputs(context: RunContext, section: SynthSection, base: Iterate) -> dict[str, object]:
    evaluation = section.decontaminate.files if section.decontaminate else []
    options = context.recipe.data.template_options
    return {
        "synth": context.settings["synth"],
        "seeds": source_digest(section.seeds),
        "evaluation": [source_digest(path) for path in evaluation],
        "teacher": None if section.teacher else base.digest,
        "template": None if section.teacher else context.settings["data"]["template"],
        "precision": None if section.teacher else "auto",  # as in RunContext.model_inputs
        "seed": context.recipe.seed,
        **({"template_options": options} if options and section.teacher is None else {}),
    }


def _teacher(context: RunContext, section: SynthSection, base: Iterate, replies: Replies) -> Teacher:
    if section.teacher is None:
        return local_teacher(context, context.recipe.model, context.load(base))
    return named_teacher(context, section.teacher, replies)


def _options(section: SynthSection) -> SynthesisOptions:
    filters = section.filters
    evaluation = section.decontaminate
    return SynthesisOptions(
        requests_per_round=section.requests_per_round,
        patience=section.patience,
        decoding=_decoding(section),
        instance_decoding=replace(INSTANCE_DECODING, max_tokens=section.instance_tokens),
        rules=FilterRules(
            min_words=filters.fewest_words,
            max_words=filters.most_words,
            word_rule=filters.novelty_tokens,
            keywords=KEYWORDS[section.method] if filters.keywords is None else tuple(filters.keywords),
            starts=tuple(filters.starts),
            ascii_start=filters.novelty_tokens != "unicode" if filters.ascii_start is None else filters.ascii_start,
            refusals=filters.refusals,
            novelty=filters.novelty,
        ),
        evaluation=EvaluationTexts.read(evaluation.files, evaluation.ngram) if evaluation else None,
    )


def _decoding(section: SynthSection) -> DecodingSettings:
    """The method's own settings, with those that the recipe gives."""
    default = ALPACA_DECODING if section.method == "alpaca" else INSTRUCTION_DECODING
    given = {key: value for key in asdict(default) if (value := getattr(section, key)) is not None}
    return replace(default, **given)


def _publish(
    folder: Path, section: SynthSection, examples: Sequence[GeneratedExample], card: SynthesisCard
) -> list[Path]:
    """Writes the files of the stage and returns their paths."""
    rows = examples_file(folder.parent)
    write_json_lines(rows, [one.to_json() for one in examples])
    exported = export_examples(folder, examples, section.format)
    write_json(folder / "card.json", to_json(card))
    for name, text in (("card.md", as_markdown(card)), ("openings.svg", openings_figure(card.openings))):
        with atomic_file(folder / name) as file:
            file.write(text.encode())
    return [rows, exported, *(folder / name for name in ("card.json", "card.md", "openings.svg"))]
