"""Label-free accuracy estimates on a pool, and how wrong they are where the truth is known."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from langmerge.errors import SelectionError
from langmerge.selection.label_free import Labelled, estimate
from langmerge.similarities import PoolSelectors


@dataclass(frozen=True)
class Estimate:
    """One expert on one target.

    Attributes:
        how: the estimator.
        expert: that is estimated.
        target: on whose unlabelled dev text.
        estimated: accuracy, in [0, 1].
        truth: on the same rows, where the target has labels and may be looked at.
    """

    how: str
    expert: str
    target: str
    estimated: float
    truth: float | None = None

    @property
    def error(self) -> float:
        """Estimate − truth, in points."""
        if self.truth is None:
            raise SelectionError(f"the accuracy of {self.expert} on {self.target} is not known")
        return 100 * (self.estimated - self.truth)


def estimated(
    selectors: PoolSelectors, targets: Sequence[str], hows: Sequence[str], *, with_truth: bool = False
) -> list[Estimate]:
    """Estimates for every expert but the target's own, on every target.

    Labelled rows are dev rows of the pool's other locales: a target's labels take no part in its estimates.

    Args:
        selectors: of the pool.
        targets: locales.
        hows: of `langmerge.selection.label_free.ESTIMATORS`.
        with_truth: look the truth up afterwards.

    Raises:
        SelectionError: an unknown estimator, or too few experts or locales for it.
    """
    columns = {
        locale: selectors.logits(locale) for locale in dict.fromkeys([*selectors.pool.locales, *targets])
    }
    labelled = {
        expert: {
            locale: Labelled(columns[locale][expert].values, columns[locale][expert].labels)
            for locale in selectors.pool.locales
        }
        for expert in selectors.pool.locales
    }
    found = []
    for target in targets:
        own = columns[target]
        experts = [expert for expert in selectors.pool.locales if expert != target]
        # The target's own expert has seen labels of the target: it takes no part either.
        elsewhere = {e: {u: c for u, c in labelled[e].items() if u != target} for e in experts}
        unlabelled = {expert: own[expert].values for expert in experts}
        for how in hows:
            for expert, value in estimate(how, elsewhere, unlabelled).items():
                truth = float(own[expert].correct.mean()) if with_truth else None
                found.append(Estimate(how, expert, target, value, truth))
    return found


@dataclass(frozen=True)
class Calibration:
    """How wrong an estimator is, in points.

    Attributes:
        how: the estimator.
        mean_absolute_error: over targets, of the mean over experts.
        low: lower end of the 95 % interval of it, by bootstrap over targets.
        high: upper end.
        bias: mean of estimate − truth.
        targets: how many.
    """

    how: str
    mean_absolute_error: float
    low: float
    high: float
    bias: float
    targets: int


def calibration(found: Sequence[Estimate], *, samples: int = 2_000, seed: int = 0) -> list[Calibration]:
    """Errors by estimator; intervals by bootstrap over targets, because a target's estimates share its rows."""
    made = []
    for how in dict.fromkeys(one.how for one in found):
        targets = list(dict.fromkeys(one.target for one in found if one.how == how))
        errors = [
            [one.error for one in found if (one.how, one.target) == (how, target)] for target in targets
        ]
        absolute = np.array([np.mean(np.abs(own)) for own in errors])
        draws = np.random.default_rng(seed).integers(0, len(targets), (samples, len(targets)))
        low, high = np.percentile(absolute[draws].mean(axis=1), [2.5, 97.5])
        bias = float(np.mean([np.mean(own) for own in errors]))
        made.append(Calibration(how, float(absolute.mean()), float(low), float(high), bias, len(targets)))
    return made
