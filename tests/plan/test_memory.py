"""The memory of a plan beside the memory that torch's allocator gave in real training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Ended
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

from spintune.engine.logprobs import LogProbEngine
from spintune.engine.query import Query
from spintune.models.lora import new_adapter
from spintune.plan.devices import GPUS, PROCESS, Target, kind_of
from spintune.plan.memory import MemoryPlan, step_bytes
from spintune.plan.plan import Planner, host_bytes
from spintune.plan.rehearsal import CannotRehearseError, Setting, rehearse
from spintune.plan.rows import assumed_rows
from spintune.plan.shapes import ModelShape
from spintune.recipe import LoraSection, SftSection, load_recipe
from spintune.recipe.section import OptimizerName
from spintune.training.footprint import footprint
from spintune.training.optimization import Optimization, build_optimizer

LLAMA = {"hidden_size": 128, "intermediate_size": 320, "num_attention_heads": 8, "num_key_value_heads": 2}
LLAMA |= {"vocab_size": 640, "num_hidden_layers": 5, "max_position_embeddings": 4096, "bos_token_id": 0}
T5 = {
    "d_model": 96,
    "d_ff": 256,
    "num_heads": 4,
    "d_kv": 24,
    "num_layers": 4,
    "vocab_size": 640,
    "decoder_start_token_id": 0,
}


@dataclass(frozen=True)
class Case:
    """A model, how it is trained, and the rows of a call: so many of a prompt and an answer of equal length."""

    config: dict[str, Any]
    rows: int
    length: int
    answers: int = 1
    recompute: float = 0.0
    lora: LoraSection | None = None
    autocast: torch.dtype | None = None

    def queries(self) -> tuple[Query, ...]:
        return tuple(Query((5,) * self.length, ((7,) * self.length,) * self.answers) for _ in range(self.rows))


DECODER = {"model_type": "llama", "tie_word_embeddings": True, **LLAMA}
CASES = {
    "sft of 128 tokens": Case(DECODER, 2, 32),
    "sft of 512 tokens": Case(DECODER, 4, 64),
    "sft of 2048 tokens": Case(DECODER, 4, 256),
    "head of its own": Case({**DECODER, "tie_word_embeddings": False}, 4, 64),
    "spin": Case(DECODER, 4, 48, answers=2),
    "recompute all": Case(DECODER, 4, 128, recompute=1.0),
    "recompute half": Case({**DECODER, "num_hidden_layers": 6}, 4, 128, recompute=0.5),
    "lora": Case(DECODER, 4, 128, lora=LoraSection(rank=8)),
    "windows": Case({**DECODER, "model_type": "qwen2", "use_sliding_window": True, "sliding_window": 16}, 4, 64),
    "soft caps": Case({**DECODER, "model_type": "gemma2", "head_dim": 16}, 4, 64),
    "bfloat16": Case(DECODER, 4, 128, autocast=torch.bfloat16),
    "t5": Case({"model_type": "t5", **T5}, 4, 64),
    "t5 of long rows": Case({"model_type": "t5", **T5}, 2, 256),
    "t5 lora": Case({"model_type": "t5", **T5}, 4, 64, lora=LoraSection(rank=8, targets=["q", "v"])),
}


def real_model(case: Case) -> PreTrainedModel:
    kinds = {"t5": AutoModelForSeq2SeqLM}
    config = AutoConfig.for_model(**case.config)
    model = kinds.get(config.model_type, AutoModelForCausalLM).from_config(config, dtype=torch.float32).eval()
    if case.lora:
        new_adapter(model, case.lora, "test")
    return model


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_rehearsal_is_within_15_percent_of_what_torch_takes(
    case: Case, peak: Callable[[Callable[[], object]], int]
) -> None:
    setting = Setting(torch.float32, case.autocast, True, case.recompute, case.lora)
    found = rehearse(AutoConfig.for_model(**case.config), setting, case.queries())
    model = real_model(case)
    engine = LogProbEngine(model, case.autocast, recompute=case.recompute)
    trained = [p for p in model.parameters() if p.requires_grad]

    def step() -> None:
        (-engine(case.queries()).sum_N.sum()).backward()

    first = peak(step)
    assert max(found.start, found.end) == pytest.approx(first, rel=0.15)
    several = peak(step)  # the gradients of the first call are there; those of the second are added
    assert found.start == pytest.approx(several, rel=0.15)
    moments = peak(lambda: build_optimizer(model, Optimization(1e-4)).step())
    assert moments == pytest.approx(2 * sum(p.numel() * 4 for p in trained), rel=0.02)


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("optimizer", ["adamw", "rmsprop", "muon", "adafactor"])
def test_updates_take_what_is_said_for_their_length(
    optimizer: OptimizerName, dtype: torch.dtype, decay: float, peak: Callable[[Callable[[], object]], int]
) -> None:
    model = real_model(CASES["sft of 128 tokens"]).to(dtype)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    made = build_optimizer(model, Optimization(1e-4, optimizer=optimizer, weight_decay=decay))
    made.step()
    numbers = 4 * sum(p.numel() for p in model.parameters())
    assert abs(peak(made.step) - step_bytes(model, optimizer, decays=decay > 0)) < 0.1 * numbers


def test_layers_beyond_a_few_follow_from_them() -> None:
    """The rehearsal of all of 9 layers is what two and one of them foretell."""
    setting = Setting(torch.float32, None, True)
    queries = CASES["sft of 512 tokens"].queries()
    configs = {n: AutoConfig.for_model(**{**DECODER, "num_hidden_layers": n}) for n in (2, 4, 9)}
    few, more, all_ = (rehearse(configs[n], setting, queries).start for n in (2, 4, 9))
    assert all_ == pytest.approx(few + (more - few) / 2 * 7, rel=0.01)


def test_a_gpu_keeps_bfloat16_activations_and_no_compiled_layers() -> None:
    """By hand, for each token of a layer of width D with F inner numbers: see the terms."""
    config = AutoConfig.for_model(**{**DECODER, "num_key_value_heads": 8})
    queries = CASES["sft of 2048 tokens"].queries()
    one, two = (
        rehearse(AutoConfig.for_model(**{**config.to_dict(), "num_hidden_layers": n}), SETTING_OF_GPU, queries).start
        for n in (1, 2)
    )
    width, inner = 128, 320
    products = 2 * (width + width + width + inner)  # inputs of the four groups of products, rounded
    attention = 2 * 4 * width + 4 * 8  # queries, keys, values, outputs; a float32 for each head
    norms = 2 * (3 * 4 * width + 4)  # the stream, its normed values twice, and the factor, in float32
    gate = 2 * 3 * inner + 2 * inner  # gate, its activation, up; and their product is an input above
    by_hand = 2048 * (products + attention + norms + gate)
    assert two - one == pytest.approx(by_hand, rel=0.35)


SETTING_OF_GPU = Setting(torch.float32, torch.bfloat16, False)


def test_recurrent_models_are_not_rehearsed_and_take_a_rule_of_thumb() -> None:
    config = AutoConfig.for_model("mamba", hidden_size=32, num_hidden_layers=2, vocab_size=97, state_size=4)
    with pytest.raises(CannotRehearseError, match="recurrent"):
        rehearse(config, Setting(torch.float32, None, True), CASES["sft of 128 tokens"].queries())


def planner(recipe: dict[str, Any], target: Target, config: dict[str, Any] = DECODER) -> Planner:
    values = load_recipe(None, [], {"out": "runs/none", "model": "m", "data": {"train": "x.jsonl"}, **recipe})
    shape = ModelShape("m", AutoConfig.for_model(**config), None, False)
    return Planner(values, shape, target, assumed_rows(values, 400, 256))


CPU = Target(False, None, 1, 10**12, 0.35, False)


def test_stated_rows_are_cut_as_a_run_cuts_them_and_the_plan_says_so() -> None:
    recipe = {"out": "o", "model": "m", "data": {"train": "x", "max_length": 256, "eval_fraction": 0.1}, "sft": {}}
    planned = [assumed_rows(load_recipe(None, [], recipe), 400, tokens) for tokens in (600, 256)]
    told = ["400 rows of 600 tokens as you say, cut to data.max_length 256", "400 rows of 256 tokens as you say"]
    assert [one.how for one in planned] == told
    assert {length for one in planned for length in one.sft.lengths} == {256}


def test_adapters_and_optimizers_take_what_arithmetic_says() -> None:
    full = planner({"sft": {}}, CPU)
    numbers = sum(p.numel() for p in real_model(CASES["sft of 128 tokens"]).parameters())
    plan: MemoryPlan = full.memory(sharded=False)
    kept = plan.kept("adamw")
    assert (kept.weights, kept.gradients, kept.moments) == (4 * numbers, 4 * numbers, 8 * numbers)
    assert plan.kept("rmsprop").moments == 4 * numbers
    assert plan.kept("adafactor").moments < 0.1 * kept.moments
    others = 640 * 128 + (2 * 5 + 1) * 128  # embeddings, which are the head, too, and norms
    assert plan.kept("muon").moments == 4 * (numbers - others) + 8 * others
    adapters = planner({"sft": {}, "lora": {"rank": 4, "targets": ["q_proj"]}}, CPU).memory(sharded=False)
    assert adapters.kept("adamw").gradients == 5 * 4 * 4 * (128 + 128)  # layers, bytes, rank, in and out
    gpu = Target(True, None, 1, 10**12, 0.35, False)
    pure = planner({"sft": {"optimizer": "adamw8bit"}, "weights": "bfloat16"}, gpu).memory(sharded=False)
    assert pure.kept("adamw8bit").weights == pure.kept("adamw8bit").gradients == 2 * numbers
    assert pure.kept("adamw8bit").moments == pytest.approx(2 * numbers, rel=0.05)
    away = planner({"sft": {}, "offload": "optimizer"}, gpu).memory(sharded=False)
    assert away.kept("adamw").moments == 0
    half = planner({"sft": {}, "lora": {"rank": 4, "targets": ["q_proj"]}}, gpu).memory(sharded=False)
    assert half.kept("adamw").weights == 2 * numbers + adapters.kept("adamw").gradients


def test_the_copy_that_checkpoints_are_written_from_by_hand() -> None:
    """12 bytes a weight: on a CPU with the rest, and where GPUs train in the memory of their machine."""
    gpu = Target(True, None, 1, 10**12, 0.35, False)
    numbers = sum(p.numel() for p in real_model(CASES["sft of 128 tokens"]).parameters())

    def planned(target: Target, **more: Any) -> tuple[int, int]:
        found = planner({"sft": {"checkpoint_write": more.pop("write", "auto")}, **more}, target)
        plan, (_, calls) = found.memory(found.is_sharded), found.trainings()[0]
        training = footprint(plan.model)
        parts, _ = plan.training(found.recipe.sft or SftSection(), calls)
        return parts.snapshot, host_bytes(found, training, 0)

    for write, copies in (("auto", 0), ("sync", 0), ("async", 1)):
        assert planned(CPU, write=write)[0] == copies * 12 * numbers
    waits = planned(gpu, write="sync")
    assert waits == (0, PROCESS + 4 * numbers)
    assert planned(gpu) == planned(gpu, write="async") == (0, PROCESS + 12 * numbers)  # the weights are read before
    assert planned(gpu, offload="optimizer") == (0, PROCESS + 8 * numbers)  # it would take as much again there
    many = replace(gpu, gpus=16)  # 8 of them on a machine
    assert planned(many) == (0, 8 * PROCESS + 8 * 4 * numbers)  # the first one's copy is less than what all read
    assert planned(many, parallel="shard") == (0, 8 * PROCESS + 8 * numbers)  # 6: the model twice, to save it, is more


def test_a_plan_shards_where_a_run_does_so_by_itself() -> None:
    """By hand: 16 bytes a weight in float32 with AdamW's moments, of which a GPU may hold three quarters."""
    kept = 16 * sum(p.numel() for p in real_model(CASES["sft of 128 tokens"]).parameters())
    small, large = (Target(True, None, 8, round(kept / share), 0.35, False) for share in (0.76, 0.74))

    def sharded(target: Target, **more: Any) -> bool:
        return planner({"sft": {}, **more}, target).is_sharded

    assert sharded(small)
    assert not sharded(large)  # activations may be too much for it; then the plan offers to shard
    assert sharded(large, parallel="shard")
    assert not sharded(small, parallel="replicate")
    assert not sharded(replace(small, gpus=1))
    assert not sharded(replace(small, on_gpu=False))
    for whole in ({"sft": {"optimizer": "adafactor"}}, {"weights": "bfloat16"}, {"lora": {"base": "nf4"}}):
        tiny = replace(small, memory=10**6)
        assert not sharded(tiny, **whole)
        assert not planner({"sft": {}, **whole}, replace(tiny, gpus=1))._more_devices(10**12)
    assert planner({"sft": {}}, replace(small, gpus=1))._more_devices(10**12)


