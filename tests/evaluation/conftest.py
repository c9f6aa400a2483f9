"""Fixtures of small run folders; see ``tests/run_folders.py``."""

from run_folders import folder  # noqa: F401 - pytest finds it here
