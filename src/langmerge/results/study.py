"""What a study finds, as rows: every number with its interval and signature."""

from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal[
    "merge", "best_zero_shot", "best_in_hindsight", "first_source", "source_mean", "self", "joint",
    "soft_vote", "weighted_vote", "majority", "weighted_majority", "logit_average",
]  # fmt: skip

KINDS: dict[Kind, str] = {
    "merge": "merge",
    "best_zero_shot": "best zero-shot",
    "best_in_hindsight": "best in hindsight",
    "first_source": "first source",
    "source_mean": "mean of the sources",
    "self": "self",
    "joint": "joint training",
    "soft_vote": "soft vote",
    "weighted_vote": "weighted vote",
    "majority": "majority",
    "weighted_majority": "weighted majority",
    "logit_average": "logit average",
}

REFERENCES: tuple[Kind, ...] = ("best_zero_shot", "best_in_hindsight", "self")
"""What a sweep compares with, if nothing else is said."""

SINGLE_EXPERTS: tuple[Kind, ...] = (*REFERENCES, "first_source")
"""References that are one expert. They belong to a target, whatever the mode."""


@dataclass(frozen=True)
class Difference:
    """A paired difference on the same test rows, in points, with its bootstrap 95 % interval over rows.

    Attributes:
        points: the difference.
        low: lower end.
        high: upper end.
        p_value: exact McNemar test; None where a side is a mean of several models.
    """

    points: float
    low: float
    high: float
    p_value: float | None = None

    @property
    def is_significant(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        return f"{self.points:+.1f} [{self.low:+.1f}, {self.high:+.1f}]"


@dataclass(frozen=True)
class Row:
    """One candidate or reference for one target.

    Attributes:
        target: the locale.
        kind: a merge, or which reference.
        name: the method with its parameters, or the model's name.
        mode: ExcTar or IncTar.
        k: number of sources; 0 for a single model.
        sources: what was merged, voted or meant.
        dev: accuracy on dev in [0, 1], behind every choice.
        test: accuracy on test in [0, 1].
        low: lower end of its bootstrap 95 % interval.
        high: upper end.
        macro_f1: on test.
        gain: against the best zero-shot source chosen on dev (ExcTar) or self (IncTar).
        effect: merging effect: against the mean of exactly the sources merged.
        rows: test rows.
        seed: training seed.
        signature: of the recipe, base, sources, data, split, seed and version.
    """

    target: str
    kind: Kind
    name: str
    mode: str
    k: int
    sources: tuple[str, ...]
    dev: float
    test: float
    low: float
    high: float
    macro_f1: float | None
    gain: Difference | None
    effect: Difference | None
    rows: int
    seed: int
    signature: str


@dataclass(frozen=True)
class Verdict:
    """What to do for a target, chosen on dev, and what test says of it.

    Attributes:
        target: the locale.
        mode: ExcTar or IncTar.
        choice: the merge with the best dev accuracy.
        signature: of its row.
        reference: what it is compared with.
        gain: on test.
        text: one plain sentence.
    """

    target: str
    mode: str
    choice: str
    signature: str
    reference: str
    gain: Difference
    text: str


@dataclass(frozen=True)
class Study:
    """The rows, the verdicts, and what is needed to read them."""

    task: str
    revision: str
    base: str
    rows: tuple[Row, ...]
    verdicts: tuple[Verdict, ...]
    matrix: dict[str, Any]
    grid: dict[str, Any]
    seconds: float
    seed: int = 0
