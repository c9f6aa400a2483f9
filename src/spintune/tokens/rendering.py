"""Which renderer writes a model's rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spintune.tokens.chat import Renderer
from spintune.tokens.rows import RowRenderer, Turns
from spintune.tokens.seq2seq import Seq2SeqRenderer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def build_renderer(
    tokenizer: PreTrainedTokenizerBase, template: str, turns: Turns, encoder_decoder: bool
) -> RowRenderer:
    """A chat for decoder-only models, text to text for encoder-decoders. Raises ModelError as either does."""
    kind = Seq2SeqRenderer if encoder_decoder else Renderer
    return kind(tokenizer, template, turns)
