"""How processes meet, and how long they wait for each other afterwards."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest
import torch
from forked_team import on_ranks

from spintune.errors import RankError
from spintune.ranks import rollcall
from spintune.ranks import team as teams
from spintune.ranks.environment import Place
from spintune.ranks.team import Team, joined


@pytest.mark.parametrize(("platform", "loopback"), [("linux", "lo"), ("darwin", "lo0"), ("win32", None)])
def test_processes_of_one_machine_meet_on_its_loopback(
    monkeypatch: pytest.MonkeyPatch, platform: str, loopback: str | None
) -> None:
    """macOS calls it lo0. Windows has no short name for it; gloo finds an interface by itself."""

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("nobody came")

    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(rollcall, "_open", fails)
    with pytest.raises(RankError, match="nobody came"), joined(Place(0, 2, 0, 2, "127.0.0.1", 29500, "torchrun")):
        pass
    assert os.environ.get("GLOO_SOCKET_IFNAME") == loopback


def _add(team: Team) -> list[float]:
    ones = torch.ones(3)
    team.add(ones)
    return ones.tolist()


@pytest.mark.slow
def test_ranks_wait_longer_for_work_than_for_each_other_to_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stage that one rank does alone may take hours; only who never comes is given up."""
    monkeypatch.setattr(teams, "JOIN_MINUTES", 2 / 60)

    def write(team: Team) -> None:
        time.sleep(5)
        assert team.call(_add) == [2.0] * 3

    on_ranks(2, write, tmp_path)
