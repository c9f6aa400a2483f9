"""``python -m spintune``: the same as the ``spintune`` command."""

from spintune.cli import main

main()
