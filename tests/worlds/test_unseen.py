"""spin.prompts: which examples SFT, self-play and its baseline train on, by the files of a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from watching import Watching
from worlds.test_mixture import mixture, tasks  # noqa: F401 - pytest finds the fixture here
from worlds.test_resume import until_done

from spintune.data.preferences import turns_of_example
from spintune.errors import DataError
from spintune.mixtures.rendering import provenance
from spintune.progress import Silent
from spintune.records import Example, read_records

Run = Callable[..., dict[str, Any]]
Contents = Callable[[Path], Any]

SPIN = {"iterations": 2, "prompts": "unseen"}
FAST = {"samples": 0, "checkpoint_minutes": 1e6}


@pytest.fixture(scope="session")
def split(run: Run) -> Run:
    """Runs a recipe whose self-play plays on prompts that SFT has not seen."""

    def execute(out: Path, progress: Any = None, spin: Any = None, sft: Any = None, **changes: Any) -> dict[str, Any]:
        sections = {"spin": {**SPIN, "checkpoint_minutes": 1e6, **(spin or {})}, "sft": {**FAST, **(sft or {})}}
        return run(out, progress, **{"eval": [], **sections, **changes})

    return execute


def ids(out: Path, name: str) -> list[str]:
    return [example.id for example in read_records(out / f"data/{name}.jsonl", Example)]


def paired(out: Path, iteration: int, name: str = "answers") -> list[str]:
    lines = (out / f"spin/iterate-{iteration}/pairs/{name}.jsonl").read_text().splitlines()
    return [json.loads(line)["example_id"] for line in lines]


def test_self_play_and_its_baseline_train_on_what_sft_does_not_see(split: Run, tmp_path: Path) -> None:
    out, watching = tmp_path / "run", Watching()
    results = split(out, watching, spin={"baseline": "sft", "replay": 1, "history": 2})
    train, seen, unseen = (ids(out, name) for name in ("train", "seen", "unseen"))
    assert len(train) == 32
    assert sorted(seen + unseen) == sorted(train)
    assert results["data"]["train"], (results["data"]["seen"], results["data"]["unseen"]) == (32, 16, 16)
    assert results["sft"]["rows"] == results["baseline"]["rows"] == 16
    for iteration in (1, 2):
        assert paired(out, iteration) == unseen
        assert results["spin"][iteration - 1]["pairs"]["train"]["prompts"] == 16
    assert set(paired(out, 2, "replay")) <= set(unseen)
    told = "32 to train on (16 that SFT sees, 16 that it does not); self-play plays on those that it does not see"
    assert told in watching.notes


def test_sft_sees_no_more_than_its_part(split: Run, run: Run, tmp_path: Path) -> None:
    """Bit for bit the SFT of a run whose data is that part, and the baseline that of the other part."""
    out = tmp_path / "run"
    split(out, spin={"iterations": 1, "baseline": "sft"}, data={"eval_fraction": 0.0})
    plain = {"spin": None, "eval": [], "sft": FAST}
    run(tmp_path / "seen", data={"train": str(out / "data/seen.jsonl"), "eval_fraction": 0.0}, **plain)
    weights = [place / "sft/model/model.safetensors" for place in (out, tmp_path / "seen")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    spin = {"iterations": 1, "baseline": "sft", "baseline_learning_rate": 1e-3, "checkpoint_minutes": 1e6}
    data = {"train": str(out / "data/unseen.jsonl"), "eval_fraction": 0.0}
    run(tmp_path / "unseen", data=data, model=str(out / "sft/model"), sft=None, spin=spin, eval=[])
    shown = [tokens(place) for place in (out, tmp_path / "unseen")]
    assert shown[0] == shown[1]


def tokens(out: Path) -> list[int]:
    """Tokens of each step of the baseline."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row["tokens"] for row in rows if row["stage"] == "spin/baseline-sft"]


@pytest.mark.slow
def test_seen_plays_on_the_other_side_of_the_same_split(split: Run, tmp_path: Path) -> None:
    split(tmp_path / "unseen", spin={"iterations": 1})
    split(tmp_path / "seen", spin={"iterations": 1, "prompts": "seen"})
    for name in ("train", "seen", "unseen"):
        assert ids(tmp_path / "seen", name) == ids(tmp_path / "unseen", name)
    assert paired(tmp_path / "seen", 1) == ids(tmp_path / "seen", "seen")
    weights = [tmp_path / mode / "sft/model/model.safetensors" for mode in ("seen", "unseen")]
    assert weights[0].read_bytes() == weights[1].read_bytes()  # so they can be compared


