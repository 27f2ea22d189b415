from collections.abc import Callable
from math import comb

import numpy as np
import pytest
from beartype import beartype
from jaxtyping import jaxtyped

from langmerge.errors import DataError, MethodError
from langmerge.tasks import (
    accuracy,
    bootstrap_interval,
    macro_f1,
    mean_interval,
    paired_difference,
    seeded_interval,
)

LABELS = np.array([0, 0, 0, 1, 1, 2])
PREDICTIONS = np.array([0, 0, 1, 1, 3, 0])


def random_rows(n: int, classes: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=n)
    return labels, np.where(rng.random(n) < 0.7, labels, rng.integers(classes, size=n))


def macro_f1_by_rows(labels: np.ndarray, predictions: np.ndarray) -> float:
    scores = []
    for label in {*labels.tolist(), *predictions.tolist()}:
        hits = sum(1 for a, b in zip(labels, predictions, strict=True) if a == b == label)
        scores.append(2 * hits / ((labels == label).sum() + (predictions == label).sum()))
    return float(np.mean(scores))


def test_accuracy_by_hand() -> None:
    assert accuracy(LABELS, PREDICTIONS) == 3 / 6


def test_macro_f1_by_hand() -> None:
    # class 0: 2 hits of 3 labels, 3 predictions; 1: 1 of 2, 2; 2: 0 of 1, 0; 3 is only predicted.
    assert macro_f1(LABELS, PREDICTIONS) == pytest.approx((4 / 6 + 2 / 4 + 0 + 0) / 4)


@pytest.mark.parametrize("seed", range(3))
def test_macro_f1_is_that_of_its_definition(seed: int) -> None:
    labels, predictions = random_rows(100, 7, seed=seed)
    assert macro_f1(labels, predictions) == pytest.approx(macro_f1_by_rows(labels, predictions))


def test_macro_f1_does_not_depend_on_the_numbers_of_the_classes() -> None:
    labels, predictions = random_rows(50, 4)
    renamed = np.array([40, 3, 1_000_000, 7])
    assert macro_f1(renamed[labels], renamed[predictions]) == pytest.approx(macro_f1(labels, predictions))


@pytest.mark.parametrize("score", [accuracy, macro_f1])
def test_perfect_and_hopeless(score: Callable[[np.ndarray, np.ndarray], float]) -> None:
    assert score(LABELS, LABELS) == 1.0
    assert score(LABELS, LABELS + 1_000) == 0.0
    assert type(score(LABELS, PREDICTIONS)) is float


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
def test_the_bootstrap_is_that_over_rows(metric: str) -> None:
    labels, predictions = random_rows(80, 5)
    score = {"accuracy": accuracy, "macro_f1": macro_f1}[metric]
    rng = np.random.default_rng(1)
    drawn = [score(labels[rows], predictions[rows]) for rows in rng.integers(80, size=(4000, 80))]
    low, high = np.quantile(drawn, [0.05, 0.95])
    found = bootstrap_interval(labels, predictions, metric=metric, level=0.9, samples=20_000)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.013)  # a row is 0.0125


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
def test_a_bootstrap_repeats_and_widens_with_its_level(metric: str) -> None:
    labels, predictions = random_rows(200, 5)
    narrow, again = (
        bootstrap_interval(labels, predictions, metric=metric, level=0.5, seed=3) for _ in range(2)
    )
    wide = bootstrap_interval(labels, predictions, metric=metric, level=0.99, seed=3)
    other = bootstrap_interval(labels, predictions, metric=metric, level=0.5, seed=4, samples=99)
    assert narrow == again != other
    assert 0 <= wide.low < narrow.low < narrow.high < wide.high <= 1


def test_a_perfect_score_has_no_width() -> None:
    for metric in ("accuracy", "macro_f1"):
        found = bootstrap_interval(LABELS, LABELS, metric=metric)
        assert (found.low, found.high) == (1.0, 1.0)


def test_the_interval_of_a_mean_is_that_over_rows() -> None:
    values = np.random.default_rng(0).integers(6, size=120) / 5 - 0.3
    rows = np.random.default_rng(1).integers(120, size=(10_000, 120))
    low, high = np.quantile(values[rows].mean(axis=1), [0.05, 0.95])
    mean, found = mean_interval(values, level=0.9, samples=10_000)
    assert mean == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.005)


def test_the_interval_of_a_mean_is_that_of_the_accuracy() -> None:
    right = (LABELS == PREDICTIONS).astype(np.float64)
    mean, found = mean_interval(right, samples=500)
    assert mean == accuracy(LABELS, PREDICTIONS)
    assert 0 <= found.low < mean < found.high <= 1
    assert mean_interval(np.ones(3)) == (1.0, bootstrap_interval(LABELS, LABELS))


@pytest.mark.parametrize(
    "values", [np.array([]), np.zeros((2, 2)), np.array([0.5, np.nan]), np.array([np.inf])]
)
def test_values_without_a_mean_are_an_error(values: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"one shape \(rows,\)|1 of . values are not finite"):
        mean_interval(values)


def test_one_row_is_enough() -> None:
    one = np.array([4])
    assert macro_f1(one, one) == accuracy(one, one) == bootstrap_interval(one, one).low == 1.0
    assert paired_difference(one == 4, one == 5).points == 100.0


