"""Models with other heads than a sequence classifier's: masked and causal language models, and token classifiers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForTokenClassification

from langmerge.errors import CheckpointError
from langmerge.models.classifier import load_tokenizer, loaded_with
from langmerge.models.devices import best_device

Form = Literal["classifier", "masked", "tokens", "causal"]
"""What a model says: one label for a text, hidden pieces, a label for each piece, or how a text goes on."""

_CLASSES = {
    "masked": AutoModelForMaskedLM,
    "tokens": AutoModelForTokenClassification,
    "causal": AutoModelForCausalLM,
}


def new_model(base: str | Path, form: Form, *, seed: int, labels: Sequence[str] = ()) -> tuple[Any, Any]:
    """The base with a head of this form, its own or one drawn from `seed`, and its tokenizer.

    Args:
        base: a folder or hub id of a pretrained encoder; for `causal` of a causal language model, head and all.
        form: masked, tokens or causal.
        seed: of the head.
        labels: of a token classifier.

    Raises:
        CheckpointError: the base cannot be read, weights that are no head are missing, or there is no mask token for
            a masked LM.
    """
    more: dict[str, Any] = {}
    if labels:
        more = {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, report = loaded_with(_CLASSES[form], base, **more)
    start = "" if form == "causal" else f"{model.base_model_prefix}."
    missing = sorted(name for name in report["missing_keys"] if name.startswith(start))
    if missing:
        kind = "causal language model" if form == "causal" else "pretrained encoder"
        raise CheckpointError(
            f"{base} is no {kind}: {len(missing)} weights are missing in it, the first is {missing[0]!r}"
        )
    tokenizer = load_tokenizer(base)
    if form == "masked" and tokenizer.mask_token_id is None:
        raise CheckpointError(
            f"the tokenizer of {base} has no mask token: it is no base for masked language modelling"
        )
    return model.eval(), tokenizer


def load_form(folder: Path, form: Form) -> Any:
    """A model of a form from its folder, in eval mode on the best device.

    Raises:
        CheckpointError: it cannot be read, or weights are missing.
    """
    model, report = loaded_with(_CLASSES[form], folder)
    if report["missing_keys"]:
        raise CheckpointError(f"{folder} is no whole model: {min(report['missing_keys'])!r} is missing")
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
