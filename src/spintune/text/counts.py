"""Counts by reason, as text."""

from __future__ import annotations

from collections.abc import Mapping


def counts_text(counts: Mapping[str, int]) -> str:
    """Counts with their reasons, as text."""
    return ", ".join(f"{reason} {count:,}" for reason, count in sorted(counts.items())) or "none"
