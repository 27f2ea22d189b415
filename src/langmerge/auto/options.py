"""What can be done for a target: from taking one expert as it is to a merge that is refined on text."""

from dataclasses import dataclass
from typing import Any

from langmerge.experiments.grid import Head, MethodChoice

OWN = 0.9
"""Share of the target's own expert in an IncTar merge: with less, a merge loses where the others have seen the same rows."""

HALF = 0.5
"""The same where the others have seen other rows, and have more to give."""


@dataclass(frozen=True)
class Option:
    """A candidate.

    Attributes:
        name: as evidence and records call it.
        what: for people.
        choice: of the merge; None for a single expert, or what is learned or refined.
        learns: whether its coefficients are learned on the target's text.
        refines: whether it is the best of the others, refined on the target's text.
    """

    name: str
    what: str
    choice: MethodChoice | None = None
    learns: bool = False
    refines: bool = False

    @property
    def cell(self) -> str | None:
        """What sweeps call it; None where they have no such cell."""
        return self.choice.name if self.choice is not None else None


def options(mode: str, *, statistics: bool, refines: bool, learns: bool = False) -> list[Option]:
    """All candidates, from simple to not so simple; the first is the reference.

    Args:
        mode: ExcTar or IncTar.
        statistics: the experts can be run on unlabelled text of the target.
        refines: there is text to refine a model on.
        learns: coefficients are to be learned on it too.
    """
    single = Option("single", "the best single expert, not merged") if mode == "ExcTar" else Option(
        "single", "the target's own expert, not merged"
    )  # fmt: skip
    most = OWN if mode == "IncTar" else None

    def merge(
        name: str, what: str, method: str, head: Head = "merge", own: float | None = most, **parameters: Any
    ) -> Option:
        return Option(name, what, MethodChoice(method=method, parameters=parameters, own=own, head=head))

    found = [single, merge("linear", "the experts' average", "linear")]
    if mode == "ExcTar":
        found.append(
            merge("ties", "TIES over the whole model, density 0.2", "ties", density=0.2, scope="model")
        )
    found.append(merge("wudi", "WUDI", "wudi"))
    if mode == "IncTar":
        found.append(merge("wudi-half", "WUDI, half of it the target's own expert", "wudi", own=HALF))
        found.append(merge("wudi-equal", "WUDI, the target's own expert one among equals", "wudi", own=None))
    # No evidence that anything else helps where labels of the target were trained on.
    if mode == "ExcTar" and statistics:
        found.append(merge("wudi+head", "WUDI, the head by RegMean", "wudi", head="regmean"))
    if learns:
        found.append(Option("learned", "coefficients learned on the target's text, by block", learns=True))
    if refines:
        found.append(Option("refined", "the best of the others, refined on the target's text", refines=True))
    return found
