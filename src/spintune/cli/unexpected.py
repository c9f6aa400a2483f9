"""The last net of the command line: what nobody foresaw is one line too, and its traceback is kept for a report."""

from __future__ import annotations

import contextlib
import os
import tempfile
import traceback
from datetime import datetime
from pathlib import Path

from spintune.cached_folders import own_room
from spintune.errors import is_panic
from spintune.storage import cache_folder
from spintune.text.words import one_line

_VARIABLE = "SPINTUNE_TRACEBACK"
_MAX_TEXT = 300  # characters of an error's own words


def shows_itself(error: BaseException) -> bool:
    """Whether an error is to go on as it is: one that ends Python, and any if the user asked for tracebacks."""
    return os.environ.get(_VARIABLE, "0") not in ("", "0") or not (isinstance(error, Exception) or is_panic(error))


def unexpected_text(error: BaseException) -> str:
    """One line about an error that nobody foresaw, with the file in which its traceback was written."""
    words = one_line(str(error))[:_MAX_TEXT]
    found = f"{type(error).__name__}{': ' if words else ''}{words}"
    return f"an error that spintune does not foresee: {found}{_kept(error)}"


def _kept(error: BaseException) -> str:
    with contextlib.suppress(OSError):
        room = own_room(cache_folder() / "tracebacks")
        name = datetime.now().strftime("%Y%m%d-%H%M%S-")
        descriptor, path = tempfile.mkstemp(".txt", name, room, text=True)
        with os.fdopen(descriptor, "w", errors="backslashreplace") as file:
            file.writelines(traceback.format_exception(error))
        return f"; its traceback is in {Path(path)}, please report it ({_VARIABLE}=1 shows it here)"
    return f"; {_VARIABLE}=1 shows its traceback, please report it"
