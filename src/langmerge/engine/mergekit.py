"""From a mergekit recipe to a plan: every fault at once, before a byte is written."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from langmerge.checkpoint import Checkpoint, TensorInfo, open_checkpoint
from langmerge.coefficients import group_of
from langmerge.engine.faults import label_row_faults, mismatch, normal_weights, zero_delta_faults
from langmerge.engine.labels import is_label_row, label_orders
from langmerge.engine.mergekit_companions import aligned_vocabularies, companions_of
from langmerge.engine.mergekit_layout import Placed, layer_counts, layer_of, placed_tensors
from langmerge.engine.plan import Plan, Rows, TensorPlan
from langmerge.engine.vocabulary import Alignment, is_vocabulary_tensor, vocabulary_size
from langmerge.errors import CheckpointError, MethodError, PlanError, RecipeError
from langmerge.mergekit_methods import Treatment
from langmerge.mergekit_recipe import MergekitRecipe
from langmerge.methods import require_weights

DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
"""safetensors' names of the dtypes that a recipe may name."""


def plan_mergekit(recipe: MergekitRecipe) -> Plan:
    """Check a recipe against the headers of what it names, and say what will happen to every tensor.

    Raises:
        PlanError: with every fault found.
    """
    faults: list[str] = []
    opened = _opened(recipe, faults)
    try:
        placed = placed_tensors(recipe, {name: one.tensors for name, one in opened.items()})
    except RecipeError as error:
        raise PlanError([*faults, str(error)]) from None
    base_name = _base(recipe, faults)
    base = opened[base_name] if base_name else None
    orders, labels = _labels(recipe, opened, base, faults)
    aligned = aligned_vocabularies(recipe, opened, faults)
    tensors = _Compiler(recipe, opened, orders, aligned, faults).tensors(placed)
    label_row_faults(tensors, labels, orders, faults)
    sources = {name: opened[name] for name in _all_sources(recipe)}
    if base is not None and recipe.peer.role == "base" and recipe.slices is None and not faults:
        zero_delta_faults(base, sources, tensors, faults)
    companions = companions_of(recipe, opened, tensors, labels, aligned, faults)
    if faults:
        raise PlanError(faults)
    return Plan(
        # From another folder, too, a receipt must name the same inputs.
        recipe=recipe.model_dump(mode="json", exclude_none=True) | {"folder": str(recipe.folder.absolute())},
        method=recipe.peer.ours,
        parameters={},
        base=base or _filler(recipe, opened, tensors),
        sources=sources,
        coefficients=None,
        tensors=tensors,
        labels=labels,
        permuted=tuple(sorted(orders)),
        companions=companions,
        settings={key: getattr(recipe, key) for key in ("tokenizer_source", "chat_template")},
        vocabulary=aligned.report if aligned and aligned.rows else {},
    )


def _opened(recipe: MergekitRecipe, faults: list[str]) -> dict[str, Checkpoint]:
    found = {}
    for name in recipe.references:
        try:
            found[name] = open_checkpoint(recipe.folder_of(name))
        except CheckpointError as error:
            faults.append(str(error))
    if len(found) < len(recipe.references):
        raise PlanError(faults)
    return found


def _all_sources(recipe: MergekitRecipe) -> list[str]:
    return list(dict.fromkeys(name for group in recipe.groups for name in recipe.sources_of(group)))


def _base(recipe: MergekitRecipe, faults: list[str]) -> str | None:
    """The base that is none of the sources, of every slice."""
    if recipe.peer.role not in ("base", "origin"):
        return None
    bases = {recipe.base_of(group) for group in recipe.groups}
    if len(bases) > 1:
        faults.append(
            f"the slices have different base_models for {recipe.merge_method}, which can have one: merge them apart, then "
            "stack the results by passthrough"
        )
    return bases.pop()


def _filler(
    recipe: MergekitRecipe, opened: Mapping[str, Checkpoint], tensors: Iterable[TensorPlan]
) -> Checkpoint | None:
    """To a method without a base, the base_model whose rows stand in for missing ones."""
    has_base = any(tensor.base for tensor in tensors)
    return opened[recipe.base_model] if has_base and recipe.base_model else None


