"""From a native recipe to a plan: every fault at once, before a byte is written."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from langmerge.checkpoint import Checkpoint, TensorInfo, label_names, open_checkpoint
from langmerge.coefficients import block_of, group_of
from langmerge.engine.companions import BASE, companions
from langmerge.engine.faults import (
    coefficient_faults,
    label_row_faults,
    layer_faults,
    mismatch,
    normal_weights,
    weight_faults,
    zero_delta_faults,
)
from langmerge.engine.labels import is_label_row, label_orders
from langmerge.engine.measured import HEAD, is_head_matrix, statistics_read, with_statistics
from langmerge.engine.plan import Plan, TensorPlan
from langmerge.engine.statistics import Statistics
from langmerge.engine.vocabulary import Alignment, align, is_vocabulary_tensor, vocabulary_size
from langmerge.errors import CheckpointError, MethodError, PlanError
from langmerge.methods import SPECS, checked_parameters, method_parameters, spec_of
from langmerge.recipe import Recipe


def plan_recipe(recipe: Recipe) -> Plan:
    """Check a recipe against the headers of what it names, and say what will happen to every tensor.

    Raises:
        PlanError: with every fault found.
    """
    faults: list[str] = []
    parameters = _method_faults(recipe, faults)
    base = _opened(recipe, recipe.base, faults)
    opened = {name: _opened(recipe, recipe.sources[name], faults) for name in _arithmetic_order(recipe)}
    sources = {name: checkpoint for name, checkpoint in opened.items() if checkpoint}
    if not sources:
        raise PlanError(faults)
    # What opened is checked on, though the plan has failed: every fault at once.
    first = next(iter(sources.values()))
    in_base = _by_source_name(base, first) if base else None
    kept_head = _keeps_head(recipe, in_base)
    # A masked-LM base has a head, but not this one.
    has_head = kept_head or any(group_of(name) == "head" and name in first.tensors for name in in_base or {})
    # Heads that nothing is taken from may be of any task.
    orders, labels = label_orders(base if has_head else None, {} if kept_head else sources, faults)
    aligned = _alignment(base, in_base, sources, faults)
    statistics = statistics_read(recipe, parameters, sources, faults)
    planner = _Planner(recipe, parameters, base, in_base, sources, orders, aligned, statistics, faults)
    tensors = with_statistics(planner.tensors(), statistics, recipe, faults)
    _swap_faults(planner, faults)
    label_row_faults(tensors, labels, orders, faults)
    coefficient_faults(recipe.weights, first, tensors, faults)
    layer_faults(recipe.blocks, first, faults)
    if base is not None:
        zero_delta_faults(base, sources, tensors, faults)
    if base is None or faults:
        raise PlanError(faults)
    donor = base if has_head and labels == label_names(base.config) else first
    return Plan(
        recipe=recipe.recorded(),
        method=recipe.method,
        parameters=parameters,
        base=base,
        sources=sources,
        coefficients=recipe.weights,
        tensors=tensors,
        labels=labels,
        permuted=tuple(sorted(orders)),
        companions=companions(donor, base, sources, labels, aligned, tensors),
        target=recipe.target,
        settings={
            key: getattr(recipe, key) for key in ("embeddings", "head", "layers", "other_layers", "dtype")
        },
        vocabulary=aligned.report if aligned and not aligned.report["equal"] else {},
        statistics=statistics,
    )


def _keeps_head(recipe: Recipe, in_base: Mapping[str, TensorInfo] | None) -> bool:
    return recipe.head == "base" and any(group_of(name) == "head" for name in in_base or {})


def _arithmetic_order(recipe: Recipe) -> list[str]:
    # Sorted, so that the order in a file cannot change a byte; but where order means something, it is kept.
    ordered = recipe.parameters.get("t") is not None or recipe.method == "layer_swap"
    return list(recipe.sources) if ordered else sorted(recipe.sources)


def _method_faults(recipe: Recipe, faults: list[str]) -> dict[str, Any]:
    """Check the method, its parameters and the weights it is given."""
    try:
        spec = spec_of(recipe.method)
    except MethodError as error:
        faults.append(str(error))
        return {}
    low, high = spec.sources
    n = len(recipe.sources)
    if n < low or (high is not None and n > high):
        wanted = f"exactly {low}" if low == high else f"at least {low}"
        faults.append(f"{recipe.method} merges {wanted} source{'s' * (low != 1)}, the recipe has {n}")
        return {}
    found = len(faults)
    # These two bound each other: neither may be checked against the other's default where both are given.
    window: dict[str, Any] = {
        key: recipe.parameters[key] for key in ("density", "epsilon") if key in recipe.parameters
    }
    for key, value in recipe.parameters.items():
        try:
            checked_parameters(recipe.method, window if key in window else {key: value}, sources=n)
        except MethodError as error:
            if str(error) not in faults:
                faults.append(str(error))
    if len(faults) > found:
        return {}
    parameters = checked_parameters(recipe.method, recipe.parameters, sources=n)
    weight_faults(recipe.method, parameters, recipe.weights, tuple(recipe.sources), faults)
    return _in_order(recipe, parameters)


def _swap_faults(planner: "_Planner", faults: list[str]) -> None:
    """Layers that are to be swapped but do not exist: only the plan knows how many there are."""
    if planner.recipe.method != "layer_swap" or not planner.parameters:
        return
    bottom, top = planner.parameters["bottom"], planner.parameters["top"]
    if not 0 < bottom + top <= (planner.blocks or 0):
        faults.append(
            f"layer_swap takes the {bottom} bottom and {top} top blocks of the second source, "
            f"of a model with {planner.blocks or 0}: give bottom and top, at least 1 and at most all together"
        )


def _in_order(recipe: Recipe, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Lists of one number per source, given in the recipe's order, in the order of arithmetic."""
    given = list(recipe.sources)
    places = [given.index(name) for name in _arithmetic_order(recipe)]
    return {
        key: [value[place] for place in places] if isinstance(value, list | tuple) else value
        for key, value in parameters.items()
    }


