"""Files of generated examples in the formats of other tools."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from spintune.storage import atomic_file, write_json, write_json_lines
from spintune.synthesis.examples import GeneratedExample

ExportFormat = Literal["alpaca", "chat", "parquet"]


def export_examples(folder: Path, examples: Sequence[GeneratedExample], format: ExportFormat) -> Path:
    """Writes the examples for other tools: alpaca.json, chat.jsonl (messages) or examples.parquet."""
    if format == "alpaca":
        path = folder / "alpaca.json"
        write_json(path, [one.to_json() for one in examples])
    elif format == "chat":
        path = folder / "chat.jsonl"
        write_json_lines(path, [{"messages": one.example.messages, "provenance": one.provenance} for one in examples])
    else:
        import pyarrow
        import pyarrow.parquet

        path = folder / "examples.parquet"
        with atomic_file(path) as file:
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist([one.to_json() for one in examples]), file)
    return path
