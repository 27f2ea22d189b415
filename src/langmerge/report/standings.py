"""Standings: the rows of one target and mode, best on test first."""

from dataclasses import dataclass

from langmerge.results.study import SINGLE_EXPERTS, Kind, Row, Study, Verdict


@dataclass(frozen=True)
class Standing:
    """What is compared for one target in one mode.

    Attributes:
        target: the locale.
        mode: ExcTar or IncTar.
        rows: merges and references, by test accuracy, best first. The order is for reading; nothing is chosen by it.
        verdict: what dev chose and test says of it; None if the study has none.
    """

    target: str
    mode: str
    rows: tuple[Row, ...]
    verdict: Verdict | None

    def of_kind(self, kind: Kind) -> Row | None:
        """The first row of a kind."""
        return next((row for row in self.rows if row.kind == kind), None)

    @property
    def reference(self) -> Row | None:
        """What gains are measured against: best zero-shot (ExcTar) or self (IncTar)."""
        return self.of_kind("self" if self.mode == "IncTar" else "best_zero_shot")

    def is_chosen(self, row: Row) -> bool:
        """Whether the verdict is about this row."""
        return row.kind == "merge" and self.verdict is not None and self.verdict.signature == row.signature


def modes(study: Study) -> tuple[str, ...]:
    """The modes that something was merged, voted or meant in; those of the single experts if nothing was."""
    several = dict.fromkeys(row.mode for row in study.rows if row.kind not in SINGLE_EXPERTS)
    return tuple(several or dict.fromkeys(row.mode for row in study.rows))


def targets(study: Study) -> tuple[str, ...]:
    """Locales that have rows, in the study's order."""
    return tuple(dict.fromkeys(row.target for row in study.rows))


def standings(study: Study) -> tuple[Standing, ...]:
    """Every target and mode, in the study's order."""
    found = []
    for target in targets(study):
        for mode in modes(study):
            own = [row for row in study.rows if row.target == target and belongs(row, mode)]
            if own:
                ordered = sorted(own, key=lambda row: (-row.test, row.kind, row.name, row.k, row.signature))
                found.append(Standing(target, mode, tuple(ordered), _verdict(study, target, mode)))
    return tuple(found)


def belongs(row: Row, mode: str) -> bool:
    """Whether a row is compared in a mode: single experts in every one, for they have no sources to exclude."""
    return row.kind in SINGLE_EXPERTS or row.mode == mode


def _verdict(study: Study, target: str, mode: str) -> Verdict | None:
    return next((one for one in study.verdicts if (one.target, one.mode) == (target, mode)), None)
