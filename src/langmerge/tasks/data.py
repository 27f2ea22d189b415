"""Where data sets lie."""

import os
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

from langmerge.errors import DataError

DATA_VARIABLE = "LANGMERGE_DATA"


def data_folder(data: Path | None = None) -> Path:
    """The folder that holds `massive/` and `sib200/`; it need not exist.

    The first of: `data`; the environment variable LANGMERGE_DATA; the nearest `shared/data` in the current
    directory or one of its parents; `../shared/data`.
    """
    if data is not None:
        return data.expanduser()
    if named := os.environ.get(DATA_VARIABLE):
        return Path(named).expanduser()
    here = Path.cwd()
    nearest = (folder / "shared" / "data" for folder in (here, *here.parents))
    return next((folder for folder in nearest if folder.is_dir()), here.parent / "shared" / "data")


def revision_of(name: str, files: Sequence[Path], known: str) -> str:
    """What identifies a data set on disk: its name, and where its files are not those that are known, their digest too.

    Of a compressed file it is the checksum that stands at its end: a trimmed copy is other data, and looking costs little.

    Args:
        name: of the data set.
        files: all of them.
        known: the digest that goes without saying.
    """
    digest = blake2b(digest_size=4)
    for file in sorted(files, key=lambda one: one.parts[-2:]):
        with file.open("rb") as opened:
            if file.suffix == ".gz":
                # A truncated one is told when it is read.
                opened.seek(max(0, file.stat().st_size - 8))
            digest.update("/".join(file.parts[-2:]).encode() + opened.read())
    found = digest.hexdigest()
    return name if found == known else f"{name} ({found})"


def data_set_folder(data: Path | None, part: str, *, task: str, otherwise: str = "") -> Path:
    """One data set's folder.

    Args:
        data: see `data_folder`.
        part: the data set's path in the data folder.
        task: who asks.
        otherwise: another way out, appended to the message.

    Raises:
        DataError: there is no such folder.
    """
    folder = data_folder(data) / part
    if not folder.is_dir():
        raise DataError(
            f"{task} looked for the folder {folder}, which does not exist: "
            f"set {DATA_VARIABLE} to the folder that holds {part}{otherwise}"
        )
    return folder
