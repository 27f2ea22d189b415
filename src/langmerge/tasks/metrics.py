"""Scores, their intervals, and the paired test of two models on the same rows.

Resampling rows with replacement only matters through how often each outcome is drawn, and those counts are multinomial.
So the bootstrap draws counts, not rows: the same distribution at a cost that does not grow with the number of rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int, Int64

from langmerge.errors import DataError, MethodError
from langmerge.tasks.choices import what_is_accepted

METRICS: tuple[str, ...] = ("accuracy", "macro_f1")


@dataclass(frozen=True)
class Interval:
    """A percentile interval, in the score's unit."""

    low: float
    high: float


@dataclass(frozen=True)
class PairedDifference:
    """Model a minus model b on the same rows.

    Args:
        points: difference of the accuracies (or F1), in percentage points.
        low, high: its percentile interval, in points.
        p_value: two-sided: exact McNemar test of accuracies; of span F1 a paired randomisation test.
        n: rows.
    """

    points: float
    low: float
    high: float
    p_value: float
    n: int


def accuracy(labels: Int[np.ndarray, " rows"], predictions: Int[np.ndarray, " rows"]) -> float:
    """The share of rows whose prediction is the label, in [0, 1].

    >>> accuracy(np.array([0, 1, 1, 2]), np.array([0, 1, 2, 2]))
    0.75

    Raises:
        DataError: no rows, or arrays of different shapes.
    """
    _check_rows(labels, predictions, names="labels and predictions")
    return float((labels == predictions).mean())


def macro_f1(labels: Int[np.ndarray, " rows"], predictions: Int[np.ndarray, " rows"]) -> float:
    """The mean over classes of F1, in [0, 1].

    F1_c = 2 · hits_c / (times c is a label + times c is predicted)

    >>> macro_f1(np.array([0, 0, 1]), np.array([0, 1, 1]))
    0.6666666666666666

    Raises:
        DataError: no rows, or arrays of different shapes.

    Conventions: the mean is over the classes that occur among the labels or the predictions, as scikit-learn's default
    has it. A class that occurs in neither has no F1; counting it as 0 would lower the score of a split that lacks it.
    """
    _check_rows(labels, predictions, names="labels and predictions")
    cells, counts = _confusion(labels, predictions)
    return float(_macro_f1_of_counts(cells, counts[None, :])[0])


