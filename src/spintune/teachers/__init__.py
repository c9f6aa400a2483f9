"""Whoever answers a written request: an endpoint, a model on this machine, a script. Nothing here imports torch."""
