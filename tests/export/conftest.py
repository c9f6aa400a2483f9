"""Fixtures of small run folders; see ``tests/run_folders.py``."""

from run_folders import everything, folder, whole  # noqa: F401 - pytest finds them here
