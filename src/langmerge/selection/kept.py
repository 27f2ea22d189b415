"""Matrices of sources × targets as JSON; null where nothing is known."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float64

from langmerge.errors import SelectionError
from langmerge.files import replace_text

M = TypeVar("M")


def as_json(values: Float64[np.ndarray, "s t"]) -> list[list[float | None]]:
    """Rows with six decimals."""
    return [[None if np.isnan(value) else round(float(value), 6) for value in row] for row in values]


def save_matrix(path: Path, tag: str, payload: Mapping[str, Any]) -> None:
    """Write atomically, with the format's tag in front."""
    replace_text(path, json.dumps({"format": tag, **payload}, indent=1, ensure_ascii=False) + "\n")


def load_matrix(
    path: Path,
    tag: str,
    make: Callable[[dict[str, Any], tuple[str, ...], tuple[str, ...], Float64[np.ndarray, "s t"]], M],
    *,
    kind: str,
    remedy: str,
) -> M:
    """Read what `save_matrix` wrote.

    Args:
        path: the file.
        tag: its format.
        make: is given everything, the sources, the targets and the values.
        kind: what it should be, for an error.
        remedy: what to do where it is missing.

    Raises:
        SelectionError: missing or malformed.
    """
    try:
        raw = json.loads(path.read_bytes())
        if raw["format"] != tag:
            raise SelectionError(f"{path}: format is {raw['format']!r}; this version reads {tag!r}")
        sources, targets = (tuple(str(name) for name in raw[key]) for key in ("sources", "targets"))
        rows = [[np.nan if value is None else float(value) for value in row] for row in raw["values"]]
        values = np.array(rows, dtype=np.float64).reshape(len(sources), len(targets))
        return make(raw, sources, targets, values)
    except FileNotFoundError:
        raise SelectionError(f"{path} does not exist: {remedy}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SelectionError(f"{path} is no {kind}: {error}") from None
