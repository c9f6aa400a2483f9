"""Ends an answer at a stop text, whichever tokens spell it."""

from __future__ import annotations

from collections.abc import Callable, Sequence


class StopTexts:
    """Watches one answer for the texts that end it.

    Args:
        decode: turns tokens into text; it decides whether control tokens count as text.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], texts: Sequence[str]) -> None:
        self.decode, self.texts = decode, texts
        self.ids: list[int] = []
        # every token spells at least one byte, and one more may begin before the text
        self.reach = max((len(text.encode()) for text in texts), default=0) + 1

    def after(self, token: int) -> bool:
        """Takes the next token and says whether the answer ends with it."""
        self.ids.append(token)
        return bool(self.texts) and self.found(self.decode(self.ids[-self.reach :])) is not None

    def found(self, text: str) -> int | None:
        """Index in ``text`` at which the first stop text begins; None if there is none."""
        return min((at for stop in self.texts if (at := text.find(stop)) >= 0), default=None)
