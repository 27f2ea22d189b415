"""What becomes of each module when three adapters are combined, by kind of adapter."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from langmerge.adapters import ia3, lora, prefix
from langmerge.adapters.measures import measured, said_of
from langmerge.adapters.reading import PROMPT, Adapter
from langmerge.adapters.three import Three, Transfer
from langmerge.adapters.writing import (
    Piece,
    dtype_of,
    lora_config,
    rounded_by_scaling,
    targeted,
)
from langmerge.errors import InputError

# LoRA.


def _blocks(three: Three, module: str, t: float) -> tuple[list[lora.Factors], list[lora.Factors]]:
    """P1's update (nothing where it has none), and t (P2 − P3)."""
    own = [three.one.factors(module)] if module in three.one.keys else []
    if module not in three.two.keys:
        return own, []
    return own, [three.two.factors(module).times(t), three.three.factors(module).times(-t)]


def _plan_lora(three: Three, asked: Transfer, mode: str) -> list[Piece]:
    rank = asked.rank or max(three.one.shapes(module)[0][0] for module in three.one.keys)
    if mode == "factors":
        check_factors(three)
    return [_lora_piece(three, module, asked, mode, rank) for module in three.modules]


def _lora_piece(three: Three, module: str, asked: Transfer, mode: str, rank: int) -> Piece:
    holder = three.one if module in three.one.keys else three.two
    own = [adapter for adapter in three.all if module in adapter.keys]
    ranks = [adapter.shapes(module)[0][0] for adapter in own]
    rows, columns = holder.size(module)
    made = {"product": sum(ranks), "svd": min(rank, sum(ranks), rows, columns), "factors": ranks[0]}[mode]
    return Piece(
        module,
        holder.keys[module],
        ((made, columns), (rows, made)),
        dtype_of(own, module, asked.dtype),
        partial(_lora_made, three, module, asked, mode, made),
    )


def _lora_made(
    three: Three, module: str, asked: Transfer, mode: str, rank: int
) -> tuple[Sequence[Tensor], dict[str, Any]]:
    own, moved = _blocks(three, module, asked.t)
    blocks = [*own, *moved]
    task, moved_by, cosine = lora.compare(own, moved)
    said = said_of(task, moved_by / abs(asked.t), math.copysign(1.0, asked.t) * cosine)
    if mode == "product":
        result = lora.stacked(blocks)
        quotients = [one.scale / result.scale for one in blocks]
        rounding = rounded_by_scaling(quotients, dtype_of(three.all, module, asked.dtype))
        if rounding:
            said["rounding"] = rounding
    elif mode == "svd":
        result, lost, whole = lora.recompressed(blocks, rank)
        said |= {"lost": lost, "merged": whole}
    else:
        p1, p2, p3 = (adapter.factors(module) for adapter in three.all)
        result = lora.factors_apart(p1, p2, p3, asked.t)
        said |= {"lost": lora.norm([result, *(one.times(-1) for one in blocks)]), "merged": lora.norm(blocks)}
        said["shared"] = min(lora.correlation(p1.a, p2.a), lora.correlation(p2.a, p3.a))
    return (result.a, result.b), said


def check_factors(three: Three) -> None:
    """Raise unless A can be added to A and B to B.

    Raises:
        InputError: a module that one of the adapters lacks, or other ranks or scales.
    """
    for module in three.modules:
        for adapter in three.all:
            if module not in adapter.keys:
                raise InputError(f"mode factors adds A to A and B to B: {adapter} has none for {module!r}")
            mine, its = three.one, adapter
            if (mine.shapes(module), mine.scale(module)) != (its.shapes(module), its.scale(module)):
                raise InputError(
                    f"mode factors needs equal ranks and scales: {module!r} has rank {mine.shapes(module)[0][0]}, scale "
                    f"{mine.scale(module):g} in {mine} and {its.shapes(module)[0][0]}, {its.scale(module):g} in {its}"
                )


def _configured_lora(three: Three, pieces: Sequence[Piece], asked: Transfer, mode: str) -> dict[str, Any]:
    ranks = {piece.module: piece.shapes[0][0] for piece in pieces}
    scales = {}
    for module in ranks:
        holder = three.one if module in three.one.keys else three.two
        before = 1.0 if holder is three.one else asked.t
        scales[module] = 1.0 if mode == "svd" else before * holder.scale(module)
    return lora_config(three.all, ranks, scales)


# (IA)³.


def _plan_ia3(three: Three, asked: Transfer, mode: str) -> list[Piece]:
    # Every fault of every module is known before the first is written.
    if asked.clip is None:
        _check_vectors(three)
    return [
        Piece(
            module,
            holder.keys[module],
            holder.shapes(module),
            dtype_of([one for one in three.all if module in one.keys], module, asked.dtype),
            partial(_ia3_made, three, module, asked, mode),
        )
        for module in three.modules
        for holder in [three.one if module in three.one.keys else three.two]
    ]


