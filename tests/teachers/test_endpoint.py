"""An endpoint is asked as it wants to be, its troubles have names, and its key goes nowhere else."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import os
import signal
import threading
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spintune.errors import BudgetError, RecipeError, TeacherError
from spintune.progress import Silent
from spintune.records import Message
from spintune.teachers.budget import Budget
from spintune.teachers.endpoint import Endpoint, EndpointTeacher
from spintune.teachers.protocol import Failure, Outcome, Reply, Request, Usage
from spintune.teachers.replies import Replies, answer

KEY = "sk-canary-0123456789abcdef"
Questions = Callable[..., list[Request]]


def teacher_at(url: str, environment: dict[str, str] | None = None, **options: Any) -> EndpointTeacher:
    return EndpointTeacher(Endpoint(url, "gem", **{"max_retries": 0, **options}), environment or {})


def outcomes_of(teacher: EndpointTeacher, requests: list[Request]) -> list[Outcome]:
    found = dict(teacher.ask(requests))
    return [found[index] for index in range(len(requests))]


# what is sent, and what comes back


def test_a_chat_endpoint_gets_the_messages_and_every_setting_that_matters(serve: Any) -> None:
    server = serve()
    request = Request(
        (Message("system", "Be brief."), Message("user", "Hällo")),
        begin="1. ",
        max_tokens=300,
        temperature=0.7,
        top_p=0.5,
        presence_penalty=2.0,
        frequency_penalty=0.25,
        stop=("\n\n", "Task"),
        draw=4,
    )
    teacher = teacher_at(server.url + "/", extra={"reasoning_effort": "low", "top_p": None})
    assert outcomes_of(teacher, [request]) == [Reply("Hällo", "stop", 7, 3)]
    (seen,) = server.received
    assert seen.path == "/v1/chat/completions"
    assert seen.body == {
        "model": "gem",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hällo"}],
        "temperature": 0.7,
        "max_tokens": 300,
        "presence_penalty": 2.0,
        "frequency_penalty": 0.25,
        "stop": ["\n\n", "Task"],
        "reasoning_effort": "low",
    }
    assert teacher.name == f"gem at 127.0.0.1:{server.port}"


def test_a_completions_endpoint_gets_the_text_and_how_the_answer_begins(serve: Any, sent: Any) -> None:
    server = serve(lambda n, seen: sent({"choices": [{"text": " Add 2 and 3.", "finish_reason": "length"}]}))
    request = Request((Message("system", "Tasks:"), Message("user", "1. Sing.\n")), begin="2.", max_tokens=9)
    teacher = teacher_at(server.url, style="completions", max_tokens_field="max_completion_tokens")
    assert outcomes_of(teacher, [request]) == [Reply(" Add 2 and 3.", "length", None, None)]
    (seen,) = server.received
    assert seen.path == "/v1/completions"
    assert seen.body == {
        "model": "gem",
        "prompt": "Tasks:\n\n1. Sing.\n2.",
        "temperature": 1.0,
        "top_p": 1.0,
        "max_completion_tokens": 9,
    }


def test_only_so_many_requests_are_under_way_and_all_are_answered_as_they_come(
    serve: Any, sent: Any, chat_answer: Any, questions: Questions
) -> None:
    def respond(number: int, seen: Any) -> Any:
        return sent(chat_answer(seen.question), seconds=0.3 if seen.question == "question 0" else 0.01)

    server = serve(respond)
    coming = list(teacher_at(server.url, concurrency=3).ask(questions(20)))
    assert server.most_under_way == 3
    assert sorted((index, outcome.text) for index, outcome in coming) == [(n, f"question {n}") for n in range(20)]
    assert coming[0][0] != 0  # the slow one does not hold up the others


def test_closing_the_generator_gives_up_what_is_under_way_counts_it_and_leaves_no_thread(
    serve: Any, sent: Any, chat_answer: Any, questions: Questions
) -> None:
    def respond(number: int, seen: Any) -> Any:
        if seen.question != "question 2":
            return sent(seconds=600)
        server.wait_for(4)
        return sent(chat_answer("yes", prompt=9, completion=1))

    server = serve(respond)
    teacher = teacher_at(server.url, concurrency=4)
    requests = questions(50, max_tokens=20)
    coming = teacher.ask(requests)
    assert next(coming) == (2, Reply("yes", "stop", 9, 1))
    coming.close()  # would hang if it waited for the others
    assert len(server.received) == 4
    assert teacher.usage == Usage(1, 9 + 3 * requests[0].ceiling.prompt_tokens, 1 + 3 * 20)
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith(("asyncio", "AnyIO"))]


def test_an_interrupt_ends_the_waiting_at_once(serve: Any, sent: Any, questions: Questions) -> None:
    def respond(number: int, seen: Any) -> Any:
        if number == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return sent(seconds=600)

    server = serve(respond)
    with pytest.raises(KeyboardInterrupt):
        list(teacher_at(server.url).ask(questions(5)))
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith(("asyncio", "AnyIO"))]


def test_endings_are_told_apart(serve: Any, sent: Any, chat_answer: Any, questions: Questions) -> None:
    refusal = chat_answer(None)
    refusal["choices"][0]["message"]["refusal"] = "I will not."
    cases = {
        "question 0": (chat_answer("cut", "length"), Reply("cut", "length", 7, 3)),
        "question 1": (chat_answer(None, "length"), Reply("", "length", 7, 3)),  # hidden reasoning took all the room
        "question 2": (chat_answer("half", "content_filter"), Reply("half", "refused", 7, 3)),
        "question 3": (chat_answer(None, "content_filter"), Reply("", "refused", 7, 3)),
        "question 4": (refusal, Reply("I will not.", "refused", 7, 3)),
        "question 5": (chat_answer("", "stop"), Reply("", "stop", 7, 3)),
        "question 6": (chat_answer("all", "eos_token"), Reply("all", "stop", 7, 3)),
        "question 7": (chat_answer("half", None), Failure("unfinished", "finish_reason None", lost=1)),
    }
    server = serve(lambda n, seen: sent(cases[seen.question][0]))
    assert outcomes_of(teacher_at(server.url), questions(8)) == [expected for _, expected in cases.values()]


# troubles of single requests


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("<html><body>Sign in</body></html>", "not JSON: <html>"),
        ('{"choices": [{"message": {"content": "hal', "not JSON"),
        ('{"choices": [{"message": {"content": "\\ud800"}}]}', "not JSON"),  # half of a surrogate pair
        ("", "not JSON"),
        ("[]", "no choices"),
        ("null", "no choices"),
        ('{"choices": []}', "no choices"),
        ('{"choices": [null]}', "no choices"),
        ('{"choices": [{"message": {"content": null}, "finish_reason": "stop"}]}', "without text"),
        ('{"choices": [{"message": {"content": ["a"]}}]}', "without text"),
        ('{"choices": [{"message": "a"}]}', "without text"),
        ('{"choices": [{"text": "a"}]}', "without text"),
        (b"\xff\xfe", "not JSON"),
    ],
)
def test_what_is_no_answer_is_malformed_and_counts_as_charged(
    serve: Any, sent: Any, questions: Questions, body: Any, words: str
) -> None:
    server = serve(lambda n, seen: sent(body))
    teacher = teacher_at(server.url)
    (request,) = questions(1)
    (outcome,) = outcomes_of(teacher, [request])
    assert isinstance(outcome, Failure)
    assert (outcome.reason, outcome.lost) == ("malformed", 1)
    assert words in outcome.detail
    assert teacher.usage == Usage(1, request.ceiling.prompt_tokens, request.max_tokens)


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (400, "bad_request"),
        (413, "bad_request"),
        (422, "bad_request"),
        (408, "timeout"),
        (429, "rate_limited"),
        (500, "server_error"),
        (529, "server_error"),
    ],
)
@pytest.mark.parametrize("error", [{"error": {"message": "no\n\x1b[31mthanks"}}, {"message": "no thanks"}, "no thanks"])
def test_a_refused_request_is_a_failure_with_the_servers_words_and_costs_nothing(
    serve: Any, sent: Any, questions: Questions, status: int, reason: str, error: Any
) -> None:
    server = serve(lambda n, seen: sent(error, status))
    teacher = teacher_at(server.url)
    assert replace(outcomes_of(teacher, questions(1))[0], detail="") == Failure(reason)
    (outcome,) = outcomes_of(teacher, questions(1))
    assert isinstance(outcome, Failure)
    assert outcome.detail.replace("[31m", "") == "no thanks"
    assert teacher.usage == Usage(requests=2)


def test_a_prompt_that_the_content_filter_stops_is_refused(serve: Any, sent: Any, questions: Questions) -> None:
    server = serve(lambda n, seen: sent({"error": {"code": "content_filter", "message": "filtered"}}, 400))
    assert outcomes_of(teacher_at(server.url), questions(1)) == [Reply("", "refused", 0, 0)]


def test_refusals_that_pass_are_asked_again_by_the_client(
    serve: Any, sent: Any, chat_answer: Any, questions: Questions
) -> None:
    """Each question is refused twice, in three ways; the third attempt is answered, and nothing was charged before."""
    tries: Counter[str] = Counter()

    def respond(number: int, seen: Any) -> Any:
        tries[seen.question] += 1
        if tries[seen.question] == 3:
            return sent(chat_answer(seen.question))
        return sent("busy", [429, 503, 408][number % 3], {"Retry-After": "0.01"})

    server = serve(respond)
    teacher = teacher_at(server.url, max_retries=2)
    assert outcomes_of(teacher, questions(10)) == [Reply(f"question {n}", "stop", 7, 3) for n in range(10)]
    assert set(tries.values()) == {3}
    assert teacher.usage == Usage(10, 70, 30)


def test_a_server_that_is_slow_or_never_ends_is_a_timeout_and_counts_as_charged(
    serve: Any, sent: Any, chat_answer: Any, questions: Questions
) -> None:
    server = serve(lambda n, seen: sent(chat_answer("late"), seconds=5))
    teacher = teacher_at(server.url, timeout_seconds=0.2)
    (request,) = questions(1)
    assert outcomes_of(teacher, [request]) == [Failure("timeout", "no answer in 0.2 s", lost=1)]
    assert teacher.usage == Usage(1, request.ceiling.prompt_tokens, request.max_tokens)


def test_a_server_that_dribbles_meets_the_same_limit(serve: Any, sent: Any, questions: Questions) -> None:
    """A byte every 20 ms, so that no single read is late; the whole answer would take 4 s."""
    server = serve(lambda n, seen: sent(" " * 200, pause=0.02))
    (outcome,) = outcomes_of(teacher_at(server.url, timeout_seconds=0.3), questions(1))
    assert outcome == Failure("timeout", "no answer in 0.3 s", lost=1)


def test_a_connection_that_breaks_in_the_answer_is_disconnected(serve: Any, sent: Any, questions: Questions) -> None:
    server = serve(lambda n, seen: sent('{"choices": [', promised=100))
    (outcome,) = outcomes_of(teacher_at(server.url), questions(1))
    assert isinstance(outcome, Failure)
    assert (outcome.reason, outcome.lost) == ("disconnected", 1)


def test_headers_may_hold_any_bytes(serve: Any, sent: Any, chat_answer: Any, questions: Questions) -> None:
    """As the names of organizations and proxies do. HTTP's own charset is ISO-8859-1."""
    server = serve(lambda n, seen: sent(chat_answer("yes"), headers={"X-Organization": "Café"}))
    teacher = teacher_at(server.url, max_retries=5)
    assert outcomes_of(teacher, questions(1)) == [Reply("yes", "stop", 7, 3)]
    assert len(server.received) == 1
    assert teacher.usage == Usage(1, 7, 3)


