"""Verdicts on responses, strict and loose, and accuracies over many with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from spintune.evaluation.ifeval.prompts import Instruction, Prompt
from spintune.evaluation.ifeval.rules import INSTRUCTION_RULES
from spintune.evaluation.statistics import Interval, bootstrap


@dataclass(frozen=True)
class InstructionsFollowed:
    """Which instructions of one prompt a response follows, in the prompt's order.

    ``loose`` forgives an introduction, a closing line and Markdown emphasis (see :func:`check`); what is followed
    strictly is followed loosely.
    """

    key: str
    types: tuple[str, ...]
    strict: tuple[bool, ...]
    loose: tuple[bool, ...]

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> InstructionsFollowed:
        return cls(row["key"], tuple(row["types"]), tuple(row["strict"]), tuple(row["loose"]))


def check(prompt: Prompt, response: str) -> InstructionsFollowed:
    """Checks a response against every instruction of its prompt.

    Loosely an instruction is followed when any of eight variants follows it: with and without asterisks x (whole,
    without the first line, without the last, without both). A blank response follows nothing.

    Raises MissingExtraError when an instruction asks for a language and langdetect is not installed.
    """
    return InstructionsFollowed(
        key=prompt.key,
        types=tuple(instruction.type for instruction in prompt.instructions),
        strict=tuple(_followed(instruction, [response]) for instruction in prompt.instructions),
        loose=tuple(_followed(instruction, _variants(response)) for instruction in prompt.instructions),
    )


def _followed(instruction: Instruction, variants: Sequence[str]) -> bool:
    followed = INSTRUCTION_RULES[instruction.type].followed
    return any(followed(text, **instruction.parameters) for text in variants if text.strip())


def _variants(response: str) -> list[str]:
    lines = response.split("\n")
    cut = [response, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return list(dict.fromkeys([*cut, *(text.replace("*", "") for text in cut)]))


# Accuracies ----------------------------------------------------------------------------------------------------------


def aggregate(verdicts: Sequence[InstructionsFollowed]) -> dict[str, Interval]:
    """The four accuracies of the paper, each with its 95 % interval.

    ``prompt_strict`` and ``prompt_loose`` are the share of prompts with all instructions followed,
    ``instruction_strict`` and ``instruction_loose`` the share of instructions. Prompts are what is resampled, each with
    all of its instructions, so the intervals know that instructions of one prompt succeed and fail together.
    """
    return {name: bootstrap(followed, asked) for name, (followed, asked) in _counts(verdicts).items()}


def compare(verdicts: Sequence[InstructionsFollowed], against: Sequence[InstructionsFollowed]) -> dict[str, Interval]:
    """Paired differences of the four accuracies (first minus second), each with its 95 % interval.

    Raises ValueError unless both have the same prompts in the same order.
    """
    if [(v.key, v.types) for v in verdicts] != [(v.key, v.types) for v in against]:
        raise ValueError("a paired comparison needs the same prompts in the same order")
    others = _counts(against)
    return {
        name: bootstrap([one - other for one, other in zip(followed, others[name][0], strict=True)], asked)
        for name, (followed, asked) in _counts(verdicts).items()
    }


def _counts(verdicts: Sequence[InstructionsFollowed]) -> dict[str, tuple[list[int], list[int]]]:
    """For each accuracy and each verdict: how much was followed, and of how much."""
    prompts, instructions = [1] * len(verdicts), [len(verdict.types) for verdict in verdicts]
    return {
        "prompt_strict": ([int(all(verdict.strict)) for verdict in verdicts], prompts),
        "instruction_strict": ([sum(verdict.strict) for verdict in verdicts], instructions),
        "prompt_loose": ([int(all(verdict.loose)) for verdict in verdicts], prompts),
        "instruction_loose": ([sum(verdict.loose) for verdict in verdicts], instructions),
    }


@dataclass(frozen=True)
class TypeCount:
    """How often instructions of one type were followed, of ``total``."""

    strict: int
    loose: int
    total: int


def by_type(verdicts: Sequence[InstructionsFollowed]) -> dict[str, TypeCount]:
    """Counts for each instruction type that occurs, in alphabetical order."""
    rows = [row for v in verdicts for row in zip(v.types, v.strict, v.loose, strict=True)]
    return {
        name: TypeCount(
            strict=sum(strict for kind, strict, _ in rows if kind == name),
            loose=sum(loose for kind, _, loose in rows if kind == name),
            total=sum(kind == name for kind, _, _ in rows),
        )
        for name in sorted({kind for kind, _, _ in rows})
    }
