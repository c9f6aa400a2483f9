"""Every row that data sets bring: what each key of it means, and what is refused, dropped or counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from spintune.data.preferences import read_answers, turns_of_example
from spintune.data.sources import Source, SourceResult, read_source
from spintune.errors import DataError, RecipeError
from spintune.progress import Silent
from spintune.recipe import parse_recipe
from spintune.recipe.recipe import SourceSection
from spintune.records import Example, Message, ToolCall

USER, ASSISTANT = Message("user", "Hi"), Message("assistant", "Hello")
SYSTEM = Message("system", "Be brief.")
EARLIER = (Message("user", "a"), Message("assistant", "b"))
CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
SHAREGPT = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
TURNS = {"user": CHAT[:1], "assistant": CHAT[1:]}


def result(folder: Path, *rows: dict[str, Any], **options: Any) -> SourceResult:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read_source(Source(str(path), **options))


def one(folder: Path, row: dict[str, Any], **options: Any) -> Example:
    (example,) = result(folder, row, **options).examples
    return example


def error(folder: Path, *rows: dict[str, Any], **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        result(folder, *rows, **options)
    text = str(caught.value).replace(f"{folder}/", "")
    assert "\n" not in text
    return text


# --- keys of a prompt and an answer ---


@pytest.mark.parametrize(
    ("name", "row", "expected"),
    [
        ("alpaca", {"instruction": "Hi", "response": "Hello"}, (USER, ASSISTANT)),
        ("alpaca", {"instruction": "Hi", "context": "", "response": "Hello", "category": "x"}, (USER, ASSISTANT)),
        (
            "alpaca",
            {"instruction": "Hi", "context": "C", "response": "Hello"},
            (Message("user", "Hi\n\nC"), ASSISTANT),
        ),
        ("qa", {"system_prompt": "Be brief.", "question": "Hi", "response": "Hello"}, (SYSTEM, USER, ASSISTANT)),
        ("qa", {"system_prompt": "", "question": "Hi", "response": "Hello"}, (USER, ASSISTANT)),
        ("qa", {"context": "C", "question": "Hi", "answer": "Hello"}, (Message("user", "C\n\nHi"), ASSISTANT)),
        ("qa", {"context": ["C", "D"], "question": "Hi", "answer": "Hello"},
         (Message("user", "C\n\nD\n\nHi"), ASSISTANT)),
        (
            "prompt",
            {"query": "Hi", "response": "Hello", "system": "Be brief.", "history": [["a", "b"]]},
            (SYSTEM, *EARLIER, USER, ASSISTANT),
        ),
        ("prompt", {"inputs": "Hi", "targets": "Hello"}, (USER, ASSISTANT)),
        ("prompt", {"problem": "Hi", "solution": "Hello", "level": 3}, (USER, ASSISTANT)),
        ("prompt", {"input": "Hi", "output": "Hello"}, (USER, ASSISTANT)),
        ("prompt", {"prompt": TURNS["user"], "completion": TURNS["assistant"]}, (USER, ASSISTANT)),
        ("prompt", {"prompt": TURNS["user"], "completion": "Hello"}, (USER, ASSISTANT)),
        ("prompt", {"prompt": "Hi", "response": CHAT[1]}, (USER, ASSISTANT)),
        ("prompt", {"prompt": "Hi", "completion": "Hello", "label": True}, (USER, ASSISTANT)),
        ("chat", {"messages": SHAREGPT}, (USER, ASSISTANT)),
        ("sharegpt", {"conversations": CHAT}, (USER, ASSISTANT)),
        ("sharegpt", {"conversation": CHAT}, (USER, ASSISTANT)),
        ("preference", {"prompt": "Hi", "chosen": "Hello", "rejected": "No"}, (USER, ASSISTANT)),
        ("preference", {"chosen": CHAT, "rejected": [CHAT[0], {**CHAT[1], "content": "No"}]}, (USER, ASSISTANT)),
        ("preference", {"prompt": "Hi", "chosen": CHAT, "rejected": CHAT, "messages": CHAT}, (USER, ASSISTANT)),
        ("preference", {"instruction": "Hi", "input": "x", "chosen": "Hello", "rejected": "No"},
         (Message("user", "Hi\n\nx"), ASSISTANT)),
        ("preference", {"system": "Be brief.", "question": "Hi", "chosen": "Hello", "rejected": "No"},
         (SYSTEM, USER, ASSISTANT)),
        ("preference", {"conversations": SHAREGPT[:1], "chosen": SHAREGPT[1], "rejected": SHAREGPT[1]},
         (USER, ASSISTANT)),
        # nulls are the columns of other rows, as in Parquet files
        ("chat", {"messages": CHAT, "prompt": None, "completion": None}, (USER, ASSISTANT)),
        ("prompt", {"messages": None, "prompt": "Hi", "completion": "Hello", "response": None}, (USER, ASSISTANT)),
    ],
)  # fmt: skip
def test_a_row_is_recognized_with_all_that_it_says(
    tmp_path: Path, name: str, row: dict[str, Any], expected: tuple[Message, ...]
) -> None:
    found = result(tmp_path, row)
    assert found.format == name
    assert [example.messages for example in found.examples] == [expected]
    assert one(tmp_path, row, format=name).messages == expected


@pytest.mark.parametrize("nothing", ["No input", "No input.", "N/A", "None", "<noinput>", "(none)", "<No Input>", " "])
def test_an_input_that_says_there_is_none_is_none(tmp_path: Path, nothing: str) -> None:
    assert one(tmp_path, {"instruction": "Hi", "input": nothing, "output": "Hello"}).messages == (USER, ASSISTANT)


def test_an_input_that_begins_with_none_is_one(tmp_path: Path) -> None:
    assert (
        one(tmp_path, {"instruction": "Hi", "input": "None of it", "output": "Hello"}).prompt[0].content.endswith(" it")
    )


# --- keys beside the conversation ---

LLAMA_FACTORY = {"instruction": "Hi", "input": "", "output": "Hello", "system": "Be brief.", "history": [["a", "b"]]}


@pytest.mark.parametrize(
    "row",
    [
        LLAMA_FACTORY,
        {**LLAMA_FACTORY, "history": [{"question": "a", "answer": "b"}]},
        {**LLAMA_FACTORY, "history": [{"user": "a", "assistant": "b"}]},
        {**LLAMA_FACTORY, "history": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        {"system": "Be brief.", "history": [["a", "b"]], "conversations": SHAREGPT},
        {"system": "Be brief.", "history": [["a", "b"]], "messages": CHAT},
        {"system": "Be brief.", "messages": [{"role": "system", "content": "Be brief."},
          {"role": "user", "content": "a"}, {"role": "model", "content": "b"}, *CHAT]},
        {"system_prompt": "Be brief.", "history": [["a", "b"]], "prompt": "Hi", "completion": "Hello"},
        {"system": "Be brief.", "history": [["a", "b"]], "prompt": "Hi", "chosen": "Hello", "rejected": "No"},
        {"system": "Be brief.", "history": [["a", "b"]], "instruction": "Hi", "instances": [{"output": "Hello"}]},
    ],
)  # fmt: skip
def test_system_and_history_come_before_the_prompt_in_every_format(tmp_path: Path, row: dict[str, Any]) -> None:
    found = result(tmp_path, row)
    assert [example.messages for example in found.examples] == [(SYSTEM, *EARLIER, USER, ASSISTANT)]
    assert not found.ignored


def test_a_context_comes_before_the_first_question_of_a_chat(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "Be brief."}, *CHAT, *CHAT]
    found = one(tmp_path, {"context": "C", "messages": messages})
    assert [message.content for message in found.messages] == ["Be brief.", "C\n\nHi", "Hello", "Hi", "Hello"]


def test_a_context_comes_before_the_history(tmp_path: Path) -> None:
    found = one(tmp_path, {"context": "C", "history": [["a", "b"]], "question": "Hi", "answer": "Hello"})
    assert found.messages == (Message("user", "C\n\na"), EARLIER[1], USER, ASSISTANT)


@pytest.mark.parametrize(("prompt", "answer"), [("inputs", "targets"), ("problem", "solution"), ("input", "output")])
def test_a_stop_token_of_another_tokenizer_is_cut_off_every_answer(tmp_path: Path, prompt: str, answer: str) -> None:
    assert one(tmp_path, {prompt: "Hi", answer: "Hello<|endoftext|>"}).messages == (USER, ASSISTANT)


@pytest.mark.parametrize(
    ("beside", "expected"),
    [
        ({"history": "soon"}, "history 1: not a question and an answer; write it as [question, answer]"),
        ({"history": [["a", "b", "c"]]}, "history 1: not a question and an answer"),
        ({"history": [["a", None]]}, "history 1: a row without an answer ('answer' is null)"),
        ({"system": 5}, "'system' is a number, not a text; quote it"),
        ({"system": "a", "system_prompt": "b"}, "'system' and 'system_prompt' differ; keep one, or leave one out with"),
        ({"context": {"title": "x"}}, "'context' is an object, not a text; name another key, or leave it out, with"),
        ({"label": 0}, "'label' is a number, not a boolean; write true or false if it says whether the answer is good"),
        ({"weight": 0.5}, "'weight' is a number, not 0 or 1; 0.5 cannot be used; write 1 or 0, or leave it out"
         " with columns: {weight: null}"),
        ({"weight": "0,0"}, "'weight' is a text, not 0 or 1; '0,0' cannot be used"),
        ({"train": "Oslo to Bergen"}, "'train' is a text, not 0 or 1; 'Oslo to Bergen' cannot be used"),
        ({"images": ["a.png"]}, "'images' holds more than text, and models are trained on text alone; delete the row"),
        ({"image": {"bytes": "x"}}, "'image' holds more than text"),
        ({"audios": ["a.wav"]}, "'audios' holds more than text"),
        ({"videos": ["a.mp4"]}, "'videos' holds more than text"),
        ({"tools": "[{"}, "'tools' is a text, not a list of tools; it is not valid JSON"),
        ({"tools": [{"description": "x"}]}, "tools 1: a row without a name ('name' is missing)"),
        ({"tools": ["x"]}, "'tools' is a text, not a list of tools; it is not valid JSON"),
        ({"thinking": "One way.", "reasoning": "Another way."}, "'thinking' and 'reasoning' hold different reasoning"),
        ({"reasoning": ["One.", "Two."]}, "'reasoning' is a list, not a text; give it as one text, or remove"),
        ({"thinking": {"text": "One."}}, "'thinking' is an object, not a text; give it as one text, or remove the key"),
    ],
)  # fmt: skip
def test_a_key_with_a_meaning_and_no_usable_value_is_one_line(
    tmp_path: Path, beside: dict[str, Any], expected: str
) -> None:
    assert error(tmp_path, {"question": "Hi", "answer": "Hello", **beside}).startswith(f"rows.jsonl:1: {expected}")


def test_empty_media_keys_are_no_media(tmp_path: Path) -> None:
    assert one(tmp_path, {"messages": CHAT, "images": [], "audio": "", "videos": None}).messages == (USER, ASSISTANT)


# --- labels and weights ---


@pytest.mark.parametrize("beside", [{"label": False}, {"kto_tag": False}, {"label": "False"}, {"kto_tag": 0}])
@pytest.mark.parametrize("row", [{"prompt": "Hi", "completion": "Bad"}, {"messages": CHAT}])
def test_a_bad_answer_is_dropped_and_counted(tmp_path: Path, row: dict[str, Any], beside: dict[str, Any]) -> None:
    found = result(tmp_path, {"prompt": "q", "completion": "a", "messages": None}, format="prompt")
    assert len(found.examples) == 1
    found = result(tmp_path, {**row, **beside})
    assert (len(found.examples), found.read, found.dropped) == (0, 1, {"negative_label": 1})


def test_a_label_that_is_a_topic_is_an_ignored_key(tmp_path: Path) -> None:
    found = result(tmp_path, {"prompt": "Hi", "completion": "Hello", "label": "sports"})
    assert (len(found.examples), found.ignored) == (1, {"label": 1})


@pytest.mark.parametrize("mark", [{"train": False}, {"weight": 0}, {"weight": 0.0}, {"loss": False}, {"weight": "0"},
                                  {"train": "no"}, {"loss": "Off"}])  # fmt: skip
def test_a_turn_may_be_kept_out_of_the_loss(tmp_path: Path, mark: dict[str, Any]) -> None:
    bad = {"role": "assistant", "content": "Bad", **mark}
    example = one(tmp_path, {"messages": [CHAT[0], bad, *CHAT]})
    assert example.messages == (USER, Message("assistant", "Bad", trained=False), USER, ASSISTANT)
    (turn,) = turns_of_example(example)  # one answer to learn, behind the untrained one
    assert turn.messages == example.messages


def test_an_assistant_that_speaks_first_answers_nothing(tmp_path: Path) -> None:
    example = one(tmp_path, {"system": "Be kind.", "messages": [CHAT[1], *CHAT]})
    assert [turn.messages for turn in turns_of_example(example)] == [example.messages]
    assert len(example.messages) == 4


def test_a_greeting_before_untrained_answers_leaves_nothing_to_train_on(tmp_path: Path) -> None:
    found = result(tmp_path, {"messages": [CHAT[1], CHAT[0], {**CHAT[1], "train": False}]})
    assert (found.read, found.dropped) == (1, {"untrained": 1})


def test_a_greeting_alone_is_no_answer(tmp_path: Path) -> None:
    assert error(tmp_path, {"messages": [CHAT[1], CHAT[0]]}) == (
        "rows.jsonl:1: a row without an answer (its last turn is the user's); "
        "end it with an assistant turn or delete the row"
    )
    assert "a row without a prompt (no user turn)" in error(tmp_path, {"messages": [CHAT[1]]})


def test_what_follows_the_last_trained_answer_is_cut_off_and_counted(tmp_path: Path) -> None:
    found = result(tmp_path, {"messages": [*CHAT, CHAT[0], {"role": "assistant", "content": "Bad", "weight": 0}]})
    assert [example.messages for example in found.examples] == [(USER, ASSISTANT)]
    assert found.trimmed == 1


@pytest.mark.parametrize("mark", [{"train": False}, {"weight": 0}, {"train": "off"}])
def test_a_row_without_an_answer_to_train_on_is_dropped_and_counted(tmp_path: Path, mark: dict[str, Any]) -> None:
    assert result(tmp_path, {"prompt": "Hi", "completion": "Hello", **mark}).dropped == {"untrained": 1}
    assert result(tmp_path, {"messages": [CHAT[0], {**CHAT[1], **mark}]}).dropped == {"untrained": 1}


@pytest.mark.parametrize("mark", [{"train": True}, {"weight": 1}, {"weight": None}, {"train": "yes"}, {"weight": ""}])
def test_a_weight_of_one_is_an_ordinary_turn(tmp_path: Path, mark: dict[str, Any]) -> None:
    ordinary = one(tmp_path, {"messages": CHAT})
    marked = one(tmp_path, {"messages": [CHAT[0], {**CHAT[1], **mark}], **mark})
    assert marked.id == ordinary.id


@pytest.mark.parametrize("key", ["weight", "loss", "train"])
def test_a_turn_cannot_weigh_half(tmp_path: Path, key: str) -> None:
    assert error(tmp_path, {"messages": [CHAT[0], {**CHAT[1], key: 0.5}]}) == (
        f"rows.jsonl:1: messages 2: '{key}' is a number, not 0 or 1; 0.5 cannot be used; write 1 or 0, or leave it out"
    )


def test_a_conversation_that_ends_with_the_user_is_cut_and_counted(tmp_path: Path) -> None:
    found = result(tmp_path, {"messages": [*CHAT, {"role": "user", "content": "More?"}]}, {"messages": [*CHAT, *CHAT]})
    assert found.examples[0].messages == (USER, ASSISTANT)
    assert (found.trimmed, found.read, found.dropped) == (1, 2, {})


# --- roles, contents, reasoning ---


@pytest.mark.parametrize(
    ("role", "expected"),
    [
        ("model", "assistant"), ("Assistant", "assistant"), ("GPT", "assistant"), ("developer", "system"),
        ("System", "system"), ("USER", "user"), ("Human", "user"), ("prompter", "user"), ("tool", "tool"),
        ("function", "tool"), ("observation", "tool"), ("tool_response", "tool"),
    ],
)  # fmt: skip
def test_roles_are_known_by_their_many_names(tmp_path: Path, role: str, expected: str) -> None:
    for turn in ({"role": role, "content": "x"}, {"from": role, "value": "x"}):
        assert one(tmp_path, {"messages": [*CHAT, turn, *CHAT]}).messages[2] == Message(expected, "x")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "content",
    ["Hello", ["Hel", "lo"], [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo", "image": None}],
     [{"type": "output_text", "text": "Hello"}]],
)  # fmt: skip
def test_text_parts_are_one_text(tmp_path: Path, content: Any) -> None:
    assert one(tmp_path, {"messages": [CHAT[0], {"role": "assistant", "content": content}]}).messages[1] == ASSISTANT


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ({"type": "image_url", "image_url": {"url": "x"}}, "messages 1: content 1: 'image_url' holds more than text"),
        ({"type": "input_audio", "input_audio": {}}, "messages 1: content 1: 'input_audio' holds more than text"),
        ({"type": "video", "video": "x"}, "messages 1: content 1: 'video' holds more than text"),
        ({"type": "refusal", "refusal": "No."}, "messages 1: content 1: a part of type 'refusal' is no text"),
        ({"type": "text"}, "messages 1: content 1: a row without a text ('text' is missing)"),
    ],
)
def test_parts_that_are_no_text_are_one_line(tmp_path: Path, part: dict[str, Any], expected: str) -> None:
    row = {"messages": [{"role": "user", "content": [part]}, CHAT[1]]}
    assert error(tmp_path, row).startswith(f"rows.jsonl:1: {expected}")


THOUGHT = Message("assistant", "Hello", reasoning="Be polite.")


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_is_kept_apart_from_the_answer(tmp_path: Path, key: str) -> None:
    turn = {**CHAT[1], key: "Be polite."}
    assert one(tmp_path, {"messages": [CHAT[0], turn]}).messages == (USER, THOUGHT)
    for prompt, answer in (("prompt", "response"), ("question", "answer"), ("instruction", "output")):
        assert one(tmp_path, {prompt: "Hi", answer: "Hello", key: "Be polite."}).messages == (USER, THOUGHT)


def test_reasoning_beside_a_turn_leaves_it_out_of_the_loss(tmp_path: Path) -> None:
    answers = [CHAT[1], CHAT[0], {"role": "assistant", "content": "Bad", "train": False}]
    found = result(tmp_path, {"prompt": "Hi", "completion": answers, "reasoning": "Be polite."})
    assert [example.messages for example in found.examples] == [(USER, ASSISTANT)]


def test_thinking_parts_are_reasoning(tmp_path: Path) -> None:
    parts = [{"type": "thinking", "thinking": "Be polite."}, {"type": "text", "text": "Hello"}]
    assert one(tmp_path, {"messages": [CHAT[0], {**CHAT[1], "content": parts}]}).messages == (USER, THOUGHT)


@pytest.mark.parametrize(
    "setting",
    [
        *("on", "Off", "high", "none", "adaptive", "unknown", "extended", True, False, "", None, []),
        *(0, 1, 1024, -1, 0.5, "0", "1024", " -1 "),
        *({"type": "enabled", "budget_tokens": 1024}, {"effort": "high", "summary": None}, {"max_tokens": "2000"}),
    ],
)
def test_a_reasoning_setting_is_no_reasoning(tmp_path: Path, setting: Any) -> None:
    assert one(tmp_path, {"prompt": "Hi", "response": "Hello", "reasoning": setting}).messages == (USER, ASSISTANT)
    assert one(tmp_path, {"messages": [CHAT[0], {**CHAT[1], "thinking": setting}]}).messages == (USER, ASSISTANT)


@pytest.mark.parametrize("text", ["因为二加二等于四，所以答案是四。", "12*4=48", "Politeness."])
def test_reasoning_may_be_without_spaces(tmp_path: Path, text: str) -> None:
    found = one(tmp_path, {"question": "Hi", "answer": "Hello", "reasoning": text})
    assert found.messages == (USER, Message("assistant", "Hello", reasoning=text))


# --- tools ---

WEATHER = {"name": "weather", "description": "The weather.", "parameters": {"type": "object", "properties": {}}}
WRAPPED = {"type": "function", "function": WEATHER}
CALL = ToolCall("weather", '{"city": "Oslo"}', "c1")
ANSWERED = [{"role": "tool", "tool_call_id": "c1", "name": "weather", "content": "Rain."}, CHAT[1]]
CALLED = (USER, Message("assistant", "", tool_calls=(CALL,)), Message("tool", "Rain.", call_id="c1", name="weather"),
          ASSISTANT)  # fmt: skip


@pytest.mark.parametrize(
    "call",
    [
        {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}},
        {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo", "unit": None}}},
        {"id": "c1", "name": "weather", "arguments": {"city": "Oslo"}},
        {"id": "c1", "name": "weather", "arguments": '{"city": "Oslo"}'},
        {"id": "c1", "name": "weather", "parameters": {"city": "Oslo"}},
    ],
)
def test_tool_calls_and_results_are_turns(tmp_path: Path, call: dict[str, Any]) -> None:
    for calls in ([call], json.dumps([call])):
        turn = {"role": "assistant", "content": None, "tool_calls": calls}
        found = result(tmp_path, {"messages": [CHAT[0], turn, *ANSWERED]})
        assert (found.examples[0].messages, found.ignored) == (CALLED, {})


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"id": 1}, '{"id": 1}'),
        ([{"id": 1, "text": "a"}, {"id": 2, "text": "b"}], '[{"id": 1, "text": "a"}, {"id": 2, "text": "b"}]'),
        ([{"type": "hotel", "name": "Ritz"}], '[{"type": "hotel", "name": "Ritz"}]'),
        ([1, 2], "[1, 2]"),
        ([{"type": "text", "text": "Ra"}, {"type": "text", "text": "in."}], "Rain."),
        ([{"text": "Ra", "type": None}, "in."], "Rain."),
    ],
)
def test_a_tool_may_return_json_or_parts_of_a_text(tmp_path: Path, content: Any, expected: str) -> None:
    row = {"messages": [CHAT[0], {"role": "tool", "content": content}, CHAT[1]]}
    assert one(tmp_path, row).messages[1].content == expected


def test_a_call_stands_beside_a_text_and_without_arguments(tmp_path: Path) -> None:
    turn = {"role": "assistant", "content": "Hello", "tool_calls": [{"function": {"name": "now", "arguments": ""}}]}
    expected = Message("assistant", "Hello", tool_calls=(ToolCall("now", "{}"),))
    assert one(tmp_path, {"messages": [CHAT[0], turn]}).messages[1] == expected


def test_sharegpt_calls_belong_to_the_turn_before_them(tmp_path: Path) -> None:
    calls = [
        {"from": "function_call", "value": json.dumps({"name": "weather", "arguments": {"city": c}})} for c in "AB"
    ]
    observed = {"from": "observation", "value": "Rain."}
    row = {"conversations": [*SHAREGPT, *calls, observed, SHAREGPT[1]], "tools": json.dumps([WEATHER])}
    example = one(tmp_path, row)
    assert example.messages == (
        USER,
        Message("assistant", "Hello", tool_calls=tuple(ToolCall("weather", f'{{"city": "{city}"}}') for city in "AB")),
        Message("tool", "Rain."),
        ASSISTANT,
    )
    assert example.tools == (json.dumps(WRAPPED),)


def test_openai_s_old_function_call_is_a_call(tmp_path: Path) -> None:
    turn = {"role": "assistant", "content": None, "function_call": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    told = {"role": "function", "name": "weather", "content": "Rain."}
    example = one(tmp_path, {"messages": [CHAT[0], turn, told, CHAT[1]], "functions": [WEATHER]})
    assert example.messages[1].tool_calls == (ToolCall("weather", '{"city": "Oslo"}'),)
    assert example.messages[2] == Message("tool", "Rain.", name="weather")
    assert example.tools == (json.dumps(WRAPPED),)


@pytest.mark.parametrize("tools", [[WEATHER], [WRAPPED], json.dumps([WEATHER]), [json.dumps(WRAPPED)]])
def test_tools_are_told_as_openai_does(tmp_path: Path, tools: Any) -> None:
    for row in (
        {"messages": CHAT},
        {"prompt": TURNS["user"], "completion": TURNS["assistant"]},
        {"conversations": SHAREGPT},
    ):
        assert one(tmp_path, {**row, "tools": tools}).tools == (json.dumps(WRAPPED),)


def test_nulls_of_other_tools_are_left_out(tmp_path: Path) -> None:
    padded = {
        **WRAPPED,
        "function": {**WEATHER, "strict": None, "parameters": {"type": "object", "properties": {}, "required": None}},
    }
    assert one(tmp_path, {"messages": CHAT, "tools": [padded]}).tools == (json.dumps(WRAPPED),)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (
            {"name": "weather", "arguments": "city"},
            "tool_calls 1: 'arguments' is a text, not a JSON object; it is not valid",
        ),
        ({"name": "weather", "arguments": ["Oslo"]}, "tool_calls 1: 'arguments' is a list, not a JSON object"),
        ({"arguments": {}}, "tool_calls 1: a row without a name ('name' is missing)"),
    ],
)
def test_a_call_that_is_none_is_one_line(tmp_path: Path, call: dict[str, Any], expected: str) -> None:
    row = {"messages": [CHAT[0], {"role": "assistant", "content": "", "tool_calls": [call]}]}
    assert error(tmp_path, row).startswith(f"rows.jsonl:1: messages 2: {expected}")


# --- keys without a meaning ---


def test_keys_without_a_use_are_counted_and_told_once(tmp_path: Path) -> None:
    notes: list[str] = []

    class Noting(Silent):
        def note(self, text: str) -> None:
            notes.append(text)

    path = tmp_path / "rows.jsonl"
    rows = [{"messages": [CHAT[0], {**CHAT[1], "id": 1}], "prompt": "Hi", "topic": n} for n in range(3)]
    path.write_text("".join(json.dumps({**row, "system": str(n)}) + "\n" for n, row in enumerate(rows)))
    found = read_source(Source(str(path)), Noting())
    assert found.ignored == {"prompt": 3, "topic": 3, "messages.id": 3}
    assert notes == [f"{path}: keys without a use: messages.id (3), prompt (3), topic (3)"]

    notes.clear()
    assert read_source(Source("builtin:seeds"), Noting()).ignored
    assert notes == []  # nobody can change what comes with the package


# --- two readings ---


@pytest.mark.parametrize(
    ("row", "one", "other"),
    [
        ({"messages": CHAT, "prompt": "A", "completion": "B"}, "chat (messages)", "prompt (prompt, completion)"),
        (
            {"messages": CHAT, "conversations": [SHAREGPT[0], {"from": "gpt", "value": "No"}]},
            "chat (messages)",
            "sharegpt (conversations)",
        ),
        ({"instruction": "a", "output": "b", "question": "a", "answer": "c"}, "alpaca (instruction, output)", "qa"),
        ({"prompt": "Hi", "chosen": "a", "rejected": "b", "response": "c"}, "prompt (prompt, response)", "preference"),
    ],
)
def test_rows_of_two_formats_that_read_differently_need_a_word(
    tmp_path: Path, row: dict[str, Any], one: str, other: str
) -> None:
    text = error(tmp_path, row)
    assert text.startswith(f"rows.jsonl: the keys fit {one} and {other}")
    names = [name.split(" ")[0] for name in (one, other)]
    assert text.endswith(f"which read different conversations; set format: {names[0]} or format: {names[1]}")
    for name in names:
        assert result(tmp_path, row, format=name).format == name


def test_two_answers_of_one_format_need_a_word(tmp_path: Path) -> None:
    row = {"question": "Hi", "answer": "4", "response": "Four."}
    assert error(tmp_path, row).endswith("name them with columns: {prompt: question, response: response} or the like")
    assert one(tmp_path, row, columns={"prompt": "question", "response": "response"}).answer == "Four."
    assert one(tmp_path, {**row, "response": "4"}).answer == "4"


@pytest.mark.parametrize(
    "row",
    [
        {"messages": CHAT, "question": "Hi", "answer": "Hello"},
        {"messages": [{"role": "system", "content": "s"}, *CHAT], "instruction": "Hi", "output": "Hello"},
        {"prompt": "Task: Hi\nOutput:", "response": "Hello", "instruction": "Hi", "input": "Task:"},
    ],
)
def test_two_formats_that_read_the_same_are_one(tmp_path: Path, row: dict[str, Any]) -> None:
    assert one(tmp_path, row).answer == "Hello"


def test_a_file_of_mixed_formats_is_one_line(tmp_path: Path) -> None:
    assert error(tmp_path, {"messages": CHAT}, {"instruction": "Hi", "output": "Hello"}) == (
        "rows.jsonl:2: the row has the keys of format alpaca, and other rows those of chat; "
        "put rows of each format into a file of their own"
    )


def test_plain_text_has_no_prompt(tmp_path: Path) -> None:
    assert error(tmp_path, {"text": "Once upon a time."}) == (
        "rows.jsonl: the rows hold plain text without prompts (keys: text), and answers to prompts are what spintune "
        "trains; split it into prompt and completion, or name the keys with columns: {prompt: ..., response: ...}"
    )


def test_the_best_ranked_path_of_a_tree_is_read(tmp_path: Path) -> None:
    def node(role: str, text: str, *replies: Any, **facts: Any) -> dict[str, Any]:
        return {"message_id": text, "role": role, "text": text, "replies": list(replies), **facts}

    best = node("assistant", "Hello", node("prompter", "More?", rank=None), rank=0)
    replies = (node("assistant", "No", rank=1), best, node("assistant", "Spam", rank=-1, deleted=True))
    row = {"message_tree_id": "1", "tree_state": "ready", "prompt": node("prompter", "Hi", *replies)}
    found = result(tmp_path, row)
    assert (found.format, found.trimmed, found.ignored) == ("oasst", 1, {})
    assert found.examples[0].messages == (USER, ASSISTANT)
    flat = {"message_id": "a", "parent_id": None, "text": "Hi", "role": "prompter"}
    assert error(tmp_path, flat).startswith("rows.jsonl: each row is one message of a tree; give the file of whole")


# --- columns ---


def test_columns_name_what_no_format_foresees(tmp_path: Path) -> None:
    row = {
        "customer_message": "Hi",
        "agent_reply": "Hello",
        "meta": {"persona": "Be brief."},
        "ticket": 7,
        "query": "x",
    }
    columns = {"prompt": "customer_message", "response": "agent_reply", "system": "meta.persona"}
    found = result(tmp_path, row, columns=columns)
    assert (found.format, found.examples[0].messages) == ("prompt", (SYSTEM, USER, ASSISTANT))
    assert found.ignored == {"ticket": 1, "query": 1}


@pytest.mark.parametrize(
    ("row", "columns", "expected"),
    [
        ({"data": {"turns": SHAREGPT}}, {"messages": "data.turns"}, (USER, ASSISTANT)),
        ({"q": "Hi", "good": "Hello", "bad": "No"}, {"prompt": "q", "chosen": "good", "rejected": "bad"},
         (USER, ASSISTANT)),
        ({"instruction": "Hi", "output": "Hello", "sys": "Be brief."}, {"system": "sys"}, (SYSTEM, USER, ASSISTANT)),
        ({"prompt": "Hi", "reply": "Hello", "past": [["a", "b"]]}, {"response": "reply", "history": "past"},
         (*EARLIER, USER, ASSISTANT)),
        ({"q": "Hi", "a": "Hello", "messages": [], "system": "Be brief."}, {"prompt": "q", "response": "a"},
         (SYSTEM, USER, ASSISTANT)),
        ({"question": "Hi", "answer": "Hello", "label": 0, "images": ["x"]}, {"label": None, "images": None},
         (USER, ASSISTANT)),
        ({"question": "Hi", "answer": "Hello", "cot": "Be polite."}, {"reasoning": "cot"}, (USER, THOUGHT)),
        ({"customer": "Hi", "completion": "Hello"}, {"prompt": "customer"}, (USER, ASSISTANT)),
        ({"customer": "Hi", "answer": "Hello"}, {"prompt": "customer"}, (USER, ASSISTANT)),
        ({"question": "Hi", "reply": "Hello"}, {"response": "reply"}, (USER, ASSISTANT)),
        ({"question": "Hi", "good": "Hello", "bad": "No"}, {"chosen": "good", "rejected": "bad"}, (USER, ASSISTANT)),
    ],
)  # fmt: skip
def test_columns_map_to_every_part(
    tmp_path: Path, row: dict[str, Any], columns: dict[str, str | None], expected: tuple[Message, ...]
) -> None:
    found = result(tmp_path, row, columns=columns)
    assert found.examples[0].messages == expected
    assert set(found.ignored) <= {"messages"}


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"promt": "q"}, "rows.jsonl: columns cannot map to 'promt'; did you mean prompt?"),
        ({"zzz": "q"}, "rows.jsonl: columns cannot map to 'zzz'; use prompt, response, messages, chosen, rejected, "),
        ({"prompt": "questio", "response": "answer"},
         "rows.jsonl:1: no 'questio' for columns.prompt; did you mean question?"),
        ({"system": "sistem"}, "rows.jsonl: no row has 'sistem' for columns.system; the rows have: answer, question"),
        ({"prompt": None}, "rows.jsonl: columns.prompt is null; name the key that holds it, or leave it out"),
        ({"images": "x"}, "rows.jsonl: columns.images can only be null"),
        ({"messages": "m", "prompt": "question"}, "rows.jsonl: columns maps messages and prompt; "),
        ({"response": "question"}, "rows.jsonl:1: columns name no prompt; the row has: question, answer"),
        ({"prompt": "question", "response": "n"}, "rows.jsonl:1: 'n' is a number, not a text; quote it"),
    ],
)  # fmt: skip
def test_columns_that_do_not_fit_are_one_line(tmp_path: Path, columns: dict[str, str | None], expected: str) -> None:
    row: dict[str, Any] = {"question": "Hi", "answer": "Hello"} | ({"n": 5} if "n" in columns.values() else {})
    assert error(tmp_path, row, columns=columns).startswith(expected)


def test_columns_and_a_format_must_agree(tmp_path: Path) -> None:
    row = {"q": "Hi", "a": "Hello"}
    text = error(tmp_path, row, columns={"prompt": "q", "response": "a"}, format="chat")
    assert text == "rows.jsonl: columns decide the format (prompt), not format: chat; leave format out"


def test_a_recipe_holds_columns_and_refuses_wrong_ones() -> None:
    def source(columns: dict[str, str | None]) -> SourceSection:
        data = {"train": {"path": "x", "columns": columns}}
        section = parse_recipe({"model": "m", "out": "o", "data": data}, "test").data
        return section.train[0]

    assert source({"prompt": "q", "label": None}).columns == {"prompt": "q", "label": None}
    with pytest.raises(RecipeError, match=r"data.train.0: columns cannot map to 'promt'; did you mean prompt\?"):
        source({"promt": "q"})


# --- pairs ---


def test_answers_of_preference_rows_keep_system_and_tools(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    row = {"system": "Be brief.", "prompt": "Hi", "chosen": "Hello", "rejected": "No", "tools": [WEATHER]}
    path.write_text(json.dumps(row) + "\n")
    ((key, (worse,)),) = read_answers(str(path)).items()
    assert key == one(tmp_path, row).id
    assert worse.messages == (SYSTEM, USER, Message("assistant", "No"))
    assert worse.tools == (json.dumps(WRAPPED),)
