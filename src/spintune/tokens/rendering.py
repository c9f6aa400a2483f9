"""The choice of a renderer for a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spintune.errors import ModelError
from spintune.tokens.chat import ChatRenderer
from spintune.tokens.rows import RowRenderer, Turns
from spintune.tokens.seq2seq import Seq2SeqRenderer
from spintune.tokens.template_options import TemplateOptions
from spintune.tokens.turns import GenerationPrompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def build_renderer(
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    turns: Turns,
    encoder_decoder: bool,
    generation_prompt: GenerationPrompt = "served",
    model_stop_ids: frozenset[int] = frozenset(),
    options: TemplateOptions | None = None,
) -> RowRenderer:
    """A chat renderer for decoder-only models, a text-to-text renderer for encoder-decoders.

    ``model_stop_ids`` are the ids at which the model's own generation settings stop; ``options`` are variables of the
    chat template.
    Raises ModelError when tokenizer, template and turns do not go together.
    """
    if encoder_decoder:
        if options:
            name = tokenizer.name_or_path or "this tokenizer"
            raise ModelError(f"{name} reads a text and no chat; leave out data.template_options")
        return Seq2SeqRenderer(tokenizer, template, turns)
    return ChatRenderer(tokenizer, template, turns, generation_prompt, model_stop_ids, options)


def check_embeddings(renderer: RowRenderer, rows: int, name: str) -> None:
    """Raises ModelError when a row may hold a token without an embedding; the model ``name`` has ``rows`` of them."""
    id, text = renderer.highest_token()
    if id >= rows:
        raise ModelError(
            f"{name}: the tokenizer gives the token {text!r} the id {id}, but the model has embeddings for {rows} "
            f"tokens (0 to {rows - 1}); use the tokenizer that belongs to the model"
        )
