"""Prompts as they are served, and answers with reasoning, ends and context as the template writes them."""

from __future__ import annotations

import logging

import pytest

from spintune.errors import DataError, ModelError
from spintune.records import Example, Message, ToolCall
from spintune.text.reasoning import scored_answer, without_reasoning
from spintune.tokens.chat import ChatRenderer
from spintune.tokens.rows import render
from spintune.tokens.turns import _tell

ASK, SAY = Message("user", "Two plus two?"), Message("assistant", "Four.")
AGAIN, SAID = Message("user", "And the sea?"), Message("assistant", "Blue.")
THOUGHT = "Two and two."
APART = Message("assistant", "Four.", reasoning=THOUGHT)
INSIDE = Message("assistant", f"<think>\n{THOUGHT}\n</think>\n\nFour.")

HEAD = "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|im_start|>assistant\\n' }}"
TAIL = (
    "{{ '<|im_end|>\\n' }}{% else %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n%s' }}{% endif %}"
)
# Reads reasoning apart or in the content, writes it in the last answer only, where it writes an empty block besides.
READS = (
    HEAD + "{% set r = m.reasoning_content or '' %}{% set c = m.content %}{% if '</think>' in c %}"
    "{% set r = c.split('</think>')[0].replace('<think>', '').strip() %}{% set c = c.split('</think>')[1].lstrip() %}"
    "{% endif %}{% if loop.last %}{{ '<think>\\n' + r + '\\n</think>\\n\\n' }}{% endif %}{{ c }}" + TAIL
)
# Knows the mark only to drop reasoning.
DROPS = HEAD + "{{ m.content.split('</think>')[-1] }}" + TAIL
# Knows no reasoning.
LITERAL = HEAD + "{{ m.content }}" + TAIL


def decode(tokenizer, ids):
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


@pytest.fixture
def make(byte_level, ordinary_token):
    def make(template, generation="", more=(), **options):
        marks = [ordinary_token(text) for text in ("<think>", "</think>", *more)]
        tokenizer = byte_level(template.replace("%s", generation), eos="<|im_end|>", more=marks)
        return tokenizer, ChatRenderer(tokenizer, **options)

    return make


def texts(tokenizer, renderer, *messages):
    row = renderer.row(Example(messages))
    assert renderer.prompt(messages[:-1]) == row.prompt_ids
    assert all(row.trained)
    return decode(tokenizer, row.prompt_ids), decode(tokenizer, row.response_ids)


ASKED = "<|im_start|>user\nTwo plus two?<|im_end|>\n<|im_start|>assistant\n"

# Reasoning -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [APART, INSIDE, Message("assistant", f"<think>{THOUGHT}</think>Four.")])
def test_reasoning_is_written_as_the_template_writes_it(make, answer):
    tokenizer, renderer = make(READS)
    whole = tokenizer.apply_chat_template(
        [{"role": "user", "content": ASK.content}, {"role": "assistant", "content": INSIDE.content}], tokenize=True
    )["input_ids"]
    row = renderer.row(Example((ASK, answer)))
    assert [*row.prompt_ids, *row.response_ids] == whole[:-1]
    assert texts(tokenizer, renderer, ASK, answer) == (ASKED, "<think>\nTwo and two.\n</think>\n\nFour.<|im_end|>")


@pytest.mark.parametrize("answer", [SAY, Message("assistant", "<think>\n\n</think>\n\nFour.")])
def test_an_answer_without_reasoning_keeps_the_templates_empty_block_once(make, answer):
    tokenizer, renderer = make(READS)
    assert texts(tokenizer, renderer, ASK, answer) == (ASKED, "<think>\n\n</think>\n\nFour.<|im_end|>")


@pytest.mark.parametrize("template", [READS, DROPS])
@pytest.mark.parametrize("answer", [APART, INSIDE, Message("assistant", f"{THOUGHT}\n</think>\n\nFour.")])
def test_behind_a_prompt_that_opens_a_block_the_answer_begins_inside_it(make, template, answer):
    tokenizer, renderer = make(template, "<think>\\n")
    assert texts(tokenizer, renderer, ASK, answer) == (
        f"{ASKED}<think>\n",
        "Two and two.\n</think>\n\nFour.<|im_end|>",
    )


