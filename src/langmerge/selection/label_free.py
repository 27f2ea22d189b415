"""Accuracy without labels: estimates out of logits on the target's text, learned on labelled locales.

Every estimate is for one expert on one target. What has to be learned (a temperature, a threshold, a line) is learned
on labelled rows of other locales, never on the target's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int64
from scipy.optimize import minimize_scalar
from scipy.special import ndtr, ndtri

from langmerge.errors import SelectionError
from langmerge.selection.selectors import probabilities

ESTIMATORS = ("entropy", "confidence", "atc", "agreement_line", "agreement")
"""`entropy`: a line from mean entropy to accuracy, over cells of labelled locales. `confidence`: mean confidence at the
temperature that fits the labelled rows best. `atc`: share of rows above the threshold that is right about the labelled
rows (Garg et al., 2022). `agreement_line`: accuracy on the line that pairs of experts' agreements lie on, probit scale
(Baek et al., 2022). `agreement`: mean agreement with the other experts."""

FIT_ROWS = 4_000
"""Labelled rows that a temperature or a threshold is learned from, at most."""

_EDGE = 1e-3
"""Shares are kept so far from 0 and 1 on the probit scale."""


@dataclass(frozen=True)
class Labelled:
    """Logits with labels.

    Attributes:
        logits: shape (n, classes).
        labels: shape (n,).
    """

    logits: Float[np.ndarray, "n c"]
    labels: Int64[np.ndarray, "n"]

    @property
    def accuracy(self) -> float:
        """Share of right predictions."""
        return float((self.logits.argmax(axis=1) == self.labels).mean())


def best_temperature(logits: Float[np.ndarray, "n c"], labels: Int64[np.ndarray, "n"]) -> float:
    """The T > 0 with the smallest cross-entropy of softmax(z / T) (Guo et al., 2017)."""
    rows = np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        scaled = logits.astype(np.float64) / np.exp(log_temperature)
        top = scaled.max(axis=1, keepdims=True)
        total = np.log(np.exp(scaled - top).sum(axis=1)) + top[:, 0]
        return float((total - scaled[rows, labels]).mean())

    return float(np.exp(minimize_scalar(loss, bounds=(-4, 4), method="bounded").x))


def mean_confidence(logits: Float[np.ndarray, "n c"], temperature: float = 1.0) -> float:
    """Mean of the largest probability."""
    return float(probabilities(logits, temperature).max(axis=1).mean())


def mean_entropy(logits: Float[np.ndarray, "n c"]) -> float:
    """Mean entropy of the predictions, in nats."""
    shares = probabilities(logits)
    return float(-(shares * np.log(np.maximum(shares, 1e-300))).sum(axis=1).mean())


def confidence_threshold(known: Labelled) -> float:
    """The confidence that as many labelled rows exceed as are predicted right."""
    confidence = np.sort(probabilities(known.logits).max(axis=1))
    wrong = round((1 - known.accuracy) * len(confidence))
    return float(confidence[wrong - 1]) if wrong else 0.0


def above_threshold(logits: Float[np.ndarray, "n c"], threshold: float) -> float:
    """Share of rows whose confidence is above."""
    return float((probabilities(logits).max(axis=1) > threshold).mean())


def agreements(predictions: Sequence[Int64[np.ndarray, "n"]]) -> Float64[np.ndarray, "m m"]:
    """Share of rows on which each pair agrees."""
    stacked = np.stack(predictions)
    return np.array([[(a == b).mean() for b in stacked] for a in stacked], dtype=np.float64)


def _probit(share: Float64[np.ndarray, "..."]) -> Float64[np.ndarray, "..."]:
    return np.asarray(ndtri(np.clip(share, _EDGE, 1 - _EDGE)), dtype=np.float64)


def accuracy_on_line(
    known: Float64[np.ndarray, "m"],
    agreed: Float64[np.ndarray, "m m"],
    agreed_there: Float64[np.ndarray, "m m"],
) -> Float64[np.ndarray, "m"]:
    """Accuracies on the target: Φ(a Φ⁻¹(accuracy) + b), a and b from pairs' agreements on labelled rows and on the target's.

    Args:
        known: accuracy of each expert on the labelled rows.
        agreed: agreement of pairs there.
        agreed_there: agreement of pairs on the target.

    Raises:
        SelectionError: fewer than three experts: no line.
    """
    pairs = np.triu_indices(len(known), 1)
    if len(known) < 3:
        raise SelectionError(f"agreement_line needs three experts or more, found {len(known)}")
    x, y = _probit(agreed[pairs]), _probit(agreed_there[pairs])
    spread = float(((x - x.mean()) ** 2).sum())
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / spread) if spread > 1e-12 else 0.0
    return np.asarray(ndtr(slope * (_probit(known) - x.mean()) + y.mean()), dtype=np.float64)


Cells = Mapping[str, Mapping[str, Labelled]]
"""expert → locale → logits and labels."""


def estimate(
    how: str, labelled: Cells, unlabelled: Mapping[str, Float[np.ndarray, "n c"]]
) -> dict[str, float]:
    """Accuracy of every expert on a target, in [0, 1].

    Args:
        how: one of `ESTIMATORS`.
        labelled: logits and labels of every expert on the same other locales, its own among them or not.
        unlabelled: expert → its logits on the target's rows.

    Raises:
        SelectionError: another `how`, no labelled locale but an expert's own, or too few experts.
    """
    if how not in ESTIMATORS:
        raise SelectionError(f"unknown estimate {how!r}: there are {', '.join(ESTIMATORS)}")
    elsewhere = {e: {u: c for u, c in labelled[e].items() if u != e} for e in unlabelled}
    if how != "agreement" and (bare := [e for e, own in elsewhere.items() if not own]):
        raise SelectionError(
            f"{how} needs labelled rows of a locale that is neither the target nor {bare[0]}"
        )
    if how == "confidence":
        return {
            e: mean_confidence(z, best_temperature(*_joined(elsewhere[e]))) for e, z in unlabelled.items()
        }
    if how == "atc":
        return {
            e: above_threshold(z, confidence_threshold(Labelled(*_joined(elsewhere[e]))))
            for e, z in unlabelled.items()
        }
    if how == "entropy":
        return _by_entropy(elsewhere, unlabelled)
    return _by_agreement(how, labelled, unlabelled)


def _joined(cells: Mapping[str, Labelled]) -> tuple[Float[np.ndarray, "n c"], Int64[np.ndarray, "n"]]:
    """Labelled rows of all cells, every so-manieth where there are more than a fit needs."""
    logits = np.concatenate([cell.logits for cell in cells.values()])
    labels = np.concatenate([cell.labels for cell in cells.values()])
    every = -(-len(labels) // FIT_ROWS)
    return logits[::every], labels[::every]


def _by_entropy(elsewhere: Cells, unlabelled: Mapping[str, Float[np.ndarray, "n c"]]) -> dict[str, float]:
    points = [
        (mean_entropy(cell.logits), cell.accuracy) for own in elsewhere.values() for cell in own.values()
    ]
    x, y = np.array(points).T
    spread = float(((x - x.mean()) ** 2).sum())
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / spread) if spread > 1e-12 else 0.0
    return {
        e: float(np.clip(y.mean() + slope * (mean_entropy(z) - x.mean()), 0, 1))
        for e, z in unlabelled.items()
    }


def _by_agreement(
    how: str, labelled: Cells, unlabelled: Mapping[str, Float[np.ndarray, "n c"]]
) -> dict[str, float]:
    experts = list(unlabelled)
    if len(experts) < 2:
        raise SelectionError("agreement needs two experts or more")
    there = agreements([z.argmax(axis=1) for z in unlabelled.values()])
    if how == "agreement":
        others = (there.sum(axis=1) - 1) / (len(experts) - 1)
        return dict(zip(experts, others.tolist(), strict=True))
    locales = [u for u in labelled[experts[0]] if all(u in labelled[e] for e in experts)]
    if not locales:
        raise SelectionError("agreement_line needs a labelled locale on which every expert was run")
    # An expert's own locale is no transfer: its accuracy there and its agreements there would bend the line.
    predicted = {e: {u: labelled[e][u].logits.argmax(axis=1) for u in locales} for e in experts}
    agreed = np.eye(len(experts))
    for i, a in enumerate(experts):
        for j, b in enumerate(experts):
            shared = [u for u in locales if u not in (a, b)]
            if i != j and not shared:
                raise SelectionError(f"agreement_line needs a labelled locale that is neither {a} nor {b}")
            if i != j:
                agreed[i, j] = np.mean([(predicted[a][u] == predicted[b][u]).mean() for u in shared])
    known = np.array([np.mean([labelled[e][u].accuracy for u in locales if u != e]) for e in experts])
    line = accuracy_on_line(known, agreed, there)
    return dict(zip(experts, line.tolist(), strict=True))
