"""Answers side by side: bounded, whole where they can be, and harmless as a part of the page."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spintune.report.examples import MAX_CHARACTERS, MAX_EXAMPLES, embedded, examples
from spintune.report.reading import read_run

Make = Callable[..., Any]

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(), max_size=20),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=5), inside, max_size=3),
    max_leaves=8,
)


@given(JSON)
def test_embedded_json_reads_back_and_cannot_end_its_element(value: Any) -> None:
    text = embedded(value)
    assert json.loads(text) == value
    assert not set(text) & set("<>&\u2028\u2029")


@pytest.mark.parametrize(
    "text", ["</script><script>alert(1)</script>", "<!--<script>", "]]>", "a\u2028b\u2029c", "\ud800 alone", "\udfff\0"]
)
def test_embedded_text_is_utf8_without_markup(text: str) -> None:
    written = embedded([text])
    assert b"<" not in written.encode()  # a lone surrogate would not encode
    assert json.loads(written) == [text]


def test_every_model_s_answer_stands_with_its_prompt_and_reference(whole: Make) -> None:
    made = whole()
    (one,) = examples([read_run(made.path)])
    found = one.to_json()
    assert (found["title"], found["measure"]) == ("held-out examples", "ROUGE-L")
    assert [model["name"] for model in found["models"]] == ["base", "sft", "iterate-1", "iterate-2", "sft-more"]
    first = found["items"][0]
    assert first["prompt"] == [["user", "Say word 0.", 0]]
    assert first["reference"] == ["word 0", 0]
    assert first["answers"][1] == {
        "texts": [["sft says word 0", 0]],
        "facts": ["ROUGE-L 0.667", "4 tokens"],
        "score": pytest.approx(2 / 3),  # 2 words in common of 4 and 2
    }


def test_long_texts_are_cut_and_what_is_left_out_is_counted(folder: Make) -> None:
    made = folder(spin=None).data([("p" * 5000, "r" * 4001)]).sft()
    made.judged("sft", 1.0, ["x" * 1_000_000])
    (item,) = examples([read_run(made.path)])[0].items
    assert item["prompt"] == [["user", "p" * MAX_CHARACTERS, 1000]]
    assert item["reference"] == ["r" * MAX_CHARACTERS, 1]
    assert item["answers"][0]["texts"] == [["x" * MAX_CHARACTERS, 996_000]]


def test_the_first_of_many_examples_are_kept_and_all_are_counted(folder: Make) -> None:
    made = folder(spin=None).data(MAX_EXAMPLES + 7).sft().judged("sft", 1.0)
    (found,) = examples([read_run(made.path)])
    assert (len(found.items), found.total) == (MAX_EXAMPLES, MAX_EXAMPLES + 7)
    assert found.items[0]["reference"] == ["word 0", 0]


def test_all_together_they_stay_below_a_bound(folder: Make) -> None:
    made = folder(spin=None).data([(f"{n} " + "日" * 3990, "本" * 4000) for n in range(400)]).sft()
    made.judged("base", 1.0, ["語" * 4000] * 400).judged("sft", 1.0, ["語" * 4000] * 400)
    (found,) = examples([read_run(made.path)])
    assert 0 < len(found.items) < 400
    assert len(embedded(found.to_json()).encode()) < 8_100_000


def test_of_many_models_the_telling_ones_are_shown_first(folder: Make) -> None:
    made = folder(spin={"iterations": 6, "baseline": "sft"}).data(2).sft()
    for number in range(1, 7):
        made.pairs(number).iterate(number).judged(f"iterate-{number}", 1.0)
    made.best("iterate-3").baseline()
    for name in ("base", "sft", "sft-more"):
        made.judged(name, 1.0)
    assert examples([read_run(made.path)])[0].shown == ("sft", "iterate-3", "sft-more")


def test_several_runs_show_the_prompts_that_all_of_them_hold_out(whole: Make) -> None:
    texts = [(f"Say word {n}.", f"word {n}") for n in range(9)]
    runs = [read_run(whole("one", texts[:6]).path), read_run(whole("other", texts[4:]).path)]
    (found,) = examples(runs)
    assert found.partial
    assert [item["reference"][0] for item in found.items] == ["word 4", "word 5"]
    assert [column.label for column in found.columns][:2] == ["one / base", "one / sft"]
    assert len(found.columns) == 10


# Evaluations --------------------------------------------------------------------------------------------------------


def test_every_evaluation_that_keeps_answers_has_a_set(everything: Make) -> None:
    ifeval, questions, dialogues = (one.to_json() for one in examples([read_run(everything().path)]))
    assert [ifeval["title"], questions["title"], dialogues["title"]] == ["ifeval", "questions", "mt-bench"]
    assert ifeval["items"][1]["answers"][1] == {
        "texts": [["sft follows", 0]],
        "facts": ["follows 1 of 2 instructions", "3 tokens", "cut for length", "not rule:1"],
        "score": 0.5,
    }
    assert ifeval["items"][1]["reference"] is None
    models = [(model["name"], model["kind"], model["file"]) for model in questions["models"]]
    assert models == [
        ("base", "greedy", "run/eval/questions/base/answers.jsonl"),
        ("sft", "greedy", "run/eval/questions/sft/answers.jsonl"),
        ("parrot", "stored answers", "run/eval/questions/parrot/answers.jsonl"),
    ]
    assert questions["items"][0]["reference"] == ["a b", 0]
    assert [answer and answer["facts"] for answer in questions["items"][11]["answers"]] == [
        ["ROUGE-L 0.000"],
        ["ROUGE-L 0.000"],
        None,  # the rival has 10 answers
    ]
    assert dialogues["items"][0]["prompt"] == [["turn 1", "Write 0.", 0], ["turn 2", "Again?", 0]]
    assert dialogues["items"][0]["answers"][1] == {
        "texts": [["sft writes", 0], ["sft again", 0]],
        "facts": ["rated 7 and 5"],
        "score": 6,
    }
    assert dialogues["items"][1]["answers"][1]["facts"] == ["rated 6 and nothing"]


def test_dialogues_that_nobody_rated_have_no_order(everything: Make) -> None:
    made = everything()
    for file in made.path.glob("eval/mt-bench/*/*"):
        file.unlink()
    dialogues = examples([read_run(made.path)])[-1]
    assert (dialogues.title, dialogues.measure, len(dialogues.items)) == ("mt-bench", "", 2)


def test_several_runs_show_what_all_of_them_were_asked_alike(everything: Make, whole: Make) -> None:
    one, other = everything("one"), everything("other")
    for file in other.path.glob("eval/questions/*/answers.jsonl"):
        file.write_text(file.read_text().replace("Question 1?", "Another question?"))
    sets = {found.title: found for found in examples([read_run(made.path) for made in (one, other, whole("third"))])}
    assert [item["id"] for item in sets["questions"].items] == [str(n) for n in range(12) if n != 1]
    assert sets["questions"].partial
    assert not sets["ifeval"].partial
    assert [column.label for column in sets["ifeval"].columns] == [
        "one / base",
        "one / sft",
        "other / base",
        "other / sft",
    ]
    assert sets["held-out examples"].columns[0].label == "third / base"  # the first two hold nothing out
