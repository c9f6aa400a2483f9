"""How long generated answers may be where the recipe says ``spin.max_new_tokens: auto``."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator

from spintune.data.preferences import read_answers, turns_of_example
from spintune.errors import DataError
from spintune.models.loading import load_config, load_stop_ids, load_tokenizer
from spintune.record_files import Selection
from spintune.records import Example
from spintune.stages.context import RunContext
from spintune.tokens.rendering import build_renderer
from spintune.tokens.rows import render

_LOOKED_AT = 100_000  # training examples
_COUNTED = 200  # answers with the most characters, whose tokens are counted


def settle_answer_length(context: RunContext) -> None:
    """Gives the run a number for ``spin.max_new_tokens: auto``, once its data are there."""
    recipe, data = context.recipe, context.recipe.data
    if recipe.spin is None or recipe.spin.max_new_tokens != "auto":
        return
    renderer = build_renderer(
        load_tokenizer(recipe.model, cache=context.cache),
        data.template,
        "last",  # of each turn that is played
        bool(load_config(recipe.model, cache=context.cache).is_encoder_decoder),
        data.generation_prompt,
        load_stop_ids(recipe.model, cache=context.cache),
        data.template_options,
    )
    longest = heapq.nlargest(_COUNTED, _answers(context), key=_characters)
    most = min(filter(None, (recipe.spin.longest_answer, data.max_target_length)))
    try:
        rows = render(longest, renderer, data.max_length, most, max_prompt=data.max_input_length).rows
        spin = recipe.spin.settled(max(len(row.response_ids) for row in rows))
    except DataError:  # none of these fits; the stages say so where that ends the run
        spin = recipe.spin.model_copy(update={"max_new_tokens": most})
    context.settle(recipe.model_copy(update={"spin": spin}))
    told = f"answers of self-play have at most {spin.longest_answer} tokens (spin.max_new_tokens: auto)"
    context.progress.note(told)


def _characters(example: Example) -> int:
    answer = example.messages[-1]
    return len(answer.content) + len(answer.reasoning) + sum(len(str(call)) for call in answer.tool_calls)


def _answers(context: RunContext) -> Iterator[Example]:
    """Examples that end with answers that may be played: real ones, an even share where they are many, and given."""
    spin, step = context.recipe.spin, max(1, -(-len(context.train) // _LOOKED_AT))
    train = context.train if step == 1 else Selection(context.train, range(0, len(context.train), step))
    for example in itertools.chain(train, context.heldout):
        yield from turns_of_example(example) if spin and spin.turns == "all" else (example,)
    if spin and spin.generated:
        yield from itertools.chain.from_iterable(read_answers(spin.generated).values())
