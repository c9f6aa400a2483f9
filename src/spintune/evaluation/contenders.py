"""What was measured of the models to be compared: of a run, of one of its models, or a file of answers."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from spintune.data.file_rows import FileRow
from spintune.errors import DataError
from spintune.evaluation.answers import StoredAnswer, answered_models, file_rows, item_ids, pair_answers, read_answers
from spintune.evaluation.comparison import MeasuredItems, Table
from spintune.evaluation.decision import read_decision
from spintune.evaluation.scores import MEASURES_FOLDER, finished_scores, read_scores
from spintune.evaluation.selection import selects
from spintune.metrics import BUILT_IN, answer_metrics
from spintune.recipe.evaluation import CHECKER
from spintune.run_folder import BASE, BASELINE, MANIFEST, SFT, iterations_of, read_manifest, read_recipe
from spintune.text.reasoning import scored_answer, without_reasoning

log = logging.getLogger(__name__)

_ADVICE = "give the answers of an evaluated run"
_OF_THE_RUN = re.compile(rf"{BASE}|{SFT}|{BASELINE}|iterate-\d+")


@dataclass(frozen=True)
class _Measured:
    """One model: what evaluations measured, and its answers to held-out examples, which are read later.

    Attributes:
        further: other measures of held-out examples: a checker's verdicts, sampled answers.
        reporting: only the examples that report are read, because the others have chosen the model of the run.
    """

    table: Table
    heldout: Path | None = None
    reporting: bool = False
    further: Table = field(default_factory=dict)


def tables(names: Sequence[str], references: Path | None = None) -> dict[str, Table]:
    """The measures of each model, by the shortest name that is unique.

    Args:
        names: run folders (all of their own models), RUN:MODEL, or files: the held-out answers of a run, or any saved
            answers.
        references: reference answers to the same prompts, for files of answers that have none.

    Raises DataError for a name that is none of these, and for a file or model without anything to compare.
    """
    good = read_answers(references) if references else []
    named = [named_contender(name) for name in names]
    short = _short_names(named)
    parts = [(one, {short[one.path]: _of_file(one.path, good)} if one.is_file else _of_run(one)) for one in named]
    files = {short[one.path] for one in named if one.is_file}
    models = {model for one, part in parts if not one.is_file for model in part}
    several = len({one.path for one in named if not one.is_file}) > 1
    found: dict[str, _Measured] = {}
    for one, part in parts:
        prefix = f"{short[one.path]}:" if not one.is_file and (several or files & models) else ""
        found |= {f"{prefix}{model}": measured for model, measured in part.items()}
    reporting = {name for name, one in found.items() if one.reporting}
    heldout = heldout_tables({name: one.heldout for name, one in found.items() if one.heldout}, reporting)
    among = {name: table["answer_tokens"].values for name, table in heldout.items()}
    return {
        name: {**heldout.get(name, {}), **_among(one.further, among.get(name, {})), **one.table}
        for name, one in found.items()
    }


def selection_notes(names: Sequence[str]) -> list[str]:
    """A sentence for each run that leaves out the held-out examples by which it chose its model."""
    runs = {one.path: one.given for one in map(named_contender, names) if not one.is_file}
    counts = {given: best.selection for run, given in runs.items() if (best := read_decision(run)) and best.selection}
    return [
        f"{given}: held-out measures are of the examples that report; {count} others chose the model of the run"
        for given, count in counts.items()
    ]


@dataclass(frozen=True)
class NamedContender:
    """A file of answers, a run folder, or one model of a run.

    Attributes:
        given: the path as it was given.
        path: the same, absolute.
        model: of RUN:MODEL; None for all models of a run, and for a file.
    """

    given: str
    path: Path
    model: str | None = None

    @property
    def is_file(self) -> bool:
        return self.path.is_file()


def named_contender(name: str) -> NamedContender:
    """What a name means. The colon of RUN:MODEL is the last one, and none where the whole name is a path."""
    run, colon, model = name.rpartition(":")
    if colon and not Path(name).exists() and Path(run).is_dir():
        return NamedContender(run, _absolute(run), model or None)
    return NamedContender(name, _absolute(name))


def _absolute(path: str) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100 - a link keeps its own name


def _short_names(named: Sequence[NamedContender]) -> dict[Path, str]:
    """The name of each folder or file without its parents, or the path as given where that name is not unique."""
    stems = {one.path: one.path.stem if one.is_file else one.path.name for one in named}
    given = {one.path: one.given for one in reversed(named)}
    return {path: stem if list(stems.values()).count(stem) == 1 else given[path] for path, stem in stems.items()}


# Runs ----------------------------------------------------------------------------------------------------------------


def _of_run(named: NamedContender) -> dict[str, _Measured]:
    """The models of a run, or the one that RUN:MODEL names."""
    folder = named.path
    if not (folder / "recipe.json").is_file():
        raise DataError(
            f"{named.given}: no run folder and no file of answers; name a run, RUN:MODEL, or a file (spintune eval "
            "makes a run of a model)"
        )
    found = {}
    best = read_decision(folder)
    reporting = bool(best and best.selection)
    for model in [named.model] if named.model else _models(folder, rivals=False):
        answers = folder / "eval" / "heldout" / model / "answers.jsonl"
        heldout = answers if answers.is_file() else None
        found[model] = _Measured(_scores(folder, model), heldout, reporting, _further(folder / "eval", model))
        if not found[model].table and not found[model].heldout:
            known = ", ".join(_models(folder, rivals=True))
            advice = f"use one of: {known}" if known else "run its recipe first, to the end"
            raise DataError(f"{folder}: nothing was measured of '{model}'; {advice}")
    return found


def _models(folder: Path, rivals: bool) -> list[str]:
    """Models of which a run measured something: its own, with ``rivals`` also those whose answers were stored."""
    scored = {model for models in finished_scores(folder).values() for model in models}
    names = sorted(name for name in {*answered_models(folder), *scored} if rivals or _OF_THE_RUN.fullmatch(name))
    last = iterations_of(read_recipe(folder).recipe)
    later = [name for name in names if name.startswith("iterate-") and int(name.removeprefix("iterate-")) > last]
    if later and not rivals:
        log.warning("%s: %s of an earlier recipe left out; RUN:MODEL names one", folder, ", ".join(later))
    return [name for name in names if rivals or name not in later]


def _scores(folder: Path, model: str) -> Table:
    found: dict[str, MeasuredItems] = {}
    for evaluation, models in finished_scores(folder).items():
        if model in models and evaluation != MEASURES_FOLDER:
            found |= read_scores(models[model]).table(f"{evaluation} ")
    return found


def _further(folder: Path, model: str) -> Table:
    """A checker's measures have its name, since those of two checkers are not the same measure."""
    place = folder / MEASURES_FOLDER / model
    if not (place / MANIFEST).is_file():
        return {}
    checker = read_manifest(place).facts.get("checker")
    told = " ".join(map(str, next(iter(checker.items())))) if isinstance(checker, dict) else str(checker)
    table = read_scores(place).table()
    return {f"{name} ({told})" if name.startswith(CHECKER) else name: items for name, items in table.items()}


