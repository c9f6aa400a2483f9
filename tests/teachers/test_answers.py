"""What endpoints say besides a plain answer: how it ended, errors in a status of 200, thoughts, refused parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from spintune.errors import RecipeError, TeacherError
from spintune.records import Message
from spintune.teachers.endpoint import Endpoint, EndpointTeacher
from spintune.teachers.protocol import Failure, Outcome, Reply, Request, Usage
from spintune.teachers.replies import Replies

Questions = Callable[..., list[Request]]


class Notes:
    """Keeps what is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)

    def task(self, name: str, total: float, unit: str) -> Any:
        raise NotImplementedError


def asked(url: str, requests: list[Request], notes: Notes | None = None, **options: Any) -> list[Outcome]:
    endpoint = Endpoint(url, "gem", **{"max_retries": 0, **options})
    found = dict(EndpointTeacher(endpoint, {}, progress=notes or Notes()).ask(requests))
    return [found[index] for index in range(len(requests))]


@pytest.mark.parametrize(
    ("reason", "ending"),
    [
        *((name, "stop") for name in ("stop", "STOP", "eos", "eos_token", "end_turn", "stop_sequence", "COMPLETE")),
        *((name, "length") for name in ("length", "max_tokens", "MAX_TOKENS", "model_length")),
        *((name, "refused") for name in ("content_filter", "refusal", "SAFETY", "sensitive")),
    ],
)
def test_names_of_endings(
    serve: Any, sent: Any, chat_answer: Any, questions: Questions, reason: str, ending: Any
) -> None:
    server = serve(lambda n, seen: sent(chat_answer("text", reason)))
    assert asked(server.url, questions(1)) == [Reply("text", ending, 7, 3)]


@pytest.mark.parametrize("reason", ["tool_calls", "function_call", None, "resting"])
def test_a_text_that_may_be_half_is_a_failure_told_once_with_its_reason(
    serve: Any, sent: Any, chat_answer: Any, questions: Questions, reason: str | None
) -> None:
    server, notes = serve(lambda n, seen: sent(chat_answer("half a te", reason))), Notes()
    assert asked(server.url, questions(3), notes) == [Failure("unfinished", f"finish_reason {reason!r}", lost=1)] * 3
    assert len(notes.lines) == 1
    assert f"finish_reason {reason!r} count as failed" in notes.lines[0]


@pytest.mark.parametrize("reason", ["error", "abort", "insufficient_system_resource"])
def test_an_answer_that_the_server_broke_off_is_asked_again(
    serve: Any, sent: Any, chat_answer: Any, questions: Questions, reason: str
) -> None:
    server = serve(lambda n, seen: sent(chat_answer("half", reason) if n == 0 else chat_answer("whole"), headers=SOON))
    assert asked(server.url, questions(1), max_retries=1) == [Reply("whole", "stop", 7, 3, lost=1)]
    server = serve(lambda n, seen: sent(chat_answer("half", reason)))
    assert asked(server.url, questions(1)) == [Failure("server_error", f"finish_reason {reason!r}", lost=1)]


SOON = {"Retry-After": "0.01"}


def error_in_choice(code: int) -> dict[str, Any]:
    return {"choices": [{"message": {"content": "hal"}, "finish_reason": "error", "error": {"code": code}}]}


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"code": 429, "message": "slow down", "metadata": {"raw": "upstream is busy"}}},
        {"error": {"code": "502", "message": "upstream"}, "choices": None},
        {"error": {"type": "rate_limit_error", "message": "slow down"}, "choices": []},
        {"error": "upstream timeout"},
        {"object": "error", "message": "overloaded", "code": 503},
        [{"error": {"status": "RESOURCE_EXHAUSTED", "code": 429}}],
        error_in_choice(502),
    ],
)
def test_an_error_in_a_status_of_200_is_asked_again_like_its_status(
    serve: Any, sent: Any, chat_answer: Any, questions: Questions, body: Any
) -> None:
    server = serve(lambda n, seen: sent(body, headers=SOON) if n < 2 else sent(chat_answer("yes")))
    (outcome,) = asked(server.url, questions(1), max_retries=2)
    assert isinstance(outcome, Reply)
    assert (outcome.text, len(server.received)) == ("yes", 3)


