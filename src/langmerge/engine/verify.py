"""Whether a merged model is what its receipt says: inputs by hash, a sample of tensors computed again."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from langmerge.checkpoint import DTYPES, Checkpoint, open_checkpoint, read_json
from langmerge.engine.plan import Plan, TensorPlan
from langmerge.engine.planning import make_plan, recipe_of_receipt
from langmerge.engine.receipt import FORMAT, recipe_payload
from langmerge.engine.stream import Stream
from langmerge.errors import VerifyError
from langmerge.progress import Progress, silent
from langmerge.results import signature

RECEIPT = "langmerge.json"


@dataclass(frozen=True)
class Verification:
    """What was found.

    Attributes:
        tensors: that the output has.
        compared: that were computed again.
        differing: of these, the ones with other bytes.
        faults: what else does not agree with the receipt, a sentence each.
    """

    tensors: int
    compared: tuple[str, ...]
    differing: tuple[str, ...]
    faults: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        """Whether everything that was looked at is as the receipt says."""
        return not self.differing and not self.faults


def verify(
    out: Path | str, *, sample: int | None = 16, seed: int = 0, progress: Progress = silent
) -> Verification:
    """Compute tensors of a merged model again from its receipt, and compare them byte by byte.

    Args:
        out: folder that `merge` wrote.
        sample: number of tensors, drawn at random; None for all.
        seed: of the draw.
        progress: told about every tensor.

    Raises:
        VerifyError: there is no receipt, or it names nothing that can be merged again.
        PlanError: the inputs are gone, or cannot be merged any more.
    """
    folder = Path(out)
    merged = open_checkpoint(folder)
    if not (folder / RECEIPT).exists():
        raise VerifyError(f"{folder} has no {RECEIPT}: only what langmerge has merged can be verified")
    record = read_json(folder / RECEIPT)
    if record.get("format") != FORMAT or not isinstance(record.get("recipe"), dict):
        raise VerifyError(f"{folder / RECEIPT} is no receipt of the format {FORMAT}")
    plan = make_plan(recipe_of_receipt(record))
    faults = [*_hash_faults(plan, record), *_layout_faults(plan, merged)]
    present = [tensor for tensor in plan.written if tensor.name in merged.tensors]
    chosen = present if sample is None else _drawn(present, sample, seed)
    differing = () if faults and not present else _differing(plan, merged, chosen, progress)
    return Verification(
        tensors=len(merged.tensors),
        compared=tuple(tensor.name for tensor in chosen),
        differing=tuple(differing),
        faults=tuple(faults),
    )


def _hash_faults(plan: Plan, record: Mapping[str, Any]) -> list[str]:
    """Inputs that are not the ones that were merged."""
    payload = recipe_payload(plan)
    then = record.get("hashes", {})
    hashes = {name: own for name, (_, own) in zip(plan.sources, payload["sources"], strict=True)}
    faults = [
        f"source {name} has changed: its hash was {then.get('sources', {}).get(name)}, it is {now}"
        for name, now in hashes.items()
        if then.get("sources", {}).get(name) != now
    ]
    faults += [
        f"the statistics of source {name} have changed: their hash was {then.get('statistics', {}).get(name)}, it is {now}"
        for name, now in ((name, one.signature) for name, one in plan.statistics.items())
        if then.get("statistics", {}).get(name) != now
    ]
    if then.get("base") != payload["base"]:
        faults.append(f"the base has changed: its hash was {then.get('base')}, it is {payload['base']}")
    if not faults and record.get("signature") != (now := signature(payload)):
        faults.append(f"the receipt's signature is {record.get('signature')}, its recipe gives {now}")
    return faults


def _layout_faults(plan: Plan, merged: Checkpoint) -> list[str]:
    planned = {tensor.name: tensor for tensor in plan.written}
    faults = [f"tensor {name!r} is not in the output" for name in planned if name not in merged.tensors]
    faults += [f"tensor {name!r} is in the output only" for name in merged.tensors if name not in planned]
    for name, info in merged.tensors.items():
        want = planned.get(name)
        if want and (want.shape, want.dtype) != (info.shape, info.dtype):
            faults.append(
                f"tensor {name!r} has {info.dtype} {info.shape}, the receipt gives {want.dtype} {want.shape}"
            )
    return faults


def _drawn(tensors: Sequence[TensorPlan], sample: int, seed: int) -> list[TensorPlan]:
    chosen = set(random.Random(seed).sample(range(len(tensors)), min(sample, len(tensors))))
    return [tensor for place, tensor in enumerate(tensors) if place in chosen]


def _differing(plan: Plan, merged: Checkpoint, chosen: Sequence[TensorPlan], progress: Progress) -> list[str]:
    wrong: set[str] = set()

    def compare(tensor: TensorPlan, start: int, data: Any) -> None:
        found = merged.array(tensor.name).reshape(-1)
        width = DTYPES[tensor.dtype].itemsize
        again = np.frombuffer(memoryview(data).cast("B"), np.uint8)
        stop = start + len(again)
        if (
            found.dtype != DTYPES[tensor.dtype]
            or found.nbytes < stop
            or not np.array_equal(found[start // width : stop // width].view(np.uint8), again)
        ):
            wrong.add(tensor.name)

    with progress("computing again", len(chosen)) as advance:
        for _ in Stream(plan).run(chosen, compare, measured=plan.written):
            advance(1)
    return sorted(wrong)
