"""How many rows a recipe trains on and how long they are, by the recipe's own readers; a sample where data is large."""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from spintune.data.sources import read_sources
from spintune.data.split import usual_fraction
from spintune.data.tables import open_tables
from spintune.errors import DataError
from spintune.models.loading import load_stop_ids, load_tokenizer
from spintune.plan.shapes import ModelShape
from spintune.progress import Progress
from spintune.recipe import SYNTH, DataSection, Recipe
from spintune.recipe.recipe import SourceSection
from spintune.record_files import Selection
from spintune.records import Example
from spintune.stages.data import heldout_sources_of, mixture_of, read_data
from spintune.tokens.rendering import build_renderer
from spintune.tokens.rows import render

READ_WHOLE = 64 * 2**20
"""Data files up to this size are read whole. [bytes]"""
_SAMPLED_ROWS = 2_000
_RENDERED = 5_000
_CHARACTERS = 4
"""Of a token, where there is no tokenizer: common for English in vocabularies of 30,000 to 130,000 tokens."""


@dataclass(frozen=True)
class RowSizes:
    """Rows that stand for all rows of a stage.

    Attributes:
        prompts, answers: tokens of each.
        each: how many rows each of them stands for.
    """

    prompts: tuple[int, ...]
    answers: tuple[int, ...]
    each: float = 1.0

    @property
    def rows(self) -> int:
        return round(len(self.prompts) * self.each)

    @property
    def lengths(self) -> list[int]:
        """Prompt and answer together."""
        return [prompt + answer for prompt, answer in zip(self.prompts, self.answers, strict=True)]

    @property
    def mean_answer(self) -> float:
        return sum(self.answers) / max(1, len(self.answers))


@dataclass(frozen=True)
class PlannedRows:
    """The rows of a recipe's stages.

    Attributes:
        sft, spin: what each trains on, within its lengths.
        heldout: examples kept out.
        how: where the numbers are from, a sentence.
        exact: whether every row was read and counted in tokens.
    """

    sft: RowSizes
    spin: RowSizes
    heldout: int
    how: str
    exact: bool