def test_whatever_fails_after_an_answer_counts_as_charged(
    serve: Any, questions: Questions, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(body: bytes) -> None:
        raise RuntimeError("nobody foresaw this")

    monkeypatch.setattr("spintune.teachers.transport.hidden_error", fails)
    teacher = teacher_at(serve().url)
    (request,) = questions(1)
    with pytest.raises(RuntimeError, match="nobody foresaw this"):
        list(teacher.ask([request]))
    assert teacher.usage.tokens == request.ceiling.prompt_tokens + request.max_tokens


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("status", [200, 400])
def test_a_huge_answer_is_not_read_to_its_end(
    serve: Any, sent: Any, chat_answer: Any, questions: Questions, compressed: bool, status: int
) -> None:
    """10 MB; as gzip they are 10 kB on the wire."""
    body = json.dumps(chat_answer("x" * 10_000_000)).encode()
    headers = {"Content-Encoding": "gzip"} if compressed else {}
    server = serve(lambda n, seen: sent(gzip.compress(body) if compressed else body, status, headers))
    assert outcomes_of(teacher_at(server.url), questions(1)) == [Failure("too_large", "more than 4 MB", lost=1)]


def test_a_compressed_answer_is_read(serve: Any, sent: Any, chat_answer: Any, questions: Questions) -> None:
    body = gzip.compress(json.dumps(chat_answer("short")).encode())
    server = serve(lambda n, seen: sent(body, headers={"Content-Encoding": "gzip"}))
    assert outcomes_of(teacher_at(server.url), questions(1)) == [Reply("short", "stop", 7, 3)]


# troubles that end the run


@pytest.mark.parametrize("status", [401, 403])
def test_a_key_that_is_not_accepted_is_named_by_its_variable(
    serve: Any, sent: Any, questions: Questions, status: int
) -> None:
    server = serve(lambda n, seen: sent({"error": {"message": "Incorrect API key"}}, status))
    teacher = teacher_at(server.url, {"GEM_API_KEY": KEY}, key_variable="GEM_API_KEY", max_retries=3)
    with pytest.raises(TeacherError, match=f"{status}: .* does not accept the key in GEM_API_KEY.*Incorrect API key"):
        list(teacher.ask(questions(20)))
    assert len(server.received) <= 8  # no retries, nothing after the first round
    with pytest.raises(TeacherError, match="the server requires a key; export it"):
        list(teacher_at(server.url).ask(questions(1)))


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (
            404,
            {"error": {"message": "The model `gem`\ndoes not exist " + "y" * 500}},
            "The model `gem` does not exist y",
        ),
        (404, {"detail": "Not Found"}, r"no such model \(gem\) or address \(the server says: Not Found\); check"),
        (402, {"error": {"message": "top up"}}, "out of money"),
        (429, {"error": {"code": "insufficient_quota", "message": "see billing"}}, "quota is used up .*see billing"),
    ],
)
def test_a_refusal_that_means_all_requests_ends_the_run(
    serve: Any, sent: Any, questions: Questions, status: int, body: Any, words: str
) -> None:
    server = serve(lambda n, seen: sent(body, status))
    with pytest.raises(TeacherError, match=words) as caught:
        list(teacher_at(server.url).ask(questions(3)))
    assert str(caught.value).startswith(server.url)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("url", ["http://127.0.0.1:{port}/v1", "https://localhost:{port}/v1", "http://gem.invalid/v1"])