@pytest.mark.parametrize("template", [READS, DROPS])
def test_behind_a_prompt_that_opens_a_block_an_answer_without_reasoning_closes_it(make, template):
    tokenizer, renderer = make(template, "<think>\\n")
    assert texts(tokenizer, renderer, ASK, SAY) == (f"{ASKED}<think>\n", "\n</think>\n\nFour.<|im_end|>")


def test_reasoning_that_the_template_would_drop_is_trained_and_told(make, caplog):
    tokenizer, renderer = make(DROPS)
    _tell.cache_clear()
    with caplog.at_level(logging.INFO):
        _, response = texts(tokenizer, renderer, ASK, INSIDE)
    assert response == "<think>\nTwo and two.\n</think>\n\nFour.<|im_end|>"
    assert ["drops reasoning" in record.getMessage() for record in caplog.records] == [True]


def test_reasoning_behind_a_prompt_that_closes_it_is_refused_with_its_row(make):
    _, renderer = make(DROPS, "<think>\\n\\n</think>\\n\\n")
    with pytest.raises(DataError, match=r"^a.jsonl:7: the generation prompt ends the reasoning before the answer"):
        renderer.row(Example((ASK, INSIDE), source="a.jsonl:7"))


def test_a_template_without_reasoning_refuses_it_apart_and_keeps_it_in_the_content(make):
    tokenizer, renderer = make(LITERAL)
    with pytest.raises(DataError, match=r"^a.jsonl:7: the chat template writes no reasoning; put it into the content"):
        renderer.row(Example((ASK, APART), source="a.jsonl:7"))
    assert texts(tokenizer, renderer, ASK, INSIDE)[1] == f"{INSIDE.content}<|im_end|>"


def test_marks_of_another_family_become_those_of_the_template(make):
    template = (
        HEAD + "{{ '<seed:think>' + m.reasoning + '</seed:think>' if m.reasoning else '' }}{{ m.content }}" + TAIL
    )
    tokenizer, renderer = make(template)
    assert texts(tokenizer, renderer, ASK, INSIDE)[1] == "<seed:think>Two and two.</seed:think>Four.<|im_end|>"


def test_reasoning_behind_an_end_that_is_not_the_answers(make):
    template = (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% if m.thinking and loop.last %}"
        "{{ '<|im_start|>assistant think\\n' + m.thinking + '<|eot_id|>' }}{% endif %}{{ '<|im_start|>assistant say\\n'"
        " + m.content + '<|im_end|>' }}{% else %}{{ '<|im_start|>user\\n' + m.content + '<|eot_id|>' }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}"
    )
    tokenizer, renderer = make(template)
    prompt, response = texts(tokenizer, renderer, ASK, APART)
    assert prompt.endswith("<|im_start|>assistant")
    assert response == " think\nTwo and two.<|eot_id|><|im_start|>assistant say\nFour.<|im_end|>"
    assert renderer.stop_ids == {tokenizer.convert_tokens_to_ids("<|im_end|>")}


def test_marks_in_a_question_stay_text(make):
    tokenizer, renderer = make(READS, "<think>\\n")
    row = renderer.row(Example((Message("user", "<think>a</think>"), SAY)))
    open_id, close_id = tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    ids = row.prompt_ids + row.response_ids
    assert (ids.count(open_id), ids.count(close_id)) == (1, 1)
    assert "<think>a</think>" in decode(tokenizer, row.prompt_ids)


