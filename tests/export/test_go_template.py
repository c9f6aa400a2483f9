"""Templates for Ollama write what the tokenizer's own template writes, for all kinds of templates that models have."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from go_templates import render_go
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers import AutoTokenizer

from spintune.errors import ModelError
from spintune.export.go_template import Render, Turns, TurnTexts, turn_texts
from spintune.export.ollama import template_texts
from spintune.tokens.chat_template import RefusedError
from spintune.tokens.templates import ALPACA, CHATML, PLAIN

LOOP = "{% for message in messages %}"
SMOLLM = (
    LOOP + "{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_3 = (
    "{{ bos_token }}" + LOOP + "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set rest = messages[1:] %}"
    "{% else %}{% set rest = messages %}{% endif %}{% for message in rest %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' }}"
    "{% if loop.first and system is defined %}{{ '<<SYS>>\n' + system + '\n<</SYS>>\n\n' }}{% endif %}"
    "{{ message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    + LOOP
    + "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
GEMMA_3 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] + '\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}"
    "{% for message in rest %}{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + (first if loop.first else '') + message['content'] | trim"
    " + '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}" + LOOP + "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
PHI_3 = (
    LOOP + "{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
ZEPHYR = (
    LOOP + "{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
QUOTES = LOOP + "{{ message['role'] + ': \"{{' + message['content'] + '}}\"\n' }}{% endfor %}{{ 'assistant: \"{{' }}"
ALL = {
    "alpaca": ALPACA,
    "chatml": CHATML,
    "plain": PLAIN,
    "smollm": SMOLLM,
    "llama-3": LLAMA_3,
    "llama-2": LLAMA_2,
    "gemma": GEMMA,
    "gemma-3": GEMMA_3,
    "mistral": MISTRAL,
    "phi-3": PHI_3,
    "zephyr": ZEPHYR,
}
NO_SYSTEM = {"gemma", "mistral"}
CONTENTS = ["Hello.", "Two\nlines", '{{ .Content }} "quoted" \\n {% if %}', "日本語 <b>", "x"]


def jinja(source: str) -> Render:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)

    def fail(message: str) -> None:
        raise RefusedError(message)

    template = environment.from_string(source)

    def render(turns: Turns, generation: bool) -> str:
        messages = [{"role": role, "content": content} for role, content in turns]
        return template.render(
            messages=messages, add_generation_prompt=generation, bos_token="<s>", eos_token="</s>", raise_exception=fail
        )

    return render


def as_ollama(texts: TurnTexts, turns: Turns) -> str:
    """Ollama puts the Modelfile's SYSTEM before a conversation without a system message."""
    if texts.default_system is not None and turns[0][0] != "system":
        turns = [("system", texts.default_system), *turns]
    return render_go(texts.go(), [{"role": role, "content": content} for role, content in turns])


def conversations(system: bool) -> list[Turns]:
    contents = itertools.cycle(CONTENTS)
    found: list[Turns] = []
    for answers in range(4):
        for begins in (False, True) if system else (False,):
            turns = [("system", next(contents))] if begins else []
            for _ in range(answers):
                turns += [("user", next(contents)), ("assistant", next(contents))]
            found.append([*turns, ("user", next(contents))])
    return found


@pytest.mark.parametrize("name", ALL)
def test_ollama_writes_the_text_of_the_chat_template(name: str) -> None:
    render = jinja(ALL[name])
    texts = turn_texts(render)
    for turns in conversations(name not in NO_SYSTEM):
        assert as_ollama(texts, turns) == render(turns, True), turns


def test_the_default_system_message_is_told_apart_from_the_template() -> None:
    texts = turn_texts(jinja(SMOLLM))
    assert texts.default_system == "You are a helpful AI assistant named SmolLM"
    assert turn_texts(jinja(CHATML)).default_system is None


def test_a_first_token_that_ollama_adds_is_left_out() -> None:
    texts = turn_texts(jinja(LLAMA_3), "<s>")
    turns: Turns = [("system", "a"), ("user", "b")]
    assert "<s>" + as_ollama(texts, turns) == jinja(LLAMA_3)(turns, True)
    assert "<s>" + as_ollama(texts, turns[1:]) == jinja(LLAMA_3)(turns[1:], True)


def test_an_answer_that_was_begun_is_left_open() -> None:
    written = render_go(
        turn_texts(jinja(CHATML)).go(), [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    )
    assert written == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb"


def test_a_system_message_of_a_template_without_one_stands_before_the_question() -> None:
    written = render_go(
        turn_texts(jinja(MISTRAL)).go(), [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    )
    assert written == "<s>[INST] s\n\nu [/INST]"


@pytest.mark.parametrize(
    "source",
    [
        LOOP + "{{ loop.index ~ message['content'] }}{% endfor %}",
        LOOP + "{{ message['content'] | upper }}{% endfor %}",
        "{{ messages[-1]['content'] }}",
        LOOP + "{% if loop.last %}{{ '!' }}{% endif %}{{ message['content'] }}{% endfor %}",
        "{{ raise_exception('no') }}",
    ],
)
def test_a_template_that_does_more_is_refused_in_one_line(source: str) -> None:
    with pytest.raises(ModelError, match="cannot be written for Ollama, which reads no Jinja") as caught:
        turn_texts(jinja(source))
    assert "\n" not in str(caught.value)


def test_the_renderer_of_this_test_knows_gos_rules() -> None:
    """From the documentation of text/template, by hand."""
    cases: dict[str, str] = {
        '{{ $x := "a" }}{{ range $i, $m := .Messages }}{{ $x }}{{ $x = "b" }}{{ end }}': "ab",
        "{{ range $i, $m := .Messages }}{{ $i }}{{ if eq $i 0 }}a{{ else if eq $i 1 }}b{{ end }}{{ end }}": "0a1b",
        "{{ if eq 1 2 }}a{{ else if eq 2 3 }}b{{ else }}c{{ end }}d": "cd",
        '{{ if and (eq (len .Messages) 2) (ne "a" "b") }}yes{{ end }}': "yes",
        "a  {{- 3 -}}  b": "a3b",
        "{{ range $i, $m := .Messages }}{{ len (slice $.Messages $i) }}{{ .Role }}{{ end }}": "2user1user",
    }
    messages: list[Any] = [{"role": "user", "content": "x"}, {"role": "user", "content": "y"}]
    for source, expected in cases.items():
        assert render_go(source, messages) == expected


def test_a_template_that_never_ends_is_one_line(tiny_model: Path) -> None:
    """It is foreign code, also here: the limits of training hold."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = "{% for a in range(99999) %}{% for b in range(99999) %}{{ b }}{% endfor %}{% endfor %}"
    with pytest.raises(ModelError, match="the chat template fails") as caught:
        template_texts(tokenizer)
    assert "\n" not in str(caught.value)
