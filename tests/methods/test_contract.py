"""What every method promises, over the table."""

import inspect
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from jaxtyping import TypeCheckError
from torch import Tensor

from langmerge.errors import MethodError
from langmerge.methods import EXACTLY_TWO, MATRIX_METHODS, METHODS, checked_parameters

from .conftest import NAMES, WHOLE, experts, float64

SHAPES: list[tuple[int, ...]] = [
    (), (0,), (1,), (3,), (60,), (99,), (100,),
    (0, 4), (4, 0), (1, 1), (3, 20), (33, 3), (10, 10), (2, 3, 10), (0, 2, 3),
]  # fmt: skip
COUNTS = [(name, n) for name in NAMES for n in (1, 2, 5) if n == 2 or name not in EXACTLY_TWO]
# Where one NaN shows: at its entry, or, where a norm or a Gram takes part, in the whole tensor.
NAN_SPREADS = {"directional_consensus", "wudi"}
USES_NO_BASE = {"linear", "slerp"}
IGNORES_SIZE_OF_WEIGHTS = {"dare_ties", "linear", "slerp", "ties", "wudi"}


def same_bytes(first: Tensor, second: Tensor) -> bool:
    return first.numpy().tobytes() == second.numpy().tobytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("name", "n"), COUNTS)
def test_a_new_tensor_of_the_bases_shape_and_dtype(
    name: str, n: int, shape: Sequence[int], dtype: torch.dtype
) -> None:
    given = experts(shape, n, dtype=dtype)
    before = [one.clone() for one in given]
    result = METHODS[name](*given)
    assert (result.shape, result.dtype) == (given.base.shape, dtype)
    assert bool(torch.isfinite(result).all())
    result.add_(1)
    assert all(same_bytes(one, kept) for one, kept in zip(given, before, strict=True))


