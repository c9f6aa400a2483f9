"""Encoding of plain text that never yields a control token."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Literal

import orjson
from tokenizers import Tokenizer

from spintune.errors import ModelError
from spintune.typed_json import JsonObject

Position = Literal["start", "control", "cut"]
"""Where a text stands: at the very start, right after a control token, or right after other text.

It matters for tokenizers that put a space before text (SentencePiece's ``▁``). They do so at the start and, depending
on their settings, after a control token; a text that continues another one must get none.
"""


class PlainEncoder:
    """Encodes text with the vocabulary of a tokenizer, except its control tokens.

    It works on copies of the tokenizer, so the state of the given one (truncation, padding) neither matters nor
    changes. ``controls`` are the added tokens that text must never become; other added tokens (Gemma's runs of spaces,
    ``<think>`` in a template that does not write it) are ordinary vocabulary.
    """

    def __init__(self, tokenizer: Tokenizer, controls: Iterable[str]):
        texts = sorted(controls)
        settings = orjson.loads(tokenizer.to_str())
        settings |= {"truncation": None, "padding": None}
        for token in settings["added_tokens"]:
            token["special"] = token["special"] or token["content"] in texts
        self.digest: str = hashlib.sha256(orjson.dumps(settings)).hexdigest()
        settings["model"] = _without_pieces(settings["model"], texts)
        self._encoders = _by_position(settings)
        self.unknown_id: int | None = _unknown_id(tokenizer, settings)
        self._forbidden = frozenset(map(tokenizer.token_to_id, texts)) - {self.unknown_id}
        self._vocabulary = tokenizer.get_vocab()
        # a lookahead finds overlapping occurrences too
        self._control_text = re.compile(f"(?={'|'.join(map(re.escape, texts)) or '(?!)'})")

    def encode(self, texts: Sequence[str], position: Position) -> list[list[int]]:
        """The ids of each text, all at ``position``.

        Raises ModelError when the vocabulary can spell a text only with a control token.
        """
        encodings = self._encoders[position].encode_batch_fast(list(texts), add_special_tokens=False)
        rows = [encoding.ids for encoding in encodings]
        return [
            ids if self._forbidden.isdisjoint(ids) else self._broken(text, position)
            for text, ids in zip(texts, rows, strict=True)
        ]

    def unknown_characters(self, text: str) -> str:
        """The characters of ``text`` that the vocabulary lacks, each once."""
        characters = [*dict.fromkeys(text)]
        return "".join(c for c in characters if self.unknown_id in self._ids(c, "cut"))

    def highest_token(self, written: Iterable[int]) -> tuple[int, str]:
        """The highest id among ``written`` and those that text may get, and its text."""
        written = frozenset(written)
        return max((id, text) for text, id in self._vocabulary.items() if id in written or id not in self._forbidden)

    def _broken(self, text: str, position: Position) -> list[int]:
        """Encodes ``text`` in pieces, for vocabularies that also hold a control token's text as an ordinary entry.

        Pieces end inside each control text. Where a normalizer turns something else into a control text, every
        character is a piece.
        """
        inside_controls = [match.start() + 1 for match in self._control_text.finditer(text)]
        for breaks in (inside_controls, range(1, len(text))):
            bounds = [0, *breaks, len(text)]
            pieces = [text[begin:end] for begin, end in pairwise(bounds)]
            ids = [*self._ids(pieces[0], position)]
            for piece in pieces[1:]:
                ids += self._ids(piece, "cut")
            if self._forbidden.isdisjoint(ids):
                return ids
        raise ModelError(f"the tokenizer spells the plain text {text[:40]!r} with a control token")

    def _ids(self, text: str, position: Position) -> list[int]:
        return self._encoders[position].encode(text, add_special_tokens=False).ids


def _by_position(settings: JsonObject) -> dict[Position, Tokenizer]:
    """One tokenizer per position; positions with equal settings share one."""
    after_control = {**settings, "pre_tokenizer": _never_after_first(settings["pre_tokenizer"])}
    after_text = {
        **settings,
        "normalizer": _without_prefix(settings["normalizer"]),
        "pre_tokenizer": _without_prefix(settings["pre_tokenizer"]),
    }
    built: dict[bytes, Tokenizer] = {}

    def build(changed: JsonObject) -> Tokenizer:
        text = orjson.dumps(changed)
        if text not in built:
            built[text] = Tokenizer.from_str(text.decode())
            built[text].encode_special_tokens = True
        return built[text]

    return {"start": build(settings), "control": build(after_control), "cut": build(after_text)}


def _without_pieces(model: JsonObject, controls: Sequence[str]) -> JsonObject:
    """A Unigram model (SentencePiece's) that cannot spell its control tokens; ids and other pieces stay as they are.

    T5's vocabulary lists ``</s>`` and the others as ordinary pieces, the likeliest of all. A control token of a single
    character stays, because text could not be spelled without it.
    """
    if model["type"] != "Unigram":
        return model
    hidden = {text: f"\ue000{number}\ue001" for number, text in enumerate(controls) if len(text) > 1}
    return {**model, "vocab": [[hidden.get(piece, piece), score] for piece, score in model["vocab"]]}


def _never_after_first(step: JsonObject | None) -> JsonObject | None:
    """The pre-tokenizer for text that is not at the start, where ``prepend_scheme: first`` adds no space."""
    if step is None:
        return None
    if step["type"] == "Sequence":
        return {**step, "pretokenizers": [_never_after_first(inner) for inner in step["pretokenizers"]]}
    if step["type"] == "Metaspace" and step["prepend_scheme"] == "first":
        return {**step, "prepend_scheme": "never"}
    return step


def _without_prefix(step: JsonObject | None) -> JsonObject | None:
    """A normalizer or pre-tokenizer that adds no space before the text."""
    if step is None or step["type"] == "Prepend":
        return None
    if step["type"] == "Sequence":
        name = "normalizers" if "normalizers" in step else "pretokenizers"
        return {**step, name: [kept for inner in step[name] if (kept := _without_prefix(inner)) is not None]}
    if step["type"] == "Metaspace":
        return {**step, "prepend_scheme": "never"}
    if step["type"] == "ByteLevel":
        return {**step, "add_prefix_space": False}
    return step


def _unknown_id(tokenizer: Tokenizer, settings: JsonObject) -> int | None:
    """The id of characters outside the vocabulary. It is flagged special, and yet plain text may yield it."""
    model = settings["model"]
    if "unk_id" in model:
        return model["unk_id"]
    return None if model.get("unk_token") is None else tokenizer.token_to_id(model["unk_token"])
