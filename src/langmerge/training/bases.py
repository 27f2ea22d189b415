"""The base that a pool starts from: the offline one, a folder, or a hub id."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from langmerge.errors import OutputError
from langmerge.models import PROVENANCE_FILE, build_e5_small
from langmerge.pool import Pool
from langmerge.progress import Progress, silent
from langmerge.tasks import Task

OFFLINE = "e5-small"

ORIGIN = "langmerge_origin.json"
"""In a pool's base: where it came from."""


def base_name(pool: Pool) -> str:
    """How results call a pool's base."""
    origin = pool.base_folder / ORIGIN
    return str(json.loads(origin.read_text())["name"]) if origin.exists() else str(pool.base)


def offline_provenance(task: Task, locales: Sequence[str]) -> dict[str, Any]:
    """What an offline base is made with."""
    return {"task": task.name, "revision": task.revision, "locales": sorted(locales)}


def is_kept(out: Path, provenance: Mapping[str, Any]) -> bool:
    """Whether an offline base is there.

    Raises:
        OutputError: `out` holds one for other locales or data.
    """
    if not (out / PROVENANCE_FILE).exists():
        return False
    kept = json.loads((out / PROVENANCE_FILE).read_text())
    if found := {key: kept.get(key) for key in provenance if kept.get(key) != provenance[key]}:
        raise OutputError(f"{out} holds a base made with {found}, not {provenance}: choose another folder")
    return True


def ensure_base(
    name: str, out: Path, *, task: Task, locales: Sequence[str], progress: Progress = silent
) -> Path | str:
    """A base that `train_pool` can start from.

    Args:
        name: `e5-small` builds the offline base at `out`, its vocabulary pruned to the task's training text of
            `locales`; anything else (a folder or a hub id) is returned as it is.
        out: where the offline base goes; kept if it is there already for the same locales and data.
        task: whose training text says which pieces are kept.
        locales: whose training text.
        progress: told about the steps.

    Raises:
        OutputError: `out` holds a base for other locales or data.
        MissingExtraError: the packages for the offline base are not installed.
    """
    if name != OFFLINE:
        return name
    provenance = offline_provenance(task, locales)
    if is_kept(out, provenance):
        return out

    def texts() -> Iterator[str]:
        for locale in locales:
            yield from task.load(locale, "train").texts

    return build_e5_small(out, texts=texts(), provenance=provenance, progress=progress)
