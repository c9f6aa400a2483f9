"""Numbered rows of files of many kinds, of folders and patterns, of built-in data, and of the Hugging Face hub.

::

    a path --places--> files --content--> bytes --json_rows, cells, arrow_rows--> RowTable --> rows with their places
"""

from spintune.data.tables.opening import (
    empty_source,
    is_builtin,
    line_rows,
    open_tables,
    rows_of,
    rows_or_errors,
    source_digest,
)
from spintune.data.tables.table import Numbered, RowTable, TableOpener

__all__ = [
    "Numbered",
    "RowTable",
    "TableOpener",
    "empty_source",
    "is_builtin",
    "line_rows",
    "open_tables",
    "rows_of",
    "rows_or_errors",
    "source_digest",
]
