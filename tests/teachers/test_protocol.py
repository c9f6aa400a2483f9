"""What a request may cost at most, and what outcomes cost."""

from __future__ import annotations

import doctest
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

import spintune.teachers.budget
import spintune.teachers.protocol
from spintune.records import Message
from spintune.teachers.budget import Budget, Ledger, LedgerCall
from spintune.teachers.protocol import Failure, Reply, Request, Usage, usage_of
from spintune.teachers.replies import request_key

conversations = st.lists(st.text(max_size=50), min_size=1, max_size=5)


@given(texts=conversations, begin=st.text(max_size=20))
def test_no_tokenizer_makes_more_of_a_prompt_than_the_ceiling(texts: list[str], begin: str) -> None:
    """The worst case: a token for every byte, the markers of ChatML spelt out, and a default system prompt."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer = Tokenizer(models.BPE(vocab={letter: n for n, letter in enumerate(sorted(alphabet))}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    controls = ["<|im_start|>", "<|im_end|>"]
    tokenizer.add_special_tokens(controls)
    rendered = "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
    rendered += "".join(f"<|im_start|>assistant\n{text}<|im_end|>\n" for text in texts) + "<|im_start|>assistant\n"
    request = Request(tuple(Message("assistant", text) for text in texts), begin=begin, max_tokens=77)
    assert request.ceiling.completion_tokens == 77
    if not any(control in text for text in [*texts, begin] for control in controls):
        assert len(tokenizer.encode(rendered + begin).ids) <= request.ceiling.prompt_tokens


def test_an_outcome_costs_what_was_counted_else_an_estimate_and_one_ceiling_for_each_lost_attempt() -> None:
    """The ceiling: 5 bytes + 16 + 256 = 277 prompt tokens, and 10 of the answer."""
    request = Request((Message("user", "hello"),), max_tokens=10)
    assert usage_of(request, Reply("a", "stop", 3, 4)) == Usage(1, 3, 4)
    assert usage_of(request, Reply("a" * 9, "stop", 3, None)) == Usage(1, 3, 4)
    assert usage_of(request, Reply("a" * 900, "length", 3, None)) == Usage(1, 3, 10)  # it was to write 10 at most
    assert usage_of(request, Reply("a", "stop", None, 4, lost=2)) == Usage(1, 2 * 277 + 16 + 2, 24)
    assert usage_of(request, Reply("a", "stop", 3, None, reasoning="b" * 300)) == Usage(1, 3, 101)
    assert usage_of(request, Failure("rate_limited")) == Usage(1, 0, 0)
    assert usage_of(request, Failure("timeout", lost=1)) == Usage(1, 277, 10)


def test_a_count_that_is_too_small_for_the_texts_does_not_count() -> None:
    request = Request((Message("user", "hello " * 100),), max_tokens=1000)
    assert usage_of(request, Reply("b" * 800, "stop", 0, 0)) == Usage(1, 75, 100)
    assert usage_of(request, Reply("b" * 800, "stop", 120, 190)) == Usage(1, 120, 190)


def test_a_request_is_told_apart_by_everything_it_says() -> None:
    base = Request((Message("user", "a"),))
    others = [
        Request((Message("system", "a"),)),
        Request((Message("user", "b"),)),
        Request((Message("user", "a"), Message("user", "a"))),
        Request(base.messages, begin="x"),
        Request(base.messages, max_tokens=1),
        Request(base.messages, temperature=0.5),
        Request(base.messages, top_p=0.5),
        Request(base.messages, presence_penalty=1),
        Request(base.messages, frequency_penalty=1),
        Request(base.messages, stop=("x",)),
        Request(base.messages, draw=1),
    ]
    keys = [request_key({"kind": "teacher"}, request) for request in [base, *others]]
    assert len(set(keys)) == len(keys)


@given(
    limit=st.integers(0, 3000),
    steps=st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["reserve", "lose", "settle", "release", "give_up"]))),
    share=st.fractions(0, 1),
)
def test_whatever_calls_do_the_ledger_never_passes_its_budget(
    limit: int, steps: list[tuple[int, str]], share: float
) -> None:
    """Six calls, their steps in any order that the rules allow, each using any share of its ceiling."""
    ledger = Ledger(Budget(tokens=limit), Usage())
    requests = [Request((Message("user", "x" * n),), max_tokens=50 * n) for n in range(6)]
    calls = [LedgerCall(request, ledger) for request in requests]
    under_way: set[int] = set()
    for n, step in steps:
        if step == "reserve":
            if calls[n].reserve():
                under_way.add(n)
        elif n in under_way:
            under_way.remove(n)
            if step == "settle":
                counts = requests[n].ceiling
                calls[n].settle(
                    Reply("", "stop", int(counts.prompt_tokens * share), int(counts.completion_tokens * share))
                )
            else:
                getattr(calls[n], step)()
        assert ledger.spent.tokens + sum(requests[m].ceiling.tokens for m in under_way) <= limit


def test_limits_of_a_budget_hold_each_for_itself() -> None:
    budget = Budget(tokens=100, dollars=0.001, prompt_price=10, completion_price=20)
    assert budget.covers(Usage(1, 100, 0))  # 100 × $10 / 10⁶ = $0.001
    assert not budget.covers(Usage(1, 0, 51))  # $0.00102
    assert not Budget(tokens=100).covers(Usage(1, 60, 41))
    assert Budget().covers(Usage(1, 10**12, 10**12))
    assert str(budget) == "100 tokens and $0.00"


@pytest.mark.parametrize("module", [spintune.teachers.protocol, spintune.teachers.budget])
def test_examples_in_docstrings_are_true(module: object) -> None:
    results = doctest.testmod(module)  # type: ignore[arg-type]
    assert results.attempted > 0
    assert results.failed == 0


def test_the_key_of_a_reply_stays_as_it_was() -> None:
    """Runs of earlier versions find their replies: they are not asked, and paid, again."""
    request = Request((Message("system", "a"), Message("user", "b")), "c", stop=("d",), temperature=0, draw=2)
    fields = (
        '"request":{"begin":"c","draw":2,"frequency_penalty":0.0,"max_tokens":1024,"messages":[{"content":"a",'
        '"role":"system"},{"content":"b","role":"user"}],"presence_penalty":0.0,"stop":["d"],"temperature":0,'
        '"top_p":1.0}'
    )
    document = f'{{{fields},"teacher":{{"kind":"x"}}}}'
    assert request_key({"kind": "x"}, request) == hashlib.sha256(document.encode()).hexdigest()