def test_the_baseline_reads_and_scores_as_many_rows_as_its_tokens_are() -> None:
    """SFT reads each row ten times; more SFT has the tokens of one iteration of self-play, in the same kind of rows."""
    calls = dict(planner({"sft": {"epochs": 10}, "spin": {"iterations": 1, "baseline": "sft"}}, CPU).trainings())
    sft, more = calls["sft"], calls["spin/baseline-sft"]
    assert more.tokens == calls["spin/iterate-1"].tokens
    assert more.rows / more.tokens == pytest.approx(sft.rows / sft.tokens, rel=1e-2)
    assert more.scored / more.tokens == pytest.approx(sft.scored / sft.tokens, rel=1e-2)
    assert more.scored < more.tokens


def test_keys_and_values_by_hand() -> None:
    parts = planner({"spin": {"max_new_tokens": 100}}, CPU).memory(sharded=False).generation(64, 200, 100)
    assert parts.cache == 64 * 300 * 5 * 2 * 2 * 16 * 4  # slots, tokens, layers, keys and values, heads, width, bytes


@pytest.mark.parametrize(
    ("name", "memory", "kind"),
    [
        ("NVIDIA A100-SXM4-80GB", 85e9, "a100-80gb"),
        ("NVIDIA A100-PCIE-40GB", 42e9, "a100-40gb"),
        ("NVIDIA H100 80GB HBM3", 85e9, "h100"),
        ("NVIDIA H100 PCIe", 85e9, "h100-pcie"),
        ("NVIDIA H200", 150e9, "h200"),
        ("NVIDIA GeForce RTX 4090", 25e9, "rtx-4090"),
        ("NVIDIA GeForce RTX 5090", 34e9, "rtx-5090"),
        ("NVIDIA L40S", 48e9, "l40s"),
        ("NVIDIA A10", 24e9, None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 17e9, None),
        ("AMD Instinct MI300X", 200e9, None),
    ],
)
def test_a_gpu_is_known_by_the_name_of_its_driver(name: str, memory: float, kind: str | None) -> None:
    found = kind_of(name, int(memory))
    assert (found and found.name) == kind
    assert found is None or GPUS[found.name] is found


