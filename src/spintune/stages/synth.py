"""A teacher writes instruction data: seed tasks, requests, replies, filters, files.

::

    synth/replies.sqlite    every reply, so that nothing is asked or paid twice
    synth/examples.jsonl    what was kept, each row with its provenance; data.train: synth reads it
    synth/alpaca.json       the same for other tools (or chat.jsonl, or examples.parquet)
    synth/card.md, .json    what is in it, for people to read before they train on it; openings.svg is its figure
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from spintune.data.contamination import decontaminate, text_of
from spintune.data.novelty import NoveltyIndex
from spintune.data.sources import Source, read_sources, source_digest
from spintune.errors import BudgetError, DataError
from spintune.recipe import SynthSection
from spintune.stages.context import Iterate, RunContext
from spintune.stages.endpoints import budget_of, endpoint_teacher, local_teacher
from spintune.storage import atomic_file, write_json, write_json_lines
from spintune.synthesis.alpaca import ALPACA_DECODING, alpaca_method
from spintune.synthesis.bootstrap import BootstrapMethod, bootstrap
from spintune.synthesis.card import as_markdown, describe
from spintune.synthesis.decoding import DecodingSettings
from spintune.synthesis.examples import GeneratedExample, SeedTask, read_seeds
from spintune.synthesis.figure import openings_figure
from spintune.synthesis.filters import KEYWORDS, FilterCounts, FilterRules
from spintune.synthesis.self_instruct import (
    INSTANCE_DECODING,
    INSTRUCTION_DECODING,
    Instances,
    self_instruct_method,
)
from spintune.teachers.cached import CachedTeacher
from spintune.teachers.replies import Replies
from spintune.tracking import Stopwatch


def synth_stage(context: RunContext, section: SynthSection, base: Iterate) -> dict[str, Any]:
    """Writes synth/examples.jsonl; what was asked, dropped and kept.

    A stage that its budget ended is not done: the same command with a larger budget goes on from there.
    """
    folder = context.run.folder / "synth"
    inputs = {
        "synth": context.settings["synth"],
        "seeds": source_digest(Source(section.seeds)),
        "evaluation": [source_digest(Source(path)) for path in _evaluation(section)],
        "teacher": None if section.teacher else base.digest,
        "template": None if section.teacher else context.settings["data"]["template"],
        "precision": None if section.teacher else context.recipe.precision,
        "seed": context.recipe.seed,
    }
    facts = context.run.finished("synth", inputs)
    if facts is not None:
        return facts
    # a mistake in these shows now, not after everything is paid for
    seeds, evaluation = read_seeds(section.seeds), _evaluation_texts(section)
    clock = Stopwatch()
    with clock("write"), Replies(folder / "replies.sqlite") as replies:
        teacher = (
            endpoint_teacher(context, section.teacher, section.teacher.url, replies)
            if section.teacher
            else local_teacher(context, context.recipe.model, context.load(base))
        )
        asker = CachedTeacher(teacher, replies)
        written, funnels, stopped = _write(context, section, seeds, asker)
        spent = asker.spent
    written, removed = _clean(section, evaluation, written, funnels)
    if not written and asker.exhausted:
        raise BudgetError(f"no example was finished: {asker.exhausted}")
    if not written:
        raise DataError(f"{folder}: none of the teacher's tasks is of use; the replies are kept in replies.sqlite")
    budget = budget_of(section.teacher)
    facts = {
        "teacher": teacher.name,
        "method": section.method,
        "seeds": section.seeds,
        "examples": len(written),
        "instructions": len({one.task.instruction for one in written}),
        "funnel": [funnel.to_json() for funnel in funnels],
        "stopped": stopped,
        "cost": {**asdict(spent), "dollars": budget.cost(spent)},
        "seconds": clock.seconds,
    }
    told = {key: value for key, value in facts.items() if key not in ("seconds", "funnel")} | {
        "decontaminated": removed
    }
    card = describe(written, seeds, funnels, section.filters.novelty_tokens, context.recipe.seed, told)
    files = _publish(folder, section, written, card)
    if asker.exhausted is None:
        context.run.finish("synth", inputs, files, facts)
    return facts


def examples_file(folder: Path) -> Path:
    """What the stage of a run folder wrote."""
    return folder / "synth" / "examples.jsonl"


# What is written ----------------------------------------------------------------------------------------------------


def _write(
    context: RunContext, section: SynthSection, seeds: Sequence[SeedTask], asker: CachedTeacher
) -> tuple[list[GeneratedExample], list[FilterCounts], str | None]:
    """What the teacher wrote and was kept, what became of everything else, and why it ended early, if it did."""
    filters, recipe = section.filters, context.recipe
    unicode = filters.novelty_tokens == "unicode"
    rules = FilterRules(
        fewest=filters.fewest_words,
        most=filters.most_words,
        tokeniser=filters.novelty_tokens,
        keywords=KEYWORDS[section.method] if filters.keywords is None else tuple(filters.keywords),
        starts=tuple(filters.starts),
        ascii_start=not unicode if filters.ascii_start is None else filters.ascii_start,
        refusals=filters.refusals,
    )
    decoding = _changed(INSTANCE_DECODING, max_tokens=section.instance_tokens)
    instances = Instances(asker, rules, decoding, recipe.seed)
    whole = section.method == "alpaca"
    pool = bootstrap(
        asker,
        _method(section),
        seeds,
        rules,
        NoveltyIndex(filters.novelty, filters.novelty_tokens),
        section.instructions,
        section.requests_per_round,
        section.patience,
        recipe.seed,
        (lambda tasks: None) if whole else instances.add,
        context.progress,
    )
    funnels = [pool.replies, pool.candidates]
    if whole:
        return pool.written, funnels, pool.stopped
    return instances.examples, [*funnels, instances.sorting, instances.replies, instances.instances], pool.stopped


def _method(section: SynthSection) -> BootstrapMethod:
    keys = ("temperature", "top_p", "presence_penalty", "max_tokens")
    changes = {key: getattr(section, key) for key in keys if getattr(section, key) is not None}
    if section.method == "alpaca":
        return alpaca_method(_changed(ALPACA_DECODING, **changes))
    return self_instruct_method(_changed(INSTRUCTION_DECODING, **changes))


def _changed(decoding: DecodingSettings, **changes: Any) -> DecodingSettings:
    return DecodingSettings(**{**asdict(decoding), **changes})


def _evaluation(section: SynthSection) -> list[str]:
    return section.decontaminate.files if section.decontaminate else []


def _evaluation_texts(section: SynthSection) -> dict[str, list[str]]:
    """Two texts of each item of every evaluation file: its prompt, and prompt and answer together.

    The prompt counts by itself, because one that is shorter than an n-gram is looked up whole: with its answer behind
    it, it would be found only where a teacher gave the same answer.
    """
    return {
        path: [
            text
            for example in read_sources([Source(path)], 0).examples
            for text in ("\n\n".join(message.content for message in example.prompt), text_of(example))
        ]
        for path in _evaluation(section)
    }


def _clean(
    section: SynthSection,
    evaluation: Mapping[str, Sequence[str]],
    written: list[GeneratedExample],
    funnels: list[FilterCounts],
) -> tuple[list[GeneratedExample], list[dict[str, Any]]]:
    """Takes out what shares a run of words with evaluation data, and says what that was."""
    if section.decontaminate is None:
        return written, []
    _, removed = decontaminate([one.example for one in written], evaluation, section.decontaminate.ngram)
    gone = {one.row for one in removed}
    funnel = FilterCounts("decontamination", "examples")
    funnel.drop("in_evaluation_data", len(gone))
    funnel.keep(len(written) - len(gone))
    funnels.append(funnel)
    rows = [{**asdict(one), "item": one.item // 2, "instruction": written[one.row].task.instruction} for one in removed]
    return [one for place, one in enumerate(written) if place not in gone], rows


# Files --------------------------------------------------------------------------------------------------------------


def _publish(
    folder: Path, section: SynthSection, written: Sequence[GeneratedExample], card: dict[str, Any]
) -> list[Path]:
    rows = [one.to_json() for one in written]
    examples = folder / "examples.jsonl"
    write_json_lines(examples, rows)
    match section.format:
        case "alpaca":
            shared = folder / "alpaca.json"
            write_json(shared, rows)
        case "chat":
            shared = folder / "chat.jsonl"
            conversations = [[asdict(message) for message in one.example.messages] for one in written]
            write_json_lines(
                shared,
                [{"messages": m, "provenance": r["provenance"]} for m, r in zip(conversations, rows, strict=True)],
            )
        case "parquet":
            shared = folder / "examples.parquet"
            _write_parquet(shared, rows)
    write_json(folder / "card.json", card)
    for name, text in (("card.md", as_markdown(card)), ("openings.svg", openings_figure(card["openings"]))):
        with atomic_file(folder / name) as file:
            file.write(text.encode())
    return [examples, shared, *(folder / name for name in ("card.json", "card.md", "openings.svg"))]


def _write_parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    import pyarrow
    import pyarrow.parquet

    with atomic_file(path) as file:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), file)