def bootstrap_interval(
    labels: Int[np.ndarray, " rows"],
    predictions: Int[np.ndarray, " rows"],
    *,
    metric: str = "accuracy",
    level: float = 0.95,
    samples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap over rows.

    Args:
        labels: true classes.
        predictions: predicted classes.
        metric: "accuracy" or "macro_f1".
        level: coverage, in (0, 1).
        samples: resamples, 1 or more.
        seed: of the resampling.

    Raises:
        DataError: no rows, or arrays of different shapes.
        MethodError: an unknown metric, or a value outside its range.
    """
    _check_rows(labels, predictions, names="labels and predictions")
    check_bootstrap(level=level, samples=samples)
    if metric not in METRICS:
        raise MethodError(f"unknown metric {metric!r}: {what_is_accepted(metric, METRICS)}")
    if metric == "accuracy":
        right = int((labels == predictions).sum())
        drawn = resampled(np.array([right, len(labels) - right]), samples=samples, seed=seed)
        scores = drawn[:, 0] / len(labels)
    else:
        cells, counts = _confusion(labels, predictions)
        scores = _macro_f1_of_counts(cells, resampled(counts, samples=samples, seed=seed))
    return percentiles(scores, level=level)


def paired_difference(
    correct_a: Bool[np.ndarray, " rows"],
    correct_b: Bool[np.ndarray, " rows"],
    *,
    level: float = 0.95,
    samples: int = 10_000,
    seed: int = 0,
) -> PairedDifference:
    """How much better model a is than model b, on the same rows.

    points = 100 · (mean a − mean b) = 100 · (rows that only a has right − rows that only b has right) / rows

    Args:
        correct_a: where model a is right.
        correct_b: where model b is right.
        level: coverage, in (0, 1).
        samples: resamples, 1 or more.
        seed: of the resampling.

    Raises:
        DataError: no rows, arrays of different shapes, or not of bool.
        MethodError: `level` or `samples` outside its range.

    Conventions: the interval resamples rows, keeping each row's pair together. The test is McNemar's exact one (a
    binomial on the rows where the models differ), without a mid-p correction; 1 if they differ nowhere.
    """
    _check_rows(correct_a, correct_b, names="the two models' rows")
    check_bootstrap(level=level, samples=samples)
    if correct_a.dtype != np.bool_ or correct_b.dtype != np.bool_:
        raise DataError(f"where a model is right must be bool, got {correct_a.dtype} and {correct_b.dtype}")
    n = len(correct_a)
    only_a, only_b = int((correct_a & ~correct_b).sum()), int((correct_b & ~correct_a).sum())
    drawn = resampled(np.array([only_a, only_b, n - only_a - only_b]), samples=samples, seed=seed)
    interval = percentiles(100 * (drawn[:, 0] - drawn[:, 1]) / n, level=level)
    return PairedDifference(
        points=100 * (only_a - only_b) / n,
        low=interval.low,
        high=interval.high,
        p_value=_mcnemar(only_a, only_b),
        n=n,
    )


def mean_interval(
    values: Float64[np.ndarray, " rows"], *, level: float = 0.95, samples: int = 10_000, seed: int = 0
) -> tuple[float, Interval]:
    """The mean of a number per row, with its percentile bootstrap interval over rows.

    For differences against the mean of several models, where a row's outcome is a fraction.

    Args:
        values: one number per row.
        level: coverage, in (0, 1).
        samples: resamples, 1 or more.
        seed: of the resampling.

    Returns:
        The mean and its interval, in the unit of `values`.

    Raises:
        DataError: no rows, or a value that is not finite.
        MethodError: `level` or `samples` outside its range.
    """
    _check_rows(values, values, names="values")
    check_bootstrap(level=level, samples=samples)
    if not np.isfinite(values).all():
        faults = int((~np.isfinite(values)).sum())
        raise DataError(f"{faults} of {len(values)} values are not finite: their mean is none")
    outcomes, counts = np.unique(values, return_counts=True)
    drawn = resampled(counts, samples=samples, seed=seed)
    return float(values.mean()), percentiles(drawn @ outcomes / len(values), level=level)


def seeded_interval(
    cells: Mapping[tuple[str, int], Float64[np.ndarray, " rows"]],
    *,
    level: float = 0.95,
    samples: int = 2_000,
    seed: int = 0,
) -> tuple[float, Interval]:
    """The mean over targets of the mean over seeds, with a bootstrap over rows and seeds.

    In each resample a target's seeds are drawn anew, and its rows once for all of them: a row is as hard for one seed as
    for another. Targets are taken as they are: nothing is said of other languages.

    Args:
        cells: (target, seed) → a number for each row; of a target as many rows for every seed.
        level: coverage, in (0, 1).
        samples: resamples, 1 or more.
        seed: of the resampling.

    Returns:
        The mean and its interval, in the unit of the numbers.

    Raises:
        DataError: no cells, or seeds of a target with other numbers of rows.
        MethodError: `level` or `samples` outside its range.
    """
    check_bootstrap(level=level, samples=samples)
    by_target: dict[str, list[np.ndarray]] = {}
    for (target, _), values in sorted(cells.items(), key=lambda item: item[0]):
        by_target.setdefault(target, []).append(values)
    if not by_target:
        raise DataError("no cells: there is nothing to take the mean of")
    if odd := [target for target, own in by_target.items() if len({len(one) for one in own}) > 1]:
        raise DataError(f"seeds of {odd[0]} have other rows: they cannot be drawn together")
    tables = [np.stack(own) for own in by_target.values()]
    rng = np.random.default_rng(seed)
    drawn = np.empty(samples)
    for sample in range(samples):
        parts = [
            own[rng.integers(0, len(own), len(own))]
            .mean(0)[rng.integers(0, own.shape[1], own.shape[1])]
            .mean()
            for own in tables
        ]
        drawn[sample] = np.mean(parts)
    return float(np.mean([own.mean() for own in tables])), percentiles(drawn, level=level)


def _mcnemar(only_a: int, only_b: int) -> float:
    # p = min(1, 2 · P[Binomial(only_a + only_b, 1/2) ≤ min(only_a, only_b)]), in whole numbers until the last division.
    differing = only_a + only_b
    term = tail = 1
    for k in range(min(only_a, only_b)):
        term = term * (differing - k) // (k + 1)
        tail += term
    return min(1.0, 2 * tail / (1 << differing))


def _confusion(
    labels: Int[np.ndarray, " rows"], predictions: Int[np.ndarray, " rows"]
) -> tuple[Int64[np.ndarray, "cells 2"], Int64[np.ndarray, " cells"]]:
    """The pairs (label, prediction) that occur, with classes renumbered from 0, and how often each does."""
    classes, flat = np.unique(np.concatenate([labels, predictions]), return_inverse=True)
    pairs = flat[: len(labels)] * len(classes) + flat[len(labels) :]
    found, counts = np.unique(pairs, return_counts=True)
    return np.stack([found // len(classes), found % len(classes)], axis=1), counts


def _macro_f1_of_counts(
    cells: Int64[np.ndarray, "cells 2"], counts: Int64[np.ndarray, "samples cells"]
) -> Float64[np.ndarray, " samples"]:
    # F1_c = 2 · hits_c / (labels_c + predictions_c), each a sum over the cells that concern c.
    classes = np.arange(cells.max() + 1)
    is_label, is_prediction = (cells[:, side, None] == classes for side in (0, 1))
    drawn = counts.astype(np.float64)
    hits = drawn @ (is_label & is_prediction).astype(np.float64)
    occurrences = drawn @ (is_label.astype(np.float64) + is_prediction)
    f1 = 2 * hits / np.maximum(occurrences, 1)
    return np.asarray(f1.sum(axis=1) / (occurrences > 0).sum(axis=1))


def resampled(
    counts: Int64[np.ndarray, " cells"], *, samples: int, seed: int
) -> Int64[np.ndarray, "samples cells"]:
    """How many rows of each outcome are drawn, with replacement, in each resample."""
    n = counts.sum()
    return np.random.default_rng(seed).multinomial(n, counts / n, size=samples)


def percentiles(scores: Float64[np.ndarray, " samples"], *, level: float) -> Interval:
    """What holds the middle share `level` of scores."""
    low, high = np.quantile(scores, [(1 - level) / 2, (1 + level) / 2])
    return Interval(low=float(low), high=float(high))


def _check_rows(a: np.ndarray, b: np.ndarray, *, names: str) -> None:
    if a.ndim != 1 or a.shape != b.shape or not len(a):
        raise DataError(
            f"{names} must be two arrays of one shape (rows,) with rows, got {a.shape} and {b.shape}"
        )


def check_bootstrap(*, level: float, samples: int) -> None:
    """Raise a MethodError unless an interval can be made of these."""
    if not 0 < level < 1:
        raise MethodError(f"level {level} is no coverage: give a number between 0 and 1, like 0.95")
    if samples < 1:
        raise MethodError(f"{samples} resamples give no interval: give 1 or more")
