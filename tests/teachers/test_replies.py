"""Nothing is asked or paid twice, and nothing that came is lost: interrupts, kills, dead servers, damaged files."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spintune.errors import BudgetError, RunError, SpintuneError, StorageError, TeacherError
from spintune.records import Message
from spintune.teachers.budget import Budget
from spintune.teachers.cached import CachedTeacher
from spintune.teachers.endpoint import Endpoint, EndpointTeacher
from spintune.teachers.protocol import Failure, Outcome, Reply, Request, Usage
from spintune.teachers.replies import Replies, answer, request_key
from spintune.teachers.scripted import ScriptedTeacher

Questions = Callable[..., list[Request]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "replies.sqlite"


class Listening:
    """A scripted teacher and what it was asked. An exception in the script is raised in its place."""

    def __init__(self, script: Callable[[str], Outcome | BaseException] = lambda q: Reply(q, "stop", 2, 1)) -> None:
        self.asked: list[str] = []
        self.script = script
        self.teacher = ScriptedTeacher(self.say, "listening")

    def say(self, request: Request) -> Outcome:
        self.asked.append(request.messages[-1].content)
        said = self.script(self.asked[-1])
        if isinstance(said, BaseException):
            raise said
        return said


def texts(outcomes: list[Outcome]) -> list[str]:
    return [outcome.text if isinstance(outcome, Reply) else outcome.reason for outcome in outcomes]


def test_what_is_known_is_not_asked_again_and_comes_in_the_order_of_the_requests(
    path: Path, questions: Questions
) -> None:
    listening = Listening()
    five = questions(5)
    heard: list[str] = []
    with Replies(path) as replies:
        answer(listening.teacher, replies, [five[3], five[1]])
    with Replies(path) as replies:
        outcomes = answer(listening.teacher, replies, five, lambda request, outcome: heard.append(texts([outcome])[0]))
        assert replies.spent(listening.teacher.identity) == Usage(5, 10, 5)
    assert outcomes == [Reply(f"question {n}", "stop", 2, 1) for n in range(5)]
    assert listening.asked == [f"question {n}" for n in (3, 1, 0, 2, 4)]
    assert heard == [f"question {n}" for n in (1, 3, 0, 2, 4)]


def test_equal_requests_are_asked_once_and_draws_tell_them_apart(path: Path, questions: Questions) -> None:
    listening = Listening()
    (request,), (again,) = questions(1), questions(1, draw=1)
    with Replies(path) as replies:
        outcomes = answer(listening.teacher, replies, [request, again, request, request])
    assert len(outcomes) == 4
    assert len(listening.asked) == 2


def test_another_teacher_is_asked_for_itself(path: Path, questions: Questions) -> None:
    one, other = ScriptedTeacher(lambda _: "one", "one"), ScriptedTeacher(lambda _: "other", "other")
    with Replies(path) as replies:
        assert texts(answer(one, replies, questions(1))) == ["one"]
        assert texts(answer(other, replies, questions(1))) == ["other"]
        assert texts(answer(one, replies, questions(1))) == ["one"]
        assert replies.spent(one.identity).requests == replies.spent(other.identity).requests == 1
        assert replies.spent({"kind": "nobody"}) == Usage()


@pytest.mark.parametrize(
    "exception", [TeacherError("gone"), BudgetError("spent"), KeyboardInterrupt(), ValueError("bug")]
)
def test_whatever_breaks_a_call_off_the_replies_before_it_are_kept_and_the_failures_at_its_end_asked_again(
    path: Path, questions: Questions, exception: BaseException
) -> None:
    """Replies to 0 and 2 make the failure of 1 final; those of 3 and 4 come right before the end."""
    says = {
        **{f"question {n}": Reply("yes", "stop", 2, 1) for n in (0, 2)},
        **{f"question {n}": Failure("server_error", lost=1) for n in (1, 3, 4)},
        "question 5": exception,
    }
    listening = Listening(says.__getitem__)
    requests = questions(7, max_tokens=5)
    with Replies(path) as replies, pytest.raises(type(exception)):
        answer(listening.teacher, replies, requests)
    again = Listening(lambda question: Reply("now", "stop", 2, 1))
    with Replies(path) as replies:
        lost = requests[0].ceiling
        assert replies.spent(again.teacher.identity) == Usage(5, 4 + 3 * lost.prompt_tokens, 2 + 15)
        assert texts(answer(again.teacher, replies, requests)) == ["yes", "server_error", "yes", *["now"] * 4]
    assert again.asked == [f"question {n}" for n in (3, 4, 5, 6)]


@pytest.mark.parametrize("reason", ["rate_limited", "server_error", "timeout", "disconnected"])
def test_an_outage_at_the_end_of_a_call_is_not_final(path: Path, questions: Questions, reason: str) -> None:
    failing = Listening(lambda question: Failure(reason))
    with Replies(path) as replies:
        assert texts(CachedTeacher(failing.teacher, replies).ask(questions(4))) == [reason] * 4
    with Replies(path) as replies:
        better = CachedTeacher(Listening().teacher, replies)
        assert texts(better.ask(questions(4))) == [f"question {n}" for n in range(4)]


def test_an_outage_is_final_once_a_later_call_brings_a_reply(path: Path, questions: Questions) -> None:
    listening = Listening(lambda question: Failure("timeout") if question < "question 4" else Reply(question))
    with Replies(path) as replies:
        teacher = CachedTeacher(listening.teacher, replies)
        teacher.ask(questions(4))
        teacher.ask(questions(5)[4:])
    again = Listening()
    with Replies(path) as replies:
        assert texts(CachedTeacher(again.teacher, replies).ask(questions(5))) == ["timeout"] * 4 + ["question 4"]
    assert again.asked == []


def test_failures_of_a_call_that_ended_are_final(path: Path, questions: Questions) -> None:
    failing = Listening(lambda question: Failure("malformed", "half"))
    with Replies(path) as replies:
        first = answer(failing.teacher, replies, questions(3))
    better = Listening()
    with Replies(path) as replies:
        assert answer(better.teacher, replies, questions(3)) == first == [Failure("malformed", "half")] * 3
    assert better.asked == []


def test_a_reply_is_on_disk_before_anybody_hears_of_it(path: Path, questions: Questions) -> None:
    """Another connection looks at the file whenever an outcome is told."""
    teacher = Listening().teacher
    with Replies(path) as replies, Replies(path) as other:
        found = []
        answer(
            teacher,
            replies,
            questions(4),
            lambda request, outcome: found.append(other.find(request_key(teacher.identity, request)) == outcome),
        )
    assert found == [True] * 4


def test_an_error_of_the_listener_closes_the_teacher(path: Path, questions: Questions) -> None:
    closed = []

    class Watched(ScriptedTeacher):
        def ask(self, requests: Any) -> Any:
            try:
                yield from super().ask(requests)
            finally:
                closed.append(True)

    def fail(request: Request, outcome: Outcome) -> None:
        raise ZeroDivisionError

    with Replies(path) as replies, pytest.raises(ZeroDivisionError) as caught:
        answer(Watched(lambda _: "yes", "watched"), replies, questions(4), fail)
    assert caught.tb  # its frames still hold the generator, so that only close() has ended it
    assert closed == [True]


# servers and processes that die


def test_a_server_that_is_killed_and_started_again_costs_nothing_but_what_it_was_working_on(
    serve: Any, sent: Any, chat_answer: Any, path: Path, questions: Questions
) -> None:
    """It answers 20 of 60 requests and dies with those it works on (at most 4); its successor gets all others once."""
    old = serve(lambda n, seen: sent(chat_answer(seen.question), seconds=0 if n < 20 else 600))
    requests = questions(60)
    outcomes: list[Outcome] = []
    teacher = EndpointTeacher(Endpoint(old.url, "gem", concurrency=4, max_retries=0), {})
    with Replies(path) as replies, pytest.raises(TeacherError, match="cannot connect"):
        answer(teacher, replies, requests, lambda *_: old.stop() if note(outcomes) == 20 else None)
    new = serve(port=old.port)
    with Replies(path) as replies:
        assert texts(answer(teacher, replies, requests)) == [f"question {n}" for n in range(60)]
    assert len(old.received) <= 24
    assert len(new.received) == 40
    assert set(old.questions[:20]) | set(new.questions) == {f"question {n}" for n in range(60)}


def note(outcomes: list[Any]) -> int:
    outcomes.append(None)
    return len(outcomes)


def test_a_server_that_comes_back_in_time_is_not_noticed(
    serve: Any, sent: Any, chat_answer: Any, path: Path, questions: Questions
) -> None:
    """The client's own retries bridge it; nothing that was answered is asked again."""
    old = serve(lambda n, seen: sent(chat_answer(seen.question), seconds=0 if n < 9 else 600))
    servers = []
    outcomes: list[Any] = []

    def restart(*_: object) -> None:
        if note(outcomes) == 9:
            old.stop()
            servers.append(serve(port=old.port))

    with Replies(path) as replies:
        teacher = EndpointTeacher(Endpoint(old.url, "gem", concurrency=2, max_retries=3), {})
        assert texts(answer(teacher, replies, questions(30), restart)) == [f"question {n}" for n in range(30)]
    (new,) = servers
    assert len(new.received) == 21
    assert not set(old.questions[:9]) & set(new.questions)


