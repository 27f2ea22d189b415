"""AdaMergeX: a task adapter, moved from its language to another by what a reference task says of the two languages.

P1: the task in the source language; P2: the reference task in the target language; P3: the reference task in the source
language; t scales P2 − P3. Source: Zhao et al. 2024, "AdaMergeX: Cross-Lingual Transfer with Large Language Models via
Adaptive Adapter Merging". Additive for LoRA, multiplicative for (IA)³, a map among virtual tokens for prefixes.
"""

import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from langmerge.adapters.measures import by_layer, totals
from langmerge.adapters.reading import open_parsed
from langmerge.adapters.rules import CONFIGS, PLANS
from langmerge.adapters.three import Three, Transfer, checked
from langmerge.adapters.writing import Piece, kept_piece, write_adapter
from langmerge.checkpoint import check_output, check_outside
from langmerge.errors import InputError
from langmerge.progress import Progress, silent

SHARED = 0.3
"""Adapters whose A correlate by less (median over modules) did not begin at the same draw: independent draws of rank 8 stay
within 0.05 of 0 in every module, training took adapters of one draw down to 0.7 (0.47 in one module)."""

_HEAD = re.compile(r"^(classifier|score|lm_head|cls|qa_outputs|classification_head|pre_classifier|pooler)\b")


def transfer_adapter(
    out: Path,
    *,
    task_source: Path,
    reference_target: Path,
    reference_source: Path,
    asked: Transfer | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Write the task adapter for the target language, from adapter files alone.

    What P1 trained as a whole (its head) is kept as it is; other heads are left out.

    Args:
        out: the new folder.
        task_source: P1.
        reference_target: P2.
        reference_source: P3.
        asked: settings; the defaults if None.
        overwrite: replace `out`.
        progress: told of modules.

    Returns:
        The record beside the adapter: inputs, settings, per module and per layer ‖P2 − P3‖ / ‖P1‖ and the cosine between
        them, errors of truncation, clipped entries, notes.

    Raises:
        CheckpointError: an adapter cannot be read, or has what has no exact rule.
        InputError: they do not fit together, a setting is wrong, or the result would be P1.
        OutputError: `out`.
    """
    asked = asked or Transfer()
    check_output(out, overwrite=overwrite)
    three = Three(*(open_parsed(folder) for folder in (task_source, reference_target, reference_source)))
    check_outside(out, (one.folder for one in three.all))
    mode = checked(three, asked)
    pieces = PLANS[three.one.kind](three, asked, mode)
    kept, left_out = _whole(three)
    config = CONFIGS[three.one.kind](three, pieces, asked, mode)
    return write_adapter(
        out,
        config,
        [*pieces, *kept],
        lambda said: _record(three, asked, mode, said, left_out),
        companions=three.one.folder,
        overwrite=overwrite,
        progress=progress,
    )


def _whole(three: Three) -> tuple[list[Piece], list[str]]:
    """P1's tensors, and what of the references is left out."""
    named = {name for adapter in three.all for name in adapter.whole if not _HEAD.match(name)}
    if named:
        raise InputError(
            f"{min(named)!r} was trained as a whole and is no head: there is no rule for it beside {three.one.kind}"
        )
    left = sorted({name for adapter in three.all[1:] for name in adapter.whole})
    return [kept_piece(three.one, name) for name in three.one.whole], left


def _record(
    three: Three, asked: Transfer, mode: str, said: Mapping[str, dict[str, Any]], left_out: Sequence[str]
) -> dict[str, Any]:
    """What is kept beside the adapter.

    Raises:
        InputError: the references are the same everywhere.
    """
    if not any(one["divergence"] for one in said.values()):
        raise InputError(
            f"{three.two} and {three.three} do the same everywhere: nothing would be transferred to {three.one}"
        )
    roles = ("task_source", "reference_target", "reference_source")
    return {
        "how": "transfer",
        "kind": three.one.kind,
        "inputs": {
            role: {"folder": str(one.folder.absolute()), "signature": one.signature()}
            for role, one in zip(roles, three.all, strict=True)
        },
        "settings": {
            "t": asked.t,
            "mode": mode,
            "rank": asked.rank,
            "clip": asked.clip,
            "dtype": asked.dtype,
        },
        "pretrained": three.one.record.get("pretrained"),
        "labels": three.one.record.get("labels"),
        "totals": totals(said.values()),
        "layers": by_layer(said),
        "modules": dict(said),
        "left_out": list(left_out),
        "notes": _notes(three, mode, said),
    }


def _notes(three: Three, mode: str, said: Mapping[str, Mapping[str, Any]]) -> list[str]:
    notes = []
    if more := [module for module in three.two.keys if module not in three.one.keys]:
        notes.append(f"{len(more)} modules that only the references change are added, such as {more[0]}")
    if fewer := [module for module in three.one.keys if module not in three.two.keys]:
        notes.append(
            f"{len(fewer)} modules stay the task's own: the references have none, such as {fewer[0]}"
        )
    if mode == "factors":
        error, shared = (
            totals(said.values())["error"],
            statistics.median(one["shared"] for one in said.values()),
        )
        if shared < SHARED:
            notes.append(
                f"the adapters did not begin at the same draw (A correlates by {shared:.2f}): adding A to A "
                "mixes coordinates that mean nothing to each other; use mode product"
            )
        notes.append(f"cross terms are {100 * error:.1f} % of the exact update")
    if any(one.get("rounding") for one in said.values()):
        largest = max(one.get("rounding", 0.0) for one in said.values())
        notes.append(
            f"scaling B rounded it by {largest:.1e} of its size at most: --dtype float32 keeps it exact"
        )
    return notes
