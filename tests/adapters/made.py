"""Adapters with drawn weights on a tiny classifier, and what PEFT makes of them."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from safetensors.torch import load_file

from langmerge.models import predict_logits
from tests.learned.models import TEXT
from tests.tiny import xlm_roberta

ROLES = ("task_source", "reference_target", "reference_source")
MODULES = ["query", "output.dense"]


def base() -> Any:
    """The classifier all adapters stand on."""
    return xlm_roberta("classifier", seed=3)


def write_adapter(folder: Path, seed: int, kind: str = "lora", **changes: Any) -> Any:
    """An adapter with drawn weights and a head of its own; returns the merged model (of a prefix: PEFT's model)."""
    made: dict[str, Any] = {
        "lora": lambda: peft.LoraConfig(
            task_type="SEQ_CLS",
            **{
                "r": 2,
                "lora_alpha": 6,
                "target_modules": MODULES,
                "modules_to_save": ["classifier"],
                **changes,
            },
        ),
        "ia3": lambda: peft.IA3Config(
            task_type="SEQ_CLS",
            **{"target_modules": MODULES, "feedforward_modules": ["output.dense"], **changes},
        ),
        "prefix": lambda: peft.PrefixTuningConfig(
            task_type="SEQ_CLS", **{"num_virtual_tokens": 3, **changes}
        ),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(base(), made[kind]())
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, one in model.named_parameters():
                if any(part in name for part in ("lora_", "ia3_", "prompt_encoder", "modules_to_save")):
                    one.add_(0.2 * torch.randn(one.shape, generator=generator))
        model.save_pretrained(folder)
        if kind == "ia3":
            return multiplied(folder)
        return (model if kind == "prefix" else model.merge_and_unload()).eval()


def multiplied(folder: Path) -> Any:
    """The base with an (IA)³ adapter multiplied in: rows and biases, or columns. (PEFT's own cannot unload a head.)"""
    weights = base().state_dict()
    for key, one in load_file(folder / "adapter_model.safetensors").items():
        name = key.removeprefix("base_model.model.")
        if not name.endswith(".ia3_l"):
            weights[name] = one
            continue
        module = name.removesuffix(".ia3_l")
        weights[f"{module}.weight"] = weights[f"{module}.weight"] * one
        if one.shape[1] == 1:
            weights[f"{module}.bias"] = weights[f"{module}.bias"] * one[:, 0]
    return filled(weights)


def changed(folder: Path, **changes: Any) -> None:
    """Settings in an adapter's config."""
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def loaded(folder: Path) -> Any:
    """The base with an adapter, by PEFT alone."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing adapter keys.*")
        warnings.simplefilter("ignore", FutureWarning)
        return peft.PeftModel.from_pretrained(base(), folder).eval()


def logits(model: Any) -> np.ndarray:
    """On the same texts for all."""
    return predict_logits(model, TEXT, bf16=False)


def filled(weights: dict[str, torch.Tensor]) -> Any:
    """The base with some weights replaced."""
    model = base()
    model.load_state_dict({**model.state_dict(), **weights})
    return model.eval()


def state(model: Any) -> dict[str, torch.Tensor]:
    """Weights, double."""
    return {name: one.double() for name, one in model.state_dict().items() if one.is_floating_point()}
