"""Methods of a base and one source, and layer swap."""

from math import log
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from langmerge.errors import MethodError
from langmerge.methods import METHODS, measures_of
from langmerge.methods.measures import measured
from langmerge.methods.pairs import importance

from .conftest import experts, float64, streamed
from .mergekit_vectors import BASE, TAU, result

nearswap, passthrough, arcee_fusion, layer_swap = (
    METHODS[name] for name in ("nearswap", "passthrough", "arcee_fusion", "layer_swap")
)
ONE = float64(1)


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-13) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_nearswap_by_hand() -> None:
    # τ = [0.1, −0.5, 2, 0], no entry moves by more than 0.4.
    base, tau = float64(1, 1, 1, 1), float64(0.1, -0.5, 2, 0)
    close(nearswap(base, (base + tau)[None], ONE, t=0.4), float64(1.1, 0.6, 1.4, 1))
    close(nearswap(base, (base + tau)[None], 0.5 * ONE, t=0.4), float64(1.05, 0.8, 1.2, 1))


def test_nearswap_between_the_base_and_the_source() -> None:
    base, tuned, _ = experts((6, 5), 1)
    assert torch.equal(nearswap(base, tuned, ONE, t=100.0), base + (tuned[0] - base))
    close(nearswap(base, tuned, ONE, t=1e-12), base, 1e-11)
    clamped = base + (tuned[0] - base).clamp(-0.3, 0.3)
    close(nearswap(base, tuned, ONE, t=0.3), clamped)
    assert not torch.allclose(clamped, tuned[0])


def test_nearswap_does_not_hide_an_infinity() -> None:
    tuned = float64([1, torch.inf, -torch.inf])
    assert nearswap(float64(0, 0, 0), tuned, ONE).isnan().tolist() == [False, True, True]


def test_passthrough_by_hand() -> None:
    tuned = float64([3, -2])
    close(passthrough(float64(9, 9), tuned, ONE, scale=0.5), float64(1.5, -1))
    assert torch.equal(passthrough(float64(9, 9), tuned, 0.3 * ONE), tuned[0])


def test_arcee_fusion_by_hand() -> None:
    # Every row is [x, x + ln 3] over a row of zeros: one divergence for all, so that importance goes with |τ|.
    # In order: 0, 1, ln 3, 2, 1 + ln 3, 2 + ln 3, 6, 6 + ln 3; of ranks 1, 3, 5 from 0: 1, 2, 2 + ln 3 = 3.10.
    # 2 + 1.5·2.10 = 5.15: the last row alone.
    tuned = torch.stack([float64(x, x + log(3)) for x in (0, 1, 6, 2)])
    base = torch.zeros_like(tuned)
    expected = torch.where(torch.arange(4)[:, None] == 2, tuned, base)
    close(arcee_fusion(base, tuned[None], ONE), expected)
    close(arcee_fusion(base, tuned[None], 0.5 * ONE), 0.5 * expected)
    quartiles = measured(measures_of("arcee_fusion", {}), base, tuned[None], ONE)["quartiles"][0]
    close(quartiles / quartiles[0], float64(1, 2, 2 + log(3)))


def test_what_is_as_important_as_the_threshold_is_taken() -> None:
    base, tuned = torch.zeros((3, 2), dtype=torch.float64), float64([1, -1]).expand(3, 2)
    assert torch.equal(arcee_fusion(base, tuned[None], ONE), tuned)


def test_importance_by_hand() -> None:
    # softmax [ln 3, 0] = [¾, ¼] against [½, ½]: ¾ ln 1.5 + ¼ ln 0.5.
    divergence = 0.75 * log(1.5) + 0.25 * log(0.5)
    base, tuned = torch.zeros((2, 2), dtype=torch.float64), float64([[log(3), 0], [-2, -2]])
    expected = float64([log(3) * divergence, 0], [0, 0])
    close(importance(base, tuned)[0], expected, 1e-7)


def arcee_by_numpy(base: np.ndarray, tuned: np.ndarray) -> np.ndarray:
    """Base plus the changes whose importance is an outlier; softmaxes along the last axis."""

    def softmax(x: np.ndarray) -> np.ndarray:
        powers = np.exp(x - x.max(-1, keepdims=True))
        return np.asarray(powers / powers.sum(-1, keepdims=True)) + 1e-8

    p, q = softmax(tuned), softmax(base)
    score = np.abs(tuned - base) * (p * np.log(p / q)).sum(-1, keepdims=True)
    ranked = np.sort(score.ravel())
    first, median, third = (ranked[int(share * (ranked.size - 1))] for share in (0.25, 0.5, 0.75))
    return base + np.where(score >= median + 1.5 * (third - first), tuned - base, 0)


@pytest.mark.parametrize("shape", [(100,), (20, 9), (4, 3, 8)], ids=str)
def test_arcee_fusion_by_its_formula(shape: tuple[int, ...]) -> None:
    base, tuned, _ = experts(shape, 1)
    found = arcee_fusion(base, tuned, ONE)
    close(found, torch.from_numpy(arcee_by_numpy(base.numpy(), tuned[0].numpy())))
    assert 0 < int((found != base).sum()) < base.numel() / 4


