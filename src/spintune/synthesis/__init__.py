"""A teacher writes instruction data from a few seed tasks (Self-Instruct, Alpaca). Nothing here imports torch."""
