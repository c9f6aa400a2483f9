"""The engine: packed = one at a time, the head only where it is needed, runs near their budget."""

from __future__ import annotations

import gc
import logging
import math
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spintune.engine.logprobs import LogProbEngine
from spintune.engine.packing import PromptGroup
from spintune.engine.query import Query, pack
from spintune.errors import ModelError
from spintune.recipe import Recipe

# RMSNorm and rotations compute in float32 even inside float64 models; GPT-2 has neither
PACKED = [
    "llama",
    "qwen2",
    "qwen3",
    "mistral",
    "gemma2",
    "gemma3_text",
    "phi3",
    "gpt_neox",
    "gpt2",
    "cohere",
    "granite",
]
TOLERANCE = dict.fromkeys(PACKED, 1e-6) | {"gpt2": 1e-12}
# ALiBi, recurrent layers, convolutions, a window that the model puts into masks only
UNPACKED = ["bloom", "mamba", "falcon_h1", "lfm2", "doge"]


@pytest.mark.parametrize("family", PACKED)
def test_packed_equals_one_at_a_time_in_value_and_gradient(family, build, queries, plain):
    reference, model = build(family), build(family)
    expected = plain(reference, queries)
    engine = LogProbEngine(model)
    assert engine.packed
    result = engine(queries)
    # a different weight for each response, so that no two errors cancel
    weights = torch.linspace(0.3, 1.7, len(expected), dtype=torch.float64)
    (expected @ weights).backward()
    (result.sum_N @ weights).backward()

    assert result.sum_N.dtype == torch.float64
    assert result.count_N.tolist() == [11, 1, 8, 1, 12, 6, 0, 6]
    torch.testing.assert_close(result.sum_N, expected, rtol=TOLERANCE[family], atol=TOLERANCE[family])
    largest = max(p.grad.abs().max() for p in reference.parameters())
    for (name, mine), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
        assert (mine.grad - theirs.grad).abs().max() <= 5 * TOLERANCE[family] * largest, name


def test_token_values_come_in_order_and_add_up_to_the_sums(build, queries):
    result = LogProbEngine(build("gpt2"))(queries)
    parts = result.token_M.split(result.count_N.tolist())
    torch.testing.assert_close(torch.stack([part.sum() for part in parts]), result.sum_N)


def test_float32_sums_stay_within_rounding_of_float64(build, queries, plain):
    model = build("llama", dtype=torch.float32)
    result = LogProbEngine(model)(queries)
    assert result.sum_N.dtype == torch.float32
    torch.testing.assert_close(result.sum_N.double(), plain(build("llama"), queries), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("family", UNPACKED)
def test_a_model_that_cannot_be_packed_is_scored_alone_with_a_warning(family, build, queries, plain, caplog):
    # Mamba mixes float32 into its scan, which float64 weights do not survive
    dtype = torch.float32 if family == "mamba" else torch.float64
    reference, model = build(family, dtype=dtype), build(family, dtype=dtype)
    with caplog.at_level(logging.WARNING, "spintune"):
        engine = LogProbEngine(model)
    assert not engine.packed
    assert "cannot be packed" in caplog.text
    result = engine(queries)
    torch.testing.assert_close(result.sum_N, plain(reference, queries), rtol=1e-5, atol=1e-5)
    result.sum_N.sum().backward()


def test_inside_packing_a_model_without_a_layout_refuses_rather_than_attend_to_everything(build):
    model = build("llama")
    engine = LogProbEngine(model)
    with engine.backbone.packing(), pytest.raises(ModelError, match="needs a layout"):
        model(input_ids=torch.tensor([[1, 2, 3]]))


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "bloom"])
@pytest.mark.parametrize("recompute", [0.0, 1.0])
def test_an_engine_leaves_the_model_as_it_was(family, recompute, build, queries):
    model = build(family)
    # padded on the left, and longer than the sliding windows: right only with masks
    ids = torch.tensor([[0, 0, 0, 5, 17, 88, 2, 60, 31, 9], [44, 71, 63, 8, 90, 33, 12, 77, 3, 52]])
    mask = torch.ones_like(ids)
    mask[0, :3] = 0

    def plainly():
        return model(input_ids=ids, attention_mask=mask).logits.detach(), model.generate(
            ids, attention_mask=mask, do_sample=False, max_new_tokens=6, eos_token_id=None, pad_token_id=0
        )

    before = plainly()
    engine = LogProbEngine(model, recompute=recompute)
    for use in (
        lambda: engine(queries).sum_N.sum().backward(),
        lambda: engine.score(queries),
        lambda: engine.score_greedy(queries),
    ):
        use()
        torch.testing.assert_close(plainly(), before, rtol=0, atol=0, equal_nan=True)  # padding is no number in eager


@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")
def test_a_model_that_checkpoints_its_own_layers_is_told_of_recompute(build, queries):
    model = build("llama")
    engine = LogProbEngine(model)
    model.train()
    model.gradient_checkpointing_enable()
    with pytest.raises(ModelError, match="recompute"):
        engine(queries)
    with torch.no_grad():
        engine(queries)


