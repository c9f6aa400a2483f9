"""Ends an answer at a text, whatever tokens it is written with."""

from __future__ import annotations

from collections.abc import Callable, Sequence


class StopTexts:
    """Watches one answer for the texts that end it.

    Args:
        decode: the text of some tokens; it decides whether control tokens count as text.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], texts: Sequence[str]) -> None:
        self.decode, self.texts = decode, texts
        self.ids: list[int] = []
        # a token is a byte at least, and one more may begin before the text
        self.reach = max((len(text.encode()) for text in texts), default=0) + 1

    def after(self, token: int) -> bool:
        """Whether the answer ends with this token."""
        self.ids.append(token)
        return bool(self.texts) and self.found(self.decode(self.ids[-self.reach :])) is not None

    def found(self, text: str) -> int | None:
        """Where the first of the texts begins in ``text``; None where there is none."""
        return min((at for stop in self.texts if (at := text.find(stop)) >= 0), default=None)
