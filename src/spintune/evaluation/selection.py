"""Which held-out examples choose (models, steps, rates), and which report on what was chosen.

A model that is chosen on the examples that measure it looks better than it is. So the held-out examples fall into two
parts, about half each. A hash of the prompt alone decides: the parts are the same in every run, for every limit and
seed, and equal prompts fall together.
"""

from __future__ import annotations

from collections.abc import Sequence

from spintune.data.split import ENOUGH_HELDOUT
from spintune.records import Example
from spintune.streams import digest

MIN_SELECTION = 20
"""Fewer selection examples than this choose nothing."""


def selects(prompt: str) -> bool:
    """Whether a held-out prompt belongs to the part by which models, steps and rates are chosen."""
    return digest(f"selection:{prompt}")[0] % 2 == 0


def prompt_text(example: Example) -> str:
    """The prompt of an example as one text, as held-out answers store it."""
    return "\n\n".join(message.content for message in example.prompt)


def selection_of(examples: Sequence[Example]) -> list[Example]:
    """The examples that choose, in order."""
    return [example for example in examples if selects(prompt_text(example))]


def too_few(selection: int, heldout: int) -> str | None:
    """Why nothing can be chosen by ``selection`` of ``heldout`` examples, and what to do; None for enough of them."""
    if selection >= MIN_SELECTION:
        return None
    if not heldout:
        return f"no example is held out to choose by; set data.eval_fraction to hold out {ENOUGH_HELDOUT} or more"
    return (
        f"{selection} of {heldout} held-out examples are there to choose by, and {MIN_SELECTION} are needed; "
        f"hold out {ENOUGH_HELDOUT} or more (data.eval_fraction, data.eval_limit, or rows of data.heldout)"
    )
