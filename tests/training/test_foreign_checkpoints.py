"""A checkpoint of other training is refused; one without a seal, or of another number of ranks, is gone on from."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save

from spintune.errors import RunError
from spintune.training.checkpoint import Checkpoints
from spintune.training.optimization import Optimization, build_optimizer, optimizer_tensors
from spintune.unfinished import seal_checkpoint

MINE, OTHER = "0123456789ab", "ba9876543210"


def checkpoints(folder: Path, inputs: str | None = MINE) -> Checkpoints:
    return Checkpoints(folder, 0, inputs=inputs)


def made(size: int = 4) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    model = torch.nn.Sequential(torch.nn.Linear(size, 3))
    optimizer = build_optimizer(model, Optimization(1e-3))
    model(torch.ones(1, size)).sum().backward()
    optimizer.step()
    return model, optimizer


def sharded(folder: Path, step: int, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """What the ranks of sharded training write, by one."""
    state = {f"weights.{name}": weight.detach() for name, weight in model.named_parameters()}
    state |= {f"optimizer.{name}": value for name, value in optimizer_tensors(optimizer).items()}
    place = folder / f"step-{step:08d}"
    save(dict[str, object](state), storage_writer=FileSystemWriter(place), no_dist=True)
    seal_checkpoint(place, step, inputs=OTHER)


def whole(folder: Path, step: int, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    checkpoints(folder, OTHER).save(step, model, optimizer)


def without_seal(folder: Path) -> None:
    """As an earlier version wrote it, which sealed step and files."""
    (path,) = folder.rglob("checkpoint.json")
    facts = json.loads(path.read_text())
    for name in ("inputs", "digest"):
        del facts[name]
    path.write_text(json.dumps(facts))


Write = Callable[[Path, int, torch.nn.Module, torch.optim.Optimizer], None]


@pytest.mark.parametrize("write", [whole, sharded])
def test_one_of_other_inputs_is_refused_though_it_has_the_same_shapes(write: Write, tmp_path: Path) -> None:
    write(tmp_path, 2, *made())
    model, optimizer = made()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    what = f"{tmp_path}/step-00000002: is of other training"
    with pytest.raises(RunError, match=f"^{re.escape(what)}.*delete {re.escape(str(tmp_path))} ") as caught:
        checkpoints(tmp_path).restore(model, optimizer)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert checkpoints(tmp_path, OTHER).restore(model, optimizer) == 2


@pytest.mark.parametrize("write", [whole, sharded])
def test_one_of_an_earlier_version_is_used_if_its_weights_are_those_of_the_model(write: Write, tmp_path: Path) -> None:
    written, optimizer = made()
    write(tmp_path, 2, written, optimizer)
    without_seal(tmp_path)
    model, optimizer = made()
    assert checkpoints(tmp_path).restore(model, optimizer) == 2
    assert all(torch.equal(value, written.state_dict()[name]) for name, value in model.state_dict().items())
    with pytest.raises(RunError, match="of other training"):
        checkpoints(tmp_path).restore(*made(size=5))


def test_the_seal_is_part_of_the_digest(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole(tmp_path, 2, *made())
    (path,) = tmp_path.rglob("checkpoint.json")
    path.write_text(path.read_text().replace(OTHER, MINE))
    assert checkpoints(tmp_path).restore(*made()) == 0
    assert "damaged" in caplog.text


def test_best_weights_of_other_inputs_are_refused(tmp_path: Path) -> None:
    for folder, inputs in ((tmp_path / "mine", MINE), (tmp_path / "other", OTHER)):
        model, optimizer = made()
        saving = checkpoints(folder, inputs)
        saving.save_best(1, model)
        saving.save(2, model, optimizer)
    shutil.rmtree(tmp_path / "mine/best-00000001")
    shutil.copytree(tmp_path / "other/best-00000001", tmp_path / "mine/best-00000001")
    with pytest.raises(RunError, match="best-00000001: is of other training"):
        checkpoints(tmp_path / "mine").restore(*made())
