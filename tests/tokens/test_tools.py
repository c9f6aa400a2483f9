"""Tools, calls and their results as the template writes them, without a text of them becoming a control token."""

from __future__ import annotations

import json

import pytest

from spintune.errors import DataError, ModelError
from spintune.records import Example, Message, ToolCall
from spintune.tokens.chat import ChatRenderer

ASK, SAY = Message("user", "How warm is it?"), Message("assistant", "Nine degrees.")
ARGUMENTS = {"place": "Paris", "days": 2}


def tool(description="Says how warm it is."):
    function = {"name": "weather", "description": description, "parameters": {"type": "object", "properties": {}}}
    return json.dumps({"type": "function", "function": function})


def called(arguments=ARGUMENTS, content="", id="a1"):
    return Message("assistant", content, tool_calls=(ToolCall("weather", json.dumps(arguments), id),))


RESULT = Message("tool", '9 "degrees"', call_id="a1")

HEAD = (
    "{% if tools %}{{ '<|im_start|>system\\n' }}{% for t in tools %}{{ t.function | tojson }}{% endfor %}"
    "{{ '<|im_end|>\\n' }}{% endif %}{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
)
TAIL = "{{ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
CALLS = "{% for c in m.tool_calls or [] %}{{ '<call>' + c.function.name + c.function.arguments | tojson }}{% endfor %}"
TOOLS = HEAD + "{% if m.content %}{{ m.content }}{% endif %}" + CALLS + TAIL


@pytest.fixture
def make(byte_level):
    def make(template=TOOLS, **options):
        tokenizer = byte_level(template, eos="<|im_end|>")
        return tokenizer, ChatRenderer(tokenizer, **options)

    return make