def test_an_error_in_a_status_of_200_has_the_reason_of_its_status(serve: Any, sent: Any, questions: Questions) -> None:
    bodies: list[Any] = [
        {"error": {"code": 429, "message": "Provider returned error", "metadata": {"raw": "busy"}}},
        {"error": {"code": 400, "message": "too long"}},
        {"error": {"message": "upstream is down"}},
    ]
    server = serve(lambda n, seen: sent(bodies[int(seen.question[-1])]))
    assert asked(server.url, questions(3)) == [
        Failure("rate_limited", "Provider returned error: busy"),
        Failure("bad_request", "too long"),
        Failure("server_error", "upstream is down"),
    ]


@pytest.mark.parametrize(
    ("error", "words"),
    [({"code": 401}, "status 401"), ({"type": "authentication_error"}, "status 401"), ({"code": 403}, "status 403")],
)
def test_a_key_that_is_refused_in_a_status_of_200_ends_the_run(
    serve: Any, sent: Any, questions: Questions, error: Any, words: str
) -> None:
    server = serve(lambda n, seen: sent({"error": error}))
    with pytest.raises(TeacherError, match=words):
        asked(server.url, questions(1))
    assert len(server.received) == 1


# parameters that a model refuses


def refusing(sent: Any, answer: Any, *names: str) -> Any:
    """A model of the kind that takes neither stop nor a temperature."""

    def respond(number: int, seen: Any) -> Any:
        for name in names:
            if name in seen.body:
                hint = " Use 'max_completion_tokens' instead." if name == "max_tokens" else ""
                message = f"Unsupported parameter: '{name}' is not supported with this model.{hint}"
                return sent({"error": {"message": message, "param": name, "code": "unsupported_parameter"}}, 400)
        return sent(answer)

    return respond


def test_refused_parameters_are_left_out_or_renamed_and_told_once(
    serve: Any, sent: Any, chat_answer: Any, questions: Questions
) -> None:
    names = ("max_tokens", "stop", "temperature", "top_p", "presence_penalty", "seed")
    server, notes = serve(refusing(sent, chat_answer("1. Sing.\n2. Run.\n3. H"), *names)), Notes()
    settings: dict[str, Any] = {"stop": ("\n2.", "\n3."), "temperature": 0.7, "presence_penalty": 2.0, "max_tokens": 9}
    outcomes = asked(server.url, questions(12, **settings), notes, extra={"seed": 3}, concurrency=4)
    left_out = ("temperature", "presence_penalty", "seed")  # top_p was 1, and stop is heeded here
    assert outcomes == [Reply("1. Sing.", "stop", 7, 3, left_out=left_out)] * 12
    assert set(server.received[-1].body) == {"model", "messages", "max_completion_tokens"}
    assert server.received[-1].body["max_completion_tokens"] == 9
    assert len(notes.lines) == len(names)
    assert "asked with max_completion_tokens in the place of max_tokens" in notes.lines[0]
    assert len(server.received) <= 12 + 4 * len(names)  # what one request found out holds for all


@pytest.mark.parametrize(
    ("status", "body", "gone"),
    [
        (
            400,
            {"error": {"message": "litellm.UnsupportedParamsError: gem does not support parameters: ['stop']"}},
            "stop",
        ),
        (422, {"detail": [{"loc": ["body", "stop"], "msg": "Extra inputs are not permitted"}]}, "stop"),
        (400, {"error": "Model gem does not support parameter presencePenalty."}, "presence_penalty"),
        (400, {"message": "`temperature` and `top_p` cannot both be specified for this model."}, "top_p"),
        (
            400,
            {
                "error": {
                    "message": "Unsupported value: 'temperature' does not support 0.5. Only the default (1) value."
                }
            },
            "temperature",
        ),
    ],
)
def test_refusals_of_other_servers(
    serve: Any, sent: Any, chat_answer: Any, questions: Questions, status: int, body: Any, gone: str
) -> None:
    server = serve(lambda n, seen: sent(body, status) if gone in seen.body else sent(chat_answer("yes")))
    requests = questions(1, stop=("\n",), presence_penalty=1.0, temperature=0.5, top_p=0.5)
    (outcome,) = asked(server.url, requests)
    assert isinstance(outcome, Reply)
    assert set(server.received[0].body) - set(server.received[1].body) == {gone}


