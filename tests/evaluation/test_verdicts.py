"""A verdict counts in the judge's answer only, wherever its thought names one."""

from __future__ import annotations

import pytest

from spintune.evaluation.verdicts import ParsedVerdict, read_verdict
from spintune.teachers.protocol import Reply

CODE = "0123abcd"


def verdict(text: str) -> ParsedVerdict:
    return read_verdict(Reply(text), CODE, ("A", "B", "tie"))


@pytest.mark.parametrize(
    "text",
    [
        f"<think>First [[{CODE}:B]]?</think>\n[[{CODE}:A]]",
        f"First [[{CODE}:B]]?\n</think>\n\nA is better.\n[[{CODE}:A]]",
        f"[THINK][[{CODE}:B]] or [[{CODE}:tie]][/THINK]\n**[[{CODE}:A]]**",
        f"<reasoning>[[{CODE}:B]]</reasoning>```\n[[{CODE}:A]]\n```",
        f"<|channel|>analysis<|message|>[[{CODE}:B]]<|end|><|start|>assistant<|channel|>final<|message|>[[{CODE}:A]]",
    ],
)
def test_a_verdict_inside_a_thought_does_not_count(text: str) -> None:
    assert verdict(text) == ParsedVerdict("A")


@pytest.mark.parametrize("text", [f"<think>So [[{CODE}:A]]", f"<reasoning>\n[[{CODE}:A]]", f"[THINK][[{CODE}:A]]"])
def test_a_thought_without_an_end_has_no_verdict(text: str) -> None:
    assert verdict(text) == ParsedVerdict(problem="cut_off")
