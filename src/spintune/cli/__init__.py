"""The command line: the only place that parses arguments and prints. Other modules get what they need as arguments.

Commands import what is heavy inside their functions, so that ``spintune --help`` does not wait for torch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import typer

from spintune.cli.chat import chat
from spintune.cli.look import doctor, inspect, mix, schema, verify
from spintune.cli.output import lasting_output
from spintune.cli.results import compare, export, pairs, report
from spintune.cli.stages import evaluate, run, sft, spin, synth
from spintune.cli.sweep import sweep
from spintune.cli.unexpected import shows_itself, unexpected_text
from spintune.errors import InternalError, SpintuneError, StoppedBySignal
from spintune.memory import memory_errors

app = typer.Typer(
    help="Instruction tuning and self-play fine-tuning (SPIN) from one recipe and one command.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
_COMMANDS: dict[str, Callable[..., None]] = {
    "run": run,
    "synth": synth,
    "sft": sft,
    "spin": spin,
    "eval": evaluate,
    "sweep": sweep,
    "inspect": inspect,
    "mix": mix,
    "chat": chat,
    "compare": compare,
    "report": report,
    "export": export,
    "pairs": pairs,
    "verify": verify,
    "doctor": doctor,
    "schema": schema,
}
for _name, _command in _COMMANDS.items():
    app.command(_name)(_command)


def main() -> None:
    """Entry point: every error is one line and a code of its own, also one that nobody foresaw."""
    with lasting_output():
        _main()


def _main() -> None:
    try:
        with memory_errors():
            code = app(standalone_mode=False)  # typer returns the code of a typer.Exit, and 130 for Ctrl-C
    except SpintuneError as error:
        _fail(_with_notes(error), error.exit_code)
    except StoppedBySignal as stop:
        _fail(_with_notes(stop) if _notes(stop) else f"{stop}; the same command continues", stop.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except BaseException as error:
        if (code := _usage_code(error)) is not None:
            _fail(str(error.format_message()), code)  # type: ignore[attr-defined]
        if shows_itself(error):
            raise
        _fail("; ".join([unexpected_text(error), *_notes(error)]), InternalError.exit_code)
    if code == 130:
        _fail("stopped; the same command continues", code)
    sys.exit(code)


def _notes(error: BaseException) -> list[str]:
    return getattr(error, "__notes__", [])


def _with_notes(error: BaseException) -> str:
    """An error's line with what was noted on it along the way, such as the checkpoint that is kept."""
    return "; ".join([str(error), *_notes(error)])


def _usage_code(error: BaseException) -> int | None:
    """The exit code of one of click's own errors about arguments; None for other errors."""
    return getattr(error, "exit_code", None) if hasattr(error, "format_message") else None


def _fail(message: str, code: int) -> None:
    from spintune.terminal import visible

    for line in message.splitlines():
        print(f"spintune: {visible(line)}", file=sys.stderr)
    sys.exit(code)
