"""Any number of ranks takes the steps of one, and checkpoints of shards go on with any number."""

from __future__ import annotations

import gc
import os
import resource
import shutil
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from forked_team import on_ranks
from torch.distributed.checkpoint import FileSystemWriter
from transformers import LlamaConfig, LlamaForCausalLM

from spintune.engine.logprobs import LogProbEngine
from spintune.engine.sharded import check_parallel, shard_model, whole_weights
from spintune.engine.sharing import ENGINE
from spintune.errors import ModelError, RecipeError, StorageError
from spintune.pipeline import check_recipe
from spintune.ranks.team import Team
from spintune.recipe import parse_recipe
from spintune.stages.followers import forget_model
from spintune.tokens.rows import TokenRow
from spintune.training.batches import Batches, steps_by_rows
from spintune.training.checkpoint import Checkpoints
from spintune.training.loop import StepReport, TrainingHooks, train
from spintune.training.objectives import NegativeLogLikelihood
from spintune.training.optimization import Optimization, build_optimizer, optimizer_tensors

NEVER = 1e9  # minutes
STEPS = steps_by_rows(13, 8, 2, seed=0)


class StoppedError(Exception):
    pass


COMPUTED: list[str] = []
"""Rows that this process computed, in their order."""


class Told(NegativeLogLikelihood):
    """The loss of SFT, which notes its rows."""

    def __call__(self, rows, logprobs):  # type: ignore[no-untyped-def]
        COMPUTED.extend(row.example_id for row in rows)
        return super().__call__(rows, logprobs)


def _engine() -> LogProbEngine:
    torch.manual_seed(5)
    sizes = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = LlamaConfig(**sizes, num_attention_heads=4, max_position_embeddings=128, tie_word_embeddings=True)
    return LogProbEngine(LlamaForCausalLM(config).eval(), tokens_per_forward=1)  # a call for each row


def _rows() -> list[TokenRow]:
    draw = torch.Generator().manual_seed(7)
    lengths = torch.randint(2, 20, (13, 2), generator=draw).tolist()
    ids = [[tuple(torch.randint(3, 97, (n,), generator=draw).tolist()) for n in pair] for pair in lengths]
    return [TokenRow(str(i), prompt, answer, (True,) * len(answer), True) for i, (prompt, answer) in enumerate(ids)]


def _hold(team: Team, shard: bool) -> LogProbEngine:
    COMPUTED.clear()
    engine = _engine()
    if shard:
        shard_model(engine, team, 1)
    team.objects[ENGINE] = engine
    return engine


def _train(
    engine: LogProbEngine,
    folder: Path,
    objective: NegativeLogLikelihood,
    minutes: float = NEVER,
    until: int = 99,
    copies: bool = False,
) -> list[StepReport]:
    reports: list[StepReport] = []
    checkpoints = Checkpoints(folder, minutes, copies=copies)
    hooks = TrainingHooks(on_step=reports.append, is_done=lambda: bool(reports) and reports[-1].step >= until)
    train(engine, Batches(_rows(), STEPS), objective, Optimization(1e-3), checkpoints, hooks)
    return reports


def _weights(engine: LogProbEngine) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in engine.model.named_parameters()}


def _seen(team: Team) -> list[list[str]]:
    return team.gather(COMPUTED)


