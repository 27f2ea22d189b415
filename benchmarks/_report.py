"""What was measured, against the targets, as tables."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from _agreement import Agreement
from _measure import Memory

FASTER = {
    "xlmr": {"linear": 6, "task_arithmetic": 8, "slerp": 6, "ties": 30, "dare_ties": 12},
    "qwen": {"linear": 4, "task_arithmetic": 4, "slerp": 4, "ties": 15, "dare_ties": 8},
}
"""How many times mergekit's wall time must be langmerge's, by kind of model and method."""

BEYOND_FLOOR = 1.3
"""Largest ratio of a linear merge, start-up taken off, to the floor."""

PRIVATE, RESIDENT = 350e6, 1e9
"""Largest private and resident memory, in bytes, for any merge."""

GROWTH = 1.1
"""Largest ratio of a peak to that of the smallest model: more would be growth with the model's size."""


@dataclass
class Case:
    """One merge as it was measured.

    Attributes:
        family: of models.
        kind: `xlmr` or `qwen`.
        method: of the merge.
        inputs: number of models that the floor reads: the sources and the base.
        nbytes: of the weights of one model.
        seconds: wall time of `langmerge`, `mergekit`, `start-up` and `floor`, one entry a round.
        cpu_seconds: the same of all cores, for the processes.
        memory: peaks of `langmerge` and `mergekit`, from a run of their own.
        agreement: of the two outputs.
    """

    family: str
    kind: str
    method: str
    inputs: int
    nbytes: int
    seconds: dict[str, list[float]] = field(default_factory=dict)
    cpu_seconds: dict[str, list[float]] = field(default_factory=dict)
    memory: dict[str, Memory] = field(default_factory=dict)
    agreement: Agreement | None = None

    @property
    def name(self) -> str:
        """`family/method`."""
        return f"{self.family}/{self.method}"

    @property
    def times_faster(self) -> list[float]:
        """mergekit's wall time over langmerge's, round by round; empty without mergekit."""
        return [
            b / a for a, b in zip(self.seconds["langmerge"], self.seconds.get("mergekit", []), strict=False)
        ]

    @property
    def beyond_floor(self) -> list[float]:
        """(langmerge's wall time − its start-up) / floor, round by round."""
        rounds = zip(*(self.seconds[key] for key in ("langmerge", "start-up", "floor")), strict=True)
        return [(whole - start) / floor for whole, start, floor in rounds]


@dataclass(frozen=True)
class Verdict:
    """One line of the table of targets; `met` is None where there is no target."""

    case: str
    what: str
    value: str
    target: str = ""
    met: bool | None = None

    @property
    def row(self) -> list[str]:
        """Its cells."""
        word = {None: "", True: "met", False: "missed"}[self.met]
        return [self.case, self.what, self.value, self.target, word]


def verdicts(case: Case) -> list[Verdict]:
    """A merge against its targets."""
    found = []
    if case.times_faster:
        found.append(
            _at_least(case, "mergekit / langmerge", case.times_faster, FASTER[case.kind][case.method])
        )
    limit = BEYOND_FLOOR if case.method == "linear" else None
    found.append(_at_most(case, "beyond start-up / floor", case.beyond_floor, limit))
    memory = case.memory["langmerge"]
    found.append(_memory(case.name, "private", memory.private, PRIVATE))
    found.append(_memory(case.name, "resident", memory.resident, RESIDENT))
    if peer := case.memory.get("mergekit"):
        # Pages of mapped inputs, which mergekit keeps and langmerge lets go, are in the first ratio and not in the second.
        for what in ("private", "anonymous"):
            ratio = getattr(peer, what) / max(getattr(memory, what), 1)
            found.append(Verdict(case.name, f"{what}, mergekit / langmerge", f"{ratio:.1f}"))
    if case.agreement is not None:
        found.append(_agreeing(case, case.agreement))
    return found


def growth(sizes: Sequence[Case]) -> list[Verdict]:
    """The peaks of one method's merges of ever larger models: each against its limit, and against the smallest."""
    found = []
    for what, limit in (("private", PRIVATE), ("resident", RESIDENT)):
        peaks = [getattr(case.memory["langmerge"], what) for case in sizes]
        found += [_memory(case.name, what, peak, limit) for case, peak in zip(sizes, peaks, strict=True)]
        ratio = max(peaks) / peaks[0]
        name = f"{sizes[0].kind}/{sizes[0].method}"
        found.append(
            Verdict(name, f"{what}, largest / first", f"{ratio:.2f}", f"≤ {GROWTH}", ratio <= GROWTH)
        )
    return found


def _range(values: Sequence[float]) -> str:
    """Median, smallest and largest."""
    return f"{statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})"


def _at_least(case: Case, what: str, values: Sequence[float], limit: float) -> Verdict:
    return Verdict(case.name, what, _range(values), f"≥ {limit}", statistics.median(values) >= limit)


def _at_most(case: Case, what: str, values: Sequence[float], limit: float | None) -> Verdict:
    if limit is None:
        return Verdict(case.name, what, _range(values))
    return Verdict(case.name, what, _range(values), f"≤ {limit}", statistics.median(values) <= limit)


def _memory(case: str, what: str, peak: int, limit: float) -> Verdict:
    return Verdict(
        case, f"{what} memory", _megabytes(peak) + " MB", f"≤ {_megabytes(limit)} MB", peak <= limit
    )


def _agreeing(case: Case, found: Agreement) -> Verdict:
    value = f"{found.largest:.1e}, {found.astray:.1e} astray, norm × {found.norm_ratio:.4f}"
    return Verdict(case.name, f"difference, {found.dtype}", value, "rounding", found.holds(case.method))


def measured_rows(cases: Sequence[Case]) -> list[list[str]]:
    """Medians of the seconds, and the peaks in MB, with a heading."""
    rows = [
        ["case", "langmerge s", "mergekit s", "start-up s", "floor s"]
        + [
            f"{tool} {what} MB"
            for tool in ("langmerge", "mergekit")
            for what in ("private", "anonymous", "resident")
        ]
    ]
    for case in cases:
        seconds = [case.seconds.get(key) for key in ("langmerge", "mergekit", "start-up", "floor")]
        peaks = [case.memory.get(tool) for tool in ("langmerge", "mergekit")]
        rows.append(
            [case.name]
            + [f"{statistics.median(values):.2f}" if values else "–" for values in seconds]
            + [
                _megabytes(getattr(peak, what)) if peak else "–"
                for peak in peaks
                for what in Memory.__dataclass_fields__
            ]
        )
    return rows


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows as lines with columns below each other."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def _megabytes(size: float) -> str:
    return f"{size / 1e6:.0f}"
