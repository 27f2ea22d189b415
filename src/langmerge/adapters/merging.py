"""Any number of adapters into one: exact sums, best approximations, and methods on products or in their core space."""

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from langmerge.adapters import ia3, lora
from langmerge.adapters.checks import check_together
from langmerge.adapters.heads import BY_NAME, head_pieces
from langmerge.adapters.reading import PROMPT, Adapter, open_parsed
from langmerge.adapters.rules import ia3_config, prefix_config
from langmerge.adapters.writing import KEEP, Piece, dtype_of, lora_config, rounded_by_scaling, write_adapter
from langmerge.checkpoint import check_output, check_outside
from langmerge.errors import InputError, MethodError
from langmerge.methods import METHODS, checked_parameters, require_weights, statistics_of
from langmerge.progress import Progress, silent

MODES = {"lora": ("cat", "svd", "product", "core"), "ia3": ("linear", "geometric"), "prefix": ("linear",)}
"""How each kind is merged; the first is the default."""

_OF_HEAD = ("modules_to_save", "task_type", "base_model_name_or_path", "revision", "auto_mapping")

WITH_METHODS = ("product", "core")
SUM = "task_arithmetic"


@dataclass(frozen=True)
class Merging:
    """How adapters become one.

    Attributes:
        mode: see `MODES`. cat: the exact weighted sum, its rank the sum of the ranks; svd: the best of a given rank.
            product: a method on the updates multiplied out, brought back to a given rank; core: a method on the small
            cores of all updates in common bases, exact apart from the method.
        method: with product and core: one of `METHODS` that reads nothing but task vectors.
        parameters: of the method.
        rank: of the result of svd and product; the largest of the adapters' (svd) or their sum (product) by default.
        head: what becomes of heads: see `head_pieces`.
        dtype: float32, bfloat16, float16, or keep: the widest of those stored.
        same_base: the adapters' bases are the same model, whatever they are called.
    """

    mode: str | None = None
    method: str = SUM
    parameters: Mapping[str, Any] = field(default_factory=dict)
    rank: int | None = None
    head: str = BY_NAME
    dtype: str = KEEP
    same_base: bool = False


@dataclass(frozen=True)
class _Work:
    """What is merged, checked."""

    adapters: Mapping[str, Adapter]
    weights: tuple[float, ...]
    asked: Merging
    mode: str

    @property
    def all(self) -> tuple[Adapter, ...]:
        return tuple(self.adapters.values())

    @property
    def modules(self) -> list[str]:
        return list(dict.fromkeys(module for adapter in self.all for module in adapter.keys))

    def having(self, module: str) -> list[tuple[float, Adapter]]:
        """Weights and adapters that have a module."""
        return [(w, one) for w, one in zip(self.weights, self.all, strict=True) if module in one.keys]


