"""What can be done for a target: from taking one expert as it is to a merge that is refined on text."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from langmerge.coefficients import Coefficients

OWN = 0.9
"""Share of the target's own expert in an IncTar merge: with less of it everything measured so far loses."""


@dataclass(frozen=True)
class Option:
    """A candidate.

    Attributes:
        name: as evidence and records call it.
        what: for people.
        method: of the merge; None for a single expert or a refined model.
        parameters: of the method.
        head: `regmean` merges the head by statistics on the target's text.
        refines: whether it is the best of the others, refined on the target's text.
    """

    name: str
    what: str
    method: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    head: str = "merge"
    refines: bool = False


def options(mode: str, *, statistics: bool, refines: bool) -> list[Option]:
    """All candidates, from simple to not so simple; the first is the reference.

    Args:
        mode: ExcTar or IncTar.
        statistics: the experts can be run on unlabelled text of the target.
        refines: there is text to refine a model on.
    """
    single = Option("single", "the best single expert, not merged") if mode == "ExcTar" else Option(
        "single", "the target's own expert, not merged"
    )  # fmt: skip
    found = [
        single,
        Option("linear", "the experts' average", "linear"),
        Option("ties", "TIES over the whole model, density 0.2", "ties", {"density": 0.2, "scope": "model"}),
        Option("wudi", "WUDI", "wudi"),
    ]
    if mode == "IncTar":
        # No evidence that anything else helps where labels of the target were trained on.
        return [one for one in found if one.name != "ties"]
    if statistics:
        found.append(Option("wudi+head", "WUDI, the head by RegMean", "wudi", head="regmean"))
    if refines:
        found.append(Option("refined", "the best of the others, refined on the target's text", refines=True))
    return found


def coefficients(mode: str, target: str, sources: Sequence[str]) -> Coefficients:
    """Equal shares; in IncTar nine tenths for the target's own expert."""
    if mode == "ExcTar" or len(sources) == 1:
        return Coefficients.uniform(list(sources), target=target)
    rest = (1 - OWN) / (len(sources) - 1)
    return Coefficients(
        target=target, values={"model": {name: OWN if name == target else rest for name in sources}}
    )
