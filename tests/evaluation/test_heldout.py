"""The held-out table: likelihoods of plain forwards, greedy answers, paired differences."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from spintune.engine.query import Query
from spintune.evaluation.heldout import (
    HeldoutAnswer,
    answer_heldout,
    heldout_differences,
    score_heldout,
    summarize_heldout,
)
from spintune.evaluation.statistics import Interval, bootstrap
from spintune.progress import Silent
from spintune.records import Example, Message, ToolCall, read_records, write_records
from spintune.tokens.rows import TokenRow
from spintune.typed_json import to_json

SCORES = {"rouge_l": 0.5, "exact_match": 0.0}
ITEM = HeldoutAnswer("id", "prompt", "the answer", "an answer", "stop", 3, 4, 8.0, SCORES, reference_bytes=10)


def scores(right: bool) -> dict[str, float]:
    return {"rouge_l": 0.5, "exact_match": float(right)}


def items(count: int, seed: int) -> list[HeldoutAnswer]:
    """Items whose difficulty varies much more than a model does."""
    difficulty = np.random.default_rng(0).normal(20, 10, size=count)
    noise = np.random.default_rng(seed).normal(seed, 0.5, size=count)
    return [
        replace(ITEM, id=f"{n}", nll=float(d + e), reference_tokens=4 + n % 3, scores=scores(n % 2 == seed % 2))
        for n, (d, e) in enumerate(zip(difficulty, noise, strict=True))
    ]


def test_the_summary_is_nats_over_tokens_and_means_over_items() -> None:
    rows = [ITEM, replace(ITEM, id="2", nll=1.0, reference_tokens=5, finish_reason="length", scores=scores(True))]
    summary = summarize_heldout(rows)
    assert summary["nll_per_token"].mean == pytest.approx((8 + 1) / (4 + 5))
    assert summary["perplexity_per_token"].mean == pytest.approx(math.e)
    assert summary["nll_per_byte"].mean == pytest.approx((8 + 1) / (10 + 10))
    assert summary["perplexity_per_byte"].mean == pytest.approx(math.exp(9 / 20))
    means = {name: interval.mean for name, interval in summary.items() if "per_" not in name}
    assert means == {"rouge_l": 0.5, "exact_match": 0.5, "answer_tokens": 3, "finished": 0.5}


def test_references_that_were_cut_count_by_the_token_alone() -> None:
    """20 of 100 tokens were scored, of a reference of 400 bytes; the other one, of 8 bytes, is whole."""
    cut = replace(ITEM, id="cut", reference="word " * 80, nll=20.0, reference_tokens=20, reference_bytes=None)
    whole = replace(ITEM, nll=2.0, reference_tokens=2, reference_bytes=8)
    summary = summarize_heldout([cut, whole])
    assert (summary["nll_per_token"].mean, summary["nll_per_byte"].mean) == (1.0, 0.25)
    better = [replace(one, nll=one.nll / 2) for one in (cut, whole)]
    found = heldout_differences([cut, whole], better)
    assert (found["nll_per_token"].mean, found["nll_per_byte"].mean) == (0.5, 0.125)
    assert "nll_per_byte" not in {**summarize_heldout([cut]), **heldout_differences([cut], [cut])}


class OneNatAToken:
    def score(self, queries: list[Query], advance: object) -> list[tuple[float]]:
        return [(-float(len(query.responses[0])),) for query in queries]


def test_bytes_are_those_of_all_that_was_scored() -> None:
    """Reasoning and calls are scored too: "été" has 5 bytes, "Hm." 3, "add" 3 and "{}" 2."""
    ask = Message("user", "?")
    said = [
        Message("assistant", "été"),
        Message("assistant", "été", reasoning="Hm."),
        Message("assistant", "", tool_calls=(ToolCall("add", "{}"),)),
        Message("assistant", ""),
        Message("assistant", "été" * 50),
    ]
    examples = [Example((ask, message)) for message in said]
    cut = [False] * 4 + [True]
    rows = [
        TokenRow(example.id, (1,), (2, 3), None, complete=not short)
        for example, short in zip(examples, cut, strict=True)
    ]
    found = score_heldout(OneNatAToken(), examples, rows, Silent(), "model")  # type: ignore[arg-type]
    assert [one.bytes for one in found] == [5, 8, 5, 1, None]
    assert [(one.nll, one.tokens) for one in found] == [(2.0, 2)] * 5


def test_a_comparison_is_paired_by_item() -> None:
    """The difference of 1 nat is far below the spread of items (10), and still told apart."""
    better, worse = items(60, 1), items(60, 2)
    difference = heldout_differences(worse, better)["nll_per_token"]
    tokens = sum(item.reference_tokens for item in worse)
    nats = sum(w.nll - b.nll for w, b in zip(worse, better, strict=True))
    assert difference.mean == pytest.approx(nats / tokens)
    assert difference.low > 0
    alone = summarize_heldout(worse)["nll_per_token"]
    assert difference.high - difference.low < 0.2 * (alone.high - alone.low)
    reverse = heldout_differences(better, worse)["nll_per_token"]
    assert reverse.mean == pytest.approx(-difference.mean)
    same = heldout_differences(worse, worse)
    assert same["nll_per_token"] == Interval(0, 0, 0)
    bound = 1.959964**2 / (60 + 1.959964**2)  # of 60 that differ nowhere, by Wilson's interval
    assert (same["exact_match"].low, same["exact_match"].high) == pytest.approx((-bound, bound))


def test_other_items_or_another_order_cannot_be_compared() -> None:
    rows = items(3, 1)
    for other in (rows[::-1], rows[:2], [*rows[:2], replace(rows[2], id="x")]):
        with pytest.raises(ValueError, match="same items"):
            heldout_differences(rows, other)


def test_judged_items_come_back(tmp_path: Path) -> None:
    rows = [*items(3, 1), replace(ITEM, answer="a\u2028b\u0085\n")]
    write_records(tmp_path / "answers.jsonl", map(to_json, rows))
    assert read_records(tmp_path / "answers.jsonl", HeldoutAnswer) == rows


def test_a_model_is_judged_as_plain_forwards_do(tiny_model: Path, cache: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from spintune.engine.logprobs import LogProbEngine
    from spintune.generation.build import build_generator
    from spintune.models.loading import load_model
    from spintune.tokens.chat import ChatRenderer

    loaded = load_model(str(tiny_model), cache=cache)
    renderer = ChatRenderer(loaded.tokenizer, "tokenizer")
    engine = LogProbEngine(loaded.model, loaded.autocast)
    generator = build_generator(engine, loaded.tokenizer, renderer.stop_ids)
    examples = [
        Example((Message("user", f"Say {word}."), Message("assistant", word * count)))
        for count, word in enumerate(("fox", "owl", "dog"), 1)
    ]
    rows = renderer.rows(examples)
    plain = AutoModelForCausalLM.from_pretrained(tiny_model)
    likelihoods = score_heldout(engine, examples, rows, Silent(), "model")
    judged = answer_heldout(generator, examples, rows, likelihoods, 5, Silent(), "model")
    for row, item, example in zip(rows, judged, examples, strict=True):
        with torch.no_grad():
            ids = torch.tensor([row.prompt_ids + row.response_ids])
            logprobs = plain(ids).logits[0].log_softmax(-1)
            given = len(row.prompt_ids)
            nll = -sum(logprobs[given - 1 + n, id].item() for n, id in enumerate(row.response_ids))
            answer = list(row.prompt_ids)
            while len(answer) < given + 5 and answer[-1] not in renderer.stop_ids:
                answer.append(plain(torch.tensor([answer])).logits[0, -1].argmax().item())
        assert item.nll == pytest.approx(nll, abs=1e-4)
        assert item.reference_tokens == len(row.response_ids)
        assert item.answer == loaded.tokenizer.decode(answer[given:], skip_special_tokens=True)
        assert item.answer_tokens == len(answer) - given
        assert (item.id, item.reference) == (example.id, example.answer)
        assert item.reference_bytes == len(example.answer)
    values = [item.nll for item in judged]
    tokens = [len(row.response_ids) for row in rows]
    assert summarize_heldout(judged)["nll_per_token"] == bootstrap(values, tokens)
