"""The transfer matrix: how well each expert does on each locale."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from langmerge.errors import SelectionError
from langmerge.selection.kept import as_json, load_matrix, save_matrix

FORMAT = "langmerge-transfer/1"


@dataclass(frozen=True)
class TransferMatrix:
    """`values[source, target]`: score in [0, 1] of each expert (row) on each locale (column).

    Attributes:
        sources: locales of the experts, the rows.
        targets: locales they were scored on, the columns.
        values: shape (sources, targets); NaN where not measured.
        split: train, dev or test. Choices are made on dev.
        metric: what the numbers are.
        provenance: where they come from.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    values: Float64[np.ndarray, "s t"]
    split: str
    metric: str = "accuracy"
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.values.shape != (len(self.sources), len(self.targets)):
            raise SelectionError(
                f"transfer matrix of shape {self.values.shape} for {len(self.sources)} sources × {len(self.targets)} targets"
            )

    def score(self, source: str, target: str) -> float:
        """M[source, target].

        Raises:
            SelectionError: no such row, column or measurement.
        """
        if source not in self.sources:
            raise SelectionError(
                f"the {self.split} transfer matrix has no expert {source!r}: it has {', '.join(self.sources)}"
            )
        return self.column(target)[source]

    def column(self, target: str) -> dict[str, float]:
        """How well every source does on the target (the target's column, not its row).

        Raises:
            SelectionError: the target was not measured, for all sources or for one.
        """
        if target not in self.targets:
            raise SelectionError(
                f"the {self.split} transfer matrix has no column {target!r}: measure it with langmerge matrix; "
                f"it has {', '.join(self.targets)}"
            )
        found = self.values[:, self.targets.index(target)]
        if np.isnan(found).any():
            missing = [s for s, value in zip(self.sources, found, strict=True) if np.isnan(value)]
            raise SelectionError(
                f"column {target!r} lacks {', '.join(missing)}: run langmerge matrix again to fill it"
            )
        return {source: float(value) for source, value in zip(self.sources, found, strict=True)}

    def among(self, sources: Collection[str]) -> "TransferMatrix":
        """The same matrix with only these rows.

        Raises:
            SelectionError: a source has no row.
        """
        if absent := [source for source in sources if source not in self.sources]:
            raise SelectionError(
                f"the {self.split} transfer matrix has no expert {absent[0]!r}: it has {', '.join(self.sources)}"
            )
        kept = [row for row, source in enumerate(self.sources) if source in sources]
        return replace(self, sources=tuple(self.sources[row] for row in kept), values=self.values[kept])

    def best_zero_shot(self, target: str) -> str:
        """The best source for a target other than the target's own expert; the first by name among equals."""
        others = {s: v for s, v in self.column(target).items() if s != target}
        if not others:
            raise SelectionError(f"no source but {target!r} itself: zero-shot needs another expert")
        return min(others, key=lambda s: (-others[s], s))

    def save(self, path: Path) -> None:
        """Write as JSON, atomically."""
        payload = {
            "split": self.split,
            "metric": self.metric,
            "sources": self.sources,
            "targets": self.targets,
            "values": as_json(self.values),
            "provenance": dict(self.provenance),
        }
        save_matrix(path, FORMAT, payload)

    @classmethod
    def load(cls, path: Path) -> "TransferMatrix":
        """Read what `save` wrote.

        Raises:
            SelectionError: missing or malformed.
        """
        return load_matrix(
            path,
            FORMAT,
            lambda raw, sources, targets, values: cls(
                sources, targets, values, raw["split"], raw["metric"], raw["provenance"]
            ),
            kind="transfer matrix",
            remedy="measure it with langmerge matrix",
        )
