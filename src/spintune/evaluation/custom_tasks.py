"""A user's own benchmark: rows in a file, and a short YAML file with the prompt and the right answers.

::

    task: science                    # its name in tables
    kind: multiple_choice            # or generate, or loglikelihood
    data: science.jsonl              # beside this file; .jsonl, .csv, .parquet, ...
    prompt: "Question: {question}\\nAnswer:"
    choices: options                 # key of a list of texts
    answer: label                    # key of the right one: its text, its place from 0, or one of labels

The rows are rendered here, with errors that name the line, and given to lm-evaluation-harness as plain texts, so
braces in a user's data stay as they are.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from spintune.data.file_rows import FileRow, kind_of
from spintune.data.tables import rows_of
from spintune.errors import DataError, RecipeError
from spintune.metrics import ROUGE_L, exact_match
from spintune.mixtures.declarations import Expression
from spintune.mixtures.phrasings import Pattern
from spintune.recipe import Section
from spintune.recipe.checking import read_section
from spintune.recipe.section import Count, TaskName, WholeNumber
from spintune.storage import digest_json
from spintune.text.answers import CURRENCIES, number
from spintune.text.expressions import last_match
from spintune.typed_json import JsonObject

CHOICES = "choices"

_ONLY = {
    **dict.fromkeys(("choices", "labels", "say"), "multiple_choice"),
    **dict.fromkeys(("until", "max_new_tokens", "extract", "check"), "generate"),
}
"""Settings that belong to one kind of task."""


_NUMERAL = re.compile(rf"\s*[-+\u2212]?[{CURRENCIES}]?[0-9.,/]*[0-9](?:\s*%)?\s*")

_METRIC_KEYS = ("metric", "higher_is_better", "aggregation")
_METRICS = {
    "multiple_choice": (("acc", True, "mean"), ("acc_norm", True, "mean")),
    "generate": (("exact_match", True, "mean"), ("rouge_l", True, "mean")),
    "loglikelihood": (("bits_per_byte", False, "bits_per_byte"), ("acc", True, "mean")),
}
"""By kind of task, the first of which represents it in tables."""


class CustomTaskFile(Section):
    """The YAML file of a user's own benchmark."""

    task: TaskName
    """Its name in tables: letters, digits, dots, dashes and underscores."""
    about: str = ""
    """What it is, and where it comes from."""
    kind: Literal["multiple_choice", "generate", "loglikelihood"]
    """multiple_choice: which choice is likeliest; generate: what the model writes, against the answer; loglikelihood:
    how likely the answer is, with the delimiter before it, in bits per byte."""
    data: str
    """File beside this one, of any kind that is read as training data."""
    prompt: str
    """What the model reads, with {key} for values of the row; {choices} lists the choices, lettered."""
    answer: str
    """Key of what is right. multiple_choice: the choice's text, its place from 0, or one of labels; generate: a text or
    a list of texts, each of which is right. A dot goes into an object (choices.text)."""
    choices: str | list[str] | None = None
    """Key of a list of texts, or the texts themselves."""
    labels: str | list[str] | None = None
    """What the answer calls the choices: key of a list of texts, or the texts themselves."""
    say: Literal["text", "letter"] = "text"
    """What is scored: a choice's text, or its letter."""
    delimiter: str = " "
    """Text between prompt and answer."""
    description: str = ""
    """Text before everything else."""
    shots: WholeNumber = 0
    """Answered rows before the question. [examples]"""
    shots_data: str | None = None
    """File that the shots are the first rows of. Without it they are drawn from the other rows."""
    until: list[str] = Field(["\n\n"])
    """Texts that end an answer."""
    max_new_tokens: Count = 256
    """Maximum length of an answer. [tokens]"""
    extract: Expression | None = None
    """The last match in what the model wrote is its answer: the first group, or all of it."""
    check: Literal["text", "number"] = "text"
    """text: equal apart from white space; number: the number that it gives as its answer."""

    def _problems(self) -> Iterator[str]:
        for key in sorted(self.model_fields_set & _ONLY.keys()):
            if _ONLY[key] != self.kind:
                yield f"{key} belongs to kind: {_ONLY[key]}; remove it, or change kind"
        if self.kind == "multiple_choice" and not self.choices:
            yield "kind: multiple_choice needs choices: the key of a list of texts, or the texts"
        if self.shots_data and not self.shots:
            yield "shots_data needs shots; give their number"


@dataclass(frozen=True)
class CustomTaskItem:
    """A rendered row.

    Attributes:
        choices: possible answers; empty when the model writes freely.
        place: index of the right choice; 0 without choices.
        answers: right texts.
    """

    prompt: str
    choices: tuple[str, ...]
    place: int
    answers: tuple[str, ...]


