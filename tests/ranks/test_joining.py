"""How processes meet."""

from __future__ import annotations

import os
import sys

import pytest

from spintune.errors import RankError
from spintune.ranks import rollcall
from spintune.ranks.environment import Place
from spintune.ranks.team import joined


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
