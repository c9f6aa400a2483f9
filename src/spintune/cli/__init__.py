"""The command line: the only place that parses arguments and prints. Other modules get what they need as arguments.

A command's module is imported when it is called, and imports what is heavy inside its functions, so that ``--help``
waits neither for other commands nor for torch.
"""

from __future__ import annotations

import sys

import typer

from spintune.cli.output import lasting_output
from spintune.cli.start import SpintuneGroup, start
from spintune.errors import InternalError, Interrupted, OutOfMemoryError, SpintuneError, StoppedBySignal
from spintune.memory import memory_errors

app = typer.Typer(
    cls=SpintuneGroup,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["--help", "-h"]},
)
app.callback()(start)


def main() -> None:
    """Entry point: every error is one line and a code of its own, also one that nobody foresaw."""
    with lasting_output():
        _main()


def _main() -> None:
    try:
        with memory_errors(_out_of_memory):
            # typer returns the code of a typer.Exit, and 130 for Ctrl-C
            code = app(prog_name="spintune", standalone_mode=False)
    except SpintuneError as error:
        _fail(_with_notes(error), error.exit_code)
    except StoppedBySignal as stop:
        _fail(_with_notes(stop) if _notes(stop) else f"{stop}; the same command continues", stop.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        code = Interrupted.exit_code
    except BaseException as error:
        if (code := _usage_code(error)) is not None:
            _fail(_usage_text(error), code)
        from spintune.cli.unexpected import shows_itself, unexpected_text

        if shows_itself(error):
            raise
        _fail("; ".join([unexpected_text(error), *_notes(error)]), InternalError.exit_code)
    if code == Interrupted.exit_code:
        _fail("stopped", code)
    sys.exit(code)


def _out_of_memory(error: Exception) -> OutOfMemoryError:
    from spintune.remedies import out_of_memory

    return out_of_memory(error)


def _notes(error: BaseException) -> list[str]:
    return getattr(error, "__notes__", [])


def _with_notes(error: BaseException) -> str:
    """An error's line with what was noted on it along the way, such as the checkpoint that is kept."""
    return "; ".join([str(error), *_notes(error)])


def _usage_code(error: BaseException) -> int | None:
    """The exit code of one of click's own errors about arguments; None for other errors."""
    return getattr(error, "exit_code", None) if hasattr(error, "format_message") else None


def _usage_text(error: BaseException) -> str:
    """One of click's own errors in words; an unknown flag may be a key of the recipe."""
    context = getattr(error, "ctx", None)
    if (option := getattr(error, "option_name", None)) is None or type(error).__name__ != "NoSuchOption":
        return str(error.format_message())  # type: ignore[attr-defined]
    from spintune.cli.suggestions import unknown_option

    command = context.info_name if context is not None and context.parent is not None else ""
    known = [name for one in context.command.params for name in one.opts] if context is not None else []
    return unknown_option(str(option), command or "", known)


def _fail(message: str, code: int) -> None:
    from spintune.terminal import visible

    for line in message.splitlines():
        print(f"spintune: {visible(line)}", file=sys.stderr, flush=True)
    from spintune.cli.stages import RANKED

    if sys.argv[1:2] and sys.argv[1] in RANKED and "--dry-run" not in sys.argv:
        from spintune.ranks.rollcall import tell_failure

        tell_failure(message, code)
    sys.exit(code)
