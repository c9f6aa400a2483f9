"""Checks responses against the instructions of their prompts, strictly and loosely, and scores them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from spintune.errors import DataError
from spintune.evaluation.ifeval.prompts import Instruction, Prompt
from spintune.evaluation.ifeval.rules import INSTRUCTION_RULES
from spintune.evaluation.scores import ItemScore, ScoreScale

IFEVAL_SCALES = {
    "prompt_strict": ScoreScale(right_or_wrong=True),
    "instruction_strict": ScoreScale(),
    "prompt_loose": ScoreScale(right_or_wrong=True),
    "instruction_loose": ScoreScale(),
}
"""The four accuracies of the paper: the share of prompts with all instructions followed, and of instructions."""


@dataclass(frozen=True)
class InstructionsFollowed:
    """Which instructions of one prompt a response follows, in the prompt's order.

    ``loose`` forgives an introduction, a closing line and Markdown emphasis (see :func:`check`). What is followed
    strictly is also followed loosely.
    """

    key: str
    types: tuple[str, ...]
    strict: tuple[bool, ...]
    loose: tuple[bool, ...]


def check(prompt: Prompt, response: str) -> InstructionsFollowed:
    """Checks a response against every instruction of its prompt.

    An instruction is followed loosely when any of eight variants of the response follows it: whole, without the first
    line, without the last, or without both, each with and without asterisks. A blank response follows nothing.

    Raises DataError for a response that is no text, and MissingExtraError when an instruction asks for a language and
    langdetect is not installed.
    """
    if not isinstance(response, str):
        raise DataError(f"the response to prompt {prompt.key} is {response!r:.60}, not a text; give one, if only empty")
    variants = _variants(response)
    return InstructionsFollowed(
        key=prompt.key,
        types=tuple(instruction.type for instruction in prompt.instructions),
        strict=tuple(_followed(instruction, [response]) for instruction in prompt.instructions),
        loose=tuple(_followed(instruction, variants) for instruction in prompt.instructions),
    )


def _followed(instruction: Instruction, variants: Sequence[str]) -> bool:
    followed = INSTRUCTION_RULES[instruction.type].followed
    return any(followed(text, **instruction.parameters) for text in variants if text.strip())


def _variants(response: str) -> list[str]:
    lines = response.split("\n")
    cut = [response, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return list(dict.fromkeys([*cut, *(text.replace("*", "") for text in cut)]))


def item_score(prompt: Prompt, found: InstructionsFollowed) -> ItemScore:
    """The scores of one prompt by :data:`IFEVAL_SCALES`.

    Instructions are a ratio of sums, so that intervals resample prompts: their instructions succeed and fail together.
    """
    instructions = float(len(found.types))
    scores = {
        "prompt_strict": float(all(found.strict)),
        "instruction_strict": float(sum(found.strict)),
        "prompt_loose": float(all(found.loose)),
        "instruction_loose": float(sum(found.loose)),
    }
    weights = {"instruction_strict": instructions, "instruction_loose": instructions}
    return ItemScore(prompt.key, prompt.text, scores, weights)
