"""How often each label occurs: in labelled text of other languages, or as a file says."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from langmerge.errors import DataError, InputError
from langmerge.tasks.task import Task


def label_shares(task: Task, locales: Sequence[str], *, target: str) -> dict[str, float]:
    """Shares of the labels in the train text of some locales, one count added to each; they sum to 1.

    Args:
        task: whose labels.
        locales: each counts as much as its rows.
        target: the locale that the shares are for.

    Raises:
        InputError: no locale, or the target is among them: its labels would get in.
        LocaleError, DataError: see `Task.load`.
    """
    if not locales:
        raise InputError("label shares need a locale to be counted in")
    counts = np.ones(len(task.labels))
    for locale in locales:
        found = task.load(locale, "train")
        if found.locale == target:
            raise InputError(f"label shares for {target} may not be counted in {target}'s own labels")
        counts += np.bincount(found.labels, minlength=len(counts))
    return dict(zip(task.labels, (counts / counts.sum()).tolist(), strict=True))


def read_shares(path: Path) -> dict[str, float]:
    """Shares or counts from a JSON file, `{label: number}`.

    Raises:
        DataError: it cannot be read, or is anything else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"label shares {path} cannot be read: {error}") from None
    if not isinstance(found, dict) or not all(
        isinstance(one, int | float) and not isinstance(one, bool) for one in found.values()
    ):
        raise DataError(f"label shares {path} must be one JSON object of a number per label")
    return {str(label): float(one) for label, one in found.items()}
