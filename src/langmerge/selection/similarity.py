"""How good each source looks for each target, by one selector; what is not known is said to be missing."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from jaxtyping import Float64

from langmerge.errors import SelectionError
from langmerge.files import replace_text

FORMAT = "langmerge-similarity/1"


@dataclass(frozen=True)
class SimilarityMatrix:
    """`values[source, target]`: the larger, the better the source for the target.

    Attributes:
        by: the selector.
        sources: the rows.
        targets: the columns.
        values: shape (sources, targets), in the selector's own unit; NaN where nothing is known.
        missing: for languages of which something is not known, what.
        provenance: what the numbers come from.
    """

    by: str
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    values: Float64[np.ndarray, "s t"]
    missing: Mapping[str, str] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.values.shape != (len(self.sources), len(self.targets)):
            raise SelectionError(
                f"{self.by} has values of shape {self.values.shape} for {len(self.sources)} sources × "
                f"{len(self.targets)} targets"
            )

    def column(self, target: str) -> dict[str, float]:
        """The score of every source that has one, for a target.

        Raises:
            SelectionError: the target has no column, or no source has a score.
        """
        if target not in self.targets:
            raise SelectionError(
                f"{self.by} was not measured for {target!r}: it has {', '.join(self.targets)}"
            )
        own = self.values[:, self.targets.index(target)]
        found = {s: float(v) for s, v in zip(self.sources, own, strict=True) if not np.isnan(v)}
        if not found:
            why = self.missing.get(target, "no source has a score")
            raise SelectionError(f"{self.by} says nothing of {target}: {why}")
        return found

    def unknown(self, target: str) -> dict[str, str]:
        """The sources that have no score for a target, and why."""
        known = self.column(target)
        why = f"{self.by} has no score for it"
        return {source: self.missing.get(source, why) for source in self.sources if source not in known}

    def save(self, path: Path) -> None:
        """Write as JSON, atomically."""
        payload = {"format": FORMAT, **self.payload()}
        replace_text(path, json.dumps(payload, indent=1, ensure_ascii=False) + "\n")

    def payload(self) -> dict[str, Any]:
        """As JSON has it: null where nothing is known."""
        return {
            "by": self.by,
            "sources": self.sources,
            "targets": self.targets,
            "values": [[None if np.isnan(v) else round(float(v), 6) for v in row] for row in self.values],
            "missing": dict(self.missing),
            "provenance": dict(self.provenance),
        }

    @classmethod
    def load(cls, path: Path) -> "SimilarityMatrix":
        """Read what `save` wrote.

        Raises:
            SelectionError: missing or malformed.
        """
        try:
            raw = json.loads(path.read_bytes())
            if raw["format"] != FORMAT:
                raise SelectionError(f"{path}: format is {raw['format']!r}; this version reads {FORMAT!r}")
            sources, targets = (tuple(str(name) for name in raw[key]) for key in ("sources", "targets"))
            values = np.array(
                [[np.nan if v is None else float(v) for v in row] for row in raw["values"]], dtype=np.float64
            ).reshape(len(sources), len(targets))
            missing = {str(name): str(why) for name, why in cast("dict[Any, Any]", raw["missing"]).items()}
            return cls(str(raw["by"]), sources, targets, values, missing, dict(raw["provenance"]))
        except FileNotFoundError:
            raise SelectionError(f"{path} does not exist: write it with langmerge similarity -o") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise SelectionError(f"{path} is no similarity matrix: {error}") from None
