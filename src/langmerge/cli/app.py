"""The program: commands, exit codes, one-line errors."""

import atexit
import gc
import sys
from typing import Annotated

import typer

from langmerge import __version__
from langmerge.cli import (
    adapters,
    deciding,
    doctor,
    experts,
    learning,
    merging,
    refining,
    rounds,
    runs,
    selecting,
    studies,
)
from langmerge.cli.console import tell
from langmerge.errors import LangmergeError, PlanError

HELP = "Choose, merge and judge language experts: the best model for a target language, often with no labels there."

app = typer.Typer(
    help=HELP,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for module in (
    studies,
    deciding,
    runs,
    experts,
    selecting,
    learning,
    merging,
    adapters,
    refining,
    rounds,
    doctor,
):
    module.register(app)


INTERRUPTED = 130

UsageError: type[Exception] = typer.BadParameter.__bases__[0]
"""typer's root of wrong command lines, which it does not export by name."""


def _print_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"langmerge {__version__}\n")
        raise typer.Exit


@app.callback()
def root(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error (anywhere on the line).")
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and leave.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    """Choose, merge and judge language experts: the best model for a target language, often with no labels there."""


def program() -> None:
    """`main` as a process of its own."""
    # Modules are there to stay: looking for garbage among them, now and at the end, is a fifth of a short command.
    gc.set_threshold(100_000, 50, 100)
    atexit.register(gc.freeze)
    main()


def main() -> None:
    """Run; exit 0, 2 with one line on stderr for bad input, 130 when interrupted."""
    # Taken out here, so that it works after the command too, where people add it to the line that failed.
    debug = "--debug" in sys.argv[1:]
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        code = app(args=arguments or ["--help"], standalone_mode=False, prog_name="langmerge")
    except (LangmergeError, UsageError) as error:
        if debug:
            raise
        tell(f"error: {one_line(error)}")
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    # typer turns an interrupt inside a command into this code by itself.
    if code == INTERRUPTED:
        tell("interrupted: everything finished so far is kept; the same command goes on from there")
    sys.exit(code if isinstance(code, int) else 0)


def one_line(error: BaseException) -> str:
    """What an error says, in one line."""
    if isinstance(error, PlanError) and len(error.faults) > 1:
        text = f"{len(error.faults)} faults: " + "; ".join(
            f"({i}) {fault}" for i, fault in enumerate(error.faults, 1)
        )
    elif isinstance(error, UsageError):
        text = f"{error.format_message()} (see --help)"  # type: ignore[attr-defined]
    else:
        text = str(error)
    return " ".join(text.split())