@pytest.mark.parametrize("shape", [(), (1,), (5,), (6, 4), (4, 6), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_does_not_change_a_base_that_no_source_changed(name: str, shape: Sequence[int]) -> None:
    base, _, weights = experts(shape)
    result = METHODS[name](base, torch.stack([base, base]), weights)
    torch.testing.assert_close(result, base, rtol=1e-15, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_is_called_alike(name: str) -> None:
    tensors, own = [], []
    for parameter in inspect.signature(METHODS[name]).parameters.values():
        (own if parameter.kind is inspect.Parameter.KEYWORD_ONLY else tensors).append(parameter)
    assert [parameter.name for parameter in tensors] == ["base", "tuned", "weights"]
    assert {parameter.kind for parameter in tensors} == {inspect.Parameter.POSITIONAL_OR_KEYWORD}
    assert {parameter.default for parameter in tensors} == {inspect.Parameter.empty}
    assert inspect.Parameter.empty not in {parameter.default for parameter in own}


@pytest.mark.parametrize("name", NAMES)
def test_unknown_parameters_are_refused(name: str) -> None:
    with pytest.raises(MethodError, match=f"method '{name}' has no parameter 'lambda_': it has "):
        checked_parameters(name, {"lambda_": 1.0})


@pytest.mark.parametrize("name", NAMES)
def test_the_same_call_gives_the_same_bytes_and_leaves_the_generator(name: str) -> None:
    given, before = experts((9, 7)), torch.get_rng_state()
    assert same_bytes(METHODS[name](*given), METHODS[name](*given))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", NAMES)
def test_strides_do_not_matter(name: str) -> None:
    base, tuned, weights = experts((5, 7))
    result = METHODS[name](
        base.T.contiguous().T, tuned.permute(2, 0, 1).contiguous().permute(1, 2, 0), weights
    )
    torch.testing.assert_close(result, METHODS[name](base, tuned, weights), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("shape", [(4,), (3, 4), (4, 3), (2, 2, 2)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_gradients_flow_into_the_weights(name: str, shape: Sequence[int]) -> None:
    base, tuned, weights = experts(shape, 2 if name in EXACTLY_TWO else 3)
    weights = (weights * 1.5).requires_grad_()
    assert torch.autograd.gradcheck(lambda w: METHODS[name](base, tuned, w), (weights,), raise_exception=True)


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_says_how_the_weights_count(name: str) -> None:
    base, tuned, weights = experts((3, 4))
    weights = (weights * 1.5).requires_grad_()
    (METHODS[name](base, tuned, weights, **WHOLE.get(name, {})) ** 2).sum().backward()
    assert weights.grad is not None
    # θ(c·w) = θ(w) for every c means that the gradient is orthogonal to the weights.
    along = float((weights.grad * weights.detach()).sum())
    assert bool(weights.grad.abs().max() > 1e-3)
    assert (abs(along) < 1e-12) is (name in IGNORES_SIZE_OF_WEIGHTS)


@pytest.mark.parametrize("election", ["sum", "count"])
@pytest.mark.parametrize("shape", [(7,), (4, 5)], ids=str)
@pytest.mark.parametrize("source", [0, 1])
@pytest.mark.parametrize("name", NAMES)
def test_a_nan_in_a_source_shows_in_the_result(
    name: str, source: int, shape: Sequence[int], election: str
) -> None:
    parameters = {"election": election} if name in ("ties", "dare_ties") else {}
    given = experts(shape)
    given.tuned[source].view(-1)[2] = torch.nan
    found = METHODS[name](*given, **parameters).isnan().flatten().tolist()
    spreads = name in NAN_SPREADS and not (name in MATRIX_METHODS and len(shape) == 1)
    assert found == [spreads or place == 2 for place in range(len(found))]


@pytest.mark.parametrize("name", ["ties", "dare_ties"])
def test_a_nan_in_every_source_shows_in_the_result(name: str) -> None:
    base, tuned, weights = experts((6,), 3)
    tuned[:, 4] = torch.nan
    found = METHODS[name](base, tuned, weights, density=0.34)
    assert found.isnan().tolist() == [place == 4 for place in range(6)]


@pytest.mark.parametrize("election", ["sum", "count"])
@pytest.mark.parametrize("other", [0.5, -0.5, -torch.inf])
@pytest.mark.parametrize("name", NAMES)
def test_an_infinity_in_a_source_shows_in_the_result(name: str, other: float, election: str) -> None:
    parameters = {"election": election} if name in ("ties", "dare_ties") else {}
    base, tuned, _ = experts((7,))
    tuned[:, 2] = float64(torch.inf, other)
    result = METHODS[name](base, tuned, float64(0.25, 0.75), **parameters)
    assert not bool(result[2].isfinite())


@pytest.mark.parametrize("name", NAMES)
def test_a_nan_in_the_base_shows_where_the_base_is_used(name: str) -> None:
    given = experts((4, 5))
    given.base[1, 1] = torch.nan
    assert bool(METHODS[name](*given)[1, 1].isnan()) is (name not in USES_NO_BASE)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in EXACTLY_TWO])
@pytest.mark.parametrize("shape", [(), (5,), (6, 4), (2, 3, 4)], ids=str)
def test_one_source_gives_that_source(name: str, shape: Sequence[int]) -> None:
    base, tuned, _ = experts(shape, 1)
    result = METHODS[name](base, tuned, float64(1.0), **WHOLE.get(name, {}))
    torch.testing.assert_close(result, tuned[0], rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(), (5,), (6, 4), (4, 6)], ids=str)
def test_equal_sources_give_that_source(name: str, shape: Sequence[int]) -> None:
    base, tuned, weights = experts(shape)
    twice = torch.stack([tuned[0], tuned[0]])
    result = METHODS[name](base, twice, weights, **WHOLE.get(name, {}))
    torch.testing.assert_close(result, tuned[0], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("shape", [(30,), (6, 5), (5, 6)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_the_sources_does_not_matter(name: str, shape: Sequence[int]) -> None:
    base, tuned, weights = experts(shape, 2 if name in EXACTLY_TWO else 5)
    order = torch.tensor([1, 0] if name in EXACTLY_TWO else [3, 1, 4, 0, 2])
    sources = [f"source {i}" for i in range(5)]
    named, renamed = (
        {"sources": s} if name == "dare_ties" else {} for s in (sources, [sources[i] for i in order])
    )
    result = METHODS[name](base, tuned[order], weights[order], **renamed)
    torch.testing.assert_close(result, METHODS[name](base, tuned, weights, **named), rtol=1e-12, atol=1e-12)
    if name != "dare_ties":
        # The weights belong to the sources.
        assert not torch.allclose(METHODS[name](base, tuned[order], weights, **named), result)


@pytest.mark.parametrize("name", NAMES)
def test_units_do_not_matter(name: str) -> None:
    base, tuned, weights = experts((6, 5))
    result = METHODS[name](base * 1000, tuned * 1000, weights)
    torch.testing.assert_close(result, METHODS[name](base, tuned, weights) * 1000, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in USES_NO_BASE])
def test_only_deltas_matter(name: str) -> None:
    base, tuned, weights = experts((6, 5))
    result = METHODS[name](base + 3, tuned + 3, weights)
    torch.testing.assert_close(result, METHODS[name](base, tuned, weights) + 3, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_the_size_of_the_weights(name: str) -> None:
    base, tuned, weights = experts((6, 5))
    once, thrice = (METHODS[name](base, tuned, weights * factor) for factor in (1, 3))
    if name in IGNORES_SIZE_OF_WEIGHTS:
        torch.testing.assert_close(thrice, once, rtol=1e-12, atol=1e-12)
    else:
        torch.testing.assert_close(thrice - base, 3 * (once - base), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["task_arithmetic", "ties", "dare_ties"])
def test_scale_multiplies_the_delta(name: str) -> None:
    base, tuned, weights = experts((6, 5), 3)
    once, scaled = (METHODS[name](base, tuned, weights, scale=scale) for scale in (1.0, -0.3))
    assert not torch.allclose(once, base)
    torch.testing.assert_close(scaled - base, -0.3 * (once - base), rtol=1e-12, atol=1e-12)
    assert torch.equal(METHODS[name](base, tuned, weights, scale=0.0), base)


@pytest.mark.parametrize(
    "wrong",
    [
        {"tuned": torch.zeros(2, 4, 3)},
        {"tuned": torch.zeros(3, 4)},
        {"weights": torch.ones(3)},
        {"weights": torch.ones(2, 1)},
        {"weights": torch.ones(2, dtype=torch.int64)},
        {"base": torch.zeros(12)},
        {"base": torch.zeros(3, 4, dtype=torch.int32)},
        {"base": [[0.0]]},
    ],
    ids=lambda wrong: ", ".join(wrong),
)
@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_shape_or_kind_is_an_error(name: str, wrong: dict[str, Any]) -> None:
    right = {"base": torch.zeros(3, 4), "tuned": torch.ones(2, 3, 4), "weights": torch.ones(2)}
    METHODS[name](**right)
    with pytest.raises(TypeCheckError, match="Type-check error"):
        METHODS[name](**{**right, **wrong})
