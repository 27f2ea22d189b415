"""Coefficients: the only thing between where weights come from and how tensors are merged."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from langmerge.errors import RecipeError
from langmerge.files import replace_text

FORMAT = "langmerge-coefficients/1"

_BLOCK = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")
_EMBEDDING = re.compile(
    r"(?:^|\.)(?:embeddings?|embed_tokens|wte|wpe|shared|word_embeddings|embed_positions|patch_embed)(?:\.|$)"
)
_HEAD = re.compile(
    r"^(?:classifier|score|qa_outputs|lm_head|cls|classification_head|pre_classifier|predictions|logits_proj|sequence_summary)"
    r"(?:\.|$)"
)


def group_of(tensor: str) -> str:
    """The block that a tensor belongs to: `embeddings`, `block:<layer>`, `head`, or `other`.

    >>> group_of("roberta.encoder.layer.3.attention.self.query.weight"), group_of("classifier.out_proj.bias")
    ('block:3', 'head')
    """
    if _HEAD.search(tensor):
        return "head"
    if block := _BLOCK.search(tensor):
        return f"block:{int(block[1])}"
    return "embeddings" if _EMBEDDING.search(tensor) else "other"


def block_of(tensor: str) -> int | None:
    """The number of the layer that a tensor belongs to, None outside the layers.

    >>> block_of("model.layers.11.mlp.up_proj.weight"), block_of("model.norm.weight")
    (11, None)
    """
    found = None if _HEAD.search(tensor) else _BLOCK.search(tensor)
    return int(found[1]) if found else None


class Coefficients(BaseModel):
    """A number for each source and group.

    `values[group]` maps every source to its coefficient. Groups, from the most to the least specific:
    `tensor:<name>`, then what `group_of` returns (`block:<layer>`, `embeddings`, `head`, `other`), then `model`.

    Example:
        >>> c = Coefficients.uniform(["de-DE", "fr-FR"])
        >>> c.for_tensor("classifier.weight")
        {'de-DE': 0.5, 'fr-FR': 0.5}
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: str = FORMAT
    target: str | None = None
    values: dict[str, dict[str, float]]
    provenance: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.format != FORMAT:
            raise ValueError(f"format is {self.format!r}; this version reads {FORMAT!r}")
        if not self.values.get("model"):
            raise ValueError("values needs the group 'model' with one number for each source")
        for group, row in self.values.items():
            if group not in ("model", "embeddings", "head", "other") and not re.match(
                r"tensor:.|block:\d+$", group
            ):
                raise ValueError(
                    f"unknown group {group!r}: model, embeddings, block:<n>, head, other or tensor:<name>"
                )
            if row.keys() != self.values["model"].keys():
                raise ValueError(
                    f"group {group!r} has sources {sorted(row)}, 'model' has {sorted(self.sources)}"
                )
            if bad := [s for s, number in row.items() if not math.isfinite(number)]:
                raise ValueError(f"group {group!r}: the coefficient of {bad[0]} is not finite")
        return self

    @property
    def sources(self) -> tuple[str, ...]:
        """The sources, in the order they were given."""
        return tuple(self.values["model"])

    def for_tensor(self, tensor: str) -> Mapping[str, float]:
        """The coefficient of every source for one tensor."""
        for group in (f"tensor:{tensor}", group_of(tensor)):
            if group in self.values:
                return self.values[group]
        return self.values["model"]

    @classmethod
    def uniform(cls, sources: "list[str] | tuple[str, ...]", **fields: Any) -> Self:
        """Every source with weight 1/N."""
        return cls(values={"model": {source: 1.0 / len(sources) for source in sources}}, **fields)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a coefficients file.

        Raises:
            RecipeError: the file is missing, is no JSON, or breaks a rule above.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise RecipeError(f"coefficients file {path} does not exist") from None
        except (ValidationError, OSError) as error:
            raise RecipeError(f"coefficients file {path}: {first_fault(error)}") from None

    def save(self, path: Path) -> None:
        """Write as JSON, atomically.

        Raises:
            OutputError: the place cannot be written.
        """
        replace_text(path, json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n")


def first_fault(error: Exception) -> str:
    """One line out of a validation error: where, what was found, what is wanted."""
    if not isinstance(error, ValidationError):
        return str(error)
    fault = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in fault["loc"])
    return f"{where + ': ' if where else ''}{fault['msg'].removeprefix('Value error, ')}"
