"""Fixtures of small run folders and a reader of HTML; see ``tests/run_folders.py``."""

from run_folders import everything, folder, page, whole  # noqa: F401 - pytest finds them here
