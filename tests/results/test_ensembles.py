"""Several models as one."""

from collections.abc import Sequence

import numpy as np
import pytest

from langmerge.results import Logits
from langmerge.results.ensembles import ENSEMBLES, logit_average, majority, soft_vote


def logits(values: Sequence[Sequence[float]], ids: str = "a") -> Logits:
    array = np.array(values, dtype=np.float32)
    names = tuple(f"{ids}{row}" for row in range(len(array)))
    return Logits("0" * 12, names, np.zeros(len(array), dtype=np.int64), array)


def test_a_soft_vote_by_hand() -> None:
    """Probabilities (3/4, 1/4) and (1/5, 4/5)."""
    members = [logits([[np.log(3.0), 0.0]]), logits([[0.0, np.log(4.0)]])]
    np.testing.assert_allclose(np.exp(soft_vote(members)), [[0.475, 0.525]], rtol=1e-6)
    weighted = np.exp(soft_vote(members, [3.0, 1.0]))
    np.testing.assert_allclose(weighted, [[(2.25 + 0.2) / 4, (0.75 + 0.8) / 4]], rtol=1e-6)


def test_a_vote_of_one_keeps_its_probabilities() -> None:
    one = logits([[1.0, 2.0, -1.0], [0.0, 0.0, 9.0]])
    shares = np.exp(one.values) / np.exp(one.values).sum(axis=1, keepdims=True)
    found = soft_vote([one])
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.exp(found), shares, rtol=1e-5)


def test_a_vote_does_not_depend_on_scale_of_weights_or_on_shifted_logits() -> None:
    one, other = logits([[1.0, 2.0], [0.5, -3.0]]), logits([[4.0, 1.0], [0.0, 0.0]])
    shifted = logits((other.values + 100).tolist())
    expected = soft_vote([one, other], [0.2, 0.6])
    np.testing.assert_allclose(soft_vote([one, shifted], [1.0, 3.0]), expected, atol=1e-5)
    np.testing.assert_allclose(soft_vote([other, one], [0.6, 0.2]), expected, atol=1e-6)


def test_large_logits_do_not_overflow() -> None:
    found = soft_vote([logits([[1e4, 0.0]]), logits([[0.0, 1e4]])])
    np.testing.assert_allclose(np.exp(found), [[0.5, 0.5]])
    assert np.isfinite(soft_vote([logits([[1e4, 0.0]])])).all()


def test_a_vote_is_over_the_same_rows() -> None:
    with pytest.raises(ValueError, match="different rows"):
        soft_vote([logits([[1.0, 2.0]]), logits([[1.0, 2.0]], ids="b")])


@pytest.mark.parametrize("weights", [[0.0, 0.0], [1.0, -1.0], [2.0, -0.5]])
def test_weights_of_no_vote(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="a vote with weights"):
        soft_vote([logits([[1.0, 2.0]])] * 2, weights)


def test_as_many_weights_as_members() -> None:
    with pytest.raises(ValueError, match=r"shorter|longer"):
        soft_vote([logits([[1.0, 2.0]])] * 2, [1.0])


def test_a_majority_by_hand() -> None:
    """Two for label 0 and one, who is very sure, for label 1: they win; weighted by 1, 1 and 3 they lose."""
    members = [logits([[1.0, 0.0, 0.0]]), logits([[1.0, 0.0, 0.0]]), logits([[0.0, 9.0, 0.0]])]
    assert soft_vote(members).argmax(1) == [1]
    assert majority(members).tolist() == [[2.0, 1.0, 0.0]]
    assert majority(members, [1.0, 1.0, 3.0]).tolist() == [[1.0, 2.0, 0.0]]


def test_of_equal_votes_the_more_probable_label_wins() -> None:
    for sure, winner in ((0, 0), (1, 2)):
        values = [[2.0, 0.0, 0.0], [0.0, 0.0, 2.0]]
        values[sure][2 * sure] = 5.0
        members = [logits([row]) for row in values]
        assert majority(members).argmax(1) == [winner]
    # A third of the weight thrice is one: the last bit of a sum is no vote.
    three = [logits([[9.0, 0.0]]), logits([[0.0, 1.0]])]
    assert majority([three[0], *[three[1]] * 3], [0.3, 0.1, 0.1, 0.1]).argmax(1) == [0]


def test_a_logit_average_by_hand() -> None:
    members = [logits([[3.0, 0.0]]), logits([[0.0, 4.0]])]
    np.testing.assert_allclose(logit_average(members), [[1.5, 2.0]])
    np.testing.assert_allclose(logit_average(members, [3.0, 1.0]), [[2.25, 1.0]])


@pytest.mark.parametrize("name", ENSEMBLES)
def test_every_vote_of_one_predicts_as_it_does(name: str) -> None:
    one = logits(np.random.default_rng(0).normal(size=(50, 7)).tolist())
    assert (ENSEMBLES[name][0]([one], None).argmax(1) == one.predictions).all()