class Tokenizing(Silent):
    """How many examples each tokenizing took."""

    def __init__(self) -> None:
        self.counts: list[float] = []

    def task(self, name: str, total: float, unit: str) -> Any:
        self.counts += [total] if name == "tokenize" else []
        return super().task(name, total, unit)


def test_both_sides_are_tokenized_once_for_all_runs(split: Run, tmp_path: Path) -> None:
    spin = {"iterations": 1, "unseen_share": 0.41, "baseline": "sft"}
    first, second = Tokenizing(), Tokenizing()
    for name, watching in (("first", first), ("second", second)):
        split(tmp_path / name, watching, spin=spin, data={"eval_fraction": 0.0})
    assert first.counts == [24, 16, 16]  # for SFT, self-play and the baseline, which read answers of another length
    assert second.counts == []
    weights = [tmp_path / name / "spin/iterate-1/model/model.safetensors" for name in ("first", "second")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_all_is_the_default_and_splits_nothing(split: Run, tmp_path: Path) -> None:
    results = split(tmp_path, until="sft", spin={"prompts": "all"})
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [
        "heldout.jsonl",
        "manifest.json",
        "train.jsonl",
    ]
    assert "seen" not in results["data"]
    assert results["sft"]["rows"] == 32


@pytest.mark.slow
def test_a_run_stopped_anywhere_plays_on_the_same_prompts(split: Run, contents: Contents, tmp_path: Path) -> None:
    changes = {"spin": {"refresh": 2, "baseline": "sft", "unseen_share": 0.3, "checkpoint_minutes": 0.0}}
    results = split(tmp_path / "straight", **changes)
    assert (results["data"]["seen"], results["data"]["unseen"]) == (22, 10)
    stops = until_done(split, tmp_path / "stopped", iter([1, 3, 4, 5, 4, 9, 300]), **changes)
    assert len(stops) == 6
    assert contents(tmp_path / "stopped") == contents(tmp_path / "straight")


def test_a_side_without_a_prompt_is_refused(split: Run, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"^spin.unseen_share 0.01 of 32 distinct training prompts leaves none for self-"
    ):
        split(tmp_path, spin={"unseen_share": 0.01})


def talk(*turns: str) -> dict[str, Any]:
    roles = ("user", "assistant") * len(turns)
    return {"messages": [{"role": role, "content": text} for role, text in zip(roles, turns, strict=False)]}


def test_of_conversations_no_turn_is_played_that_sft_sees(split: Run, tmp_path: Path) -> None:
    """All begin alike, so that the first turn of an unseen one is also that of a seen one."""
    data = tmp_path / "chats.jsonl"
    rows = [
        talk("Hello.", "Hi.", f"Say {word}.", word, "Again.", f"{word} {word}") for word in ("fox", "dog", "owl", "cat")
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "run"
    sections = {"data": {"train": str(data), "eval_fraction": 0.0, "turns": "all"}}
    split(out, spin={"iterations": 1, "turns": "all"}, **sections)
    seen, unseen = (read_records(out / f"data/{name}.jsonl", Example) for name in ("seen", "unseen"))
    assert (len(seen), len(unseen)) == (2, 2)
    known = {turn.prompt for example in seen for turn in turns_of_example(example)}
    expected = [turn.id for example in unseen for turn in turns_of_example(example) if turn.prompt not in known]
    assert len(expected) == 4  # the second and the third turn of two conversations
    assert paired(out, 1) == expected


def test_of_a_mixture_the_phrasings_of_a_question_stay_together(
    split: Run,
    tasks: list[str],  # noqa: F811
    tmp_path: Path,
) -> None:
    data = {"train": None, "max_length": 256, "eval_fraction": 0.2, "mixture": mixture(tasks, shots=[1, 1])}
    split(tmp_path / "run", until="sft", data=data)
    sides = [read_records(tmp_path / f"run/data/{name}.jsonl", Example) for name in ("seen", "unseen")]
    rows = [{(one.task, one.row) for one in map(provenance, (e.source for e in side)) if one} for side in sides]
    assert not rows[0] & rows[1]
    assert abs(len(rows[0]) - len(rows[1])) <= 1
    assert len(sides[0]) + len(sides[1]) == 40 > len(rows[0]) + len(rows[1])  # some rows are asked more than once
