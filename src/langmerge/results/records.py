"""What the store holds, as records: runs with their scores, and the places of a grid that they answer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from langmerge.results.study import Difference, Kind

State = Literal["done", "failed"]


@dataclass(frozen=True)
class Scored:
    """A run's numbers on a split.

    Attributes:
        split: dev or test.
        signature: of model, data, rows and precision.
        rows: number of rows.
        accuracy: in [0, 1].
        low: lower end of its bootstrap 95 % interval.
        high: upper end.
        macro_f1: in [0, 1]; None where no single model predicts.
        logits: where each example's logits lie; None where they are not kept.
        ids: signature of the rows' ids: only runs on the same rows are compared in pairs.
        right: a bit for each row that is predicted right, in the rows' order; None where no single model predicts.
    """

    split: str
    signature: str
    rows: int
    accuracy: float
    low: float
    high: float
    macro_f1: float | None = None
    logits: str | None = None
    ids: str = ""
    right: bytes | None = None

    @property
    def correct(self) -> np.ndarray[Any, np.dtype[np.bool_]] | None:
        """Whether each row is predicted right, bool (rows,); None where no single model predicts."""
        if self.right is None:
            return None
        return np.unpackbits(np.frombuffer(self.right, dtype=np.uint8), count=self.rows).astype(bool)


@dataclass(frozen=True)
class Run:
    """A model, or a combination of models' predictions, on a target.

    Attributes:
        signature: of what decides its predictions.
        name: how tables call it.
        target: the locale.
        task: name of the task.
        revision: of its data.
        sources: what was merged, voted or meant.
        seed: of the sources' training.
        scores: by split.
        method: of a merge.
        parameters: of the method.
        coefficients: group → source → number.
        seconds: that it took.
    """

    signature: str
    name: str
    target: str
    task: str
    revision: str
    sources: tuple[str, ...]
    seed: int
    scores: tuple[Scored, ...]
    method: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    coefficients: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True)
class Cell:
    """A place in a grid.

    Attributes:
        signature: of all that decides what stands there.
        kind: a merge, or which reference.
        target: the locale.
        mode: ExcTar or IncTar.
        selector: by which the sources were chosen; None for single experts.
        k: number of sources; 0 for single experts.
        name: the method with its parameters, or what the reference is called.
        seed: of the experts' training.
    """

    signature: str
    kind: Kind
    target: str
    mode: str
    selector: str | None
    k: int
    name: str
    seed: int


@dataclass(frozen=True)
class Outcome:
    """What a cell came to.

    Attributes:
        cell: the place.
        run: what stands there; None where it failed.
        reason: why it failed, in one line.
        gain: of the run over the place's reference, paired over test rows.
        effect: merging effect.
        seconds: that the place took, with what was found already.
    """

    cell: Cell
    run: Run | None = None
    reason: str | None = None
    gain: Difference | None = None
    effect: Difference | None = None
    seconds: float = 0.0

    @property
    def state(self) -> State:
        """Done or failed."""
        return "failed" if self.run is None else "done"


@dataclass(frozen=True)
class Sweep:
    """What was asked for.

    Attributes:
        signature: of it.
        name: how people call it.
        task: name of the task.
        revision: of its data.
        base: what the experts were trained from.
        record: the grid, as JSON can hold it.
    """

    signature: str
    name: str
    task: str
    revision: str
    base: str
    record: Mapping[str, Any]
