"""An adapter put into a model's weights: so that another can be trained above it, or to predict without PEFT's detours."""

from typing import Any

import torch

from langmerge.adapters.reading import Adapter
from langmerge.errors import CheckpointError


@torch.no_grad()
def put_in(model: Any, adapter: Adapter) -> None:
    """Add (LoRA) or multiply ((IA)³) an adapter's modules into a model's weights; its head is left out.

    Raises:
        CheckpointError: a prefix, which is no change of weights; or a module that the model lacks or that does not fit.
    """
    if adapter.kind == "prefix":
        raise CheckpointError(f"adapter {adapter} is a prefix: it cannot be put into weights")
    modules = dict(model.named_modules())
    for name in adapter.keys:
        module = modules.get(name)
        if module is None or not hasattr(module, "weight"):
            raise CheckpointError(f"adapter {adapter}: the model has no module {name!r}: is this its base?")
        weight, size = module.weight, adapter.size(name)
        turned = bool(adapter.config.get("fan_in_fan_out")) or isinstance(module, torch.nn.Embedding)
        if adapter.kind == "lora":
            change = adapter.factors(name).product().to(weight)
            change = change.T if turned else change
            if change.shape != weight.shape:
                raise CheckpointError(
                    f"adapter {adapter}: {name!r} is {tuple(weight.shape)} in the model, not {size}"
                )
            weight.add_(change)
            continue
        vector = adapter.tensor(name).to(weight)
        rows = vector.shape[1] == 1
        if vector.numel() != weight.shape[(0 if rows else 1) ^ turned]:
            raise CheckpointError(
                f"adapter {adapter}: {name!r} is {tuple(weight.shape)} in the model, not {size}"
            )
        weight.mul_(vector.T if turned else vector)
        if rows and module.bias is not None:
            module.bias.mul_(vector.flatten())


class AdaptedModel:
    """One model in memory that holds one adapter after the other, heads included: the base is loaded once.

    Args:
        model: the base.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._state: dict[str, torch.Tensor] = model.state_dict()
        self._plain: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def holding(self, adapter: Adapter) -> Any:
        """The model with this adapter, and nothing of the one before.

        Raises:
            CheckpointError: see `put_in`; or a head that the model lacks or that does not fit.
        """
        for name, value in self._plain.items():
            self._state[name].copy_(value)
        own = [f"{module}.{part}" for module in adapter.keys for part in ("weight", "bias")]
        self._plain = {
            name: self._state[name].clone() for name in {*own, *adapter.whole} if name in self._state
        }
        put_in(self._model, adapter)
        for name, key in adapter.whole.items():
            place, value = self._state.get(name), adapter.checkpoint.read_finite(key)
            if place is None or place.shape != value.shape:
                raise CheckpointError(
                    f"adapter {adapter}: its {name!r} does not fit the model: is this its base?"
                )
            place.copy_(value)
        return self._model
