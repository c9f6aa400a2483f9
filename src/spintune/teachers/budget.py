"""A hard limit in tokens or dollars, which also holds while many requests are under way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from spintune.errors import RecipeError
from spintune.teachers.protocol import Outcome, Request, Usage, usage_of


@dataclass(frozen=True)
class Cost(Usage):
    """What was used, and its price. [US dollars]"""

    dollars: float = 0.0


@dataclass(frozen=True)
class Budget:
    """Limits of spending, over all runs that share a file of replies.

    Attributes:
        tokens: of prompts and answers together; None for no limit.
        dollars: at the prices below; None for no limit. [US dollars]
        prompt_price, completion_price: [US dollars per million tokens]

    Raises RecipeError for a limit in dollars without a price.
    """

    tokens: int | None = None
    dollars: float | None = None
    prompt_price: float = 0.0
    completion_price: float = 0.0

    def __post_init__(self) -> None:
        if self.dollars is not None and not (self.prompt_price > 0 or self.completion_price > 0):
            raise RecipeError(
                "a budget in dollars needs prompt_price and completion_price (dollars per million tokens)"
            )

    def cost(self, usage: Usage) -> Cost:
        """What was used, with its price.

        >>> Budget(prompt_price=0.5, completion_price=2).cost(Usage(1, 2_000_000, 1_000_000)).dollars
        3.0
        """
        dollars = (usage.prompt_tokens * self.prompt_price + usage.completion_tokens * self.completion_price) / 1e6
        return Cost(usage.requests, usage.prompt_tokens, usage.completion_tokens, dollars)

    def covers(self, usage: Usage) -> bool:
        """Whether the usage stays within all limits."""
        return (self.tokens is None or usage.tokens <= self.tokens) and (
            self.dollars is None or self.cost(usage).dollars <= self.dollars
        )

    def __str__(self) -> str:
        limits = [] if self.tokens is None else [f"{self.tokens:,} tokens"]
        return " and ".join([*limits, *([] if self.dollars is None else [f"${self.dollars:,.2f}"])])


class Ledger:
    """What was spent, and what is held for the requests under way."""

    def __init__(self, budget: Budget, spent: Usage) -> None:
        self._budget = budget
        self._held = Usage()
        self.spent = spent

    def hold(self, ceiling: Usage) -> bool:
        """Holds the most that an attempt can use. Returns False when the budget does not cover it."""
        if not self._budget.covers(self.spent + self._held + ceiling):
            return False
        self._held += ceiling
        return True

    def settle(self, ceiling: Usage, used: Usage) -> None:
        """Replaces what was held by what was used."""
        self._held -= ceiling
        self.spent += used


class LedgerCall:
    """The part of the budget that one request holds during its attempts.

    Each attempt needs a hold of the request's ceiling. An attempt that the server refused is free, and the next attempt
    takes over its hold. An interrupted attempt may be charged, so its hold counts as spent.

    Args:
        journal: is told of each hold before the attempt, and with a negative amount of one that turned out to be free.
    """

    def __init__(self, request: Request, ledger: Ledger, journal: Callable[[Usage], None] = lambda usage: None) -> None:
        self.request = request
        self._journal = journal
        self._ledger = ledger
        self._ceiling = request.ceiling
        self._held = Usage()
        self._lost = 0

    def reserve(self) -> bool:
        """Makes sure that the next attempt has a hold. Returns False when the budget does not cover it."""
        if self._held == Usage() and self._ledger.hold(self._ceiling):
            self._held = self._ceiling
            self._journal(self._held)
        return self._held == self._ceiling

    def lose(self) -> None:
        """Counts an interrupted attempt."""
        self._end_hold(used=self._ceiling)
        self._lost += 1

    def settle(self, outcome: Outcome) -> Outcome:
        """Counts what the outcome used. Returns the outcome with the number of lost attempts."""
        self._end_hold(used=usage_of(self.request, outcome))
        return replace(outcome, lost=self._lost)

    def release(self) -> None:
        """Ends a request whose attempts the server refused: free."""
        if self._held != Usage():
            self._journal(Usage() - self._held)
        self._end_hold(used=Usage())

    def give_up(self) -> None:
        """Ends a request that was canceled under way: perhaps charged."""
        self._end_hold(used=self._held)

    def _end_hold(self, used: Usage) -> None:
        self._ledger.settle(self._held, used)
        self._held = Usage()


def replies_in_words(thoughts: int, left_out: Mapping[str, int]) -> list[str]:
    """Sentences about replies that began with reasoning, or were asked for without a parameter, by its name."""
    told = [f"{thoughts:,} replies began with reasoning, which was set apart."] if thoughts else []
    for name, count in left_out.items():
        told.append(f"{count:,} were asked for without {name}, which the server refuses.")
    return told
