"""The choice of a renderer for a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spintune.tokens.chat import ChatRenderer
from spintune.tokens.rows import RowRenderer, Turns
from spintune.tokens.seq2seq import Seq2SeqRenderer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def build_renderer(
    tokenizer: PreTrainedTokenizerBase, template: str, turns: Turns, encoder_decoder: bool
) -> RowRenderer:
    """A chat renderer for decoder-only models, a text-to-text renderer for encoder-decoders.

    Raises ModelError when tokenizer, template and turns do not go together.
    """
    kind = Seq2SeqRenderer if encoder_decoder else ChatRenderer
    return kind(tokenizer, template, turns)
