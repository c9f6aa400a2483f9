"""spintune: instruction tuning and self-play fine-tuning (SPIN) from one recipe and one command."""

__version__ = "0.1.0"
