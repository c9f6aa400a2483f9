"""Examples in and out: formats, splits, built-in seed tasks. Nothing here imports torch."""