def merge(
    out: Path,
    adapters: Mapping[Path, float],
    *,
    asked: Merging | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Write the merge of adapters of one kind on one base, from their files alone.

    LoRA: Σ w ΔW. (IA)³: 1 + Σ w (l − 1), or Π l^w. Prefix: Σ w P. Ranks, alphas and modules may differ.

    Args:
        out: the new folder.
        adapters: folders and their weights.
        asked: settings; the defaults if None.
        overwrite: replace `out`.
        progress: told of modules.

    Returns:
        The record beside the adapter: inputs, weights, settings, the error of truncation, cosines between the updates.

    Raises:
        CheckpointError: an adapter cannot be read, or has what has no exact rule.
        InputError: they do not fit together, a setting is wrong, or the result would be one of them.
        MethodError: the method, its parameters or weights.
        OutputError: `out`.
    """
    asked = asked or Merging()
    check_output(out, overwrite=overwrite)
    work = _checked(adapters, asked)
    check_outside(out, (one.folder for one in work.all))
    first = work.all[0]
    kept, labels, headed = head_pieces(
        work.adapters, dict(zip(work.adapters, work.weights, strict=True)), asked.head
    )
    pieces = [_PIECES[first.kind](work, module) for module in work.modules]
    return write_adapter(
        out,
        # What the head is, and where: a task's adapter may come after a language's.
        _config(work, pieces) | {key: headed.config[key] for key in _OF_HEAD if key in headed.config},
        [*pieces, *kept],
        lambda said: _record(work, said, labels),
        companions=headed.folder,
        overwrite=overwrite,
        progress=progress,
    )


def _checked(adapters: Mapping[Path, float], asked: Merging) -> _Work:
    opened = {folder.name: open_parsed(folder) for folder in adapters}
    if len(opened) < len(adapters):
        opened = {str(folder): open_parsed(folder) for folder in adapters}
    weights = tuple(adapters.values())
    if not opened:
        raise InputError("no adapters to merge: give FOLDER:WEIGHT, two or more")
    for name, weight in zip(opened, weights, strict=True):
        if not math.isfinite(weight) or weight == 0:
            raise InputError(
                f"weight {weight:g} of {name}: give a finite number that is not 0, or leave the adapter out"
            )
    check_together(opened, same_base=asked.same_base)
    kind = next(iter(opened.values())).kind
    mode = asked.mode or ("core" if kind == "lora" and asked.method != SUM else MODES[kind][0])
    if mode not in MODES[kind]:
        raise InputError(f"mode {mode!r} is not for {kind}: give {' or '.join(MODES[kind])}")
    if mode in WITH_METHODS:
        _check_method(asked, weights)
    elif asked.method != SUM or asked.parameters:
        raise InputError(
            f"mode {mode} is a sum: methods and their parameters are for {' and '.join(WITH_METHODS)}"
        )
    if asked.rank is not None and (mode not in ("svd", "product") or asked.rank < 1):
        raise InputError(f"rank {asked.rank}: for modes svd and product, 1 or more")
    if len(opened) == 1 and weights == (1.0,) and mode not in ("svd", *WITH_METHODS):
        raise InputError(
            f"{next(iter(opened))} alone with weight 1 stays as it is: there is nothing to merge"
        )
    if kind == "prefix":
        _check_prefixes(opened)
    if kind == "ia3" and mode == "geometric":
        _check_signs(opened)
    return _Work(opened, weights, asked, mode)


def _check_method(asked: Merging, weights: Sequence[float]) -> None:
    parameters = checked_parameters(asked.method, asked.parameters, sources=len(weights))
    taken = inspect.signature(METHODS[asked.method]).parameters
    if (
        statistics_of(asked.method, asked.parameters)
        or "block" in taken
        or parameters.get("scope") == "model"
    ):
        raise MethodError(f"{asked.method} reads more than the updates of one module: choose another method")
    require_weights(asked.method, weights, normalize=bool(parameters.get("normalize", True)))


def _check_prefixes(opened: Mapping[str, Adapter]) -> None:
    (name, first), *others = opened.items()
    for other, one in others:
        if one.layers != first.layers:
            raise InputError(f"{name} has prefixes for {first.layers} layers, {other} for {one.layers}")


def _check_signs(opened: Mapping[str, Adapter]) -> None:
    for module in dict.fromkeys(module for one in opened.values() for module in one.keys):
        vectors = [one.tensor(module) if module in one.keys else None for one in opened.values()]
        like = next(one for one in vectors if one is not None)
        bad = ia3.signs_differ([torch.ones_like(like) if one is None else one for one in vectors])
        if bool(bad.any()):
            place = int(bad.flatten().nonzero()[0])
            raise InputError(
                f"no geometric mean of {module!r} entry {place}: it is near 0, or signs differ; use mode linear"
            )


# One module.


def _lora_piece(work: _Work, module: str) -> Piece:
    having = work.having(module)
    holder = having[0][1]
    total = sum(adapter.shapes(module)[0][0] for _, adapter in having)
    rows, columns = holder.size(module)
    largest = max(adapter.shapes(module)[0][0] for adapter in work.all for module in adapter.keys)
    made = {
        "cat": total,
        "svd": min(work.asked.rank or largest, total, rows, columns),
        "product": min(work.asked.rank or total, rows, columns),
        "core": min(total, rows, columns),
    }[work.mode]
    return Piece(
        module,
        holder.keys[module],
        ((made, columns), (rows, made)),
        dtype_of([one for _, one in having], module, work.asked.dtype),
        partial(_lora_made, work, module, made),
    )


def _lora_made(work: _Work, module: str, rank: int) -> tuple[Sequence[Tensor], dict[str, Any]]:
    having = work.having(module)
    blocks = [adapter.factors(module).times(weight) for weight, adapter in having]
    said: dict[str, Any] = {"gram": _gram(work, module, blocks)}
    if work.mode == "cat":
        result = lora.stacked(blocks)
        dtype = dtype_of([one for _, one in having], module, work.asked.dtype)
        said["rounding"] = rounded_by_scaling([one.scale / result.scale for one in blocks], dtype)
    elif work.mode == "svd":
        result, said["lost"], said["merged"] = lora.recompressed(blocks, rank)
    elif work.mode == "product":
        rows, columns = having[0][1].size(module)
        merged = _by_method(work, module, lambda one: one.product(), (rows, columns))
        result, said["lost"], said["merged"] = lora.of_matrix(merged, rank)
    else:
        bases = lora.Bases.of([one.factors(module) for _, one in having])
        shape = (bases.left.shape[1], bases.right.shape[0])
        result = bases.factors(_by_method(work, module, bases.core, shape))
    return (result.a, result.b), said


def _by_method(work: _Work, module: str, form: Any, shape: tuple[int, int]) -> Tensor:
    """The method on every adapter's update in some form; an adapter without the module has the update 0."""
    updates = [form(one.factors(module)) if module in one.keys else torch.zeros(shape) for one in work.all]
    function = METHODS[work.asked.method]
    taken = inspect.signature(function).parameters
    supplied = {"key": module, "sources": list(work.adapters)}
    given = {key: value for key, value in supplied.items() if key in taken} | {
        # Whole or by tensor: a module is one tensor here.
        key: value for key, value in work.asked.parameters.items() if key != "scope"
    }  # fmt: skip
    return function(torch.zeros(shape), torch.stack(updates), torch.tensor(work.weights), **given)


def _gram(work: _Work, module: str, blocks: Sequence[lora.Factors]) -> list[list[float]]:
    """Inner products of the weighted updates; 0 where an adapter has none."""
    places = [place for place, one in enumerate(work.all) if module in one.keys]
    found = [[0.0] * len(work.all) for _ in work.all]
    for i, row in zip(places, lora.gram(blocks).tolist(), strict=True):
        for j, value in zip(places, row, strict=True):
            found[i][j] = value
    return found


def _ia3_piece(work: _Work, module: str) -> Piece:
    having = work.having(module)
    holder = having[0][1]

    def made() -> tuple[Sequence[Tensor], dict[str, Any]]:
        # A module without a vector is multiplied by 1, which changes neither sum nor product.
        vectors, weights = [one.tensor(module) for _, one in having], [weight for weight, _ in having]
        return [(ia3.summed if work.mode == "linear" else ia3.multiplied)(vectors, weights)], {}

    dtype = dtype_of([one for _, one in having], module, work.asked.dtype)
    return Piece(module, holder.keys[module], holder.shapes(module), dtype, made)


def _prefix_piece(work: _Work, module: str) -> Piece:
    holder = work.all[0]

    def made() -> tuple[Sequence[Tensor], dict[str, Any]]:
        tables = (weight * one.tensor(PROMPT) for weight, one in work.having(PROMPT))
        return [torch.as_tensor(sum(tables))], {}

    dtype = dtype_of(work.all, PROMPT, work.asked.dtype)
    return Piece(module, holder.keys[module], holder.shapes(module), dtype, made)


_PIECES = {"lora": _lora_piece, "ia3": _ia3_piece, "prefix": _prefix_piece}


def _config(work: _Work, pieces: Sequence[Piece]) -> dict[str, Any]:
    kind = work.all[0].kind
    if kind == "prefix":
        return prefix_config(work.all[0])
    if kind == "ia3":
        return ia3_config(work.all, pieces)
    ranks = {piece.module: piece.shapes[0][0] for piece in pieces}
    scales = dict.fromkeys(ranks, 1.0)
    if work.mode == "cat":
        for module in ranks:
            weight, holder = work.having(module)[0]
            scales[module] = weight * holder.scale(module)
    return lora_config(work.all, ranks, scales)


def _record(
    work: _Work, said: Mapping[str, Mapping[str, Any]], labels: tuple[str, ...] | None
) -> dict[str, Any]:
    rounding = max((one.get("rounding", 0.0) for one in said.values()), default=0.0)
    totals: dict[str, Any] = {}
    if any("lost" in one for one in said.values()):
        lost, merged = (math.sqrt(sum(one[key] ** 2 for one in said.values())) for key in ("lost", "merged"))
        totals["error"] = lost / merged if merged else 0.0
    if grams := [torch.tensor(one["gram"]) for one in said.values() if "gram" in one]:
        gram = torch.stack(grams).sum(0)
        size = gram.diagonal().clamp_min(1e-300).sqrt()
        totals["cosines"] = (gram / size[:, None] / size).tolist()
    notes = [f"scaling B rounded it by {rounding:.1e} of its size at most: --dtype float32 keeps it exact"]
    return {
        "how": "merge",
        "kind": work.all[0].kind,
        "inputs": {
            name: {"folder": str(one.folder.absolute()), "signature": one.signature(), "weight": weight}
            for (name, one), weight in zip(work.adapters.items(), work.weights, strict=True)
        },
        "settings": {
            "mode": work.mode, "method": work.asked.method if work.mode in WITH_METHODS else None,
            "parameters": dict(work.asked.parameters), "rank": work.asked.rank, "head": work.asked.head,
            "dtype": work.asked.dtype,
        },
        "pretrained": work.all[0].record.get("pretrained"),
        "labels": list(labels) if labels else None,
        "totals": totals,
        "modules": {name: {k: v for k, v in one.items() if k in ("lost", "merged")} for name, one in said.items()},
        "notes": notes if rounding else [],
    }  # fmt: skip
