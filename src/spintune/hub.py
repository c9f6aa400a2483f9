"""The Hugging Face hub, asked once whether it answers.

Its clients ask for each file six times with pauses between, half a minute a file. So whoever loads something by its hub
id asks here first, and takes what an earlier download left on disk where the hub does not answer.
"""

from __future__ import annotations

import contextlib
import difflib
import time
from collections.abc import Iterator
from pathlib import Path

from spintune.errors import ModelError

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


_ENDINGS = (".gguf", ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".json", ".jsonl", ".yaml", ".yml", ".md", ".zip")
_RUNS = "runs"
"""Where run folders are written by default."""


def missing_path(name: str) -> str | None:
    """Why a name like ``owner/name`` means a path here that does not exist, in words; None where it is a hub id.

    ``runs/nosuch`` is the misspelled folder of a run. A revision (``owner/name@main``) belongs to the hub only.
    """
    owner, _, rest = name.partition("/")
    if "@" in name or not rest or "/" in rest:
        return None
    if owner in ("", ".", "..") or owner.startswith("~"):
        return "there is no such folder or file; check the path"
    parent = Path(owner)
    if parent.is_dir():
        there = sorted(path.name for path in parent.iterdir() if not path.name.startswith("."))
        close = difflib.get_close_matches(rest, there, 1)
        advice = f"did you mean {owner}/{close[0]}?" if close else f"it has {', '.join(there[:5]) or 'nothing'}"
        return f"the folder {owner} has no {rest}; {advice} (from the hub: {name}@main)"
    if owner == _RUNS:
        return f"there is no folder {owner}; check the path"
    if name.lower().endswith(_ENDINGS):
        return f"there is no such file, and no folder {owner}; check the path"
    return None


def refuse_missing_path(name: str) -> None:
    """Raises ModelError for the name of a model that :func:`missing_path` finds to be a path."""
    if (reason := missing_path(name)) and not Path(name).exists() and not is_kept(name, None):
        raise ModelError(f"no model {name!r}: {reason}")


def is_kept(repository: str, revision: str | None, file: str = "config.json") -> bool:
    """Whether an earlier download left a model's file on disk."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        kept = try_to_load_from_cache(repository, file, revision=revision)
    except HFValidationError:  # no name that the hub gives
        return False
    return isinstance(kept, str) and Path(kept).is_file()