def _opened(recipe: Recipe, folder: Path, faults: list[str]) -> Checkpoint | None:
    try:
        return open_checkpoint(folder, pickle=recipe.pickle)
    except CheckpointError as error:
        faults.append(str(error))
        return None


def _by_source_name(base: Checkpoint, source: Checkpoint) -> dict[str, TensorInfo]:
    """The base's tensors under the sources' names: a model class may save without (or with) the common prefix.

    The prefix is the one under which most names agree.
    """
    votes = Counter({("", ""): len(set(base.tensors) & set(source.tensors))})
    ends = {name.rpartition(".")[2] for name in source.tensors}
    shared = [name for name in base.tensors if name.rpartition(".")[2] in ends]
    by_end: dict[str, list[str]] = {}
    for own in source.tensors:
        by_end.setdefault(".".join(own.rsplit(".", 2)[-2:]), []).append(own)
    for name in shared:
        for own in by_end.get(".".join(name.rsplit(".", 2)[-2:]), []):
            if own.endswith("." + name):
                votes[own.removesuffix(name), ""] += 1
            elif name.endswith("." + own):
                votes["", name.removesuffix(own)] += 1
    add, strip = votes.most_common(1)[0][0]
    return {
        name if name in source.tensors else add + name.removeprefix(strip): info
        for name, info in base.tensors.items()
    }


def _alignment(
    base: Checkpoint | None,
    in_base: Mapping[str, TensorInfo] | None,
    sources: Mapping[str, Checkpoint],
    faults: list[str],
) -> Alignment | None:
    """How the vocabularies fit together: the output has the base's; None where there are no embeddings to align."""
    everyone = {BASE: base, **sources} if base else dict(sources)
    sizes = {
        name: vocabulary_size({tensor: info.shape for tensor, info in checkpoint.tensors.items()})
        for name, checkpoint in everyone.items()
        if checkpoint is not None
    }
    known = {name: size for name, size in sizes.items() if size is not None}
    if len(known) < len(sizes) or not known or in_base is None:
        return None
    folders = {name: checkpoint.folder for name, checkpoint in everyone.items() if checkpoint is not None}
    try:
        return align(folders, known, BASE)
    except PlanError as error:
        faults += error.faults
        return None


