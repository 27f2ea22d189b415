"""PEFT's LoRA adapters as task vectors that are never multiplied out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from langmerge.adapters.lora import Factors
from langmerge.adapters.reading import open_parsed
from langmerge.errors import CheckpointError
from langmerge.learned.deltas import Deltas, HeldDeltas, LoraDeltas, Numbers


class JoinedDeltas:
    """Factors where the adapters have factors, whole task vectors where they have trained whole modules (heads).

    Args:
        parts: with the same sources, and no tensor in common.
    """

    def __init__(self, parts: Sequence[Deltas]) -> None:
        self.sources = parts[0].sources
        self._part = {name: part for part in parts for name in part.tensors}
        self.tensors = tuple(self._part)
        self.norms: Mapping[str, Numbers] = {name: part.norms[name] for name, part in self._part.items()}

    def fill(self, weights: Mapping[str, Sequence[float]]) -> None:
        """See `Deltas`."""
        for name, row in weights.items():
            self._part[name].fill({name: row})

    def dots(self, gradients: Mapping[str, Tensor]) -> dict[str, Numbers]:
        """See `Deltas`."""
        return {name: self._part[name].dots({name: one})[name] for name, one in gradients.items()}


def lora_deltas(model: Any, adapters: Mapping[str, Path]) -> JoinedDeltas:
    """The task vectors of LoRA adapters on a model.

    Args:
        model: the base that they were trained on, with its head; its weights are taken as θ_0 and will be filled.
        adapters: PEFT folders by source.

    Raises:
        CheckpointError: an adapter is no LoRA adapter, has what has no exact product (DoRA, biases, starts that change
            the base), or names a tensor that the model lacks.
    """
    parameters = dict(model.named_parameters())
    read = {source: _read(folder, parameters) for source, folder in adapters.items()}
    factored = list(dict.fromkeys(name for factors, _ in read.values() for name in factors))
    whole = list(dict.fromkeys(name for _, own in read.values() for name in own))
    if both := set(factored) & set(whole):
        raise CheckpointError(
            f"tensor {min(both)!r} has factors in one adapter and is trained as a whole in another"
        )
    base = {name: parameters[name].detach().clone() for name in (*factored, *whole)}
    taus = {
        name: torch.stack(
            [
                own[name].to(base[name]) - base[name] if name in own else torch.zeros_like(base[name])
                for _, own in read.values()
            ]
        )
        for name in whole
    }
    factors = {name: [own.get(name) for own, _ in read.values()] for name in factored}
    sources = tuple(adapters)
    return JoinedDeltas(
        [LoraDeltas(parameters, base, factors, sources), HeldDeltas(parameters, base, taus, sources)]
    )


def _read(folder: Path, parameters: Mapping[str, Tensor]) -> tuple[dict[str, Factors], dict[str, Tensor]]:
    """Factors by tensor, and tensors that were trained as a whole."""
    adapter = open_parsed(folder)
    if adapter.kind != "lora":
        raise CheckpointError(f"adapter {folder} is {adapter.kind}: only lora has factors")
    if adapter.config.get("fan_in_fan_out"):
        raise CheckpointError(
            f"adapter {folder} has fan_in_fan_out: its base holds matrices the other way round"
        )
    for name in (*(f"{module}.weight" for module in adapter.keys), *adapter.whole):
        if name not in parameters:
            raise CheckpointError(
                f"adapter {folder}: the base has no tensor {name!r}: is this the base it was trained on?"
            )
    found = {}
    for module in adapter.keys:
        one, like = adapter.factors(module), parameters[f"{module}.weight"]
        found[f"{module}.weight"] = Factors(one.a.to(like), one.b.to(like), one.scale)
    whole = {name: adapter.checkpoint.read_finite(key) for name, key in adapter.whole.items()}
    return found, whole