def test_a_prompt_of_no_tokens_is_refused(build):
    with pytest.raises(ValueError, match="at least one token"):
        LogProbEngine(build("gpt2"))([Query((), ((1, 2),))])


def test_branch_positions_and_visibility_by_hand():
    branch = PromptGroup(prompt=2, responses=(2, 1))
    assert branch.positions() == [0, 1, 2, 3, 2]
    expected = [
        [1, 0, 0, 0, 0],  # p0
        [1, 1, 0, 0, 0],  # p1
        [1, 1, 1, 0, 0],  # a0
        [1, 1, 1, 1, 0],  # a1
        [1, 1, 0, 0, 1],  # b0 sees the prompt and itself, not its sibling
    ]
    assert branch.visible(None).int().tolist() == expected
    # a window of 2 holds the token itself and the position before it
    narrow = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 1, 1, 0], [0, 1, 0, 0, 1]]
    assert branch.visible(2).int().tolist() == narrow


def test_score_does_not_depend_on_tokens_per_forward_and_counts_what_is_done(build, queries):
    engines = [LogProbEngine(build("gpt2"), tokens_per_forward=tokens) for tokens in (10, 10_000)]
    done: list[int] = []
    small = engines[0].score(queries, done.append)
    large = engines[1].score(queries)
    assert sum(done) == len(queries)
    assert len(done) > 1
    assert [len(scores) for scores in small] == [3, 2, 1, 2]
    flat = [[score for scores in result for score in scores] for result in (small, large)]
    assert flat[0] == pytest.approx(flat[1], rel=1e-12)


def test_the_engine_computes_as_many_tokens_at_once_as_a_recipe_that_does_not_say(build):
    assert LogProbEngine(build("gpt2")).tokens_per_forward == Recipe.model_fields["tokens_per_forward"].default


# --- the head ---------------------------------------------------------------------------------------------------


def test_the_head_computes_logits_of_scored_positions_only(build, queries):
    model = build("llama")
    engine = LogProbEngine(model)
    rows: list[int] = []
    model.get_output_embeddings().register_forward_hook(lambda module, args, out: rows.append(out[..., 0].numel()))
    engine(queries)
    assert rows == [11 + 1 + 8 + 1 + 12 + 6 + 0 + 6]


def test_a_head_in_pieces_gives_the_same_sums_and_gradients(build, queries):
    whole, pieces = LogProbEngine(build("gpt2")), LogProbEngine(build("gpt2"), head_megabytes=1)
    pieces.head_bytes = 3 * 97 * 4  # three rows of float32 logits
    rows: list[int] = []
    pieces.model.get_output_embeddings().register_forward_hook(lambda module, args, out: rows.append(len(out)))
    results = [engine(queries).sum_N for engine in (whole, pieces)]
    assert rows == [3] * 15  # 45 scored tokens
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=1e-12)
    for result in results:
        (result @ torch.linspace(0.3, 1.7, 8, dtype=torch.float64)).backward()
    for mine, theirs in zip(pieces.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-10, atol=1e-12)


def test_a_head_in_pieces_keeps_no_logits_for_backward(build, queries):
    engine = LogProbEngine(build("gpt2"))
    engine.head_bytes = 3 * 97 * 4
    storages: list[weakref.ref] = []
    engine.model.get_output_embeddings().register_forward_hook(
        lambda module, args, out: storages.append(weakref.ref(out.untyped_storage()))
    )
    result = engine(queries)
    gc.collect()
    assert len(storages) == 15
    assert not any(storage() for storage in storages)
    result.sum_N.sum().backward()


# --- runs -------------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 60), max_size=40), st.integers(1, 100))
def test_pack_keeps_order_in_few_runs_near_the_budget(sizes, budget):
    items = list(enumerate(sizes))
    runs = pack(items, lambda item: item[1], budget)
    assert [item for run in runs for item in run] == items
    assert all(runs)
    # no more runs than full ones would be
    assert len(runs) <= math.ceil(sum(sizes) / budget)
    for run in runs:
        # an item stands where its middle falls: a run can overhang by half its first and half its last item
        assert len(run) == 1 or sum(size for _, size in run) <= budget + (run[0][1] + run[-1][1]) / 2


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 200), st.integers(1, 9), st.integers(9, 80))
def test_pack_balances_equal_items_to_within_one(count, size, budget):
    lengths = [len(run) for run in pack([size] * count, lambda item: item, budget)]
    assert len(lengths) == math.ceil(count * size / budget)
    assert max(lengths) - min(lengths) <= 1


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=60), st.integers(20, 80))
def test_pack_balances_items_below_the_budget_to_within_the_largest(sizes, budget):
    totals = [sum(run) for run in pack(sizes, lambda item: item, budget)]
    target = sum(sizes) / math.ceil(sum(sizes) / budget)
    assert all(abs(total - target) <= max(sizes) for total in totals)