def as_dicts(messages):
    found = []
    for message in messages:
        plain = {"role": message.role, "content": message.content}
        if message.tool_calls:
            plain["tool_calls"] = [
                {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": json.loads(c.arguments)}}
                for c in message.tool_calls
            ]
        found.append(plain | ({"tool_call_id": message.call_id} if message.role == "tool" else {}))
    return found


def theirs(tokenizer, messages, tools, **options):
    return tokenizer.apply_chat_template(as_dicts(messages), tools=[json.loads(t) for t in tools], **options)[
        "input_ids"
    ]


@pytest.mark.parametrize(
    "messages",
    [
        (ASK, SAY),
        (ASK, called()),
        (ASK, called(content="Let me look.")),
        (ASK, called(), RESULT, SAY),
        (ASK, called(), RESULT, SAY, ASK, called({"place": "Rom"})),
    ],
)
def test_conversations_with_tools_have_the_ids_of_apply_chat_template(make, messages):
    tokenizer, renderer = make()
    row = renderer.row(Example(messages, tools=(tool(),)))
    assert [*row.prompt_ids, *row.response_ids] == theirs(tokenizer, messages, (tool(),))[:-1]
    assert list(row.prompt_ids) == theirs(tokenizer, messages[:-1], (tool(),), add_generation_prompt=True)
    assert renderer.prompt(messages[:-1], (tool(),)) == row.prompt_ids
    assert all(row.trained)


def test_calls_are_trained_with_their_end(make):
    tokenizer, renderer = make()
    row = renderer.row(Example((ASK, called()), tools=(tool(),)))
    assert tokenizer.decode(row.response_ids) == '<call>weather{"place": "Paris", "days": 2}<|im_end|>'


def test_each_call_is_trained_with_turns_all(make):
    tokenizer, renderer = make(turns="all")
    row = renderer.row(Example((ASK, called(), RESULT, SAY), tools=(tool(),)))
    trained = [id for id, learns in zip(row.response_ids, row.trained, strict=True) if learns]
    assert tokenizer.decode(trained) == ('<call>weather{"place": "Paris", "days": 2}<|im_end|>Nine degrees.<|im_end|>')


def test_a_template_that_wants_arguments_as_text_gets_them_so(make):
    calls = "{% for c in m.tool_calls or [] %}{{ c.function.name + '(' + c.function.arguments + ')' }}{% endfor %}"
    tokenizer, renderer = make(HEAD + "{{ m.content }}" + calls + TAIL)
    row = renderer.row(Example((ASK, called({"place": "Paris"}))))
    assert tokenizer.decode(row.response_ids) == 'weather({"place": "Paris"})<|im_end|>'


@pytest.mark.parametrize("written", ["m.content", "m.content | tojson"])
def test_results_stay_text_whatever_they_hold(make, written):
    template = HEAD + "{% if m.role == 'tool' %}{{ " + written + " }}{% else %}{{ m.content or '' }}{% endif %}"
    tokenizer, renderer = make(template + CALLS + TAIL)
    messages = (ASK, called(), Message("tool", 'a "b"\n<|im_end|>', call_id="a1"), SAY)
    row = renderer.row(Example(messages, tools=(tool(),)))
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert (*row.prompt_ids, *row.response_ids).count(end) == 5
    text = tokenizer.decode(row.prompt_ids)
    assert ('a "b"\n<|im_end|><|im_end|>' if written == "m.content" else '"a \\"b\\"\\n<|im_end|>"') in text


@pytest.mark.parametrize(
    ("messages", "tools"),
    [
        ((ASK, SAY), (tool("Ends with <|im_end|>"),)),
        ((ASK, called({"place": "<|im_end|>"})), (tool(),)),
        ((ASK, called({"<|im_end|>": 1})), ()),
    ],
)
def test_a_control_token_in_what_the_template_writes_itself_is_refused(make, messages, tools):
    _, renderer = make()
    with pytest.raises(DataError, match=r"^a:3: a tool, call or result holds the text of the control token"):
        renderer.row(Example(messages, source="a:3", tools=tools))


@pytest.mark.parametrize(
    ("messages", "tools", "reason"),
    [
        ((ASK, SAY), (tool(),), "the example has tools, but the chat template of .* writes none"),
        ((ASK, called()), (), "an answer calls tools, but the chat template of .* writes no calls"),
        ((ASK, SAY, RESULT, SAY), (), "the chat template of .* writes no results of tools"),
    ],
)
def test_a_template_without_tools_refuses_them_with_the_row(make, messages, tools, reason):
    plain = "{% for m in messages if m.role != 'tool' %}{{ '<|im_start|>' + m.role + m.content }}" + TAIL
    _, renderer = make(plain)
    with pytest.raises(DataError, match=f"^a:3: {reason}"):
        renderer.row(Example(messages, source="a:3", tools=tools))


def test_a_content_that_the_template_drops_beside_calls_is_refused(make):
    _, renderer = make(HEAD + "{% if m.tool_calls %}" + CALLS + "{% else %}{{ m.content }}{% endif %}" + TAIL)
    renderer.row(Example((ASK, called())))
    with pytest.raises(DataError, match=r"^a:3: the chat template writes no content beside the calls of tools"):
        renderer.row(Example((ASK, called(content="Let me look.")), source="a:3"))


def test_a_template_that_fails_names_the_row(make):
    fails_for_two = "{% for c in m.tool_calls or [] %}{{ 1 % (c.function.arguments | length - 2) }}{% endfor %}"
    _, renderer = make(HEAD + "{{ m.content }}" + CALLS + fails_for_two + TAIL)
    with pytest.raises(ModelError, match=r"^a:3: .*the chat template fails: "):
        renderer.row(Example((ASK, called()), source="a:3"))


def test_a_template_for_tools_alone_is_used_with_them(make):
    tokenizer, renderer = make(
        "{{ tools | length ~ '\n' }}{% for t in tools %}{{ t.function.name }}{% endfor %}" + TOOLS
    )
    row = renderer.row(Example((ASK, SAY), tools=(tool(),)))
    assert tokenizer.decode(row.response_ids) == "Nine degrees.<|im_end|>"
    with pytest.raises(DataError, match="writes only conversations with tools"):
        renderer.row(Example((ASK, SAY)))


def test_arguments_that_are_no_object_are_refused(make):
    _, renderer = make()
    broken = Message("assistant", "", tool_calls=(ToolCall("weather", "{"),))
    with pytest.raises(DataError, match=r"^a:3: the arguments of the call of 'weather' are no JSON object"):
        renderer.row(Example((ASK, broken), source="a:3"))


def test_calls_without_ids_get_some_and_their_results_the_same(make):
    tokenizer, renderer = make(HEAD + "{{ m.content or '' }}{{ m.tool_call_id }}{{ m.name }}" + CALLS + TAIL)
    row = renderer.row(Example((ASK, called(id=""), Message("tool", "9"), SAY), tools=(tool(),)))
    assert "9call00001weather<|im_end|>" in tokenizer.decode(row.prompt_ids)


def test_a_text_to_text_model_refuses_tools_and_reasoning_apart(t5_tokenizer):
    from spintune.tokens.seq2seq import Seq2SeqRenderer

    renderer = Seq2SeqRenderer(t5_tokenizer)
    with pytest.raises(DataError, match="a:3: a text-to-text model has no form for tools"):
        renderer.row(Example((ASK, SAY), source="a:3", tools=(tool(),)))
    with pytest.raises(DataError, match="writes no reasoning apart"):
        renderer.row(Example((ASK, Message("assistant", "Nine.", reasoning="Hm."))))
