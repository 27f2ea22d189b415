"""What a way of merging has brought elsewhere, and what that and some labels say of what it will bring here.

A few hundred labels tell two models apart by two points at best, and merges differ by less. Taking what is best on dev, or
the simplest that is not significantly worse, therefore throws away what is known: on the cells of docs/results.md, 500
labels and the second rule lose 2.7 points against hindsight, the first 0.5, labels and evidence together 0.2
(`langmerge runs hindsight`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DOUBT = 2.0
"""Another task and pool may differ from those measured by more than these do among themselves: their spread counts so often."""

POINTS = 4_001
"""Of the line on which beliefs are added up: a few thousandths of a deviation apart."""

LEAST = 0.5
"""Points by which cells differ at least, however alike the measured ones are."""


@dataclass(frozen=True)
class Evidence:
    """Gains over the reference elsewhere, in points.

    Attributes:
        mean: over targets.
        spread: standard deviation between targets, without the noise of their test rows.
        targets: how many; seeds of one are one.
        origin: where they were measured.
    """

    mean: float
    spread: float
    targets: int
    origin: str

    @property
    def deviation(self) -> float:
        """Standard deviation of the gain to be expected of a new target."""
        spread = max(self.spread, LEAST)
        return DOUBT * spread * math.sqrt(1 + 1 / self.targets)

    @classmethod
    def of(
        cls, gains: Sequence[float], errors: Sequence[float], origin: str, *, targets: int | None = None
    ) -> "Evidence":
        """From gains and their standard errors over rows.

        Args:
            gains: one a target, or one for each target and pool: then pools are part of the spread.
            errors: of them.
            origin: where they were measured.
            targets: how many there are, where it is not one a gain.

        Raises:
            ValueError: fewer than two gains.
        """
        if len(gains) < 2:
            raise ValueError("evidence needs gains of two targets or more")
        values = np.asarray(gains, dtype=np.float64)
        between = max(0.0, float(values.var(ddof=1)) - float(np.mean(np.square(errors))))
        return cls(float(values.mean()), math.sqrt(between), targets or len(values), origin)


@dataclass(frozen=True)
class Belief:
    """A gain as it is believed in, in points.

    Attributes:
        mean: expected.
        deviation: standard deviation.
    """

    mean: float
    deviation: float

    @property
    def interval(self) -> tuple[float, float]:
        """95 %."""
        return self.mean - 1.96 * self.deviation, self.mean + 1.96 * self.deviation


def belief(evidence: Evidence | None, difference: np.ndarray | None) -> Belief | None:
    """What evidence from elsewhere and paired differences here say together.

    The prior is Student's t around the evidence's mean, with a degree of freedom less than it has targets; the likelihood of
    the labelled rows' mean is normal. So where the two do not agree at all it is the evidence that gives way.

    Args:
        evidence: from elsewhere; without any the labels speak alone.
        difference: 100 · (right − reference right) of each labelled row, (n,); None without labels.

    Returns:
        The belief; None where neither says anything.
    """
    seen = None
    if difference is not None and len(difference) > 1:
        # Rows on which two models never differ are no proof that they never do.
        error = math.sqrt(max(float(difference.var(ddof=1)), 100.0**2 / len(difference)) / len(difference))
        seen = Belief(float(difference.mean()), error)
    if evidence is None:
        return seen
    prior = Belief(evidence.mean, evidence.deviation)
    return prior if seen is None else _posterior(prior, max(1, evidence.targets - 1), seen)


def _posterior(prior: Belief, freedom: int, seen: Belief) -> Belief:
    """Student's t times normal, by points on a line."""
    ends = [one.mean + sign * 8 * one.deviation for one in (prior, seen) for sign in (-1, 1)]
    x = np.linspace(min(ends), max(ends), POINTS)
    tail = -(freedom + 1) / 2 * np.log1p(((x - prior.mean) / prior.deviation) ** 2 / freedom)
    log = tail - ((x - seen.mean) / seen.deviation) ** 2 / 2
    weight = np.exp(log - log.max())
    weight /= weight.sum()
    mean = float(weight @ x)
    return Belief(mean, math.sqrt(float(weight @ (x - mean) ** 2)))
