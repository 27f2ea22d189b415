"""The files of a model folder: which they are, and which of them may be opened at all."""

import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from langmerge.errors import CheckpointError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
PICKLED_SINGLE = "pytorch_model.bin"
PICKLED_INDEX = "pytorch_model.bin.index.json"

MAX_JSON = 100_000_000
"""Largest JSON file in bytes."""

MAX_NAME = 1000
"""Most characters of a tensor's or a file's name."""

_READ = (".json", ".jinja", ".model", ".safetensors", ".txt")
"""Ends of the names of files that are read or copied into the output."""

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


@dataclass(frozen=True)
class Stamp:
    """A file as it was when it was opened: its name, size in bytes and time of change in ns."""

    name: str
    size: int
    changed: int


def stamp_of(file: Path) -> Stamp:
    """What the file is now.

    Raises:
        CheckpointError: there is no such file.
    """
    try:
        found = file.stat()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read: {reason(error)}") from None
    return Stamp(file.name, found.st_size, found.st_mtime_ns)


def reason(error: OSError | ValueError) -> str:
    """Why, without the file's name."""
    return getattr(error, "strerror", None) or str(error)


def shown(value: object) -> str:
    """A value from a file, short enough for a message and on one line."""
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:100]}…"


def named(file: Path) -> str:
    """A file's place on one line."""
    return str(file) if str(file).isprintable() else repr(str(file))


@contextmanager
def opened_plain(file: Path) -> Iterator[BinaryIO]:
    """An ordinary file, open to be read; nothing waits for a pipe that nobody fills.

    Raises:
        OSError: it cannot be opened, or is no ordinary file.
    """
    _require_plain(file.stat().st_mode)
    # The name may stand for a pipe by now: it is opened without waiting and looked at again.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(file, flags), "rb") as handle:
        _require_plain(os.fstat(handle.fileno()).st_mode)
        yield handle


def _require_plain(mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise OSError("it is no ordinary file")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        CheckpointError: missing, larger than `MAX_JSON`, no ordinary file, or no JSON object.
    """
    try:
        with opened_plain(path) as handle:
            raw = handle.read(MAX_JSON + 1)
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist: {path.parent} is no model folder") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {reason(error)}") from None
    if len(raw) > MAX_JSON:
        raise CheckpointError(f"{path} has more than {MAX_JSON} bytes: it is no file of a model")
    try:
        found = json.loads(raw)
        if _SURROGATE.search(raw):
            # Half a character can be read but not written again.
            json.dumps(found, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {shown(str(error))[1:-1]}") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds no JSON object")
    return found


def check_places(folder: Path) -> None:
    """Raise unless all that may be read or copied from a folder is an ordinary file of this folder.

    A link may lead to another file of the same folder, or from a snapshot into the blobs of the hub's cache. Anything
    else could bring a file of the user's into a model that is given away.

    Raises:
        CheckpointError: a link out of the folder, a pipe, a device, a folder in the place of a file.
    """
    try:
        with os.scandir(folder) as entries:
            odd = [e.name for e in entries if e.name.endswith(_READ) and not e.is_file(follow_symlinks=False)]
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {reason(error)}") from None
    for name in sorted(odd):
        check_place(folder, folder / name)


def check_place(folder: Path, file: Path) -> None:
    """Raise unless one file is an ordinary file of its folder; see `check_places`.

    Raises:
        CheckpointError: it is not.
    """
    # realpath ends where links go round in a circle; Path.resolve raises there.
    target = Path(os.path.realpath(file))
    if not target.is_file():
        raise CheckpointError(f"{named(file)} is no ordinary file")
    home = Path(os.path.realpath(folder))
    if file.is_symlink() and home not in target.parents and not _is_hub_blob(home, target):
        raise CheckpointError(
            f"{named(file)} is a link out of its folder, to {target}: "
            "copy the file, or name the folder that holds it"
        )


def _is_hub_blob(home: Path, target: Path) -> bool:
    """The hub's cache keeps `snapshots/<revision>/…/file` as a link to `blobs/<hash>` beside `snapshots`."""
    return any(
        parent.name == "snapshots" and target.parent == parent.parent / "blobs" for parent in home.parents
    )


def listed_files(folder: Path, index: str) -> tuple[list[Path], list[str]]:
    """The shards that an index names, and the tensors that it lists.

    Raises:
        CheckpointError: no index, one that names a file outside the folder, or a file that is not there.
    """
    weight_map = read_json(folder / index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{folder / index} has no weight_map from tensor names to file names")
    names = sorted(set(weight_map.values()))
    if unsafe := [name for name in names if not _is_file_name(name)]:
        raise CheckpointError(f"{folder / index} names a shard outside its folder: {shown(unsafe[0])}")
    there = {file.name for file in folder.iterdir()}
    if absent := [name for name in names if name not in there]:
        raise CheckpointError(f"{folder / index} lists {shown(absent[0])}, which does not exist")
    for name in names:
        check_place(folder, folder / name)
    return [folder / name for name in names], list(weight_map)


def _is_file_name(name: str) -> bool:
    return (
        name not in ("", ".", "..")
        and not {"/", "\\"} & set(name)
        and name.isprintable()
        and len(name) <= MAX_NAME
    )
