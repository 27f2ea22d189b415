"""The table of methods: name → function, loaded on first use."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from langmerge.methods.specs import SPECS, spec_of

if TYPE_CHECKING:
    from torch import Tensor

    from langmerge.methods.measures import Measure

Method = Callable[..., "Tensor"]
"""`(base, tuned, weights, **params)`: base of shape S, tuned (N, *S), weights (N,); a new tensor of shape S."""

SUPPLIED_BY_ENGINE = frozenset({"block", "blocks", "key", "known", "offset", "sources", "statistics"})
"""Parameters that the engine fills in, not the recipe: the block's number and the number of blocks, the tensor's name,
what has been measured of it, where in the tensor the chunk begins, the sources' names, their statistics on text."""


class _Table(Mapping[str, Method]):
    """Names are known at once; torch is loaded with the first function that is asked for."""

    def __getitem__(self, name: str) -> Method:
        if name not in SPECS:
            raise KeyError(name)
        found: Method = getattr(import_module(f"langmerge.methods.{SPECS[name].home}"), name)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(SPECS))

    def __len__(self) -> int:
        return len(SPECS)


METHODS: Mapping[str, Method] = _Table()


def measures_of(name: str, parameters: Mapping[str, Any]) -> "Sequence[Measure]":
    """What must be known of a tensor before the method can merge a chunk of it; nothing for most.

    Args:
        name: of the method.
        parameters: which may decide: nothing is trimmed at density 1.
    """
    module = import_module(f"langmerge.methods.{spec_of(name).home}")
    measures: Callable[..., Sequence[Measure]] | None = getattr(module, "MEASURES", {}).get(name)
    return measures(**parameters) if measures else ()
