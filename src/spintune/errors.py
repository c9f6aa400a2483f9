"""Errors that a user can mend. Each prints as one line (what, where, what to do) and has its own exit code."""

from __future__ import annotations


class SpintuneError(Exception):
    """Base of every error that is the user's to mend; ``exit_code`` is what the command returns."""

    exit_code = 1


class RecipeError(SpintuneError):
    """A recipe or a command line that cannot be carried out."""

    exit_code = 2


class DataError(SpintuneError):
    """Input rows that cannot be read, or leave nothing to train on."""

    exit_code = 3


class ModelError(SpintuneError):
    """A model or tokenizer that cannot be found, loaded or used."""

    exit_code = 4


class RunError(SpintuneError):
    """A run folder that belongs to another recipe, another process, or is damaged."""

    exit_code = 5


class StorageError(SpintuneError):
    """A disk that is full, read-only or out of reach."""

    exit_code = 6


class NonFiniteError(SpintuneError):
    """A loss or gradient that is not a number; the weights were not touched."""

    exit_code = 7


class MissingExtraError(SpintuneError):
    """An optional package that the recipe asks for and that is not installed."""

    exit_code = 8


class TeacherError(SpintuneError):
    """A teacher or judge that cannot be asked: no key, a wrong address, or one that never answers."""

    exit_code = 9


class BudgetError(SpintuneError):
    """The budget for a teacher or judge is used up; everything it paid for is kept."""

    exit_code = 10
