"""The table of methods, and what a recipe may give them."""

import re
from typing import Any

import pytest

import langmerge.methods
from langmerge.errors import MethodError
from langmerge.methods import METHODS, SPECS, checked_parameters, measures_of, method_parameters

from .conftest import NAMES, TRAITS


def test_the_table() -> None:
    assert list(METHODS) == sorted(SPECS)
    assert len(METHODS) == len(SPECS)
    assert [METHODS[name].__name__ for name in NAMES] == NAMES
    assert "mean" not in METHODS


def test_every_method_has_its_traits() -> None:
    assert list(TRAITS) == sorted(SPECS)


def test_a_method_that_is_not_there_is_a_key_error() -> None:
    with pytest.raises(KeyError, match="mean"):
        METHODS["mean"]


def test_the_public_names() -> None:
    names = langmerge.methods.__all__
    assert names == sorted(names, key=lambda name: (not name.isupper(), name[0].islower(), name))
    assert {"METHODS", "SPECS", "Method", "checked_parameters", "method_parameters"} < set(names)
    assert all(hasattr(langmerge.methods, name) for name in names)


@pytest.mark.parametrize("name", sorted(SPECS))
def test_what_a_recipe_may_give(name: str) -> None:
    defaults = method_parameters(name)
    assert list(defaults) == list(SPECS[name].parameters)
    # A receipt holds them all, and is a recipe again.
    assert checked_parameters(name, {}) == checked_parameters(name, defaults) == defaults


def test_what_is_given_replaces_the_default() -> None:
    found = checked_parameters("ties", {"scope": "model", "density": 0.5})
    expected = {"density": 0.5, "scale": 1.0, "election": "sum", "normalize": True, "scope": "model"}
    assert found == expected
    assert method_parameters("ties") == expected | {"density": 0.2, "scope": "tensor"}


@pytest.mark.parametrize(("name", "parameter"), [("ties", "scale"), ("wudi", "ridge"), ("slerp", "t")])
def test_a_whole_number_is_a_real_one(name: str, parameter: str) -> None:
    found = checked_parameters(name, {parameter: 1})[parameter]
    assert (found, type(found)) == (1.0, float)


def test_a_number_for_each_source() -> None:
    found = checked_parameters("ties", {"density": [0.5, 1]}, sources=2)["density"]
    assert (found, [type(one) for one in found]) == ([0.5, 1.0], [float, float])
    # Where the number of sources is not known yet, any number of them will do.
    assert checked_parameters("dare_ties", {"density": (0.5, 0.2, 0.1)})["density"] == [0.5, 0.2, 0.1]


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("ties", {"density": "0.2"}, "method 'ties': density is '0.2', it must be of type float"),
        ("ties", {"density": None}, "method 'ties': density is None, it must be of type float"),
        ("ties", {"density": True}, "method 'ties': density is True, it must be of type float"),
        ("ties", {"density": [0.5, "1"]}, "method 'ties': density is '1', it must be of type float"),
        ("ties", {"density": [0.5, 1.5]}, r"ties: density is 1.5, it must lie in (0, 1]"),
        ("ties", {"density": [0.5]}, "ties: density has 1 numbers for 2 sources"),
        ("ties", {"scale": [1.0, 1.0]}, "method 'ties': scale is [1.0, 1.0], it must be of type float"),
        ("ties", {"election": 1}, "method 'ties': election is 1, it must be of type str"),
        (
            "ties",
            {"election": "mass"},
            "ties: election is 'mass', it must be 'sum' or 'count' or 'unweighted'",
        ),
        ("ties", {"scope": 1}, "method 'ties': scope is 1, it must be of type str"),
        ("ties", {"scope": "layer"}, "ties: scope is 'layer', it must be 'tensor' or 'model'"),
        ("ties", {"normalize": 0}, "method 'ties': normalize is 0, it must be of type bool"),
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
            "method 'ties' has no parameter 'k': it has density, scale, election, normalize, scope",
        ),
    ],
)
def test_another_parameter_type_or_range_is_an_error(name: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(MethodError, match=f"^{re.escape(message)}$"):
        checked_parameters(name, given, sources=2)


@pytest.mark.parametrize(
    ("name", "parameter"),
    [("ties", "known"), ("dare_ties", "key"), ("dare_ties", "sources"), ("dare_ties", "offset")],
)
def test_a_recipe_does_not_give_what_the_engine_supplies(name: str, parameter: str) -> None:
    with pytest.raises(MethodError, match=f"method '{name}' has no parameter '{parameter}'"):
        checked_parameters(name, {parameter: None})


def test_what_is_measured_depends_on_the_parameters() -> None:
    assert [one.name for one in measures_of("ties", {"density": 0.5})] == ["thresholds"]
    assert [one.name for one in measures_of("ties", {"density": [1.0, 0.5]})] == ["thresholds"]
    assert measures_of("ties", {"density": 1.0}) == ()
    assert measures_of("linear", {}) == ()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("tiess", "unknown method 'tiess': did you mean 'ties'\\? there are arcee_fusion, .*, wudi$"),
        ("task-arithmetic", "unknown method 'task-arithmetic': did you mean 'task_arithmetic'\\? there are"),
        ("zzz", "unknown method 'zzz': there are arcee_fusion, breadcrumbs, .*, wudi$"),
    ],
)
def test_an_unknown_method_is_an_error_that_suggests_one(wrong: str, message: str) -> None:
    with pytest.raises(MethodError, match=message):
        method_parameters(wrong)
    with pytest.raises(MethodError, match=message):
        checked_parameters(wrong, {})
    with pytest.raises(MethodError, match=message):
        measures_of(wrong, {})
