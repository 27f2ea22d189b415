"""What is known of every method without its mathematics: parameters, ranges, how it may be cut. Loads no torch."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from langmerge.errors import MethodError
from langmerge.methods.parameters import Parameter, Value

Sees = Literal["entry", "row", "tensor"]
Kind = Literal["fisher", "grams"]
"""What has been measured of a source on text: the diagonal Fisher of its weights, or the Grams of its layers' inputs."""


@dataclass(frozen=True)
class MethodSpec:
    """What the engine has to know about a method.

    Attributes:
        home: module of `langmerge.methods` that holds the function of the method's name.
        parameters: what a recipe may give.
        sees: what must be in sight at once, when what `MEASURES` says is known: an `entry` (of every source), a `row`
            (first axis; a vector is one row), or the whole `tensor`.
        entry_if: a parameter and its value with which an `entry` is enough, whatever `sees` says.
        sources: smallest and largest number of sources; None for any.
        negative_weights: whether a weight below zero makes sense.
        normalizes: whether weights are divided by their sum, which then must not be zero.
        matrices: for the encoder's weight matrices only; the engine gives embeddings, heads and vectors the mean.
        statistics: what it reads of every source beside its weights.
        statistics_unless: a parameter and its value with which it reads nothing, whatever `statistics` says.
    """

    home: str
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    sees: Sees = "entry"
    entry_if: tuple[str, Value] | None = None
    sources: tuple[int, int | None] = (1, None)
    negative_weights: bool = True
    normalizes: bool = False
    matrices: bool = False
    statistics: Kind | None = None
    statistics_unless: tuple[str, Value] | None = None


def _share(default: float, *, per_source: bool = False) -> Parameter:
    return Parameter(default, 0.0, 1.0, open_low=True, per_source=per_source)


_SCALE = {"scale": Parameter(1.0)}
_SIGNS = _SCALE | {
    "election": Parameter("sum", choices=("sum", "count", "unweighted")),
    "normalize": Parameter(True),
}
_SCOPE = {"scope": Parameter("tensor", choices=("tensor", "model"))}
_SEED = {"seed": Parameter(0, 0)}
_ABOUT = {"about": Parameter("origin", choices=("origin", "base"))}
_T = Parameter(None, 0.0, 1.0)

