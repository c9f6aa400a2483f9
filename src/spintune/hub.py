"""The Hugging Face hub, asked once whether it answers.

Its clients ask for each file six times with pauses between, half a minute a file. So whoever loads something by its hub
id asks here first, and takes what an earlier download left on disk where the hub does not answer.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

TIMEOUT = 5.0
"""How long to wait for the first answer. [s]"""

_ASK_AGAIN = 60.0  # a notebook outlives an outage [s]
_asked: tuple[float, str] | None = None


def unreachable() -> str | None:
    """Why the hub cannot be asked, in words; None where it answers, whatever it says. Asked at most once a minute."""
    global _asked
    import huggingface_hub
    from huggingface_hub import constants

    if huggingface_hub.is_offline_mode():
        return "HF_HUB_OFFLINE is set"
    if _asked is None or (_asked[1] and time.monotonic() - _asked[0] > _ASK_AGAIN):
        reason = ""
        try:
            huggingface_hub.get_session().head(constants.ENDPOINT, timeout=TIMEOUT)
        except Exception as error:  # a boundary: proxies, certificates and addresses fail in many types
            reason = f"{constants.ENDPOINT} cannot be reached: {str(error).strip() or type(error).__name__}"
        _asked = (time.monotonic(), " ".join(reason.split()))
    return _asked[1] or None


@contextlib.contextmanager
def only_if_reachable() -> Iterator[str | None]:
    """Inside, nothing is asked of a hub that is out of reach: files come from disk or not at all, without retries.

    Gives :func:`unreachable`.
    """
    reason = unreachable()
    if reason is None:
        yield None
        return
    import datasets.config
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield reason
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def is_kept(repository: str, revision: str | None, file: str = "config.json") -> bool:
    """Whether an earlier download left a model's file on disk."""
    from huggingface_hub import try_to_load_from_cache

    kept = try_to_load_from_cache(repository, file, revision=revision)
    return isinstance(kept, str) and Path(kept).is_file()
