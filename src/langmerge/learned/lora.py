"""PEFT's LoRA adapters as task vectors that are never multiplied out."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from langmerge.checkpoint import read_json
from langmerge.errors import CheckpointError
from langmerge.learned.deltas import Deltas, Factors, HeldDeltas, LoraDeltas, Numbers

_PREFIX = "base_model.model."
_FACTOR = re.compile(r"^(?P<module>.+)\.lora_(?P<which>[AB])\.weight$")
_PLAIN_STARTS = (True, False, "gaussian", "orthogonal", "eva")
"""Ways of drawing A and B that leave the base as it was; others (PiSSA, OLoRA, LoftQ, CorDA) change it."""
_UNSUPPORTED = (
    "use_dora",
    "lora_bias",
    "fan_in_fan_out",
    "layer_replication",
    "trainable_token_indices",
    "use_qalora",
)


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
    config = read_json(folder / "adapter_config.json")
    _check(folder, config)
    pairs: dict[str, dict[str, Tensor]] = {}
    whole: dict[str, Tensor] = {}
    try:
        stored = load_file(folder / "adapter_model.safetensors")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"adapter {folder}: adapter_model.safetensors cannot be read: {error}"
        ) from None
    for key, tensor in stored.items():
        name = key.removeprefix(_PREFIX)
        if match := _FACTOR.match(name):
            pairs.setdefault(f"{match['module']}.weight", {})[match["which"]] = tensor.float()
        else:
            whole[name] = tensor.float()
    for name in (*pairs, *whole):
        if name not in parameters:
            raise CheckpointError(
                f"adapter {folder}: the base has no tensor {name!r}: is this the base it was trained on?"
            )
    if odd := [name for name, pair in pairs.items() if set(pair) != {"A", "B"}]:
        raise CheckpointError(f"adapter {folder}: {odd[0]!r} has lora_{'/'.join(pairs[odd[0]])} alone")
    found = {
        name: Factors(
            pair["A"].to(parameters[name]),
            pair["B"].to(parameters[name]),
            _scale(config, name, len(pair["A"])),
        )
        for name, pair in pairs.items()
    }
    return found, whole


def _check(folder: Path, config: Mapping[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise CheckpointError(f"adapter {folder} is {config.get('peft_type')!r}: only LORA has factors")
    if bad := [key for key in _UNSUPPORTED if config.get(key)]:
        raise CheckpointError(f"adapter {folder} has {bad[0]}: its delta is no product of two factors")
    if config.get("bias", "none") != "none":
        raise CheckpointError(
            f"adapter {folder} trains biases (bias: {config['bias']}): only bias: none is exact"
        )
    if config.get("init_lora_weights", True) not in _PLAIN_STARTS:
        raise CheckpointError(
            f"adapter {folder} began with init_lora_weights: {config['init_lora_weights']!r}, which changes the base"
        )


def _scale(config: Mapping[str, Any], name: str, rank: int) -> float:
    module = name.removesuffix(".weight")
    alphas: Mapping[str, float] = config.get("alpha_pattern") or {}
    # As PEFT has it: a pattern is the whole of a module's name or its end, behind a dot.
    alpha = next(
        (a for key, a in alphas.items() if re.match(rf"(.*\.)?({key})$", module)), config["lora_alpha"]
    )
    return float(alpha) / (rank**0.5 if config.get("use_rslora") else rank)
