"""Drafts change what is computed together, and nothing that is written."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import pytest
from transformers import AutoModelForSeq2SeqLM

from spintune.engine.logprobs import LogProbEngine
from spintune.generation import drafts
from spintune.generation.batch import BatchGenerator, GenerationLimits
from spintune.generation.decoder import DecoderRunner
from spintune.generation.drafts import Drafts
from spintune.generation.protocol import SequenceState
from spintune.generation.sampling import Sampling, stream_keys

NEW = 24
PROMPTS = [(9, 4, 61, *rest) for rest in ((5, 12, 80), (30,), (5, 12), (33,) * 9, (70,), (70,))]
STOPS = frozenset(range(0, 97, 24))


def with_drafts(sampling, answers):
    return replace(sampling, drafts=dict(zip(stream_keys(PROMPTS, sampling.seed), answers, strict=True)))


class OnTokens:
    """The tokens that it is told of, by the index of their prompt."""

    def __init__(self):
        self.seen = defaultdict(list)

    def __call__(self, index, token):
        self.seen[index].append(token)


@pytest.fixture
def calls(monkeypatch):
    """Tokens of drafts that each call of the model reads."""
    seen = []
    forward = DecoderRunner.forward

    def counted(self, running, started):
        seen.append(sum(len(sequence.draft) for sequence in started))
        return forward(self, running, started)

    monkeypatch.setattr(DecoderRunner, "forward", counted)
    return seen


@pytest.mark.parametrize("slots", [2, 8])
@pytest.mark.parametrize(
    "sampling",
    [Sampling(NEW, temperature=0), Sampling(NEW, seed=3), Sampling(NEW, 0.8, top_p=0.9, top_k=20, seed=4)],
    ids=["greedy", "drawn", "cut"],
)
@pytest.mark.parametrize("family", ["gpt2", "mistral", "gemma2"])
def test_what_is_written_does_not_depend_on_drafts(family, sampling, slots, build, words, calls, monkeypatch):
    monkeypatch.setattr(drafts, "_WORTH", 0.0)  # also wrong ones are read to the end
    generator = BatchGenerator(LogProbEngine(build(family)), words, STOPS, GenerationLimits(slots))
    plain = generator.generate(PROMPTS, sampling)
    without = len(calls)
    own = [completion.ids for completion in plain]
    wrong = [tuple((token + 1) % 97 for token in ids) for ids in own]
    half = [ids[: len(ids) // 2] + other[len(ids) // 2 :] for ids, other in zip(own, wrong, strict=True)]
    longer = [ids + (5,) * 2 * NEW for ids in own]
    for answers in (own, wrong, half, longer, [(), *own[1:]]):
        calls.clear()
        order = OnTokens()
        found = generator.generate(PROMPTS, with_drafts(sampling, answers), on_token=order)
        assert [(one.ids, one.text, one.finish_reason) for one in found] == [
            (one.ids, one.text, one.finish_reason) for one in plain
        ]
        assert [one.logprob for one in found] == pytest.approx([one.logprob for one in plain], abs=1e-10)
        for index, ids in enumerate(own):
            assert tuple(order.seen[index]) == ids
        assert sum(calls) > 0
        if answers is own:  # a call for as many as start at once, and no more
            assert len(calls) == len(PROMPTS) // min(slots, len(PROMPTS)) < without


def test_on_token_ends_an_answer_within_its_draft(build, words):
    generator = BatchGenerator(LogProbEngine(build("gpt2")), words, frozenset())
    sampling = Sampling(NEW, seed=3)
    own = [completion.ids for completion in generator.generate(PROMPTS, sampling)]
    written = [0] * len(PROMPTS)

    def third(index, token):
        written[index] += 1
        return written[index] == 3

    found = generator.generate(PROMPTS, with_drafts(sampling, own), on_token=third)
    assert [completion.ids for completion in found] == [ids[:3] for ids in own]


@pytest.mark.parametrize("penalty", [0.0, 0.5], ids=["encoder-decoder", "penalties"])
def test_drafts_that_cannot_be_read_at_once_are_left_out(penalty, build, words, tiny_t5):
    model = build("gpt2") if penalty else AutoModelForSeq2SeqLM.from_pretrained(tiny_t5).double()
    generator = BatchGenerator(LogProbEngine(model), words, STOPS)
    sampling = Sampling(NEW, seed=3, presence_penalty=penalty)
    plain = generator.generate(PROMPTS, sampling)
    assert generator.generate(PROMPTS, with_drafts(sampling, [(1, 2, 3)] * len(PROMPTS))) == plain


def test_a_call_reads_a_bounded_number_of_drafted_tokens(build, words, calls, monkeypatch):
    monkeypatch.setattr(drafts, "_LOGITS", 97 * 10)
    generator = BatchGenerator(LogProbEngine(build("gpt2")), words, frozenset())
    sampling = Sampling(NEW, seed=3)
    plain = generator.generate(PROMPTS, sampling)
    own = [completion.ids for completion in plain]
    assert generator.generate(PROMPTS, with_drafts(sampling, own)) == [
        replace(one, logprob=pytest.approx(one.logprob, abs=1e-10)) for one in plain
    ]
    assert 0 < max(calls) <= 10


def test_drafts_that_are_wrong_are_soon_given_up():
    chosen = Drafts(97, usable=True)
    read = []
    for _ in range(100):
        sequence = SequenceState(0, (1,), [], draft=(7,) * 9, max_len=20)
        chosen.cut(sequence)
        read.append(len(sequence.draft))
        assert list(chosen.drawn(sequence, [(8, 0.0)] * (1 + read[-1]))) == [(8, 0.0)]
    assert read[0] == 9
    assert 64 <= sum(read) < 64 + 9
    assert read[-1] == 0
