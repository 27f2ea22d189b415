"""Few-shot weights, by hand."""

import math

import numpy as np
import pytest

from langmerge.errors import DataError, SelectionError
from langmerge.learned.fewshot import few_rows, fewshot, fewshot_weights, mean_cross_entropy
from langmerge.results import Logits, signature


def test_cross_entropy_by_hand() -> None:
    # Odds 3 : 1, so −log 3/4 for the first label and −log 1/4 for the second.
    values = np.array([[math.log(3), 0.0], [math.log(3), 0.0]], dtype=np.float32)
    assert mean_cross_entropy(values, np.array([0, 0])) == pytest.approx(math.log(4 / 3), abs=1e-7)
    assert mean_cross_entropy(values, np.array([0, 1])) == pytest.approx(math.log(16 / 3) / 2, abs=1e-7)
    assert mean_cross_entropy(np.zeros((1, 60)), np.array([59])) == pytest.approx(4.0943445622)


def test_cross_entropy_of_huge_logits_is_finite() -> None:
    values = np.array([[0.0, -60_000.0]], dtype=np.float32)
    assert mean_cross_entropy(values, np.array([1])) == 60_000.0
    assert mean_cross_entropy(values + 60_000, np.array([0])) == 0.0


@pytest.mark.parametrize("labels", [np.zeros(0, dtype=np.int64), np.zeros(3, dtype=np.int64)])
def test_cross_entropy_needs_a_label_for_each_row(labels: np.ndarray) -> None:
    with pytest.raises(DataError, match="a label for each row: 2 rows"):
        mean_cross_entropy(np.zeros((2, 2)), labels)


def test_weights_by_hand() -> None:
    # Losses differ by T·log 2 and T·log 4: odds 4 : 2 : 1.
    temperature = 0.5
    losses = {"de-DE": 1.0, "fr-FR": 1.0 + 0.5 * math.log(2), "tr-TR": 1.0 + 0.5 * math.log(4)}
    found = fewshot_weights(losses, temperature=temperature)
    assert list(found) == list(losses)
    assert found == pytest.approx({"de-DE": 4 / 7, "fr-FR": 2 / 7, "tr-TR": 1 / 7})
    assert fewshot_weights({"a": 900.0, "b": 900.0}) == {"a": 0.5, "b": 0.5}
    assert fewshot_weights({"a": 0.1, "b": 0.2}, temperature=1e-4)["a"] == 1.0


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_a_temperature_that_is_none(temperature: float) -> None:
    with pytest.raises(SelectionError, match=r"temperature is .*above 0"):
        fewshot_weights({"a": 1.0}, temperature=temperature)


def test_losses_that_are_none() -> None:
    with pytest.raises(SelectionError, match="the loss of b is nan"):
        fewshot_weights({"a": 1.0, "b": math.nan})
    with pytest.raises(SelectionError, match="none were given"):
        fewshot_weights({})
    with pytest.raises(SelectionError, match="none were given"):
        fewshot({}, n=1)


def test_rows_are_drawn_once_each_by_the_seed() -> None:
    drawn = few_rows(100, 20, seed=3)
    assert len(set(drawn.tolist())) == 20
    assert drawn.tolist() == sorted(drawn.tolist())
    assert drawn.tolist() == few_rows(100, 20, seed=3).tolist()
    assert drawn.tolist() != few_rows(100, 20, seed=4).tolist()
    assert few_rows(5, 5, seed=0).tolist() == [0, 1, 2, 3, 4]
    for n in (0, 6):
        with pytest.raises(DataError, match=f"{n} labelled examples are asked for, there are 5"):
            few_rows(5, n, seed=0)


def logits(name: str, values: np.ndarray, ids: str = "abcd") -> Logits:
    return Logits(signature(name), tuple(ids), np.zeros(4, dtype=np.int64), values.astype(np.float32))


def test_only_the_drawn_rows_are_looked_at() -> None:
    rows = few_rows(4, 2, seed=1)
    rest = [row for row in range(4) if row not in rows]
    good, bad = np.tile([0.0, -4.0], (4, 1)), np.tile([-1.0, 0.0], (4, 1))
    mixed = good.copy()
    mixed[rest] = bad[rest]
    found = fewshot({"x": logits("x", good), "y": logits("y", bad)}, n=2, seed=1, target="sw-KE")
    same = fewshot({"x": logits("x", mixed), "y": logits("y", bad)}, n=2, seed=1)
    assert same.values == found.values
    assert found.target == "sw-KE"
    low, high = math.log1p(math.exp(-4)), math.log1p(math.exp(1))
    share = math.exp(-low) / (math.exp(-low) + math.exp(-high))
    assert found.values["model"] == pytest.approx({"x": share, "y": 1 - share})
    said = found.provenance
    assert (said["rows"], said["temperature"], said["seed"]) == (2, 1.0, 1)
    assert said["losses"] == pytest.approx({"x": low, "y": high})
    assert said["ids"] == signature(["abcd"[row] for row in rows])
    assert said["logits"] == {"x": signature("x"), "y": signature("y")}


def test_other_rows_are_refused() -> None:
    one, other = logits("x", np.zeros((4, 2))), logits("y", np.zeros((4, 2)), ids="abce")
    with pytest.raises(DataError, match="the logits of y are of other rows than those of x"):
        fewshot({"x": one, "y": other}, n=2)
