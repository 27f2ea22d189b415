"""mergekit's methods and parameters in terms of ours: one table, and how values are carried over."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from langmerge.errors import MethodError
from langmerge.methods.specs import checked_parameters, require_weights

Role = Literal["source", "first", "base", "origin"]
"""What a recipe's base_model is to a method: one more `source`; the `first` of the two sources; the `base` that it
needs; or the `origin` that it may have."""

REQUIRED: Any = object()
"""Default of a parameter that a recipe has to give."""


@dataclass(frozen=True)
class PeerParameter:
    """A parameter as mergekit has it.

    Attributes:
        kind: type of its values.
        default: mergekit's, or `REQUIRED`.
        per_source: whether every source has its own value; otherwise one value is for the whole merge.
    """

    kind: type[bool] | type[int] | type[float]
    default: Any = REQUIRED
    per_source: bool = False


@dataclass(frozen=True)
class Values:
    """The values of a method's parameters for one tensor.

    Attributes:
        shared: by name, of the parameters with one value.
        each: by name, one value for every source in order.
        n: number of sources, the base not counted (unless it is one of them).
        has_base: whether there is a base apart from the sources.
    """

    shared: Mapping[str, Any]
    each: Mapping[str, tuple[Any, ...]]
    n: int
    has_base: bool


@dataclass(frozen=True)
class Treatment:
    """What langmerge does to one tensor.

    Attributes:
        method: a name from `METHODS`.
        parameters: of the method, all of them.
        weights: one per source, in order.
    """

    method: str
    parameters: Mapping[str, Any]
    weights: tuple[float, ...]


Translate = Callable[[Values], tuple[Mapping[str, Any], tuple[float, ...]]]
"""Our parameters and weights from mergekit's values."""


@dataclass(frozen=True)
class PeerMethod:
    """A method of mergekit.

    Attributes:
        ours: our name of it.
        role: what the base_model is to it.
        translate: carries the values over.
        parameters: all that mergekit knows for it.
        sources: smallest and largest number of sources besides a `base` or `origin`; None for any.
    """

    ours: str
    role: Role
    translate: Translate
    parameters: Mapping[str, PeerParameter] = field(default_factory=dict)
    sources: tuple[int, int | None] = (1, None)

    def treatment(self, values: Values) -> Treatment:
        """Our method, its parameters and weights for one tensor.

        Raises:
            MethodError: a value that cannot be carried over, or one that our method refuses.
        """
        given, weights = self.translate(values)
        parameters = checked_parameters(self.ours, given, sources=values.n)
        require_weights(self.ours, weights, normalize=bool(parameters.get("normalize", True)))
        return Treatment(self.ours, parameters, weights)


def _ones(values: Values) -> tuple[float, ...]:
    return (1.0,) * values.n


def _linear(values: Values) -> tuple[Mapping[str, Any], tuple[float, ...]]:
    return {"normalize": values.shared["normalize"]}, values.each["weight"]


def _task_arithmetic(values: Values) -> tuple[Mapping[str, Any], tuple[float, ...]]:
    if any(density < 1 for density in values.each["density"]):
        raise MethodError(
            "density has no effect on task_arithmetic: remove it, or use ties, dare_linear or breadcrumbs"
        )
    weights, total = values.each["weight"], math.fsum(values.each["weight"])
    # mergekit leaves weights that cancel undivided; here such a sum is refused like everywhere.
    if values.shared["normalize"]:
        require_weights("linear", weights)
        weights = tuple(weight / total for weight in weights)
    return {"scale": values.shared["lambda"]}, weights


def _sparse(values: Values, *, random: bool, signs: bool, extra: str = "") -> dict[str, Any]:
    """What the methods that thin out task vectors share.

    Args:
        values: mergekit's.
        random: whether entries are dropped at random and the rest rescaled.
        signs: whether signs are elected, over the sum of the weighted task vectors.
        extra: a parameter per source that has no effect at density 1, where ours takes it for 0.
    """
    density = [min(one, 1.0) for one in values.each["density"]]
    if values.shared["rescale"] is not random and min(density) < 1:
        way_out = "rescale: true is its default" if random else "remove rescale"
        raise MethodError(
            f"rescale is {'true' if values.shared['rescale'] else 'false'}, which cannot be done here at a density "
            f"below 1: {way_out}"
        )
    found: dict[str, Any] = {
        "density": density,
        "scale": values.shared["lambda"],
        "normalize": values.shared["normalize"],
    }
    if signs:
        found["election"] = "sum"
    if extra:
        found[extra] = [
            0.0 if share == 1 else one for share, one in zip(density, values.each[extra], strict=True)
        ]
    return found


def _thinned(*, random: bool = False, signs: bool = False, extra: str = "") -> Translate:
    def translate(values: Values) -> tuple[Mapping[str, Any], tuple[float, ...]]:
        return _sparse(values, random=random, signs=signs, extra=extra), values.each["weight"]

    return translate


_PARALLEL = 5e-4
"""mergekit's slerp is a straight line where 1 − |cos| is below this."""


def _slerp(values: Values) -> tuple[Mapping[str, Any], tuple[float, ...]]:
    return {"t": values.shared["t"], "eps": _PARALLEL, "about": "origin"}, _ones(values)


def _about(values: Values) -> str:
    return "base" if values.has_base else "origin"


def _multislerp(values: Values) -> tuple[Mapping[str, Any], tuple[float, ...]]:
    parameters = {
        "normalize": values.shared["normalize_weights"],
        "eps": values.shared["eps"],
        "about": _about(values),
    }
    return parameters, values.each["weight"]


