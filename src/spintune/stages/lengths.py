"""How long a recipe's rows may be for its model, asked once the model is read."""

from __future__ import annotations

from spintune.engine.logprobs import LogProbEngine
from spintune.errors import ModelError
from spintune.models.loading import LoadedModel
from spintune.recipe import Recipe


def check_input_length(recipe: Recipe, loaded: LoadedModel) -> None:
    """Raises ModelError for rows that are longer than what the model reads."""
    longest = loaded.max_input_length
    has_rows = recipe.data.train or recipe.data.heldout or recipe.data.mixture
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
