"""What every command shares: tables for people, one JSON document for programs, progress on stderr, one-line errors."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from langmerge.progress import Advance

PIPED_WIDTH = 120
"""Columns of a table that goes into a file or a pipe, where no terminal says how many there are."""


def tell(line: str) -> None:
    """A line on stderr."""
    sys.stderr.write(line + "\n")


@contextmanager
def bars(description: str, total: int) -> Iterator[Advance]:
    """A progress bar on stderr; nothing when stderr is no terminal."""
    # rich is loaded where it is needed: it would take a third of the start of a merge.
    if not sys.stderr.isatty():
        yield lambda _finished: None
        return
    with _shared_bar() as bar:
        task = bar.add_task(description, total=total)
        try:
            yield lambda finished: bar.advance(task, finished)
        finally:
            bar.remove_task(task)


_open: list[Any] = []


@contextmanager
def _shared_bar() -> Iterator[Any]:
    """Nested tasks stand in one display, because a terminal can hold only one."""
    if _open:
        yield _open[-1]
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        _open.append(bar)
        try:
            yield bar
        finally:
            _open.pop()


def show(as_json: bool, payload: Any, people: Callable[[], None]) -> None:
    """One JSON document on stdout, or what `people` prints."""
    if as_json:
        sys.stdout.write(json.dumps(payload, default=plain, ensure_ascii=False, indent=1) + "\n")
    else:
        people()


def plain(value: Any) -> Any:
    """Dataclasses, paths and tuples as JSON can hold them."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    raise TypeError(f"{type(value).__name__} is not JSON")


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout; the first column is left-aligned, numbers right."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=title or None, title_justify="left", header_style="bold", box=SIMPLE_HEAD, pad_edge=False
    )
    for position, name in enumerate(header):
        table.add_column(name, justify="left" if position == 0 else "right", overflow="fold")
    for row in rows:
        # As text: a cell like [0.1] must not be taken for markup.
        table.add_row(*map(Text, row))
    out = Console(highlight=False)
    if not out.is_terminal:
        out = Console(highlight=False, width=PIPED_WIDTH)
    out.print(table)


def say(line: str) -> None:
    """A line on stdout."""
    sys.stdout.write(line + "\n")
