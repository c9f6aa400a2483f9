"""A template that never ends, or that fills the memory, is one line; an ordinary one pays little for it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from spintune.errors import ModelError
from spintune.tokens import limits
from spintune.tokens.chat import ChatRenderer
from spintune.tokens.templates import CHATML

MANY = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
DOUBLED = "{% set ns = namespace(s='x') %}{% for i in range(40) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}"


@pytest.mark.parametrize(
    ("bomb", "why"),
    [
        (MANY, "it runs more than 20,000 steps"),
        ("{% macro f() %}" + MANY + "{% endmacro %}{{ f() }}", "it runs more than 20,000 steps"),
        (DOUBLED, "it takes more than 60 MB"),
        ("{{ 'x' * 99999999999 }}", "computes with huge numbers"),
        ("{{ 'x' * 9999 * 9999 * 9999 }}", "computes with huge numbers"),
        ("{{ 9 ** 9 ** 9 }}", "computes with huge numbers"),
    ],
)
def test_a_template_that_does_too_much_is_stopped(
    bomb: str, why: str, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_LINES", 20_000)
    monkeypatch.setattr(limits, "MAX_GROWTH", 60_000)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = bomb + CHATML
    before = sys.gettrace()
    with pytest.raises(ModelError, match=f"chat template .*{why}"):
        ChatRenderer(tokenizer, "tokenizer")
    assert sys.gettrace() is before
