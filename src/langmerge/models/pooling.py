"""Mean pooling that every stock loader understands: one more encoder layer, with fixed weights.

Sentence encoders of the E5 kind were trained with mean pooling, but transformers' classification head for the BERT
family reads the first token. A layer whose queries and keys are zero attends to every token alike, so its output at the
first token is the mean over all tokens. Written as an ordinary layer it survives `save_pretrained`, `from_pretrained`,
merging and any other tool that knows the architecture; a pooling of our own would be silently dropped by them.
"""

import copy
from typing import Any

import torch

POOLING_KEY = "langmerge_pooling"
"""In config.json: "mean" where the last encoder layer is the one described above."""

DOMINANCE = 16.0
"""Weight of the mean against the first token's own state, which the layer's residual connection adds with weight 1."""

HEAD_INPUT = 0.5
"""What the head's dense layer multiplies by: small enough for its tanh to stay nearly linear."""


def add_mean_pooling(model: Any) -> bool:
    """Append the pooling layer, and make the head's dense layer pass its input on, where the architecture allows it.

    Layer output at the first token: LN(LN(x_0 + 16 · mean_j x_j)), and the head then computes W tanh(0.5 · that) + b.

    Args:
        model: a sequence classifier of the BERT family (post-norm layers, a head that reads the first token).

    Returns:
        Whether it was done. Other architectures keep the pooling they were made with, and a model that has the layer
        gets no second one.
    """
    if getattr(model.config, POOLING_KEY, None) == "mean":
        return False
    layers = getattr(getattr(model.base_model, "encoder", None), "layer", None)
    dense = getattr(getattr(model, "classifier", None), "dense", None)
    if (
        layers is None
        or dense is None
        or not _is_post_norm(layers[-1])
        or dense.in_features != dense.out_features
    ):
        return False
    layer = copy.deepcopy(layers[-1])
    _make_pooling(layer)
    layers.append(layer)
    model.config.num_hidden_layers = len(layers)
    setattr(model.config, POOLING_KEY, "mean")
    with torch.no_grad():
        dense.weight.copy_(HEAD_INPUT * torch.eye(dense.in_features))
        dense.bias.zero_()
    return True


def pooling_parameters(model: Any) -> list[torch.nn.Parameter]:
    """The weights that stay fixed in training, because they only pool; empty for other models."""
    if getattr(model.config, POOLING_KEY, None) != "mean":
        return []
    return [*model.base_model.encoder.layer[-1].parameters(), *model.classifier.dense.parameters()]


def _is_post_norm(layer: Any) -> bool:
    parts = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
    more = ("attention.output.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm")
    names = dict(layer.named_modules())
    return all(part in names for part in (*parts, *more))


@torch.no_grad()
def _make_pooling(layer: Any) -> None:
    for name, parameter in layer.named_parameters():
        if name.endswith("LayerNorm.weight"):
            parameter.fill_(1)
        else:
            parameter.zero_()
    identity = torch.eye(layer.attention.self.value.in_features)
    layer.attention.self.value.weight.copy_(identity)
    layer.attention.output.dense.weight.copy_(DOMINANCE * identity)
