"""Runs the same command again as several processes, under torchrun."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Sequence

from spintune.errors import RankError, RecipeError, StoppedBySignal
from spintune.threads import allowed_processors

_SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
"""What is passed to the ranks, which stop at a safe point."""

_LAST_SECONDS = 600
"""What ranks have after a signal, to end their step and save. Slurm's own limit is often shorter. [seconds]"""


def ranks_asked(gpus: int | None, processes: int | None) -> int | None:
    """How many ranks a command line asks for; None where it asks for none. Raises RecipeError."""
    if gpus is None:
        return processes
    if processes is not None:
        raise RecipeError("give --gpus or --processes, not both")
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count < gpus:
        has = f"{count} GPUs" if count else "no GPU"
        raise RecipeError(f"--gpus {gpus}: this machine has {has}; --processes {gpus} starts processes on its CPU")
    return gpus


def without_flags(words: Sequence[str], flags: Sequence[str]) -> list[str]:
    """The words of a command line without flags and their values."""
    kept: list[str] = []
    skip = False
    for word in words:
        if skip or any(word.startswith(f"{flag}=") for flag in flags):
            skip = False
        elif word in flags:
            skip = True
        else:
            kept.append(word)
    return kept


def relaunch(ranks: int, words: Sequence[str]) -> int:
    """Runs ``spintune`` with these words as so many processes of this machine. Returns their exit code."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # ranks tell their own errors; some of torchrun's loggers have a level of their own
    for name in [one for one in logging.root.manager.loggerDict if one.startswith("torch.distributed")]:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(allowed_processors()) // ranks)))
    options = ["--standalone", f"--nproc-per-node={ranks}", f"--signals-to-handle={_SIGNALS}"]
    options += [f"--shutdown-timeout={_LAST_SECONDS}", "-m", "spintune", *words]
    try:
        run.run(run.parse_args(options))
    except ChildFailedError as error:
        failures = [error.get_first_failure()[1], *error.failures.values()]
        return next((one.exitcode for one in failures if one.exitcode > 0), RankError.exit_code)
    except SignalException as stop:
        return 130 if stop.sigval == signal.SIGINT else StoppedBySignal.exit_code
    return 0
