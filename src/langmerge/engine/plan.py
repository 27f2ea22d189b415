"""What will happen to every tensor of a merge, fully resolved: the only thing that execution needs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from langmerge.checkpoint import Checkpoint, TensorInfo
from langmerge.coefficients import Coefficients
from langmerge.engine.statistics import Statistics

Treatment = Literal["merged", "mean", "base", "source", "dropped"]

Rows = np.ndarray[Any, np.dtype[np.int64]]
"""For every row of the output the row of an input that stands for it, −1 where it has none; shape (rows,)."""


@dataclass(frozen=True)
class TensorPlan:
    """What will happen to one tensor.

    Attributes:
        name: in the output.
        shape: of the output.
        dtype: stored dtype of the output.
        treatment: `merged` by the method, `mean` of the sources, copied from the `base` or one `source`, or `dropped`.
        reason: why it is not merged by the method; empty if it is.
        base: the base's tensor; None where it has none.
        sources: names of the sources that take part, in the order of arithmetic.
        inputs: their tensors.
        method: by which it is merged; `linear` for a mean.
        parameters: of the method, defaults filled in.
        weights: a number for each source.
        rows: row maps of the sources whose rows stand in another order than the output's: labels or vocabulary pieces.
        base_rows: the same of the base.
        statistics: of the sources on text, where the method reads them: a Fisher or a Gram each.
        label_rows: whether its rows are labels.
        block: number of its layer in the output; −1 for embeddings, `blocks` for what follows the last layer, None in a
            model without layers.
        blocks: number of layers of the output.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    treatment: Treatment
    reason: str = ""
    base: TensorInfo | None = None
    sources: tuple[str, ...] = ()
    inputs: tuple[TensorInfo, ...] = ()
    method: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    weights: tuple[float, ...] = ()
    rows: Mapping[str, Rows] = field(default_factory=dict)
    base_rows: Rows | None = None
    statistics: tuple[TensorInfo, ...] = ()
    label_rows: bool = False
    block: int | None = None
    blocks: int | None = None

    @property
    def gathered(self) -> bool:
        """Whether some input's rows have to be looked up one by one."""
        return bool(self.rows) or self.base_rows is not None


@dataclass(frozen=True)
class Companions:
    """What the output gets beside its weights.

    Attributes:
        donor: the folder whose config it gets.
        tokenizers: folders in which the tokenizer's files are looked for, in order.
        config: entries of config.json that replace the donor's.
        chat_template: text of `chat_template.jinja`, None for the tokenizer's own.
        tokenizer: files of a tokenizer made for this output, by name; none for those of a folder.
    """

    donor: Path
    tokenizers: tuple[Path, ...]
    config: Mapping[str, Any] = field(default_factory=dict)
    chat_template: str | None = None
    tokenizer: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """A merge that is known to be possible.

    Attributes:
        recipe: what was asked for, as JSON can hold it.
        method: of the recipe.
        parameters: of the method, defaults filled in.
        base: the opened base; None where the recipe has none.
        sources: the opened sources by name, in the order of arithmetic.
        coefficients: of the sources; None where every tensor has numbers of its own.
        tensors: in the order they are written; the dropped ones last.
        labels: the output's label map, in order, or None.
        permuted: sources whose label rows are put in order by name.
        companions: what the output gets beside its weights.
        target: the locale that the merge is for; only recorded.
        settings: what else of the recipe decides the result, for its signature.
        vocabulary: report on vocabularies that were aligned; empty where all are the same.
        statistics: of the sources on text, opened; empty where the recipe reads none.
    """

    recipe: Mapping[str, Any]
    method: str
    parameters: Mapping[str, Any]
    base: Checkpoint | None
    sources: Mapping[str, Checkpoint]
    coefficients: Coefficients | None
    tensors: Sequence[TensorPlan]
    labels: tuple[str, ...] | None
    permuted: tuple[str, ...]
    companions: Companions
    target: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    vocabulary: Mapping[str, Any] = field(default_factory=dict)
    statistics: Mapping[str, Statistics] = field(default_factory=dict)

    @property
    def written(self) -> list[TensorPlan]:
        """Tensors of the output."""
        return [tensor for tensor in self.tensors if tensor.treatment != "dropped"]

    @property
    def checkpoints(self) -> list[Checkpoint]:
        """Everything that is read: the sources, and the base if it is none of them."""
        opened = {checkpoint.folder: checkpoint for checkpoint in self.sources.values()}
        if self.base is not None:
            opened.setdefault(self.base.folder, self.base)
        return list(opened.values())