def test_an_address_where_nobody_answers_is_named(questions: Questions, serve: Any, url: str) -> None:
    server = serve()
    url = url.format(port=server.port)
    if url.startswith("http:"):
        server.stop()  # else: a server that does not speak TLS
    with pytest.raises(TeacherError, match=r"cannot connect .*; check the url and that the server runs") as caught:
        list((teacher := teacher_at(url)).ask(questions(1)))
    assert str(caught.value).startswith(url)
    assert teacher.usage == Usage()


def test_answers_that_came_with_the_trouble_are_yielded_before_it(
    serve: Any, sent: Any, chat_answer: Any, questions: Questions
) -> None:
    """Five answers, then the key is withdrawn: the five are there, and so is the error."""
    server = serve(lambda n, seen: sent(chat_answer("yes")) if n < 5 else sent("no", 401))
    received: list[tuple[int, Outcome]] = []
    with pytest.raises(TeacherError, match="status 401"):
        received.extend(teacher_at(server.url, concurrency=1).ask(questions(9)))
    assert received == [(n, Reply("yes", "stop", 7, 3)) for n in range(5)]


@pytest.mark.parametrize("concurrency", [1, 12])
def test_too_many_failures_in_a_row_end_the_run_also_across_calls(
    serve: Any, sent: Any, chat_answer: Any, questions: Questions, concurrency: int
) -> None:
    """max(8, concurrency) of them; an answer in between starts the count anew."""
    limit = max(8, concurrency)
    server = serve(lambda n, seen: sent(chat_answer("yes")) if n == limit - 2 else sent("down", 503))
    teacher = teacher_at(server.url, concurrency=concurrency)
    received: list[Outcome] = []
    words = f"no answer for {limit} requests in a row \\(last: server_error: down\\)"
    small_calls = (outcomes_of(teacher, questions(limit - 1)) for _ in range(20))
    with pytest.raises(TeacherError, match=words):
        received.extend(outcome for outcomes in small_calls for outcome in outcomes)
    assert len(server.received) < 4 * limit
    if concurrency == 1:  # limit - 2 failures, one reply, limit failures
        assert len(server.received) == 2 * limit - 1
    assert sum(isinstance(outcome, Reply) for outcome in received) == 1


