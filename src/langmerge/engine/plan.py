"""From a recipe to a plan: every fault at once, before a byte is written."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from langmerge.checkpoint import Checkpoint, TensorInfo, label_names, open_checkpoint
from langmerge.coefficients import Coefficients, group_of
from langmerge.engine.labels import is_label_row, label_orders
from langmerge.engine.vocabulary import tokenizer_faults
from langmerge.errors import CheckpointError, LangmergeError, MethodError, PlanError
from langmerge.methods import EXACTLY_TWO, MATRIX_METHODS, METHODS, checked_parameters
from langmerge.recipe import Recipe

Treatment = Literal["merged", "mean", "base", "dropped"]


@dataclass(frozen=True)
class TensorPlan:
    """What will happen to one tensor.

    Attributes:
        name: as the sources have it.
        base_name: as the base has it; None where the base has none.
        shape: of the output.
        dtype: stored dtype of the output.
        treatment: `merged` by the recipe's method, `mean` of the sources, copied from the `base`, or `dropped`.
        reason: why it is not merged by the method; empty if it is.
        label_rows: whether its rows are labels, to be matched by name.
    """

    name: str
    base_name: str | None
    shape: tuple[int, ...]
    dtype: str
    treatment: Treatment
    reason: str = ""
    label_rows: bool = False


@dataclass(frozen=True)
class Plan:
    """A merge that is known to be possible.

    Attributes:
        recipe: what was asked for.
        parameters: of the method, defaults filled in.
        base: the opened base.
        sources: the opened sources by name, in the order of arithmetic.
        coefficients: of the sources.
        tensors: in the order they are written; the dropped ones last.
        labels: the output's label map, in order, or None.
        orders: per source, the row of its head that holds each output label; only where it differs.
        donor: the checkpoint whose config and tokenizer the output gets.
    """

    recipe: Recipe
    parameters: Mapping[str, Any]
    base: Checkpoint
    sources: Mapping[str, Checkpoint]
    coefficients: Coefficients
    tensors: Sequence[TensorPlan]
    labels: tuple[str, ...] | None
    orders: Mapping[str, torch.Tensor]
    donor: Checkpoint

    @property
    def written(self) -> list[TensorPlan]:
        """Tensors of the output."""
        return [tensor for tensor in self.tensors if tensor.treatment != "dropped"]

    def source_rows(self, tensor: TensorPlan, source: str) -> torch.Tensor:
        """One source's tensor as float32, its label rows in the output's order.

        Raises:
            CheckpointError: it holds NaN or infinity.
        """
        found = self.sources[source].read_finite(tensor.name)
        return found[self.orders[source]] if tensor.label_rows and source in self.orders else found


def make_plan(recipe: Recipe) -> Plan:
    """Check a recipe against the headers of what it names, and say what will happen to every tensor.

    Raises:
        PlanError: with every fault found.
    """
    faults: list[str] = []
    parameters = _method_faults(recipe, faults)
    base = _opened(recipe.base, faults)
    opened = {name: _opened(recipe.sources[name], faults) for name in _arithmetic_order(recipe)}
    sources = {name: checkpoint for name, checkpoint in opened.items() if checkpoint}
    if not sources:
        raise PlanError(faults)
    # What opened is checked on, though the plan has failed: every fault at once.
    first = next(iter(sources.values()))
    in_base = _by_source_name(base, first) if base else None
    # A masked-LM base has a head, but not this one.
    has_head = any(group_of(name) == "head" and name in first.tensors for name in in_base or {})
    orders, labels = label_orders(base if has_head else None, sources, faults)
    tensors = _tensor_plans(recipe, in_base, sources, faults)
    _label_row_faults(tensors, labels, faults)
    _coefficient_faults(recipe, first, tensors, faults)
    tokenizer_faults(base, sources, faults)
    if base is not None:
        _zero_delta_faults(base, sources, tensors, orders, faults)
    if base is None or faults:
        raise PlanError(faults)
    donor = base if has_head and labels == label_names(base.config) else first
    return Plan(recipe, parameters, base, sources, recipe.weights, tensors, labels, orders, donor)


def _arithmetic_order(recipe: Recipe) -> list[str]:
    # Sorted, so that the order in a file cannot change a byte; but slerp's t is a place between the first and second.
    return list(recipe.sources) if recipe.parameters.get("t") is not None else sorted(recipe.sources)


def _method_faults(recipe: Recipe, faults: list[str]) -> dict[str, Any]:
    """Check the method and its parameters by a trial on two tiny matrices, so that ranges are stated in one place."""
    found = len(faults)
    if recipe.method in EXACTLY_TWO and len(recipe.sources) != 2:
        faults.append(f"{recipe.method} merges exactly 2 sources, the recipe has {len(recipe.sources)}")
    if recipe.method in METHODS:
        for key, value in recipe.parameters.items():
            try:
                checked_parameters(recipe.method, {key: value})
            except MethodError as error:
                faults.append(str(error))
    if len(faults) > found:
        return {}
    try:
        parameters = checked_parameters(recipe.method, recipe.parameters)
        own = {key: value for key, value in parameters.items() if key != "scope"}
        tuned = torch.arange(4.0 * len(recipe.sources)).reshape(-1, 2, 2) + 1
        for row in recipe.weights.values.values():
            METHODS[recipe.method](
                torch.zeros(2, 2), tuned, torch.tensor([row[name] for name in recipe.sources]), **own
            )
    except MethodError as error:
        faults.append(str(error))
        return {}
    return parameters


def _opened(folder: Path, faults: list[str]) -> Checkpoint | None:
    try:
        return open_checkpoint(folder)
    except CheckpointError as error:
        faults.append(str(error))
        return None


def _by_source_name(base: Checkpoint, source: Checkpoint) -> dict[str, TensorInfo]:
    """The base's tensors under the sources' names: a model class may save without (or with) the common prefix.

    The prefix is the one under which most names agree.
    """
    votes = Counter({("", ""): len(set(base.tensors) & set(source.tensors))})
    for name in base.tensors:
        for own in source.tensors:
            if own.endswith("." + name):
                votes[own.removesuffix(name), ""] += 1
            elif name.endswith("." + own):
                votes["", name.removesuffix(own)] += 1
    add, strip = votes.most_common(1)[0][0]
    return {
        name if name in source.tensors else add + name.removeprefix(strip): info
        for name, info in base.tensors.items()
    }


def _tensor_plans(
    recipe: Recipe,
    in_base: Mapping[str, TensorInfo] | None,
    sources: Mapping[str, Checkpoint],
    faults: list[str],
) -> list[TensorPlan]:
    """The plan of every tensor; without a base (None) only the sources are checked against each other."""
    names = sorted(set().union(*(checkpoint.tensors for checkpoint in sources.values())))
    plans = []
    for name in names:
        if absent := [source for source, checkpoint in sources.items() if name not in checkpoint.tensors]:
            faults.append(
                f"tensor {name!r} is missing in source {', '.join(absent)}: "
                "sources must be saved from the same model class (with the same head)"
            )
            continue
        infos = {source: checkpoint.tensors[name] for source, checkpoint in sources.items()}
        own = in_base.get(name) if in_base else None
        if fault := _mismatch(name, own, infos):
            faults.append(fault)
        elif in_base is not None:
            plans.append(_tensor_plan(recipe, name, own, next(iter(infos.values())), faults))
    dropped = [
        TensorPlan(info.name, info.name, info.shape, info.dtype, "dropped", "only the base has it")
        for name, info in (in_base or {}).items()
        if name not in names
    ]
    return plans + dropped


def _mismatch(name: str, own: TensorInfo | None, infos: Mapping[str, TensorInfo]) -> str:
    everyone = {**infos, "the base": own} if own else dict(infos)
    if len({info.is_float for info in everyone.values()}) > 1:
        listed = ", ".join(f"{info.dtype} in {source}" for source, info in everyone.items())
        return f"tensor {name!r} is floating-point in some and not in others: {listed}"
    shapes = {source: info.shape for source, info in everyone.items()}
    if len(set(shapes.values())) == 1:
        return ""
    listed = ", ".join(f"{shape} in {source}" for source, shape in shapes.items())
    hint = " (a different vocabulary: use one tokenizer for all)" if group_of(name) == "embeddings" else ""
    return f"tensor {name!r} has different shapes: {listed}{hint}"


def _tensor_plan(
    recipe: Recipe, name: str, own: TensorInfo | None, info: TensorInfo, faults: list[str]
) -> TensorPlan:
    group = group_of(name)
    dtype = (own or info).dtype
    labels = is_label_row(name) and len(info.shape) > 0
    base_name = own.name if own else None

    def plan(treatment: Treatment, reason: str = "") -> TensorPlan:
        stored = recipe.dtype if recipe.dtype and info.is_float else dtype
        return TensorPlan(name, base_name, info.shape, stored, treatment, reason, labels)

    if own is None and group != "head":
        faults.append(
            f"tensor {name!r} is in the sources but not in the base {recipe.base}: is this the base they were tuned from?"
        )
        return plan("dropped", "not in the base")
    if not info.is_float:
        return plan("base", "not a floating-point tensor")
    if own is None:
        return plan("mean", "the base has no such head")
    if group == "embeddings" and recipe.embeddings != "merge":
        return plan(recipe.embeddings, f"the recipe says embeddings: {recipe.embeddings}")
    if group == "head" and recipe.head == "mean":
        return plan("mean", "the recipe says head: mean")
    if recipe.method in MATRIX_METHODS and (group in ("embeddings", "head") or len(info.shape) != 2):
        return plan("mean", f"{recipe.method} is for the encoder's weight matrices")
    return plan("merged")


def _label_row_faults(
    tensors: Sequence[TensorPlan], labels: tuple[str, ...] | None, faults: list[str]
) -> None:
    wrong = [t for t in tensors if labels and t.label_rows and t.shape[0] != len(labels)]
    faults += [
        f"tensor {t.name!r} has {t.shape[0]} rows for the {len(labels or ())} labels of config.json (id2label)"
        for t in wrong
    ]


def _coefficient_faults(
    recipe: Recipe, source: Checkpoint, tensors: Sequence[TensorPlan], faults: list[str]
) -> None:
    """Groups that match no tensor, and weights that have no mean where the mean is taken."""
    known = {"model"}.union(*({f"tensor:{name}", group_of(name)} for name in source.tensors))
    if unknown := [group for group in recipe.weights.values if group not in known]:
        faults.append(
            f"coefficients are given for {', '.join(unknown)}, which matches no tensor of the sources"
        )
    means = {group_of(t.name): recipe.weights.for_tensor(t.name) for t in tensors if t.treatment == "mean"}
    for group, row in means.items():
        try:
            METHODS["linear"](torch.zeros(1), torch.zeros(len(row), 1), torch.tensor(list(row.values())))
        except MethodError as error:
            faults.append(f"the mean is taken of the sources' {group} tensors, but {error}")


def _zero_delta_faults(
    base: Checkpoint,
    sources: Mapping[str, Checkpoint],
    tensors: Sequence[TensorPlan],
    orders: Mapping[str, torch.Tensor],
    faults: list[str],
) -> None:
    """A source that equals the base is one by mistake; small tensors are compared first, so this ends at once."""
    by_size = sorted(
        (t for t in tensors if t.base_name and t.treatment in ("merged", "mean")),
        key=lambda t: torch.Size(t.shape).numel(),
    )
    for name, checkpoint in sources.items():
        try:
            moved = any(_differs(base, checkpoint, t, orders.get(name)) for t in by_size)
        except LangmergeError as error:
            faults.append(str(error))
            continue
        # Where nothing can be compared, the tensors' own faults say why.
        if by_size and not moved:
            faults.append(
                f"source {name} ({checkpoint.folder}) equals the base {base.folder}: its task vector is zero; "
                "the base must be the pretrained model, never one of the experts"
            )


def _differs(base: Checkpoint, source: Checkpoint, tensor: TensorPlan, order: torch.Tensor | None) -> bool:
    found = source.read(tensor.name)
    if tensor.label_rows and order is not None:
        found = found[order]
    # In the source's dtype: a copy that was only stored shorter has not moved.
    return not torch.equal(found, base.read(tensor.base_name or tensor.name).to(found.dtype))
