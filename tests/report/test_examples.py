"""Answers side by side: bounded, whole where they can be, and harmless as a part of the page."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spintune.report.examples import MOST_CHARACTERS, MOST_EXAMPLES, embedded, examples
from spintune.report.facts import read_run

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
    found = examples([read_run(made.path)]).to_json()
    assert [model["name"] for model in found["models"]] == ["base", "sft", "iterate-1", "iterate-2", "sft-more"]
    first = found["items"][0]
    assert first["prompt"] == [["user", "Say word 0.", 0]]
    assert first["reference"] == ["word 0", 0]
    assert first["answers"][1] == {
        "text": ["sft says word 0", 0],
        "finished": True,
        "tokens": 4,
        "rouge": pytest.approx(2 / 3),  # 2 words in common of 4 and 2
        "exact": False,
    }


def test_long_texts_are_cut_and_what_is_left_out_is_counted(folder: Make) -> None:
    made = folder(spin=None).data([("p" * 5000, "r" * 4001)]).sft()
    made.judged("sft", 1.0, ["x" * 1_000_000])
    (item,) = examples([read_run(made.path)]).items
    assert item["prompt"] == [["user", "p" * MOST_CHARACTERS, 1000]]
    assert item["reference"] == ["r" * MOST_CHARACTERS, 1]
    assert item["answers"][0]["text"] == ["x" * MOST_CHARACTERS, 996_000]


def test_the_first_of_many_examples_are_kept_and_all_are_counted(folder: Make) -> None:
    made = folder(spin=None).data(MOST_EXAMPLES + 7).sft().judged("sft", 1.0)
    found = examples([read_run(made.path)])
    assert (len(found.items), found.total) == (MOST_EXAMPLES, MOST_EXAMPLES + 7)
    assert found.items[0]["reference"] == ["word 0", 0]


def test_all_together_they_stay_below_a_bound(folder: Make) -> None:
    made = folder(spin=None).data([(f"{n} " + "日" * 3990, "本" * 4000) for n in range(400)]).sft()
    made.judged("base", 1.0, ["語" * 4000] * 400).judged("sft", 1.0, ["語" * 4000] * 400)
    found = examples([read_run(made.path)])
    assert 0 < len(found.items) < 400
    assert len(embedded(found.to_json()).encode()) < 8_100_000


def test_of_many_models_the_telling_ones_are_shown_first(folder: Make) -> None:
    made = folder(spin={"iterations": 6, "baseline": "sft"}).data(2).sft()
    for number in range(1, 7):
        made.pairs(number).iterate(number).judged(f"iterate-{number}", 1.0)
    made.best("iterate-3").baseline()
    for name in ("base", "sft", "sft-more"):
        made.judged(name, 1.0)
    assert examples([read_run(made.path)]).shown == ("sft", "iterate-3", "sft-more")


def test_several_runs_show_the_prompts_that_all_of_them_hold_out(whole: Make) -> None:
    texts = [(f"Say word {n}.", f"word {n}") for n in range(9)]
    runs = [read_run(whole("one", texts[:6]).path), read_run(whole("other", texts[4:]).path)]
    found = examples(runs)
    assert found.partial
    assert [item["reference"][0] for item in found.items] == ["word 4", "word 5"]
    assert [column.contender.label for column in found.columns][:2] == ["one / base", "one / sft"]
    assert len(found.columns) == 10
