"""What can be wrong with the tensors of a plan."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from langmerge.checkpoint import Checkpoint, TensorInfo
from langmerge.coefficients import Coefficients, block_of, group_of
from langmerge.engine.plan import TensorPlan
from langmerge.errors import MethodError
from langmerge.methods import require_weights

COMPARED = 64_000_000
"""Bytes of a source that a plan compares with the base; what is larger is compared while it is merged."""


def mismatch(name: str, own: TensorInfo | None, infos: Mapping[str, TensorInfo], *, rows_differ: bool) -> str:
    """What differs between the inputs of one tensor; empty if nothing does. Aligned rows may differ in number."""
    everyone = {**infos, "the base": own} if own else dict(infos)
    if len({info.is_float for info in everyone.values()}) > 1:
        listed = ", ".join(f"{info.dtype} in {source}" for source, info in everyone.items())
        return f"tensor {name!r} is floating-point in some and not in others: {listed}"
    shapes = {source: info.shape for source, info in everyone.items()}
    if len({shape[1:] if rows_differ else shape for shape in shapes.values()}) == 1:
        return ""
    listed = ", ".join(f"{shape} in {source}" for source, shape in shapes.items())
    hint = " (a different vocabulary: use one tokenizer for all)" if group_of(name) == "embeddings" else ""
    return f"tensor {name!r} has different shapes: {listed}{hint}"


def normal_weights(
    method: str, weights: Sequence[float], parameters: dict[str, Any]
) -> tuple[tuple[float, ...], dict[str, Any]]:
    """Weights as they multiply the sources: divided by their sum, in float64, where that is all normalising means.

    Returns:
        The weights, and the parameters with `normalize` off where it has been done here.
    """
    if method in ("linear", "dare_linear", "della_linear", "breadcrumbs") and parameters.get("normalize"):
        total = sum(weights)
        if total != 0:
            return tuple(weight / total for weight in weights), parameters | {"normalize": False}
    return tuple(weights), parameters


def weight_faults(
    method: str,
    parameters: Mapping[str, Any],
    coefficients: Coefficients,
    sources: Sequence[str],
    faults: list[str],
) -> None:
    """Weights of some group that the method cannot use."""
    # A place between two sources that is given needs no weights.
    normalize = bool(parameters.get("normalize", parameters.get("t") is None))
    for row in coefficients.values.values():
        try:
            require_weights(method, [row[source] for source in sources], normalize=normalize)
        except MethodError as error:
            if str(error) not in faults:
                faults.append(str(error))


def label_row_faults(
    tensors: Sequence[TensorPlan],
    labels: tuple[str, ...] | None,
    permuted: Collection[str],
    faults: list[str],
) -> None:
    """Heads with another number of rows than labels; label maps in other orders, and no rows that could follow them."""
    if permuted and not any(t.label_rows for t in tensors):
        faults.append(
            f"{', '.join(sorted(permuted))}: labels are in another order than the reference's, and no tensor is known whose rows "
            "are labels: bring the heads into one order first"
        )
    wrong = [t for t in tensors if labels and t.label_rows and t.shape[0] != len(labels)]
    faults += [
        f"tensor {t.name!r} has {t.shape[0]} rows for the {len(labels or ())} labels of config.json (id2label)"
        for t in wrong
    ]


def coefficient_faults(
    coefficients: Coefficients, source: Checkpoint, tensors: Sequence[TensorPlan], faults: list[str]
) -> None:
    """Groups that match no tensor, and weights that have no mean where the mean is taken."""
    known = {"model"}.union(*({f"tensor:{name}", group_of(name)} for name in source.tensors))
    if unknown := [group for group in coefficients.values if group not in known]:
        faults.append(
            f"coefficients are given for {', '.join(unknown)}, which matches no tensor of the sources"
        )
    said = []
    # By tensor: one of a group may have weights of its own.
    for name in (t.name for t in tensors if t.treatment == "mean"):
        try:
            require_weights("linear", list(coefficients.for_tensor(name).values()))
        except MethodError as error:
            said.append(f"the mean is taken of the sources' {group_of(name)} tensors, but {error}")
    faults += dict.fromkeys(said)


def layer_faults(layers: Collection[int], source: Checkpoint, faults: list[str]) -> None:
    """Layers that a recipe names and the sources do not have."""
    known = {block for name in source.tensors if (block := block_of(name)) is not None}
    if unknown := sorted(set(layers) - known):
        there = f"layers {min(known)} to {max(known)}" if known else "no numbered layers"
        faults.append(
            f"layers names {', '.join(map(str, unknown[:8]))}{' …' if len(unknown) > 8 else ''}, "
            f"the sources have {there}"
        )


def zero_delta_faults(
    base: Checkpoint, sources: Mapping[str, Checkpoint], tensors: Sequence[TensorPlan], faults: list[str]
) -> None:
    """A source that equals the base is one by mistake.

    Small tensors are compared first, so this ends at once for a source that has moved. Of a large model no more than
    `COMPARED` bytes are looked at here; the merge itself measures every delta.
    """
    by_size = sorted(
        (t for t in tensors if t.base and t.treatment in ("merged", "mean", "source")),
        key=lambda t: t.base.nbytes if t.base else 0,
    )
    for position, (name, checkpoint) in enumerate(sources.items()):
        left = COMPARED
        for tensor in by_size:
            if left < 0 or _differs(base, checkpoint, tensor, position):
                break
            left -= tensor.base.nbytes if tensor.base else 0
        else:
            # Where nothing can be compared, the tensors' own faults say why.
            if by_size:
                faults.append(zero_delta(name, checkpoint, base))


def zero_delta(name: str, source: Checkpoint, base: Checkpoint) -> str:
    """The fault of a source that has not moved."""
    return (
        f"source {name} ({source.folder}) equals the base {base.folder}: its task vector is zero; "
        "the base must be the pretrained model, never one of the experts"
    )


def _differs(base: Checkpoint, source: Checkpoint, tensor: TensorPlan, position: int) -> bool:
    if tensor.base is None:
        return False
    found, own = source.array(tensor.inputs[position].name), base.array(tensor.base.name)
    if (order := tensor.rows.get(tensor.sources[position])) is not None:
        found = np.where((order >= 0).reshape(-1, *[1] * (found.ndim - 1)), found[order], 0)
    if tensor.base_rows is not None or found.shape != own.shape:
        return True
    if found.dtype == own.dtype and np.array_equal(_bits(found), _bits(own)):
        return False
    # In the source's dtype: a copy that was only stored shorter has not moved.
    with np.errstate(over="ignore", invalid="ignore"):
        own = own.astype(found.dtype)
    return not bool(np.array_equal(found, own))


def _bits(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """As whole numbers, which are compared faster than small floats."""
    return np.ascontiguousarray(array).view(f"u{array.itemsize}")
