"""What adapters trained as a whole (heads), averaged row by label name."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from langmerge.adapters.reading import Adapter
from langmerge.adapters.writing import Piece, dtype_of_keys, kept_piece
from langmerge.checkpoint import label_names, read_json
from langmerge.engine.labels import is_label_row
from langmerge.errors import InputError

BY_NAME, BY_POSITION = "names", "position"


def labels_of(adapter: Adapter) -> tuple[str, ...] | None:
    """The labels of an adapter's head, in order: as langmerge recorded them, or as its base's config names them."""
    if labels := adapter.record.get("labels"):
        return tuple(labels)
    named = adapter.config.get("base_model_name_or_path")
    config = Path(named).expanduser() / "config.json" if named else None
    if config is None or not config.is_file():
        return None
    found = label_names(read_json(config))
    rows = {
        adapter.checkpoint.tensors[key].shape[0] for name, key in adapter.whole.items() if is_label_row(name)
    }
    return found if found and rows == {len(found)} else None


def head_pieces(
    adapters: Mapping[str, Adapter], weights: Mapping[str, float], head: str
) -> tuple[list[Piece], tuple[str, ...] | None, Adapter]:
    """The head of a merge, its labels, and the adapter whose config says what the head is (the first one without a head).

    Args:
        adapters: by name.
        weights: by name; heads are averaged with w / Σ w.
        head: `names` matches rows by label names, `position` takes them as they lie; or the adapter whose head is kept.

    Raises:
        InputError: heads of other shapes, labels that differ or are not known, or weights that sum to nothing.
    """
    having = {name: one for name, one in adapters.items() if one.whole}
    if head not in (BY_NAME, BY_POSITION):
        if head not in having:
            raise InputError(
                f"--head {head}: give {BY_NAME}, {BY_POSITION} or one of {', '.join(having) or 'none'}"
            )
        having = {head: having[head]}
    if not having:
        return [], None, next(iter(adapters.values()))
    first = next(iter(having.values()))
    reference = labels_of(first)
    if len(having) == 1:
        return [kept_piece(first, one) for one in first.whole], reference, first
    _check_alike(having)
    orders = _orders(having) if head == BY_NAME else {}
    total = sum(weights[one] for one in having)
    if total <= 0:
        raise InputError(
            f"weights {[weights[one] for one in having]} give no average of the heads: name one with --head"
        )
    shares = [weights[one] / total for one in having]
    pieces = [_piece(list(having.values()), tensor, shares, orders) for tensor in first.whole]
    return pieces, reference, first


def _check_alike(having: Mapping[str, Adapter]) -> None:
    (name, first), *others = having.items()
    for other, one in others:
        if lone := set(first.whole) ^ set(one.whole):
            raise InputError(
                f"{min(lone)!r} was trained as a whole in one of {name} and {other} only: name the head to keep with --head"
            )
        for tensor in first.whole:
            shapes = [adapter.checkpoint.tensors[adapter.whole[tensor]].shape for adapter in (first, one)]
            if shapes[0] != shapes[1]:
                raise InputError(
                    f"{tensor!r} has shape {shapes[0]} in {name} and {shapes[1]} in {other}: heads of other tasks have no "
                    "average; name the one to keep with --head"
                )


def _orders(having: Mapping[str, Adapter]) -> dict[str, list[int]]:
    """Rows in the first adapter's order, by folder."""
    labels = {name: labels_of(one) for name, one in having.items()}
    if not any(is_label_row(tensor) for one in having.values() for tensor in one.whole):
        return {}
    (name, reference), *_ = labels.items()
    for other, own in labels.items():
        if own is None:
            raise InputError(
                f"the labels of {other}'s head are not known: say --head position if all heads have the same order, or name "
                "the one to keep"
            )
        if reference is not None and (set(own) != set(reference) or len(set(own)) < len(own)):
            raise InputError(
                f"{name} and {other} have other labels: {', '.join(sorted(set(own) ^ set(reference))[:5])}"
            )
    return {
        str(having[other]): [own.index(one) for one in reference]
        for other, own in labels.items()
        if own and reference
    }


def _piece(
    adapters: Sequence[Adapter], tensor: str, shares: Sequence[float], orders: Mapping[str, list[int]]
) -> Piece:
    first = adapters[0]
    key = first.whole[tensor]
    shape = first.checkpoint.tensors[key].shape
    dtype = dtype_of_keys([one.checkpoint.tensors[one.whole[tensor]].dtype for one in adapters])
    return Piece(tensor, (key,), (shape,), dtype, partial(_made, adapters, tensor, shares, orders))


def _made(
    adapters: Sequence[Adapter], tensor: str, shares: Sequence[float], orders: Mapping[str, list[int]]
) -> tuple[Sequence[Tensor], dict[str, Any]]:
    total: Any = 0.0
    for one, share in zip(adapters, shares, strict=True):
        found = one.checkpoint.read_finite(one.whole[tensor]).double()
        order = orders.get(str(one)) if is_label_row(tensor) else None
        total = total + share * (found if order is None else found[torch.tensor(order)])
    return [total], {}