@pytest.mark.parametrize("generation", ["", "<think>\\n", "<think>\\n\\n</think>\\n\\n"])
@pytest.mark.parametrize("said", ["End the block with </think> and then answer.", "The block ends with </think>"])
def test_an_answer_about_marks_is_text(make, generation, said):
    tokenizer, renderer = make(READS, generation)
    row = renderer.row(Example((ASK, Message("assistant", said))))
    ids = row.prompt_ids + row.response_ids
    assert decode(tokenizer, ids) == f"{ASKED}<think>\n\n</think>\n\n{said}<|im_end|>"
    open_id, close_id = tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    assert (ids.count(open_id), ids.count(close_id)) == (1, 1)  # those of the template


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>\na\n</think>\n\nb", "b"),
        ("a\n</think>\n\nb", "b"),
        ("[THINK]a[/THINK]b", "b"),
        (" b ", " b "),
        ("<think>a", "<think>a"),
        ("a</think>\nb", "b"),
        ("Close it with </think> and go on.", "Close it with </think> and go on."),
        ("Write <thinking>a</thinking> before b.", "Write <thinking>a</thinking> before b."),
    ],
)
def test_the_answer_in_a_written_text_is_what_follows_its_reasoning(text, answer):
    assert without_reasoning(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>\na\n</think>\n\nb", "b"),
        ("a\n</think>\n\nb", "b"),
        (" b ", " b "),
        ("\n<think>... 40 + 2 = 42", ""),  # cut at the limit
        ("[THINK]a", ""),
        ("<|channel|>analysis<|message|>a", ""),
        ("<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>b", "b"),
        ("Here are my reasoning steps: a", "Here are my reasoning steps: a"),  # plain words begin answers too
        ("Write <think> before b.", "Write <think> before b."),
    ],
)
def test_reasoning_that_has_no_end_gives_no_answer_to_score(text, answer):
    assert scored_answer(text) == answer


# Served and bare -------------------------------------------------------------------------------------------------


def test_bare_prompts_end_as_the_template_does_before_an_answer(make):
    tokenizer, renderer = make(READS, generation_prompt="bare")
    assert texts(tokenizer, renderer, ASK, SAY) == (f"{ASKED}<think>\n\n</think>\n\n", "Four.<|im_end|>")
    tokenizer, renderer = make(DROPS, "<think>\\n", generation_prompt="bare")
    assert texts(tokenizer, renderer, ASK, SAY) == (ASKED, "Four.<|im_end|>")


def test_which_prompt_was_chosen_is_told_once_where_they_differ(make, caplog):
    _tell.cache_clear()
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            make(DROPS, "<think>\\n")
        make(LITERAL)
    (record,) = caplog.records
    assert "a prompt ends as the template's generation prompt" in record.getMessage()
    assert "\n" not in record.getMessage()


def test_a_generation_prompt_that_leads_to_no_answer_is_told_and_not_used(make, caplog):
    _tell.cache_clear()
    with caplog.at_level(logging.INFO):
        tokenizer, renderer = make(LITERAL, "Well, ")
    assert texts(tokenizer, renderer, ASK, SAY) == (ASKED, "Four.<|im_end|>")
    assert ["prompts are bare" in record.getMessage() for record in caplog.records] == [True]


def test_the_choice_of_prompt_is_part_of_the_fingerprint(make):
    assert make(READS)[1].fingerprint() != make(READS, generation_prompt="bare")[1].fingerprint()


# History ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("earlier", [APART, INSIDE])
def test_earlier_answers_lose_the_reasoning_that_the_template_drops(make, earlier):
    tokenizer, renderer = make(READS)
    prompt, _ = texts(tokenizer, renderer, ASK, earlier, AGAIN, SAID)
    assert prompt == f"{ASKED}Four.<|im_end|>\n<|im_start|>user\nAnd the sea?<|im_end|>\n<|im_start|>assistant\n"


