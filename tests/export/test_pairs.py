"""Pairs for other trainers: reasoning and calls of tools stand where OpenAI's API has them, on both sides."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from spintune.data.preferences import read_answers
from spintune.errors import DataError, StorageError
from spintune.export.pairs import ExportedPairs, export_pairs
from spintune.records import Answer, Example, Message, Pair, ToolCall, write_records
from spintune.run_folder import outputs_digest

Make = Callable[..., Any]
Played = Sequence[tuple[Example, str, Sequence[str]]]
"""Examples, the texts of their references' tokens, and generated texts."""

QUESTION = Message("user", "2+2?")
TOOL = '{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}'
ASKED = Message("user", "Is it warm in Rome?")
CALL = Message("assistant", "", tool_calls=(ToolCall("weather", '{"city": "Rome"}', "c1"),))
WRITTEN_CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'


def answer(text: str, real: str) -> Answer:
    return Answer((2,) if text == real else (3,), text, True)


@pytest.fixture
def exported(folder: Make, tmp_path: Path) -> Callable[[Played], tuple[list[dict[str, Any]], ExportedPairs]]:
    def export(played: Played) -> tuple[list[dict[str, Any]], ExportedPairs]:
        made = folder().stage("data")
        pairs = [
            Pair(example.id, (1,), answer(real, real), tuple(answer(text, real) for text in texts))
            for example, real, texts in played
        ]
        made.stage("spin/iterate-1/pairs", data=outputs_digest(made.path / "data"))
        write_records(made.path / "data/train.jsonl", [example for example, _, _ in played])
        write_records(made.path / "spin/iterate-1/pairs/train.jsonl", pairs)
        out = tmp_path / "pairs.jsonl"
        counts = export_pairs(made.path, out, 1)
        return [json.loads(line) for line in out.read_text().splitlines()], counts

    return export


def test_questions_are_texts(exported: Any) -> None:
    rows, counts = exported([(Example((QUESTION, Message("assistant", "4"))), "4", ["5", "6"])])
    assert rows == [{"prompt": "2+2?", "chosen": "4", "rejected": wrong} for wrong in "56"]
    assert counts == ExportedPairs(2, 0, 0)


def test_answers_without_text_are_rows_and_those_equal_to_the_real_one_are_not(exported: Any) -> None:
    rows, counts = exported([(Example((QUESTION, Message("assistant", "4"))), "4", ["", "4"])])
    assert rows == [{"prompt": "2+2?", "chosen": "4", "rejected": ""}]
    assert counts == ExportedPairs(1, 0, 0, identical=1)


def test_a_run_whose_answers_all_equal_the_real_ones_has_nothing_to_write(exported: Any) -> None:
    with pytest.raises(DataError, match="2 equal the real one, 0 were cut"):
        exported([(Example((QUESTION, Message("assistant", "4"))), "4", ["4", "4"])])


def test_both_sides_keep_their_reasoning_apart(exported: Any) -> None:
    thoughtful = Example((QUESTION, Message("assistant", "4", reasoning="two plus two")))
    plain = Example((Message("user", "3+3?"), Message("assistant", "6")))
    rows, counts = exported(
        [
            (thoughtful, "<think>\ntwo plus two\n</think>\n\n4", ["<think>\nhm\n</think>\n\n5", "5", "<think>hm"]),
            (plain, "6", ["hm\n</think>\n\n7"]),  # the prompt opened the block
        ]
    )
    four = [{"role": "assistant", "content": "4", "reasoning_content": "two plus two"}]
    asked = [{"role": "user", "content": "2+2?"}]
    assert rows[0]["rejected"] == [{"role": "assistant", "content": "5", "reasoning_content": "hm"}]
    assert rows[1] == {"prompt": asked, "chosen": four, "rejected": [{"role": "assistant", "content": "5"}]}
    assert rows[2]["chosen"] == [{"role": "assistant", "content": "6"}]  # lists of messages throughout the file
    assert rows[2]["rejected"] == [{"role": "assistant", "content": "7", "reasoning_content": "hm"}]
    assert counts == ExportedPairs(3, 0, 1)


def test_reasoning_stays_in_the_content_where_the_reference_has_it_there(exported: Any) -> None:
    reference = "<think>two plus two</think>4"
    rows, _ = exported([(Example((QUESTION, Message("assistant", reference))), reference, ["<think>hm</think>5"])])
    assert rows == [{"prompt": "2+2?", "chosen": reference, "rejected": "<think>hm</think>5"}]


def test_reasoning_whose_marks_are_control_tokens_cannot_be_told(exported: Any) -> None:
    example = Example((QUESTION, Message("assistant", "4", reasoning="two plus two")))
    with pytest.raises(DataError, match=r"of 1 generated answers 0 were cut, and of the others the reasoning or calls"):
        exported([(example, "two plus two4", ["hm5"])])


def test_calls_and_tools_are_written_as_openai_does(exported: Any, spintune: Make, tmp_path: Path) -> None:
    result = Message("tool", "30 degrees", call_id="c1", name="weather")
    calling = Example((ASKED, CALL), tools=(TOOL,))
    telling = Example((ASKED, CALL, result, Message("assistant", "Yes.")), tools=(TOOL,))
    other = WRITTEN_CALL.replace("Rome", "Oslo")
    rows, counts = exported(
        [
            (calling, WRITTEN_CALL, [other, "I cannot tell the weather.", '[{"name": "weather"}]', "<tool_call>{"]),
            (telling, "Yes.", ["No.", "weather(city='Rome')", 'weather{"city": "Rome"}']),
        ]
    )
    assert counts == ExportedPairs(3, 0, 4)
    ended = spintune("pairs", tmp_path / "run", tmp_path / "again.jsonl")
    assert "3 pairs in" in ended.out
    assert "; 4 skipped, whose reasoning or calls of tools cannot be told from the content" in ended.out
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    called = {"role": "assistant", "content": "", "tool_calls": [call]}
    assert rows[0]["chosen"] == [called]
    assert [json.loads(row["tools"]) for row in rows] == [[json.loads(TOOL)]] * 3
    (wrong,) = rows[0]["rejected"][0]["tool_calls"]
    assert wrong == {"type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    assert rows[1]["rejected"] == [{"role": "assistant", "content": "I cannot tell the weather."}]
    told = {"role": "tool", "content": "30 degrees", "tool_call_id": "c1", "name": "weather"}
    assert rows[2]["prompt"] == [{"role": "user", "content": ASKED.content}, called, told]
    read = read_answers(str(tmp_path / "pairs.jsonl"))
    assert {key: len(answers) for key, answers in read.items()} == {calling.id: 2, telling.id: 1}
    assert read[calling.id][0].messages[-1].tool_calls == (ToolCall("weather", '{"city": "Oslo"}'),)


def test_a_file_that_is_there_is_not_overwritten(exported: Any, tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text("mine")
    with pytest.raises(StorageError, match="already exists; name a new place"):
        exported([(Example((QUESTION, Message("assistant", "4"))), "4", ["5"])])
    assert (tmp_path / "pairs.jsonl").read_text() == "mine"