# the budget


def test_the_budget_is_never_passed_and_used_up_to_the_last_request(
    serve: Any, sent: Any, chat_answer: Any, questions: Questions
) -> None:
    """The server counts for itself: 60 + 40 tokens a request, 100 with answers in one of four without a count.

    The ceiling of each request is 10 bytes of question (11 from the tenth on) + 16 + 256 + 50 = 332 (333).
    """

    def respond(number: int, seen: Any) -> Any:
        body = chat_answer("yes", prompt=60, completion=40)
        if number % 4 == 3:
            del body["usage"]
        return sent(body, seconds=0.001 * (number % 5))

    server = serve(respond)
    budget = Budget(tokens=5000)
    teacher = teacher_at(server.url, concurrency=6, budget=budget)
    received: dict[int, Outcome] = {}
    spent = []
    coming = (
        (index, outcome, spent.append(teacher.usage)) for index, outcome in teacher.ask(questions(200, max_tokens=50))
    )
    with pytest.raises(BudgetError, match=r"budget of 5,000 tokens does not cover") as caught:
        received.update((index, outcome) for index, outcome, _ in coming)
    assert max(usage.tokens for usage in spent) <= 5000
    assert len(received) == len(server.received) == teacher.usage.requests
    counted = sum(isinstance(o, Reply) and o.prompt_tokens is not None for o in received.values())
    # without a count a token for 3 bytes: 10 or 11 bytes and 16 for the template, and the 3 bytes of "yes"
    assert teacher.usage.tokens == 100 * counted + 22 * (len(received) - counted) <= 5000
    assert teacher.usage.tokens > 5000 - 333
    assert f"{teacher.usage.tokens:,} tokens" in str(caught.value)

    # the next run knows what was spent: it asks nothing under the same budget, and goes on under a larger one
    asked = len(server.received)
    again = EndpointTeacher(Endpoint(server.url, "gem", budget=budget), {}, spent=teacher.usage)
    with pytest.raises(BudgetError):
        list(again.ask(questions(1, max_tokens=50)))
    assert len(server.received) == asked
    more = EndpointTeacher(Endpoint(server.url, "gem", budget=Budget(tokens=5333)), {}, spent=teacher.usage)
    assert len(list(more.ask(questions(1, max_tokens=50)))) == 1