CLIENT = """
import sys
from pathlib import Path
from spintune.records import Message
from spintune.teachers.endpoint import Endpoint, EndpointTeacher
from spintune.teachers.protocol import Request
from spintune.teachers.replies import Replies, answer
teacher = EndpointTeacher(Endpoint(sys.argv[1], "gem", concurrency=4), {})
requests = [Request((Message("user", f"question {n}"),)) for n in range(int(sys.argv[3]))]
with Replies(Path(sys.argv[2])) as replies:
    print("\\n".join(outcome.text for outcome in answer(teacher, replies, requests)))
"""


@pytest.mark.slow
def test_a_client_that_is_killed_at_any_moment_asks_nothing_again_that_had_come(
    serve: Any, sent: Any, chat_answer: Any, path: Path
) -> None:
    """kill -9 three times; each costs at most the 4 requests that are under way."""
    server = serve(lambda n, seen: sent(chat_answer(seen.question), seconds=0.005))
    command = [sys.executable, "-c", CLIENT, server.url, str(path), "120"]
    for kill_at in (20, 21, 70):
        client = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        server.wait_for(kill_at)
        os.kill(client.pid, signal.SIGKILL)
        client.wait()
        with Replies(path) as replies:
            assert replies.spent(identity_at(server.url)).requests >= len(server.received) - 12
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"question {n}" for n in range(120)]
    times = Counter(server.questions)
    assert len(times) == 120
    assert len(server.received) <= 120 + 3 * 4
    asked = len(server.received)
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == done.stdout
    assert len(server.received) == asked


