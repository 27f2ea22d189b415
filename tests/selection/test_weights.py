"""Weights of all targets at once."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from langmerge.errors import SelectionError
from langmerge.selection import sinkhorn

NAN = float("nan")
SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 5))
TABLES = arrays(np.float64, SHAPES, elements=st.floats(0, 1))
HEATS = st.floats(0.3, 10)
SEEDS = st.integers(0, 2**32 - 1)


@settings(deadline=None, max_examples=50)
@given(TABLES, HEATS)
def test_columns_sum_to_one_and_all_rows_to_the_same(values: np.ndarray, temperature: float) -> None:
    found = sinkhorn(values, temperature=temperature)
    sources, targets = values.shape
    assert found.min() > 0
    np.testing.assert_allclose(found.sum(axis=0), 1, atol=1e-9)
    np.testing.assert_allclose(found.sum(axis=1), targets / sources, atol=1e-6)


@settings(deadline=None, max_examples=25)
@given(TABLES, HEATS, SEEDS)
def test_what_is_good_for_all_or_easy_for_all_is_no_reason(
    values: np.ndarray, temperature: float, seed: int
) -> None:
    """A number for each source and one for each target, added to its scores, change nothing."""
    rng = np.random.default_rng(seed)
    moved = values + rng.normal(size=(values.shape[0], 1)) + rng.normal(size=(1, values.shape[1]))
    np.testing.assert_allclose(
        sinkhorn(moved, temperature=temperature), sinkhorn(values, temperature=temperature), atol=1e-6
    )


@settings(deadline=None, max_examples=25)
@given(TABLES, HEATS, SEEDS)
def test_order_does_not_matter(values: np.ndarray, temperature: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, columns = (rng.permutation(size) for size in values.shape)
    found = sinkhorn(values, temperature=temperature)[np.ix_(rows, columns)]
    np.testing.assert_allclose(
        sinkhorn(values[np.ix_(rows, columns)], temperature=temperature), found, atol=1e-7
    )


def test_two_by_two_by_hand() -> None:
    """[[x, 1 − x], [1 − x, x]] with x / (1 − x) the root of the cross ratio e^((0.9 + 0.7 − 0.5 − 0.3) / T)."""
    odds = np.exp((0.9 + 0.7 - 0.5 - 0.3) / 0.5 / 2)
    x = odds / (1 + odds)
    found = sinkhorn(np.array([[0.9, 0.5], [0.3, 0.7]]), temperature=0.5)
    np.testing.assert_allclose(found, [[x, 1 - x], [1 - x, x]], atol=1e-8)


def without_diagonal(values: np.ndarray) -> np.ndarray:
    holed = values.copy()
    np.fill_diagonal(holed, np.nan)
    return holed


@settings(deadline=None, max_examples=25)
@given(arrays(np.float64, (4, 4), elements=st.floats(0, 1)), HEATS)
def test_what_is_no_number_takes_no_part(values: np.ndarray, temperature: float) -> None:
    found = sinkhorn(without_diagonal(values), temperature=temperature)
    np.testing.assert_array_equal(np.diag(found), 0)
    assert (found[~np.eye(4, dtype=bool)] > 0).all()
    np.testing.assert_allclose(found.sum(axis=0), 1, atol=1e-9)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)


def test_columns_are_exact_where_no_balance_is_possible() -> None:
    # The first two sources are there for the first target alone, so they cannot do as much as the third.
    found = sinkhorn(np.array([[0.5, NAN], [0.5, NAN], [0.5, 0.5]]))
    np.testing.assert_allclose(found.sum(axis=0), 1, atol=1e-9)
    np.testing.assert_allclose(found[:2, 0], 0.5, atol=1e-2)
    np.testing.assert_array_equal(found[:2, 1], 0)


def test_cold_only_the_best_assignment_is_left() -> None:
    # The first source is the best for both: it goes to the target that has nothing else (0.9 + 0.8 beats 1.0 + 0.1).
    values = np.array([[1.0, 0.9], [0.8, 0.1]])
    for temperature in (0.01, 1e-4, 1e-300):
        found = sinkhorn(values, temperature=temperature)
        np.testing.assert_allclose(found, [[0, 1], [1, 0]], atol=5e-3)


@settings(deadline=None, max_examples=20)
@given(st.permutations(range(4)))
def test_cold_every_target_gets_the_source_that_is_best_for_it_alone(order: list[int]) -> None:
    values = np.full((4, 4), 0.3)
    values[order, range(4)] = 0.6
    found = sinkhorn(values, temperature=0.01)
    np.testing.assert_allclose(found[order, range(4)], 1, atol=1e-9)


def test_hot_all_sources_are_equal() -> None:
    values = np.random.default_rng(0).random((4, 3))
    np.testing.assert_allclose(sinkhorn(values, temperature=1e6), 0.25, atol=1e-5)
    square = without_diagonal(np.random.default_rng(1).random((4, 4)))
    expected = (1 - np.eye(4)) / 3
    np.testing.assert_allclose(sinkhorn(square, temperature=1e6), expected, atol=1e-5)


@pytest.mark.parametrize("temperature", [1e-3, 1e-6, 1e-12, 1e-300])
def test_tiny_temperatures_do_not_overflow(temperature: float) -> None:
    values = np.random.default_rng(2).random((5, 5)) * 100 - 50
    for table in (values, without_diagonal(values)):
        found = sinkhorn(table, temperature=temperature)
        assert np.isfinite(found).all()
        np.testing.assert_allclose(found.sum(axis=0), 1, atol=1e-9)


def test_hard_targets_collapse_onto_themselves_unless_the_diagonal_is_out() -> None:
    """The last target is hard: every other source does badly on it, its own expert well."""
    values = np.array([[0.8, 0.7, 0.2], [0.7, 0.8, 0.25], [0.5, 0.65, 0.9]])
    with_own = sinkhorn(values)
    assert with_own[2, 2] > 0.95
    assert with_own[0, 0] < 0.8
    found = sinkhorn(without_diagonal(values))
    np.testing.assert_array_equal(np.diag(found), 0)
    np.testing.assert_allclose(found.sum(axis=0), 1, atol=1e-9)
    # Three by three without a diagonal has one number to choose: [[0, 1 − x, x], [x, 0, 1 − x], [1 − x, x, 0]].
    x = found[0, 2]
    odds = np.exp((0.2 + 0.7 + 0.65 - 0.7 - 0.25 - 0.5) / 0.1 / 3)
    assert x == pytest.approx(odds / (1 + odds), abs=1e-7)
    np.testing.assert_allclose(found, [[0, 1 - x, x], [x, 0, 1 - x], [1 - x, x, 0]], atol=1e-7)


@pytest.mark.parametrize(
    "values",
    [[[NAN, NAN], [0.1, 0.2]], [[NAN, 0.1], [NAN, 0.2]], [[NAN]]],
)
def test_rows_and_columns_without_a_score_are_errors(values: list[list[float]]) -> None:
    with pytest.raises(SelectionError, match="sinkhorn weights need a score in every row and column"):
        sinkhorn(np.array(values))


@pytest.mark.parametrize("temperature", [0.0, -1.0, NAN, float("inf")])
def test_a_temperature_that_makes_no_sense(temperature: float) -> None:
    with pytest.raises(SelectionError, match=rf"^temperature is {temperature}, it must be above 0"):
        sinkhorn(np.ones((2, 2)), temperature=temperature)


def test_the_warmer_the_more_alike() -> None:
    values = np.random.default_rng(3).random((4, 4))
    largest = [sinkhorn(values, temperature=heat).max() for heat in (0.1, 0.2, 0.5, 1.0, 5.0)]
    assert all(colder > warmer for colder, warmer in itertools.pairwise(largest))
