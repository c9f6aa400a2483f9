"""A model on this machine answers requests as the protocol says, whatever is asked beside them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from spintune.engine.logprobs import LogProbEngine
from spintune.generation.build import build_generator
from spintune.generation.local_teacher import LocalTeacher
from spintune.generation.sampling import Sampling
from spintune.models.loading import load_model
from spintune.records import Message
from spintune.teachers.protocol import Failure, Reply, Request


def teacher_of(folder: Path, cache: Path) -> LocalTeacher:
    loaded = load_model(str(folder), cache=cache)
    renderer = loaded.renderer("tokenizer", "last")
    generator = build_generator(LogProbEngine(loaded.model, loaded.autocast), loaded.tokenizer, renderer.stop_ids)
    return LocalTeacher("tiny", {}, generator, renderer, loaded.max_input_length, not loaded.encoder_decoder)


@pytest.fixture(scope="module")
def teacher(tiny_model: Path, cache: Path) -> LocalTeacher:
    return teacher_of(tiny_model, cache)


def asked(text: str, **changes: object) -> Request:
    return replace(Request((Message("user", text),), max_tokens=24, temperature=1.0), **changes)  # type: ignore[arg-type]


def reply(teacher: LocalTeacher, *requests: Request) -> list[Reply]:
    outcomes = dict(teacher.ask(requests))
    found = [outcomes[index] for index in range(len(requests))]
    assert all(isinstance(outcome, Reply) for outcome in found)
    return found  # type: ignore[return-value]


def test_a_reply_depends_on_its_request_alone(teacher: LocalTeacher) -> None:
    requests = [asked("the fox"), asked("the dog", temperature=0.5), asked("the fox", draw=1)]
    together = reply(teacher, *requests)
    assert together == [reply(teacher, request)[0] for request in requests]
    assert together == reply(teacher, *reversed(requests))[::-1]
    assert together[0].text != together[2].text  # another draw


def test_the_answer_ends_at_a_stop_text_and_what_follows_is_not_written(teacher: LocalTeacher) -> None:
    # a request's stop texts are part of what its random stream depends on, so greedy answers are compared
    (greedy,) = reply(teacher, asked("the fox", temperature=0.0))
    stop = greedy.text[4:6]
    at = greedy.text.find(stop)
    (cut,) = reply(teacher, asked("the fox", temperature=0.0, stop=("never to be seen", stop)))
    assert cut.text == greedy.text[:at]
    assert cut.ending == "stop"
    assert (cut.completion_tokens or 0) < (greedy.completion_tokens or 0)


def test_it_goes_on_from_the_beginning_of_an_answer(teacher: LocalTeacher) -> None:
    """As if the model had written it: the ids of the prompt, then those of the beginning."""
    (continued,) = reply(teacher, asked("the fox", begin="lazy dog", temperature=0.0))
    prompt = teacher.renderer.prompt((Message("user", "the fox"),))
    tokenizer = teacher.writer.tokenizer  # type: ignore[attr-defined]
    ids = prompt + tuple(tokenizer("lazy dog", add_special_tokens=False)["input_ids"])
    (expected,) = teacher.writer.generate([ids], Sampling(24, temperature=0))
    assert continued.text == expected.text
    assert continued.prompt_tokens == len(ids)


def test_an_encoder_decoder_reads_the_messages_alone(tiny_t5: Path, cache: Path) -> None:
    teacher = teacher_of(tiny_t5, cache)
    plain, begun = reply(teacher, asked("the fox", temperature=0.0), asked("the fox", temperature=0.0, begin="lazy"))
    assert begun.prompt_tokens == plain.prompt_tokens
    assert begun.text == plain.text


def test_what_does_not_fit_is_a_failure_and_the_others_are_answered(teacher: LocalTeacher) -> None:
    outcomes = dict(teacher.ask([asked("the fox", max_tokens=10**6), asked("the fox")]))
    assert isinstance(outcomes[0], Failure)
    assert outcomes[0].reason == "too_long"
    assert isinstance(outcomes[1], Reply)


def test_a_large_presence_penalty_keeps_every_token_from_coming_twice(teacher: LocalTeacher) -> None:
    prompt = teacher.renderer.prompt((Message("user", "the fox"),))
    plain, penalized = (
        teacher.writer.generate([prompt], Sampling(24, temperature=0, presence_penalty=penalty))[0].ids
        for penalty in (0.0, 1e4)
    )
    assert len(set(plain)) < len(plain)
    assert len(set(penalized)) == len(penalized)
