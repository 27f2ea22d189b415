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
    """The method's defaults with what was given on top; whole numbers for real parameters become floats.

    Raises:
        MethodError: an unknown method or parameter, or a value of another type than the default's.
    """
    allowed = method_parameters(name)
    for parameter in given:
        if parameter not in allowed:
            listed = ", ".join(allowed) or "none"
            raise MethodError(f"method {name!r} has no parameter {parameter!r}: it has {listed}")
    merged = allowed | {key: _checked_value(name, key, given[key], allowed[key]) for key in given}
    if merged.get("scope", "tensor") not in ("tensor", "model"):
        raise MethodError(f"method {name!r}: scope is {merged['scope']!r}, it must be 'tensor' or 'model'")
    return merged


def _checked_value(method: str, parameter: str, value: Any, default: Any) -> Any:
    if value is None and default is None:
        return None
    wanted = float if default is None else type(default)
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    # A bool is an int to isinstance.
    if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
        raise MethodError(
            f"method {method!r}: {parameter} is {value!r}, it must be of type {wanted.__name__}"
        )
    return value
