"""The built-in chat templates, and the choice among them and the tokenizer's own.

==============  ===================================================================================================
``tokenizer``   the chat template that comes with the tokenizer; ``tokenizer:NAME`` where it has several
``alpaca``      Stanford Alpaca's wording; a system message replaces the preamble
``chatml``      ``<|im_start|>role`` and ``<|im_end|>``, for a tokenizer that has both as tokens
``plain``       the texts themselves: a blank line after system and user, the end-of-sequence token after assistant
==============  ===================================================================================================

A template is Jinja source with the variables of ``tokenizer.apply_chat_template``.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date
from typing import TYPE_CHECKING

from spintune.errors import ModelError
from spintune.tokens.template_options import TemplateOptions, with_defaults

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SYSTEM_FIRST = (
    r"{% if message['role'] == 'system' and not loop.first %}"
    r"{{ raise_exception('a system message must come first') }}{% endif %}"
)

# The wording is tatsu-lab/stanford_alpaca's (train.py, PROMPT_DICT, without input). Its training code puts the answer
# directly after the colon; the line break is what most later Alpaca templates write.
ALPACA = (
    r"{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}{% else %}"
    r"{{ 'Below is an instruction that describes a task. "
    r"Write a response that appropriately completes the request.' }}{% endif %}"
    r"{% for message in messages %}"
    + _SYSTEM_FIRST
    + r"{% if message['role'] == 'user' %}{{ '\n\n### Instruction:\n' + message['content'] }}"
    r"{% elif message['role'] == 'assistant' %}{{ '\n\n### Response:\n' + message['content'] + eos_token }}{% endif %}"
    r"{% endfor %}"
    r"{% if add_generation_prompt %}{{ '\n\n### Response:\n' }}{% endif %}"
)

CHATML = (
    r"{% for message in messages %}"
    r"{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    r"{% endfor %}"
    r"{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

PLAIN = (
    r"{% for message in messages %}"
    r"{% if message['role'] == 'assistant' %}{{ message['content'] + eos_token }}"
    r"{% else %}{{ message['content'] + '\n\n' }}{% endif %}"
    r"{% endfor %}"
)

BUILT_IN = {"alpaca": ALPACA, "chatml": CHATML, "plain": PLAIN}


def template_source(tokenizer: PreTrainedTokenizerBase, name: str) -> str:
    """The Jinja source of template ``name`` for ``tokenizer``.

    Raises ModelError when the tokenizer has no template of its own, or lacks the tokens that a built-in one writes.
    """
    model = tokenizer.name_or_path or "this tokenizer"
    if name == "tokenizer" or name.startswith("tokenizer:"):
        return _own_template(tokenizer, model, name.partition(":")[2])
    if name not in BUILT_IN:
        raise ModelError(f"no chat template is called {name!r}; use tokenizer, {', '.join(BUILT_IN)}")
    if name == "chatml":
        missing = {"<|im_start|>", "<|im_end|>"} - tokenizer.get_added_vocab().keys()
        if missing:
            raise ModelError(
                f"{model} has no token for {' and '.join(sorted(missing))}; set data.template to plain or alpaca"
            )
    elif tokenizer.eos_token is None:
        raise ModelError(f"{model} has no end-of-sequence token, which the template {name} needs to end an answer")
    return BUILT_IN[name]


def _own_template(tokenizer: PreTrainedTokenizerBase, model: str, name: str) -> str:
    own = tokenizer.chat_template
    if not own:
        raise ModelError(f"{model} has no chat template; set data.template to alpaca, chatml or plain")
    named = own if isinstance(own, dict) else {"default": own}
    source = named.get(name or "default")
    if source is None:
        names = ", ".join(f"tokenizer:{other}" for other in sorted(named))
        raise ModelError(f"{model} has no chat template called {name or 'default'}; set data.template to {names}")
    return source


def keep_template(tokenizer: PreTrainedTokenizerBase, name: str, options: TemplateOptions) -> None:
    """Makes the template that a model was trained with, and its options, what the tokenizer writes by default."""
    own = tokenizer.chat_template
    if name != "tokenizer" or options:
        source = with_defaults(template_source(tokenizer, name), options)
        several = isinstance(own, dict) and name == "tokenizer"
        tokenizer.chat_template = {**own, "default": source} if several else source


def structural_tokens(source: str, added: Iterable[str]) -> set[str]:
    """Added tokens that a template names and that look like marks: ``<think>``, ``[TOOL_CALLS]``, not a word or spaces.

    They are control tokens although not all are flagged special: only the template may write them.
    """
    return {text for text in added if text in source and _is_mark(text)}


def _is_mark(text: str) -> bool:
    """Whether a text is a word between signs."""
    between_signs = len(text) > 2 and not (text[0].isalnum() or text[-1].isalnum())
    return between_signs and any(map(str.isalnum, text)) and not any(map(str.isspace, text))


_DIRECTIVES = (*"AaBbdeFHIjMmpSxXYy", "-d", "-m", "%")
_DAY = date(2024, 7, 26)  # what Llama 3.1's template falls back to


def with_fixed_date(source: str) -> str:
    """The template with ``strftime_now`` always on 2024-07-26.

    With today's date, a run that resumes tomorrow would train on other tokens. transformers accepts no functions for a
    template, so a macro before it supplies the date.
    """
    if "strftime_now" not in source:
        return source
    filters = "".join(f" | replace('%{code}', '{_DAY.strftime(f'%{code}')}')" for code in _DIRECTIVES)
    # transformers' environment removes the line break after a block, so the template still begins a line
    return f"{{% macro strftime_now(format) %}}{{{{ format{filters} }}}}{{% endmacro %}}\n{source}"
