"""Errors that the user can solve. Each prints as one line (what, where, what to do) and has its own exit code."""

from __future__ import annotations


def is_panic(error: BaseException) -> bool:
    """Whether code in Rust (tokenizers, safetensors) panicked. Its exception is none of Python's usual kind."""
    return type(error).__module__ == "pyo3_runtime"


class SpintuneError(Exception):
    """Base of all errors that the user can solve; ``exit_code`` is the exit code of the command."""

    exit_code = 1


class RecipeError(SpintuneError):
    """A recipe or command line that is wrong."""

    exit_code = 2


class DataError(SpintuneError):
    """Input data that cannot be read, or that leaves nothing to train on."""

    exit_code = 3


class RowError(DataError):
    """A row that cannot be read. ``reason`` is the short name under which it is counted where such rows are dropped."""

    def __init__(self, message: str, reason: str = "bad_row") -> None:
        super().__init__(message)
        self.reason = reason


class ModelError(SpintuneError):
    """A model or tokenizer that cannot be found, loaded or used."""

    exit_code = 4


class RunError(SpintuneError):
    """A run folder that belongs to another recipe or process, or is damaged."""

    exit_code = 5


class DeletedModelError(RunError):
    """A model of the run that it deleted to save space, and that is needed again."""


class StorageError(SpintuneError):
    """A place that cannot be written: the disk is full, read-only or not accessible."""

    exit_code = 6


class NonFiniteError(SpintuneError):
    """A loss or gradient that is not a finite number; the weights were not changed."""

    exit_code = 7


class MissingExtraError(SpintuneError):
    """An optional package that the recipe needs and that is not installed."""

    exit_code = 8


class TeacherError(SpintuneError):
    """A teacher or judge that cannot be used: the key is missing, the address is wrong, or it does not answer."""

    exit_code = 9


class ServerError(TeacherError):
    """A server that writes answers in the place of the built-in generator: it cannot be reached or started, serves
    another model, or answers otherwise than it must."""


class BudgetError(SpintuneError):
    """The budget for a teacher or judge is used up; everything that it paid for is kept."""

    exit_code = 10


class DamagedRunError(RunError):
    """``spintune verify`` found files of a run that are changed, missing, damaged or added."""

    exit_code = 11


class OutOfMemoryError(SpintuneError):
    """Memory ran out, of the machine, the GPU or a limit. Training leaves a checkpoint where it can."""

    exit_code = 12


class SweepError(SpintuneError):
    """Some runs of a sweep failed; the others are finished."""

    exit_code = 13


class RankError(SpintuneError):
    """One of the processes that train together ended early, could not join, or differs from the others; all end."""

    exit_code = 14


class DoesNotFitError(SpintuneError):
    """``spintune plan`` found that a run does not fit into memory or on the disk. The line says what would fit."""

    exit_code = 15


class InternalError(SpintuneError):
    """Something that nobody foresaw. The line names a file with the traceback, for a report."""

    exit_code = 70  # EX_SOFTWARE of sysexits.h


class StoppedBySignal(BaseException):
    """SIGTERM, SIGUSR1 or SIGHUP stopped the run at a safe point: finished work and a checkpoint of training are kept,
    and the same command goes on from there."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: try again later


class Interrupted(StoppedBySignal):
    """Ctrl-C. A run or a sweep that it stopped goes on with the same command."""

    exit_code = 130  # 128 + SIGINT, as shells count
