"""Writes answers on all ranks that hold the model, each its share of the prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

from spintune.engine.logprobs import LogProbEngine
from spintune.engine.sharing import ENGINE, team_of, writing
from spintune.generation.answer_counter import AnswerCounter, Counted
from spintune.generation.protocol import Generator, OnToken, Prompt
from spintune.generation.sampling import Sampling, stream_keys
from spintune.ranks.dealing import deal
from spintune.ranks.team import Team
from spintune.records import Completion

GENERATOR = "generator"
"""What each rank holds: its own generator of the model that the run works with."""

_ALONE = "what the writer generates by itself"

Part = tuple[Sequence[Prompt], Sequence[bytes]]
"""Prompts that are computed together, and the random stream of each."""


class SharedGenerator:
    """A generator whose prompts are answered on all ranks. See :class:`Generator`.

    An answer does not depend on who writes it. Of several parts each is written by one rank, as one process would
    write it; a part alone is divided, which may change the last bit of a log-probability.
    """

    def __init__(self, own: Generator, engine: LogProbEngine) -> None:
        self.own, self.engine = own, engine
        self.stop_ids: frozenset[int] = getattr(own, "stop_ids", frozenset())

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        keys: Sequence[bytes] | None = None,
        on_token: OnToken | None = None,
    ) -> list[Completion]:
        """See :class:`Generator`. With ``on_token``, which may end answers, this process writes all of them."""
        team = team_of(self.engine)
        if team is None or (not self.engine.is_sharded and (on_token or len(prompts) < 2)):
            return self.own.generate(prompts, sampling, keys, on_token)
        if on_token:
            team.objects[_ALONE] = lambda: self.own.generate(prompts, sampling, keys, on_token)
            return team.call(_generate_alone)
        keys = stream_keys(prompts, sampling.seed) if keys is None else keys
        hands = [hand for hand in deal([len(prompt) for prompt in prompts], team.size) if hand]
        parts = [([prompts[i] for i in hand], [keys[i] for i in hand]) for hand in hands]
        found = team.call(_generate, parts, sampling)
        places = [index for hand in hands for index in hand]
        written = dict(zip(places, [completion for part in found for completion in part], strict=True))
        return [written[index] for index in range(len(prompts))]

    def generate_parts(self, parts: Sequence[Part], sampling: Sampling) -> list[list[Completion]]:
        """The completions of several parts."""
        team = team_of(self.engine)
        if team is None or len(parts) < 2:
            return [self.generate(prompts, sampling, keys) for prompts, keys in parts]
        return team.call(_generate, parts, sampling)

    def decode(self, ids: Sequence[int]) -> str:
        return self.own.decode(ids)


def generate_parts(
    generator: Generator, parts: Sequence[Part], sampling: Sampling, counted: Counted
) -> list[list[Completion]]:
    """The completions of several parts, on all ranks where the generator has them.

    Args:
        counted: is told of answers as they are written, where this process writes all of them.
    """
    if isinstance(generator, SharedGenerator) and team_of(generator.engine):
        return generator.generate_parts(parts, sampling)
    stop_ids: frozenset[int] = getattr(generator, "stop_ids", frozenset())
    return [
        generator.generate(prompts, sampling, keys, AnswerCounter(stop_ids, sampling.max_new_tokens, counted))
        for prompts, keys in parts
    ]


def _generate(team: Team, parts: Sequence[Part], sampling: Sampling) -> list[list[Completion]]:
    generator = cast(Generator, team.objects[GENERATOR])
    hands = deal([sum(map(len, prompts)) for prompts, _ in parts], team.size)
    with writing(cast(LogProbEngine, team.objects[ENGINE]), team):
        mine = {index: generator.generate(parts[index][0], sampling, parts[index][1]) for index in hands[team.rank]}
    everyone = {index: part for found in team.gather(mine) for index, part in found.items()}
    return [everyone[index] for index in range(len(parts))]


def _generate_alone(team: Team) -> list[Completion]:
    """The writer generates with the weights of all ranks."""
    with writing(cast(LogProbEngine, team.objects[ENGINE]), team):
        return cast(Callable[[], list[Completion]], team.objects.pop(_ALONE))() if not team.rank else []
