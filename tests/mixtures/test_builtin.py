"""Every built-in task and phrasing, over small made rows always and over the real files where there are some."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spintune.mixtures.answers import correct
from spintune.mixtures.declarations import BUILTIN, PhrasingsFile, TaskFile
from spintune.mixtures.mixture import Mixture
from spintune.mixtures.options import STYLES, styles_for
from spintune.mixtures.phrasings import Phrasing
from spintune.mixtures.rendering import FRAMES, render
from spintune.mixtures.report import materialize
from spintune.mixtures.tasks import MixtureTask, TaskItem, TaskSet, load_tasks

BUILTIN_TASKS = [f"builtin:{path.stem}" for path in sorted(BUILTIN.glob("*.yaml"))]

MADE: dict[str, str] = {
    "aqua.tsv": "One half of {0}?\\nOptions:\\n(A) {1}\\n(B) {0}\\n(C) 7{0}\\n(D) 8{0}\\n(E) 9{0}\t(A)\t{0} / 2 = {1}.",
    "qasc.tsv": "What is thing {0}?\\nOptions:\\n"
    + "\\n".join(f"- ({letter}) {letter.lower()}{{0}}" for letter in "ABCDEFGH")
    + "\t(C)\tThing {0} is c{0}.",
    "creak.tsv": 'Is the following statement true?\\n"Claim {0} says "yes"."\t{yes}\tFact {0}.',
    "strategyqa.tsv": "Is {0} even?\t{yes}\tHalf of {0} is {1}.",
    "sensemaking.tsv": 'Which?\\nOptions:\\n- Sentence A: "He ate {0} stones."\\n- Sentence B: "He ate {0} plums."\\n'
    "\tSentence A\tNobody eats {0} stones.",
}


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with twelve rows of every built-in task, in the form of the published files."""
    folder = tmp_path_factory.mktemp("data")
    for name, line in MADE.items():
        rows = [line.format(2 * n, n, yes="no" if n % 2 else "yes") for n in range(12)]
        (folder / name).write_text("\n".join(rows) + "\n")
    maths = [
        {"question": f"Twice {n}?", "answer": f"2*{n} = <<2*{n}={2 * n}>>{2 * n}.\n#### {2 * n}"} for n in range(12)
    ]
    (folder / "gsm8k_train.jsonl").write_text("\n".join(map(json.dumps, maths)))
    (folder / "t0_tasks").mkdir()
    for name in ("imdb_x", "xsum_y", "unheard_of"):
        rows = [{"prompt": f"{name} {n}?\n", "completion": f"answer {n}<|endoftext|>"} for n in range(12)]
        (folder / "t0_tasks" / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def check_every_phrasing(task: MixtureTask, items: list[TaskItem]) -> None:
    """Renders each row in each phrasing, with and without exemplars, in several styles, and checks what comes out."""
    for way in task.phrasings:
        for place, item in enumerate(items):
            styles = styles_for(len(item.options), task.letters) if item.options else [STYLES[0]]
            style = styles[(place * 7 + way.number) % len(styles)]
            for exemplars in ([], [other for other in items if other is not item][:3]):
                frame = FRAMES[(place + way.number) % len(FRAMES)]
                element = render(task, item, way, style, frame, exemplars)
                assert element.prompt.strip()
                assert element.target.strip()
                assert not element.prompt.endswith(" ")
                for field in way.input.fields:
                    assert field == "options" or item.fields[field] in element.prompt
                if not way.inverted:
                    check_answers(task, way, item, element.target, items, style)


def check_answers(
    task: MixtureTask, way: Phrasing, item: TaskItem, target: str, items: list[TaskItem], style: Any
) -> None:
    """The target answers itself, and no target with another answer does."""
    assert correct(task, target, target, item)
    if way.kind == "cot":
        assert target.index(item.fields["rationale"]) == 0
    for other in items:
        if other.answer != item.answer and other.options == item.options:
            assert not correct(task, target, render(task, other, way, style).target, item)


@pytest.mark.parametrize("name", BUILTIN_TASKS)
def test_every_phrasing_of_every_task_over_made_rows(made: Path, name: str) -> None:
    for task in load_tasks([name], made).tasks:
        assert (task.read, len(task.items)) == (12, 12)
        check_every_phrasing(task, list(task.items))


@pytest.mark.parametrize("name", BUILTIN_TASKS)
def test_every_phrasing_of_every_task_over_the_real_rows(real: Callable[[str], TaskSet], name: str) -> None:
    for task in real(name).tasks:
        step = max(1, len(task.items) // 5)
        check_every_phrasing(task, list(task.items[::step][:5]))


@pytest.mark.parametrize(
    ("name", "rows"),
    # flan_collection_info.csv of google-research/FLAN, and openai/grade-school-math
    [("gsm8k", 7473), ("strategyqa", 2061), ("creak", 6915), ("qasc", 1084), ("sensemaking", 6070), ("aqua", 2728)],
)
def test_no_row_of_the_real_sets_is_lost(real: Callable[[str], TaskSet], name: str, rows: int) -> None:
    task = real(f"builtin:{name}").tasks[0]
    assert (task.read, len(task.items), dict(task.dropped)) == (rows, rows, {})


def test_real_rows_are_taken_apart_as_they_read(real: Callable[[str], TaskSet]) -> None:
    def item(name: str, number: int) -> TaskItem:
        return real(f"builtin:{name}").tasks[0].items[number - 1]

    gsm8k = item("gsm8k", 1)
    assert gsm8k.answer == "72"
    assert gsm8k.fields["rationale"] == (
        "Natalia sold 48/2 = 24 clips in May.\nNatalia sold 48+24 = 72 clips altogether in April and May."
    )
    assert item("aqua", 1).options == ("300", "992", "1120", "552", "312")
    assert item("aqua", 1).answer == "1120"
    assert item("qasc", 1).answer == "sex"
    assert item("sensemaking", 1).options == ("He poured orange juice on his cereal.", "He poured milk on his cereal.")
    assert item("creak", 1).fields["claim"] == (
        "Only people named Floyd wearing pink are allowed to attend Pink Floyd concerts."
    )


def test_t0_files_without_answers_are_left_out_and_named(real: Callable[[str], TaskSet]) -> None:
    found = real("builtin:t0")
    assert len(found.tasks) + len(found.unusable) == 114
    assert found.unusable["t0/trec_trec1"] == "200 read, 200 empty_answer"
    assert {task.cluster for task in found.tasks} == {
        "topic",
        "sentiment",
        "paraphrase",
        "commonsense",
        "science",
        "concepts_to_text",
        "summarisation",
    }


@pytest.mark.slow
def test_all_quadrants_of_all_real_tasks_in_one_mixture(shared: Path) -> None:
    tasks = load_tasks(BUILTIN_TASKS, shared).tasks
    report = materialize(Mixture(tasks, 7), 600).report
    assert report.examples == sum(row.examples for row in report.tasks.values()) == 600
    assert all(share.realised > 0.1 for share in report.quadrants.values())


@pytest.mark.parametrize("path", sorted((BUILTIN / "phrasings").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_family_has_about_ten_distinct_phrasings_over_made_rows(path: Path, task: Callable[..., MixtureTask]) -> None:
    names = sorted(set(re.findall(r"\{(\w+)\}", path.read_text())) - {"options", "answer"})
    rows = [{name: f"{name} number {n}" for name in names} | {"answer": "yes" if n % 2 else "no"} for n in range(6)]
    options = {"fixed": ["yes", "no"], "optional": True} if "{options}" in path.read_text() else None
    made = task(
        rows=rows,
        fields={name: name for name in [*names, "answer"]},
        options=options,
        check=None,
        direct=None,
        cot=None,
        phrasings=f"builtin:{path.stem}",
    )
    direct = made.ways("direct")
    assert len({(way.input, way.cue, way.target) for way in direct}) == (1 if path.stem == "prompted" else 10)
    check_every_phrasing(made, list(made.items))


def test_built_in_files_name_no_place_of_a_machine() -> None:
    for path in BUILTIN.rglob("*.yaml"):
        assert not re.search(r"(?<![\w:/.])(?:/|~/|[A-Z]:\\)\w+/", path.read_text()), path


def test_every_key_of_a_task_file_is_described() -> None:
    for section in (TaskFile, PhrasingsFile):
        for name, key in section.model_fields.items():
            assert (key.description or "").rstrip().endswith((".", "]")), name