def test_all_turns_are_rows_of_their_own_where_the_template_writes_history_otherwise(make):
    tokenizer, renderer = make(READS, turns="all")
    example = Example((ASK, INSIDE, AGAIN, SAID), source="a.jsonl:1")
    first, second = renderer.rows(renderer.units(example))
    assert decode(tokenizer, first.response_ids) == "<think>\nTwo and two.\n</think>\n\nFour.<|im_end|>"
    assert decode(tokenizer, second.response_ids) == "<think>\n\n</think>\n\nBlue.<|im_end|>"
    assert renderer.prompt(example.messages[:1]) == first.prompt_ids
    assert renderer.prompt(example.messages[:3]) == second.prompt_ids
    rendered = render([example], renderer, 1000)
    assert (len(rendered.rows), rendered.read) == (2, 2)
    with pytest.raises(DataError, match=r"^a.jsonl:1: the chat template writes earlier turns otherwise"):
        renderer.row(example)


def test_all_turns_stay_one_row_where_history_is_what_was_trained(make):
    _, renderer = make(LITERAL, turns="all")
    example = Example((ASK, SAY, AGAIN, SAID))
    assert renderer.units(example) == [example]


def test_an_untrained_turn_is_no_row_of_its_own(make):
    _, renderer = make(READS, turns="all")
    bad = Message("assistant", "Bad.", trained=False)
    units = renderer.units(Example((ASK, SAY, AGAIN, bad, ASK, SAID)))
    assert [len(unit.messages) for unit in units] == [2, 6]


# Ends ------------------------------------------------------------------------------------------------------------


def test_an_end_of_several_tokens_is_trained_whole_and_stops_at_its_last(make):
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content }}{% if m.role == 'assistant' %}"
        "{{ '<|eot_id|>' }}{% endif %}{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    tokenizer, renderer = make(template, turns="all")
    row = renderer.row(Example((ASK, SAY, AGAIN, SAID)))
    trained = [id for id, learns in zip(row.response_ids, row.trained, strict=True) if learns]
    assert decode(tokenizer, trained) == "Four.<|eot_id|><|im_end|>Blue.<|eot_id|><|im_end|>"
    assert decode(tokenizer, renderer.end_ids) == "<|eot_id|><|im_end|>"
    assert renderer.stop_ids == {tokenizer.convert_tokens_to_ids("<|im_end|>")}


def test_where_the_next_header_ends_a_turn_eos_ends_the_answer_and_stays_out_of_history(make):
    template = (
        "{% for m in messages %}{{ '<|im_start|>' if m.role == 'user' else '<|eot_id|>' }}{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|eot_id|>' }}{% endif %}"
    )
    tokenizer, renderer = make(template)
    assert texts(tokenizer, renderer, ASK, SAY, AGAIN, SAID) == (
        "<|im_start|>Two plus two?<|eot_id|>Four.<|im_start|>And the sea?<|eot_id|>",
        "Blue.<|im_end|>",
    )


def test_an_end_that_the_template_writes_in_history_only_ends_the_answer_too(make):
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + ':' + m.content }}{% if not loop.last %}"
        "{{ '<|eot_id|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|eot_id|><|im_start|>assistant:' }}{% endif %}"
    )
    tokenizer, renderer = make(template)
    assert texts(tokenizer, renderer, ASK, SAY)[1] == "Four.<|eot_id|>"


def test_what_a_template_writes_behind_the_end_is_not_trained(make):
    tokenizer, renderer = make(LITERAL + "{% if not add_generation_prompt %}{{ '<|endoftext|>' }}{% endif %}")
    assert texts(tokenizer, renderer, ASK, SAY)[1] == "Four.<|im_end|>"


def test_a_models_own_ends_stop_generation(make):
    tokenizer, renderer = make(LITERAL, model_stop_ids=frozenset({3, 5}))
    assert renderer.stop_ids == {3, 5, tokenizer.convert_tokens_to_ids("<|im_end|>")}


# Named templates -------------------------------------------------------------------------------------------------


def test_one_of_several_templates_is_taken_by_name(byte_level):
    tokenizer = byte_level({"rag": LITERAL.replace("%s", ""), "tool_use": "{{ messages }}"}, eos="<|im_end|>")
    with pytest.raises(ModelError, match=r"called default; set data.template to tokenizer:rag, tokenizer:tool_use"):
        ChatRenderer(tokenizer)
    renderer = ChatRenderer(tokenizer, "tokenizer:rag")
    assert texts(tokenizer, renderer, ASK, SAY) == (ASKED, "Four.<|im_end|>")
    tokenizer.chat_template = {**tokenizer.chat_template, "default": LITERAL.replace("%s", "")}
    assert ChatRenderer(tokenizer).prompt([ASK]) == renderer.prompt([ASK])


