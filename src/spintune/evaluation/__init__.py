"""Held-out measures with intervals."""