class _Planner:
    """Decides on the tensors of one recipe."""

    def __init__(
        self,
        recipe: Recipe,
        parameters: Mapping[str, Any],
        base: Checkpoint | None,
        in_base: Mapping[str, TensorInfo] | None,
        sources: Mapping[str, Checkpoint],
        orders: Mapping[str, np.ndarray[Any, Any]],
        aligned: Alignment | None,
        statistics: Mapping[str, Statistics],
        faults: list[str],
    ) -> None:
        self.recipe, self.parameters, self.faults = recipe, parameters, faults
        self.base, self.in_base, self.sources = base, in_base, sources
        self.orders, self.aligned, self.statistics = orders, aligned, statistics
        self.kept_head = _keeps_head(recipe, in_base)
        self.matrices = recipe.method in SPECS and SPECS[recipe.method].matrices
        blocks = {block_of(name) for checkpoint in sources.values() for name in checkpoint.tensors} - {None}
        self.blocks = len(blocks) or None
        everyone = {**sources, BASE: base} if base else sources
        self.sizes = {
            name: vocabulary_size({tensor: info.shape for tensor, info in checkpoint.tensors.items()})
            for name, checkpoint in everyone.items()
        }

    def tensors(self) -> list[TensorPlan]:
        """The plan of every tensor; without a base only the sources are checked against each other."""
        found = set().union(*(checkpoint.tensors for checkpoint in self.sources.values()))
        if self.kept_head:
            found |= {name for name in self.in_base or {} if group_of(name) == "head"}
        names = sorted(found)
        plans = [plan for name in names if (plan := self._tensor(name))]
        dropped = [
            TensorPlan(info.name, info.shape, info.dtype, "dropped", "only the base has it", info)
            for name, info in (self.in_base or {}).items()
            if name not in names
        ]
        return [
            *(plan for plan in plans if plan.treatment != "dropped"),
            *(plan for plan in plans if plan.treatment == "dropped"),
            *dropped,
        ]

    def _tensor(self, name: str) -> TensorPlan | None:
        if self.kept_head and group_of(name) == "head":
            return self._kept(name)
        if self._is_tied(name):
            some = next(c.tensors[name] for c in self.sources.values() if name in c.tensors)
            return TensorPlan(
                name, some.shape, some.dtype, "dropped", "tied to the input embeddings, stored once"
            )
        if absent := [s for s, checkpoint in self.sources.items() if name not in checkpoint.tensors]:
            self.faults.append(
                f"tensor {name!r} is missing in source {', '.join(absent)}: "
                "sources must be saved from the same model class (with the same head)"
            )
            return None
        infos = {source: checkpoint.tensors[name] for source, checkpoint in self.sources.items()}
        own = self.in_base.get(name) if self.in_base else None
        rows, base_rows, pieces = self._row_maps(name, own, infos)
        if fault := mismatch(name, own, infos, rows_differ=pieces is not None):
            self.faults.append(fault)
            return None
        if self.in_base is None:
            return None
        plan = self._decided(name, own, next(iter(infos.values())))
        if pieces is not None:
            plan = replace(plan, shape=(pieces, *plan.shape[1:]))
        return replace(
            plan, inputs=tuple(infos.values()), sources=tuple(infos), rows=rows, base_rows=base_rows
        )

    def _kept(self, name: str) -> TensorPlan:
        """A tensor of the base's head, or one of another head that a source has."""
        reason, own = "the recipe says head: base", (self.in_base or {}).get(name)
        if own is not None:
            labels = is_label_row(name) and len(own.shape) > 0
            return TensorPlan(
                name, own.shape, self.recipe.dtype or own.dtype, "base", reason, own, label_rows=labels
            )
        some = next(one.tensors[name] for one in self.sources.values() if name in one.tensors)
        return TensorPlan(name, some.shape, some.dtype, "dropped", f"{reason}, which has no such tensor")

    def _is_tied(self, name: str) -> bool:
        if not name.endswith(("lm_head.weight", "predictions.decoder.weight", "lm_head.decoder.weight")):
            return False
        configs = [checkpoint.config for checkpoint in self.sources.values()]
        return all(config.get("tie_word_embeddings") is True for config in configs)

    def _row_maps(
        self, name: str, own: TensorInfo | None, infos: Mapping[str, TensorInfo]
    ) -> tuple[dict[str, Any], Any, int | None]:
        """Row maps of the sources and the base; the last is the number of rows where pieces were aligned."""
        by_label = {source: self.orders[source] for source in infos if source in self.orders}
        labels: tuple[dict[str, Any], Any, int | None] = (by_label if is_label_row(name) else {}, None, None)
        if self.aligned is None or self.aligned.report["equal"]:
            return labels
        everyone = {**infos, BASE: own} if own else dict(infos)
        if not all(is_vocabulary_tensor(name, i.shape, self.sizes[s] or -1) for s, i in everyone.items()):
            return labels
        whole = np.arange(self.aligned.pieces)
        maps = {source: self.aligned.rows.get(source) for source in everyone}
        # A checkpoint with more rows than the output is cut off: its map is the plain numbers.
        found = {
            s: m if m is not None else whole
            for s, m in maps.items()
            if m is not None or everyone[s].shape[0] != self.aligned.pieces
        }
        return {s: m for s, m in found.items() if s != BASE}, found.get(BASE), self.aligned.pieces

    def _decided(self, name: str, own: TensorInfo | None, info: TensorInfo) -> TensorPlan:
        recipe, group = self.recipe, group_of(name)
        labels = is_label_row(name) and len(info.shape) > 0
        stored = recipe.dtype if recipe.dtype and info.is_float else (own or info).dtype
        blank = TensorPlan(name, info.shape, stored, "base", base=own, label_rows=labels)
        if own is None and group != "head":
            self.faults.append(
                f"tensor {name!r} is in the sources but not in the base {recipe.base}: "
                "is this the base they were tuned from?"
            )
            return replace(blank, treatment="dropped", reason="not in the base")
        if not info.is_float:
            return replace(blank, reason="not a floating-point tensor")
        if group == "head" and recipe.head == HEAD:
            if is_head_matrix(name, info.shape, self.statistics):
                return self._merged(blank, HEAD)
            return self._by(blank, "mean", "the recipe says head: regmean, which is for matrices with a Gram")
        if group in ("embeddings", "head") and (said := getattr(recipe, group)) != "merge":
            if own is None and said == "base":
                self.faults.append(
                    f"the recipe says {group}: base, but the base {recipe.base} has no tensor {name!r}: "
                    "say mean or source:<name>"
                )
            return self._by(blank, said, f"the recipe says {group}: {said}")
        if own is None:
            return self._by(blank, "mean", "the base has no such head")
        if recipe.layers is not None and (block := block_of(name)) is not None and block not in recipe.blocks:
            return self._by(blank, recipe.other_layers, f"the recipe says layers: {recipe.layers}")
        if self.matrices and (group in ("embeddings", "head") or len(info.shape) != 2):
            return self._by(blank, "mean", f"{recipe.method} is for the encoder's weight matrices")
        return self._merged(blank, recipe.method)

    def _merged(self, blank: TensorPlan, method: str) -> TensorPlan:
        """By the recipe's method, or by the one that its head asks for."""
        own = self.parameters if method == self.recipe.method else method_parameters(method)
        row = self.recipe.weights.for_tensor(blank.name)
        weights, parameters = normal_weights(method, [row[source] for source in self.sources], dict(own))
        return replace(
            blank,
            treatment="merged",
            method=method,
            parameters=parameters,
            weights=weights,
            block=self._block(blank.name),
            blocks=self.blocks,
        )

    def _block(self, name: str) -> int | None:
        """The tensor's layer; embeddings lie before the first, what follows the last (norm, head) behind it."""
        own = block_of(name)
        if own is not None or self.blocks is None:
            return own
        return -1 if group_of(name) == "embeddings" else self.blocks

    def _by(self, blank: TensorPlan, said: str, reason: str) -> TensorPlan:
        if said == "base":
            return replace(blank, treatment="base", reason=reason)
        if said.startswith("source:"):
            chosen = said.removeprefix("source:")
            weights = tuple(float(source == chosen) for source in self.sources)
            return replace(blank, treatment="source", reason=reason, weights=weights)
        row = self.recipe.weights.for_tensor(blank.name)
        weights, parameters = normal_weights(
            "linear", [row[source] for source in self.sources], {"normalize": True}
        )
        return replace(
            blank, treatment="mean", reason=reason, method="linear", parameters=parameters, weights=weights
        )
