"""From the second model on, held-out answers are drafts of the model before; what is written stays the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from spintune.generation.drafts import Drafts
from spintune.generation.protocol import SequenceState

FOLDERS = ("eval/heldout", "eval/heldout-sampled", "spin/heldout")


def answers(run: Path) -> dict[str, list[Any]]:
    """What the models of a run answered, by folder and model; for pairs the tokens."""
    found = {}
    for file in sorted(file for folder in FOLDERS for file in run.glob(f"{folder}/*/answers.jsonl")):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        told = [row.get("answer") or [one["ids"] for one in row["generated"]] for row in rows]
        found[str(file.parent.relative_to(run))] = told
    return found


def test_answers_with_drafts_are_those_without(
    run: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drafted: list[int] = []
    kept: list[int] = []
    drawn = Drafts.drawn

    def counted(
        self: Drafts, sequence: SequenceState, tokens: Sequence[tuple[int, float]]
    ) -> Iterator[tuple[int, float]]:
        drafted.append(len(sequence.draft))
        held = list(drawn(self, sequence, tokens))
        kept.append(len(held) - 1)
        yield from held

    monkeypatch.setattr(Drafts, "drawn", counted)
    changes = {"spin": {"learning_rate": 1e-5, "negatives": 2}, "evaluation": {"samples": 2}}
    run(tmp_path / "with", **changes)
    assert sum(drafted) > 100
    assert sum(kept) > sum(drafted) / 2
    monkeypatch.setattr(Drafts, "cut", lambda self, sequence: setattr(sequence, "draft", ()))
    drafted.clear()
    run(tmp_path / "without", **changes)
    assert not sum(drafted)
    found = answers(tmp_path / "with")
    assert len(found) >= 2 * 4 + 2
    assert found == answers(tmp_path / "without")