def _check_vectors(three: Three) -> None:
    found = []
    for module in three.two.keys:
        two, other = three.two.tensor(module), three.three.tensor(module)
        for place in ia3.faulty(two, other).flatten().nonzero().flatten().tolist():
            found.append(
                f"{module!r} entry {place}: {float(two.flatten()[place]):.3g} / {float(other.flatten()[place]):.3g}"
            )
    if found:
        more = f" … and {len(found) - 3} more" if len(found) > 3 else ""
        raise InputError(
            f"no ratio of {three.two} to {three.three} where l3 is near 0 or signs differ: {'; '.join(found[:3])}{more}; "
            "say --clip 2 to hold ratios within [1/2, 2]"
        )


def _ia3_made(
    three: Three, module: str, asked: Transfer, mode: str
) -> tuple[Sequence[Tensor], dict[str, Any]]:
    holder = three.one if module in three.one.keys else three.two
    # A module without a vector is multiplied by 1.
    one = three.one.tensor(module) if module in three.one.keys else torch.ones(holder.size(module))
    if module not in three.two.keys:
        return [one], said_of(float((one - 1).double().norm()), 0.0, 0.0)
    two, other = three.two.tensor(module), three.three.tensor(module)
    ratio, clipped = ia3.quotient(two, other, asked.clip)
    result = (ia3.by_ratio if mode == "ratio" else ia3.geometric)(one, ratio, asked.t)
    said = said_of(*measured(one - 1, two - other))
    return [result], said | ({"clipped": clipped} if asked.clip is not None else {})


def _configured_ia3(three: Three, pieces: Sequence[Piece], asked: Transfer, mode: str) -> dict[str, Any]:  # noqa: ARG001
    return ia3_config(three.all, pieces)


def ia3_config(adapters: Sequence[Adapter], pieces: Sequence[Piece]) -> dict[str, Any]:
    """adapter_config.json; a vector that multiplies a module's input is a row."""
    config = targeted(adapters, [piece.module for piece in pieces])
    if config["target_modules"] != adapters[0].config.get("target_modules"):
        config["feedforward_modules"] = [one.module for one in pieces if one.shapes[0][0] == 1]
    return config


# Prefixes.


def _plan_prefix(three: Three, asked: Transfer, mode: str) -> list[Piece]:
    for adapter in three.all[1:]:
        if (adapter.layers, adapter.size(PROMPT)) != (three.one.layers, three.one.size(PROMPT)):
            raise InputError(
                f"prefixes must have the same layers and virtual tokens: {three.one} has {three.one.layers} and "
                f"{three.one.size(PROMPT)[0]}, {adapter} has {adapter.layers} and {adapter.size(PROMPT)[0]}"
            )
    return [
        Piece(
            PROMPT,
            three.one.keys[PROMPT],
            three.one.shapes(PROMPT),
            dtype_of(three.all, PROMPT, asked.dtype),
            partial(_prefix_made, three, asked.t, mode),
        )
    ]


def _prefix_made(three: Three, t: float, mode: str) -> tuple[Sequence[Tensor], dict[str, Any]]:
    layers = three.one.layers
    p1, p2, p3 = (prefix.by_layer(adapter.tensor(PROMPT), layers) for adapter in three.all)
    result = torch.stack([prefix.moved(*one, t, form=mode) for one in zip(p1, p2, p3, strict=True)])
    full = sum(prefix.row_rank(one) == p3.shape[1] for one in p3)
    said = said_of(*measured(p1, p2 - p3))
    by_place = {
        f"layers.{place // 2}.{'key' if place % 2 == 0 else 'value'}": said_of(*measured(p1[place], p2[place] - p3[place]))
        for place in range(2 * layers)
    }  # fmt: skip
    said |= {"full_rank": f"{full} of {2 * layers}", "places": by_place}
    return [prefix.as_table(result)], said


def _configured_prefix(three: Three, pieces: Sequence[Piece], asked: Transfer, mode: str) -> dict[str, Any]:  # noqa: ARG001
    return prefix_config(three.one)


def prefix_config(adapter: Adapter) -> dict[str, Any]:
    """adapter_config.json; what is stored is the table itself, whatever drew it in training."""
    return {**adapter.config, "prefix_projection": False, "inference_mode": True}


_Plan = Callable[[Three, Transfer, str], list[Piece]]
PLANS: dict[str, _Plan] = {"lora": _plan_lora, "ia3": _plan_ia3, "prefix": _plan_prefix}
CONFIGS = {"lora": _configured_lora, "ia3": _configured_ia3, "prefix": _configured_prefix}
