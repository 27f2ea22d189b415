"""Grams of what goes into every linear layer of a model: XᵀX / n over the tokens of texts that are no padding."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from langmerge.errors import CheckpointError, InputError
from langmerge.models import length_bucketed, padded
from langmerge.progress import Progress, silent

BATCH_TOKENS = 2_048
"""Padded tokens in a batch."""

_CHEAP = 1_024
"""Inputs of a layer up to which its Gram is added up in float64."""

Arrays = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Grams:
    """Grams of one model.

    Attributes:
        tensors: by the weight's name, (in, in) float32.
        shared: weight → the weight that reads the same input and has the Gram of both.
        tokens: that were seen.
    """

    tensors: Arrays
    shared: dict[str, str]
    tokens: int


@torch.inference_mode()
def input_grams(
    model: Any,
    encoded: Sequence[Sequence[int]],
    *,
    batch_tokens: int = BATCH_TOKENS,
    only: Callable[[str], bool] = lambda _: True,
    progress: Progress = silent,
) -> Grams:
    """Grams of every `nn.Linear`'s input, in one pass over the texts.

    Layers that look at one vector of each text (a head) have the Gram of these vectors; a layer that is used twice, that
    of both uses. Layers that are given the same tensor (query, key, value) share one.

    Args:
        model: `(input_ids, attention_mask)`; it is put into eval mode.
        encoded: token ids of each text.
        batch_tokens: padded tokens in a batch; sums are grouped by batches, so it decides their last bits.
        only: of a weight's name: whether its layer is looked at.
        progress: told of texts.

    Raises:
        InputError: no text, no such layer, or a model with a linear layer whose input cannot be told from padding.
        CheckpointError: an input holds NaN or infinity.
    """
    if not len(encoded):
        raise InputError("a Gram needs text: found no row")
    model.eval()
    layers = {name: one for name, one in linear_layers(model).items() if only(name)}
    if not layers:
        raise InputError("the model has no such linear layer: there is nothing to take a Gram of")
    found = Collector(layers)
    device = next(model.parameters()).device
    with found.collecting(), progress("Grams", len(encoded)) as advance:
        for ids, mask in batches(model, encoded, batch_tokens):
            with found.batch(mask.to(device)):
                model(input_ids=ids.to(device), attention_mask=mask.to(device))
            advance(len(ids))
    return found.grams()


def batches(
    model: Any, encoded: Sequence[Sequence[int]], batch_tokens: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Ids and mask of each batch, rows of similar length together."""
    pad = getattr(getattr(model, "config", None), "pad_token_id", None) or 0
    for rows in length_bucketed([len(row) for row in encoded], batch_tokens=batch_tokens):
        yield padded([encoded[row] for row in rows], pad_id=pad)


def linear_layers(model: Any) -> dict[str, nn.Module]:
    """Every linear layer, by the name of its weight."""
    return {f"{name}.weight": one for name, one in model.named_modules() if isinstance(one, nn.Linear)}


class Collector:
    """Adds up the Grams of linear layers while a model runs.

    Args:
        layers: by the name of the weight.
    """

    def __init__(self, layers: dict[str, nn.Module]) -> None:
        self._layers = layers
        self._mask: Tensor | None = None
        self._last: tuple[Tensor, str] | None = None
        self._owners: dict[str, str] = {}
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._tokens = 0

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Hooks on the layers."""
        hooks: list[Any] = []
        try:
            for name, one in self._layers.items():
                take: Callable[..., None] = partial(self._take, name)
                hooks.append(one.register_forward_pre_hook(take))
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def batch(self, mask: Tensor) -> Iterator[None]:
        """While a batch with this mask (rows, tokens), 1 where there is a token, goes through the model."""
        self._mask, self._tokens = mask, self._tokens + int(mask.sum())
        try:
            yield
        finally:
            self._mask = self._last = None

    def _take(self, name: str, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        if self._mask is None:
            return
        given = args[0]
        owner = self._last[1] if self._last is not None and self._last[0] is given else name
        if self._owners.setdefault(name, owner) != owner:
            raise InputError(f"the input of {name} is that of {owner} in some batches and not in others")
        if owner != name:
            return
        # Held, so that no other tensor can come to stand at its place.
        self._last = (given, name)
        rows = _tokens_of(given, self._mask, name)
        product = (rows.T @ rows).float() if rows.dtype != torch.float64 else rows.T @ rows
        if not bool(torch.isfinite(product).all()):
            raise CheckpointError(
                f"the input of {name} holds NaN or infinity: the weights before it are broken"
            )
        if name not in self._sums:
            cheap = rows.shape[1] <= _CHEAP
            self._sums[name] = torch.zeros_like(product, dtype=torch.float64 if cheap else product.dtype)
        self._sums[name] += product
        self._counts[name] = self._counts.get(name, 0) + len(rows)

    def grams(self) -> Grams:
        """What was added up, over the number of tokens each layer saw.

        Raises:
            InputError: a layer was never used.
        """
        if unused := [name for name in self._layers if name not in self._owners]:
            raise InputError(f"no text reaches the layer of {unused[0]!r}: its inputs have no Gram")
        tensors = {
            name: (total / self._counts[name]).float().cpu().numpy() for name, total in self._sums.items()
        }
        shared = {name: owner for name, owner in self._owners.items() if name != owner}
        return Grams(tensors, shared, self._tokens)


def _tokens_of(given: Tensor, mask: Tensor, name: str) -> Tensor:
    """The rows of a layer's input that belong to tokens: (tokens, in)."""
    for shape in (mask.shape, (mask.numel(),)):
        if given.shape[:-1] == shape:
            return given.reshape(-1, given.shape[-1])[mask.reshape(-1).bool()]
    if given.shape[:-1] == mask.shape[:1]:
        return given
    raise InputError(
        f"the input of {name} has the shape {tuple(given.shape)} for {tuple(mask.shape)} tokens: "
        "there is no telling which of it is padding"
    )
