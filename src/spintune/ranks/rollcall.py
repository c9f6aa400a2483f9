"""How the ranks meet. One that fails before says so, so that the others do not wait for it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from datetime import timedelta
from typing import TYPE_CHECKING

from spintune.errors import RecipeError
from spintune.ranks.environment import Place, place_of
from spintune.ranks.lifeline import Lost

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

_HERE, _FAILED, _KNOWN = "spintune/here", "spintune/failed", "spintune/known"
_TELL_SECONDS = 60.0
"""How long a rank that failed tries to tell it to those that start later."""

_is_settled = False


def meet(place: Place, seconds: float) -> Store | Lost:
    """A store that all ranks share, once all are there; or the rank that failed before that.

    Raises RuntimeError if some do not come in time.
    """
    global _is_settled
    store = _open(place, seconds)
    store.add(_HERE, 1)
    until = time.monotonic() + seconds
    while store.add(_HERE, 0) < place.size:
        if store.check([_FAILED]):
            _is_settled = True
            lost = Lost(*json.loads(store.get(_FAILED)))
            _leave(store, place)
            return lost
        if time.monotonic() > until:
            raise RuntimeError(f"{store.add(_HERE, 0)} of {place.size} came")
        time.sleep(0.05)
    _is_settled = True
    return store


def tell_failure(error: str, code: int) -> None:
    """A command that fails before its rank met the others tells them, if there are any."""
    try:
        place = place_of(os.environ)
    except (RecipeError, ValueError):
        return
    if _is_settled or place is None or place.size == 1 or (place.rank and not _is_reachable(place)):
        return
    with contextlib.suppress(Exception):  # nobody is there
        store = _open(place, _TELL_SECONDS)
        store.set(_FAILED, json.dumps([place.rank, error, code]))
        _leave(store, place)


def _is_reachable(place: Place) -> bool:
    """Whether the store is there, or comes in time. torch would wait longer, and print its own stack."""
    until = time.monotonic() + _TELL_SECONDS
    while time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection((place.address, place.port), timeout=2):
            return True
        time.sleep(0.2)
    return False


def _open(place: Place, seconds: float) -> Store:
    from torch.distributed.rendezvous import rendezvous

    os.environ |= {"RANK": str(place.rank), "WORLD_SIZE": str(place.size), "LOCAL_RANK": str(place.local_rank)}
    os.environ |= {"MASTER_ADDR": place.address, "MASTER_PORT": str(place.port)}
    store, *_ = next(rendezvous("env://", timeout=timedelta(seconds=seconds)))
    return store


def _leave(store: Store, place: Place) -> None:
    """The first rank may hold the store: it stays until all know."""
    until = time.monotonic() + _TELL_SECONDS
    known = store.add(_KNOWN, 1)
    while place.rank == 0 and known < place.size and time.monotonic() < until:
        time.sleep(0.05)
        known = store.add(_KNOWN, 0)