def identity_at(url: str) -> dict[str, Any]:
    return EndpointTeacher(Endpoint(url, "gem"), {}).identity


@pytest.mark.slow
def test_kills_do_not_pass_a_hard_budget(serve: Any, sent: Any, chat_answer: Any, path: Path) -> None:
    """The server answers 3 requests of 10 tokens and works on 4 when kill -9 comes. A ceiling is 282 + 1024 tokens."""
    server = serve(lambda n, seen: sent(chat_answer("yes"), seconds=0 if n < 3 else 600))
    command = [sys.executable, "-c", CLIENT, server.url, str(path), "9"]
    client = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    server.wait_for(7)
    client.kill()
    client.wait()
    with Replies(path) as replies:
        spent = replies.spent(identity_at(server.url))
        assert spent == Usage(7, 3 * 7 + 4 * 282, 3 * 3 + 4 * 1024)
        teacher = EndpointTeacher(Endpoint(server.url, "gem", budget=Budget(tokens=6000)), {}, spent=spent)
        with pytest.raises(BudgetError):
            answer(teacher, replies, [Request((Message("user", "question 8"),))])
    assert len(server.received) == 7


def test_attempts_that_were_never_made_or_were_refused_cost_nothing(
    serve: Any, sent: Any, path: Path, questions: Questions
) -> None:
    server = serve(lambda n, seen: sent("", status=401))
    with Replies(path) as replies:
        teacher = EndpointTeacher(Endpoint(server.url, "gem", concurrency=4), {})
        with pytest.raises(TeacherError, match="401"):
            answer(teacher, replies, questions(20))
        server.stop()
        with pytest.raises(TeacherError, match="cannot connect"):
            answer(teacher, replies, questions(20))
        assert replies.spent(teacher.identity) == Usage()


def test_a_budget_lasts_over_runs(serve: Any, sent: Any, chat_answer: Any, path: Path, questions: Questions) -> None:
    """Requests of 100 tokens, of 2000: with a ceiling of 332 each, 17 fit (1600 + 332 ≤ 2000 < 1700 + 332)."""
    server = serve(lambda n, seen: sent(chat_answer("yes", prompt=60, completion=40)))
    endpoint = Endpoint(server.url, "gem", budget=Budget(tokens=2000), concurrency=3)
    for count in (5, 10, 30, 30):
        with Replies(path) as replies:
            teacher = EndpointTeacher(endpoint, {}, spent=replies.spent(identity_at(server.url)))
            if count < 17:
                answer(teacher, replies, questions(count, max_tokens=50))
            else:
                with pytest.raises(BudgetError):
                    answer(teacher, replies, questions(count, max_tokens=50))
            assert replies.spent(teacher.identity) == teacher.usage
    assert len(server.received) == 17
    assert teacher.usage == Usage(17, 17 * 60, 17 * 40)


WRITER = """
import sys
from pathlib import Path
from spintune.records import Message
from spintune.teachers.protocol import Request
from spintune.teachers.replies import Replies, answer
from spintune.teachers.scripted import ScriptedTeacher
from spintune.teachers.protocol import Reply
teacher = ScriptedTeacher(lambda request: Reply("yes", "stop", 2, 1), "shared")
sys.stdin.read()  # all start together
with Replies(Path(sys.argv[1])) as replies:
    answer(teacher, replies, [Request((Message("user", f"{sys.argv[2]} {n}"),)) for n in range(100)])
"""


