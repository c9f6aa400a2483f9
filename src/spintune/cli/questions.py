"""Questions on a terminal: each has a default, which Enter accepts. Elsewhere nobody is asked."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from spintune.errors import RecipeError
from spintune.terminal import visible

_TRIES = 5  # answers that are none of the choices


@dataclass(frozen=True)
class Questions:
    """Asks a person, or takes the defaults.

    Attributes:
        asks: whether somebody is there to answer.
        accepts: whether defaults are taken without a question, as ``--yes`` says.
    """

    asks: bool
    accepts: bool

    @classmethod
    def on_terminal(cls, yes: bool, as_json: bool) -> Questions:
        """Asks where input and output are a terminal, unless ``yes``, or for a program."""
        return cls(sys.stdin.isatty() and sys.stdout.isatty() and not (yes or as_json), yes)

    def text(self, question: str, default: str | None, flag: str, choices: Sequence[str] = ()) -> str:
        """An answer. Raises RecipeError, which names the flag, where there is neither an answer nor a default."""
        if not self.asks:
            if default is None:
                raise RecipeError(f"{question}: give {flag}")
            return default
        shown = f" [{default}]" if default else ""
        for _ in range(_TRIES):
            try:
                given = input(visible(f"{question}{shown}: ")).strip() or default
            except EOFError:
                raise RecipeError(f"{question}: the input ended; give {flag}") from None
            if given and (not choices or (given := _among(choices, given))):
                return given
            print(f"  one of: {', '.join(choices)}" if choices else "  please give one")
        raise RecipeError(f"{question}: no answer could be used; give {flag}")

    def agrees(self, question: str, default: bool, flag: str) -> bool:
        """Yes or no."""
        answer = self.text(f"{question} (y/n)", "y" if default else "n", flag, ("y", "n", "yes", "no"))
        return answer[0].lower() == "y"


def _among(choices: Sequence[str], given: str) -> str | None:
    """The choice that was given, as it is spelled; capitals count only where choices differ in nothing else."""
    alike = [choice for choice in choices if choice.casefold() == given.casefold()]
    return given if given in alike else next(iter(alike), None)
