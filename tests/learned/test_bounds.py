"""Where coefficients may lie."""

import pytest
import torch

from langmerge.errors import InputError
from langmerge.learned.bounds import Bounds, nearest_on_simplex


def table(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("kind", ["none", "projection", "sigmoid", "paper_clamp"])
def test_the_start_comes_back(kind: str) -> None:
    start = table([0.3, 0.7], [0.1, 0.9])
    own = Bounds(kind, 0.0, 1.0)
    torch.testing.assert_close(own.coefficients(own.free(start)), start, rtol=1e-14, atol=0)


def test_a_coefficient_at_the_edge_keeps_its_gradient_under_projection_but_not_under_the_papers_clamp() -> (
    None
):
    for kind, expected in (("projection", 1.0), ("paper_clamp", 0.0)):
        own = Bounds(kind, 0.0, 1.0)
        free = table([1.2]).requires_grad_()
        if kind == "projection":
            own.project(free.data)
        (slope,) = torch.autograd.grad(own.coefficients(free).sum(), free)
        assert float(slope) == expected


def test_projection_cuts_back() -> None:
    free = table([-0.5, 0.4, 1.7])
    Bounds("projection", 0.0, 1.0).project(free)
    torch.testing.assert_close(free, table([0.0, 0.4, 1.0]))


def test_the_sigmoid_spans_its_bounds() -> None:
    own = Bounds("sigmoid", -1.0, 3.0)
    torch.testing.assert_close(own.coefficients(table([-50.0, 0.0, 50.0])), table([-1.0, 1.0, 3.0]))


@pytest.mark.parametrize(
    ("point", "nearest"),
    [
        ([0.2, 0.8], [0.2, 0.8]),
        ([1.0, 1.0], [0.5, 0.5]),
        ([2.0, 0.0], [1.0, 0.0]),
        ([0.5, 0.4, -0.9], [0.55, 0.45, 0.0]),
    ],
)
def test_the_nearest_point_of_the_simplex_by_hand(point: list[float], nearest: list[float]) -> None:
    torch.testing.assert_close(nearest_on_simplex(table(point)), table(nearest))


def test_the_nearest_point_is_nearer_than_any_other_of_a_grid() -> None:
    point = table([0.9, -0.2, 0.6])
    found = nearest_on_simplex(point)
    steps = [i / 20 for i in range(21)]
    grid = table(*[[a, b, 1 - a - b] for a in steps for b in steps if a + b <= 1 + 1e-12])
    assert float((found - point).norm()) <= float((grid - point).norm(dim=1).min()) + 1e-12


@pytest.mark.parametrize(
    ("bounds", "start", "says"),
    [
        (("projection", 0.0, 1.0), [1.2], "outside the bounds"),
        (("sigmoid", 0.0, 1.0), [1.0], "never reaches"),
        (("simplex", 0.0, 1.0), [0.5, 0.2], "sum to one"),
        (("simplex", 0.0, 1.0), [1.5, -0.5], "negative"),
    ],
)
def test_a_start_that_is_out_of_bounds(
    bounds: tuple[str, float, float], start: list[float], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        Bounds(*bounds).free(table(start))


@pytest.mark.parametrize(
    "wrong", [("clip", 0.0, 1.0), ("projection", 1.0, 0.0), ("projection", 0.0, float("inf"))]
)
def test_what_is_no_bound(wrong: tuple[str, float, float]) -> None:
    with pytest.raises(InputError, match="bounds"):
        Bounds(*wrong)
