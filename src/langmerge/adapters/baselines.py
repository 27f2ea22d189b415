"""What AdaMergeX is compared with: the published weighted sum, and adapters whose layers are exchanged."""

from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from langmerge.adapters.checks import check_together
from langmerge.adapters.measures import layer_of
from langmerge.adapters.reading import Adapter, open_parsed
from langmerge.adapters.rules import check_factors
from langmerge.adapters.three import Three, Transfer, checked
from langmerge.adapters.writing import KEEP, Piece, dtype_of, kept_piece, write_adapter
from langmerge.checkpoint import check_output
from langmerge.errors import InputError


def arimerge(
    out: Path, *, task_source: Path, reference_target: Path, reference_source: Path, c: float
) -> dict[str, Any]:
    """Write the arithmetic merge that AdaMergeX is published against: every tensor by weights, whatever it does.

    LoRA: B = (1 − c) B1 + c B2 − c B3, A = (1 − c) A1 + c A2 + c A3. Others: (1 − c) l1 + c l2 − c l3.

    Raises:
        InputError: c is not in (0, 1), or factors of other ranks; and see `transfer_adapter`.
    """
    check_output(out)
    if not 0 < c < 1:
        raise InputError(f"c = {c:g}: give a number between 0 and 1")
    three = Three(*(open_parsed(folder) for folder in (task_source, reference_target, reference_source)))
    checked(three, Transfer())
    if three.one.kind == "lora":
        check_factors(three)
    signs = {0: (1 - c, c, c), 1: (1 - c, c, -c)} if three.one.kind == "lora" else {0: (1 - c, c, -c)}

    def made(module: str) -> tuple[Sequence[Tensor], dict[str, Any]]:
        tensors = []
        for place, weights in signs.items():
            read = [one.checkpoint.read_finite(one.keys[module][place]) for one in three.all]
            tensors.append(weights[0] * read[0] + weights[1] * read[1] + weights[2] * read[2])
        return tensors, {}

    for module in three.modules:
        if any(module not in one.keys for one in three.all):
            raise InputError(f"AriMerge adds tensor to tensor: {module!r} is not in all three adapters")
    return _written(out, three.one, three.modules, made, {"how": "arimerge", "c": c})


def layer_swap(out: Path, *, task: Path, language: Path, layers: Collection[int]) -> dict[str, Any]:
    """Write the task adapter with some layers of the language's (Bandarkar et al. 2024 swap the first and the last).

    Raises:
        InputError: no module lies in these layers, or the adapters have other modules or shapes.
    """
    check_output(out)
    one, other = open_parsed(task), open_parsed(language)
    check_together({"the task adapter": one, "the language adapter": other}, same_base=False)
    swapped = {module for module in one.keys if layer_of(module) in layers}
    if not swapped:
        raise InputError(f"{one} has no module in layers {sorted(layers)}")
    for module in swapped:
        if module not in other.keys or one.shapes(module) != other.shapes(module):
            raise InputError(
                f"{module!r} is not of the same shape in {one} and {other}: its layer cannot be exchanged"
            )
        if one.kind == "lora" and one.scale(module) != other.scale(module):
            raise InputError(
                f"{module!r} has scale {one.scale(module):g} in {one}, {other.scale(module):g} in {other}"
            )

    def made(module: str) -> tuple[Sequence[Tensor], dict[str, Any]]:
        holder = other if module in swapped else one
        return [holder.checkpoint.read_finite(key) for key in holder.keys[module]], {}

    return _written(out, one, list(one.keys), made, {"how": "layer swap", "layers": sorted(layers)})


def emptied(out: Path, *, task: Path) -> dict[str, Any]:
    """Write an adapter that does nothing but bring the task's head: what the base alone knows.

    Raises:
        InputError: a prefix, which cannot do nothing.
    """
    check_output(out)
    one = open_parsed(task)
    if one.kind == "prefix":
        raise InputError(f"{one} is a prefix: there is none that changes nothing")

    def made(module: str) -> tuple[Sequence[Tensor], dict[str, Any]]:
        read = [one.checkpoint.read_finite(key) for key in one.keys[module]]
        return [read[0], 0 * read[1]] if one.kind == "lora" else [torch.ones_like(read[0])], {}

    return _written(out, one, list(one.keys), made, {"how": "emptied"})


def _written(
    out: Path,
    one: Adapter,
    modules: Sequence[str],
    made: Callable[[str], tuple[Sequence[Tensor], dict[str, Any]]],
    said: dict[str, Any],
) -> dict[str, Any]:
    """Modules of P1's shapes, its config and its head."""
    pieces = [
        Piece(
            module, one.keys[module], one.shapes(module), dtype_of([one], module, KEEP), partial(made, module)
        )
        for module in modules
    ]
    record = {
        **said,
        "kind": one.kind,
        "pretrained": one.record.get("pretrained"),
        "labels": one.record.get("labels"),
    }
    config = {**one.config, "prefix_projection": False} if one.kind == "prefix" else dict(one.config)
    kept = [kept_piece(one, name) for name in one.whole]
    return write_adapter(out, config, [*pieces, *kept], lambda _: record, companions=one.folder)
