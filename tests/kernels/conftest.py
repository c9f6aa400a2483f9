"""Fixtures of tiny real models; see ``tests/tiny_models.py``."""

from tiny_models import build, compiled, one_thread, plain, queries, words  # noqa: F401 - pytest finds them here
