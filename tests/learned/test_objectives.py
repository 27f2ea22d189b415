"""Objectives, by hand and by their identities."""

import math

import numpy as np
import pytest
import torch

from langmerge.errors import InputError
from langmerge.learned.objectives import Composed, entropies, entropy, infomax, teacher, terms_of


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_uniform_distribution_over_60_labels() -> None:
    assert float(entropy(torch.zeros(3, 60, dtype=torch.float64))) == pytest.approx(4.0943445622, abs=1e-10)


def test_the_gradient_of_entropy_is_minus_p_times_log_p_plus_h() -> None:
    z = drawn(4, 7).requires_grad_()
    (gradient,) = torch.autograd.grad(entropies(z).sum(), z)
    p = torch.softmax(z, -1).detach()
    expected = -p * (p.log() + entropies(z).detach()[:, None])
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-14)


def test_entropy_falls_when_logits_are_scaled_though_no_prediction_changes() -> None:
    z, c = drawn(1, 9), torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(entropies(c * z)[0], c)
    p = torch.softmax(1.3 * z, -1)
    variance = (p * z**2).sum() - (p * z).sum() ** 2
    assert float(slope) == pytest.approx(-1.3 * float(variance), rel=1e-12)
    assert float(slope) < 0
    assert int((2 * z).argmax()) == int(z.argmax())


def test_two_certain_and_different_rows_have_no_entropy_but_their_mean_has() -> None:
    z = torch.tensor([[40.0, -40.0], [-40.0, 40.0]], dtype=torch.float64)
    assert float(entropy(z)) == pytest.approx(0, abs=1e-12)
    # Averaging logits before the entropy is the mistake that this tells apart.
    assert float(entropy(z.mean(0, keepdim=True))) == pytest.approx(math.log(2), rel=1e-12)


def test_infomax_is_lowest_for_certain_and_spread_predictions_and_zero_for_collapsed_ones() -> None:
    spread = torch.tensor([[40.0, -40.0], [-40.0, 40.0]], dtype=torch.float64)
    collapsed = torch.tensor([[40.0, -40.0], [40.0, -40.0]], dtype=torch.float64)
    assert float(infomax(spread)) == pytest.approx(-math.log(2), rel=1e-12)
    assert float(infomax(collapsed)) == pytest.approx(0, abs=1e-12)
    assert float(entropy(collapsed)) == pytest.approx(float(entropy(spread)), abs=1e-12)


def test_the_teacher_is_matched_best_by_itself() -> None:
    z = drawn(5, 4)
    soft = torch.softmax(z, -1)
    own = z.clone().requires_grad_()
    loss = teacher(own, soft)
    (gradient,) = torch.autograd.grad(loss, own)
    assert float(loss.detach()) == pytest.approx(float(entropy(z)), rel=1e-12)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-15)


def test_cross_entropy_by_hand() -> None:
    z = torch.log(torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64))
    soft = torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64)
    assert float(teacher(z, soft)) == pytest.approx(math.log(4), rel=1e-12)


def test_terms_are_added_with_their_weights_and_rows_find_their_soft_labels() -> None:
    z = drawn(3, 4)
    soft = torch.softmax(drawn(6, 4, seed=1), -1).numpy()
    rows = np.array([4, 0, 2])
    own = Composed({"teacher": 1.0, "infomax": 0.5}, soft=soft, temperature=2.0)
    expected = teacher(z / 2, torch.from_numpy(soft[rows])) + 0.5 * infomax(z / 2)
    assert float(own(z, rows)) == pytest.approx(float(expected), rel=1e-12)


def test_only_the_confident_share_counts() -> None:
    z = torch.stack([torch.full((3,), 0.0), torch.tensor([9.0, 0, 0]), torch.tensor([3.0, 0, 0])]).double()
    own = Composed({"entropy": 1.0}, confident=0.6)
    assert float(own(z, np.arange(3))) == pytest.approx(float(entropy(z[1:])), rel=1e-12)


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("entropy", {"entropy": 1.0}),
        ("teacher + 0.5*infomax", {"teacher": 1.0, "infomax": 0.5}),
        ("1e+1*teacher+2e-3*entropy", {"teacher": 10.0, "entropy": 0.002}),
    ],
)
def test_objectives_as_text(text: str, terms: dict[str, float]) -> None:
    assert terms_of(text) == terms


@pytest.mark.parametrize(
    "text", ["", "mse", "entropy+entropy", "0*entropy", "-1*entropy", "nan*entropy", "teacher+"]
)
def test_what_is_no_objective(text: str) -> None:
    with pytest.raises(InputError, match="objective"):
        terms_of(text)


def test_a_teacher_needs_soft_labels() -> None:
    with pytest.raises(InputError, match="soft labels"):
        Composed({"teacher": 1.0})


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"confident": 0.0}, {"confident": 1.5}])
def test_numbers_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match="temperature"):
        Composed({"entropy": 1.0}, **wrong)
