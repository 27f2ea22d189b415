"""New PEFT adapters on a model in memory: what they change, and from which draw they begin."""

import warnings
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from langmerge.errors import CheckpointError, MissingExtraError
from langmerge.models.forms import Form
from langmerge.models.pooling import POOLING_KEY

TARGETS = {
    "lora": ("query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"),
    "ia3": ("key", "value", "output.dense"),
}
"""Modules by the ends of their names, as encoders of the BERT family have them."""

_FEEDFORWARD = ("output.dense", "down_proj", "fc2", "w2", "c_proj", "dense_4h_to_h")
"""Ends of the names of modules whose input (IA)³ multiplies."""

_MLM_HEADS = (
    "lm_head.dense",
    "lm_head.layer_norm",
    "predictions.transform.dense",
    "predictions.transform.LayerNorm",
)
"""What trains of a masked-LM head; its decoder is the word embeddings."""


class AdapterShape(BaseModel):
    """What an adapter is.

    Attributes:
        kind: lora, ia3 or prefix.
        rank: of LoRA's factors.
        alpha: LoRA's product is multiplied by alpha / rank.
        dropout: before LoRA's A.
        rslora: alpha / √rank instead.
        targets: ends of the names of the modules that are changed; those of `TARGETS` by default.
        tokens: virtual tokens of a prefix.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["lora", "ia3", "prefix"] = "lora"
    rank: Annotated[int, Field(ge=1)] = 16
    alpha: Annotated[float, Field(gt=0)] = 32
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    rslora: bool = False
    targets: tuple[str, ...] | None = None
    tokens: Annotated[int, Field(ge=1)] = 16


def add_adapter(model: Any, shape: AdapterShape, *, seed: int, form: Form = "classifier") -> Any:
    """The model with a new adapter; what trains are the adapter and the head (of a causal LM: the adapter alone).

    A layer that only pools gets none (but a prefix, which stands before every layer).

    Args:
        model: of that form.
        shape: of the adapter.
        seed: of its draw: the same seed, shape and encoder give the same numbers, whatever the head.
        form: what the model says.

    Raises:
        MissingExtraError: peft is not installed.
        CheckpointError: the model has no module of these names.
    """
    try:
        import peft
    except ModuleNotFoundError as error:
        raise MissingExtraError("peft", extra="adapters", needed_for="training adapters") from error
    config = _config(peft, model, shape, form)
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # What PEFT asks of transformers under an old name is no concern of whoever runs this.
            warnings.simplefilter("ignore", FutureWarning)
            torch.manual_seed(seed)
            return peft.get_peft_model(model, config)
    except ValueError as error:
        raise CheckpointError(
            f"no adapter can be put on {model.name_or_path}: {' '.join(str(error).split())}"
        ) from error


def _config(peft: Any, model: Any, shape: AdapterShape, form: Form) -> Any:
    heads = [name for name, _ in model.named_modules() if name.endswith(_MLM_HEADS)]
    by_form: dict[Form, dict[str, Any]] = {
        "classifier": {"task_type": "SEQ_CLS"},
        "tokens": {"task_type": "TOKEN_CLS"},
        "causal": {"task_type": "CAUSAL_LM"},
        "masked": {"task_type": None, "modules_to_save": heads},
    }
    common = by_form[form]
    if shape.kind == "prefix":
        if form == "masked":
            raise CheckpointError(
                "a prefix is for the layers of a classifier: train masked-LM adapters with lora or ia3"
            )
        return peft.PrefixTuningConfig(num_virtual_tokens=shape.tokens, **common)
    if getattr(model.config, POOLING_KEY, None) == "mean":
        common["exclude_modules"] = rf".*\.layer\.{model.config.num_hidden_layers - 1}\..*"
    # PEFT knows by itself what causal models have, by their type.
    targets = list(shape.targets or TARGETS[shape.kind]) if form != "causal" or shape.targets else None
    if shape.kind == "ia3":
        ends = [name for name in targets or () if name.endswith(_FEEDFORWARD)]
        feedforward = ends if targets else None
        return peft.IA3Config(target_modules=targets, feedforward_modules=feedforward, **common)
    return peft.LoraConfig(
        r=shape.rank, lora_alpha=shape.alpha, lora_dropout=shape.dropout, use_rslora=shape.rslora,
        target_modules="all-linear" if targets is None else targets, **common,
    )  # fmt: skip
