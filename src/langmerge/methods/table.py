"""The table of methods, and what the engine has to know about each."""

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from langmerge.errors import MethodError
from langmerge.methods.averages import directional_consensus, linear, slerp, task_arithmetic
from langmerge.methods.grams import wudi
from langmerge.methods.signs import dare_ties, ties

Method = Callable[..., Tensor]
"""`(base, tuned, weights, **params)`: base of shape S, tuned (N, *S), weights (N,); a new tensor of shape S."""

METHODS: dict[str, Method] = {
    "dare_ties": dare_ties,
    "directional_consensus": directional_consensus,
    "linear": linear,
    "slerp": slerp,
    "task_arithmetic": task_arithmetic,
    "ties": ties,
    "wudi": wudi,
}

MATRIX_METHODS = frozenset({"wudi"})
"""Methods for the encoder's weight matrices; embeddings and heads get the weighted mean."""

EXACTLY_TWO = frozenset({"slerp"})
"""Methods that merge exactly two sources."""

SUPPLIED_BY_ENGINE = frozenset({"key", "sources", "thresholds"})
"""Parameters that the engine fills in, not the recipe."""


def method_parameters(name: str) -> dict[str, Any]:
    """The parameters a recipe may give for a method, with their defaults.

    >>> method_parameters("wudi")
    {'ridge': 0.1}

    Raises:
        MethodError: there is no such method.
    """
    if name not in METHODS:
        close = difflib.get_close_matches(name, METHODS, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise MethodError(f"unknown method {name!r}: {hint}there are {', '.join(sorted(METHODS))}")
    signature = inspect.signature(METHODS[name])
    own = {
        parameter.name: parameter.default
        for parameter in signature.parameters.values()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and parameter.name not in SUPPLIED_BY_ENGINE
    }
    if name == "ties":
        own["scope"] = "tensor"
    return own


def checked_parameters(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The method's defaults with what was given on top.

    Raises:
        MethodError: an unknown method or parameter, or a value of another type than the default's.
    """
    allowed = method_parameters(name)
    for parameter, value in given.items():
        if parameter not in allowed:
            listed = ", ".join(allowed) or "none"
            raise MethodError(f"method {name!r} has no parameter {parameter!r}: it has {listed}")
        _check_type(name, parameter, value, allowed[parameter])
    merged = {**allowed, **given}
    if merged.get("scope", "tensor") not in ("tensor", "model"):
        raise MethodError(f"method {name!r}: scope is {merged['scope']!r}, it must be 'tensor' or 'model'")
    return merged


def _check_type(method: str, parameter: str, value: Any, default: Any) -> None:
    wanted: tuple[type, ...] = (
        (float, int) if default is None or isinstance(default, float) else (type(default),)
    )
    if isinstance(value, bool) is not isinstance(default, bool) or not isinstance(value, wanted):
        raise MethodError(
            f"method {method!r}: {parameter} is {value!r}, it must be of type {wanted[0].__name__}"
        )
