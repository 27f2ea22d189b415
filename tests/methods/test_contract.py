"""What every method promises, over the table; `TRAITS` in conftest says where methods differ."""

import inspect
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from jaxtyping import TypeCheckError
from torch import Tensor

from langmerge.errors import MethodError
from langmerge.methods import METHODS, SPECS, checked_parameters, measures_of, method_parameters
from langmerge.methods.specs import sees_of
from langmerge.methods.table import SUPPLIED_BY_ENGINE

from .conftest import NAMES, TRAITS, experts, float64, keepers, sources_of, streamed

SHAPES: list[tuple[int, ...]] = [
    (), (0,), (1,), (3,), (60,), (99,), (100,),
    (0, 4), (4, 0), (1, 1), (3, 20), (33, 3), (10, 10), (2, 3, 10), (0, 2, 3),
]  # fmt: skip
COUNTS = sorted({(name, sources_of(name, n)) for name in NAMES for n in (1, 2, 5)})
# What elects is tried with both elections.
ELECTIONS = [
    (name, {"election": election} if "election" in method_parameters(name) else {})
    for name in NAMES
    for election in (("sum", "count") if "election" in method_parameters(name) else ("none",))
]
MANY = [name for name in NAMES if SPECS[name].sources[1] != 1]
CHUNKED = [
    (name, shape, rows)
    for name in NAMES
    if sees_of(name, {}) != "tensor"
    for shape, rows in (((23,), 4), ((9, 5), 2), ((7, 3, 4), 3), ((40, 17), 13))
    if len(shape) > 1 or sees_of(name, {}) == "entry"
]


def same_bytes(first: Tensor, second: Tensor) -> bool:
    return first.numpy().tobytes() == second.numpy().tobytes()


def supplied(name: str, **given: Any) -> dict[str, Any]:
    """Of what the engine can supply, that which the method takes."""
    taken = inspect.signature(METHODS[name]).parameters
    return {key: value for key, value in given.items() if key in taken}


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
@pytest.mark.parametrize("name", keepers("the base stays where no source changed it"))
def test_does_not_change_a_base_that_no_source_changed(name: str, shape: Sequence[int]) -> None:
    base, _, weights = experts(shape, sources_of(name, 2))
    result = METHODS[name](base, torch.stack([base] * len(weights)), weights)
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
    with pytest.raises(MethodError, match=f"method '{name}' has no parameter 'lambda': it has "):
        checked_parameters(name, {"lambda": 1.0})


@pytest.mark.parametrize("name", NAMES)
def test_the_same_call_gives_the_same_bytes_and_leaves_the_generator(name: str) -> None:
    given, before = experts((9, 7), sources_of(name, 2)), torch.get_rng_state()
    assert same_bytes(METHODS[name](*given), METHODS[name](*given))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", NAMES)
def test_strides_do_not_matter(name: str) -> None:
    base, tuned, weights = experts((5, 7), sources_of(name, 2))
    result = METHODS[name](
        base.T.contiguous().T, tuned.permute(2, 0, 1).contiguous().permute(1, 2, 0), weights
    )
    torch.testing.assert_close(result, METHODS[name](base, tuned, weights), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("name", "shape", "rows"), CHUNKED)
def test_chunks_are_the_whole_bit_for_bit(
    name: str, shape: Sequence[int], rows: int, dtype: torch.dtype
) -> None:
    given = experts(shape, sources_of(name, 3), dtype=dtype)
    parameters = checked_parameters(name, {})
    own = {
        key: value for key, value in parameters.items() if key in inspect.signature(METHODS[name]).parameters
    }
    known: dict[str, Tensor] = {}
    for measure in measures_of(name, parameters):
        known |= measure.whole(*given, known, **parameters)
    common = supplied(
        name, known=known, key="layer.0", sources=[f"source {i}" for i in range(len(given.weights))]
    )
    whole = METHODS[name](*given, **own, **common, **supplied(name, offset=0))
    parts = [
        METHODS[name](
            given.base[i : i + rows],
            given.tuned[:, i : i + rows],
            given.weights,
            **own,
            **common,
            **supplied(name, offset=i * given.base[0].numel()),
        )
        for i in range(0, shape[0], rows)
    ]
    assert same_bytes(torch.cat(parts), whole)
    if known:
        # What the method measures by itself is what the engine measures for it.
        alone = METHODS[name](
            *given, **own, **{key: value for key, value in common.items() if key != "known"}
        )
        assert same_bytes(alone, whole)


