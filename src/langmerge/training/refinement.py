"""How a model is refined, and how it went."""

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field

from langmerge.models.devices import has_fast_bf16


class Refinement(BaseModel):
    """How a model is refined.

    Attributes:
        rounds: the result of one teaches the next; 0 with a prior: only the head's bias is moved.
        epochs: most passes in a round.
        lr: peak learning rate of the body.
        head_lr: peak learning rate of the head.
        batch_size: rows in a step.
        temperature: T of teacher and student; above 1 softens the labels.
        prior: a share for each label; every round's teacher, and at last the result, are moved towards it.
        strength: how far: see `aligning_bias`.
        seed: of the held-out rows, the order of rows and dropout.
        warmup: share of a round's steps in which the rate rises.
        weight_decay: of matrices.
        freeze_embeddings: leave the word embeddings as they are.
        held_out: share of the texts that is not trained on and says when to stop.
        patience: stop after so many epochs without a better one.
        bf16: bfloat16 products; None takes them where the device is faster with them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rounds: Annotated[int, Field(ge=0)] = 1
    epochs: Annotated[int, Field(ge=1)] = 2
    lr: Annotated[float, Field(ge=0)] = 3e-5
    head_lr: Annotated[float, Field(ge=0)] = 3e-4
    batch_size: Annotated[int, Field(ge=1)] = 32
    temperature: Annotated[float, Field(gt=0)] = 1.0
    prior: dict[str, float] | None = None
    strength: Annotated[float, Field(gt=0, le=1)] = 0.5
    seed: int = 0
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    freeze_embeddings: bool = True
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1
    patience: Annotated[int, Field(ge=1)] = 1
    bf16: bool | None = None

    def resolved(self, device: torch.device) -> "Refinement":
        """With `bf16` decided."""
        bf16 = has_fast_bf16(device) if self.bf16 is None else self.bf16
        return self.model_copy(update={"bf16": bf16})


@dataclass(frozen=True)
class Refined:
    """How a refinement went; all but the last two depend on nothing but what was given.

    Attributes:
        history: one entry an epoch: round, epoch, loss, and on the held-out rows cross-entropy to the teacher and its
            excess over the teacher's entropy (nats), agreement, label flips, and how predictions are spread.
        rounds: one entry a round: the epoch that was kept, and the teacher's spread on the held-out rows.
        alignment: what was added to the head's bias at last, by label, with the distance of the mean prediction from
            the prior before and after; None without a prior.
        chosen_by: what chose the epochs.
        notes: one line each: collapse, a model without dropout.
        seconds: wall time of this run.
        steps: optimiser steps of this run.
    """

    history: tuple[dict[str, Any], ...]
    rounds: tuple[dict[str, Any], ...]
    alignment: dict[str, Any] | None
    chosen_by: str
    notes: tuple[str, ...]
    seconds: float
    steps: int
