"""Gradient-free search over coefficients: CMA-ES (Hansen) on any score of a merge."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from langmerge.coefficients import Coefficients, group_of
from langmerge.errors import MethodError, MissingExtraError
from langmerge.learned.journal import Journal, Numbers
from langmerge.progress import Progress, silent
from langmerge.results import signature

Score = Callable[[Coefficients], float]
"""How good a merge with these coefficients is; higher is better. NaN is worse than anything."""

_FLAT = 5
"""Generations in which hardly any score differs, before the search stops. Accuracy comes in steps, so one is no sign."""


@dataclass(frozen=True)
class SearchSettings:
    """What decides the path of a search.

    Attributes:
        low: smallest coefficient.
        high: largest coefficient.
        sigma: first standard deviation of a step, in units of the coefficients; a quarter of the range at most helps.
        budget: evaluations, the start's included; whole generations only, so some may be left over.
        population: evaluations of a generation; 4 + ⌊3 ln(numbers searched)⌋ by default.
        seed: of the steps.
    """

    low: float = 0.0
    high: float = 1.0
    sigma: float = 0.1
    budget: int = 100
    population: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Evaluation:
    """One score.

    Attributes:
        numbers: group by group, a number for each source.
        score: of them; NaN where there was none.
    """

    numbers: Numbers
    score: float


@dataclass(frozen=True)
class SearchResult:
    """What was found.

    Attributes:
        best: the first of the best; provenance holds the settings and every score.
        history: every evaluation, in order; the first is the start's.
        stopped: `budget`, or the optimiser's reason.
        flat: no two scores differ: the numbers searched do not matter to this score, and `best` is the start.
    """

    best: Coefficients
    history: tuple[Evaluation, ...]
    stopped: str
    flat: bool


def block_groups(tensors: Sequence[str]) -> tuple[str, ...]:
    """The groups of a model's tensors, in order: embeddings, block:0, …, head.

    >>> block_groups(["m.embeddings.word.weight", "m.layer.0.a", "m.layer.0.b", "classifier.bias"])
    ('embeddings', 'block:0', 'head')
    """
    return tuple(dict.fromkeys(group_of(tensor) for tensor in tensors))


def search(
    start: Coefficients,
    score: Score,
    settings: SearchSettings,
    *,
    groups: Sequence[str] = (),
    about: Mapping[str, Any] | None = None,
    journal: Path | None = None,
    progress: Progress = silent,
) -> SearchResult:
    """Look for the coefficients with the highest score.

    The start is evaluated first, so the result is never worse than it by this score. Same arguments, same result: the
    steps come from the seed alone, and no global generator is read or changed.

    Args:
        start: sources, and where to begin.
        score: higher is better; NaN and infinity count as the worst and are noted.
        settings: bounds, step, budget, seed.
        groups: names of the groups to give numbers of their own (see `block_groups`), all in one vector; none for one
            number per source. A tensor of no such group keeps the start's `model` numbers.
        about: what decides the score, as JSON can hold it: in the journal's head and in the provenance.
        journal: file to which every evaluation is appended; what is in it is not evaluated again, so an interrupted
            search goes on, and a larger budget continues a finished one.
        progress: told of every evaluation.

    Raises:
        MethodError: bounds, step, budget or start outside what is possible, or no evaluation had a score.
        InputError: the journal is of another search.
        MissingExtraError: the package cma is not installed.
    """
    names = tuple(groups) or ("model",)
    first = _numbers(start, names)
    population = settings.population or _population(len(first))
    _check(start, first, names, settings, population)
    cma = _cma()
    head = {
        **{key: value for key, value in asdict(settings).items() if key not in ("budget", "population")},
        "population": population,
        "groups": list(names),
        "sources": list(start.sources),
        "start": list(first),
        "model": start.values["model"],
        "about": dict(about or {}),
        "cma": cma.__version__,
    }
    kept = Journal(journal, {"signature": signature(head)})
    history: list[Evaluation] = []
    with progress("search", settings.budget) as advance:

        def evaluate(numbers: Numbers) -> float:
            if numbers not in kept:
                kept.add(numbers, _finite(score(_coefficients(start, names, numbers))))
            history.append(Evaluation(numbers, kept[numbers]))
            advance(1)
            return kept[numbers]

        evaluate(first)
        stopped = _run(cma, first, evaluate, settings, population)
    return _result(start, names, history, stopped, {**head, "budget": settings.budget})


def _run(
    cma: Any,
    first: Numbers,
    evaluate: Callable[[Numbers], float],
    settings: SearchSettings,
    population: int,
) -> str:
    """Generations until the budget or the optimiser ends them; returns why."""
    draws = np.random.default_rng(settings.seed)
    # cma 4.5 fails in one dimension: a second number is searched along, which no score looks at.
    mean = [*first, first[0]] if len(first) == 1 else list(first)
    options = {
        "bounds": [settings.low, settings.high],
        "popsize": population,
        # Draws of our own: its seed would set numpy's global generator.
        "seed": math.nan,
        "randn": lambda *shape: draws.standard_normal(shape),
        "tolfun": 0,
        "tolfunhist": 0,
        "tolflatfitness": _FLAT,
        "verbose": -10,
        "verb_log": 0,
    }
    worst = 0.0
    with warnings.catch_warnings():
        # Its advice on flat or narrow functions; what matters in it is in the result.
        warnings.simplefilter("ignore")
        steps = cma.CMAEvolutionStrategy(mean, settings.sigma, options)
    left = settings.budget - 1
    while left >= population:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            points = steps.ask()
        scores = [evaluate(_inside(point[: len(first)], settings)) for point in points]
        worst = max([worst, *(-one for one in scores if not math.isnan(one))])
        losses = [worst + 1.0 if math.isnan(one) else -one for one in scores]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            steps.tell(points, losses)
            reasons = list(steps.stop())
        left -= population
        if reasons:
            return ", ".join(reasons)
    return "budget"


def _result(
    start: Coefficients, names: tuple[str, ...], history: list[Evaluation], stopped: str, head: dict[str, Any]
) -> SearchResult:
    scores = [one.score for one in history]
    known = [one for one in scores if not math.isnan(one)]
    if not known:
        raise MethodError(
            f"none of {len(scores)} merges had a score (all NaN): begin elsewhere, or with narrower bounds"
        )
    best = scores.index(max(known))
    flat = len(known) == len(scores) and len(set(known)) == 1
    provenance = {
        "learned": "search",
        **head,
        "evaluations": len(scores),
        "best": best,
        "score": scores[best],
        "start_score": None if math.isnan(scores[0]) else scores[0],
        "not_finite": len(scores) - len(known),
        "stopped": stopped,
        "flat": flat,
        "scores": [None if math.isnan(one) else one for one in scores],
    }
    found = _coefficients(start, names, history[best].numbers, provenance)
    return SearchResult(found, tuple(history), stopped, flat)


def _check(
    start: Coefficients, first: Numbers, names: tuple[str, ...], settings: SearchSettings, population: int
) -> None:
    low, high = settings.low, settings.high
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise MethodError(f"the bounds are {low} and {high}: the lower one must be below the upper one")
    if not 0 < settings.sigma < math.inf:
        raise MethodError(f"sigma is {settings.sigma}: it must be above 0")
    if settings.seed < 0:
        raise MethodError(f"seed is {settings.seed}: it must be 0 or more")
    if population < 2:
        raise MethodError(f"a population of {population} has no choice: give 2 or more")
    if settings.budget < population + 1:
        raise MethodError(
            f"a budget of {settings.budget} evaluations is below the start and one generation of {population}: "
            f"give {population + 1} or more, or a smaller population"
        )
    if lost := [group for group in start.values if group not in (*names, "model")]:
        raise MethodError(
            f"the start has numbers for {lost[0]}, which is not searched: search by block, or begin elsewhere"
        )
    for place, number in enumerate(first):
        if not low <= number <= high:
            group, source = names[place // len(start.sources)], start.sources[place % len(start.sources)]
            raise MethodError(
                f"the start's coefficient of {source} ({group}) is {number}, outside of [{low}, {high}]: "
                "widen the bounds"
            )


def _population(numbers: int) -> int:
    return 4 + int(3 * math.log(max(2, numbers)))


def _numbers(start: Coefficients, names: tuple[str, ...]) -> Numbers:
    rows = [start.values.get(group, start.values["model"]) for group in names]
    return tuple(float(row[source]) for row in rows for source in start.sources)


def _coefficients(
    start: Coefficients, names: tuple[str, ...], numbers: Numbers, provenance: dict[str, Any] | None = None
) -> Coefficients:
    width = len(start.sources)
    rows = {
        group: dict(zip(start.sources, numbers[i * width : (i + 1) * width], strict=True))
        for i, group in enumerate(names)
    }
    return Coefficients(
        target=start.target, values={"model": start.values["model"], **rows}, provenance=provenance or {}
    )


def _inside(point: Any, settings: SearchSettings) -> Numbers:
    """As plain floats; its map into the bounds may overstep them by a rounding."""
    return tuple(float(x) for x in np.clip(point, settings.low, settings.high))


def _finite(score: float) -> float:
    return float(score) if math.isfinite(score) else math.nan


def _cma() -> Any:
    """The package.

    Raises:
        MissingExtraError: it is not installed.
    """
    with warnings.catch_warnings():
        # It says that it cannot plot without matplotlib.
        warnings.simplefilter("ignore")
        try:
            import cma
        except ImportError:
            raise MissingExtraError("cma", extra="search", needed_for="search over coefficients") from None
    return cma
