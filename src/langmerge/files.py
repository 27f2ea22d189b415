"""Small files that are whole at every moment."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from langmerge.errors import OutputError


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A temporary sibling to write to, renamed at the end: readers see the old file or the new one.

    Raises:
        OutputError: the place cannot be written.
    """
    # Of this process alone: two may write the same file at once, and the last one is the one that stays.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OutputError(f"{path} cannot be written: {error.strerror}") from None


def replace_text(path: Path, text: str) -> None:
    """Write UTF-8 text, as `replaced` does.

    Raises:
        OutputError: the place cannot be written.
    """
    with replaced(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
