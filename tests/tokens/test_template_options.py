"""Options of a chat template reach every rendering, and those without an effect are refused."""

from __future__ import annotations

import logging

import pytest

from spintune.errors import DataError, ModelError
from spintune.records import Example, Message
from spintune.tokens.chat import ChatRenderer
from spintune.tokens.rendering import build_renderer
from spintune.tokens.template_options import options_of, variables_of, with_defaults
from spintune.tokens.templates import keep_template
from spintune.tokens.turns import _tell

ASK = Message("user", "Two plus two?")
SAY = Message("assistant", "Four.", reasoning="Two and two.")
PLAIN = [{"role": "user", "content": "Two plus two?"}]

# Closes the reasoning unless asked to think, as DeepSeek-V3.1 and EXAONE 4 do.
THINKS = (
    "{% if not thinking is defined %}{% set thinking = false %}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{% if m.role == 'assistant' %}"
    "{% if not thinking %}{{ '<think></think>' }}{% elif m.reasoning_content %}"
    "{{ '<think>' + m.reasoning_content + '</think>' }}{% endif %}{% endif %}{{ m.content + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>' }}"
    "{% if not thinking %}{{ '</think>' }}{% endif %}{% endif %}"
)
# Writes an option as it is.
ECHOES = (
    "{{ '<|im_start|>system\\n' }}{% if style is defined %}{{ style }}{% endif %}{{ '<|im_end|>\\n' }}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@pytest.fixture
def make(byte_level, ordinary_token):
    def make(template, **options):
        marks = [ordinary_token(text) for text in ("<think>", "</think>")]
        tokenizer = byte_level(template, eos="<|im_end|>", more=marks)
        return tokenizer, ChatRenderer(tokenizer, options=options)

    return make


def served(tokenizer, **options):
    return tuple(tokenizer.apply_chat_template(PLAIN, add_generation_prompt=True, return_dict=False, **options))


def test_options_reach_prompts_and_rows_token_for_token(make):
    tokenizer, renderer = make(THINKS, thinking=True)
    assert renderer.prompt([ASK]) == served(tokenizer, thinking=True) != served(tokenizer)
    row = renderer.row(Example((ASK, SAY)))
    whole = [*PLAIN, {"role": "assistant", "content": "Four.", "reasoning_content": "Two and two."}]
    theirs = tokenizer.apply_chat_template(whole, return_dict=False, thinking=True)
    assert [*row.prompt_ids, *row.response_ids] == theirs[: row.tokens]
    assert row.prompt_ids == served(tokenizer, thinking=True)


def test_data_with_reasoning_name_the_option_that_a_template_needs(make):
    with pytest.raises(
        DataError,
        match=r"^f:3: the generation prompt ends .*; set data.template_options: \{thinking: true\}, or leave it out$",
    ):
        make(THINKS)[1].row(Example((ASK, SAY), source="f:3"))
    with pytest.raises(DataError, match=r"ends the reasoning before the answer; leave it out$"):
        make(THINKS, thinking=False)[1].row(Example((ASK, SAY)))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("thinkin", "^this tokenizer: the chat template does not read thinkin of .*; it reads thinking$"),
        ("messages", "every rendering sets messages by itself; leave it out$"),
        ("tools", "every rendering sets tools"),
        ("add_generation_prompt", "every rendering sets add_generation_prompt"),
        ("documents", "every rendering sets documents"),
        ("tokenize", "every rendering sets tokenize"),
        ("bos_token", "every rendering sets bos_token"),
        ("eos_token", "every rendering sets eos_token"),
    ],
)  # fmt: skip
def test_options_that_a_template_does_not_read_are_refused(make, option, message):
    with pytest.raises(ModelError, match=message):
        make(THINKS, **{option: True})


def test_a_template_without_variables_reads_no_options(make):
    with pytest.raises(ModelError, match=r"it reads no options$"):
        make("chatml", enable_thinking=True)


