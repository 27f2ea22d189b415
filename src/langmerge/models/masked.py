"""Masked language models: an encoder with a head that says which piece stood at a masked place."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForMaskedLM

from langmerge.errors import CheckpointError
from langmerge.models.classifier import load_tokenizer, loaded_with
from langmerge.models.devices import best_device


def new_masked_lm(base: str | Path, *, seed: int) -> tuple[Any, Any]:
    """The base with a masked-LM head, its own or one drawn from `seed`, and its tokenizer.

    Raises:
        CheckpointError: the base cannot be read, weights of its encoder are missing, or it has no mask token.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, report = loaded_with(AutoModelForMaskedLM, base)
    missing = sorted(
        name for name in report["missing_keys"] if name.startswith(f"{model.base_model_prefix}.")
    )
    if missing:
        raise CheckpointError(
            f"{base} is no pretrained encoder: {len(missing)} weights are missing, the first is {missing[0]!r}"
        )
    tokenizer = load_tokenizer(base)
    if tokenizer.mask_token_id is None:
        raise CheckpointError(
            f"the tokenizer of {base} has no mask token: it is no base for masked language modelling"
        )
    return model.eval(), tokenizer


def load_masked_lm(folder: Path) -> Any:
    """A masked LM from its folder, in eval mode.

    Raises:
        CheckpointError: it cannot be read, or weights are missing.
    """
    model, report = loaded_with(AutoModelForMaskedLM, folder)
    if report["missing_keys"]:
        raise CheckpointError(
            f"{folder} is no masked language model: {sorted(report['missing_keys'])[0]!r} is missing"
        )
    return model.to(best_device()).eval()


def lm_head(model: Any) -> Any:
    """The module from hidden states to logits.

    Raises:
        CheckpointError: it is not known where this architecture has it.
    """
    for name in ("lm_head", "cls"):
        if hasattr(model, name):
            return getattr(model, name)
    raise CheckpointError(f"{type(model).__name__} has no masked-LM head under a name that is known here")
