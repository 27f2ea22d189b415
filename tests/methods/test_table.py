"""The table of methods."""

from typing import Any

import pytest

import langmerge.methods
from langmerge.errors import MethodError
from langmerge.methods import EXACTLY_TWO, MATRIX_METHODS, METHODS, checked_parameters, method_parameters

from .conftest import NAMES, experts

DEFAULTS: dict[str, dict[str, Any]] = {
    "dare_ties": {"density": 0.5, "scale": 1.0, "election": "sum", "seed": 0},
    "directional_consensus": {"alpha": 1.0},
    "linear": {"normalize": True},
    "slerp": {"t": None, "eps": 1e-4},
    "task_arithmetic": {"scale": 1.0},
    "ties": {"density": 0.2, "scale": 1.0, "election": "sum", "scope": "tensor"},
    "wudi": {"ridge": 0.1},
}


def test_the_table() -> None:
    assert list(METHODS) == NAMES == list(DEFAULTS)
    assert [method.__name__ for method in METHODS.values()] == NAMES
    assert sorted(EXACTLY_TWO) == ["slerp"]
    assert sorted(MATRIX_METHODS) == ["wudi"]


def test_the_public_names() -> None:
    names = langmerge.methods.__all__
    assert names == sorted(names)
    assert {"METHODS", "Method", "checked_parameters", "method_parameters"} < set(names)
    assert all(hasattr(langmerge.methods, name) for name in names)


@pytest.mark.parametrize("name", NAMES)
def test_what_a_recipe_may_give(name: str) -> None:
    assert method_parameters(name) == DEFAULTS[name]
    assert checked_parameters(name, {}) == DEFAULTS[name]
    # A receipt holds them all, and is a recipe again.
    assert checked_parameters(name, DEFAULTS[name]) == DEFAULTS[name]


@pytest.mark.parametrize("name", NAMES)
def test_the_defaults_can_be_passed(name: str) -> None:
    own = {key: value for key, value in checked_parameters(name, {}).items() if key != "scope"}
    given = experts()
    assert METHODS[name](*given, **own).equal(METHODS[name](*given))


def test_what_is_given_replaces_the_default() -> None:
    found = checked_parameters("ties", {"scope": "model", "density": 0.5})
    assert found == {"density": 0.5, "scale": 1.0, "election": "sum", "scope": "model"}
    assert method_parameters("ties") == DEFAULTS["ties"]


@pytest.mark.parametrize(("name", "parameter"), [("ties", "scale"), ("wudi", "ridge"), ("slerp", "t")])
def test_a_whole_number_is_a_real_one(name: str, parameter: str) -> None:
    found = checked_parameters(name, {parameter: 1})[parameter]
    assert (found, type(found)) == (1.0, float)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("ties", {"density": "0.2"}, "method 'ties': density is '0.2', it must be of type float"),
        ("ties", {"density": None}, "method 'ties': density is None, it must be of type float"),
        ("ties", {"density": True}, "method 'ties': density is True, it must be of type float"),
        ("ties", {"election": 1}, "method 'ties': election is 1, it must be of type str"),
        ("ties", {"scope": 1}, "method 'ties': scope is 1, it must be of type str"),
        ("ties", {"scope": "layer"}, "method 'ties': scope is 'layer', it must be 'tensor' or 'model'"),
        ("slerp", {"t": True}, "method 'slerp': t is True, it must be of type float"),
        ("slerp", {"t": "0.5"}, "method 'slerp': t is '0.5', it must be of type float"),
        ("dare_ties", {"seed": 1.0}, "method 'dare_ties': seed is 1.0, it must be of type int"),
        ("dare_ties", {"seed": False}, "method 'dare_ties': seed is False, it must be of type int"),
        ("linear", {"normalize": 1}, "method 'linear': normalize is 1, it must be of type bool"),
        ("linear", {"normalize": "no"}, "method 'linear': normalize is 'no', it must be of type bool"),
        ("wudi", {"scope": "model"}, "method 'wudi' has no parameter 'scope': it has ridge"),
        (
            "ties",
            {"k": 1, "density": 2},
            "method 'ties' has no parameter 'k': it has density, scale, election, scope",
        ),
    ],
)
def test_another_parameter_or_type_is_an_error(name: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(MethodError, match=f"^{message}$"):
        checked_parameters(name, given)


@pytest.mark.parametrize(
    ("name", "parameter"), [("ties", "thresholds"), ("dare_ties", "key"), ("dare_ties", "sources")]
)
def test_a_recipe_does_not_give_what_the_engine_supplies(name: str, parameter: str) -> None:
    with pytest.raises(MethodError, match=f"method '{name}' has no parameter '{parameter}'"):
        checked_parameters(name, {parameter: None})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("tiess", "unknown method 'tiess': did you mean 'ties'\\? there are dare_ties, .*, wudi$"),
        ("task-arithmetic", "unknown method 'task-arithmetic': did you mean 'task_arithmetic'\\? there are"),
        ("zzz", "unknown method 'zzz': there are dare_ties, directional_consensus, linear, slerp, .*, wudi$"),
    ],
)
def test_an_unknown_method_is_an_error_that_suggests_one(wrong: str, message: str) -> None:
    with pytest.raises(MethodError, match=message):
        method_parameters(wrong)
    with pytest.raises(MethodError, match=message):
        checked_parameters(wrong, {})
