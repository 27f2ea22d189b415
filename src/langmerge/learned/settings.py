"""How coefficients are learned, and the presets."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from langmerge.coefficients import first_fault
from langmerge.errors import InputError
from langmerge.learned.bounds import Bounds
from langmerge.learned.objectives import terms_of

_PART = re.compile(r"head|embeddings|other|block:\d+")


class Settings(BaseModel):
    """Everything about learning that decides the result, besides models, text and start.

    Attributes:
        groups: `model` (task-wise), `block`, `tensor` (the paper's layer-wise), or `given` (those of the start's file).
        objective: `entropy`, `teacher`, `infomax`, or a sum like `teacher+0.5*infomax`.
        temperature: logits are divided by it.
        confident: share of a batch that counts: its rows of the lowest entropy.
        init: every coefficient's start; None starts from what is given (a selection, or uniform weights).
        lr: of Adam, which moves a coefficient by about so much in a step.
        steps: optimiser steps, at most.
        batch_size: rows in a step.
        bounds: `projection`, `sigmoid`, `simplex`, `paper_clamp` or `none`.
        low: smallest coefficient.
        high: largest coefficient.
        anchor: weight of ‖λ − start‖², which is added to the loss.
        density: share of each task vector that ++ keeps; None for plain AdaMerging.
        freeze: parts that keep the start: `head`, `embeddings`, `other`, `block:<n>`.
        held_out: share of the rows that only decide when to stop, at most 512 rows; 0 takes the last step.
        check_every: steps between two looks at the held-out rows.
        patience: looks without a better held-out loss after which it ends.
        seed: of the rows' order and the held-out rows.
        bf16: bfloat16 products; None takes them where the device is faster with them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    groups: Literal["model", "block", "tensor", "given"] = "block"
    objective: str = "teacher+infomax"
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    confident: Annotated[float, Field(gt=0, le=1)] = 1.0
    init: Annotated[float, Field(allow_inf_nan=False)] | None = None
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 5e-3
    steps: Annotated[int, Field(ge=1)] = 200
    batch_size: Annotated[int, Field(ge=1)] = 32
    bounds: Literal["none", "projection", "sigmoid", "simplex", "paper_clamp"] = "projection"
    low: float = 0.0
    high: float = 1.0
    anchor: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1
    density: Annotated[float, Field(gt=0, le=1)] | None = None
    freeze: tuple[str, ...] = ("head",)
    held_out: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    check_every: Annotated[int, Field(ge=1)] = 20
    patience: Annotated[int, Field(ge=1)] = 3
    seed: Annotated[int, Field(ge=0)] = 0
    bf16: bool | None = None

    @field_validator("objective")
    @classmethod
    def _objective_is_known(cls, value: str) -> str:
        try:
            terms_of(value)
        except InputError as error:
            raise ValueError(str(error)) from None
        return value

    @field_validator("freeze")
    @classmethod
    def _parts_are_known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for part in value:
            if not _PART.fullmatch(part):
                raise ValueError(f"{part!r} is no part: it must be head, embeddings, other or block:<n>")
        return value

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> Self:
        try:
            self.limits  # noqa: B018
        except InputError as error:
            raise ValueError(str(error)) from None
        return self

    @property
    def limits(self) -> Bounds:
        """The bounds as an object."""
        return Bounds(self.bounds, self.low, self.high)

    @property
    def method(self) -> tuple[str, dict[str, Any]]:
        """The merge that these coefficients are for, and its parameters."""
        if self.density is None:
            return "task_arithmetic", {}
        return "ties", {"density": self.density, "election": "unweighted", "normalize": False}


_PAPER: dict[str, Any] = {
    "objective": "entropy", "init": 0.3, "lr": 1e-3, "steps": 500, "batch_size": 16, "bounds": "paper_clamp",
    "anchor": 0.0, "freeze": (), "held_out": 0.0,
}  # fmt: skip

PRESETS: dict[str, dict[str, Any]] = {
    "safe": {},
    "paper_taskwise": {**_PAPER, "groups": "model"},
    "paper_layerwise": {**_PAPER, "groups": "tensor"},
    "paper_pp": {**_PAPER, "groups": "tensor", "density": 0.2},
}
"""What each preset says; the rest is as in `Settings`. `safe` is the cross-lingual default; the `paper_` ones are Yang et
al. 2024, AdaMerging (task-wise, layer-wise, and layer-wise ++), with one head for all sources, which is merged too."""


def settings_of(preset: str, **changes: Any) -> Settings:
    """A preset with changes; those that are None are left out.

    Raises:
        InputError: no such preset, or a value out of range.
    """
    if preset not in PRESETS:
        raise InputError(f"preset {preset!r} is none of {', '.join(PRESETS)}")
    try:
        return Settings(
            **{**PRESETS[preset], **{key: value for key, value in changes.items() if value is not None}}
        )
    except ValidationError as error:
        raise InputError(first_fault(error)) from None