def test_what_does_not_fit_is_offered_what_does() -> None:
    whole = planner({"sft": {"tokens_per_step": 4096}}, CPU)
    needed = whole.least_needed() - PROCESS
    room = PROCESS + int(0.9 * needed)
    tight = planner({"sft": {"tokens_per_step": 4096}}, Target(False, None, 1, room, 0.35, False))
    offers = tight.offers()
    assert {"lower tokens_per_forward", "set recompute: 1"} <= {offer.change for offer in offers}
    assert all(offer.memory <= room for offer in offers)
    assert planner({"sft": {}}, Target(False, None, 1, 1000, 0.35, False)).offers() == []
    copied = planner({"sft": {"checkpoint_write": "async"}}, CPU)
    room = copied.least_needed() - 1
    offers = planner({"sft": {"checkpoint_write": "async"}}, Target(False, None, 1, room, 0.35, False)).offers()
    assert offers[0].change == "set checkpoint_write: sync"
    assert offers[0].memory == planner({"sft": {}}, CPU).least_needed()


def test_commands(spintune: Callable[..., Ended], tmp_path: Path) -> None:
    """A plan of a config alone: it fits, it does not and says what would, and what is wrong is one line."""
    (tmp_path / "config.json").write_text(AutoConfig.for_model(**DECODER).to_json_string(use_diff=False))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"out: {tmp_path}/run\nmodel: {tmp_path}/config.json\ndata: {{train: builtin:seeds}}\nsft: {{}}\n"
    )
    ended = spintune("plan", recipe, "--json")
    assert ended.code == 0, ended.err
    assert '"fits": true' in ended.out
    assert not (tmp_path / "run").exists()
    ended = spintune("plan", recipe, "data.heldout=builtin:tickets", "--no-probe", "--json")
    assert '"heldout": 400' in ended.out
    ended = spintune("plan", recipe, "--gpus", 1, "--memory", "1.005GB", "--rows", "1000x500")
    assert ended.code == 15
    assert "does not fit: sft needs" in ended.err
    for words, code, said in (
        (["--memory", "lots"], 2, "--memory 'lots' is no amount of memory"),
        (["--gpu", "h10"], 2, "did you mean h100?"),
        (["--rows", "many"], 2, "--rows 'many' is not ROWSxTOKENS"),
        (["model=nowhere"], 4, "no model 'nowhere'"),
        (["data.train=nowhere.jsonl"], 3, "nowhere.jsonl"),
    ):
        ended = spintune("plan", recipe, *words)
        assert (ended.code, len(ended.err.strip().splitlines()[-1:])) == (code, 1)
        assert said in ended.err.strip().splitlines()[-1]
    (tmp_path / "config.json").write_text('{"model_type": "llama", "hidden_size": 64}')
    ended = spintune("plan", recipe)
    assert ended.code == 4
    assert "has no num_hidden_layers" in ended.err


def test_the_check_of_a_generator_copies_the_weights_in_their_own_type() -> None:
    """Answers are written in the type of the products, the check's texts in float32."""
    memory = planner({"precision": "bfloat16", "sft": {}}, CPU).memory(False)
    linear = 5 * (2 * 128 * 128 + 2 * 128 * 32 + 3 * 128 * 320) + 640 * 128
    assert memory.generation(2, 1, 1).copies == 2 * linear
    assert memory.generation(2, 1, 1, checks=True).copies == 4 * linear


def test_with_an_adapter_and_few_tokens_the_check_of_a_generator_is_the_most() -> None:
    recipe = {"sft": {"tokens_per_step": 16}, "tokens_per_forward": 16, "lora": {"rank": 1}}
    made = planner(recipe, CPU, {**DECODER, "hidden_size": 512, "intermediate_size": 2048})
    made = replace(made, rows=assumed_rows(made.recipe, 40, 4))
    ((name, calls),) = made.trainings()
    parts, _ = made.peak(name, calls, False)
    assert parts.copies > 4 * 5 * 3 * 512 * 2048
    assert parts.total > made.memory(False).training(SftSection(), calls)[0].total
