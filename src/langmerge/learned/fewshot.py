"""Few-shot weights: a softmax over how well each source explains n labelled examples of the target."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from langmerge.coefficients import Coefficients
from langmerge.errors import DataError, SelectionError
from langmerge.results import Logits, signature

Labels = np.ndarray[Any, np.dtype[np.int64]]
Values = np.ndarray[Any, np.dtype[np.floating[Any]]]


def mean_cross_entropy(values: Values, labels: Labels) -> float:
    """Mean of −log softmax(z)_y over rows, in nats.

    >>> round(mean_cross_entropy(np.zeros((2, 4)), np.array([0, 3])), 6) == round(float(np.log(4)), 6)
    True

    Args:
        values: logits, shape (rows, classes).
        labels: int64, shape (rows,).

    Raises:
        DataError: no rows, or another number of them.
    """
    if not len(labels) or len(labels) != len(values):
        raise DataError(
            f"a cross-entropy needs a label for each row: {len(values)} rows, {len(labels)} labels"
        )
    wide = values.astype(np.float64)
    top = wide.max(axis=1, keepdims=True)
    logs = wide - top - np.log(np.exp(wide - top).sum(axis=1, keepdims=True))
    return float(-logs[np.arange(len(labels)), labels].mean())


def few_rows(count: int, n: int, *, seed: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Which `n` of `count` rows are the labelled ones: drawn by the seed without replacement, in file order.

    Raises:
        DataError: n below 1 or above what there is.
    """
    if not 1 <= n <= count:
        raise DataError(f"{n} labelled examples are asked for, there are {count}: choose 1 to {count}")
    return np.sort(np.random.default_rng(seed).choice(count, size=n, replace=False))


def fewshot_weights(losses: Mapping[str, float], *, temperature: float = 1.0) -> dict[str, float]:
    """w_i = exp(−loss_i / T) / Σ_j exp(−loss_j / T).

    Args:
        losses: mean cross-entropy of each source, in nats.
        temperature: T > 0, in nats; towards 0 the source with the smallest loss takes all.

    Raises:
        SelectionError: T not positive, no source, or a loss that is not finite.
    """
    if not 0 < temperature < np.inf:
        raise SelectionError(f"temperature is {temperature}, it must be above 0")
    if not losses:
        raise SelectionError("few-shot weights need sources: none were given")
    if broken := [source for source, loss in losses.items() if not np.isfinite(loss)]:
        raise SelectionError(f"the loss of {broken[0]} is {losses[broken[0]]}: leave this source out")
    raw = -np.array(list(losses.values()), dtype=np.float64) / temperature
    odds = np.exp(raw - raw.max())
    return dict(zip(losses, (odds / odds.sum()).tolist(), strict=True))


def fewshot(
    logits: Mapping[str, Logits],
    *,
    n: int,
    temperature: float = 1.0,
    seed: int = 0,
    target: str | None = None,
) -> Coefficients:
    """Weights from n labelled examples.

    Args:
        logits: of each source on the same labelled rows of the target; n of them are drawn.
        n: how many labels are looked at.
        temperature: see `fewshot_weights`.
        seed: of the draw.
        target: the locale; only recorded.

    Returns:
        One coefficient for each source, in the order given; rows, losses and T in the provenance.

    Raises:
        DataError: the sources have other rows, or there are fewer than n.
        SelectionError: see `fewshot_weights`.
    """
    if not logits:
        raise SelectionError("few-shot weights need sources: none were given")
    first = next(iter(logits.values()))
    if other := [source for source, one in logits.items() if one.ids != first.ids]:
        raise DataError(f"the logits of {other[0]} are of other rows than those of {next(iter(logits))}")
    rows = few_rows(len(first.ids), n, seed=seed)
    losses = {s: mean_cross_entropy(one.values[rows], one.labels[rows]) for s, one in logits.items()}
    weights = fewshot_weights(losses, temperature=temperature)
    provenance = {
        "learned": "fewshot",
        "rows": n,
        "ids": signature([first.ids[row] for row in rows]),
        "temperature": temperature,
        "seed": seed,
        "losses": losses,
        "logits": {source: one.signature for source, one in logits.items()},
    }
    return Coefficients(target=target, values={"model": weights}, provenance=provenance)
