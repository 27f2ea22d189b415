"""What tells a refinement that learns from one that falls apart: label flips and class collapse."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from langmerge.errors import TrainingError

COLLAPSED = 0.5
"""A model that predicts less than this share of the classes that its teacher predicts has collapsed."""


def check_finite(logits: Float[np.ndarray, "n c"]) -> None:
    """Refuse what is no prediction.

    Raises:
        TrainingError: a logit is NaN or infinite.
    """
    if not np.isfinite(logits).all():
        raise TrainingError("A model gives NaN or infinity: its weights are broken")


def divergence(
    teacher: Float[np.ndarray, "n c"], logits: Float[np.ndarray, "n c"], temperature: float
) -> dict[str, Any]:
    """How far a model is from its teacher.

    Args:
        teacher: probabilities.
        logits: the model's.
        temperature: T, of the model's probabilities softmax(z / T); the teacher's are at T already.

    Returns:
        cross_entropy: −mean Σ q log p, in nats.
        excess: what of it is above the teacher's entropy (the Kullback-Leibler divergence).
        agreement: share of rows with the teacher's label.
        flips: number of the others.
    """
    q = teacher.astype(np.float64)
    scaled = logits.astype(np.float64) / temperature
    scaled -= scaled.max(axis=1, keepdims=True)
    log_p = scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True))
    same = q.argmax(axis=1) == logits.argmax(axis=1)
    cross_entropy = float(-(q * log_p).sum(axis=1).mean())
    entropy = float(-(q * np.log(np.where(q > 0, q, 1.0))).sum(axis=1).mean())
    return {
        "cross_entropy": cross_entropy,
        "excess": cross_entropy - entropy,
        "agreement": float(same.mean()),
        "flips": int((~same).sum()),
    }


def spread(probabilities: Float[np.ndarray, "n c"]) -> dict[str, Any]:
    """How predictions are spread over the classes.

    Returns:
        classes: number of classes that are predicted.
        largest_share: share of rows that the commonest of them has.
        mean_entropy: entropy of the mean prediction, in nats.
    """
    counts = np.bincount(probabilities.argmax(axis=1), minlength=probabilities.shape[1])
    mean = probabilities.astype(np.float64).mean(axis=0)
    mean = mean[mean > 0]
    return {
        "classes": int((counts > 0).sum()),
        "largest_share": float(counts.max() / counts.sum()),
        "mean_entropy": float(-(mean * np.log(mean)).sum()),
    }


def collapse_notes(history: Sequence[dict[str, Any]], rounds: Sequence[dict[str, Any]]) -> list[str]:
    """A line for every round whose kept epoch predicts far fewer classes than its teacher."""
    found = []
    for one in rounds:
        kept = [e for e in history if (e["round"], e["epoch"]) == (one["round"], one["kept_epoch"])]
        teacher = one["teacher"]["classes"]
        found += [
            f"class collapse in round {one['round']}: {e['classes']} classes are predicted on held-out text, "
            f"the teacher predicts {teacher}"
            for e in kept
            if e["classes"] < COLLAPSED * teacher
        ]
    return found
