"""slerp and NuSLERP."""

from collections.abc import Mapping
from itertools import pairwise
from math import cos, sin, sqrt
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from langmerge.errors import MethodError
from langmerge.methods import METHODS

from .conftest import experts, float64

slerp, nuslerp = METHODS["slerp"], METHODS["nuslerp"]


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-13) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_slerp_by_hand() -> None:
    # A right angle, a third of the way by the weights: sin 60° of the first, sin 30° of the second, over sin 90°.
    # The second is twice as long and stays so.
    found = slerp(float64(9, 9), float64([1, 0], [0, 2]), float64(2, 1))
    close(found, float64(sqrt(3) / 2, 1))


@pytest.mark.parametrize(("t", "source"), [(0.0, 0), (1.0, 1)])
def test_slerp_ends_at_its_sources(t: float, source: int) -> None:
    base, tuned, weights = experts((6, 5))
    close(slerp(base, tuned, weights, t=t), tuned[source])


def test_slerp_stays_on_the_sphere_and_keeps_its_pace() -> None:
    base, tuned, weights = experts((7, 3))
    tuned = tuned / torch.linalg.vector_norm(tuned, dim=(1, 2), keepdim=True)
    path = [slerp(base, tuned, weights, t=t) for t in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert [float(torch.linalg.vector_norm(one)) for one in path] == pytest.approx([1.0] * 5)
    steps = [float((a * b).sum()) for a, b in pairwise(path)]
    assert steps == pytest.approx(steps[:1] * 4)


def test_slerp_goes_by_the_weights_unless_it_is_told_where() -> None:
    base, tuned, _ = experts((6, 5))
    by_weights = slerp(base, tuned, float64(3, 1))
    close(by_weights, slerp(base, tuned, float64(1, 1), t=0.25))
    assert not torch.allclose(by_weights, slerp(base, tuned, float64(3, 1), t=0.5))
    # Then the weights are not read, and may sum to zero.
    close(slerp(base, tuned, float64(1, -1), t=0.25), by_weights)


@pytest.mark.parametrize("factor", [1.0, 2.5, -1.0, 0.0])
@pytest.mark.parametrize("eps", [1e-4, 0.0])
def test_slerp_of_parallel_sources_is_a_straight_line(factor: float, eps: float) -> None:
    first = float64(3, 0, 4)
    found = slerp(torch.zeros_like(first), torch.stack([first, factor * first]), float64(1, 3), eps=eps)
    close(found, (0.25 + 0.75 * factor) * first)


def test_slerp_ignores_the_base() -> None:
    base, tuned, weights = experts((6, 5))
    assert torch.equal(slerp(base, tuned, weights), slerp(base + 1, tuned, weights))


def test_slerp_needs_weights_that_do_not_sum_to_zero() -> None:
    base, tuned, _ = experts((3, 4))
    with pytest.raises(
        MethodError, match=r"weights \[1\.0, -1\.0\] sum to zero, so they cannot be normalised"
    ):
        slerp(base, tuned, float64(1, -1))


@pytest.mark.parametrize("n", [1, 3])
def test_slerp_merges_exactly_two(n: int) -> None:
    with pytest.raises(MethodError, match=f"slerp merges exactly 2 sources, got {n}"):
        slerp(*experts((3, 4), n))


def test_slerp_about_the_base_bends_the_deltas() -> None:
    base, tuned, weights = experts((6, 5))
    deltas = slerp(base, tuned - base, weights)
    close(slerp(base, tuned, weights, about="base"), base + deltas)
    assert not torch.allclose(base + deltas, slerp(base, tuned, weights))


def test_nuslerp_by_hand() -> None:
    # A third of the way. Rows: [1, 0] and [0, 1] at a right angle, [0, 2] and [0, 4] parallel.
    first, second = float64([1, 0], [0, 2]), float64([0, 1], [0, 4])
    by_rows = float64([sqrt(3) / 2, 1 / 2], [0, 8 / 3])
    given = torch.zeros_like(first), torch.stack([first, second]), float64(2, 1)
    close(nuslerp(*given, flatten=False), by_rows)
    # Columns: those of the transposed matrices are the same vectors.
    turned = given[0], torch.stack([first.T, second.T]), given[2]
    close(nuslerp(*turned, flatten=False, row_wise=True), by_rows.T)
    # As one vector: cos Ω = 8 / √(5·17).
    angle = np.arccos(8 / sqrt(85))
    one_vector = (sin(2 * angle / 3) * first + sin(angle / 3) * second) / sin(angle)
    close(nuslerp(*given), one_vector)
    close(nuslerp(*given, row_wise=True), one_vector)


@pytest.mark.parametrize("about", ["origin", "base"])
@pytest.mark.parametrize("row_wise", [False, True])
def test_nuslerp_along_an_axis_is_slerp_of_each_vector(row_wise: bool, about: str) -> None:
    base, tuned, weights = experts((4, 5))
    axis = 1 if row_wise else 0
    vectors = [
        slerp(base.select(axis, i), tuned.select(axis + 1, i), weights, eps=0.0, about=about)
        for i in range(base.shape[axis])
    ]
    found = nuslerp(base, tuned, weights, flatten=False, row_wise=row_wise, about=about)
    close(found, torch.stack(vectors, dim=axis))


@pytest.mark.parametrize("row_wise", [False, True])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (6,), (0, 3), (3, 0), (2, 3, 4), (2, 0, 3)], ids=str)
def test_nuslerp_of_any_shape(shape: tuple[int, ...], row_wise: bool) -> None:
    base, tuned, weights = experts(shape)
    found = nuslerp(base, tuned, weights, flatten=False, row_wise=row_wise)
    assert found.shape == base.shape
    if len(shape) < 2:
        close(found, nuslerp(base, tuned, weights))
    elif base.numel():
        turned = [one.movedim(0 if row_wise else -1, -1).reshape(-1, 2 if row_wise else 4) for one in tuned]
        flat = nuslerp(turned[0] * 0, torch.stack(turned), weights, flatten=False)
        again = flat.reshape(3, 4, 2).movedim(-1, 0) if row_wise else flat.reshape(shape)
        close(found, again)


@pytest.mark.parametrize("factor", [2.0, -1.5, 0.0])
@pytest.mark.parametrize("axes", [{}, {"flatten": False}, {"flatten": False, "row_wise": True}], ids=str)
def test_nuslerp_of_parallel_vectors_is_a_straight_line(axes: Mapping[str, Any], factor: float) -> None:
    first = experts((4, 5)).base
    found = nuslerp(first * 0, torch.stack([first, factor * first]), float64(1, 3), **axes)
    close(found, (0.25 + 0.75 * factor) * first)


def test_nuslerp_bends_where_slerp_no_longer_does() -> None:
    angle = 1e-3
    tuned = float64([1, 0], [cos(angle), sin(angle)])
    norms = [torch.linalg.vector_norm(one(tuned[0], tuned, float64(1, 1))) for one in (slerp, nuslerp)]
    assert float(norms[0]) == pytest.approx(cos(angle / 2), abs=1e-14)
    assert float(norms[1]) == pytest.approx(1, abs=1e-14)


@pytest.mark.parametrize("parameters", [{"flatten": False}, {"flatten": False, "row_wise": True}], ids=str)
def test_gradients_reach_the_weights_of_nuslerp(parameters: Mapping[str, Any]) -> None:
    base, tuned, weights = experts((3, 4))
    tuned[1, 0] = 2 * tuned[0, 0]
    weights = weights.requires_grad_()
    assert torch.autograd.gradcheck(lambda w: nuslerp(base, tuned, w, **parameters), (weights,))