@pytest.mark.parametrize(("name", "shape", "rows"), CHUNKED)
def test_what_is_measured_in_chunks_is_what_is_measured_at_once(
    name: str, shape: Sequence[int], rows: int
) -> None:
    given = experts(shape, sources_of(name, 3), dtype=torch.float32)
    parameters = checked_parameters(name, {})
    measures = measures_of(name, parameters)
    whole: dict[str, Tensor] = {}
    for measure in measures:
        whole |= measure.whole(*given, whole, **parameters)
    known = streamed(measures, given, rows, **parameters)
    exact = name in keepers("streamed measures are exact")
    for key, value in whole.items():
        assert known[key].shape == value.shape, key
        # Order statistics are the same float32 numbers; sums in float64 are grouped otherwise.
        tolerance = 0.0 if exact and value.dtype == torch.float32 else 1e-6
        torch.testing.assert_close(known[key].to(value), value, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shape", [(4,), (3, 4), (4, 3), (2, 2, 2)], ids=str)
@pytest.mark.parametrize("name", keepers("gradients reach the weights"))
def test_gradients_flow_into_the_weights(name: str, shape: Sequence[int]) -> None:
    base, tuned, weights = experts(shape, sources_of(name, 3))
    weights = (weights * 1.5).requires_grad_()
    assert torch.autograd.gradcheck(lambda w: METHODS[name](base, tuned, w), (weights,), raise_exception=True)


@pytest.mark.parametrize("name", keepers("gradients reach the weights"))
def test_the_gradient_says_how_the_weights_count(name: str) -> None:
    base, tuned, weights = experts((3, 4), sources_of(name, 2))
    weights = (weights * 1.5).requires_grad_()
    (METHODS[name](base, tuned, weights, **TRAITS[name].whole) ** 2).sum().backward()
    assert weights.grad is not None
    # θ(c·w) = θ(w) for every c means that the gradient is orthogonal to the weights.
    along = float((weights.grad * weights.detach()).sum())
    assert bool(weights.grad.abs().max() > 1e-3)
    assert (abs(along) < 1e-12) is (TRAITS[name].weights == "ignored")


@pytest.mark.parametrize("shape", [(7,), (4, 5)], ids=str)
@pytest.mark.parametrize(
    ("name", "parameters", "source"),
    [
        (name, parameters, source)
        for name, parameters in ELECTIONS
        if name in keepers("one NaN shows")
        for source in range(sources_of(name, 2))
    ],
)
def test_a_nan_in_a_source_shows_in_the_result(
    name: str, parameters: dict[str, Any], source: int, shape: Sequence[int]
) -> None:
    given = experts(shape, sources_of(name, 2))
    given.tuned[source].view(-1)[2] = torch.nan
    found = METHODS[name](*given, **parameters).isnan().reshape(-1).tolist()
    spreads = TRAITS[name].nan
    if SPECS[name].matrices and len(shape) == 1:
        spreads = "entry"
    row = range(shape[-1]) if spreads == "row" else range(len(found)) if spreads == "tensor" else [2]
    assert found == [place in row for place in range(len(found))]


@pytest.mark.parametrize("name", [name for name in keepers("one NaN shows") if name in MANY])
def test_a_nan_in_every_source_shows_in_the_result(name: str) -> None:
    base, tuned, weights = experts((6,), sources_of(name, 3))
    tuned[:, 4] = torch.nan
    parameters = {"density": 0.34} if "density" in method_parameters(name) else {}
    if "epsilon" in method_parameters(name) and parameters:
        parameters["epsilon"] = 0.2
    found = METHODS[name](base, tuned, weights, **parameters).isnan().tolist()
    alone = TRAITS[name].nan == "entry" or SPECS[name].matrices
    assert found == [not alone or place == 4 for place in range(6)]


@pytest.mark.parametrize("other", [0.5, -0.5, -torch.inf])
@pytest.mark.parametrize(
    ("name", "parameters"), [one for one in ELECTIONS if one[0] in keepers("an infinity shows")]
)
def test_an_infinity_in_a_source_shows_in_the_result(
    name: str, parameters: dict[str, Any], other: float
) -> None:
    n = sources_of(name, 2)
    base, tuned, _ = experts((7,), n)
    tuned[:, 2] = float64(torch.inf, other)[:n]
    result = METHODS[name](base, tuned, float64(0.25, 0.75)[:n], **parameters)
    assert not bool(result[2].isfinite())


@pytest.mark.parametrize("name", NAMES)
def test_a_nan_in_the_base_shows_where_the_base_is_used(name: str) -> None:
    given = experts((4, 5), sources_of(name, 2))
    given.base[1, 1] = torch.nan
    assert bool(METHODS[name](*given)[1, 1].isnan()) is TRAITS[name].uses_base


@pytest.mark.parametrize("shape", [(), (5,), (6, 4), (2, 3, 4)], ids=str)
@pytest.mark.parametrize(
    "name", [name for name in keepers("one source is that source") if sources_of(name, 1) == 1]
)
def test_one_source_gives_that_source(name: str, shape: Sequence[int]) -> None:
    base, tuned, _ = experts(shape, 1)
    result = METHODS[name](base, tuned, float64(1.0), **TRAITS[name].whole)
    torch.testing.assert_close(result, tuned[0], rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("shape", [(), (5,), (6, 4), (4, 6)], ids=str)
@pytest.mark.parametrize("name", [name for name in keepers("equal sources are that source") if name in MANY])
def test_equal_sources_give_that_source(name: str, shape: Sequence[int]) -> None:
    base, tuned, weights = experts(shape)
    twice = torch.stack([tuned[0], tuned[0]])
    result = METHODS[name](base, twice, weights, **TRAITS[name].whole)
    torch.testing.assert_close(result, tuned[0], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("shape", [(30,), (6, 5), (5, 6)], ids=str)
@pytest.mark.parametrize(
    "name", [name for name in keepers("the order of the sources does not matter") if name in MANY]
)
def test_the_order_of_the_sources_does_not_matter(name: str, shape: Sequence[int]) -> None:
    # With this seed the experts agree a little; opposed ones would leave Model Stock at the base.
    base, tuned, weights = experts(shape, sources_of(name, 5), seed=3)
    order = torch.tensor({2: [1, 0], 5: [3, 1, 4, 0, 2]}[len(weights)])
    sources = [f"source {i}" for i in range(len(weights))]
    named, renamed = (supplied(name, sources=s) for s in (sources, [sources[i] for i in order]))
    result = METHODS[name](base, tuned[order], weights[order], **renamed)
    torch.testing.assert_close(result, METHODS[name](base, tuned, weights, **named), rtol=1e-12, atol=1e-12)
    if not named and name in keepers("gradients reach the weights"):
        # The weights belong to the sources.
        assert not torch.allclose(METHODS[name](base, tuned[order], weights, **named), result)


@pytest.mark.parametrize("name", keepers("units do not matter"))
def test_units_do_not_matter(name: str) -> None:
    base, tuned, weights = experts((6, 5), sources_of(name, 2))
    result = METHODS[name](base * 1000, tuned * 1000, weights)
    torch.testing.assert_close(result, METHODS[name](base, tuned, weights) * 1000, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("name", [name for name in keepers("only deltas matter") if TRAITS[name].uses_base])
def test_only_deltas_matter(name: str) -> None:
    base, tuned, weights = experts((6, 5), sources_of(name, 2))
    result = METHODS[name](base + 3, tuned + 3, weights)
    torch.testing.assert_close(result, METHODS[name](base, tuned, weights) + 3, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in NAMES if TRAITS[name].weights != "else"])
def test_the_size_of_the_weights(name: str) -> None:
    base, tuned, weights = experts((6, 5), sources_of(name, 2))
    once, thrice = (METHODS[name](base, tuned, weights * factor) for factor in (1, 3))
    if TRAITS[name].weights == "ignored":
        torch.testing.assert_close(thrice, once, rtol=1e-12, atol=1e-12)
    else:
        torch.testing.assert_close(thrice - base, 3 * (once - base), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "name", [name for name in NAMES if "scale" in method_parameters(name) and TRAITS[name].uses_base]
)
def test_scale_multiplies_the_delta(name: str) -> None:
    base, tuned, weights = experts((6, 5), sources_of(name, 3))
    once, scaled = (METHODS[name](base, tuned, weights, scale=scale) for scale in (1.0, -0.3))
    assert not torch.allclose(once, base)
    torch.testing.assert_close(scaled - base, -0.3 * (once - base), rtol=1e-12, atol=1e-12)
    assert torch.equal(METHODS[name](base, tuned, weights, scale=0.0), base)


@pytest.mark.parametrize("name", NAMES)
def test_the_functions_defaults_are_the_recipes(name: str) -> None:
    signature = inspect.signature(METHODS[name]).parameters.values()
    own = {one.name: one.default for one in signature if one.kind is inspect.Parameter.KEYWORD_ONLY}
    recipe = method_parameters(name)
    # The engine itself reads `scope`.
    read = {key: value for key, value in recipe.items() if key != "scope"}
    assert {key: own[key] for key in read} == read
    assert [type(own[key]) for key in read] == [type(value) for value in read.values()]
    assert set(own) - set(read) <= SUPPLIED_BY_ENGINE


@pytest.mark.parametrize("name", [name for name in NAMES if not SPECS[name].negative_weights])
def test_a_negative_weight_is_an_error(name: str) -> None:
    n = sources_of(name, 2)
    base, tuned, _ = experts(n=n)
    with pytest.raises(MethodError, match=rf"^{name}: weights \[.*\] include a negative one$"):
        METHODS[name](base, tuned, float64(-0.5, 1)[:n])


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        (name, wrong)
        for name in NAMES
        for wrong in {SPECS[name].sources[0] - 1, (SPECS[name].sources[1] or 0) + 1} - {0, 1}
        if wrong < SPECS[name].sources[0] or SPECS[name].sources[1] is not None
    ],
)
def test_a_wrong_number_of_sources_is_an_error(name: str, wrong: int) -> None:
    with pytest.raises(MethodError, match=rf"^{name} merges .*, got {wrong}$"):
        METHODS[name](*experts(n=wrong))


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
    n = sources_of(name, 2)
    right = {"base": torch.zeros(3, 4), "tuned": torch.ones(n, 3, 4), "weights": torch.ones(n)}
    METHODS[name](**right)
    with pytest.raises(TypeCheckError, match="Type-check error"):
        METHODS[name](**{**right, **wrong})