SPECS: dict[str, MethodSpec] = {
    "arcee_fusion": MethodSpec("pairs", sees="row", sources=(1, 1)),
    "breadcrumbs": MethodSpec(
        "sparse",
        {
            "density": _share(0.9, per_source=True),
            "gamma": Parameter(0.01, 0.0, 1.0, open_high=True, per_source=True),
        }
        | _SCALE
        | {"normalize": Parameter(False)},
        normalizes=True,
    ),
    "breadcrumbs_ties": MethodSpec(
        "sparse",
        {
            "density": _share(0.9, per_source=True),
            "gamma": Parameter(0.01, 0.0, 1.0, open_high=True, per_source=True),
        }
        | _SIGNS,
        negative_weights=False,
    ),
    "consensus": MethodSpec(
        "selective", {"k": Parameter(2, 1), "lambda_": Parameter(0.4, 0.0)} | _SCALE, negative_weights=False
    ),
    "dare_linear": MethodSpec(
        "sparse",
        {"density": _share(0.5, per_source=True)} | _SCALE | {"normalize": Parameter(False)} | _SEED,
        normalizes=True,
    ),
    "dare_ties": MethodSpec(
        "signs", {"density": _share(0.5, per_source=True)} | _SIGNS | _SEED, negative_weights=False
    ),
    "della_linear": MethodSpec(
        "sparse",
        {
            "density": _share(0.5, per_source=True),
            "epsilon": Parameter(0.15, 0.0, 0.5, open_high=True, per_source=True),
        }
        | _SCALE
        | {"normalize": Parameter(False)}
        | _SEED,
        sees="row",
        normalizes=True,
    ),
    "della_ties": MethodSpec(
        "sparse",
        {
            "density": _share(0.5, per_source=True),
            "epsilon": Parameter(0.15, 0.0, 0.5, open_high=True, per_source=True),
        }
        | _SIGNS
        | _SEED,
        sees="row",
        negative_weights=False,
    ),
    "directional_consensus": MethodSpec("averages", {"alpha": Parameter(1.0, 0.0, 1.0)}),
    "fisher": MethodSpec(
        "statistics",
        {"floor": Parameter(1e-6, 0.0, 1.0)},
        negative_weights=False,
        normalizes=True,
        statistics="fisher",
    ),
    "gram": MethodSpec(
        "grams",
        {
            "mix": Parameter(0.3, 0.0, 1.0),
            "off_diagonal": Parameter(0.95, 0.0, 1.0),
            "ridge": Parameter(0.1, 0.0, open_low=True),
        },
        sees="tensor",
        negative_weights=False,
        normalizes=True,
        matrices=True,
        statistics="grams",
        statistics_unless=("mix", 0.0),
    ),
    "iso_c": MethodSpec("spectral", _SCALE, sees="tensor", matrices=True, normalizes=True),
    "iso_cts": MethodSpec(
        "spectral", {"common_share": _share(0.8)} | _SCALE, sees="tensor", matrices=True, normalizes=True
    ),
    "karcher": MethodSpec(
        "spherical",
        _ABOUT | {"max_iter": Parameter(10, 1), "tol": Parameter(1e-5, 0.0, open_low=True)},
        negative_weights=False,
        normalizes=True,
    ),
    "layer_swap": MethodSpec(
        "pairs",
        {"bottom": Parameter(2, 0), "top": Parameter(1, 0), "transition": Parameter(1, 0)},
        sources=(2, 2),
        negative_weights=False,
        normalizes=True,
    ),
    "linear": MethodSpec("averages", {"normalize": Parameter(True)}, normalizes=True),
    "model_stock": MethodSpec(
        "spherical",
        {"filter_wise": Parameter(False)},
        sees="row",
        entry_if=("filter_wise", False),
        sources=(2, None),
        negative_weights=False,
        normalizes=True,
    ),
    "multislerp": MethodSpec(
        "spherical",
        _ABOUT | {"normalize": Parameter(True), "eps": Parameter(1e-8, 0.0, open_low=True)},
        normalizes=True,
    ),
    "nearswap": MethodSpec("pairs", {"t": Parameter(1e-4, 0.0, open_low=True)}, sources=(1, 1)),
    "neuromerging": MethodSpec(
        "neurons",
        {
            "mask": Parameter(0.15, 0.0, 1.0, open_high=True),
            "lambda_1": Parameter(0.0),
            "lambda_2": Parameter(None),
        },
        sees="row",
        negative_weights=False,
    ),
    "nuslerp": MethodSpec(
        "spherical",
        {"t": _T, "row_wise": Parameter(False), "flatten": Parameter(True)} | _ABOUT,
        sees="row",
        entry_if=("flatten", True),
        sources=(2, 2),
        normalizes=True,
    ),
    "passthrough": MethodSpec("pairs", _SCALE, sources=(1, 1), normalizes=True),
    "pcb": MethodSpec("selective", {"ratio": _share(0.1)} | _SCALE, negative_weights=False, normalizes=True),
    "ram": MethodSpec("overlap", {"epsilon": Parameter(1e-5, 0.0)} | _SCALE, negative_weights=False),
    "ramplus": MethodSpec(
        "overlap",
        {"r": Parameter(0.1, 0.0), "alpha": Parameter(0.2, 0.0), "epsilon": Parameter(1e-5, 0.0)} | _SCALE,
        negative_weights=False,
    ),
    "regmean": MethodSpec(
        "statistics",
        {"off_diagonal": Parameter(0.95, 0.0, 1.0), "ridge": Parameter(1e-4, 0.0, open_low=True)},
        sees="tensor",
        negative_weights=False,
        normalizes=True,
        matrices=True,
        statistics="grams",
    ),
    "sce": MethodSpec(
        "selective", {"topk": Parameter(0.1, 0.0, 1.0)} | _SCALE, negative_weights=False, normalizes=True
    ),
    "slerp": MethodSpec(
        "spherical", {"t": _T, "eps": Parameter(1e-4, 0.0)} | _ABOUT, sources=(2, 2), normalizes=True
    ),
    "task_arithmetic": MethodSpec("averages", _SCALE),
    "ties": MethodSpec(
        "signs", {"density": _share(0.2, per_source=True)} | _SIGNS | _SCOPE, negative_weights=False
    ),
    "tsv_m": MethodSpec(
        "spectral",
        {"rank_share": Parameter(None, 0.0, 1.0, open_low=True)} | _SCALE,
        sees="tensor",
        matrices=True,
        normalizes=True,
    ),
    "wudi": MethodSpec(
        "grams",
        {"ridge": Parameter(0.1, 0.0, open_low=True)},
        sees="tensor",
        negative_weights=False,
        normalizes=True,
        matrices=True,
    ),
}
"""Every method by name."""


