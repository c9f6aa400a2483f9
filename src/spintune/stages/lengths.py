"""How long a recipe's rows and answers may be for its model and data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from spintune.engine.logprobs import LogProbEngine
from spintune.errors import ModelError
from spintune.models.loading import LoadedModel, load_config, load_stop_ids, load_tokenizer
from spintune.progress import Progress
from spintune.recipe import Recipe
from spintune.record_files import Selection
from spintune.records import Example
from spintune.tokens.rendering import build_renderer
from spintune.tokens.rows import render

_LOOKED_AT = 2_000  # examples


def with_longest_answer(recipe: Recipe, examples: Sequence[Example], cache: Path, progress: Progress) -> Recipe:
    """With a number for ``spin.max_new_tokens: auto``: an even share of at most 2,000 examples decides."""
    spin, data = recipe.spin, recipe.data
    if spin is None or spin.max_new_tokens != "auto":
        return recipe
    renderer = build_renderer(
        load_tokenizer(recipe.model, cache=cache),
        data.template,
        spin.turns,
        bool(load_config(recipe.model, cache=cache).is_encoder_decoder),
        data.generation_prompt,
        load_stop_ids(recipe.model, cache=cache),
        data.template_options,
    )
    step = max(1, -(-len(examples) // _LOOKED_AT))
    spread = Selection(examples, range(0, len(examples), step))
    most = min(filter(None, (spin.longest_answer, data.max_target_length)))
    rows = render(spread, renderer, data.max_length, most, max_prompt=data.max_input_length).rows
    settled = spin.with_answers(max(len(row.response_ids) for row in rows))
    progress.note(f"answers of self-play have at most {settled.longest_answer} tokens (spin.max_new_tokens: auto)")
    return recipe.model_copy(update={"spin": settled})


def check_input_length(recipe: Recipe, loaded: LoadedModel) -> None:
    """Raises ModelError for rows that are longer than what the model reads."""
    longest = loaded.max_input_length
    has_rows = recipe.data.train or recipe.data.mixture
    if longest is not None and has_rows and recipe.data.max_length > longest:
        raise ModelError(
            f"data.max_length ({recipe.data.max_length} tokens) is more than {recipe.model} reads ({longest}); lower it"
        )


def check_row_length(recipe: Recipe, engine: LogProbEngine) -> None:
    """Raises ModelError for self-play on rows so long that scores and draws of an answer differ."""
    if recipe.spin and engine.row_limit is not None and recipe.data.max_length > engine.row_limit:
        raise ModelError(
            f"spin: beyond {engine.row_limit} tokens the rest of a row changes what {recipe.model} computes of its "
            "beginning, so answers would not be drawn as they are scored; set data.max_length to "
            f"{engine.row_limit} or less, or leave spin out"
        )