def test_a_server_that_counts_no_tokens_is_not_believed(
    serve: Any, sent: Any, chat_answer: Any, questions: Questions
) -> None:
    """10 and 1,800 bytes are at least 1 and 225 tokens. The ceiling is 282 or 283 + 300: of 5,000, 20 requests fit."""
    server = serve(lambda n, seen: sent(chat_answer("a word " * 257 + "b", prompt=0, completion=0)))
    notes: list[str] = []
    told = Silent()
    told.note = notes.append  # type: ignore[method-assign]
    teacher = EndpointTeacher(Endpoint(server.url, "gem", budget=Budget(tokens=5000), concurrency=1), {}, progress=told)
    with pytest.raises(BudgetError):
        list(teacher.ask(questions(100, max_tokens=300)))
    assert len(server.received) == 20
    assert len(notes) == 1
    assert "counts no tokens, or too few for its texts" in notes[0]


def test_a_budget_in_dollars_is_kept_by_its_prices(
    serve: Any, sent: Any, chat_answer: Any, questions: Questions
) -> None:
    """2000 prompt and 500 completion tokens at $1 and $8 a million cost $0.006.

    The ceiling is 282 or 283 + 1000 tokens, so less than $0.0083: of $0.10, between 15 and 16 requests fit.
    """
    server = serve(lambda n, seen: sent(chat_answer("yes", prompt=2000, completion=500)))
    budget = Budget(dollars=0.10, prompt_price=1, completion_price=8)
    teacher = teacher_at(server.url, budget=budget)
    with pytest.raises(BudgetError, match=r"budget of \$0\.10"):
        list(teacher.ask(questions(50, max_tokens=1000)))
    assert len(server.received) in (15, 16)
    assert teacher.usage == Usage(len(server.received), 2000 * len(server.received), 500 * len(server.received))
    assert teacher.dollars == pytest.approx(0.006 * len(server.received))
    with pytest.raises(RecipeError, match="needs prompt_price"):
        Budget(dollars=1)


