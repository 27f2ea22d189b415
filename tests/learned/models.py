"""Tiny classifiers with task vectors in memory."""

from typing import Any

import torch
from torch import Tensor

from langmerge.coefficients import Coefficients
from langmerge.learned.adamerging import TextStream
from langmerge.learned.deltas import HeldDeltas
from langmerge.learned.groups import Grouping, grouping
from langmerge.learned.objectives import Composed, Objective
from langmerge.learned.settings import Settings, settings_of
from tests.tiny import xlm_roberta

SOURCES = ("de-DE", "fr-FR", "sw-KE")
TEXT = [[0, 4 + i % 30, 4 + (7 * i) % 30, *([9 + i % 5] * (i % 4)), 2] for i in range(24)]


def tensors_of(model: Any) -> list[str]:
    """Everything but the word embeddings."""
    return [name for name, _ in model.named_parameters() if "embeddings" not in name]


def drawn_taus(
    model: Any, *, scale: float = 0.1, sources: int = len(SOURCES), seed: int = 1
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    own = dict(model.named_parameters())
    return {
        name: scale * torch.randn(sources, *own[name].shape, generator=generator, dtype=own[name].dtype)
        for name in tensors_of(model)
    }


class Setup:
    """A model, its base, task vectors and what learning needs."""

    def __init__(self, *, double: bool = False, taus: dict[str, Tensor] | None = None) -> None:
        self.model = xlm_roberta("classifier", seed=3)
        self.model = self.model.double() if double else self.model
        self.parameters = dict(self.model.named_parameters())
        self.base = {name: one.detach().clone() for name, one in self.parameters.items()}
        self.taus = drawn_taus(self.model) if taus is None else taus
        self.deltas = HeldDeltas(self.parameters, self.base, self.taus, SOURCES)

    def grouping(self, kind: str, *, start: float = 0.3, freeze: frozenset[str] = frozenset()) -> Grouping:
        numbers = Coefficients(values={"model": dict.fromkeys(SOURCES, start)})
        return grouping(self.deltas.tensors, numbers, kind=kind, sources=SOURCES, freeze=freeze)

    def stream(self, objective: Objective | None = None) -> TextStream:
        return TextStream(self.model, TEXT, objective or Composed({"entropy": 1.0}), "intent")


def quick(preset: str = "safe", **changes: Any) -> Settings:
    """A few steps on few rows."""
    chosen = {"objective": "entropy", "steps": 6, "batch_size": 8, "check_every": 2, "bf16": False, **changes}
    return settings_of(preset, **chosen)