@pytest.mark.parametrize("rows", [1, 3])
def test_arcee_fusion_in_chunks(rows: int) -> None:
    # The quartiles are of float32 numbers when they are counted chunk by chunk.
    given = experts((10, 6), 1, dtype=torch.float32)
    measures = measures_of("arcee_fusion", {})
    known = streamed(measures, given, rows)
    assert torch.equal(known["quartiles"], measured(measures, *given)["quartiles"])
    parts = [
        arcee_fusion(base, tuned, given.weights, known=known)
        for base, tuned in zip(given.base.split(rows), given.tuned.split(rows, 1), strict=True)
    ]
    assert torch.equal(torch.cat(parts), arcee_fusion(*given))


@pytest.mark.parametrize(
    ("key", "name", "source", "parameters"),
    [
        ("nearswap", "nearswap", 0, {"t": 0.3}),
        ("arcee_fusion", "arcee_fusion", 0, {}),
        ("arcee_fusion of the third", "arcee_fusion", 2, {}),
    ],
)
def test_as_mergekit(key: str, name: str, source: int, parameters: dict[str, Any]) -> None:
    close(METHODS[name](BASE, BASE + TAU[source][None], ONE, **parameters), result(key), 1e-12)


A, B, MEAN = "first", "second", "mean"


@pytest.mark.parametrize(
    ("bottom", "top", "transition", "expected"),
    [
        # From the embeddings (−1) over the blocks 0 to 5 to the head (6).
        (2, 1, 1, [B, B, B, MEAN, A, MEAN, B, B]),
        (2, 1, 0, [B, B, B, A, A, A, B, B]),
        (1, 0, 2, [B, B, MEAN, MEAN, A, A, A, A]),
        (0, 2, 1, [A, A, A, A, MEAN, B, B, B]),
        (1, 1, 2, [B, B, MEAN, MEAN, MEAN, MEAN, B, B]),
        (1, 1, 9, [B, B, MEAN, MEAN, MEAN, MEAN, B, B]),
        (3, 3, 1, [B, B, B, B, B, B, B, B]),
    ],
)
def test_layer_swap_by_block(bottom: int, top: int, transition: int, expected: list[str]) -> None:
    base, tuned, _ = experts((3, 4))
    weights = float64(3, 1)
    ends = {"bottom": bottom, "top": top, "transition": transition}
    wanted = {A: tuned[0], B: tuned[1], MEAN: 0.75 * tuned[0] + 0.25 * tuned[1]}
    for block, name in zip(range(-1, 7), expected, strict=True):
        found = layer_swap(base, tuned, weights, **ends, block=block, blocks=6)
        if name == MEAN:
            close(found, wanted[name])
        else:
            assert torch.equal(found, wanted[name]), block
            assert found.data_ptr() not in (tuned[0].data_ptr(), tuned[1].data_ptr())
    assert torch.equal(layer_swap(base, tuned, weights, **ends), tuned[0])


def test_layer_swap_takes_nothing_of_the_other_source() -> None:
    base, tuned, weights = experts((3, 4))
    tuned[1] = torch.inf
    assert bool(layer_swap(base, tuned, weights, block=4, blocks=9).isfinite().all())
    assert not bool(layer_swap(base, tuned, weights, block=0, blocks=9).isfinite().any())


def test_gradients_reach_the_weights_in_a_transition() -> None:
    base, tuned, weights = experts((3, 4))
    weights = weights.requires_grad_()
    swapped = {"block": 2, "blocks": 9}
    assert torch.autograd.gradcheck(lambda w: layer_swap(base, tuned, w, **swapped), (weights,))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"bottom": 0, "top": 0}, "bottom and top are 0, so the second source would take no part: give one"),
        (
            {"bottom": 4, "top": 3, "block": 0, "blocks": 6},
            "bottom 4 and top 3 are more than the model's 6 blocks",
        ),
        ({"block": 7, "blocks": 6}, "there is no block 7 in a model of 6 blocks"),
        ({"block": -2, "blocks": 6}, "there is no block -2 in a model of 6 blocks"),
        ({"block": 2}, "there is no block 2 in a model of None blocks"),
        ({"bottom": -1}, "bottom is -1, it must be at least 0 and finite"),
    ],
)
def test_blocks_that_cannot_be_swapped(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(MethodError, match=f"^layer_swap: {message}"):
        layer_swap(*experts(), **parameters)


@pytest.mark.parametrize(
    ("name", "n", "wanted"),
    [
        ("nearswap", 2, "exactly 1 source"),
        ("passthrough", 2, "exactly 1 source"),
        ("arcee_fusion", 2, "exactly 1 source"),
        ("layer_swap", 3, "exactly 2 sources"),
    ],
)
def test_the_number_of_sources(name: str, n: int, wanted: str) -> None:
    with pytest.raises(MethodError, match=f"^{name} merges {wanted}, got {n}$"):
        METHODS[name](*experts((3, 4), n))


def test_a_step_of_nothing_is_no_nearswap() -> None:
    with pytest.raises(MethodError, match=r"nearswap: t is 0\.0, it must be above 0 and finite"):
        nearswap(*experts((3, 4), 1), t=0.0)