def _among(table: Table, ids: Collection[str]) -> Table:
    """The measures of these items alone; none has weights."""
    return {
        name: MeasuredItems({id: one.values[id] for id in one.values if id in ids}, one.better, one.right_or_wrong)
        for name, one in table.items()
    }


# Files of answers ----------------------------------------------------------------------------------------------------


def _of_file(path: Path, good: Sequence[StoredAnswer]) -> _Measured:
    """Held-out answers of a run, which have a likelihood, or answers from anywhere."""
    if "nll" in next(iter(file_rows(path))).values:
        return _Measured({}, path)
    return _Measured(_saved_answers(path, good))


def _saved_answers(path: Path, good: Sequence[StoredAnswer]) -> Table:
    """The lengths of answers, and their scores against their own references or those of ``good``."""
    answers = read_answers(path)
    items = item_ids(answers)
    texts = {item: scored_answer(one.answer).strip() for item, one in zip(items, answers, strict=True)}
    references = {item: one.reference for item, one in zip(items, answers, strict=True) if one.reference is not None}
    if good:
        item_of = {id(one): item for item, one in zip(items, answers, strict=True)}
        pairs = pair_answers(answers, good).pairs
        known = {item_of[id(one)]: other.reference or other.answer for one, other in pairs}
        references = {item: text for item, text in known.items() if text.strip()} | references
    measures = {"characters": MeasuredItems({item: float(len(text)) for item, text in texts.items()}, better=None)}
    for metric in answer_metrics() if references else []:
        values = {
            item: metric.score(texts[item], [without_reasoning(reference)]) for item, reference in references.items()
        }
        measures[metric.name] = MeasuredItems(values, metric.better, metric.right_or_wrong)
    return measures


