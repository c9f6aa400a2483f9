"""Control tokens that are spelled out in a user's own benchmark stay text.

lm-evaluation-harness hands prompts and templates over as one text, in which a control token spelled out is one. A mark
inside each that comes from the user's rows tells them apart: it is taken out where text becomes tokens.
"""

from __future__ import annotations

import re
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from spintune.errors import ModelError
from spintune.tokens.plain import PlainEncoder
from spintune.tokens.templates import structural_tokens, template_source

_MARK = "\ue0fe"


class PlainTexts:
    """Guards texts for a tokenizer, and encodes them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str) -> None:
        self._tokenizer = tokenizer
        added = {token.content: id for id, token in tokenizer.added_tokens_decoder.items()}
        special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        try:
            source = template_source(tokenizer, template)
        except ModelError:  # it has none, and none is needed without chat
            source = ""
        controls = special | structural_tokens(source, added.keys() - special)
        self._controls = {text: id for text, id in added.items() if text in controls and len(text) > 1}
        longest_first = sorted(self._controls, key=len, reverse=True)
        self._pattern = re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")

    def guarded(self, text: str) -> str:
        """The text with a mark inside each control token."""
        return self._pattern.sub(lambda found: f"{found[0][0]}{_MARK}{found[0][1:]}", text)

    def is_guarded(self, text: str) -> bool:
        """Whether a text has marks."""
        return _MARK in text

    def encode(self, text: str, special: bool) -> list[int]:
        """The tokens of a text with marks; ``special`` adds what the tokenizer puts around a text."""
        ids: list[int] = []
        for place, piece in enumerate(self._pattern.split(text)):
            if place % 2:
                ids.append(self._controls[piece])
            elif piece:
                (found,) = self._encoder.encode([piece.replace(_MARK, "")], "control" if ids else "start")
                ids += found
        around = self._tokenizer.encode("", add_special_tokens=True) if special else []
        begins = (self._tokenizer.bos_token_id, self._tokenizer.cls_token_id)
        return [id for id in around if id in begins] + ids + [id for id in around if id not in begins]

    @cached_property
    def _encoder(self) -> PlainEncoder:
        return PlainEncoder(self._tokenizer.backend_tokenizer, self._controls)