def test_attempts_that_broke_off_are_paid_from_the_budget(
    serve: Any, sent: Any, chat_answer: Any, questions: Questions
) -> None:
    """Each attempt breaks off; a ceiling is 10 + 16 + 256 + 18 = 300, so 599 tokens allow one attempt, not two."""
    server = serve(lambda n, seen: sent("{", promised=10))
    teacher = teacher_at(server.url, budget=Budget(tokens=599), max_retries=9)
    with pytest.raises(BudgetError):
        list(teacher.ask(questions(1, max_tokens=18)))
    assert len(server.received) == 1
    assert teacher.usage.tokens == 300


def test_what_is_stored_as_spent_is_what_the_budget_lost(
    serve: Any, sent: Any, chat_answer: Any, questions: Questions
) -> None:
    """The prompt has a ceiling of 10 + 16 + 256 = 282, and a thought of 500 may stand before an answer of 18."""
    server = serve(lambda n, seen: sent("{", promised=10))
    teacher, replies = teacher_at(server.url, thinking_tokens=500, max_retries=0), Replies(None)
    answer(teacher, replies, questions(1, max_tokens=18))
    assert replies.spent(teacher.identity) == teacher.usage == Usage(1, 282, 518)


def test_attempts_that_broke_off_before_an_answer_are_told_with_it(
    serve: Any, sent: Any, chat_answer: Any, questions: Questions
) -> None:
    server = serve(lambda n, seen: sent("{", promised=9) if n == 0 else sent(chat_answer("yes")))
    teacher = teacher_at(server.url, max_retries=1)
    assert outcomes_of(teacher, questions(1, max_tokens=18)) == [Reply("yes", "stop", 7, 3, lost=1)]
    assert teacher.usage == Usage(1, 282 + 7, 18 + 3)


# the key


def test_the_key_goes_to_its_host_and_no_other_variable_of_the_client_is_heeded(
    serve: Any, questions: Questions, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, stranger = serve(), serve()
    monkeypatch.setenv("OPENAI_BASE_URL", stranger.url)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-another-key-of-this-user")
    for name in ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_ADMIN_KEY"):
        monkeypatch.setenv(name, "private")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Private: private\nCookie: private")
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{stranger.port}")
    environment = {**os.environ, "GEM_API_KEY": f" {KEY}\n"}
    list(EndpointTeacher(Endpoint(server.url, "gem", key_variable="GEM_API_KEY"), environment).ask(questions(1)))
    list(EndpointTeacher(Endpoint(server.url, "gem"), environment).ask(questions(1)))
    assert stranger.received == []
    with_key, without = server.received
    assert with_key.headers.pop("authorization") == f"Bearer {KEY}"
    assert with_key.headers == without.headers
    ordinary = {"host", "accept", "accept-encoding", "content-type", "content-length", "user-agent"}
    assert set(without.headers) <= ordinary | {"connection"}


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed(serve: Any, sent: Any, questions: Questions, status: int) -> None:
    stranger = serve()
    target = f"http://localhost:{stranger.port}/v1/chat/completions"
    server = serve(lambda n, seen: sent("", status, {"Location": target}))
    with pytest.raises(TeacherError, match=f"redirects to {target}, which is not followed"):
        list(teacher_at(server.url, {"GEM_API_KEY": KEY}, key_variable="GEM_API_KEY").ask(questions(1)))
    assert stranger.received == []


@pytest.mark.parametrize(
    ("url", "variable", "words"),
    [
        ("https://api.openai.com/v1", None, "no key; export OPENAI_API_KEY="),
        ("https://gem.example/v1", "GEM_API_KEY", "no key; export GEM_API_KEY="),
        ("http://127.0.0.1:1/v1", "GEM_API_KEY", "no key; export GEM_API_KEY="),
        ("http://gem.example/v1", "SET_API_KEY", "not sent over http"),
        ("http://192.168.1.7/v1", "SET_API_KEY", "not sent over http"),
        ("http://localhost.example/v1", "SET_API_KEY", "not sent over http"),
        ("https://gem.example/v1", "OPENAI_API_KEY", "belongs to openai.com and is not sent to gem.example"),
        ("https://notopenai.com/v1", "OPENAI_API_KEY", "belongs to openai.com"),
        ("https://openai.com.gem.example/v1", "OPENAI_API_KEY", "belongs to openai.com"),
        ("https://gem.example/v1", "AWS_SECRET_ACCESS_KEY", "names end with API_KEY"),
        ("https://gem.example/v1", "BAD_API_KEY", "holds a space or a character"),
        ("https://evil.example/v1", "ANTHROPIC_API_KEY", "belongs to anthropic.com and is not sent to evil.example"),
        ("https://evil.example/v1", "GEM_API_KEY", "export SPINTUNE_KEY_HOSTS=GEM_API_KEY=evil.example"),
        ("https://evilgem.example/v1", "SET_API_KEY", "is not sent to evilgem.example"),
        ("https://gem.example/v1", KEY, "names end with API_KEY"),
    ],
)
def test_a_key_that_is_missing_or_must_not_be_sent_is_an_error_before_anything_is_asked(
    url: str, variable: str | None, words: str
) -> None:
    hosts = "GEM_API_KEY=gem.example, SET_API_KEY=gem.example,SET_API_KEY=192.168.1.7,SET_API_KEY=localhost.example"
    environment = {
        "SPINTUNE_KEY_HOSTS": f"{hosts}, BAD_API_KEY=gem.example",
        **dict.fromkeys(("SET_API_KEY", "AWS_SECRET_ACCESS_KEY", "ANTHROPIC_API_KEY"), KEY),
        "BAD_API_KEY": f"“{KEY}”",
    }
    with pytest.raises(TeacherError, match=words) as caught:
        EndpointTeacher(Endpoint(url, "gem", key_variable=variable), environment)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "variable"),
    [
        ("https://api.openai.com/v1", None),
        ("https://eu.api.openai.com/v1", "OPENAI_API_KEY"),
        ("http://localhost:1/v1", "OPENAI_API_KEY"),
        ("http://[::1]:1/v1", "OPENAI_API_KEY"),
        ("http://192.168.1.7/v1", None),
        ("http://127.0.0.1:1/v1", ""),
        ("https://proxy.acme.example/v1", "OPENAI_API_KEY"),
        ("https://eu.api.mistral.ai/v1", "MISTRAL_API_KEY"),
        ("https://api.gem.example/v1", "GEM_API_KEY"),
    ],
)
def test_addresses_that_may_have_their_key_are_fine(url: str, variable: str | None) -> None:
    hosts = "OPENAI_API_KEY=proxy.acme.example,GEM_API_KEY=gem.example"
    keys = dict.fromkeys(("OPENAI_API_KEY", "MISTRAL_API_KEY", "GEM_API_KEY"), KEY)
    teacher = EndpointTeacher(Endpoint(url, "gem", key_variable=variable), {"SPINTUNE_KEY_HOSTS": hosts, **keys})
    assert teacher.identity["base_url"] == url


