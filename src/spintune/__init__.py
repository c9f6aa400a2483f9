"""Instruction tuning and self-play fine-tuning (SPIN) from one recipe and one command."""

from spintune.version import __version__

__all__ = ["__version__"]