# Held-out answers ----------------------------------------------------------------------------------------------------


def heldout_tables(files: Mapping[str, Path], reporting: Collection[str] = ()) -> dict[str, Table]:
    """The measures of each model's answers to held-out examples (``eval/heldout/MODEL/answers.jsonl``), by its name.

    The likelihood is per token where all models count the same tokens, else per byte of the references that were scored
    whole, because tokens of different tokenizers are different units. A metric that a user added is there where every
    answer was scored.

    Args:
        reporting: models of which only the examples that report are read.

    Raises DataError, which names ``path:line``, for a row that is no such answer.
    """
    rows = {name: _rows_by_id(path, name in reporting) for name, path in files.items()}
    counts: dict[str, set[float]] = {}
    for answers in rows.values():
        for item, row in answers.items():
            counts.setdefault(item, set()).add(_number(row, "reference_tokens"))
    same_tokens = all(len(found) == 1 for found in counts.values())
    return {name: _heldout_table(answers, same_tokens) for name, answers in rows.items()}


def _rows_by_id(path: Path, reporting: bool) -> dict[str, FileRow]:
    rows: dict[str, FileRow] = {}
    for row in file_rows(path):
        if reporting and selects(row.text("prompt", "a prompt")):
            continue
        item = row.text("id", "an id")
        if item in rows:
            raise DataError(f"{row.where}: the id {item} occurs twice; delete the file and run again")
        rows[item] = row
    return rows


def _heldout_table(rows: Mapping[str, FileRow], same_tokens: bool) -> Table:
    def column(read: Callable[[FileRow], float]) -> dict[str, float]:
        return {item: read(row) for item, row in rows.items()}

    nll, unit = column(lambda row: _number(row, "nll")), "reference_tokens" if same_tokens else "reference_bytes"
    sizes = {item: _number(row, unit) for item, row in rows.items() if row.values.get(unit) is not None}
    likelihood = MeasuredItems({item: nll[item] for item in sizes}, "lower", weights=sizes)
    table = {"nll_per_token" if same_tokens else "nll_per_byte": likelihood}
    for metric in answer_metrics():
        if metric in BUILT_IN or all(metric.name in row.values for row in rows.values()):
            read = _flag if metric.right_or_wrong else _number
            values = {item: float(read(row, metric.name)) for item, row in rows.items()}
            table[metric.name] = MeasuredItems(values, metric.better, metric.right_or_wrong)
    table["answer_tokens"] = MeasuredItems(column(lambda row: _number(row, "answer_tokens")), better=None)
    finished = column(lambda row: float(row.text("finish_reason", "an end") == "stop"))
    table["finished"] = MeasuredItems(finished, right_or_wrong=True)
    return table


def _number(row: FileRow, key: str) -> float:
    value = row.values.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise row.wrong(key, "a number", _ADVICE)
    return value


def _flag(row: FileRow, key: str) -> bool:
    value = row.values.get(key)
    if not isinstance(value, bool):
        raise row.wrong(key, "true or false", _ADVICE)
    return value
