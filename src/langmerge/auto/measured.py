"""What langmerge's candidates have brought in its own studies, target by target: the evidence that `auto` has by itself.

MASSIVE intents, multilingual-e5-small, five of seventeen sources chosen on dev, three training seeds (docs/results.md, "Merge or
not"): experts that were all trained on the same 2,500 parallel rows, and experts none of which has seen a row of another
(639 each).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from langmerge.auto.evidence import Evidence

TARGETS = (
    "ar-SA", "az-AZ", "cy-GB", "hi-IN", "id-ID", "sq-AL", "sw-KE", "th-TH", "tl-PH", "tr-TR", "vi-VN", "zh-CN",
)  # fmt: skip

ORIGIN = "MASSIVE intents, e5-small, 5 of 17 sources, parallel and disjoint training ids, docs/results.md"

TEXT = "MASSIVE intents, e5-small, 5 of 14 sources, docs/results.md"


@dataclass(frozen=True)
class Study:
    """Gains of a candidate in one pool.

    Attributes:
        gains: points over the single expert on test, one for each of `TARGETS`, mean over seeds.
        error: standard error of one of them over test rows.
    """

    gains: Sequence[float]
    error: float


STUDIES: Mapping[str, Mapping[str, tuple[Study, ...]]] = {
    "ExcTar": {
        "linear": (
            Study((2.8, 2.8, 1.4, 3.1, 2.3, 2.3, 2.9, 1.0, 1.5, 3.4, 0.9, 3.3), 0.6),
            Study((3.7, 4.8, 5.8, 3.5, 5.7, 4.1, 4.0, 4.8, 4.6, 5.3, 4.4, 4.3), 0.7),
        ),
        "ties": (
            Study((0.8, 2.5, -0.8, 1.6, 2.5, 1.1, 2.2, 1.2, -0.2, 1.2, -1.2, 2.8), 0.6),
            Study((3.4, 4.3, 4.2, 2.9, 6.3, 2.7, 2.6, 2.8, 2.5, 3.6, 2.2, 4.4), 0.8),
        ),
        "wudi": (
            Study((3.0, 5.0, 2.4, 3.8, 3.8, 4.4, 4.0, 2.2, 3.2, 4.8, 2.0, 4.7), 0.6),
            Study((6.3, 7.8, 7.6, 6.4, 8.9, 6.1, 5.9, 5.7, 6.0, 7.8, 5.9, 6.6), 0.7),
        ),
        "wudi+head": (
            Study((3.0, 5.3, 2.3, 3.9, 4.1, 4.9, 4.8, 3.5, 3.3, 4.7, 2.5, 5.1), 0.6),
            Study((6.4, 7.8, 6.9, 6.4, 9.6, 6.4, 5.9, 5.8, 6.0, 8.5, 6.4, 7.2), 0.7),
        ),
    },
    "IncTar": {
        # Nine tenths of the weight on the target's own expert.
        "linear": (
            Study((-0.2, 0.1, -0.5, 0.1, -0.1, -0.4, -0.1, 0.1, -0.4, 0.0, 0.0, 0.0), 0.2),
            Study((0.6, 0.0, 0.5, 0.6, 0.5, 0.1, 0.4, 0.7, 0.0, 0.2, 0.7, -0.1), 0.2),
        ),
        "wudi": (
            Study((0.4, 0.2, 0.2, 0.9, 0.2, -0.3, 0.1, 0.4, -0.5, 0.4, 0.4, 0.4), 0.3),
            Study((1.3, 1.1, 2.1, 1.6, 1.8, 2.1, 1.5, 2.2, 2.0, 2.3, 2.4, 0.7), 0.4),
        ),
    },
}  # fmt: skip
"""By mode and candidate, parallel rows first; over the best zero-shot source chosen on dev (ExcTar) or over self (IncTar).

With less than nine tenths of its weight on the target's own expert a merge was measured on disjoint rows alone, where it gains
more; on parallel rows a pilot saw it lose. So no evidence is given for those.
"""

FEW: Mapping[str, Mapping[str, Evidence]] = {
    "ExcTar": {
        # AdaMerging by block to the sources' vote, head frozen.
        "learned": Evidence(1.48, 0.0, 4, TEXT),
        # Of wudi+head, whatever is refined here.
        "refined": Evidence(6.90, 2.16, 4, TEXT),
    },
    "IncTar": {},
}
"""What was measured on four targets (sq, sw, cy, vi), of which no single one is kept."""


def measured(mode: str, *, without: str | None = None) -> dict[str, Evidence]:
    """Evidence for every candidate that was measured.

    Args:
        mode: ExcTar or IncTar.
        without: a target whose own gains are not to decide for it.
    """
    found: dict[str, Evidence] = {}
    for name, studies in STUDIES[mode].items():
        kept = [
            (gain, study.error)
            for study in studies
            for target, gain in zip(TARGETS, study.gains, strict=True)
            if target != without
        ]
        gains, errors = zip(*kept, strict=True)
        found[name] = Evidence.of(gains, errors, ORIGIN, targets=len({*TARGETS} - {without}))
    return {**found, **FEW[mode]}