def test_an_encoder_decoder_has_no_options(t5_tokenizer):
    with pytest.raises(ModelError, match=r"reads a text and no chat; leave out data.template_options$"):
        build_renderer(t5_tokenizer, "tokenizer", "last", True, options={"a": 1})


def test_the_text_of_a_control_token_in_an_option_is_refused(make):
    with pytest.raises(ModelError, match=r"data.template_options.style holds .*<\|im_end\|>"):
        make(ECHOES, style="Be kind.<|im_end|>")


def test_options_are_part_of_the_fingerprint_where_there_are_some(make):
    options = ({}, {"thinking": True}, {"thinking": False})
    assert len({make(THINKS, **given)[1].fingerprint() for given in options}) == 3


# Variables -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("{{ messages }}{{ raise_exception('') }}{{ strftime_now('') }}", set()),
        ("{% set enable_thinking = enable_thinking | default(true) %}{{ enable_thinking }}", {"enable_thinking"}),
        ("{% if thinking is not defined %}{% set thinking = false %}{% endif %}{{ thinking }}", {"thinking"}),
        ("{% for m in messages %}{% set role = m.role %}{{ role }}{% endfor %}{{ role }}", set()),
        ("{% macro say(x) %}{{ x }}{{ tone }}{% endmacro %}{{ say(1) }}", {"tone"}),
        ("{% for m in messages %}{% generation %}{{ effort }}{% endgeneration %}{% break %}{% endfor %}", {"effort"}),
    ],
)  # fmt: skip
def test_variables_of_a_template_are_those_that_it_does_not_make(source, found):
    assert variables_of(source) == found


def test_a_template_that_cannot_be_parsed_is_a_line(byte_level):
    with pytest.raises(ModelError, match=r"^this tokenizer: the chat template fails: [^\n]+$"):
        options_of(byte_level(), "{% if %}")


# Saved models ----------------------------------------------------------------------------------------------------


def test_a_saved_template_has_the_options_as_its_defaults(make):
    tokenizer, renderer = make(THINKS, thinking=True)
    prompt = renderer.prompt([ASK])
    for _ in range(2):  # each stage saves its iterate
        keep_template(tokenizer, "tokenizer", {"thinking": True})
        assert served(tokenizer) == prompt
    assert tokenizer.chat_template.count("set thinking = true") == 1
    assert served(tokenizer, thinking=False) != prompt
    assert ChatRenderer(tokenizer).prompt([ASK]) == prompt


def test_the_others_of_several_templates_stay(make):
    tokenizer, _ = make({"default": THINKS, "rag": ECHOES}, thinking=True)
    keep_template(tokenizer, "tokenizer", {"thinking": True})
    assert tokenizer.chat_template == {"default": with_defaults(THINKS, {"thinking": True}), "rag": ECHOES}
    keep_template(tokenizer, "tokenizer", {})
    assert set(tokenizer.chat_template) == {"default", "rag"}


@pytest.mark.parametrize("value", [True, 3, -2, 0.25, "plain", 'a "quote"\n\\ and {{ braces }} 😀 é'])
def test_every_kind_of_value_is_a_default_as_it_is_an_option(make, value):
    tokenizer, renderer = make(ECHOES, style=value)
    theirs = served(tokenizer, style=value)
    assert renderer.prompt([ASK]) == theirs
    keep_template(tokenizer, "tokenizer", {"style": value})
    assert served(tokenizer) == theirs


def test_what_options_change_is_told_once(make, caplog):
    _tell.cache_clear()
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            make(THINKS, thinking=True)
    told = [message for message in caplog.messages if "saved models do so by default" in message]
    assert len(told) == 1
    assert "thinking: true changes the prompt, which ends as" in told[0]
    _tell.cache_clear()
    caplog.clear()
    make(THINKS, thinking=False)
    assert not [message for message in caplog.messages if "saved models do so by default" in message]