@dataclass(frozen=True)
class CustomTask:
    """A user's benchmark, read and checked."""

    file: CustomTaskFile
    items: tuple[CustomTaskItem, ...]
    exemplars: tuple[CustomTaskItem, ...]
    """Rows of ``shots_data``; empty when shots are drawn from the other items."""

    @property
    def name(self) -> str:
        return self.file.task

    @property
    def metric(self) -> str:
        """The metric that represents the task in tables: the first of its kind."""
        return f"{_METRICS[self.file.kind][0][0]},none"

    @property
    def version(self) -> str:
        """A digest of everything that the requests depend on."""
        items = [[vars(item) for item in items] for items in (self.items, self.exemplars)]
        return digest_json([self.file.model_dump(), items])[:12]

    def config(self, guarded: Callable[[str], str] = str) -> JsonObject:
        """The task in the form of lm-evaluation-harness.

        Args:
            guarded: keeps control tokens that are spelled out in a text from becoming control tokens of the model.
        """
        file = self.file
        config: JsonObject = {
            "task": file.task,
            "custom_dataset": self._datasets(guarded),
            "test_split": "test",
            "fewshot_split": "shots" if self.exemplars else "test",
            "fewshot_config": {"sampler": "first_n" if self.exemplars else "default"},
            "output_type": "generate_until" if file.kind == "generate" else file.kind,
            "description": "description",
            "doc_to_text": "prompt",
            "target_delimiter": guarded(file.delimiter),
            "num_fewshot": file.shots or None,  # the harness forbids changing a 0
            "metadata": {"version": self.version},
        }
        if file.kind == "multiple_choice":
            kind: JsonObject = {"doc_to_choice": "choices", "doc_to_target": "place"}
        elif file.kind == "loglikelihood":
            kind = {
                "doc_to_target": "target",
                "target_delimiter": "",  # the harness scores only the target, so the delimiter is part of it
                "process_results": self._likelihood(),
            }
        else:
            kind = {
                "doc_to_target": "answers",
                "process_results": self._measured(),
                "generation_kwargs": {"until": file.until, "do_sample": False, "max_gen_toks": file.max_new_tokens},
            }
        metrics = [dict(zip(_METRIC_KEYS, metric, strict=True)) for metric in _METRICS[file.kind]]
        return {**config, **kind, "metric_list": metrics}

    def _datasets(self, guarded: Callable[[str], str]) -> Callable[..., JsonObject]:
        splits = {"test": self.items, **({"shots": self.exemplars} if self.exemplars else {})}

        def load(**_: object) -> JsonObject:
            from datasets import Dataset

            return {
                name: Dataset.from_list([self._document(item, guarded) for item in items])
                for name, items in splits.items()
            }

        return load

    def _document(self, item: CustomTaskItem, guarded: Callable[[str], str]) -> JsonObject:
        return {
            "prompt": guarded(item.prompt),
            "description": guarded(self.file.description),
            "choices": [guarded(choice) for choice in item.choices],
            "place": item.place,
            "answers": list(item.answers),
            "target": guarded(self.file.delimiter + item.answers[0]),
        }

    def _likelihood(self) -> Callable[[JsonObject, Sequence[tuple[float, bool]]], JsonObject]:
        """The function that scores a document's answer, with the bytes of all that is scored: the delimiter too."""
        delimiter = self.file.delimiter

        def measure(document: JsonObject, results: Sequence[tuple[float, bool]]) -> JsonObject:
            logprob, greedy = results[0]
            scored = f"{delimiter}{document['answers'][0]}"
            return {"acc": float(greedy), "bits_per_byte": (logprob, len(scored.encode()))}

        return measure

    def _measured(self) -> Callable[[JsonObject, Sequence[str]], dict[str, float]]:
        """The function that scores the model's answer to a document."""
        extract, check = self.file.extract, self.file.check

        def right(answer: str, reference: str) -> bool:
            if check == "number":
                return number(reference) is not None and number(reference) == number(answer)
            return exact_match(answer, reference)

        def measure(document: JsonObject, results: Sequence[str]) -> dict[str, float]:
            text = results[0]
            answer = last_match(extract, text, f"task {self.name}: extract") if extract else text
            references = document["answers"]
            return {
                "exact_match": float(answer is not None and any(right(answer, each) for each in references)),
                "rouge_l": ROUGE_L.score(text, references),
            }

        return measure


