"""Named random streams: every draw is a pure function of a name, such as the seed and an example's id.

No stream has a state to save. A resumed run therefore goes on exactly, and what one stream draws moves no other. The
names and the functions below decide what a run produces; changing either changes results.

Numpy and torch load on first use: a mixture draws without them.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
from array import array
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np


DIGEST_BYTES = 32


def digest(name: str | bytes) -> bytes:
    """The 32 bytes of SHA-256 that belong to a name. Sorting by them shuffles, and no other name matters."""
    return hashlib.sha256(name.encode() if isinstance(name, str) else name).digest()


def integer(name: str | bytes, byteorder: Literal["little", "big"] = "little") -> int:
    """A uniform integer in [0, 2^64)."""
    return int.from_bytes(digest(name)[:8], byteorder)


def stream_key(name: str | bytes) -> bytes:
    """The 128-bit key of a name for :func:`numpy_stream`."""
    return digest(name)[:16]


def numpy_stream(key: bytes | int) -> np.random.Generator:
    """Numpy's random numbers for a key, by the counter-based Philox generator (Salmon et al. 2011)."""
    import numpy as np

    return np.random.Generator(np.random.Philox(key=key if isinstance(key, int) else int.from_bytes(key, "little")))


def python_stream(name: str | bytes) -> random.Random:
    """The random numbers of Python's standard library for a name."""
    return random.Random(integer(name, "big"))  # noqa: S311 -- not for secrets


@contextlib.contextmanager
def torch_stream(name: str) -> Iterator[None]:
    """Inside, torch draws from the stream of a name; its global generators continue afterwards where they were."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(integer(name) >> 1)
        yield


# Draws by BLAKE2, twice as fast, with names in parts: a mixture makes several for every example.


def draw(*name: object) -> int:
    """A uniform integer in [0, 2^64)."""
    text = "/".join(str(part).replace("/", "//") for part in name)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def draw_uniform(*name: object) -> float:
    """A uniform number in [0, 1)."""
    return (draw(*name) >> 11) / (1 << 53)


def draw_below(count: int, *name: object) -> int:
    """A uniform integer in [0, count)."""
    return draw(*name) * count >> 64


def permutation(count: int, *name: object) -> array[int]:
    """A random permutation of ``count`` indices, in the order of a draw for each."""
    import numpy as np

    drawn = np.fromiter((draw(*name, index) for index in range(count)), np.uint64, count)
    return array("I", np.argsort(drawn, kind="stable").astype(np.uint32).tobytes())
