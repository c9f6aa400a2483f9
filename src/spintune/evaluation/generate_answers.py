"""Greedy answers to prompts, with progress."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from spintune.generation.answer_counter import AnswerCounter
from spintune.generation.protocol import Generator
from spintune.generation.sampling import Sampling
from spintune.progress import Progress
from spintune.ranks.team import processes
from spintune.records import Completion


def write_answers(
    generator: Generator,
    prompts: Sequence[tuple[int, ...]],
    max_new_tokens: int,
    progress: Progress,
    title: str,
    max_len: int | None = None,
) -> list[Completion]:
    """A greedy completion of each prompt, in their order.

    Args:
        max_len: longest sequence of the model, prompt and answer together; None without a limit. It cuts an answer to a
            long prompt earlier, and leaves it empty when the prompt alone fills it. [tokens]
    """
    by_budget: dict[int, list[int]] = defaultdict(list)
    for place, prompt in enumerate(prompts):
        by_budget[max_new_tokens if max_len is None else min(max_new_tokens, max_len - len(prompt))].append(place)
    found: dict[int, Completion] = {}
    with progress.task(title, len(prompts), "answers") as task:
        for budget, places in by_budget.items():
            if budget < 1:
                found |= {place: Completion((), "", "length", 0.0) for place in places}
                task.advance(len(places))
                continue
            ended_before = 0

            def counted(ended: int, tokens: int) -> None:
                nonlocal ended_before
                ended_before += ended
                task.advance(ended, under_way=tokens)

            stop_ids: frozenset[int] = getattr(generator, "stop_ids", frozenset())
            together = processes() > 1  # who counts tokens writes all of them in this process
            count = None if together else AnswerCounter(stop_ids, budget, counted)
            asked = [prompts[place] for place in places]
            written = generator.generate(asked, Sampling(budget, temperature=0), on_token=count)
            task.advance(len(places) - ended_before, under_way=0)  # some end where the model has no more positions
            found |= dict(zip(places, written, strict=True))
    return [found[place] for place in range(len(prompts))]
