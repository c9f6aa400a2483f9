"""A stage that another run has finished is copied whole, or not at all."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from spintune.errors import StorageError
from spintune.recipe import parse_recipe
from spintune.run_folder import RunFolder
from spintune.sibling_runs import SiblingRuns
from spintune.storage import digest_json
from spintune.trackers import TRACKERS
from spintune.tracking import Metrics

INPUTS = {"model": "abc", "rate": 1e-3}
STEPS = [
    {"stage": "data", "step": 1, "rows": 3},
    {"stage": "spin/iterate-1", "step": 1, "loss": 2.0},
    {"stage": "spin/iterate-1/pairs", "step": 1, "auc": 0.5},
    {"stage": "spin/iterate-1", "step": 2, "loss": 1.0},
    {"stage": "spin/iterate-1/heldout", "step": 0, "loss": 3.0},
]


def run_folder(out: Path) -> RunFolder:
    return RunFolder(parse_recipe({"out": str(out), "model": "m", "eval": []}, "test"))


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A run with two finished stages, one inside the other's folder."""
    folder = tmp_path / "other"
    stage = folder / "spin/iterate-1"
    with run_folder(folder) as run:
        for name, text in {"model/a/weights": "w" * 3_000_000, "model/config": "{}", "rows.jsonl": "[]\n"}.items():
            (stage / name).parent.mkdir(parents=True, exist_ok=True)
            (stage / name).write_text(text)
        (stage / "samples.jsonl").write_text("{}\n")
        (stage / "pairs").mkdir()
        (stage / "pairs/train.jsonl").write_text("[1]\n")
        run.finish("spin/iterate-1/pairs", INPUTS, [stage / "pairs/train.jsonl"], {"kept": "1"})
        run.finish("spin/iterate-1", INPUTS, [stage / "model", stage / "rows.jsonl"], {"seconds": {"train": 1.0}})
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in STEPS))
    return folder


@pytest.fixture
def copied(tmp_path: Path) -> Callable[..., RunFolder]:
    """A new run beside others, which has asked for the stage."""

    def build(*siblings: Path, inputs: dict[str, object] = INPUTS) -> tuple[object, list[str]]:
        notes: list[str] = []
        with run_folder(tmp_path / "out") as run:
            metrics = Metrics(run.folder, [])
            run.siblings = SiblingRuns([run.folder, *siblings], run.folder, metrics, notes.append)
            found = run.finished("spin/iterate-1", inputs)
            metrics.close()
            # what was copied is finished without the other run
            run.siblings = None
            assert run.finished("spin/iterate-1", inputs) == found
        return found, notes

    return build


def test_a_copy_is_whole_and_independent(other: Path, copied: Callable[..., object], tmp_path: Path) -> None:
    found, notes = copied(tmp_path / "nothing", other)
    assert found == {"seconds": {"train": 1.0}}
    assert notes == ["spin/iterate-1: copied from other, which computed it from the same inputs"]
    out, stage = tmp_path / "out", tmp_path / "out/spin/iterate-1"
    names = ["model/a/weights", "model/config", "rows.jsonl", "samples.jsonl", "manifest.json"]
    assert sorted(str(path.relative_to(stage)) for path in stage.rglob("*") if path.is_file()) == sorted(names)
    for name in names:
        assert (stage / name).read_bytes() == (other / "spin/iterate-1" / name).read_bytes()
        assert (stage / name).stat().st_nlink == 1  # an edit in place reaches no other run
    assert (stage / "model/config").stat().st_mtime_ns == (other / "spin/iterate-1/model/config").stat().st_mtime_ns
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert rows == [STEPS[1], STEPS[3], STEPS[4]]  # not of the stages inside and beside it


def test_other_inputs_are_another_stage(other: Path, copied: Callable[..., object]) -> None:
    assert copied(other, inputs={**INPUTS, "rate": 2e-3}) == (None, [])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def _discard(path: Path) -> None:
    with run_folder(path.parents[4]) as run:
        run.discard("spin/iterate-1", "model")


DAMAGES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "a changed file": ("spin/iterate-1/model/a/weights", _flip),
    "a missing file": ("spin/iterate-1/model/a/weights", Path.unlink),
    "a link": ("spin/iterate-1/model/a/weights", _link),
    "deleted weights": ("spin/iterate-1/model/a/weights", _discard),
    "a manifest": ("spin/iterate-1/manifest.json", _flip),
    "metrics": ("metrics.jsonl", lambda path: path.write_bytes(b"{\n" + path.read_bytes())),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_not_whole_is_not_copied(
    other: Path, copied: Callable[..., object], tmp_path: Path, damage: str
) -> None:
    name, harm = DAMAGES[damage]
    harm(other / name)
    assert copied(other) == (None, [])
    assert not (tmp_path / "out/spin/iterate-1/manifest.json").exists()
    assert not list((tmp_path / "out").rglob("*spintune-partial"))


def test_a_whole_copy_is_found_behind_a_damaged_one(other: Path, copied: Callable[..., object], tmp_path: Path) -> None:
    shutil.copytree(other, tmp_path / "damaged")
    _flip(tmp_path / "damaged/spin/iterate-1/model/a/weights")
    _, notes = copied(tmp_path / "damaged", other)
    assert [note.split()[3] for note in notes] == ["other,"]


@pytest.mark.parametrize("changes", [{"precision": "bfloat16"}, {"tokens_per_forward": 512}])
def test_a_run_with_other_arithmetic_gives_nothing(
    other: Path, copied: Callable[..., object], changes: dict[str, object]
) -> None:
    """Within a run neither can change, or only last bits do, so they are no inputs of a stage."""
    bound = json.loads((other / "recipe.json").read_text())
    (other / "recipe.json").write_text(json.dumps({**bound, "recipe": {**bound["recipe"], **changes}}))
    assert copied(other) == (None, [])


def test_a_file_is_found_by_a_fact_of_its_stage(other: Path, tmp_path: Path) -> None:
    """Other inputs of the stage may not matter for one of its files."""
    notes: list[str] = []
    with run_folder(tmp_path / "out"):
        pass
    siblings = SiblingRuns([tmp_path / "nothing", other], tmp_path / "out", Metrics(tmp_path / "out", []), notes.append)
    asked = ("spin/iterate-1/pairs", "train.jsonl", "kept")
    path = other / "spin/iterate-1/pairs/train.jsonl"
    assert siblings.file(*asked, "1") == path
    assert notes == ["spin/iterate-1/pairs: train.jsonl of other has the same inputs"]
    assert siblings.file(*asked, "2") is None
    assert siblings.file("spin/iterate-1/pairs", "answers.jsonl", "kept", "1") is None
    _link(path)
    assert siblings.file(*asked, "1") is None
    path.unlink()
    path.write_text("[2]\n")
    assert siblings.file(*asked, "1") is None


def test_no_room_for_a_copy_is_an_error(other: Path, copied: Callable[..., object]) -> None:
    """Computing the stage instead would need the same room."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    try:
        with pytest.raises(StorageError, match="larger than allowed"):
            copied(other)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_trackers_get_the_copied_steps(other: Path, tmp_path: Path) -> None:
    told: list[tuple[object, ...]] = []

    class Tells:
        def begin(self, stage: str, step: int) -> None:
            told.append((stage, step))

        def add(self, stage: str, step: int, numbers: dict[str, float]) -> None:
            told.append((stage, step, numbers["loss"]))

        def close(self) -> None: ...

    TRACKERS.register("tells", lambda folder: Tells())
    try:
        with run_folder(tmp_path / "out"):
            pass
        metrics = Metrics(tmp_path / "out", ["tells"])
        assert SiblingRuns([other], tmp_path / "out", metrics, print).copy("spin/iterate-1", digest_json(INPUTS))
        metrics.close()
    finally:
        TRACKERS.unregister("tells")
    steps = [("spin/iterate-1", 1, 2.0), ("spin/iterate-1", 2, 1.0), ("spin/iterate-1/heldout", 0, 3.0)]
    assert told == [("spin/iterate-1", -1), ("spin/iterate-1/heldout", -1), *steps]
