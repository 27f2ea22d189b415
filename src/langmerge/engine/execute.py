"""From a plan to weights: a stream over tensors, then one rename."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from langmerge.checkpoint import DTYPES, Slot, check_output, new_folder, read_json, write_weights
from langmerge.coefficients import group_of
from langmerge.engine.plan import Plan, TensorPlan, make_plan
from langmerge.engine.receipt import model_card, receipt
from langmerge.engine.thresholds import model_thresholds
from langmerge.errors import CheckpointError, OutputError
from langmerge.methods import METHODS
from langmerge.progress import Progress, silent
from langmerge.recipe import Recipe

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

_ELEMENTWISE = frozenset({"dare_ties", "linear", "task_arithmetic", "ties"})
"""Methods that sum over no axis but the sources': the number of threads cannot change a bit of theirs."""


@dataclass(frozen=True)
class MergedTensor:
    """One tensor of the result, float32, with what the receipt says of it."""

    plan: TensorPlan
    tensor: Tensor
    treatment: str
    delta_norm: float
    mean_source_norm: float


def merged_tensors(plan: Plan) -> Iterator[MergedTensor]:
    """The tensors of the result, one at a time, in the order of `plan.written`.

    Raises:
        CheckpointError: a tensor holds NaN or infinity, in a source or in the result.
    """
    thresholds = model_thresholds(plan) if plan.parameters.get("scope") == "model" else None
    for tensor in plan.written:
        yield _merged(plan, tensor, thresholds)


def _merged(plan: Plan, tensor: TensorPlan, thresholds: dict[str, float] | None) -> MergedTensor:
    if tensor.treatment == "base":
        # Integer buffers included: read as stored, never through float32. Heads and the like come from the donor.
        holder, name = (plan.base, tensor.base_name) if tensor.base_name else (plan.donor, tensor.name)
        if holder.tensors[name].is_float:
            holder.read_finite(name)
        return MergedTensor(tensor, holder.read(name), "base", 0.0, 0.0)
    tuned = torch.stack([plan.source_rows(tensor, source) for source in plan.sources])
    base = plan.base.read_finite(tensor.base_name) if tensor.base_name else None
    # Without normalisation Σ w_i θ_i is not θ_0 even where all are equal.
    normal = tensor.treatment == "mean" or plan.parameters.get("normalize", True)
    if base is not None and normal and all(torch.equal(base, one) for one in tuned):
        return MergedTensor(tensor, base, "unchanged", 0.0, 0.0)
    result = _combined(plan, tensor, base, tuned, thresholds)
    if not bool(torch.isfinite(result).all()):
        raise CheckpointError(
            f"merging tensor {tensor.name!r} gave NaN or infinity: the coefficients or parameters are too large"
        )
    if base is None:
        return MergedTensor(tensor, result, tensor.treatment, 0.0, 0.0)
    norms = [_norm(one - base) for one in tuned]
    return MergedTensor(tensor, result, tensor.treatment, _norm(result - base), sum(norms) / len(norms))


def _norm(delta: Tensor) -> float:
    # In float64, so that the receipt's digits do not depend on how threads cut the sum.
    return float(torch.linalg.vector_norm(delta, dtype=torch.float64))


def _combined(
    plan: Plan, tensor: TensorPlan, base: Tensor | None, tuned: Tensor, thresholds: dict[str, float] | None
) -> Tensor:
    row = plan.coefficients.for_tensor(tensor.name)
    weights = torch.tensor([row[source] for source in plan.sources], dtype=torch.float32)
    if tensor.treatment == "mean":
        return METHODS["linear"](base if base is not None else tuned[0], tuned, weights)
    supplied: dict[str, Any] = {}
    if plan.recipe.method == "dare_ties":
        supplied = {"key": tensor.name, "sources": list(plan.sources)}
    if thresholds is not None:
        supplied["thresholds"] = torch.tensor([thresholds[source] for source in plan.sources])
    own = {key: value for key, value in plan.parameters.items() if key != "scope"}
    if plan.recipe.method in _ELEMENTWISE:
        return METHODS[plan.recipe.method](base, tuned, weights, **own, **supplied)
    with _one_thread():
        return METHODS[plan.recipe.method](base, tuned, weights, **own, **supplied)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums over a tensor and matrix products round differently when cut among threads; results must not."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def merge(
    recipe: Recipe,
    out: Path | str,
    *,
    overwrite: bool = False,
    max_shard: int = 5_000_000_000,
    progress: Progress = silent,
) -> Path:
    """Merge, and write a Hugging Face folder with receipt and model card; it appears whole or not at all.

    Args:
        recipe: what to merge.
        out: the new folder.
        overwrite: replace it if it exists.
        max_shard: largest weight file, in bytes.
        progress: told about every tensor.

    Returns:
        The folder.

    Raises:
        PlanError: the recipe cannot be carried out; lists every fault.
        OutputError: `out` exists, holds one of the inputs, or cannot be written.
        CheckpointError: a tensor holds NaN or infinity.
    """
    out = Path(out)
    check_output(out, overwrite=overwrite)
    for folder in (recipe.base, *recipe.sources.values()):
        if folder.resolve().is_relative_to(out.resolve()):
            raise OutputError(f"output {out} holds the input {folder}: choose another place")
    plan = make_plan(recipe)
    slots = [Slot(tensor.name, tensor.shape, tensor.dtype) for tensor in plan.written]
    done: list[dict[str, Any]] = []

    def stream() -> Iterator[Tensor]:
        with progress(f"merging by {recipe.method}", len(slots)) as advance:
            for one in merged_tensors(plan):
                done.append(_entry(one))
                yield one.tensor
                advance(1)

    with new_folder(out, overwrite=overwrite) as folder:
        write_weights(folder, slots, stream(), max_shard=max_shard)
        _write_companions(plan, folder)
        record = receipt(plan, done)
        (folder / "langmerge.json").write_text(
            json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        (folder / "README.md").write_text(model_card(plan, record), encoding="utf-8")
    return out


def _entry(one: MergedTensor) -> dict[str, Any]:
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
    config = read_json(plan.donor.folder / "config.json")
    stored = {DTYPES[tensor.dtype] for tensor in plan.written if DTYPES[tensor.dtype].is_floating_point}
    if len(stored) == 1:
        # from_pretrained loads in this dtype: the donor's own may be another.
        config["dtype"] = str(stored.pop()).removeprefix("torch.")
        config.pop("torch_dtype", None)
    if plan.labels:
        config["id2label"] = {str(i): label for i, label in enumerate(plan.labels)}
        config["label2id"] = {label: i for i, label in enumerate(plan.labels)}
    (folder / "config.json").write_text(
        json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    # The sources' tokenizer, which the plan has found to be one: a base may lack it.
    holders = [plan.donor, *plan.sources.values()]
    for name in CARRIED:
        for holder in holders:
            if (holder.folder / name).exists():
                shutil.copyfile(holder.folder / name, folder / name)
                break
