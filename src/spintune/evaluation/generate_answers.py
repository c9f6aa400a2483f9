"""Greedy answers to prompts, with progress."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from spintune.generation.protocol import Generator
from spintune.generation.sampling import Sampling
from spintune.progress import Progress
from spintune.records import Completion


def write_answers(
    generator: Generator,
    prompts: Sequence[tuple[int, ...]],
    max_new_tokens: int,
    progress: Progress,
    title: str,
    longest: int | None = None,
) -> list[Completion]:
    """A greedy completion of each prompt, in their order.

    Args:
        longest: tokens that the model reads and writes at most; None where it sets no limit. An answer that it leaves
            less room for is cut earlier, and is empty where it leaves none.
    """
    groups: dict[int, list[int]] = defaultdict(list)
    for place, prompt in enumerate(prompts):
        groups[max_new_tokens if longest is None else min(max_new_tokens, longest - len(prompt))].append(place)
    found: dict[int, Completion] = {}
    with progress.task(title, len(prompts), "answers") as task:
        for room, places in groups.items():
            if room < 1:
                found |= {place: Completion((), "", "length", 0.0) for place in places}
                task.advance(len(places))
                continue
            left = [room] * len(places)
            stops: frozenset[int] = getattr(generator, "stop_ids", frozenset())

            def count(index: int, token: int, left: list[int] = left, stops: frozenset[int] = stops) -> None:
                left[index] -= 1
                if left[index] == 0 or token in stops:
                    task.advance()

            sampling = Sampling(room, temperature=0)
            written = generator.generate([prompts[place] for place in places], sampling, on_token=count)
            found |= dict(zip(places, written, strict=True))
    return [found[place] for place in range(len(prompts))]
