"""From a plan to a model folder: a stream over tensors, then one rename."""

import json
import math
import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from langmerge.checkpoint import (
    DTYPES,
    Slot,
    WeightWriter,
    check_output,
    check_outside,
    new_folder,
    read_json,
)
from langmerge.coefficients import group_of
from langmerge.engine.faults import zero_delta
from langmerge.engine.plan import Plan, TensorPlan
from langmerge.engine.planning import AnyRecipe, make_plan
from langmerge.engine.receipt import model_card, receipt
from langmerge.engine.stream import Stream, TensorResult
from langmerge.errors import PlanError
from langmerge.progress import Progress, silent

if TYPE_CHECKING:
    from torch import Tensor

CARRIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "sentencepiece.bpe.model",
    "spiece.model",
    "tokenizer.model",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
)
"""Files beside the weights that a model needs and the output gets, where the donor has them."""

_TORCH_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""What config.json calls a dtype; weights in 8 bits are not named there."""


@dataclass(frozen=True)
class MergedTensor:
    """One tensor of the result, float32 (or as stored, where it is no floating-point tensor)."""

    plan: TensorPlan
    tensor: "Tensor"
    treatment: str
    delta_norm: float
    mean_source_norm: float


def merged_tensors(plan: Plan, *, threads: int | None = None, device: str = "cpu") -> Iterator[MergedTensor]:
    """The tensors of the result, one at a time, in the order of `plan.written`.

    Raises:
        CheckpointError: a tensor holds NaN or infinity, in a source or in the result.
    """
    from langmerge.checkpoint.tensors import to_tensor

    wide = [replace(t, dtype="F32") if t.dtype.startswith(("F", "BF")) else t for t in plan.written]
    held = {t.name: np.empty(math.prod(t.shape), DTYPES[t.dtype]) for t in wide}

    def keep(tensor: TensorPlan, start: int, data: Any) -> None:
        raw = memoryview(data).cast("B")
        held[tensor.name].view(np.uint8)[start : start + len(raw)] = raw

    for tensor, result in zip(plan.written, Stream(plan, threads, device).run(wide, keep), strict=True):
        flat = held.pop(tensor.name)
        yield MergedTensor(
            tensor,
            to_tensor(flat, result.plan.dtype).reshape(tensor.shape),
            result.treatment,
            result.delta_norm,
            result.mean_source_norm,
        )


def merge(
    recipe: AnyRecipe,
    out: Path | str,
    *,
    overwrite: bool = False,
    max_shard: int = 5_000_000_000,
    threads: int | None = None,
    device: str = "cpu",
    progress: Progress = silent,
) -> Path:
    """Merge, and write a Hugging Face folder with receipt and model card; it appears whole or not at all.

    Args:
        recipe: what to merge: native, or mergekit's.
        out: the new folder.
        overwrite: replace it if it exists.
        max_shard: largest weight file, in bytes.
        threads: that work at once, all cores by default; their number changes no byte.
        device: for methods that torch computes.
        progress: told about every tensor.

    Returns:
        The folder.

    Raises:
        PlanError: the recipe cannot be carried out; lists every fault.
        OutputError: `out` exists, holds one of the inputs, or cannot be written.
        CheckpointError: a tensor holds NaN or infinity, or the result does not fit its dtype.
        InputError: the device is not there.
    """
    out = Path(out)
    check_output(out, overwrite=overwrite)
    plan = make_plan(recipe)
    read = [*(c.folder for c in plan.checkpoints), *(one.file for one in plan.statistics.values())]
    check_outside(out, read)
    slots = [Slot(tensor.name, tensor.shape, tensor.dtype) for tensor in plan.written]
    stream = Stream(plan, threads, device)
    results: list[TensorResult] = []
    with new_folder(out, overwrite=overwrite) as folder:
        with (
            WeightWriter(folder, slots, max_shard=max_shard) as writer,
            progress(f"merging by {plan.method}", len(slots)) as advance,
            # Closed whatever happens here: no thread may write when the files are closed.
            closing(
                stream.run(plan.written, lambda t, start, data: writer.write(t.name, start, data))
            ) as merged,
        ):
            for result in merged:
                results.append(result)
                advance(1)
        _check_deltas(plan, results)
        _write_companions(plan, folder)
        record = receipt(plan, [_entry(one) for one in results], stream.digests, torch=stream.by_torch)
        (folder / "langmerge.json").write_text(
            json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        (folder / "README.md").write_text(model_card(plan, record), encoding="utf-8")
    return out


def _check_deltas(plan: Plan, results: list[TensorResult]) -> None:
    """A source that has not moved anywhere is the base by mistake; small models were found out by the plan."""
    base = plan.base
    if base is None or plan.coefficients is None:
        return
    measured = [result for result in results if result.source_norms]
    still = [
        name
        for place, name in enumerate(plan.sources)
        if measured and not any(result.source_norms[place] for result in measured)
    ]
    if still:
        raise PlanError([zero_delta(name, plan.sources[name], base) for name in still])


def _entry(one: TensorResult) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "tensor": one.plan.name,
        "group": group_of(one.plan.name),
        "treatment": one.treatment,
    }
    reason = "the same in the base and every source" if one.treatment == "unchanged" else one.plan.reason
    if reason:
        entry["reason"] = reason
    if one.mean_source_norm > 0:
        entry["delta_norm"] = round(one.delta_norm, 6)
        entry["mean_source_delta_norm"] = round(one.mean_source_norm, 6)
    return entry


def _write_companions(plan: Plan, folder: Path) -> None:
    companions = plan.companions
    config = {**read_json(companions.donor / "config.json"), **companions.config}
    stored = {tensor.dtype for tensor in plan.written if tensor.dtype in _TORCH_NAMES}
    if len(stored) == 1:
        # from_pretrained loads in this dtype: the donor's own may be another.
        config["dtype"] = _TORCH_NAMES[stored.pop()]
        config.pop("torch_dtype", None)
    (folder / "config.json").write_text(
        json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    for name in CARRIED:
        if name in companions.tokenizer:
            (folder / name).write_bytes(companions.tokenizer[name])
            continue
        for holder in companions.tokenizers:
            if (holder / name).exists():
                shutil.copyfile(holder / name, folder / name)
                break
    if companions.chat_template is not None:
        (folder / "chat_template.jinja").write_text(companions.chat_template, encoding="utf-8")