@pytest.mark.parametrize(
    "url",
    [
        *("", "gem.example/v1", "localhost:8000/v1", "ftp://gem.example", "https://", "https://gem.example:x/v1"),
        *(f"https://user:{KEY}@gem.example/v1", f"https://gem.example/v1?key={KEY}", f"https://gem.example/#{KEY}"),
        *("http://169.254.169.254/v1", "http://[fe80::1]/v1", "http://[::ffff:169.254.169.254]/v1"),
    ],
)
def test_what_is_no_plain_address_is_refused_without_repeating_secrets(url: str) -> None:
    with pytest.raises(TeacherError, match="url") as caught:
        EndpointTeacher(Endpoint(url, "gem"), {})
    assert KEY not in str(caught.value)


def test_a_proxy_is_used_for_other_machines_only(serve: Any, questions: Questions) -> None:
    proxy = serve()
    environment = {"http_proxy": f"127.0.0.1:{proxy.port}", "NO_PROXY": "exempt.invalid"}
    assert outcomes_of(teacher_at("http://gem.invalid/v1", environment), questions(1))[0] == Reply(
        "question 0", "stop", 7, 3
    )
    assert proxy.received[0].path == "http://gem.invalid/v1/chat/completions"
    with pytest.raises(TeacherError, match="cannot connect"):
        list(teacher_at("http://exempt.invalid/v1", environment).ask(questions(1)))
    with pytest.raises(TeacherError, match="no valid address of a proxy"):
        teacher_at("https://gem.invalid/v1", {"HTTPS_PROXY": "gopher://x"})
    assert len(proxy.received) == 1


def echo(seen: Any) -> str:
    return f"you sent {seen.headers['authorization']}"


