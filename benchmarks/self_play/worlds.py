"""Worlds with a checker: every answer is right or wrong, and a small model errs near the truth.

sums     running totals of digits: "sum 4 7 2 9 3" -> "4 11 13 22 25"; one right answer
lists    reverse, sort or shift six letters, or two of these in turn; one right answer
paths    a walk through a graph that is nowhere written down, from one node to another; many right answers
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from spintune.records import Example, Message

LETTERS = tuple("abcdefghijklmnopqrst")


@dataclass(frozen=True)
class Problem:
    """A prompt with one right answer, in words."""

    prompt: tuple[str, ...]
    answer: tuple[str, ...]

    @property
    def example(self) -> Example:
        return Example((Message("user", " ".join(self.prompt)), Message("assistant", " ".join(self.answer))))


class World(Protocol):
    """What there is to learn. All draws are pure functions of a random generator."""

    name: str
    words: Sequence[str]
    longest: int
    """Words of the longest answer."""
    one_answer: bool
    """Whether a prompt has a single right answer."""

    def draw(self, random: np.random.Generator) -> Problem:
        """A prompt and an answer as people would give it."""

    def is_right(self, problem: Problem, answer: Sequence[str]) -> bool:
        """Whether an answer, in words, is right."""


class _OneAnswer:
    one_answer = True

    def is_right(self, problem: Problem, answer: Sequence[str]) -> bool:
        """Whether it is the right answer."""
        return tuple(answer) == problem.answer


class Sums(_OneAnswer):
    """Running totals of digits. A number is one word, so sums are known by heart or not at all."""

    name = "sums"

    def __init__(self, length: int = 6) -> None:
        self.longest = length
        self.words = ["sum", *map(str, range(9 * length + 1))]

    def draw(self, random: np.random.Generator) -> Problem:
        """Digits, and their running totals."""
        digits = random.integers(0, 10, self.longest).tolist()
        return Problem(("sum", *map(str, digits)), tuple(map(str, itertools.accumulate(digits))))


OPERATIONS: Mapping[str, Callable[[Sequence[str]], list[str]]] = {
    "reverse": lambda items: list(items)[::-1],
    "sort": sorted,
    "shift": lambda items: [LETTERS[(LETTERS.index(item) + 1) % len(LETTERS)] for item in items],
}


class Lists(_OneAnswer):
    """One or two operations on a list of letters."""

    name = "lists"

    def __init__(self, length: int = 6) -> None:
        self.longest = length
        self.words = ["then", *OPERATIONS, *LETTERS]
        twice = [(first, "then", second) for first in OPERATIONS for second in OPERATIONS if first != second]
        self.orders: list[tuple[str, ...]] = [*((name,) for name in OPERATIONS), *twice]

    def draw(self, random: np.random.Generator) -> Problem:
        """An order, a list, and the list after it."""
        order = self.orders[int(random.integers(len(self.orders)))]
        items = random.choice(LETTERS, self.longest, replace=False).tolist()
        result = items
        for operation in order[::2]:
            result = OPERATIONS[operation](result)
        return Problem((*order, *items), tuple(result))


class Paths:
    """Walks in a fixed random graph: the prompt names both ends, the answer is every node on the way.

    People walk at random without returning to a node, so most prompts have many right answers.
    """

    name = "paths"
    one_answer = False

    def __init__(self, nodes: int = 60, degree: int = 3, shortest: int = 3, longest: int = 7) -> None:
        random = np.random.default_rng(0)
        self.nodes = [f"n{number}" for number in range(nodes)]
        others = {node: [other for other in self.nodes if other != node] for node in self.nodes}
        self.next = {node: random.choice(others[node], degree, replace=False).tolist() for node in self.nodes}
        self.shortest, self.longest = shortest, longest
        self.words = ["from", "to", *self.nodes]

    def draw(self, random: np.random.Generator) -> Problem:
        """A walk, and its two ends."""
        while True:
            length = int(random.integers(self.shortest, self.longest + 1))
            walk = [self.nodes[int(random.integers(len(self.nodes)))]]
            while len(walk) < length:
                onward = [node for node in self.next[walk[-1]] if node not in walk]
                if not onward:
                    break
                walk.append(onward[int(random.integers(len(onward)))])
            if len(walk) == length:
                return Problem(("from", walk[0], "to", walk[-1]), tuple(walk))

    def is_right(self, problem: Problem, answer: Sequence[str]) -> bool:
        """Whether it leads from one end to the other along edges, without returning to a node."""
        if len(answer) < 2 or (answer[0], answer[-1]) != (problem.prompt[1], problem.prompt[3]):
            return False
        steps = all(after in self.next.get(before, ()) for before, after in itertools.pairwise(answer))
        return steps and len(set(answer)) == len(answer)


WORLDS: Mapping[str, Callable[[], World]] = {"sums": Sums, "lists": Lists, "paths": Paths}


def distinct(world: World, seed: int, count: int) -> list[Problem]:
    """``count`` problems with different prompts: any two disjoint slices share none."""
    return list(itertools.islice(_distinct(world, np.random.default_rng([seed, 1])), count))


def _distinct(world: World, random: np.random.Generator) -> Iterator[Problem]:
    seen = set()
    while True:
        problem = world.draw(random)
        if problem.prompt not in seen:
            seen.add(problem.prompt)
            yield problem