def _labels(
    recipe: MergekitRecipe,
    opened: Mapping[str, Checkpoint],
    base: Checkpoint | None,
    faults: list[str],
) -> tuple[dict[str, Rows], tuple[str, ...] | None]:
    """Row orders of the sources, and the label map: of base_model where it has these heads, otherwise of the first."""
    sources = [opened[name] for name in _all_sources(recipe)]
    # A masked-LM base has a head, but not this one.
    heads = {name for source in sources for name in source.tensors if group_of(name) == "head"}
    has_head = base is not None and not heads.isdisjoint(base.tensors)
    # references begins with base_model, which is a source to some methods.
    names = [name for name in recipe.references if name in _all_sources(recipe)]
    return label_orders(base if has_head else None, {name: opened[name] for name in names}, faults)


@dataclass
class _Compiler:
    """Decides on the tensors of one recipe.

    Attributes:
        recipe: the recipe.
        opened: every model it names.
        orders: row orders of label maps.
        aligned: how the vocabularies fit together; None where they are all taken as they are.
        faults: what is wrong is added here, a fault of the method once and not for every tensor.
    """

    recipe: MergekitRecipe
    opened: Mapping[str, Checkpoint]
    orders: Mapping[str, Rows]
    aligned: Alignment | None
    faults: list[str]
    _said: set[str] = field(default_factory=set)
    _sizes: dict[str, int | None] = field(default_factory=dict)

    def tensors(self, placed: Iterable[Placed]) -> list[TensorPlan]:
        """The plan of every tensor, the dropped ones last."""
        plans = [plan for one in placed if (plan := self._tensor(one))]
        blocks = max(layer_counts([plan.name for plan in plans]).values(), default=0) or None
        plans = [replace(plan, blocks=blocks) if plan.block is not None else plan for plan in plans]
        return sorted(plans, key=lambda plan: plan.treatment == "dropped")

    def _tensor(self, placed: Placed) -> TensorPlan | None:
        sources, base = self.recipe.sources_of(placed.group), self.recipe.base_of(placed.group)
        found = {name: self._input(name, placed) for name in sources}
        infos = {name: info for name, info in found.items() if info is not None}
        own = self._input(base, placed) if base and base not in sources else None
        known = [*infos.values(), *([own] if own else [])]
        if not known:
            return None
        blank = TensorPlan(placed.name, known[0].shape, known[0].dtype, "dropped", base=own)
        if not infos:
            return replace(blank, reason="only the base has it")
        if self._is_tied(placed):
            return replace(blank, reason="tied to the input embeddings, stored once")
        if len(infos) < len(sources):
            if not known[0].is_float:
                return replace(blank, reason="a buffer that not all models have")
            absent = ", ".join(name for name in sources if name not in infos)
            self.faults.append(
                f"tensor {placed.name!r} is missing in {absent}: models must be saved from the same model class "
                "(with the same head)"
            )
            return None
        maps, pieces = self._row_maps(placed, infos, own)
        if fault := mismatch(placed.name, own, infos, rows_differ=pieces is not None):
            self.faults.append(fault)
            return None
        plan = self._decided(replace(blank, shape=known[0].shape), placed, infos)
        if plan is None:
            return None
        return self._with_inputs(plan, placed, infos, maps, pieces)

    def _with_inputs(
        self,
        plan: TensorPlan,
        placed: Placed,
        infos: Mapping[str, TensorInfo],
        maps: Mapping[str, Rows],
        pieces: int | None,
    ) -> TensorPlan:
        base = self.recipe.base_of(placed.group) or self.recipe.base_model
        if pieces is not None:
            plan = replace(plan, shape=(pieces, *plan.shape[1:]))
            # See `_filler`.
            if plan.base is None and base and base in infos:
                plan = replace(plan, base=infos[base])
        layer = layer_of(plan.name)
        return replace(
            plan,
            sources=tuple(infos),
            inputs=tuple(infos.values()),
            rows={name: order for name, order in maps.items() if name in infos},
            base_rows=maps.get(base) if base and plan.base is not None else None,
            label_rows=is_label_row(plan.name) and len(plan.shape) > 0,
            block=layer[1] if layer else None,
        )

    def _input(self, model: str, placed: Placed) -> TensorInfo | None:
        """A model's tensor; its input embeddings for a head that it has tied to them."""
        tensors, name = self.opened[model].tensors, placed.inputs.get(model, placed.name)
        if name in tensors or not _is_output_embedding(name):
            return tensors.get(name)
        inputs = [
            info
            for own, info in sorted(tensors.items())
            if group_of(own) == "embeddings"
            and len(info.shape) == 2
            and is_vocabulary_tensor(own, info.shape, info.shape[0])
        ]
        tied = self.opened[model].config.get("tie_word_embeddings") is not False
        return inputs[0] if inputs and tied else None

    def _is_tied(self, placed: Placed) -> bool:
        configs = [self.opened[model].config for model in placed.inputs]
        return _is_output_embedding(placed.name) and all(
            config.get("tie_word_embeddings") is True for config in configs
        )

    def _row_maps(
        self, placed: Placed, infos: Mapping[str, TensorInfo], own: TensorInfo | None
    ) -> tuple[dict[str, Rows], int | None]:
        """Row maps by model; the last is the number of rows where pieces were aligned."""
        labels = {
            name: order for name, order in self.orders.items() if name in infos and is_label_row(placed.name)
        }
        if self.aligned is None:
            return labels, None
        base = self.recipe.base_of(placed.group)
        everyone = {**infos, base: own} if own and base else dict(infos)
        sizes = {name: self._rows_of(name) for name in everyone}
        # First of all: the decoder of a masked LM has a name that a classifier's head may have too.
        if not all(
            is_vocabulary_tensor(placed.name, one.shape, sizes[name] or -1) for name, one in everyone.items()
        ):
            return labels, None
        pieces, maps = self.aligned.pieces, {}
        for name, info in everyone.items():
            if name in self.aligned.rows:
                maps[name] = self.aligned.rows[name]
            elif info.shape[0] != pieces:
                # A model with more rows than the output is cut off: its map is the plain numbers.
                maps[name] = np.arange(pieces)
        return maps, pieces if maps else None

    def _rows_of(self, model: str) -> int | None:
        """Rows of a model's input embeddings; looked for once."""
        if model not in self._sizes:
            self._sizes[model] = vocabulary_size({n: i.shape for n, i in self.opened[model].tensors.items()})
        return self._sizes[model]

    def _decided(
        self, blank: TensorPlan, placed: Placed, infos: Mapping[str, TensorInfo]
    ) -> TensorPlan | None:
        first = next(iter(infos.values()))
        if not first.is_float:
            if blank.base is not None:
                return replace(blank, treatment="base", reason="not a floating-point tensor")
            weights = (1.0,) + (0.0,) * (len(infos) - 1)
            return replace(blank, treatment="source", reason="not a floating-point tensor", weights=weights)
        try:
            found = self.recipe.treatment(placed.name, placed.inputs, group=placed.group, t=placed.t)
            return self._merged(blank, found, placed, infos)
        except (MethodError, RecipeError) as error:
            self._say(str(error), placed.name)
            return None

    def _merged(
        self, blank: TensorPlan, found: Treatment, placed: Placed, infos: Mapping[str, TensorInfo]
    ) -> TensorPlan | None:
        method, parameters, weights = found.method, dict(found.parameters), found.weights
        treatment, reason = "merged", ""
        if (
            self.recipe.base_of(placed.group)
            and self.recipe.peer.role in ("base", "origin")
            and blank.base is None
        ):
            if group_of(placed.name) != "head":
                self.faults.append(
                    f"tensor {placed.name!r} is in the models but not in the base_model: is this the base they were tuned from?"
                )
                return None
            require_weights("linear", weights)
            method, parameters = "linear", {"normalize": True}
            treatment, reason = "mean", "the base has no such head"
        weights, parameters = normal_weights(method, weights, parameters)
        stored = DTYPES.get(self.recipe.out_dtype or self.recipe.dtype or "") or _promoted(
            [*infos.values(), *([blank.base] if blank.base else [])]
        )
        return replace(
            blank,
            dtype=stored,
            treatment=treatment,  # type: ignore[arg-type]
            reason=reason,
            method=method,
            parameters=parameters,
            weights=weights,
        )

    def _say(self, fault: str, tensor: str) -> None:
        kind = fault.removeprefix(f"tensor {tensor!r}")
        if kind not in self._said:
            self._said.add(kind)
            self.faults.append(fault)


def _is_output_embedding(name: str) -> bool:
    return name.endswith(("lm_head.weight", "predictions.decoder.weight", "lm_head.decoder.weight"))


def _promoted(infos: list[TensorInfo]) -> str:
    """The stored dtype that holds all of them: float32 where they differ, but never less than float64."""
    dtypes: set[Any] = {info.dtype for info in infos}
    if len(dtypes) == 1:
        return infos[0].dtype
    return "F64" if "F64" in dtypes else "F32"
