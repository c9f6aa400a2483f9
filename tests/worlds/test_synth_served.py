"""Against a real server with a real model: both sides are killed in the middle, and nothing is lost or asked twice."""

from __future__ import annotations

import json
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from command_server import Command
from transformers_serve import free_port, served

pytest.importorskip("uvicorn")
pytest.importorskip("fastapi")


def kept(path: Path) -> tuple[int, int]:
    """Distinct replies on disk, and requests that were paid for."""
    if not path.is_file():
        return 0, 0
    with closing(sqlite3.connect(path)) as database:
        if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'outcomes'").fetchone():
            return 0, 0  # the client has just made the file
        (outcomes,) = database.execute("SELECT COUNT(*) FROM outcomes").fetchone()
        (paid,) = database.execute("SELECT COALESCE(SUM(requests), 0) FROM spent").fetchone()
    return outcomes, paid


@pytest.mark.slow
def test_a_real_server_and_its_client_may_both_die_in_the_middle(
    values: Callable[..., dict[str, Any]], smollm2: Path, tmp_path: Path
) -> None:
    port = free_port()
    teacher = {"url": f"http://127.0.0.1:{port}/v1", "model": str(smollm2), "concurrency": 1, "max_retries": 0}
    teacher["timeout_seconds"] = 120.0
    synth = {"teacher": teacher, "instructions": 3, "requests_per_round": 2, "max_tokens": 48, "instance_tokens": 32}
    # greedy, so that what the server writes does not depend on when it was started
    synth |= {"temperature": 0.0, "top_p": 1.0, "presence_penalty": 0.0, "patience": 3}
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(
        json.dumps(values(out, model=str(smollm2), synth=synth, data={"train": "synth"}, sft=None, spin=None, eval=[]))
    )
    replies = out / "synth" / "replies.sqlite"

    with served(port, tmp_path / "server.log"):
        client = Command("synth", recipe)
        deadline = time.monotonic() + 240
        while kept(replies)[0] < 2 and client.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        client.signal(signal.SIGKILL)
        client.wait()
    before = kept(replies)
    assert before[0] >= 2

    down = Command("synth", recipe)
    assert down.wait() == 9, down.err
    assert kept(replies)[0] == before[0]

    with served(port, tmp_path / "server.log"):
        done = Command("synth", recipe)
        code = done.wait(400)
    assert code == 0 or "no usable task" in done.err or "no example passed" in done.err, done.err
    outcomes, paid = kept(replies)
    assert outcomes > before[0]
    # each reply was paid for once; attempts on the dead server brought nothing and may count as requests
    assert paid - outcomes <= 1
