"""Every example's logits, kept: ensembles, paired tests and label-free estimates need no second forward pass."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from jaxtyping import Float, Float32, Int64
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from langmerge.files import replaced

_LOWEST = -60_000.0
"""Below every row's largest logit; what is smaller has no probability in any precision."""

_STEP = float(np.finfo(np.float16).smallest_subnormal)

_KINDS = {"logits": np.float16, "labels": np.int64, "ids": np.uint8}
"""Columns of a file."""


def kept_logits(values: Float[np.ndarray, "n c"]) -> Float32[np.ndarray, "n c"]:
    """Logits as they are kept: differences to the row's largest, in half precision.

    Softmax and argmax are the same; the file is half as large. A model's logits are brought into this form when they are
    made, so that kept and fresh ones are equal.
    """
    below = values.astype(np.float64) - values.max(axis=1, keepdims=True, initial=-np.inf)
    # What is smaller than the largest stays smaller: of a tie the first would be predicted.
    below = np.where(below < 0, np.clip(below, _LOWEST, -_STEP), below)
    return np.asarray(below.astype(np.float16).astype(np.float32))


@dataclass(frozen=True)
class Logits:
    """One model's logits on one locale's split.

    Attributes:
        signature: of what made them (model, data, rows, precision).
        ids: of the examples, in the rows' order.
        labels: positions in the task's labels, shape (n,).
        values: the logits, shape (n, number of labels).
    """

    signature: str
    ids: tuple[str, ...]
    labels: Int64[np.ndarray, "n"]
    values: Float32[np.ndarray, "n c"]

    @property
    def predictions(self) -> Int64[np.ndarray, "n"]:
        """The label with the largest logit."""
        best: np.ndarray = self.values.argmax(axis=1)
        return best

    @property
    def correct(self) -> np.ndarray:
        """Whether each prediction is right, bool (n,)."""
        right: np.ndarray = self.predictions == self.labels
        return right

    def save(self, path: Path) -> None:
        """Write one safetensors file, atomically: a column of labels, one of ids, the logits in half precision.

        Raises:
            ValueError: the logits are not what `kept_logits` gives: the file would hold other numbers.
        """
        with np.errstate(over="ignore"):
            half = self.values.astype(np.float16)
        if not np.array_equal(half.astype(np.float32), self.values):
            raise ValueError(
                "logits that half precision cannot hold: bring them into the form of kept_logits"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        columns: dict[str, np.ndarray[Any, Any]] = {
            "logits": np.ascontiguousarray(half),
            "labels": np.ascontiguousarray(self.labels, dtype=np.int64),
            "ids": np.frombuffer("\n".join(self.ids).encode(), dtype=np.uint8),
        }
        # Two processes may compute the same logits: neither renames what the other is writing.
        with replaced(path) as temporary:
            save_file(columns, temporary, metadata={"signature": self.signature, "hash": _hash(columns)})


def load_logits(path: Path, expected_signature: str) -> Logits | None:
    """What `Logits.save` wrote, or None if there is nothing, something broken, or another signature's."""
    if not path.exists():
        return None
    try:
        with safe_open(path, "numpy") as kept:
            written = kept.metadata() or {}
            if written["signature"] != expected_signature:
                return None
            columns = {name: kept.get_tensor(name) for name in _KINDS}
            # The hash is of bytes: it does not say what numbers they are.
            if written["hash"] != _hash(columns) or any(
                columns[name].dtype != _KINDS[name] for name in _KINDS
            ):
                return None
            ids = columns["ids"].tobytes().decode()
    except (SafetensorError, OSError, KeyError, ValueError):
        return None
    labels, values = columns["labels"], columns["logits"].astype(np.float32)
    names = tuple(ids.split("\n")) if len(labels) else ()
    whole = len(names) == len(labels) == len(values)
    return Logits(expected_signature, names, labels, values) if whole else None


def _hash(columns: Mapping[str, np.ndarray]) -> str:
    return xxhash.xxh3_64_hexdigest(b"".join(columns[name].tobytes() for name in sorted(columns)))