def spec_of(name: str) -> MethodSpec:
    """What is known of a method.

    Raises:
        MethodError: there is no such method.
    """
    if name not in SPECS:
        close = difflib.get_close_matches(name, SPECS, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise MethodError(f"unknown method {name!r}: {hint}there are {', '.join(sorted(SPECS))}")
    return SPECS[name]


def method_parameters(name: str) -> dict[str, Any]:
    """The parameters a recipe may give for a method, with their defaults.

    >>> method_parameters("wudi")
    {'ridge': 0.1}

    Raises:
        MethodError: there is no such method.
    """
    return {key: parameter.default for key, parameter in spec_of(name).parameters.items()}


def sees_of(name: str, parameters: Mapping[str, Any]) -> Sees:
    """What the method must have in sight at once with these parameters; defaults stand for those that are left out.

    >>> sees_of("model_stock", {}), sees_of("model_stock", {"filter_wise": True})
    ('entry', 'row')

    Raises:
        MethodError: there is no such method.
    """
    spec = spec_of(name)
    if spec.entry_if is None:
        return spec.sees
    key, value = spec.entry_if
    return "entry" if parameters.get(key, spec.parameters[key].default) == value else spec.sees


def statistics_of(name: str, parameters: Mapping[str, Any]) -> Kind | None:
    """What the method reads of every source beside its weights, with these parameters; defaults stand for the rest.

    >>> statistics_of("gram", {}), statistics_of("gram", {"mix": 0}), statistics_of("ties", {})
    ('grams', None, None)

    Raises:
        MethodError: there is no such method.
    """
    spec = spec_of(name)
    if spec.statistics_unless is None:
        return spec.statistics
    key, value = spec.statistics_unless
    return None if parameters.get(key, spec.parameters[key].default) == value else spec.statistics


def checked_parameters(name: str, given: Mapping[str, Any], *, sources: int | None = None) -> dict[str, Any]:
    """The method's defaults with what was given on top; whole numbers for real parameters become floats.

    Args:
        name: of the method.
        given: what a recipe gives.
        sources: their number, if lists of one number per source are to be checked against it.

    Raises:
        MethodError: an unknown method or parameter, a value of another type than the default's, or out of its range,
            alone or (density and epsilon) together.
    """
    allowed = spec_of(name).parameters
    for key in given:
        if key not in allowed:
            listed = ", ".join(allowed) or "none"
            raise MethodError(f"method {name!r} has no parameter {key!r}: it has {listed}")
    checked = {key: _checked(name, key, value, allowed[key], sources) for key, value in given.items()}
    found = method_parameters(name) | checked
    if {"density", "epsilon"} <= set(found):
        require_window(name, found["density"], found["epsilon"])
    return found


def _checked(method: str, key: str, value: Any, parameter: Parameter, sources: int | None) -> Any:
    if parameter.per_source and isinstance(value, list | tuple):
        if sources is not None and len(value) != sources:
            raise MethodError(f"{method}: {key} has {len(value)} numbers for {sources} sources")
        return [_checked(method, key, one, parameter, None) for one in value]
    if value is None and parameter.default is None:
        return None
    wanted = float if parameter.default is None else type(parameter.default)
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    # A bool is an int to isinstance.
    if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
        raise MethodError(f"method {method!r}: {key} is {value!r}, it must be of type {wanted.__name__}")
    require(method, **{key: value})
    return value


def require(method: str, **values: Any) -> None:
    """Check values against the ranges of a method's parameters; every function states its ranges here and nowhere else.

    Raises:
        MethodError: out of range.
    """
    for key, value in values.items():
        parameter = SPECS[method].parameters[key]
        for one in value if isinstance(value, list | tuple) else [value]:
            if not parameter.allows(one):
                raise MethodError(f"{method}: {key} is {one!r}, {parameter.range}")


def require_window(method: str, density: float | Sequence[float], epsilon: float | Sequence[float]) -> None:
    """Check that probabilities from density − epsilon to density + epsilon are probabilities, for every source.

    Raises:
        MethodError: they leave (0, 1].
    """
    listed = max(len(one) if isinstance(one, Sequence) else 1 for one in (density, epsilon))
    densities, epsilons = (one if isinstance(one, Sequence) else [one] * listed for one in (density, epsilon))
    for p, half in zip(densities, epsilons, strict=False):
        if p - half <= 0 or p + half > 1:
            raise MethodError(
                f"{method}: density {p:g} and epsilon {half:g} give keep probabilities from {p - half:g} to {p + half:g},"
                " they must lie in (0, 1]: lower epsilon"
            )


def require_weights(method: str, weights: Sequence[float], *, normalize: bool = True) -> None:
    """Check the weights of one tensor against what a method can do with them.

    Args:
        method: name of the method.
        weights: w_i.
        normalize: for methods with a parameter of that name, its value.

    Raises:
        MethodError: a negative weight, a sum of zero, or a wrong number of sources.
    """
    spec, found = SPECS[method], list(weights)
    low, high = spec.sources
    if len(found) < low or (high is not None and len(found) > high):
        wanted = f"exactly {low}" if low == high else f"at least {low}"
        raise MethodError(f"{method} merges {wanted} source{'s' if low != 1 else ''}, got {len(found)}")
    if not spec.negative_weights and any(weight < 0 for weight in found):
        raise MethodError(f"{method}: weights {found} include a negative one")
    # Up to rounding: 0.1 + 0.2 - 0.3 is no sum to divide by.
    if spec.normalizes and normalize and abs(sum(found)) <= 1.2e-7 * sum(map(abs, found)):
        raise MethodError(f"weights {found} sum to zero, so they cannot be normalised")
