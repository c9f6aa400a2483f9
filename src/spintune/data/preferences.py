"""Pairs of a better and a worse answer as rows: read from the SPIN authors' data and from preference data, and written
for other trainers.

===========  =============================================  =========================================================
spin         ``real``, ``generated``: lists of messages     UCLA-AGI/SPIN_iter0 to SPIN_iter3
preference   ``prompt``, ``chosen``, ``rejected``: texts    TRL, LLaMA-Factory; written by ``spintune pairs``
             or lists of messages (TRL alone)
===========  =============================================  =========================================================
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from spintune.data.formats import preferred, turns_of
from spintune.data.sources import Source, rows_of
from spintune.errors import DataError
from spintune.records import Example, Pair, read_records
from spintune.run import MANIFEST, outputs_digest
from spintune.storage import atomic_file, read_json


def read_answers(path: str) -> dict[str, list[Example]]:
    """The worse answers of a file, each as an example that ends in it, by the id of the example with the better one.

    Raises DataError for a file without such rows, and for the first broken row.
    """
    answers: dict[str, list[Example]] = {}
    for row in rows_of(Source(path)):
        if "real" in row.values:
            better, worse = turns_of(row, "real"), turns_of(row, "generated")
        elif "chosen" in row.values:
            better, worse = preferred(row, "chosen"), preferred(row, "rejected")
        else:
            raise DataError(f"{row.where}: no real and generated, nor chosen and rejected; name a file of pairs")
        answers.setdefault(Example(better).id, []).append(Example(worse, row.where))
    return answers


def export_pairs(run: Path, out: Path, iteration: int | None = None) -> tuple[int, int]:
    """Writes a run's pairs as rows of prompt, chosen and rejected; how many, and how many were left out.

    The chosen side is the whole reference. A generated answer that was cut is left out: others would end it with an
    end token, by which it could be told. ``iteration`` limits them to one.

    Raises DataError when there are none to write.
    """
    wanted = f"iterate-{iteration or '*'}"
    files = sorted(run.glob(f"spin/{wanted}/pairs/train.jsonl"), key=lambda path: int(path.parts[-3].split("-")[1]))
    if not files:
        raise DataError(f"{run} holds no pairs{f' of iteration {iteration}' if iteration else ''}; name a run of SPIN")
    current = outputs_digest(run / "data")
    for path in files:
        if not (path.parent / MANIFEST).is_file() or read_json(path.parent / MANIFEST)["facts"]["data"] != current:
            raise DataError(f"{path}: pairs of other data than {run / 'data'} holds; run the recipe again first")
    examples: dict[str, Example] = {}
    for example in read_records(run / "data" / "train.jsonl", Example):
        examples |= {turn.id: turn for turn in [example, *turns_of_example(example)]}
    files += [later for path in files if (later := path.parents[1] / "later.jsonl").is_file()]
    count = cut = 0
    with atomic_file(out) as file:
        for path in files:
            for pair in read_records(path, Pair):
                for answer in pair.generated:
                    if answer.complete:
                        row = _as_preference(examples[pair.example_id], answer.text)
                        file.write(orjson.dumps(row) + b"\n")
                    count, cut = count + answer.complete, cut + (not answer.complete)
        if not count:
            raise DataError(f"{run}: all {cut} generated answers were cut for want of room; raise spin.max_new_tokens")
    return count, cut


def turns_of_example(example: Example) -> list[Example]:
    """One example for each assistant turn: the conversation up to it."""
    answers = [place for place, message in enumerate(example.messages) if message.role == "assistant" and place]
    return [Example(example.messages[: place + 1], example.source) for place in answers]


def _as_preference(example: Example, rejected: str) -> dict[str, Any]:
    """Texts for a plain question, else lists of messages."""
    chosen = example.answer
    if [message.role for message in example.prompt] == ["user"]:
        return {"prompt": example.prompt[0].content, "chosen": chosen, "rejected": rejected}
    return {
        "prompt": [vars(message) for message in example.prompt],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }
