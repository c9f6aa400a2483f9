"""Numbers go to metrics.jsonl always, and to TensorBoard as well when the recipe asks for it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from spintune.errors import MissingExtraError, RecipeError
from spintune.recipe import parse_recipe
from spintune.trackers import TRACKERS, SentOnce, TrackedRun, register_tracker
from spintune.trackers.mlflow import place_without_credentials
from spintune.tracking import Metrics, Stopwatch


def recorded(folder: Path) -> dict[tuple[str, str, int], float]:
    """What TensorBoard shows: the value of every (stage, name, step)."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    values = {}
    for stage in {path.parent for path in folder.rglob("events.out.tfevents*")}:
        events = EventAccumulator(str(stage))
        events.Reload()
        for name in events.Tags()["scalars"]:
            for event in events.Scalars(name):
                key = (str(stage.relative_to(folder)), name, event.step)
                assert key not in values
                values[key] = event.value
    return values


def logged(path: Path) -> dict[tuple[str, str, int], float]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {
        (row["stage"], name, row["step"]): value
        for row in rows
        for name, value in row.items()
        if name not in ("stage", "step")
    }


def test_event_files_hold_the_numbers_of_the_log_also_after_a_restart(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    for done, last in ((0, 3), (2, 4)):  # the second attempt goes on after step 2
        metrics = Metrics(tmp_path, ["tensorboard"])
        metrics.begin("sft", done)
        metrics.begin("spin/iterate-1", done)
        for step in range(done + 1, last + 1):
            metrics.add("sft", step, loss=last + 1 / step, seconds=0.25)
            metrics.add("spin/iterate-1", step, loss=0.6931471805599453)
        metrics.close()
    found, expected = recorded(tmp_path / "tensorboard"), logged(tmp_path / "metrics.jsonl")
    assert len(expected) == 4 * 2 + 4
    assert found.keys() == expected.keys()
    for key, value in found.items():  # TensorBoard keeps float32
        assert value == pytest.approx(expected[key], rel=1e-6)


def test_without_tracking_there_is_the_log_and_nothing_else(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, [])
    metrics.begin("sft", 0)
    metrics.add("sft", 1, loss=1.0)
    metrics.close()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_missing_tensorboard_is_told_at_once_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingExtraError) as caught:
        Metrics(tmp_path, ["tensorboard"])
    assert "\n" not in str(caught.value)
    assert "pip install 'spintune[tensorboard]'" in str(caught.value)
    assert caught.value.exit_code == 8
    assert list(tmp_path.iterdir()) == []


def test_work_inside_other_work_counts_for_itself_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train from 0 to 10 with two stretches of generating, 2 to 5 and 6 to 7, the first with a second of scoring."""
    times = iter([0.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 10.0])
    monkeypatch.setattr("time.monotonic", lambda: next(times))
    clock = Stopwatch()
    with clock("train"):
        with clock("generate"), clock("score"):
            pass
        with clock("generate"):
            pass
    assert clock.seconds == {"score": 1.0, "generate": 3.0, "train": 6.0}


class Remembering:
    """A tracker of one's own."""

    def __init__(self, run: TrackedRun) -> None:
        self.run, self.heard = run, list[object]()

    def begin(self, stage: str, step: int) -> None:
        self.heard.append(("begin", stage, step))

    def add(self, stage: str, step: int, numbers: Mapping[str, float]) -> None:
        self.heard.append((stage, step, dict(numbers)))

    def finish(self, facts: Mapping[str, str]) -> None:
        self.heard.append(dict(facts))

    def close(self) -> None:
        self.heard.append("close")


class Refusing(Remembering):
    """Fails at its second step."""

    def add(self, stage: str, step: int, numbers: Mapping[str, float]) -> None:
        if step == 2:
            raise ConnectionError("the server\nis gone")
        super().add(stage, step, numbers)


@pytest.fixture
def register() -> Iterator[Callable[[str, type[Remembering]], list[Remembering]]]:
    """Registers a tracker for the test, and returns the list of those that are made."""
    names = []

    def add(name: str, kind: type[Remembering]) -> list[Remembering]:
        made: list[Remembering] = []

        def factory(run: TrackedRun) -> Remembering:
            made.append(kind(run))
            return made[-1]

        register_tracker(name, factory)
        names.append(name)
        return made

    yield add
    for name in names:
        TRACKERS.unregister(name)


Register = Callable[[str, type[Remembering]], list[Remembering]]


