"""A rank of sharded training reads its weights a layer at a time, and keeps its share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from forked_team import on_ranks
from tiny_folders import write_llama
from torch.profiler import ProfilerActivity, profile

from spintune.engine.logprobs import LogProbEngine
from spintune.engine.sharded import shard_model, whole_weights
from spintune.engine.sharing import ENGINE
from spintune.models.loading import load_model
from spintune.ranks.team import Team

LAYERS = 12
SIZES = {"hidden_size": 64, "intermediate_size": 256, "num_key_value_heads": 4, "num_hidden_layers": LAYERS}


def _peak(work: Callable[[], object], mapped: int) -> int:
    """The most bytes of tensors that ``work`` holds at once: what torch's allocator gives less what it gets back.

    Args:
        mapped: size of a file that is mapped and not read; it does not count.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        kept = work()
    events = [one for one in profiled.profiler.kineto_results.events() if one.name() == "[memory]"]  # type: ignore[union-attr]
    live = peak = 0
    for event in sorted(events, key=lambda one: one.start_ns()):
        if abs(event.nbytes()) != mapped:
            live += event.nbytes()
            peak = max(peak, live)
    del kept
    return peak


def _read(team: Team, folder: str, cache: str, unread: bool) -> list[int]:
    """Bytes at the most, of each rank."""

    def load() -> LogProbEngine:
        loaded = load_model(folder, cache=Path(cache), unread=unread)
        assert (loaded.unread is not None) == unread
        engine = LogProbEngine.unprobed(loaded.model, None, 0.0)  # probes need some memory, alike for all
        if loaded.unread:
            assert loaded.unread.standin is not None
            loaded.unread.standin = None
        shard_model(engine, team, 1, loaded.unread)
        team.objects[ENGINE] = engine
        return engine

    return team.gather(_peak(load, Path(folder, "model.safetensors").stat().st_size if unread else 0))


@pytest.mark.slow
def test_a_rank_holds_its_share_and_a_layer(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "llama", **SIZES)
    model = load_model(str(folder), cache=tmp_path).model
    whole = sum(parameter.nbytes for parameter in model.parameters())
    layer = sum(parameter.nbytes for parameter in model.model.layers[0].parameters())
    rest = whole - LAYERS * layer
    assert layer < whole / 10

    def write(team: Team) -> None:
        shared = {}
        for unread in (True, False):
            peaks = team.call(_read, str(folder), str(tmp_path), unread)
            weights = team.call(whole_weights)
            assert all(torch.equal(weights[name], parameter) for name, parameter in model.named_parameters())
            shared[unread] = peaks
        torch.save(shared, tmp_path / "peaks")

    on_ranks(2, write, tmp_path / "logs")
    peaks = torch.load(tmp_path / "peaks", weights_only=True)
    assert min(peaks[False]) > whole  # the count sees what is there
    for peak in peaks[True]:
        assert whole / 2 <= peak < whole / 2 + max(2 * layer, rest) + layer
