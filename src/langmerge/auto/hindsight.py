"""What a rule of decision would have done on the cells of a store: its gain over the single expert, its regret on test.

Evidence of a target is that of the other targets' cells: nothing of the target but its labelled dev rows takes part.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from langmerge.auto.decision import halved, judged, simplest_best
from langmerge.auto.evidence import Evidence
from langmerge.auto.stored import cells_of, evidence_of
from langmerge.errors import InputError
from langmerge.experiments.standing import one_task
from langmerge.results.records import Outcome, Run
from langmerge.results.study import Difference
from langmerge.tasks import seeded_interval

SINGLE = {"ExcTar": "best_zero_shot", "IncTar": "self"}
"""The reference: which kind of cell it is."""

Right = Mapping[str, np.ndarray[Any, np.dtype[np.bool_]]]
"""Which labelled rows a candidate has right, by its name, from simple to not so simple; the first is the reference."""


@dataclass(frozen=True)
class Case:
    """One target with one training.

    Attributes:
        target: the locale.
        seed: of the training.
        candidates: by name, from simple to not so simple, `single` first.
        gains: of the merges over the single expert.
        label_free: the same with sources chosen without labels, as far as the store has them.
        free_gains: of those merges, over the same single expert.
        mean: accuracy of the merged sources on dev, their mean; None where the store has it not.
        vote: of the same sources; None where the store has it not.
    """

    target: str
    seed: int
    candidates: Mapping[str, Run]
    gains: Mapping[str, Difference]
    label_free: Mapping[str, Run] = field(default_factory=dict)
    free_gains: Mapping[str, Difference] = field(default_factory=dict)
    mean: float | None = None
    vote: Run | None = None

    def right(self, split: str) -> Right:
        """Which rows of a split each candidate has right."""
        return {name: _correct(run, split) for name, run in self.candidates.items()}


def _correct(run: Run, split: str) -> np.ndarray[Any, np.dtype[np.bool_]]:
    scored = {one.split: one for one in run.scores}
    found = scored[split].correct if split in scored else None
    if found is None:
        raise InputError(f"{run.name} on {run.target}: the store does not know which {split} rows are right")
    return found


def cases(outcomes: Sequence[Outcome], mode: str, *, selector: str = "composite") -> list[Case]:
    """Targets × seeds of a sweep that have the single expert and two of `auto`'s candidates or more.

    Args:
        outcomes: of one pool a seed.
        mode: ExcTar or IncTar.
        selector: of the label-free candidates.

    Raises:
        InputError: cells of several tasks, or of several pools with one seed.
    """
    one_task(outcomes)
    groups: dict[tuple[str, int], list[Outcome]] = {}
    for one in outcomes:
        if one.run is not None and (one.cell.mode == mode or not one.cell.k):
            groups.setdefault((one.cell.target, one.cell.seed), []).append(one)
    found = [_case(target, seed, own, mode, selector) for (target, seed), own in sorted(groups.items())]
    return [one for one in found if one is not None]


def _case(target: str, seed: int, own: Sequence[Outcome], mode: str, selector: str) -> Case | None:
    def of(kind: str, name: str | None = None) -> Run | None:
        runs = [o.run for o in own if o.cell.kind == kind and (name is None or o.cell.name == name)]
        if len({run.signature for run in runs if run is not None}) > 1:
            raise InputError(
                f"{target}, seed {seed}, has several cells called {name or kind}: "
                "name sweeps with --sweep that have one pool a seed and one number of sources"
            )
        return runs[0] if runs else None

    def gain_of(name: str) -> Difference | None:
        return next((o.gain for o in own if o.cell.kind == "merge" and o.cell.name == name), None)

    known = {name: cell for cell, name in cells_of(mode).items()}
    single = of(SINGLE[mode])
    merges = {name: of("merge", cell) for name, cell in known.items()}
    there = {name: run for name, run in merges.items() if run is not None}
    if single is None or not there:
        return None
    # With an expert of the target it is that, and no label is needed to know it.
    free = {"single": single if mode == "IncTar" else of("first_source", f"first source, by {selector}")}
    free |= {name: of("merge", f"{cell}, by {selector}") for name, cell in known.items()}
    mean = of("source_mean", "mean of the sources")
    dev = {one.split: one.accuracy for one in mean.scores}.get("dev") if mean is not None else None
    gains = {name: gain for name, cell in known.items() if (gain := gain_of(cell)) is not None}
    free_gains = {
        name: gain for name, cell in known.items() if (gain := gain_of(f"{cell}, by {selector}")) is not None
    }
    return Case(
        target, seed, {"single": single, **there}, gains, {n: run for n, run in free.items() if run is not None},
        free_gains, dev, of("soft_vote", "soft vote"),
    )  # fmt: skip


@dataclass(frozen=True)
class Known:
    """What a rule may look at.

    Attributes:
        case: the target; its test rows are not for rules.
        dev: its labelled rows, so many as there are to be.
        evidence: of the other targets.
    """

    case: Case
    dev: Right
    evidence: Mapping[str, Evidence]


Rule = Callable[[Known], Run]


def best_on_dev(known: Known) -> Run:
    """The rule that nobody thinks about."""
    return known.case.candidates[max(known.dev, key=lambda name: float(known.dev[name].mean()))]


def simplest_not_worse(known: Known) -> Run:
    """The simplest that is not significantly (1.96 standard errors) worse than the best on dev."""
    best = known.dev[max(known.dev, key=lambda name: float(known.dev[name].mean()))].astype(float)
    for name, own in known.dev.items():
        difference = best - own
        if difference.mean() <= 1.96 * difference.std() / len(own) ** 0.5:
            return known.case.candidates[name]
    raise AssertionError("the best is not worse than itself")


def with_labels(known: Known) -> Run:
    """That of `langmerge auto`: evidence, halving, labelled rows."""
    rungs = halved(
        list(known.dev), known.evidence, lambda name, rows: known.dev[name][:rows], len(known.dev["single"])
    )
    return known.case.candidates[simplest_best(rungs[-1].judged).name]


def by_evidence(known: Known) -> Run:
    """That of `langmerge auto --labels none`, but for its guard: sources chosen without labels, no label looked at."""
    there = known.case.label_free
    return there[simplest_best([judged(name, known.evidence.get(name), None, None) for name in there]).name]


def published_pilot(known: Known) -> Run:
    """Published: a trial merge above the mean of its sources, then the average; else the single expert."""
    mean, merge = known.case.mean, known.dev.get("linear")
    if mean is None or merge is None:
        raise InputError("the published rule needs the mean of the sources and linear")
    return known.case.candidates["linear" if merge.mean() > mean else "single"]


def published_ties(known: Known) -> Run:
    """Published: TIES where it is not below the single expert; its other branch is learned, and left at the expert here."""
    if "ties" not in known.dev:
        raise InputError("the published rule needs ties")
    good = known.dev["ties"].mean() >= known.dev["single"].mean()
    return known.case.candidates["ties" if good else "single"]


RULES: Mapping[str, Rule] = {
    "best on dev": best_on_dev,
    "simplest not significantly worse": simplest_not_worse,
    "auto, labels": with_labels,
    "auto, no labels": by_evidence,
    "published: average if above the sources' mean": published_pilot,
    "published: TIES if above the best source": published_ties,
}


def _check_targets(among: Sequence[Case]) -> None:
    if (count := len({case.target for case in among})) < 2:
        raise InputError(
            f"hindsight needs two targets or more, as evidence of a target comes from the others: the store has {count} with "
            "the single expert and candidates of langmerge auto"
        )


def rules_for(among: Sequence[Case], rows: int | None = None) -> list[str]:
    """The rules whose candidates every case has.

    Args:
        among: the cases.
        rows: labelled rows, if not all: the mean of the sources is known of all alone.

    Raises:
        InputError: fewer than two targets.
    """
    _check_targets(among)
    there = set.intersection(*(set(case.candidates) for case in among))
    free = set.intersection(*(set(case.label_free) for case in among))
    left_out = set() if len(free) > 1 and "single" in free else {"auto, no labels"}
    if rows is not None or any(case.mean is None for case in among):
        left_out.add("published: average if above the sources' mean")
    needs = {
        "published: average if above the sources' mean": "linear",
        "published: TIES if above the best source": "ties",
    }
    return [name for name in RULES if name not in left_out and (name not in needs or needs[name] in there)]


@dataclass(frozen=True)
class Judgement:
    """A rule over all cases.

    Attributes:
        rule: its name.
        rows: labelled rows.
        gain: over the single expert, on test; interval over rows and seeds.
        over_vote: over the soft vote of the sources; None where the store has none.
        regret: mean points below the candidate that is best on test.
        below: targets on which it is significantly below the single expert, over their seeds.
        chosen: what it chose, as shares.
        cases: targets × seeds.
    """

    rule: str
    rows: int
    gain: Difference
    over_vote: Difference | None
    regret: float
    below: tuple[str, ...]
    chosen: Mapping[str, float]
    cases: int


def judge(
    name: str,
    among: Sequence[Case],
    mode: str,
    *,
    rows: int | None = None,
    draws: int = 50,
    seed: int = 0,
    known: Callable[[str], Mapping[str, Evidence]] | None = None,
) -> Judgement:
    """What a rule would have done.

    Args:
        name: of `RULES`.
        among: the cases.
        mode: ExcTar or IncTar.
        rows: labelled rows; all by default. Sources and single expert stay those that all rows chose.
        draws: of the labelled rows and of their order: halving looks at the first of them first.
        seed: of the draws.
        known: evidence for a target; by default it is drawn from the others.

    Raises:
        InputError: fewer than two targets, or a case lacks what the rule needs.
    """
    _check_targets(among)
    draw = np.random.default_rng(seed)
    gains: dict[tuple[str, int], np.ndarray[Any, Any]] = {}
    votes: dict[tuple[str, int], np.ndarray[Any, Any]] = {}
    regrets, chosen, used = [], Counter[str](), 0
    free = RULES[name] is by_evidence
    for case in among:
        dev, key = case.right("dev"), (case.target, case.seed)
        used = min(rows or len(dev["single"]), len(dev["single"]))
        evidence = (
            known(case.target)
            if known is not None
            else evidence_of_others(among, case.target, mode, free=free)
        )
        taken = [
            RULES[name](Known(case, {one: right[some] for one, right in dev.items()}, evidence))
            for some in _draws(draw, len(dev["single"]), used, draws)
        ]
        right = np.mean([_correct(run, "test") for run in taken], axis=0)
        best = max(_correct(run, "test").mean() for run in case.candidates.values())
        gains[key] = 100.0 * (right - _correct(case.candidates["single"], "test"))
        if case.vote is not None:
            votes[key] = 100.0 * (right - _correct(case.vote, "test"))
        regrets.append(100.0 * float(best - right.mean()))
        chosen.update(_share(case, taken))
    total = sum(chosen.values())
    return Judgement(
        name, used, _over(gains), _over(votes) if len(votes) == len(gains) else None, float(np.mean(regrets)),
        tuple(sorted({t for t, _ in gains if _over({k: v for k, v in gains.items() if k[0] == t}).high < 0})),
        {one: count / total for one, count in chosen.most_common()}, len(among),
    )  # fmt: skip


def _draws(draw: np.random.Generator, there: int, used: int, draws: int) -> list[np.ndarray[Any, Any]]:
    # All of them too: halving looks at the first ones first, and files are sorted by topic.
    return [draw.permutation(there)[:used] for _ in range(draws)]


def _share(case: Case, taken: Sequence[Run]) -> Counter[str]:
    names = {run.signature: name for name, run in (*case.label_free.items(), *case.candidates.items())}
    return Counter(names[run.signature] for run in taken)


def evidence_of_others(
    among: Sequence[Case], target: str, mode: str, *, free: bool = False
) -> dict[str, Evidence]:
    """What the cases of every target but this one say.

    Args:
        among: the cases.
        target: the one that is to be decided for.
        mode: ExcTar or IncTar.
        free: of merges whose sources no label has chosen, where there are any.
    """
    gains = [
        (name, case.target, gain)
        for case in among
        if case.target != target
        for name, gain in ((case.free_gains if free else None) or case.gains).items()
    ]
    return evidence_of(gains, f"the store's other targets, {mode}")


def _over(cells: Mapping[tuple[str, int], np.ndarray[Any, Any]]) -> Difference:
    points, interval = seeded_interval(dict(cells), samples=1_000)
    return Difference(points, interval.low, interval.high)
