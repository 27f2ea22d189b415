"""How good each source looks for each target, by one selector; what is not known is said to be missing."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from langmerge.errors import SelectionError
from langmerge.selection.kept import as_json, load_matrix, save_matrix

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
        save_matrix(path, FORMAT, self.payload())

    def payload(self) -> dict[str, Any]:
        """As JSON has it: null where nothing is known."""
        return {
            "by": self.by,
            "sources": self.sources,
            "targets": self.targets,
            "values": as_json(self.values),
            "missing": dict(self.missing),
            "provenance": dict(self.provenance),
        }

    @classmethod
    def load(cls, path: Path) -> "SimilarityMatrix":
        """Read what `save` wrote.

        Raises:
            SelectionError: missing or malformed.
        """
        return load_matrix(
            path,
            FORMAT,
            lambda raw, sources, targets, values: cls(
                str(raw["by"]),
                sources,
                targets,
                values,
                {str(name): str(why) for name, why in dict(raw["missing"]).items()},
                dict(raw["provenance"]),
            ),
            kind="similarity matrix",
            remedy="write it with langmerge similarity -o",
        )