def test_processes_share_a_file_from_its_first_moment_on(path: Path) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(n)], stdin=subprocess.PIPE) for n in range(4)
    ]
    for writer in writers:
        assert writer.stdin
        writer.stdin.close()
    assert [writer.wait() for writer in writers] == [0] * 4
    teacher = ScriptedTeacher(lambda _: "no", "shared")
    with Replies(path) as replies:
        assert replies.spent(teacher.identity) == Usage(400, 800, 400)
        requests = [Request((Message("user", f"{w} {n}"),)) for w in range(4) for n in range(100)]
        assert set(texts(answer(teacher, replies, requests))) == {"yes"}


# damage


def filled(path: Path, count: int = 200) -> None:
    with Replies(path) as replies:
        teacher = ScriptedTeacher(lambda request: request.messages[-1].content * 20, "long")
        answer(teacher, replies, [Request((Message("user", f"question {n} "),)) for n in range(count)])


def read_all(path: Path, count: int = 200) -> None:
    with Replies(path) as replies:
        for n in range(count):
            request = Request((Message("user", f"question {n} "),))
            outcome = replies.find(request_key({"kind": "scripted", "name": "long"}, request))
            assert outcome == Reply(f"question {n} " * 20, "stop")


@pytest.mark.parametrize("content", [b"not a database at all" * 100, b'{"key": 1}\n'])
def test_a_file_of_another_kind_is_refused_and_left_as_it_is(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(RunError, match="damaged"):
        Replies(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("statement", ["CREATE TABLE photos (x)", "PRAGMA user_version = 99"])
def test_another_database_is_refused_and_left_as_it_is(path: Path, statement: str) -> None:
    path.parent.mkdir()
    database = sqlite3.connect(path)
    database.execute(statement)
    database.commit()
    database.close()
    content = path.read_bytes()
    with pytest.raises(RunError, match="not a file of replies"):
        Replies(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("place", [0, 1, 17, 40, 60, 90])
def test_a_damaged_page_is_never_read_as_a_reply(path: Path, place: int) -> None:
    """Zeroes over a page (4096 bytes) at several places of the file."""
    filled(path)
    read_all(path)
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size * place // 100 // 4096 * 4096)
        file.write(b"\0" * 4096)
    with pytest.raises(RunError, match=r"replies\.sqlite: (damaged|not a file of replies)"):
        read_all(path)


def test_what_is_synced_is_in_the_file_itself_and_not_in_its_journal_alone(path: Path, questions: Questions) -> None:
    copy = path.with_name("copy.sqlite")
    with Replies(path) as replies:
        answer(Listening().teacher, replies, questions(4))
        replies.sync()
        shutil.copy(path, copy)  # as after a power cut that took the journal
    listening = Listening()
    with Replies(copy) as replies:
        assert texts(answer(listening.teacher, replies, questions(4))) == [f"question {n}" for n in range(4)]
    assert not listening.asked


def test_a_single_changed_letter_is_noticed(path: Path) -> None:
    filled(path, 3)
    content = path.read_bytes()
    at = content.rindex(b"question 1")
    path.write_bytes(content[:at] + b"Q" + content[at + 1 :])
    with pytest.raises(RunError, match=r"damaged \(a checksum is wrong\); restore it, or delete it"):
        read_all(path, 3)


def test_a_file_that_is_cut_short_is_noticed(path: Path) -> None:
    filled(path)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(RunError, match="damaged"):
        read_all(path)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        Replies(tmp_path / "file" / "replies.sqlite")
    (tmp_path / "folder.sqlite").mkdir()
    with pytest.raises(StorageError, match=r"folder\.sqlite: .*choose another out="):
        Replies(tmp_path / "folder.sqlite")


def test_a_full_disk_is_named_and_what_was_kept_stays(path: Path, questions: Questions) -> None:
    """SQLite's own limit on the number of pages stands for the disk's."""
    teacher = ScriptedTeacher(lambda request: "x" * 5000, "long")
    with Replies(path) as replies:
        answer(teacher, replies, questions(3))
        replies._database.execute("PRAGMA max_page_count = 20")
        with pytest.raises(StorageError, match=r"replies\.sqlite: database or disk is full; free some space"):
            answer(teacher, replies, questions(50))
    with Replies(path) as replies:
        kept = replies.spent(teacher.identity).requests
        assert 3 <= kept < 50
        assert all(replies.find(request_key(teacher.identity, request)) for request in questions(kept))


def test_every_error_here_is_the_users_to_mend_and_one_line(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"x" * 5000)
    with pytest.raises(SpintuneError) as caught:
        Replies(path)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_fifty_thousand_replies_are_kept_and_found(path: Path) -> None:
    filled(path, 50_000)
    read_all(path, 50_000)
