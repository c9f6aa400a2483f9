"""The pool grows by what is new and of use; it ends for a reason; nothing is lost or asked twice."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest

from spintune.errors import BudgetError, TeacherError
from spintune.synthesis.alpaca import Alpaca
from spintune.synthesis.bootstrap import BootstrapMethod, BootstrapResult, BootstrapSettings, bootstrap
from spintune.synthesis.decoding import stream
from spintune.synthesis.examples import SeedTask
from spintune.synthesis.filters import FilterRules
from spintune.synthesis.self_instruct import SelfInstruct
from spintune.teachers.cached import CachedTeacher
from spintune.teachers.protocol import Failure, Reply, Request
from spintune.teachers.replies import Replies
from spintune.teachers.scripted import ScriptedTeacher

SELF_INSTRUCT, ALPACA = SelfInstruct(), Alpaca()


def grow(
    teacher: CachedTeacher,
    seeds: Sequence[SeedTask],
    target: int,
    method: BootstrapMethod = SELF_INSTRUCT,
    per_round: int = 3,
) -> BootstrapResult:
    return bootstrap(teacher, method, seeds, FilterRules(), BootstrapSettings(target, per_round, 2, 5))


def numbered(request: Request) -> str:
    """Two instructions that no other request brings."""
    n = request.draw
    return f" p{n}a p{n}b p{n}c p{n}d\n10. q{n}a q{n}b q{n}c q{n}d"


def test_it_stops_at_the_target_and_counts_the_rest(
    teacher_of: Callable[..., CachedTeacher], seeds: list[SeedTask]
) -> None:
    """Rounds of 3 requests bring 6 tasks each: 10 are reached in the second, with 2 to spare."""
    pool = grow(teacher_of(numbered), seeds, 10)
    assert [one.task.instruction.split()[0] for one in pool.accepted] == [
        f"{kind}{n}a" for n in range(5) for kind in "pq"
    ]
    assert pool.candidates.dropped == {"more_than_wanted": 2}
    assert pool.candidates.read == pool.candidates.kept + 2 == 12
    assert (pool.rounds, pool.stopped) == (2, None)


def test_a_task_must_be_new_to_seeds_to_the_pool_and_to_its_own_reply(
    teacher_of: Callable[..., CachedTeacher], seeds: list[SeedTask]
) -> None:
    """ROUGE-L of four words with three in common is 0.75, above 0.7; with two in common 0.5."""

    def script(request: Request) -> str:
        if request.draw:
            return " p0a p0b p0c new\n10. one two three four"
        return " amber1 amber2 amber3 other\n10. p0a p0b p0c p0d\n11. p0a p0b p0c p0e\n12. p0a p0b x y"

    pool = grow(teacher_of(script), seeds, 3, per_round=1)
    assert [one.task.instruction for one in pool.accepted] == ["p0a p0b p0c p0d", "p0a p0b x y", "one two three four"]
    assert pool.candidates.dropped == {"not_new": 3}


def test_a_seed_that_resembles_another_one_is_compared_with_as_well(
    teacher_of: Callable[..., CachedTeacher], seeds: list[SeedTask]
) -> None:
    """ROUGE-L of the two is 0.75, as of the candidate and the second of them; of it and the first, 0.5."""
    alike = [SeedTask("one", "a b c d"), SeedTask("other", "a b c e")]
    pool = grow(teacher_of(lambda request: " a b f e\n10. p q r s"), [*seeds, *alike], 1, per_round=1)
    assert [one.task.instruction for one in pool.accepted] == ["p q r s"]
    assert pool.candidates.dropped == {"not_new": 1}


def test_eight_tasks_are_shown_two_of_them_the_teachers_own(seeds: list[SeedTask]) -> None:
    own = [SeedTask(f"own-{n}", f"own task {n}") for n in range(30)]
    names = [task.id for task in SELF_INSTRUCT.show(random.Random(0), seeds, own)]
    assert len(set(names)) == 8
    assert sum(name.startswith("own") for name in names) == 2
    assert all(task.id.startswith("seed") for task in SELF_INSTRUCT.show(random.Random(0), seeds, []))
    places = {
        [task.id.startswith("own") for task in SELF_INSTRUCT.show(random.Random(s), seeds, own)].index(True)
        for s in range(40)
    }
    assert len(places) > 4  # shuffled among the seeds


def test_alpaca_shows_three_seeds_and_never_its_own(seeds: list[SeedTask]) -> None:
    own = [SeedTask("own", "own task", "", "out")]
    for number in range(20):
        shown = ALPACA.show(stream(1, "show", number), seeds, own)
        assert len({task.id for task in shown} & {seed.id for seed in seeds}) == 3


def test_the_request_shows_the_tasks_on_one_line_each_without_a_last_colon() -> None:
    request = SELF_INSTRUCT.request([SeedTask("a", "Sort\n the list:"), SeedTask("b", "Name a bird.")], 7)
    assert "\n1. Sort the list\n2. Name a bird." in request.messages[0].content
    assert request.begin == "3."
    assert request.draw == 7
    assert (request.temperature, request.top_p, request.presence_penalty, request.max_tokens) == (0.7, 0.5, 2.0, 1024)
    assert not any(text.strip(".0123456789") == "" for text in request.stop)  # no bare "16." that a text may hold


def test_alpacas_request_has_no_stop_text_and_its_settings() -> None:
    request = ALPACA.request([SeedTask("a", "Add.", "1, 2", "3"), SeedTask("b", "Name a bird.", "", "A wren.")], 0)
    text = request.messages[0].content
    assert text.endswith(
        "###\n1. Instruction: Add.\n1. Input:\n1, 2\n1. Output:\n3\n"
        "###\n2. Instruction: Name a bird.\n2. Input:\n<noinput>\n2. Output:\nA wren.\n###"
    )
    assert request.begin == "3. Instruction:"
    assert (request.temperature, request.top_p, request.max_tokens, request.stop) == (1.0, 1.0, 3072, ())


def test_alpacas_outputs_are_judged_before_they_enter_the_pool(
    teacher_of: Callable[..., CachedTeacher], seeds: list[SeedTask]
) -> None:
    def script(request: Request) -> str:
        n = request.draw
        blocks = [
            (f"a{n} b{n} c{n} d{n}", "fine"),
            (f"e{n} f{n} g{n} h{n}", ""),
            (f"i{n} j{n} k{n} l{n}", "Here it is:"),
        ]
        return "\n###\n".join(
            f"{k}. Instruction: {instruction}\n{k}. Input:\n<noinput>\n{k}. Output:\n{output}"
            for k, (instruction, output) in enumerate(blocks, 4)
        )

    pool = grow(teacher_of(script), seeds, 3, ALPACA)
    assert [one.task.output for one in pool.accepted] == ["fine"] * 3
    assert pool.candidates.dropped == {"empty_output": 3, "ends_with_colon": 3}


# Ends -----------------------------------------------------------------------------------------------------------------


def test_the_same_text_for_ever_ends_after_some_rounds_without_new_tasks(
    teacher_of: Callable[..., CachedTeacher], seeds: list[SeedTask]
) -> None:
    pool = grow(teacher_of(lambda request: " one two three four"), seeds, 50)
    assert len(pool.accepted) == 1
    assert pool.rounds == 3  # one that brought it, and two without a new task
    assert pool.stopped == "2 rounds of 3 requests brought nothing new"
    assert pool.candidates.dropped == {"not_new": 8}


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("", "empty_reply"),
        (Failure("malformed"), "malformed"),
        (Reply("1. one two three four", "refused"), "withheld"),
        ("<html><body>502 Bad Gateway now</body></html>", "punctuation_start"),
        ('{"instruction": "one two thr', "punctuation_start"),
        ("word " * 2_000, "too_long"),
        pytest.param("word " * 2_000_000, "reply_too_long", marks=pytest.mark.slow),
    ],
)
def test_a_teacher_of_no_use_is_one_clear_line(
    teacher_of: Callable[..., CachedTeacher], seeds: list[SeedTask], reply: str | Reply | Failure, reason: str
) -> None:
    with pytest.raises(TeacherError, match=rf"script: no usable task in 6 replies \({reason} 6\)"):
        grow(teacher_of(lambda request: reply), seeds, 50)


class Budgeted(ScriptedTeacher):
    """Its budget covers so many requests in all."""

    def __init__(self, covered: int) -> None:
        super().__init__(numbered, "budgeted")
        self.covered = covered
        self.asked: list[int] = []

    def ask(self, requests: Sequence[Request]):  # type: ignore[no-untyped-def]
        for index, request in enumerate(requests):
            if len(self.asked) == self.covered:
                raise BudgetError("the budget is used up")
            self.asked.append(request.draw)
            yield index, Reply(numbered(request), "stop")


def test_what_the_budget_paid_for_is_kept_and_a_larger_one_goes_on_from_there(
    replies: Replies, seeds: list[SeedTask], teacher_of: Callable[..., CachedTeacher]
) -> None:
    """The budget ends in the second round of three: its first reply counts, and is not asked for again."""
    poor, rich = Budgeted(4), Budgeted(100)
    pool = grow(CachedTeacher(poor, replies), seeds, 20)
    assert len(pool.accepted) == 8
    assert pool.stopped == "the budget is used up"
    assert pool.replies.dropped == {"budget": 2}
    again = grow(CachedTeacher(rich, replies), seeds, 20)
    assert set(rich.asked).isdisjoint(poor.asked)
    assert len(again.accepted) == 20
    assert again.accepted[:8] == pool.accepted
    whole = grow(teacher_of(numbered), seeds, 20)
    assert [one.task for one in again.accepted] == [one.task for one in whole.accepted]


def test_a_budget_that_covers_no_request_is_the_budgets_error(replies: Replies, seeds: list[SeedTask]) -> None:
    with pytest.raises(BudgetError, match="no task was accepted: the budget is used up"):
        grow(CachedTeacher(Budgeted(0), replies), seeds, 20)


def test_a_second_run_asks_nothing_and_finds_the_same(replies: Replies, seeds: list[SeedTask]) -> None:
    teacher = Budgeted(100)
    first = grow(CachedTeacher(teacher, replies), seeds, 20)
    asked = list(teacher.asked)
    assert grow(CachedTeacher(teacher, replies), seeds, 20) == first
    assert teacher.asked == asked


def test_provenance_names_teacher_prompt_reply_and_demonstrations(
    replies: Replies, teacher_of: Callable[..., CachedTeacher], seeds: list[SeedTask]
) -> None:
    teacher = teacher_of(numbered)
    pool = grow(teacher, seeds, 4)
    provenance = pool.accepted[0].provenance
    assert provenance.teacher == "script"
    (request,) = provenance.requests
    assert request.prompt == "self-instruct/instructions/1"
    assert replies.find(request.reply) == Reply(numbered(Request((), draw=0)), "stop")
    assert set(provenance.demonstrations) <= {seed.id for seed in seeds}
    assert len(provenance.demonstrations) == 8
