"""Whole runs whose answers another engine writes, met at an address or started by the run."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import engine_server
import pytest
from engine_server import EngineServer
from real_vllm import vllm_or_skip
from tiny_folders import write_llama
from watching import Watching

from spintune.errors import RunError, ServerError
from spintune.generation.served.process import vllm_program
from spintune.pipeline import run_recipe
from spintune.recipe import parse_recipe
from spintune.records import Pair, read_records

SMALL = {"sft": None, "eval": ["heldout"], "spin": {"iterations": 1, "learning_rate": 1e-2}}


def facts(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())["facts"]


def test_a_run_asks_a_server_and_goes_on_when_the_next_model_is_served(
    run: Callable[..., Any], tiny_model: Path, tmp_path: Path
) -> None:
    out, servers = tmp_path / "run", [EngineServer(tiny_model, "llama.cpp")]
    engine = {"engine": "llama.cpp", "max_retries": 0}
    try:
        # the base model plays; what it learned is another model, which nobody serves yet
        with pytest.raises(ServerError, match=r"another model than iterate-1.*serve .*iterate-1/model there"):
            run(out, generate={**engine, "url": servers[0].url}, **SMALL)
        pairs = facts(out / "spin/iterate-1/pairs")
        assert pairs["engine"]["engine"] == "llama.cpp"
        assert pairs["engine"]["version"] == "b6000-abcdef"
        assert pairs["engine"]["urls"] == [servers[0].url]
        assert 0 <= pairs["gap"]["per_token"] < 1e-3
        train = read_records(out / "spin/iterate-1/pairs/train.jsonl", Pair)
        gaps = [abs(a.sampled - a.opponent) for p in train for a in p.generated if a.sampled and a.opponent]
        assert len(gaps) <= pairs["gap"]["answers"]
        assert max(gaps) == pytest.approx(pairs["gap"]["largest"], abs=1e-3)
        asked = len(servers[0].asked)

        servers.append(EngineServer(out / "spin/iterate-1/model", "llama.cpp"))
        watching = Watching()
        urls = [server.url for server in servers]
        run(out, generate={**engine, "url": urls}, progress=watching, **SMALL)
        assert any("left out" in note for note in watching.notes)
        assert facts(out / "eval/heldout/iterate-1")["engine"]["urls"] == urls[1:]
        again = len(servers[0].asked)
        run(out, generate={**engine, "url": urls}, **SMALL)  # all is finished, and nobody is asked
        assert len(servers[0].asked) == again > asked
        # whoever wrote the answers is part of what the run is
        with pytest.raises(RunError, match="generate"):
            run(out, **SMALL)
    finally:
        for server in servers:
            server.stop()


def test_answers_of_another_model_are_thrown_away_and_asked_for_again(
    run: Callable[..., Any], tiny_model: Path, tmp_path: Path
) -> None:
    """A server that changes its model after it was checked; the scores of its answers tell."""
    out, server = tmp_path / "run", EngineServer(tiny_model, "llama.cpp")

    def of_another_model(reply: dict[str, Any]) -> dict[str, Any]:
        for token in reply["completion_probabilities"]:
            token["logprob"] -= 0.5
        return reply

    class Checked(Watching):
        def note(self, text: str) -> None:
            if "writes for base" in text:
                server.mend = of_another_model
            super().note(text)

    generate = {"engine": "llama.cpp", "max_retries": 0, "url": server.url}
    try:
        with pytest.raises(ServerError, match=r"differ from the scores here by 0\.5 nats a token .*thrown away"):
            run(out, generate=generate, progress=Checked(), **SMALL)
        assert not (out / "spin/iterate-1/pairs/manifest.json").exists()
        assert not list(out.rglob("shards"))
        assert not (out / "spin/heldout/base").exists()
        server.mend, asked = lambda reply: reply, len(server.asked)
        with pytest.raises(ServerError, match="another model than iterate-1"):  # which is trained by then
            run(out, generate=generate, **SMALL)
        pairs = facts(out / "spin/iterate-1/pairs")
        assert len(server.asked) - asked >= pairs["train"]["played"] > 0
        assert pairs["gap"]["per_token"] < 1e-3
    finally:
        server.stop()


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["a stand-in", "vllm"])
def test_a_run_starts_a_server_for_each_model_and_ends_it(
    values: Callable[..., dict[str, Any]], cache: Path, tmp_path: Path, engine: str
) -> None:
    program, real = tmp_path / "vllm", f"{sys.executable} {engine_server.__file__}"
    generate = {"engine": "vllm", "devices": "cpu"}
    if engine == "vllm":
        generate, real = vllm_or_skip(), vllm_program(os.environ)
    program.write_text(f'#!/bin/sh\necho $$ >> {tmp_path}/pids\nexec {real} "$@"\n')
    program.chmod(0o755)
    environment = {**os.environ, "SPINTUNE_VLLM": str(program)}
    out, watching = tmp_path / "run", Watching()
    # heads of 32, the smallest that vLLM computes on a CPU
    model = write_llama(tmp_path / "model", hidden_size=128)
    recipe = values(out, model=str(model), generate=generate, **SMALL)
    run_recipe(parse_recipe(recipe, "test"), cache, watching, environment=environment)
    loads = [name for name in watching.tasks if "loads" in name]
    # base plays; iterate-1 is diagnosed and, still served, evaluated first, though base is in memory in between
    assert loads == ["vllm loads base", "vllm loads iterate-1", "vllm loads base"]
    for stage, name in (("spin/iterate-1/pairs", "base"), ("eval/heldout/iterate-1", "iterate-1")):
        written_by = facts(out / stage)["engine"]
        assert (written_by["engine"], written_by["model"], written_by["urls"]) == ("vllm", name, [])
        assert written_by["probe_gap"] < 1e-4
    assert facts(out / "spin/iterate-1/pairs")["gap"]["per_token"] < 1e-4
    pids = [int(line) for line in (tmp_path / "pids").read_text().split()]
    assert len(pids) == len(loads)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
