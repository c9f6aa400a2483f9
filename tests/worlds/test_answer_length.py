"""``spin.max_new_tokens: auto``: generated answers end a quarter behind the longest real one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from watching import Watching

Run = Callable[..., dict[str, Any]]
PLAY: dict[str, Any] = {"iterations": 1, "max_new_tokens": "auto"}


def pairs(out: Path, file: str = "answers") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / f"spin/iterate-1/pairs/{file}.jsonl").read_text().splitlines()]


def chats(folder: Path, *answers: int) -> dict[str, Any]:
    """Conversations whose turns have so many words."""
    rows = [
        [
            message
            for turn, words in enumerate(answers)
            for message in (
                {"role": "user", "content": f"Say fox {number} times {turn}."},
                {"role": "assistant", "content": " ".join(["fox"] * (words + number % 2))},
            )
        ]
        for number in range(4)
    ]
    path = folder / "chats.jsonl"
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    return {"data": {"train": str(path), "eval_fraction": 0.0, "max_length": 96}, "sft": None, "eval": []}


@pytest.mark.parametrize("words", [2, 20])
def test_the_answers_are_those_that_the_number_gives(run: Run, tmp_path: Path, words: int) -> None:
    changes, watching = chats(tmp_path, words), Watching()
    run(tmp_path / "auto", watching, **changes, spin=PLAY)
    limit = max(16, math.ceil(1.25 * max(len(pair["real"]["ids"]) for pair in pairs(tmp_path / "auto"))))
    assert f"answers of self-play have at most {limit} tokens (spin.max_new_tokens: auto)" in watching.notes
    manifest = json.loads((tmp_path / "auto/spin/iterate-1/pairs/manifest.json").read_text())
    assert manifest["facts"]["max_new_tokens"] == limit
    run(tmp_path / "number", **changes, spin={**PLAY, "max_new_tokens": limit})
    assert pairs(tmp_path / "auto") == pairs(tmp_path / "number")
    watching = Watching()
    run(tmp_path / "auto", watching, **changes, spin=PLAY)
    assert watching.tasks == []  # nothing runs again


def test_of_every_turn_that_is_played_each_answer_counts_by_itself(run: Run, tmp_path: Path) -> None:
    changes = chats(tmp_path, 22, 3)
    facts = [
        run(tmp_path / turns, **changes, spin={**PLAY, "turns": turns})["spin"][0]["pairs"]["max_new_tokens"]
        for turns in ("last", "all")
    ]
    longest = max(len(pair["real"]["ids"]) for pair in pairs(tmp_path / "all"))
    assert facts == [16, math.ceil(1.25 * longest)]


def test_given_answers_are_not_cut_either(run: Run, tmp_path: Path) -> None:
    changes = chats(tmp_path, 3)
    given = tmp_path / "given.jsonl"
    long = " ".join(["dog"] * 30)
    rows = [
        {"prompt": f"Say fox {n} times 0.", "chosen": " ".join(["fox"] * (3 + n % 2)), "rejected": long}
        for n in range(4)
    ]
    given.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(tmp_path / "run", **changes, spin={**PLAY, "generated": str(given)})
    assert all(pair["generated"][0]["complete"] for pair in pairs(tmp_path / "run"))
    assert {pair["generated"][0]["text"] for pair in pairs(tmp_path / "run")} == {long}


def test_a_model_with_an_encoder_plays_every_turn(run: Run, tmp_path: Path, tiny_t5: Path) -> None:
    changes = chats(tmp_path, 5, 20)
    found = run(tmp_path / "t5", model=str(tiny_t5), **changes, spin={**PLAY, "turns": "all"})
    longest = max(len(pair["real"]["ids"]) for pair in pairs(tmp_path / "t5"))
    assert found["spin"][0]["pairs"]["max_new_tokens"] == max(16, math.ceil(1.25 * longest))
