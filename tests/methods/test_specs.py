"""Parameters and their ranges, at the edges."""

import inspect
import math
import re
import subprocess
import sys

import pytest

from langmerge.errors import MethodError
from langmerge.methods import METHODS, SPECS, checked_parameters, spec_of
from langmerge.methods.parameters import Parameter
from langmerge.methods.specs import require, require_weights, sees_of

from .conftest import NAMES, experts, sources_of

PARAMETERS = [
    (name, key, parameter) for name in sorted(SPECS) for key, parameter in SPECS[name].parameters.items()
]
NUMBERS = [one for one in PARAMETERS if not one[2].choices and not isinstance(one[2].default, bool | str)]


def step(value: float, towards: float, whole: bool) -> float:
    """The next number."""
    return value + int(math.copysign(1, towards)) if whole else math.nextafter(value, towards)


@pytest.mark.parametrize(("name", "key", "parameter"), PARAMETERS)
def test_a_default_lies_in_its_range(name: str, key: str, parameter: Parameter) -> None:
    require(name, **{key: parameter.default})


@pytest.mark.parametrize(("name", "key", "parameter"), NUMBERS)
def test_every_range_at_its_edges(name: str, key: str, parameter: Parameter) -> None:
    whole = isinstance(parameter.default, int)
    edges = ((parameter.low, parameter.open_low, -math.inf), (parameter.high, parameter.open_high, math.inf))
    for edge, is_open, outwards in edges:
        if math.isinf(edge):
            continue
        edge = int(edge) if whole else float(edge)
        assert parameter.allows(edge) is not is_open
        assert parameter.allows(step(edge, -outwards, whole))
        assert not parameter.allows(step(edge, outwards, whole))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("name", "key", "parameter"), NUMBERS)
def test_no_number_may_be_infinite_or_nan(name: str, key: str, parameter: Parameter, value: float) -> None:
    with pytest.raises(MethodError, match=f"^{name}: {key} is {value}, it must "):
        require(name, **{key: value})


@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        (Parameter(0.5, 0.0, 1.0), "it must lie in [0, 1]"),
        (Parameter(0.5, 0.0, 1.0, open_low=True), "it must lie in (0, 1]"),
        (Parameter(0.5, 0.0, 0.5, open_high=True), "it must lie in [0, 0.5)"),
        (Parameter(0.5, 0.0), "it must be at least 0 and finite"),
        (Parameter(0.5, 0.0, open_low=True), "it must be above 0 and finite"),
        (Parameter(2, 1), "it must be at least 1 and finite"),
        (Parameter(1.0), "it must be finite"),
        (Parameter("sum", choices=("sum", "count")), "it must be 'sum' or 'count'"),
    ],
)
def test_a_range_in_words(parameter: Parameter, message: str) -> None:
    assert parameter.range == message


@pytest.mark.parametrize("name", NAMES)
def test_a_function_refuses_what_its_range_does(name: str) -> None:
    # The functions state no range of their own, and none is forgotten. What has no edge is left to the recipe's check.
    given = experts(n=sources_of(name, 2))
    for key, parameter in SPECS[name].parameters.items():
        taken = key in inspect.signature(METHODS[name]).parameters
        if (
            not taken
            or isinstance(parameter.default, bool)
            or (not parameter.choices and parameter.low == -math.inf)
        ):
            continue
        whole = isinstance(parameter.default, int)
        wrong = "wrong" if parameter.choices else step(parameter.low, -math.inf, whole)
        with pytest.raises(MethodError, match=f"^{name}: {key} is {wrong!r}, it must "):
            METHODS[name](*given, **{key: wrong if parameter.choices or whole else float(wrong)})


def test_each_of_several_numbers_is_checked() -> None:
    require("ties", density=[0.5, 1.0])
    with pytest.raises(MethodError, match=re.escape("ties: density is 0.0, it must lie in (0, 1]")):
        require("ties", density=[0.5, 0.0])


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("linear", [], "linear merges at least 1 source, got 0"),
        ("slerp", [1.0], "slerp merges exactly 2 sources, got 1"),
        ("slerp", [1.0, 1.0, 1.0], "slerp merges exactly 2 sources, got 3"),
        ("passthrough", [1.0, 1.0], "passthrough merges exactly 1 source, got 2"),
        ("model_stock", [1.0], "model_stock merges at least 2 sources, got 1"),
        ("ties", [1.0, -0.5], "ties: weights [1.0, -0.5] include a negative one"),
        ("linear", [1.0, -1.0], "weights [1.0, -1.0] sum to zero, so they cannot be normalised"),
        ("linear", [0.1, 0.2, -0.3], "weights [0.1, 0.2, -0.3] sum to zero, so they cannot be normalised"),
        ("wudi", [0.0, 0.0], "weights [0.0, 0.0] sum to zero, so they cannot be normalised"),
    ],
)
def test_weights_that_a_method_cannot_use(name: str, weights: list[float], message: str) -> None:
    with pytest.raises(MethodError, match=f"^{re.escape(message)}$"):
        require_weights(name, weights)


def test_weights_that_a_method_can_use() -> None:
    require_weights("task_arithmetic", [1.0, -1.0])
    require_weights("linear", [1.0, -1.0], normalize=False)
    require_weights("linear", [1e-30, 1e-30])
    require_weights("ties", [0.0, 0.0])


def test_what_a_method_must_see() -> None:
    assert sees_of("ties", {}) == "entry"
    assert sees_of("della_linear", {}) == "row"
    assert sees_of("wudi", {"ridge": 0.5}) == "tensor"
    with pytest.raises(MethodError, match="unknown method 'tie'"):
        sees_of("tie", {})


def test_a_list_is_for_parameters_of_a_source() -> None:
    assert checked_parameters("della_ties", {"epsilon": [0.1, 0]})["epsilon"] == [0.1, 0.0]
    with pytest.raises(MethodError, match="scale is \\[1, 2\\], it must be of type float"):
        checked_parameters("della_ties", {"scale": [1, 2]})


def test_a_method_that_is_not_there() -> None:
    with pytest.raises(MethodError, match="unknown method 'breadcrumb': did you mean 'breadcrumbs'"):
        spec_of("breadcrumb")


def test_specs_load_no_torch() -> None:
    code = "import sys, langmerge.methods; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    needs = code.replace("langmerge.methods;", "langmerge.methods.measures;")
    assert subprocess.run([sys.executable, "-c", needs], check=False).returncode == 1
