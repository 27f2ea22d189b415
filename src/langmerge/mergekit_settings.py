"""Parameters of a mergekit recipe: filters, gradients over the layers, and which scope is heard first."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from langmerge.errors import RecipeError
from langmerge.mergekit_methods import REQUIRED, PeerMethod, PeerParameter

Settings = dict[str, Any]
"""Parameters by name as the file has them: a value, a list of values (a gradient over the layers), or a list of
`{filter, value}`."""


def check_settings(settings: Settings, peer: PeerMethod, *, where: str, own: bool = False) -> None:
    """Names and types of all values, so that a wrong one is found whatever tensor it is for."""
    for key, setting in settings.items():
        if key not in peer.parameters:
            listed = ", ".join(sorted(peer.parameters)) or "none"
            raise ValueError(f"{where}.{key}: no parameter of this merge_method, which has {listed}")
        if own and not peer.parameters[key].per_source:
            raise ValueError(
                f"{where}.{key}: one value is for all models: move it to the parameters of the whole merge"
            )
        try:
            for _, values in _rules(setting):
                _along(values, 0.0, peer.parameters[key].kind)
        except ValueError as error:
            raise ValueError(f"{where}.{key}: {error}") from None


def _rules(setting: Any) -> Iterator[tuple[str | None, list[Any]]]:
    """Filter and gradient of every entry, in order; a single value is a gradient of one."""
    entries = setting if isinstance(setting, list | tuple) else [setting]
    if not entries:
        raise ValueError("an empty list gives no value")
    if not any(isinstance(entry, Mapping) for entry in entries):
        yield None, list(entries)
        return
    for entry in entries:
        if not isinstance(entry, Mapping) or "value" not in entry or not entry.keys() <= {"value", "filter"}:
            raise ValueError(f"{entry!r} stands in a list of conditions: each is {{filter: …, value: …}}")
        text, value = entry.get("filter"), entry["value"]
        if text is not None and not isinstance(text, str):
            raise ValueError(f"the filter {text!r} is no text")
        if isinstance(value, Mapping) or value == []:
            raise ValueError(f"{value!r} is no value")
        yield None if text == "*" else text, list(value) if isinstance(value, list | tuple) else [value]


def _along(values: Sequence[Any], t: float, kind: type) -> Any:
    """A gradient's value at t: numbers are interpolated, switches change in steps."""
    typed = [_typed(value, kind) for value in values]
    place = t * (len(typed) - 1)
    if kind is bool:
        return typed[int(place)]
    if kind is int:
        if len(typed) > 1 or not typed[0].is_integer():
            raise ValueError(f"{values!r} is not one whole number")
        return int(typed[0])
    low = int(place)
    high, share = min(low + 1, len(typed) - 1), place - low
    return (1 - share) * typed[low] + share * typed[high]


def _typed(value: Any, kind: type) -> Any:
    if kind is bool or isinstance(value, bool):
        if kind is bool and isinstance(value, bool):
            return value
        raise ValueError(f"{value!r} is not {'true or false' if kind is bool else 'a number'}")
    # YAML reads 1e-5 as text.
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{value!r} is not a number") from None
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is not finite")
    return number


def resolved(
    key: str,
    parameter: PeerParameter,
    scopes: Sequence[Settings],
    name: str,
    t: float,
    of: str = "",
) -> Any:
    """The first value that a scope has for a tensor, from the innermost scope on; or the default."""
    for scope in scopes:
        for text, values in _rules(scope[key]) if key in scope else ():
            if text is None or text in name:
                return _along(values, t, parameter.kind)
    if parameter.default is REQUIRED:
        raise RecipeError(
            f"tensor {name!r} has no {key}{of}: give it, with an entry without filter for all others"
        )
    return parameter.default
