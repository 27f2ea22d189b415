"""An adapter put into a model's weights, so that another can be trained above it."""

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