def test_reasoning_does_not_follow_a_block_that_the_prompt_has_ended(make):
    """A template that writes contents as they are would put one block behind the other."""
    _, renderer = make(HEAD + "{{ '<think></think>' + m.content }}" + TAIL, "<think></think>")
    for answer in (APART, INSIDE):
        with pytest.raises(
            DataError, match=r"^the generation prompt ends the reasoning before the answer; leave it out$"
        ):
            renderer.row(Example((ASK, answer)))


def test_reasoning_does_not_stand_inside_a_block_of_the_answer(make, ordinary_token):
    """Command A: the prompt begins the response, and reasoning stands before it."""
    template = HEAD + "{{ '<|START_RESPONSE|>' + m.content.split('</think>')[-1] + '<|END_RESPONSE|>' }}" + TAIL
    controls = ("<|START_RESPONSE|>", "<|END_RESPONSE|>")
    _, renderer = make(template, "<|START_RESPONSE|>", controls)
    with pytest.raises(DataError, match=r"^the generation prompt begins the answer itself, .*; leave it out$"):
        renderer.row(Example((ASK, APART)))
    tokenizer, renderer = make(template, more=controls)
    assert texts(tokenizer, renderer, ASK, APART)[1] == (
        f"<think>\n{THOUGHT}\n</think><|START_RESPONSE|>Four.<|END_RESPONSE|><|im_end|>"
    )


def test_an_answer_in_the_turn_of_its_call_follows_the_generation_prompt(make, caplog):
    """Apertus: the turn goes on after a tool's result, and yet the generation prompt begins another."""
    _tell.cache_clear()
    call = Message("assistant", "", tool_calls=(ToolCall("add", '{"a": 2}', "call00001"),))
    tokenizer, renderer = make(
        "{% set ns = namespace(inside=false) %}{% for t in tools %}{{ t.function.name }}{% endfor %}"
        "{% for m in messages %}{% if m.role == 'user' %}{% if ns.inside %}{{ '<|im_end|>' }}{% endif %}"
        "{% set ns.inside = false %}{{ '<|im_start|>user' + m.content + '<|im_end|>' }}"
        "{% elif m.role == 'tool' %}{{ '[' + m.content + ']' }}{% else %}"
        "{% if not ns.inside %}{{ '<|im_start|>' }}{% endif %}{% set ns.inside = true %}{{ m.content }}"
        "{% for c in m.tool_calls %}{{ c.function.name + (c.function.arguments | tojson) }}{% endfor %}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>' }}{% endif %}"
    )
    tools = ('{"type": "function", "function": {"name": "add", "parameters": {}}}',)
    messages = (ASK, call, Message("tool", "4", call_id="call00001"), SAY)
    with caplog.at_level(logging.INFO):
        row = renderer.row(Example(messages, tools=tools))
    assert decode(tokenizer, row.prompt_ids).endswith('add{"a": 2}[4]<|im_start|>')
    assert decode(tokenizer, row.response_ids) == "Four.<|im_end|>"
    assert renderer.prompt(messages[:-1], tools) == row.prompt_ids
    assert any("its generation prompt begins another" in message for message in caplog.messages)


def test_rows_do_not_depend_on_whether_units_were_asked_for(make):
    _, asked = make(LITERAL, turns="all")
    _, fresh = make(LITERAL, turns="all")
    examples = [Example((ASK, SAY, AGAIN, answer)) for answer in (SAID, SAY)]
    assert [asked.units(example) for example in examples] == [[example] for example in examples]
    for example in (examples[1], examples[0], examples[0]):
        assert asked.row(example) == fresh.row(example)
