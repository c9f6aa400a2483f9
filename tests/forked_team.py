"""A team of forks in which the first rank calls the others, without the pipeline."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from forked import start_ranks, wait_for

from spintune.ranks.environment import place_of
from spintune.ranks.team import Team, joined


def on_ranks(size: int, write: Callable[[Team], None], folder: Path, seconds: float = 300.0) -> None:
    """Calls ``write`` on the first of so many ranks; the others do what it calls."""

    def work(rank: int) -> None:
        place = place_of(os.environ)
        assert place is not None
        with joined(place) as team:
            team.lifeline.start()
            if rank:
                team.follow()
            else:
                write(team)
                team.dismiss()

    ranks = start_ranks(size, work, folder)
    codes = wait_for(ranks, seconds)
    assert codes == [0] * size, "\n".join(rank.text for rank in ranks)