def assumed_rows(recipe: Recipe, rows: int, tokens: int) -> PlannedRows:
    """Rows that the user states, with ``tokens`` each, a third of them of the prompt."""
    stated, tokens = tokens, min(tokens, recipe.data.max_length)
    held = _heldout(recipe, rows)
    trained = rows if recipe.data.heldout else rows - held
    shape = RowSizes((tokens // 3 or 1,) * 8, (tokens - (tokens // 3 or 1),) * 8, trained / 8)
    cut = f", cut to data.max_length {tokens:,}" if tokens < stated else ""
    how = f"{rows:,} rows of {stated:,} tokens as you say{cut}"
    return PlannedRows(_part(recipe, "sft", shape), _part(recipe, "spin", shape), held, how, False)


def read_rows(recipe: Recipe, shape: ModelShape, cache: Path, progress: Progress) -> PlannedRows:
    """The rows of a recipe's data. Raises DataError where there is none to read, as a run would."""
    if any(source.path == SYNTH for source in recipe.data.train) and recipe.synth:
        count = recipe.synth.instructions
        planned = assumed_rows(recipe, count, min(256, recipe.data.max_length))
        if recipe.data.heldout:
            given = read_sources(heldout_sources_of(recipe), recipe.seed, progress)
            planned = replace(planned, heldout=len(given.examples))
        return replace(planned, how=f"{count:,} instructions that the teacher is asked for, taken as 256 tokens each")
    with tempfile.TemporaryDirectory() as folder:
        sampled, factor = _sampled(recipe, Path(folder), progress)
        named = sampled.model_copy(update={"model": shape.folder}) if shape.folder else sampled
        if named.data.mixture and not shape.folder:
            raise DataError(
                f"data.mixture: its lengths are counted by the tokenizer of {recipe.model}, which is not here"
            )
        found = read_data(named, mixture_of(named, cache), progress)
    count = len(found.train)
    step = max(1, -(-count // _RENDERED))
    examples = found.train if step == 1 else Selection(found.train, range(0, count, step))
    lengths = _rendered if shape.folder else _by_characters
    sft = lengths(recipe, shape, cache, examples, None, progress)
    played = lengths(recipe, shape, cache, examples, recipe.spin.longest_answer, progress) if recipe.spin else sft
    each = factor * step
    how = "all rows were read" if each == 1 else f"{len(examples):,} of about {round(count * factor):,} rows were read"
    how += (
        ""
        if shape.folder
        else f"; {_CHARACTERS} characters are taken as a token, since {shape.name} has no tokenizer here"
    )
    return PlannedRows(
        _part(recipe, "sft", replace(sft, each=each)),
        _part(recipe, "spin", replace(played, each=each)),
        len(found.heldout)
        if factor == 1 or recipe.data.heldout
        else min(round(len(found.heldout) * factor), recipe.data.eval_limit),
        how,
        each == 1 and shape.folder is not None,
    )


def _part(recipe: Recipe, stage: str, rows: RowSizes) -> RowSizes:
    """The share of the rows that a stage sees, with spin.prompts."""
    spin = recipe.spin
    if spin is None or spin.prompts is None:
        return rows
    unseen = spin.unseen_share or 0.5
    share = unseen if stage == "spin" and spin.prompts == "unseen" else 1 - unseen
    return replace(rows, each=rows.each * share)


def _heldout(recipe: Recipe, rows: int) -> int:
    fraction = recipe.data.eval_fraction
    return min(round((usual_fraction(rows) if fraction is None else fraction) * rows), recipe.data.eval_limit)


def _sampled(recipe: Recipe, folder: Path, progress: Progress) -> tuple[Recipe, float]:
    """The recipe, with the first rows of its data in files of their own where the data is large, and the factor."""
    sources = recipe.data.train
    paths = [Path(source.path) for source in sources]
    size = sum(path.stat().st_size for path in paths if path.is_file())
    size += sum(f.stat().st_size for path in paths if path.is_dir() for f in path.rglob("*") if f.is_file())
    if size <= READ_WHOLE:
        return recipe, 1.0
    changed: list[SourceSection] = []
    rows = taken = 0
    for number, source in enumerate(sources):
        tables = [
            opener() for opener in open_tables(source.path, source.split, source.config, progress.note, frozenset())
        ]
        total = sum(table.total for table in tables)
        numbered = itertools.chain.from_iterable(table.rows(None) for table in tables)
        first = [value for _, value in itertools.islice(numbered, _SAMPLED_ROWS) if isinstance(value, dict)]
        if not first:
            raise DataError(f"{source.path}: none of its first rows can be read; see spintune inspect")
        file = folder / f"{number}.jsonl"
        file.write_text("".join(json.dumps(value, default=str) + "\n" for value in first), encoding="utf-8")
        limit = min(total, source.limit or total)
        rows, taken = rows + round(limit * source.weight), taken + round(len(first) * source.weight)
        changed.append(source.model_copy(update={"path": str(file), "limit": None, "split": "train", "config": None}))
    data: DataSection = recipe.data.model_copy(update={"train": changed})
    return recipe.model_copy(update={"data": data}), rows / max(1, taken)


def _rendered(
    recipe: Recipe,
    shape: ModelShape,
    cache: Path,
    examples: Sequence[Example],
    longest: int | None,
    progress: Progress,
) -> RowSizes:
    """The rows as the recipe's tokenizer and template write them."""
    data, name = recipe.data, str(shape.folder)
    renderer = build_renderer(
        load_tokenizer(name, cache=cache),
        data.template,
        data.turns if longest is None else "last",
        bool(shape.config.is_encoder_decoder),
        data.generation_prompt,
        load_stop_ids(name, cache=cache),
        data.template_options,
    )
    limit = min(filter(None, (longest, data.max_target_length)), default=None)
    found = render(examples, renderer, data.max_length, limit, progress, data.max_input_length)
    sizes = [(len(row.prompt_ids), len(row.response_ids)) for row in found.rows]
    return RowSizes(tuple(prompt for prompt, _ in sizes), tuple(answer for _, answer in sizes))


def _by_characters(
    recipe: Recipe,
    shape: ModelShape,
    cache: Path,
    examples: Sequence[Example],
    longest: int | None,
    progress: Progress,
) -> RowSizes:
    data, prompts, answers = recipe.data, list[int](), list[int]()
    limit = min(filter(None, (longest, data.max_target_length)), default=data.max_length)
    for example in examples:
        prompt = 4 + sum(4 + len(message.content) // _CHARACTERS for message in example.prompt)
        answer = min(1 + len(example.answer) // _CHARACTERS, limit, data.max_length - prompt)
        if answer > 0:
            prompts.append(prompt)
            answers.append(answer)
    if not prompts:
        raise DataError(f"max_length ({data.max_length} tokens) leaves no room after any prompt; raise data.max_length")
    return RowSizes(tuple(prompts), tuple(answers))