def _nuslerp(values: Values) -> tuple[Mapping[str, Any], tuple[float, ...]]:
    first, second = values.each["weight"]
    total = first + second
    parameters = {
        "t": 0.5 if abs(total) < 1e-6 else second / total,
        "flatten": values.shared["nuslerp_flatten"],
        "row_wise": values.shared["nuslerp_row_wise"],
        "about": _about(values),
    }
    return parameters, _ones(values)


def _karcher(values: Values) -> tuple[Mapping[str, Any], tuple[float, ...]]:
    return {**values.shared, "about": "origin"}, _ones(values)


def _passthrough(values: Values) -> tuple[Mapping[str, Any], tuple[float, ...]]:
    (scale,) = values.each["scale"]
    return {"scale": 1.0 if scale is None else scale}, (1.0,)


def _sce(values: Values) -> tuple[Mapping[str, Any], tuple[float, ...]]:
    return {"topk": min(values.shared["select_topk"], 1.0)}, _ones(values)


def _same_names(values: Values) -> tuple[Mapping[str, Any], tuple[float, ...]]:
    return values.shared, _ones(values)


_WEIGHT = {"weight": PeerParameter(float, per_source=True)}
# How mergekit keeps masks in memory: it changes no result, so it is accepted and has no effect here.
_INT8_MASK = {"int8_mask": PeerParameter(bool, False)}


def _arithmetic(*, normalize: bool = False, rescale: bool = False, **more: float) -> dict[str, PeerParameter]:
    """Parameters of the methods that add up task vectors."""
    own = {name: PeerParameter(float, default, per_source=True) for name, default in more.items()}
    return {
        **_WEIGHT,
        **_INT8_MASK,
        "density": PeerParameter(float, 1.0, per_source=True),
        "lambda": PeerParameter(float, 1.0),
        "normalize": PeerParameter(bool, normalize),
        "rescale": PeerParameter(bool, rescale),
        **own,
    }


PEER_METHODS: dict[str, PeerMethod] = {
    "arcee_fusion": PeerMethod("arcee_fusion", "base", _same_names, sources=(1, 1)),
    "breadcrumbs": PeerMethod("breadcrumbs", "base", _thinned(extra="gamma"), _arithmetic(gamma=0.01)),
    "breadcrumbs_ties": PeerMethod(
        "breadcrumbs_ties", "base", _thinned(signs=True, extra="gamma"), _arithmetic(gamma=0.01)
    ),
    "dare_linear": PeerMethod("dare_linear", "base", _thinned(random=True), _arithmetic(rescale=True)),
    "dare_ties": PeerMethod(
        "dare_ties", "base", _thinned(random=True, signs=True), _arithmetic(rescale=True)
    ),
    "della": PeerMethod(
        "della_ties",
        "base",
        _thinned(random=True, signs=True, extra="epsilon"),
        _arithmetic(normalize=True, rescale=True, epsilon=0.15),
    ),
    "della_linear": PeerMethod(
        "della_linear",
        "base",
        _thinned(random=True, extra="epsilon"),
        _arithmetic(rescale=True, epsilon=0.15),
    ),
    "karcher": PeerMethod(
        "karcher", "source", _karcher, {"max_iter": PeerParameter(int, 10), "tol": PeerParameter(float, 1e-5)}
    ),
    "linear": PeerMethod("linear", "source", _linear, {**_WEIGHT, "normalize": PeerParameter(bool, True)}),
    "model_stock": PeerMethod(
        "model_stock", "base", _same_names, {"filter_wise": PeerParameter(bool, False)}, sources=(2, None)
    ),
    "multislerp": PeerMethod(
        "multislerp",
        "origin",
        _multislerp,
        {**_WEIGHT, "normalize_weights": PeerParameter(bool, True), "eps": PeerParameter(float, 1e-8)},
    ),
    "nearswap": PeerMethod("nearswap", "base", _same_names, {"t": PeerParameter(float)}, sources=(1, 1)),
    "nuslerp": PeerMethod(
        "nuslerp",
        "origin",
        _nuslerp,
        {
            **_WEIGHT,
            "nuslerp_flatten": PeerParameter(bool, True),
            "nuslerp_row_wise": PeerParameter(bool, False),
        },
        sources=(2, 2),
    ),
    "passthrough": PeerMethod(
        "passthrough",
        "source",
        _passthrough,
        {"scale": PeerParameter(float, None, per_source=True)},
        sources=(1, 1),
    ),
    "ram": PeerMethod("ram", "base", _same_names, {"epsilon": PeerParameter(float, 1e-5)}),
    "ramplus_tl": PeerMethod(
        "ramplus",
        "base",
        _same_names,
        {
            "r": PeerParameter(float, 0.1),
            "alpha": PeerParameter(float, 0.2),
            "epsilon": PeerParameter(float, 1e-5),
        },
    ),
    "sce": PeerMethod("sce", "base", _sce, {"select_topk": PeerParameter(float, 1.0), **_INT8_MASK}),
    "slerp": PeerMethod("slerp", "first", _slerp, {"t": PeerParameter(float)}, sources=(2, 2)),
    "task_arithmetic": PeerMethod("task_arithmetic", "base", _task_arithmetic, _arithmetic()),
    "ties": PeerMethod("ties", "base", _thinned(signs=True), _arithmetic(normalize=True)),
}
"""Every method of mergekit 0.1.5, by its name there."""
