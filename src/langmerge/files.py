"""Small files that are whole at every moment."""

from pathlib import Path

from langmerge.errors import OutputError


def replace_text(path: Path, text: str) -> None:
    """Write UTF-8 text into a temporary sibling, then rename it: readers see the old file or the new one.

    Raises:
        OutputError: the place cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from None