def read_custom_task(path: Path) -> CustomTask:
    """Reads a user's benchmark and all of its rows.

    Raises RecipeError for a YAML file that is no such task, and DataError, which names ``file:line``, for the first row
    with a missing value, a value of the wrong kind, or an answer that is none of its choices.
    """
    file = read_section(path, CustomTaskFile, "task")
    prompt = Pattern.parse(file.prompt, f"{path}: prompt")
    if CHOICES in prompt.fields and not file.choices:
        raise RecipeError(f"{path}: prompt has {{choices}}, but there are none; give choices")
    items = _items(file, prompt, path.parent / file.data)
    exemplars = _items(file, prompt, path.parent / file.shots_data) if file.shots_data else ()
    if file.shots > (len(exemplars) if file.shots_data else len(items) - 1):
        where = file.shots_data or f"{file.data}, the row itself left out"
        raise RecipeError(f"{path}: {file.shots} shots are more than the rows of {where}; lower shots")
    return CustomTask(file, items, exemplars)


def _items(file: CustomTaskFile, prompt: Pattern, data: Path) -> tuple[CustomTaskItem, ...]:
    items = tuple(_item(file, prompt, row) for row in rows_of(data))
    if not items:
        raise DataError(f"{data}: no rows; a benchmark needs at least one")
    return items


def _item(file: CustomTaskFile, prompt: Pattern, row: FileRow) -> CustomTaskItem:
    choices = _texts(file.choices, row, "the choices") if file.choices else ()
    letters = string.ascii_uppercase[: len(choices)]
    if len(choices) == 1 or len(choices) > len(letters):
        raise DataError(f"{row.where}: {len(choices)} choices; there must be 2 to {len(string.ascii_uppercase)}")
    listed = "\n".join(f"{letter}. {text}" for letter, text in zip(letters, choices, strict=True))
    values = {key: listed if choices and key == CHOICES else _text(row, key) for key in prompt.fields}
    place = _place(file, choices, row) if choices else 0
    said = tuple(letters) if file.say == "letter" else choices
    answers = (said[place],) if choices else _answers(row, file.answer, several=file.kind == "generate")
    if file.kind == "loglikelihood" and not answers[0]:
        raise DataError(f"{row.where}: '{file.answer}' is an empty text, which has no likelihood; fill it in")
    return CustomTaskItem(prompt.fill(values), said, place, answers)


def _place(file: CustomTaskFile, choices: Sequence[str], row: FileRow) -> int:
    """Index of the right choice: a number itself, or the index of a label, or without labels of the choice's text."""
    place = None if file.labels else _whole_number(_value(row, file.answer), choices)
    if place is not None:
        if 0 <= place < len(choices):
            return place
        raise DataError(f"{row.where}: '{file.answer}' is {place}, but places go from 0 to {len(choices) - 1}")
    names = _texts(file.labels, row, "the labels") if file.labels else tuple(choices)
    if len(names) != len(choices):
        raise DataError(f"{row.where}: {len(names)} labels for {len(choices)} choices; give one each")
    wanted = _text(row, file.answer)
    if names.count(wanted) != 1:
        found = "several of" if wanted in names else "none of"
        raise DataError(f"{row.where}: '{file.answer}' is {wanted!r:.60}, {found} {', '.join(names)!r:.200}")
    return names.index(wanted)


def _whole_number(value: object, choices: Sequence[str]) -> int | None:
    """The number that a value is, or is written as in CSV ("1", "1.0") where no choice is a number itself."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    text = str(value).strip() if isinstance(value, str | float) else ""
    if not re.fullmatch(r"[0-9]{1,9}(\.0+)?", text) or any(map(_NUMERAL.fullmatch, choices)):
        return None
    return int(text.partition(".")[0])


def _answers(row: FileRow, key: str, several: bool) -> tuple[str, ...]:
    value = _value(row, key)
    return _texts(key, row, "an answer") if several and isinstance(value, list) else (_text(row, key),)


def _texts(given: str | list[str], row: FileRow, what: str) -> tuple[str, ...]:
    """The texts given for all rows, or those under a key of this row."""
    if not isinstance(given, str):
        return tuple(given)
    value = _value(row, given)
    if not isinstance(value, list) or not value:
        state = "an empty list" if value == [] else kind_of(value)
        raise DataError(f"{row.where}: '{given}' is {state}, not {what}; give a list of texts")
    if wrong := [each for each in value if not isinstance(each, str) or not each]:
        state = "an empty text" if wrong[0] == "" else kind_of(wrong[0])
        raise DataError(f"{row.where}: '{given}' holds {state}; give texts")
    return tuple(value)


def _text(row: FileRow, key: str) -> str:
    value = _value(row, key)
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise DataError(f"{row.where}: '{key}' is {kind_of(value)}, not a text; fix the row")


def _value(row: FileRow, key: str) -> object:
    """The value under a key, in which a dot leads into an object."""
    value: object = row.lookup(key)
    if value is None:
        raise DataError(f"{row.where}: '{key}' is null; fill it in or delete the row")
    return value
