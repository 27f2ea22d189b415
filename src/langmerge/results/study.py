"""What a study finds, as rows: every number with its interval and signature."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from langmerge.errors import DataError
from langmerge.files import replace_text

FORMAT = "langmerge-study/1"

Kind = Literal["merge", "best_zero_shot", "best_in_hindsight", "source_mean", "self", "soft_vote"]


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

    def save(self, path: Path) -> None:
        """Write as JSON, atomically."""
        replace_text(
            path, json.dumps({"format": FORMAT, **asdict(self)}, indent=1, ensure_ascii=False) + "\n"
        )

    @classmethod
    def load(cls, path: Path) -> "Study":
        """Read what `save` wrote.

        Raises:
            DataError: missing, or not a study.
        """
        try:
            raw = json.loads(path.read_bytes())
            if raw.pop("format") != FORMAT:
                raise DataError(f"{path} is not a {FORMAT} file")
            rows = tuple(_row(row) for row in raw.pop("rows"))
            verdicts = tuple(
                Verdict(**{**verdict, "gain": Difference(**verdict["gain"])})
                for verdict in raw.pop("verdicts")
            )
            return cls(rows=rows, verdicts=verdicts, **raw)
        except FileNotFoundError:
            raise DataError(f"{path} does not exist: run langmerge sweep") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path} is no study: {error}") from None


def _row(raw: dict[str, Any]) -> Row:
    differences = {key: None if raw[key] is None else Difference(**raw[key]) for key in ("gain", "effect")}
    return Row(**{**raw, **differences, "sources": tuple(raw["sources"])})
