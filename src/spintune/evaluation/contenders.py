"""Everything that was measured of a model, for a comparison: of a run, of one of its models, or a file of answers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from spintune.errors import DataError
from spintune.evaluation.answers import StoredAnswer, answered_models, file_rows, item_ids, pair_answers, read_answers
from spintune.evaluation.comparison import MeasuredItems, Table, heldout_tables
from spintune.evaluation.scores import finished_scores, read_scores
from spintune.metrics import answer_metrics
from spintune.run_folder import BASE, BASELINE, SFT

_OF_THE_RUN = re.compile(rf"{BASE}|{SFT}|{BASELINE}|iterate-\d+")


def tables(names: Sequence[str], references: Path | None = None) -> dict[str, Table]:
    """The measures of each model that is meant, by a name that tells them apart.

    Args:
        names: run folders (all of their own models), RUN:MODEL, or files: the answers of a run, or any saved answers.
        references: good answers to what is asked, for files of answers that have none.

    Raises DataError for a name that is none of these, and for a file or model without anything to compare.
    """
    heldout: dict[str, Path] = {}
    found: dict[str, dict[str, MeasuredItems]] = {}
    good = read_answers(references) if references else []
    runs = {name.partition(":")[0] for name in names if not Path(name).is_file()}
    short = _short([*runs, *(name for name in names if Path(name).is_file())])
    for name in names:
        folder, _, model = name.partition(":")
        if Path(name).is_file():
            found[short[name]] = {}
            if _evaluated(Path(name)):
                heldout[short[name]] = Path(name)
            else:
                found[short[name]].update(_saved(Path(name), good))
            continue
        if not (Path(folder) / "recipe.json").is_file():
            raise DataError(
                f"{name}: no run folder and no file of answers; name a run, RUN:MODEL, or a file (spintune eval makes "
                "a run of a model)"
            )
        for one in [model] if model else _models(Path(folder)):
            label = one if len(runs) == 1 else f"{short[folder]}:{one}"
            found[label] = _scores(Path(folder), one)
            if (path := Path(folder) / "eval" / "heldout" / one / "answers.jsonl").is_file():
                heldout[label] = path
            if label not in heldout and not found[label]:
                known = ", ".join(_models(Path(folder), rivals=True))
                advice = f"use one of: {known}" if known else "run its recipe first, to the end"
                raise DataError(f"{folder}: nothing was measured of '{one}'; {advice}")
    measured = heldout_tables(heldout)
    return {name: {**measured.get(name, {}), **table} for name, table in found.items()}


def _short(paths: Sequence[str]) -> dict[str, str]:
    """Each path as the name of its folder or file without what comes before, where that tells it apart."""
    stems = {path: Path(path).stem if Path(path).is_file() else Path(path).name for path in paths}
    return {path: stem if list(stems.values()).count(stem) == 1 else path for path, stem in stems.items()}


def _models(folder: Path, rivals: bool = False) -> list[str]:
    """Models of which a run measured something: its own, or those too whose answers were stored."""
    scored = {model for models in finished_scores(folder).values() for model in models}
    return sorted(name for name in {*answered_models(folder), *scored} if rivals or _OF_THE_RUN.fullmatch(name))


def _scores(folder: Path, model: str) -> dict[str, MeasuredItems]:
    found: dict[str, MeasuredItems] = {}
    for evaluation, models in finished_scores(folder).items():
        if model in models:
            found |= read_scores(models[model]).table(f"{evaluation} ")
    return found


def _evaluated(path: Path) -> bool:
    """Whether a file is a run's answers to held-out examples, with their likelihood."""
    return "nll" in next(iter(file_rows(path))).values


def _saved(path: Path, good: Sequence[StoredAnswer]) -> Mapping[str, MeasuredItems]:
    """Answers of anybody: against their own references or those of a file, and their lengths."""
    answers = read_answers(path)
    items = item_ids(answers)
    texts = {items[place]: one.answer.strip() for place, one in enumerate(answers)}
    references = {items[place]: one.reference for place, one in enumerate(answers) if one.reference is not None}
    if good:
        places = {id(one): place for place, one in enumerate(answers)}
        pairs = pair_answers(answers, good).pairs
        references |= {items[places[id(one)]]: other.reference or other.answer for one, other in pairs}
    measures = {"characters": MeasuredItems({item: float(len(text)) for item, text in texts.items()}, better=None)}
    if references:
        for metric in answer_metrics():
            values = {item: metric.score(texts[item], [reference]) for item, reference in references.items()}
            measures[metric.name] = MeasuredItems(values, metric.better, metric.right_or_wrong)
    return measures
