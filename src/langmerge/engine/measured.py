"""Which statistics a recipe reads, and what can be wrong with them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from langmerge.checkpoint import Checkpoint, checkpoint_signature
from langmerge.coefficients import group_of
from langmerge.engine.plan import TensorPlan
from langmerge.engine.statistics import COMMANDS, Statistics, open_statistics
from langmerge.errors import CheckpointError, MethodError
from langmerge.methods import SPECS, require_weights, statistics_of
from langmerge.recipe import Recipe

HEAD = "regmean"
"""The recipe's word for a head that is merged by the method of this name, whatever the others are merged by."""


def statistics_read(
    recipe: Recipe, parameters: Mapping[str, Any], sources: Mapping[str, Checkpoint], faults: list[str]
) -> dict[str, Statistics]:
    """The statistics of every source, opened by their headers; empty where the recipe reads none.

    Args:
        recipe: what is asked for.
        parameters: of its method, checked; empty where they are wrong.
        sources: that could be opened, in the order of arithmetic.
        faults: gets what is wrong.
    """
    readers = _readers(recipe, parameters)
    kinds = set(readers.values())
    if not kinds:
        # A method that can read them may be told by a parameter not to.
        if recipe.statistics and recipe.method in SPECS and SPECS[recipe.method].statistics is None:
            faults.append(f"the recipe gives statistics, which {recipe.method} does not read: leave them out")
        return {}
    if len(kinds) > 1:
        listed = " and ".join(f"{reader} reads {kind}" for reader, kind in readers.items())
        faults.append(f"{listed}, a recipe has one kind of statistics: say head: mean, or another method")
        return {}
    (kind,) = kinds
    reader = next(iter(readers))
    if absent := [name for name in recipe.sources if name not in recipe.statistics]:
        faults.append(
            f"{reader} reads {kind} of every source, the recipe's statistics name none for {', '.join(absent)}: "
            f"make them with {COMMANDS[kind]}"
        )
    if unknown := [name for name in recipe.statistics if name not in recipe.sources]:
        faults.append(f"statistics are given for {', '.join(unknown)}, which is no source of the recipe")
    found = {
        name: _opened(recipe, name, checkpoint, reader, kind, faults)
        for name, checkpoint in sources.items()
        if name in recipe.statistics
    }
    return {name: one for name, one in found.items() if one is not None}


def _readers(recipe: Recipe, parameters: Mapping[str, Any]) -> dict[str, str]:
    """Who reads which kind."""
    readers: dict[str, str] = {}
    if recipe.method in SPECS:
        # Wrong parameters are told of elsewhere; those that are given may still say that nothing is read.
        kind = statistics_of(recipe.method, parameters or recipe.parameters)
        if kind is not None:
            readers[recipe.method] = kind
    if recipe.head == HEAD:
        readers["head: regmean"] = "grams"
    return readers


def _opened(
    recipe: Recipe, name: str, source: Checkpoint, reader: str, kind: str, faults: list[str]
) -> Statistics | None:
    file = recipe.statistics[name]
    try:
        found = open_statistics(file)
    except (CheckpointError, OSError) as error:
        faults.append(f"the statistics of source {name}: {error}")
        return None
    if found.kind != kind:
        faults.append(
            f"the statistics of source {name} ({file}) are of the kind {found.kind}, {reader} reads {kind}: "
            f"make them with {COMMANDS[kind]}"
        )
        return None
    if found.model != checkpoint_signature(source):
        faults.append(
            f"the statistics of source {name} ({file}) were made for another model than {source.folder}: "
            f"make them again with {COMMANDS[kind]}"
        )
        return None
    return found


def is_head_matrix(name: str, shape: Sequence[int], statistics: Mapping[str, Statistics]) -> bool:
    """Whether RegMean can merge this tensor of a head: a matrix with a Gram."""
    return len(shape) == 2 and any(name in one.tensors for one in statistics.values())


def with_statistics(
    tensors: Sequence[TensorPlan],
    statistics: Mapping[str, Statistics],
    recipe: Recipe,
    faults: list[str],
) -> list[TensorPlan]:
    """The plans, each with what its method reads; faults where a source's statistics lack a tensor or have another shape."""
    if not statistics:
        return list(tensors)
    planned, lacking = [], dict[str, list[str]]()
    for tensor in tensors:
        kind = statistics_of(tensor.method, tensor.parameters) if tensor.treatment == "merged" else None
        if kind is None:
            planned.append(tensor)
            continue
        for source, info in zip(tensor.sources, tensor.inputs, strict=True):
            if source not in statistics:
                continue
            wanted = info.shape if kind == "fisher" else (info.shape[1], info.shape[1])
            own = statistics[source].tensors.get(tensor.name)
            if own is None:
                lacking.setdefault(source, []).append(tensor.name)
            elif own.shape != wanted:
                faults.append(
                    f"the statistics of source {source} have the shape {own.shape} for tensor {tensor.name!r}, not {wanted}"
                )
        known = [statistics[s].tensors.get(tensor.name) for s in tensor.sources if s in statistics]
        planned.append(replace(tensor, statistics=tuple(one for one in known if one is not None)))
    for source, names in lacking.items():
        shown = ", ".join(map(repr, names[:3])) + (" …" if len(names) > 3 else "")
        faults.append(
            f"the statistics of source {source} ({statistics[source].file}) lack {len(names)} tensors that are merged: {shown}"
        )
    _head_faults(planned, recipe, faults)
    return planned


def _head_faults(tensors: Sequence[TensorPlan], recipe: Recipe, faults: list[str]) -> None:
    if recipe.head != HEAD:
        return
    chosen = [t for t in tensors if t.treatment == "merged" and group_of(t.name) == "head"]
    if not chosen:
        faults.append(
            "the recipe says head: regmean, but the statistics hold no Gram of a matrix of the head: say head: mean"
        )
    for tensor in chosen:
        try:
            require_weights(HEAD, list(tensor.weights))
        except MethodError as error:
            if str(error) not in faults:
                faults.append(str(error))