def state(folder: Path) -> dict[str, dict[str, int]]:
    """What each tracker has, by ``tracking.json``."""
    return {name: one["sent"] for name, one in json.loads((folder / "tracking.json").read_text())["trackers"].items()}


def test_a_registered_tracker_hears_what_the_log_gets(tmp_path: Path, register: Register) -> None:
    made = register("remembering", Remembering)
    recipe = parse_recipe({"out": "x", "model": "m", "eval": [], "tracking": "remembering"}, "test")
    metrics = Metrics(tmp_path, recipe.tracking, {"model": "m"})
    metrics.begin("sft", 0)
    metrics.add("sft", 1, loss=2.0)
    metrics.finish({"heldout": {"base": {"rouge_l": 0.25}, "sft": {"rouge_l": 0.5}}}, {"model": "sft"})
    metrics.close()
    (run,) = [one.run for one in made]
    assert (run.folder, run.name, run.recipe, run.was_killed) == (tmp_path, tmp_path.name, {"model": "m"}, False)
    assert made[0].heard == [
        ("begin", "sft", 0),
        ("sft", 1, {"loss": 2.0}),
        ("begin", "eval/heldout", 0),
        ("eval/heldout", 1, {"rouge_l": 0.25}),
        ("eval/heldout", 2, {"rouge_l": 0.5}),
        {"model": "sft"},
        "close",
    ]
    assert logged(tmp_path / "metrics.jsonl") == {("sft", "loss", 1): 2.0}
    assert state(tmp_path) == {"remembering": {"sft": 1, "eval/heldout": 2}}


def test_a_tracker_that_fails_is_told_in_a_line_and_gets_the_rest_at_the_next_start(
    tmp_path: Path, register: Register, caplog: pytest.LogCaptureFixture
) -> None:
    failing, other = register("refusing", Refusing), register("remembering", Remembering)
    metrics = Metrics(tmp_path, ["refusing", "remembering"])
    metrics.begin("sft", 0)
    for step in (1, 2, 3):
        metrics.add("sft", step, loss=float(step))
    metrics.close()
    (told,) = [record.message for record in caplog.records]
    assert told.startswith("tracking: refusing failed (ConnectionError: the server is gone); the run goes on without")
    assert other[0].heard[1:] == [*(("sft", step, {"loss": float(step)}) for step in (1, 2, 3)), "close"]
    assert "close" not in failing[0].heard
    assert state(tmp_path) == {"refusing": {"sft": 1}, "remembering": {"sft": 3}}

    TRACKERS.unregister("refusing")
    mended = register("refusing", Remembering)
    Metrics(tmp_path, ["refusing", "remembering"]).close()
    assert mended[0].heard == [("begin", "sft", 1), ("sft", 2, {"loss": 2.0}), ("sft", 3, {"loss": 3.0}), "close"]
    assert other[1].heard == ["close"]
    assert mended[0].run.id == failing[0].run.id


def test_a_tracker_that_cannot_start_does_not_stop_the_run(
    tmp_path: Path, register: Register, caplog: pytest.LogCaptureFixture
) -> None:
    class Unreachable(Remembering):
        def __init__(self, run: TrackedRun) -> None:
            raise OSError("no route to host")

    register("unreachable", Unreachable)
    metrics = Metrics(tmp_path, ["unreachable"])
    metrics.add("sft", 1, loss=1.0)
    metrics.close()
    assert "tracking: unreachable failed (OSError: no route to host)" in caplog.text
    assert logged(tmp_path / "metrics.jsonl") == {("sft", "loss", 1): 1.0}


def keeping(places: list[tuple[int, str, int]]) -> Callable[[TrackedRun], SentOnce]:
    """A tracker that keeps what it gets in ``places``."""

    class Keeping(SentOnce, Remembering):
        def __init__(self, run: TrackedRun) -> None:
            SentOnce.__init__(self, run)
            self.heard = []

        def log(self, place: int, stage: str, step: int, numbers: Mapping[str, float]) -> None:
            places.append((place, stage, step))

    return Keeping


def test_after_a_kill_a_tracker_that_keeps_everything_gets_each_step_once_at_growing_places(
    tmp_path: Path, register: Register
) -> None:
    """The first process dies after step 3, the second after step 1 again, since the checkpoint was of the start."""
    places: list[tuple[int, str, int]] = []

    register("keeping", keeping(places))
    for last in (3, 1, 4):
        metrics = Metrics(tmp_path, ["keeping"])
        metrics.begin("sft", 0)
        metrics.begin("sft/heldout", 0)
        for step in range(1, last + 1):
            metrics.add("sft", step, loss=1.0)
            if step == 2:
                metrics.add("sft/heldout", step, loss=1.0)
        metrics._log.close()  # and nothing else: the process is gone
    assert [place[1:] for place in places] == [("sft", 1), ("sft", 2), ("sft/heldout", 2), ("sft", 3), ("sft", 4)]
    assert [place[0] for place in places] == [1, 2, 5, 6, 7]


def trained(folder: Path, name: str, inputs: Mapping[str, str], shift: float, killed: bool = False) -> None:
    """A process that trains stages of two steps on these inputs, and measures a model."""
    metrics = Metrics(folder, [name])
    for stage, digest in inputs.items():
        metrics.trains(stage, digest)
        metrics.begin(stage, 0)
        for step in (1, 2):
            metrics.add(stage, step, loss=step + shift)
    if killed:
        metrics._log.close()
        return
    metrics.finish({"heldout": {"sft": {"rouge_l": shift}}}, {"model": "sft"})
    metrics.close()


@pytest.mark.parametrize("killed", [False, True])
def test_a_stage_that_is_trained_on_other_inputs_is_another_run_where_numbers_cannot_be_taken_back(
    tmp_path: Path, register: Register, caplog: pytest.LogCaptureFixture, killed: bool
) -> None:
    got: dict[str, dict[tuple[str, int], float]] = {}

    class Keeping(SentOnce, Remembering):
        def __init__(self, run: TrackedRun) -> None:
            SentOnce.__init__(self, run)
            self.heard = []

        def log(self, place: int, stage: str, step: int, numbers: Mapping[str, float]) -> None:
            assert (stage, step) not in got.setdefault(self.run.id, {})
            got[self.run.id][stage, step] = next(iter(numbers.values()))

    register("keeping", Keeping)
    trained(tmp_path, "keeping", {"other": "x", "sft": "a", "spin/iterate-1": "b"}, 0.0)
    trained(tmp_path, "keeping", {"sft": "a"}, 0.0)  # its folder was deleted: the same numbers
    first = json.loads((tmp_path / "tracking.json").read_text())["id"]
    assert list(got) == [first]
    before = dict(got[first])
    if killed:
        trained(tmp_path, "keeping", {"sft": "c"}, 0.5, killed=True)
        trained(tmp_path, "keeping", {"spin/iterate-1": "d"}, 0.5)
    else:
        trained(tmp_path, "keeping", {"sft": "c", "spin/iterate-1": "d"}, 0.5)
    assert got == {
        first: before,
        f"{first}-1": {
            ("other", 1): 1.0,
            ("other", 2): 2.0,
            ("sft", 1): 1.5,
            ("sft", 2): 2.5,
            ("spin/iterate-1", 1): 1.5,
            ("spin/iterate-1", 2): 2.5,
            ("eval/heldout", 1): 0.5,
        },
    }
    (told,) = [record.message for record in caplog.records]
    assert told == (
        "tracking: keeping cannot take numbers back, and sft is trained on other inputs; what follows is another run "
        f"there, {first}-1"
    )


def test_a_tracker_that_was_left_out_while_a_stage_was_trained_again_has_another_run(
    tmp_path: Path, register: Register
) -> None:
    made, _ = register("remembering", Remembering), register("other", Remembering)
    trained(tmp_path, "remembering", {"sft": "a"}, 0.0)
    trained(tmp_path, "other", {"sft": "c"}, 0.5)
    trained(tmp_path, "remembering", {}, 0.5)
    assert [one.run.id.removeprefix(made[0].run.id) for one in made] == ["", "-1"]
    assert [("sft", step, {"loss": step + 0.5}) for step in (1, 2)] == made[1].heard[1:3]


def test_event_files_hold_a_stage_as_it_was_trained_last(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    for digest, shift in (("a", 0.0), ("c", 0.5)):
        trained(tmp_path, "tensorboard", {"sft": digest}, shift)
    assert recorded(tmp_path / "tensorboard") == {
        ("sft", "loss", 1): 1.5,
        ("sft", "loss", 2): 2.5,
        ("eval/heldout", "rouge_l", 1): 0.5,
    }


def test_what_is_measured_before_training_is_sent_once_too(tmp_path: Path, register: Register) -> None:
    places: list[tuple[int, str, int]] = []

    for name in ("keeping", "late", "old"):
        register(name, keeping(places))
    for _ in range(2):  # killed after step 1, and begun again
        metrics = Metrics(tmp_path, ["keeping"])
        metrics.begin("sft", 0)
        metrics.begin("sft/heldout", -1)
        metrics.add("sft/heldout", 0, loss=3.0)
        metrics.add("sft", 1, loss=1.0)
        metrics._log.close()
    sent = [(0, "sft/heldout", 0), (2, "sft", 1)]
    assert places == sent
    metrics.add("sft/heldout", 4, loss=2.0)
    metrics.close()
    places.clear()
    Metrics(tmp_path, ["late"]).close()  # named by the recipe later
    assert places == [*sent, (6, "sft/heldout", 4)]
    # an earlier version did not send step 0, and its last place was 4 + 1
    state = json.loads((tmp_path / "tracking.json").read_text())
    state["trackers"]["old"] = {"sent": {"sft/heldout": 4, "sft": 1}, "open": False}
    (tmp_path / "tracking.json").write_text(json.dumps(state))
    places.clear()
    metrics = Metrics(tmp_path, ["old"])
    metrics.add("sft", 2, loss=1.0)
    metrics.close()
    assert places == [(7, "sft", 2)]


def test_event_files_hold_what_was_measured_before_training(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    for _ in range(2):
        metrics = Metrics(tmp_path, [])
        metrics.begin("sft/heldout", -1)
        for step in (0, 4):
            metrics.add("sft/heldout", step, loss=3.0 - step)
        metrics.close()
    for _ in range(2):
        Metrics(tmp_path, ["tensorboard"]).close()
    assert recorded(tmp_path / "tensorboard") == {("sft/heldout", "loss", 0): 3.0, ("sft/heldout", "loss", 4): -1.0}


def test_a_damaged_state_starts_another_run_with_a_line(
    tmp_path: Path, register: Register, caplog: pytest.LogCaptureFixture
) -> None:
    made = register("remembering", Remembering)
    (tmp_path / "tracking.json").write_text("{")
    Metrics(tmp_path, ["remembering"]).close()
    assert "damaged" in caplog.text
    assert json.loads((tmp_path / "tracking.json").read_text())["id"] == made[0].run.id


def test_runs_of_a_sweep_are_a_group(tmp_path: Path, register: Register) -> None:
    made = register("remembering", Remembering)
    (tmp_path / "study" / "seed=0").mkdir(parents=True)
    (tmp_path / "study" / "sweep.json").write_text("{}")
    Metrics(tmp_path / "study" / "seed=0", ["remembering"]).close()
    assert (made[0].run.group, made[0].run.title) == ("study", "study/seed=0")


def test_an_unknown_tracker_is_refused_when_the_recipe_is_read() -> None:
    with pytest.raises(RecipeError, match=r"tracking.0: there is no tracker 'tensorbord'; did you mean tensorboard\?"):
        parse_recipe({"out": "x", "model": "m", "eval": [], "tracking": ["tensorbord"]}, "test")


def test_a_tracker_is_named_once() -> None:
    with pytest.raises(RecipeError, match="tracking names tensorboard twice"):
        parse_recipe({"out": "x", "model": "m", "eval": [], "tracking": ["tensorboard", "tensorboard"]}, "test")


@pytest.mark.parametrize("name", ["tensorboard", "trackio", "wandb", "mlflow"])
def test_reading_a_recipe_imports_no_tracker(name: str) -> None:
    program = (
        "import sys; from spintune.recipe import parse_recipe\n"
        f"parse_recipe(dict(out='x', model='m', eval=[], tracking={name!r}), 'test')\n"
        f"print([one for one in ('torch', 'tensorboard', 'trackio', 'wandb', 'mlflow') if one in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "[]\n"


@pytest.mark.parametrize("name", ["trackio", "wandb", "mlflow"])
def test_a_missing_package_is_one_line_with_what_to_install(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=rf"tracking: {name} .*; pip install 'spintune\[{name}\]', or drop it"):
        Metrics(tmp_path, [name])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("https://me:secret@mlflow.corp/x", "https://mlflow.corp/x"),
        ("postgresql://u:secret@db/mlflow", "mlflow ui --backend-store-uri postgresql://db/mlflow"),
        ("sqlite:///mlflow.db", "mlflow ui --backend-store-uri sqlite:///mlflow.db"),
    ],
)
def test_where_mlflow_keeps_a_run_is_told_without_its_password(uri: str, shown: str) -> None:
    assert place_without_credentials(uri) == shown
