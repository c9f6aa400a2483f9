"""The watch command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def watch(
    run: Annotated[Path, typer.Argument(help="A run folder, also one that is still empty, or that of a sweep.")],
    port: Annotated[
        int | None, typer.Option(help="The port on 127.0.0.1. Default: 8321, or a free one.", min=1, max=65535)
    ] = None,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Show a run in the browser while it goes on: curves, stages, time left, newest answers, and the report at the end.

    Only this machine can open the page. Nothing is written into the run folder. Ctrl-C ends it; the run goes on.
    """
    from spintune.errors import MissingExtraError, RunError, StorageError
    from spintune.terminal import visible

    if run.exists() and not run.is_dir():
        raise RunError(f"{run} is a file; give the folder of a run (its recipe's out)")
    try:
        from spintune.watch.server import HOST, listen, serve
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"spintune watch needs {error.name}: pip install 'spintune[watch]'") from error
    try:
        listening = listen(port)
    except OSError as error:
        raise StorageError(f"port {port} of {HOST} cannot be used ({error.strerror}); choose another --port") from error
    address = f"http://{HOST}:{listening.getsockname()[1]}/"
    waits = "" if run.is_dir() else "; it does not exist yet, and is shown once a run begins there"
    print(visible(f"{run} at {address} (Ctrl-C ends this, not the run){waits}"), flush=True)
    if open_browser:
        import webbrowser

        webbrowser.open(address)
    serve(run, listening)
