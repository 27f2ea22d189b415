"""Every example's logits, kept: ensembles, paired tests and label-free estimates need no second forward pass."""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64


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
        """Write one .npz, atomically."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        with temporary.open("wb") as file:
            np.savez(
                file, signature=self.signature, ids=np.array(self.ids), labels=self.labels, values=self.values
            )
        temporary.replace(path)


def load_logits(path: Path, expected_signature: str) -> Logits | None:
    """What `Logits.save` wrote, or None if there is nothing, something broken, or another signature's."""
    if not path.exists():
        return None
    try:
        # Opened here: np.load leaves a file open that it cannot read.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
            if str(kept["signature"]) != expected_signature:
                return None
            return Logits(str(kept["signature"]), tuple(kept["ids"].tolist()), kept["labels"], kept["values"])
    except (zipfile.BadZipFile, KeyError, ValueError, EOFError):
        return None


def soft_vote(members: "list[Logits]", weights: "list[float] | None" = None) -> Float32[np.ndarray, "n c"]:
    """Weighted mean of the members' probabilities, as log-probabilities.

    Args:
        members: logits of several models on the same rows.
        weights: one per member; equal by default.

    Returns:
        log Σ w_i softmax(z_i), shape (n, c).

    Raises:
        ValueError: other rows, negative weights, or weights that sum to zero.
    """
    raw = np.ones(len(members)) if weights is None else np.asarray(weights, dtype=np.float64)
    if (raw < 0).any() or not raw.sum() > 0:
        raise ValueError(f"soft vote with weights {raw.tolist()}")
    shares = raw / raw.sum()
    total = np.zeros_like(members[0].values, dtype=np.float64)
    for share, member in zip(shares, members, strict=True):
        if member.ids != members[0].ids:
            raise ValueError("soft vote over different rows")
        shifted = member.values - member.values.max(axis=1, keepdims=True)
        odds = np.exp(shifted.astype(np.float64))
        total += share * odds / odds.sum(axis=1, keepdims=True)
    return np.log(np.maximum(total, np.finfo(np.float64).tiny)).astype(np.float32)
