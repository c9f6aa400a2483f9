"""A run's pairs as preference data for other trainers: rows of ``prompt``, ``chosen`` and ``rejected``."""

from __future__ import annotations

from pathlib import Path

from spintune.data.preferences import turns_of_example
from spintune.errors import DataError, RunError
from spintune.records import Example, Pair, read_records
from spintune.run_folder import MANIFEST, iterations_of, outputs_digest, read_manifest, read_recipe
from spintune.storage import atomic_file, json_line, remove_abandoned
from spintune.typed_json import JsonObject


def export_pairs(run: Path, out: Path, iteration: int | None = None) -> tuple[int, int]:
    """Writes the pairs of a run to ``out``, JSON lines. Returns how many it wrote and how many it skipped.

    The chosen side is the whole reference. Generated answers that were cut are skipped: other trainers would add an
    end token, and a model could recognize them by it.

    Args:
        iteration: only the pairs of this iteration; None for all.

    Raises DataError when there are no pairs to write.
    """
    examples: dict[str, Example] = {}
    files = _files(run, iteration)
    for example in read_records(run / "data" / "train.jsonl", Example):
        examples |= {turn.id: turn for turn in [example, *turns_of_example(example)]}
    count = cut = 0
    remove_abandoned(out)
    with atomic_file(out) as file:
        for pair in (pair for path in files for pair in read_records(path, Pair)):
            for answer in pair.generated:
                if pair.example_id not in examples:
                    known = run / "data" / "train.jsonl"
                    raise RunError(
                        f"{known}: lacks the example {pair.example_id!r:.60} of a pair; run the recipe again"
                    )
                if answer.complete:
                    file.write(json_line(_row(examples[pair.example_id], answer.text)))
                    count += 1
                else:
                    cut += 1
        if not count:
            raise DataError(
                f"{run}: all {cut} generated answers were cut at the length limit; raise spin.max_new_tokens"
            )
    return count, cut


def _files(run: Path, iteration: int | None) -> list[Path]:
    """Files of pairs that were made from the data that the run holds now."""
    numbers = [iteration] if iteration else range(1, iterations_of(read_recipe(run).recipe) + 1)
    places = [run / f"spin/iterate-{number}/pairs/train.jsonl" for number in numbers]
    files = [path for path in places if path.is_file()]
    if not files:
        raise DataError(f"{run} holds no pairs{f' of iteration {iteration}' if iteration else ''}; name a run of SPIN")
    current = outputs_digest(run / "data")
    for path in files:
        if not (path.parent / MANIFEST).is_file() or read_manifest(path.parent).facts.get("data") != current:
            raise DataError(f"{path}: pairs of other data than {run / 'data'} holds; run the recipe again first")
    return files + [later for path in files if (later := path.parents[1] / "later.jsonl").is_file()]


def _row(example: Example, rejected: str) -> JsonObject:
    """Texts for a single question, else lists of messages."""
    if [message.role for message in example.prompt] == ["user"]:
        return {"prompt": example.prompt[0].content, "chosen": example.answer, "rejected": rejected}
    return {
        "prompt": [vars(message) for message in example.prompt],
        "chosen": [{"role": "assistant", "content": example.answer}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }
