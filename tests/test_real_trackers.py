"""The real packages, offline: a run that is killed and goes on is one run there, with each step once.

Each is tested where it is installed. They run in processes of their own, in which a connection to another machine fails
and is told.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

PROGRAM = """
import os, signal, sys, time
from pathlib import Path

def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        place = arguments[1] if event == "socket.connect" else arguments[0]
        host = place[0] if isinstance(place, tuple) else place
        if isinstance(place, tuple) or event == "socket.getaddrinfo":
            if host not in ("127.0.0.1", "::1", "localhost", b"localhost", None):
                with open("calls.txt", "a") as file:
                    file.write(f"{host}\\n")
                raise OSError("no network here")

sys.addaudithook(refuse)
from spintune.tracking import Metrics

name, folder, first, last, ending = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
folder.mkdir(parents=True, exist_ok=True)
metrics = Metrics(folder, [name], {"model": "tiny", "sft": {"learning_rate": 0.5, "epochs": None}})
metrics.begin("sft", first)
metrics.begin("sft/heldout", first)
for step in range(first + 1, last + 1):
    metrics.add("sft", step, loss=1 / step, seconds=0.25)
    if step == 3:
        metrics.add("sft/heldout", step, loss=3.5)
if ending == "kill":
    time.sleep(2)  # longer than any of them waits before it stores
    os.kill(os.getpid(), signal.SIGKILL)
metrics.begin("spin/iterate-1", 0)
metrics.add("spin/iterate-1", 1, loss=0.5)
metrics.finish({"heldout": {"base": {"rouge_l": 0.25}, "sft": {"rouge_l": 0.5}}}, {"model": "sft", "why": "it is best"})
print(metrics.places())
metrics.close()
"""

NUMBERS = {
    **{("sft/loss", step): 1 / step for step in range(1, 8)},
    **{("sft/seconds", step): 0.25 for step in range(1, 8)},
    ("sft/heldout/loss", 3): 3.5,
    ("spin/iterate-1/loss", 1): 0.5,
    ("eval/heldout/rouge_l", 1): 0.25,
    ("eval/heldout/rouge_l", 2): 0.5,
}
"""By name and step, what a tracker has of a run of 7 steps that was killed after 5 and went on from 4."""


@pytest.fixture
def tracked(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    """A run that was killed and went on, with the tracker of the test's parameter: its folder and what it printed."""
    name = request.param
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    own = {
        "HOME": str(tmp_path),
        "TRACKIO_DIR": str(tmp_path / "store"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'store.db'}",
        "HF_HOME": str(tmp_path / "hf"),
    }
    theirs = ("WANDB_", "MLFLOW_", "TRACKIO_", "DO_NOT_TRACK", "CI", "PYTEST_")  # MLflow is silent in tests by itself
    environment = {key: value for key, value in os.environ.items() if not key.startswith(theirs)} | own
    printed = []
    for first, last, ending in ((0, 5, "kill"), (4, 7, "end")):
        words = [sys.executable, "-c", PROGRAM, name, "runs/support", str(first), str(last), ending]
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        expected = -signal.SIGKILL if ending == "kill" else 0
        assert done.returncode == expected, done.stderr
        assert "failed" not in done.stderr, done.stderr
        printed.append(done.stdout)
    calls = tmp_path / "calls.txt"
    assert not calls.exists(), Counter(calls.read_text().split())
    return tmp_path, printed[-1]


def run_id(folder: Path) -> str:
    return str(json.loads((folder / "runs/support/tracking.json").read_text())["id"])


@pytest.mark.slow
@pytest.mark.parametrize("tracked", ["trackio"], indirect=True)
def test_trackio(tracked: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    import sqlite3

    folder, printed = tracked
    assert printed == "['numbers also go to trackio: trackio show --project spintune']\n"
    with sqlite3.connect(folder / "store" / "spintune.db") as store:
        rows = store.execute("SELECT run_name, step, metrics FROM metrics ORDER BY step").fetchall()
        configs = store.execute("SELECT run_name, config FROM configs").fetchall()
    assert {row[0] for row in rows} == {f"support-{run_id(folder)}"}
    assert len({row[1] for row in rows}) == len(rows)
    found = [(json.loads(metrics), step) for _, step, metrics in rows]
    places = [(stage, numbers[f"{stage}/step"]) for numbers, _ in found for stage in stages(numbers)]
    assert len(set(places)) == len(places)
    values = {
        (name, numbers[f"{stage}/step"]): value
        for numbers, _ in found
        for stage in stages(numbers)
        for name, value in numbers.items()
        if not name.endswith("/step")
    }
    assert values == NUMBERS
    (outcome,) = [numbers for numbers, _ in found if "outcome/model" in numbers]
    assert outcome == {"outcome/model": "sft", "outcome/why": "it is best"}
    assert all(json.loads(config)["model"] == "tiny" for _, config in configs)
    assert configs


def stages(numbers: dict[str, float]) -> list[str]:
    return [name.removesuffix("/step") for name in numbers if name.endswith("/step")]


@pytest.mark.slow
@pytest.mark.parametrize("tracked", ["mlflow"], indirect=True)
def test_mlflow(tracked: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow

    folder, printed = tracked
    uri = f"sqlite:///{folder / 'store.db'}"
    assert f"mlflow ui --backend-store-uri {uri} (experiment spintune)" in printed
    client = mlflow.MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("spintune").experiment_id])
    assert run.info.run_name == "support"
    assert run.info.status == "FINISHED"
    assert run.data.params == {"model": "tiny", "sft.learning_rate": "0.5"}
    assert run.data.tags["spintune.id"] == run_id(folder)
    assert (run.data.tags["outcome.model"], run.data.tags["outcome.why"]) == ("sft", "it is best")
    found = [
        ((name, point.step), point.value)
        for name in run.data.metrics
        for point in client.get_metric_history(run.info.run_id, name)
    ]
    assert len(found) == len(NUMBERS)
    assert dict(found) == NUMBERS


def wandb_records(file: bytes) -> Iterator[bytes]:
    """The records of a .wandb file: a header of 7 bytes, then LevelDB's log format in blocks of 32 KiB."""
    at, whole = 7, b""
    while at + 7 <= len(file):
        if (left := -at % 32768) and left < 7:  # no room for a header: zeros up to the next block
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", file, at)
        whole += file[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # full, last
            yield whole
            whole = b""


@pytest.mark.slow
@pytest.mark.parametrize("tracked", ["wandb"], indirect=True)
def test_wandb_offline(tracked: tuple[Path, str]) -> None:
    from wandb.proto import wandb_internal_pb2

    folder, printed = tracked
    assert f"wandb sync runs/support/wandb/offline-run-*-{run_id(folder)}" in printed
    rows, configs, summary = [], {}, {}
    for file in sorted(folder.glob("runs/support/wandb/offline-run-*/*.wandb")):
        for data in wandb_records(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.HasField("run"):
                assert record.run.run_id == run_id(folder)
                assert (record.run.display_name, record.run.project) == ("support", "spintune")
                configs |= {item.key: item.value_json for item in record.run.config.update}
            if record.HasField("history"):
                items = {one.key or "/".join(one.nested_key): json.loads(one.value_json) for one in record.history.item}
                rows.append({key: value for key, value in items.items() if key[0] != "_" or key == "_step"})
            if record.HasField("summary"):
                summary |= {"/".join(item.nested_key) or item.key: item.value_json for item in record.summary.update}
    steps = [row["_step"] for row in rows]
    assert steps == sorted(set(steps))
    values = [
        ((name, row[f"{stage}/step"]), value)
        for row in rows
        for stage in stages(row)
        for name, value in row.items()
        if not name.endswith("step")
    ]
    assert sorted(values) == sorted(NUMBERS.items())
    assert configs["model"] == '"tiny"'
    assert summary["model"] == '"sft"'


@pytest.mark.slow
@pytest.mark.parametrize("tracked", ["tensorboard"], indirect=True)
def test_tensorboard(tracked: tuple[Path, str]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, printed = tracked
    assert "tensorboard --logdir runs/support/tensorboard" in printed
    root, found = folder / "runs/support/tensorboard", []
    for stage in {path.parent for path in root.rglob("events.out.tfevents*")} - {root}:
        events = EventAccumulator(str(stage))
        events.Reload()
        for name in events.Tags()["scalars"]:
            found += [((f"{stage.relative_to(root)}/{name}", one.step), one.value) for one in events.Scalars(name)]
    assert len(found) == len(NUMBERS)
    assert dict(found) == pytest.approx(NUMBERS, rel=1e-6)
    texts = EventAccumulator(str(root))
    texts.Reload()
    (model,) = texts.Tensors("model/text_summary")
    assert model.tensor_proto.string_val == [b"sft"]