def test_paired_difference_by_hand() -> None:
    # a alone is right 7 times, b alone once, both 4 times: 100 · 6/12 points; p = 2 · (1 + 8) / 2^8.
    a = np.array([True] * 11 + [False])
    b = np.array([False] * 7 + [True] * 5)
    found = paired_difference(a, b)
    assert (found.points, found.n, found.p_value) == (50.0, 12, 2 * 9 / 256)
    assert found.low < 50 < found.high


def test_exchanging_the_models_changes_the_sign() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random(400) < 0.8, rng.random(400) < 0.7
    one, other = paired_difference(a, b), paired_difference(b, a)
    assert (one.points, one.p_value) == (-other.points, other.p_value)
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low), abs=0.6)
    assert one.points == pytest.approx(100 * (a.mean() - b.mean()))


def test_the_paired_interval_is_that_over_rows() -> None:
    rng = np.random.default_rng(0)
    a = rng.random(150) < 0.8
    b = np.where(rng.random(150) < 0.8, a, ~a)
    rows = rng.integers(150, size=(10_000, 150))
    low, high = np.quantile(100 * (a[rows].mean(axis=1) - b[rows].mean(axis=1)), [0.025, 0.975])
    found = paired_difference(a, b)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.7)


def test_models_that_agree_do_not_differ() -> None:
    a = np.array([True, False, True])
    found = paired_difference(a, a)
    assert (found.points, found.low, found.high, found.p_value) == (0, 0, 0, 1)


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 1), (3, 3), (5, 2), (40, 60), (900, 1100), (3000, 0)])
def test_mcnemar_is_the_binomial_tail(only_a: int, only_b: int) -> None:
    n = only_a + only_b
    expected = min(1.0, 2 * sum(comb(n, k) for k in range(min(only_a, only_b) + 1)) / (1 << n))
    a = np.arange(n) < only_a
    assert paired_difference(a, ~a, samples=10).p_value == expected


@pytest.mark.parametrize("score", [accuracy, macro_f1, bootstrap_interval, paired_difference])
@pytest.mark.parametrize(("a", "b"), [((3,), (2,)), ((0,), (0,)), ((2, 2), (2, 2)), ((), ())])
def test_rows_that_do_not_pair_are_an_error(
    score: Callable[[np.ndarray, np.ndarray], object], a: tuple[int, ...], b: tuple[int, ...]
) -> None:
    with pytest.raises(DataError, match=r"two arrays of one shape \(rows,\)"):
        score(np.zeros(a, dtype=np.int64), np.zeros(b, dtype=np.int64))


def test_only_bool_says_where_a_model_is_right() -> None:
    with pytest.raises(DataError, match="must be bool, got int64"):
        paired_difference(LABELS, LABELS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "macrof1"}, "unknown metric 'macrof1': did you mean 'macro_f1'"),
        ({"level": 0.0}, "level 0.0 is no coverage"),
        ({"level": 95}, "level 95 is no coverage"),
        ({"samples": 0}, "0 resamples"),
    ],
)
def test_options_outside_their_range_are_errors(options: dict[str, object], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        bootstrap_interval(LABELS, PREDICTIONS, **options)  # type: ignore[arg-type]
    if "metric" not in options:
        with pytest.raises(MethodError, match=message):
            paired_difference(LABELS == 0, LABELS == 1, **options)  # type: ignore[arg-type]


def test_the_annotated_shapes_hold() -> None:
    for score in (accuracy, macro_f1, bootstrap_interval):
        jaxtyped(typechecker=beartype)(score)(LABELS, PREDICTIONS)
    jaxtyped(typechecker=beartype)(mean_interval)(LABELS / 2)
    jaxtyped(typechecker=beartype)(paired_difference)(LABELS == 0, LABELS == 1)


def test_an_interval_over_rows_and_seeds_by_hand() -> None:
    """Of one seed it is that over rows; seeds that differ in all rows alike spread it from one to the other."""
    rows = np.array([1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0] * 20)
    point, interval = seeded_interval({("sw", 0): rows}, samples=4_000)
    mean, plain = mean_interval(rows)
    assert point == mean
    assert (interval.low, interval.high) == pytest.approx((plain.low, plain.high), abs=0.015)
    constant = {("sw", seed): np.full(50, value) for seed, value in ((0, 1.0), (1, 3.0))}
    point, interval = seeded_interval(constant)
    # Both draws the same in a quarter of the resamples each.
    assert (point, interval.low, interval.high) == (2.0, 1.0, 3.0)


def test_targets_weigh_the_same_and_are_not_drawn() -> None:
    cells = {("sw", 0): np.full(10, 1.0), ("sw", 1): np.full(10, 1.0), ("cy", 0): np.full(300, 4.0)}
    point, interval = seeded_interval(cells)
    assert (point, interval.low, interval.high) == (2.5, 2.5, 2.5)


def test_a_row_is_drawn_for_all_seeds_at_once() -> None:
    """Rows that every seed finds hard: as many seeds as one likes make the interval no narrower than one does."""
    rows = np.tile([1.0, 0.0], 50)
    _, one = seeded_interval({("sw", 0): rows}, samples=4_000)
    _, many = seeded_interval({("sw", seed): rows for seed in range(10)}, samples=4_000)
    assert many.high - many.low == pytest.approx(one.high - one.low, rel=0.1)


@pytest.mark.parametrize("cells", [{}, {("sw", 0): np.ones(3), ("sw", 1): np.ones(4)}])
def test_cells_that_cannot_be_drawn_together(cells: dict[tuple[str, int], np.ndarray]) -> None:
    with pytest.raises(DataError, match=r"no cells|have other rows"):
        seeded_interval(cells)
