"""Saved answers of models, and which answers of two files belong to the same item.

One answer per row, in any file format of training data. The keys of a row:

==========  =========================================================================================================
id          ``id`` or ``question_id``, a text or a number; may be missing where there is a prompt
prompt      ``instruction`` with an optional ``input``, else ``prompt`` or ``question``; may be missing where there is
            an id
answer      ``answer``, else ``output``, else ``response``, else ``completion``; it may be empty, not missing
reference   ``reference``, else ``target``: the first with text; without one there is no reference
instances   rows of Self-Instruct (``instruction``, ``instances: [{input, output}]``): the outputs are the answers, so
            the people who wrote an evaluation set can be compared with models
==========  =========================================================================================================

This covers the answers of a run (``eval/heldout/NAME/answers.jsonl``), AlpacaEval's outputs, and the stored predictions
for the 252 user-oriented tasks. There ``prompt`` includes the layout of the model's prompt, so ``instruction`` and
``input`` come first: an item is the question, however it was laid out.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from spintune.data.file_rows import FileRow, instruction_prompt
from spintune.data.tables import rows_of
from spintune.errors import DataError
from spintune.storage import digest_json
from spintune.text.words import one_line

_IDS = ("id", "question_id")
_PROMPTS = ("prompt", "question")
_ANSWERS = ("answer", "output", "response", "completion")
_REFERENCES = ("reference", "target")


@dataclass(frozen=True)
class StoredAnswer:
    """One answer; ``where`` is the row it comes from."""

    id: str
    prompt: str
    answer: str
    reference: str | None = None
    where: str = ""


def read_answers(path: Path) -> list[StoredAnswer]:
    """The answers of a file, in its order.

    An item without an id gets one that follows from its prompt.

    Raises DataError, which names ``path:line``, for a row without an answer, for one with neither prompt nor id, and
    for the second row without a prompt that has the same id.
    """
    answers = [answer for row in file_rows(path) for answer in _answers(row)]
    seen: dict[str, str] = {}
    for answer in answers:
        if not answer.prompt.strip():
            if answer.id in seen:
                raise DataError(f"{answer.where}: {seen[answer.id]} has the id {answer.id} too; keep one of them")
            seen[answer.id] = answer.where
    return answers


def file_rows(path: Path) -> Iterator[FileRow]:
    """The rows of a local file. Raises DataError when the file does not exist or has no rows."""
    if not path.exists():
        raise DataError(f"{path} does not exist; check the path")
    return rows_of(path)


def _answers(row: FileRow) -> Iterator[StoredAnswer]:
    name = _id(row)
    if "instances" in row.values:
        for place, instance in enumerate(row.objects("instances", "an answer"), 1):
            prompt = _instruction(row, instance)
            number = f"/{place}" if place > 1 else ""
            yield StoredAnswer(
                id=f"{name}{number}" if name else _id_of(prompt),
                prompt=prompt,
                answer=instance.text("output", "an answer"),
                where=row.where,
            )
        return
    prompt = _prompt(row)
    if not name and not prompt.strip():
        raise DataError(f"{row.where}: a row without a prompt and without an id; give one of them")
    key = next((key for key in _ANSWERS if key in row.values), _ANSWERS[0])
    references = (row.text(key, "a reference") for key in _REFERENCES if row.values.get(key) is not None)
    yield StoredAnswer(
        id=name or _id_of(prompt),
        prompt=prompt,
        answer=row.text(key, "an answer"),
        reference=next((reference for reference in references if reference.strip()), None),
        where=row.where,
    )


def _id_of(prompt: str) -> str:
    return digest_json(one_line(prompt))[:16]


def item_ids(answers: Sequence[StoredAnswer]) -> list[str]:
    """For each answer an id of its item that is the same in every file: from its prompt, else its own id.

    A repeated prompt gets a number, so the nth answers to it belong together.
    """
    seen: Counter[str] = Counter()
    found = []
    for answer in answers:
        item = _id_of(answer.prompt) if answer.prompt.strip() else answer.id
        seen[item] += 1
        found.append(item if seen[item] == 1 else f"{item}/{seen[item]}")
    return found


def _key_in(row: FileRow, keys: Sequence[str]) -> str | None:
    """The first of the keys with a value."""
    return next((key for key in keys if row.values.get(key) is not None), None)


def _id(row: FileRow) -> str | None:
    key = _key_in(row, _IDS)
    if key is None:
        return None
    value = row.values[key]
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else row.text(key, "an id")


def _prompt(row: FileRow) -> str:
    if row.values.get("instruction") is not None:
        return _instruction(row, row)
    key = _key_in(row, _PROMPTS)
    return row.text(key, "a prompt") if key else ""


def _instruction(row: FileRow, task: FileRow) -> str:
    """The prompt that training data with these keys has."""
    return instruction_prompt(row.text("instruction", "a prompt").strip(), task.task_input())


def answered_models(folder: Path) -> list[str]:
    """The models of a run folder that answered the held-out examples, by name."""
    return sorted(path.parent.name for path in folder.glob("eval/heldout/*/answers.jsonl"))


@dataclass(frozen=True)
class Pairing:
    """Answers to the same items, and the numbers of answers without a partner."""

    pairs: list[tuple[StoredAnswer, StoredAnswer]]
    only_first: int
    only_second: int


def pair_answers(first: Sequence[StoredAnswer], second: Sequence[StoredAnswer]) -> Pairing:
    """Pairs of answers to the same item, in the order of ``first``.

    Items are the same when their prompts are equal up to white space, whatever their ids: the same id may mean
    different items in two files. Ids decide only when a side has no prompts. Where a prompt occurs several times (one
    question with several references), answers with equal ids are paired first, the rest in their order.

    Raises DataError when no item is in both.
    """
    by_id = not all(answer.prompt.strip() for answer in (*first, *second))
    alike: dict[tuple[str, str], deque[int]] = defaultdict(deque)  # places in the second file, by item and id
    for place, answer in enumerate(second):
        alike[_item(answer, by_id), answer.id].append(place)
    partners: dict[int, int] = {}
    for place, answer in enumerate(first):
        if fitting := alike.get((_item(answer, by_id), answer.id)):
            partners[place] = fitting.popleft()
    taken = set(partners.values())
    others: dict[str, deque[int]] = defaultdict(deque)
    for place, answer in enumerate(second):
        if place not in taken:
            others[_item(answer, by_id)].append(place)
    for place, answer in enumerate(first):
        if place not in partners and (rest := others.get(_item(answer, by_id))):
            partners[place] = rest.popleft()
    pairs = [(first[place], second[partners[place]]) for place in sorted(partners)]
    if not pairs:
        raise DataError(_no_common_items(first, second, by_id))
    return Pairing(pairs, len(first) - len(pairs), len(second) - len(pairs))


def _item(answer: StoredAnswer, by_id: bool) -> str:
    return answer.id if by_id else one_line(answer.prompt)


def _no_common_items(first: Sequence[StoredAnswer], second: Sequence[StoredAnswer], by_id: bool) -> str:
    kind = "ids" if by_id else "prompts"
    firsts = " and ".join(repr(_item(side[0], by_id)[:60]) for side in (first, second) if side)
    return (
        f"{_file(first)} answers {len(first)} items and {_file(second)} {len(second)}, but 0 of them are the "
        f"same (the first {kind}: {firsts}); give answers to the same {kind}"
    )


def _file(answers: Sequence[StoredAnswer]) -> str:
    return answers[0].where.rpartition(":")[0] if answers else "an empty file"