@pytest.mark.parametrize("case", ["reply", "html", 301, 400, 401, 403, 404, 429, 500, "slow", "broken", "gone"])
def test_the_key_is_in_no_error_log_identity_or_cache_though_the_server_repeats_it(
    serve: Any,
    sent: Any,
    chat_answer: Any,
    questions: Questions,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    case: Any,
) -> None:
    def respond(number: int, seen: Any) -> Any:
        match case:
            case "reply":
                return sent(chat_answer(echo(seen)))
            case "slow":
                return sent("", seconds=5)
            case "broken":
                return sent(echo(seen), promised=9)
            case "html":
                return sent(f"<html>{echo(seen)}</html>")
            case 301:
                return sent("", 301, {"Location": f"http://gem.invalid/{KEY}"})
        return sent({"error": {"message": echo(seen)}}, case)

    # what a server says in its headers is logged by the HTTP library itself at the level for debugging it
    caplog.set_level(logging.INFO if case == 301 else logging.DEBUG)
    server = serve(respond)
    if case == "gone":
        server.stop()
    teacher = teacher_at(server.url, {"GEM_API_KEY": KEY}, key_variable="GEM_API_KEY", timeout_seconds=0.5)
    seen: list[object] = [repr(teacher), teacher.identity, teacher.name, vars(teacher)]
    with Replies(tmp_path / "replies.sqlite") as replies:
        try:
            seen += answer(teacher, replies, questions(9))
        except TeacherError as error:
            seen += [str(error), repr(error), *traceback.TracebackException.from_exception(error).format()]
    assert len(seen) > 4
    assert KEY not in "\n".join(map(str, seen))
    assert KEY not in caplog.text
    assert len(caplog.records) > 0
    for file in tmp_path.iterdir():
        assert KEY.encode() not in file.read_bytes()
    if case != "gone":
        assert server.received[0].headers["authorization"] == f"Bearer {KEY}"


# configuration


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"concurrency": 0}, "concurrency of 1"),
        ({"timeout_seconds": 0}, "timeout_seconds"),
        ({"max_retries": -1}, "max_retries"),
        ({"extra": {"n": 2}}, "extra may not set n"),
        ({"extra": {"messages": [], "stream": True}}, "messages, stream"),
    ],
)
def test_settings_that_cannot_work_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        replace(Endpoint("http://127.0.0.1:1/v1", "gem"), **change)


def test_the_identity_is_what_an_answer_depends_on() -> None:
    base = Endpoint("http://127.0.0.1:1/v1", "gem")
    identity = EndpointTeacher(base, {}).identity
    for same in ({"concurrency": 2}, {"timeout_seconds": 9}, {"max_retries": 1}, {"budget": Budget(tokens=1)}):
        assert EndpointTeacher(replace(base, **same), {}).identity == identity
    for other in (
        {"model": "gem-2"},
        {"base_url": "http://127.0.0.1:2/v1"},
        {"style": "completions"},
        {"extra": {"a": 1}},
    ):
        assert EndpointTeacher(replace(base, **other), {}).identity != identity


def test_a_notebook_whose_event_loop_runs_can_ask_as_well(serve: Any, questions: Questions) -> None:
    server = serve()
    teacher = EndpointTeacher(Endpoint(server.url, "gem", concurrency=2))

    async def cell() -> list[Outcome]:
        return outcomes_of(teacher, questions(5))

    assert asyncio.run(cell()) == [Reply(f"question {n}", "stop", 7, 3) for n in range(5)]
    assert outcomes_of(teacher, questions(1)) == [Reply("question 0", "stop", 7, 3)]
    poor = EndpointTeacher(Endpoint(server.url, "gem", budget=Budget(tokens=300)))

    async def poor_cell() -> list[Outcome]:
        return outcomes_of(poor, questions(5, max_tokens=10))

    with pytest.raises(BudgetError, match="budget of 300 tokens"):
        asyncio.run(poor_cell())


def test_a_reasoning_model_may_think_before_an_answer_of_any_length(serve: Any, questions: Questions) -> None:
    """The budget reserves what it may think."""
    server = serve()
    teacher = teacher_at(server.url, thinking_tokens=500)
    (outcome,) = outcomes_of(teacher, [replace(questions(1)[0], max_tokens=3)])
    assert isinstance(outcome, Reply)
    assert server.received[0].body["max_tokens"] == 503
    assert teacher.identity != teacher_at(server.url).identity
    short = teacher_at(server.url, thinking_tokens=10**6, budget=Budget(tokens=1000))
    with pytest.raises(BudgetError):
        list(short.ask(questions(1)))