@pytest.mark.parametrize(
    "message",
    [
        "max_tokens is too large: 5000. This model supports at most 4096 completion tokens.",
        "This model's maximum context length is 4096 tokens; reduce max_tokens.",
        "The messages are not supported.",
    ],
)
def test_another_refusal_changes_nothing(serve: Any, sent: Any, questions: Questions, message: str) -> None:
    server = serve(lambda n, seen: sent({"error": {"message": message}}, 400))
    assert asked(server.url, questions(1)) == [Failure("bad_request", message)]
    assert len(server.received) == 1


def test_a_server_that_refuses_both_limits_is_no_endless_loop(serve: Any, sent: Any, questions: Questions) -> None:
    server = serve(refusing(sent, {}, "max_tokens", "max_completion_tokens"))
    (outcome,) = asked(server.url, questions(1))
    assert isinstance(outcome, Failure)
    assert (outcome.reason, len(server.received)) == ("bad_request", 2)


def test_stop_can_be_kept_back_beforehand(serve: Any, sent: Any, chat_answer: Any, questions: Questions) -> None:
    server = serve(lambda n, seen: sent(chat_answer("one\ntwo", "length")))
    outcomes = asked(server.url, questions(1, stop=("\n",)), extra={"stop": None, "temperature": None})
    assert outcomes == [Reply("one", "stop", 7, 3)]
    assert not {"stop", "temperature"} & set(server.received[0].body)
    with pytest.raises(RecipeError, match="extra may not set stop"):
        Endpoint(server.url, "gem", extra={"stop": ["\n"]})


# thoughts


def thinking(
    chat_answer: Any, reasoning: str, content: Any, reason: str = "stop", field: str = "reasoning_content"
) -> Any:
    body = chat_answer(content, reason)
    body["choices"][0]["message"][field] = reasoning
    return body


def test_a_thought_is_kept_apart_from_its_answer_and_stored(
    serve: Any, sent: Any, chat_answer: Any, questions: Questions
) -> None:
    parts = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "Two\nand"}]},
        {"type": "text", "text": "Four\nor so"},
    ]
    bodies = [
        thinking(chat_answer, "Two\nand", "\n\nFour\nor so"),
        thinking(chat_answer, "Two\nand", "Four\nor so", field="reasoning"),
        chat_answer("Two\nand</think>\n\nFour\nor so"),
        chat_answer(parts),
    ]
    server = serve(lambda n, seen: sent(bodies[int(seen.question[-1])]))
    replies = asked(server.url, questions(4, stop=("\n",)))
    assert replies == [Reply("Four", "stop", 7, 3, reasoning="Two\nand")] * 4
    with Replies(None) as file:
        file.add({}, Usage(), [("key", replies[0])])
        assert file.find("key") == replies[0]


@pytest.mark.parametrize("content", [None, "", " \n"])
def test_a_thought_without_an_answer_is_no_empty_answer(
    serve: Any, sent: Any, chat_answer: Any, questions: Questions, content: str | None
) -> None:
    server = serve(lambda n, seen: sent(thinking(chat_answer, "Hm", content, "length" if n == 0 else "stop")))
    cut, stopped = asked(server.url, questions(2), concurrency=1)
    assert cut == Reply("", "length", 7, 3, reasoning="Hm")
    assert stopped == Failure("only_reasoning", "it stopped in its thought, before an answer", lost=1)


def test_a_stop_text_that_ends_a_thought_is_kept_back_from_then_on(
    serve: Any, sent: Any, chat_answer: Any, questions: Questions
) -> None:
    whole, notes = "<think>Two\nand two</think>\n\nFour\nFive", Notes()

    def respond(number: int, seen: Any) -> Any:
        return sent(chat_answer(whole.partition("\n")[0] if "stop" in seen.body else whole))

    server = serve(respond)
    first, second = asked(server.url, questions(2, stop=("\n",)), notes, concurrency=1)
    assert first == Reply("Four", "stop", 7, 3, lost=1, reasoning="Two\nand two")
    assert second == Reply("Four", "stop", 7, 3, reasoning="Two\nand two")
    assert len(notes.lines) == 1


def test_a_refusal_beside_an_empty_content(serve: Any, sent: Any, chat_answer: Any) -> None:
    body = chat_answer("")
    body["choices"][0]["message"]["refusal"] = "I will not."
    server = serve(lambda n, seen: sent(body))
    assert asked(server.url, [Request((Message("user", "a"),))]) == [Reply("I will not.", "refused", 7, 3)]
