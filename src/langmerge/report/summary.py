"""The study in a few rows: each method over all targets."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from langmerge.errors import DataError
from langmerge.report.standings import belongs, modes, targets
from langmerge.results.study import KINDS, REFERENCES, SINGLE_EXPERTS, Difference, Kind, Row, Study


@dataclass(frozen=True)
class SummaryRow:
    """One method with one number of sources in one mode, over all targets.

    Attributes:
        kind: a merge, or which reference.
        method: the method with its parameters, or the reference's name.
        mode: ExcTar or IncTar.
        k: the number of sources asked for, or `all`; empty for a single expert.
        accuracy: target → test accuracy in [0, 1].
        gains: target → gain; None for the reference itself, and for an expert that this mode does not compare.
        mean_accuracy: over the targets in `accuracy`.
        mean_gain: over targets; None unless every target in `accuracy` has a gain. See `mean_gain`.
        is_complete: whether every target of the study is there. Means over different targets do not compare.
    """

    kind: Kind
    method: str
    mode: str
    k: str
    accuracy: Mapping[str, float]
    gains: Mapping[str, Difference | None]
    mean_accuracy: float
    mean_gain: Difference | None
    is_complete: bool


def summary_rows(study: Study) -> tuple[SummaryRow, ...]:
    """Mode by mode, methods by mean test accuracy, best first; those that lack a target last.

    Raises:
        DataError: two rows for the same target, mode, method and number of sources.
    """
    found: list[SummaryRow] = []
    for mode in modes(study):
        groups: dict[tuple[Kind, str, str], dict[str, Row]] = {}
        for row in study.rows:
            if belongs(row, mode):
                for k in _asked(study, row):
                    _add(groups.setdefault((row.kind, _method(row), k), {}), row)
        own = [_summary(study, mode, group, rows) for group, rows in _distinct(groups).items()]
        found += sorted(
            own, key=lambda one: (not one.is_complete, -one.mean_accuracy, one.kind, one.method, one.k)
        )
    return tuple(found)


def mean_gain(gains: Sequence[Difference]) -> Difference:
    """The mean of the targets' gains, its interval combined from theirs.

    se_t = (high_t − low_t) / (2 · 1.96);  se = √(Σ se_t²) / targets;  interval = mean ± 1.96 · se

    It covers the draw of test rows and nothing else: neither training seeds nor the choice of languages. Targets count
    as independent, which is too narrow where their test rows are translations of the same sentences.

    >>> str(mean_gain([Difference(1.0, -2.0, 4.0), Difference(3.0, -1.0, 7.0)]))
    '+2.0 [-0.5, +4.5]'
    """
    mean = sum(gain.points for gain in gains) / len(gains)
    half = math.sqrt(sum(((gain.high - gain.low) / 2) ** 2 for gain in gains)) / len(gains)
    return Difference(mean, mean - half, mean + half)


def _method(row: Row) -> str:
    # One expert for this target, another for that: these go by what they are. All others say by what they were chosen.
    return KINDS[row.kind] if row.kind in REFERENCES else row.name


def _asked(study: Study, row: Row) -> list[str]:
    """Which of the grid's numbers of sources a row answers; its own number if none.

    A target among the sources has one source fewer in ExcTar, so `all` is another number for it than for the rest.
    """
    if row.kind in SINGLE_EXPERTS:
        return [""]
    most = len({*study.grid.get("sources", ()), row.target}) - (row.mode != "IncTar")
    sizes = {str(k): most if k == "all" else min(int(k), most) for k in study.grid.get("k", ())}
    return [k for k, size in sizes.items() if size == len(row.sources)] or [str(len(row.sources))]


def _add(rows: dict[str, Row], row: Row) -> None:
    if row.target in rows:
        raise DataError(
            f"two {row.mode} rows of {row.name}, k={row.k}, for {row.target} ({rows[row.target].signature}, "
            f"{row.signature}): a summary needs one, report each training seed as its own study"
        )
    rows[row.target] = row


def _distinct(
    groups: dict[tuple[Kind, str, str], dict[str, Row]],
) -> dict[tuple[Kind, str, str], dict[str, Row]]:
    """Without numbers of sources that came to the same for every target."""
    kept: dict[tuple[str, ...], tuple[Kind, str, str]] = {}
    for (kind, method, k), rows in groups.items():
        kept.setdefault((kind, method, *(row.signature for row in rows.values())), (kind, method, k))
    return {group: groups[group] for group in kept.values()}


def _summary(study: Study, mode: str, group: tuple[Kind, str, str], rows: dict[str, Row]) -> SummaryRow:
    kind, method, k = group
    gains = {target: _gain(row, mode) for target, row in rows.items()}
    known = [gain for gain in gains.values() if gain is not None]
    return SummaryRow(
        kind=kind,
        method=method,
        mode=mode,
        k=k,
        accuracy={target: row.test for target, row in rows.items()},
        gains=gains,
        mean_accuracy=sum(row.test for row in rows.values()) / len(rows),
        mean_gain=mean_gain(known) if len(known) == len(rows) else None,
        is_complete=set(rows) == set(targets(study)),
    )


def _gain(row: Row, mode: str) -> Difference | None:
    # A single expert's gain is against its own mode's reference: shown elsewhere it would be read against another.
    if row.mode != mode:
        return None
    if row.kind == "best_in_hindsight" and row.gain is None:
        # Where hindsight agrees with dev it is the reference itself: its gain is zero, and exactly so.
        return Difference(0.0, 0.0, 0.0)
    return row.gain
