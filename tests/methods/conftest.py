"""Small experts, what sets each method apart in the contract suite, and how a tensor is measured in chunks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from langmerge.methods import SPECS
from langmerge.methods.measures import Measure, Sum

Promise = Literal[
    "the base stays where no source changed it",
    "gradients reach the weights",
    "one NaN shows",
    "an infinity shows",
    "one source is that source",
    "equal sources are that source",
    "the order of the sources does not matter",
    "units do not matter",
    "only deltas matter",
    "streamed measures are exact",
]


@dataclass(frozen=True)
class Traits:
    """What sets a method apart in the contract suite.

    Attributes:
        whole: parameters with which nothing is trimmed, dropped or selected.
        nan: where a NaN in one entry of a source shows: there, in its row, or in the whole tensor.
        uses_base: whether θ_0 takes part.
        weights: what a common factor of the weights does: `scales` the delta, is `ignored`, or something `else`.
        breaks: promises of the suite that the method does not make, each with the reason.
    """

    whole: Mapping[str, Any] = field(default_factory=dict)
    nan: Literal["entry", "row", "tensor"] = "entry"
    uses_base: bool = True
    weights: Literal["scales", "ignored", "else"] = "scales"
    breaks: Mapping[Promise, str] = field(default_factory=dict)


_ISOTROPIC = Traits(
    nan="tensor",
    weights="ignored",
    breaks={
        "one source is that source": "its singular values are made equal",
        "equal sources are that source": "likewise",
    },
)

TRAITS: dict[str, Traits] = {
    "arcee_fusion": Traits(
        breaks={
            "gradients reach the weights": "in a small tensor no change may be important enough",
            "one source is that source": "only its important changes are taken",
            "units do not matter": "a softmax of the weights has a unit",
        },
    ),
    "breadcrumbs": Traits(whole={"density": 1.0}),
    "breadcrumbs_ties": Traits(whole={"density": 1.0}, weights="ignored"),
    "consensus": Traits(whole={"k": 1, "lambda_": 0.0}),
    "dare_linear": Traits(whole={"density": 1.0}),
    "dare_ties": Traits(whole={"density": 1.0}, weights="ignored"),
    "della_linear": Traits(whole={"density": 1.0, "epsilon": 0.0}),
    "della_ties": Traits(whole={"density": 1.0, "epsilon": 0.0}, weights="ignored"),
    "directional_consensus": Traits(nan="tensor"),
    "fisher": Traits(uses_base=False, weights="ignored"),
    "gram": Traits(nan="tensor", weights="ignored"),
    "iso_c": _ISOTROPIC,
    "iso_cts": _ISOTROPIC,
    "karcher": Traits(nan="tensor", uses_base=False, weights="ignored"),
    "layer_swap": Traits(
        uses_base=False,
        weights="ignored",
        breaks={
            "gradients reach the weights": "outside the transition blocks a tensor comes from one source",
            "one NaN shows": "a tensor of no block does not come from the second source",
            "an infinity shows": "likewise",
            "the order of the sources does not matter": "the task's expert comes first",
        },
    ),
    "linear": Traits(uses_base=False, weights="ignored"),
    "model_stock": Traits(nan="tensor", weights="ignored"),
    "multislerp": Traits(nan="tensor", uses_base=False, weights="ignored"),
    "nearswap": Traits(
        whole={"t": 100.0},
        breaks={"units do not matter": "t is a change of a weight"},
    ),
    "neuromerging": Traits(
        whole={"mask": 0.0, "lambda_1": 1.0},
        nan="tensor",
        weights="ignored",
        breaks={
            "only deltas matter": "a row of the base is a direction",
            "streamed measures are exact": "the share masked away is a sum of floats",
        },
    ),
    "nuslerp": Traits(nan="tensor", uses_base=False, weights="ignored"),
    "passthrough": Traits(
        uses_base=False,
        weights="ignored",
        breaks={"gradients reach the weights": "one source's share is 1"},
    ),
    "pcb": Traits(
        whole={"ratio": 1.0},
        nan="tensor",
        weights="ignored",
        breaks={"units do not matter": "tanh is not a straight line"},
    ),
    "ram": Traits(whole={"epsilon": 0.0}, weights="ignored"),
    "ramplus": Traits(whole={"epsilon": 0.0}, weights="ignored"),
    "regmean": Traits(uses_base=False, weights="ignored"),
    "sce": Traits(whole={"topk": 1.0}, nan="tensor", weights="ignored"),
    "slerp": Traits(nan="tensor", uses_base=False, weights="ignored"),
    "task_arithmetic": Traits(),
    "ties": Traits(whole={"density": 1.0}, weights="ignored"),
    "tsv_m": Traits(whole={"rank_share": 1.0}, nan="tensor", weights="ignored"),
    "wudi": Traits(nan="tensor", weights="ignored"),
}
"""One entry for every method."""


NAMES = list(TRAITS)


def keepers(promise: Promise) -> list[str]:
    """The methods that make a promise."""
    return [name for name in NAMES if promise not in TRAITS[name].breaks]


def sources_of(name: str, wanted: int) -> int:
    """The number of sources that a method takes, nearest to the one that is wanted."""
    low, high = SPECS[name].sources
    return max(low, wanted if high is None else min(high, wanted))


class Experts(NamedTuple):
    """The three tensors that every method takes."""

    base: Tensor
    tuned: Tensor
    weights: Tensor


def experts(
    shape: Sequence[int] = (3, 4), n: int = 2, *, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Experts:
    """A random base, experts around it, and unequal weights that sum to one."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(tuple(shape), generator=generator, dtype=dtype)
    tuned = base + torch.randn((n, *shape), generator=generator, dtype=dtype)
    weights = torch.rand(n, generator=generator, dtype=dtype) + 0.5
    return Experts(base, tuned, weights / weights.sum())


def float64(*values: Any) -> Tensor:
    """A tensor of what is written out in an example."""
    return torch.tensor(values, dtype=torch.float64)


def streamed(measures: Sequence[Measure], given: Experts, rows: int, **parameters: Any) -> dict[str, Tensor]:
    """What the measures tell of a tensor that is never there as a whole: parts of a few rows that add up."""
    known: dict[str, Tensor] = {}
    for measure in measures:
        for one in measure.passes:
            known |= _pass(one, given, rows, known, parameters)
    return known


def _pass(
    measure: Sum, given: Experts, rows: int, known: Mapping[str, Tensor], parameters: Mapping[str, Any]
) -> Mapping[str, Tensor]:
    base, tuned, weights = given
    parts = [
        measure.part(base[i : i + rows], tuned[:, i : i + rows], weights, known, **parameters)
        for i in range(0, len(base), rows)
    ]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return measure.settle(total, known, base.numel(), **parameters)