def _far(mine: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    assert mine.keys() == theirs.keys()
    return max(float((mine[name] - theirs[name]).abs().max()) for name in mine)


def test_last_steps_are_short() -> None:
    assert [len(step) for step in STEPS] == [8, 5, 8, 5]


@pytest.mark.slow
def test_eight_by_one_is_four_by_two_is_two_by_four(tmp_path: Path) -> None:
    """Of eight rows in a step, 8 ranks compute one each, 4 two each, 2 four each, and one process all, a call each."""
    engine = _engine()
    COMPUTED.clear()
    reports = _train(engine, tmp_path / "one", Told())
    expected = _weights(engine)
    rows = [str(row) for step in STEPS for row in step]
    assert rows == COMPUTED

    def write(team: Team) -> None:
        engine = team.call(_hold, False)
        found = _train(engine, tmp_path / f"checkpoints-{team.size}", Told())
        seen = team.call(_seen)
        assert sorted(row for own in seen for row in own) == sorted(rows)
        for own in seen:  # in the order of one process
            rest = iter(rows)
            assert all(row in rest for row in own)
        steps = [(report.loss, report.tokens) for report in found]
        torch.save({"weights": _weights(engine), "steps": steps}, tmp_path / str(team.size))

    for size in (2, 4, 8):
        on_ranks(size, write, tmp_path / f"logs-{size}")
        found = torch.load(tmp_path / str(size), weights_only=True)
        assert [tokens for _, tokens in found["steps"]] == [report.tokens for report in reports]
        assert [loss for loss, _ in found["steps"]] == pytest.approx([report.loss for report in reports], abs=2e-6)
        assert _far(found["weights"], expected) < 2e-6, size


def _kept(team: Team) -> list[list[str]]:
    return team.gather(list(team.objects))


def _forgets(team: Team) -> list[bool]:
    model = weakref.ref(cast(LogProbEngine, team.objects[ENGINE]).model)
    forget_model(team)
    gc.collect()
    return team.gather(model() is None)


@pytest.mark.parametrize("shard", [False, True])
def test_moments_go_after_training_and_the_model_before_the_next_one(tmp_path: Path, shard: bool) -> None:
    def write(team: Team) -> None:
        _train(team.call(_hold, shard), tmp_path / "checkpoints", NegativeLogLikelihood(), until=2)
        for names in team.call(_kept):
            assert not {"stepper", "optimizer"} & set(names)
        assert team.call(_forgets) == [True, True]

    on_ranks(2, write, tmp_path / "logs")


@pytest.mark.slow
def test_shards_go_on_to_the_bit_and_with_other_ranks(tmp_path: Path) -> None:
    def part(name: str, folder: str, until: int) -> Callable[[Team], None]:
        def write(team: Team) -> None:
            engine = team.call(_hold, True)
            reports = _train(engine, tmp_path / folder, NegativeLogLikelihood(), 0, until, copies=folder == "b")
            torch.save({"weights": team.call(whole_weights), "steps": [one.step for one in reports]}, tmp_path / name)

        return write

    def found(name: str) -> dict[str, dict[str, torch.Tensor]]:
        return torch.load(tmp_path / name, weights_only=True)  # type: ignore[no-any-return]

    on_ranks(2, part("whole", "a", 99), tmp_path / "logs-a")
    on_ranks(2, part("half", "b", 2), tmp_path / "logs-b")
    shutil.copytree(tmp_path / "b", tmp_path / "c")
    on_ranks(2, part("same", "b", 99), tmp_path / "logs-c")
    on_ranks(3, part("other", "c", 99), tmp_path / "logs-d")
    steps = [found(name)["steps"] for name in ("whole", "half", "same", "other")]
    assert steps == [[1, 2, 3, 4], [1, 2], [3, 4], [3, 4]]
    assert _far(found("same")["weights"], found("whole")["weights"]) == 0
    assert _far(found("other")["weights"], found("whole")["weights"]) < 2e-6
    assert _far(found("half")["weights"], found("whole")["weights"]) > 1e-4


@pytest.mark.slow
def test_shards_that_are_written_beside_later_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They hold their step, though every rank has moved on; and what another rank cannot write is the writer's line."""
    write_data, go = FileSystemWriter.write_data, tmp_path / "go"

    def slow(self: FileSystemWriter, *arguments: Any) -> Any:
        until = time.monotonic() + 60
        while not go.exists() and time.monotonic() < until:
            time.sleep(0.005)
        if "full" in str(self.path) and os.environ["RANK"] == "1":
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        return write_data(self, *arguments)

    def write(team: Team) -> None:
        batches, seen = Batches(_rows(), STEPS), []

        def stop(report: StepReport) -> None:
            if report.step == 2:
                seen.extend(tmp_path.glob("async/step-*"))
                go.touch()
                raise StoppedError

        for name, copies in (("sync", False), ("async", True)):
            go.unlink(missing_ok=True) if copies else go.touch()
            checkpoints, hooks = Checkpoints(tmp_path / name, 0, copies=copies), TrainingHooks(on_step=stop)
            with pytest.raises(StoppedError):
                train(team.call(_hold, True), batches, NegativeLogLikelihood(), Optimization(1e-3), checkpoints, hooks)
        assert seen == []
        for name, copies in (("full-sync", False), ("full-async", True)):
            with pytest.raises(StorageError, match=f"{name}/step-00000001: a file would be larger than allowed"):
                _train(team.call(_hold, True), tmp_path / name, NegativeLogLikelihood(), 0, copies=copies)

    monkeypatch.setattr(FileSystemWriter, "write_data", slow)
    on_ranks(3, write, tmp_path / "logs")
    found = []
    for name in ("sync", "async"):
        engine = _engine()
        optimizer = build_optimizer(engine.model, Optimization(1e-3))
        assert Checkpoints(tmp_path / name, 0).restore(engine.model, optimizer) == 1
        found.append({**_weights(engine), **optimizer_tensors(optimizer)})
    assert _far(*found) == 0
    assert len(found[0]) == 4 * len(_weights(_engine()))  # two moments and a counter beside each weight


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_shares_in_the_memory_of_the_cpu(tmp_path: Path) -> None:
    """Two GPUs with FSDP2's CPU offload take the steps that one process takes."""
    expected = _engine()
    reports = _train(expected, tmp_path / "one", NegativeLogLikelihood())

    def write(team: Team) -> None:
        engine = team.call(_hold_away)
        assert {parameter.device.type for parameter in engine.model.parameters()} == {"cpu"}
        found = _train(engine, tmp_path / "two", NegativeLogLikelihood())
        losses = [report.loss for report in found]
        torch.save({"weights": team.call(whole_weights), "losses": losses}, tmp_path / "found")

    on_ranks(2, write, tmp_path / "logs")
    found = torch.load(tmp_path / "found", weights_only=True)
    assert found["losses"] == pytest.approx([report.loss for report in reports], abs=1e-4)
    assert _far(found["weights"], _weights(expected)) < 1e-3


def _hold_away(team: Team) -> LogProbEngine:
    engine = _engine()
    engine.model.to("cuda")
    shard_model(engine, team, 1, offload=True)
    team.objects[ENGINE] = engine
    return engine


def test_offload_is_refused_without_a_gpu(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    recipe = {"out": str(tmp_path / "out"), "model": "a/b", "data": {"train": "builtin:seeds"}, "sft": {}}
    with pytest.raises(ModelError, match="there is no GPU here") as refused:
        check_recipe(parse_recipe({**recipe, "parallel": "shard", "offload": "optimizer"}, "recipe"))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("more", "size", "says"),
    [
        ({}, 1, "needs several processes"),
        ({"copies": 3}, 4, "4 ranks cannot hold 3"),
        ({"copies": 4}, 4, "4 ranks cannot hold 4"),
        ({"sft": {"optimizer": "adafactor"}}, 2, r"shard does not go with sft\.optimizer: adafactor"),
        ({"spin": {"optimizer": "muon"}}, 2, r"shard does not go with spin\.optimizer: muon"),
        ({"spin": {"optimizer": "adamw8bit"}}, 2, r"shard does not go with spin\.optimizer: adamw8bit"),
        ({"weights": "bfloat16"}, 2, "shard does not go with weights: bfloat16"),
        ({"lora": {"base": "nf4"}}, 2, r"shard does not go with lora\.base: nf4"),
    ],
)
def test_refuses_what_no_mesh_holds(more: dict[str, object], size: int, says: str) -> None:
    recipe = {"out": "out", "model": "a/b", "data": {"train": "builtin:seeds"}, "sft": {}, "parallel": "shard"}
    with pytest.raises(RecipeError, match=says) as refused:
        check_parallel(parse_recipe({**recipe, **more}, "recipe"), size)
    assert "\n" not in str(refused.value)
