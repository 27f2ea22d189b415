"""Which tensors of which models become each tensor of a mergekit recipe's output."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from langmerge.coefficients import group_of
from langmerge.errors import RecipeError
from langmerge.mergekit_recipe import MergekitRecipe, Slice

_LAYER = re.compile(r"^(.*?(?:^|\.)(?:layers?|h|blocks?)\.)(\d+)(\..*)$")


@dataclass(frozen=True)
class Placed:
    """A tensor of the output before anything is known of its shape.

    Attributes:
        name: in the output.
        inputs: its name in every model of the group, whether the model has it or not.
        group: of the recipe, whose sources are merged.
        t: place of its layer among the group's, 0 to 1; 0 outside the layers.
    """

    name: str
    inputs: Mapping[str, str]
    group: Slice
    t: float


def placed_tensors(recipe: MergekitRecipe, names: Mapping[str, Collection[str]]) -> list[Placed]:
    """Every tensor of the output, sorted by name.

    Args:
        recipe: whose slices are stacked in order; what stands outside the layers is merged from the first slice's
            sources if it is an embedding and from the last one's otherwise.
        names: of every model's tensors.

    Raises:
        RecipeError: a slice takes layers that a model does not have, or slices of a model with two stacks of layers.
    """
    found = _stacked(recipe, names) if recipe.slices else _whole(recipe.groups[0], names)
    return sorted(found, key=lambda tensor: tensor.name)


def layer_of(name: str) -> tuple[str, int, str] | None:
    """What stands before a layer's number, the number, and what stands behind; None outside the layers.

    >>> layer_of("model.layers.3.mlp.up_proj.weight"), layer_of("lm_head.weight")
    (('model.layers.', 3, '.mlp.up_proj.weight'), None)
    """
    match = _LAYER.match(name)
    return (match[1], int(match[2]), match[3]) if match else None


def layer_counts(names: Collection[str]) -> dict[str, int]:
    """How many layers stand under each prefix."""
    counts: dict[str, int] = {}
    for name in names:
        if layer := layer_of(name):
            counts[layer[0]] = max(counts.get(layer[0], 0), layer[1] + 1)
    return counts


def _place(index: int, count: int) -> float:
    # A single layer is the last one, not the first.
    return index / (count - 1) if count > 1 else 1.0


def _whole(group: Slice, names: Mapping[str, Collection[str]]) -> list[Placed]:
    everything = set().union(*(names[source.model] for source in group.sources))
    counts = layer_counts(everything)

    def place(name: str) -> Placed:
        layer = layer_of(name)
        t = _place(layer[1], counts[layer[0]]) if layer else 0.0
        return Placed(name, {source.model: name for source in group.sources}, group, t)

    return [place(name) for name in everything]


def _stacked(recipe: MergekitRecipe, names: Mapping[str, Collection[str]]) -> list[Placed]:
    groups, found, at = recipe.groups, [], 0
    prefix = _only_prefix(names)
    for group in groups:
        length = _length(group, names, prefix)
        for index in range(length):
            found += _layer(group, names, prefix, index=index, at=at + index, t=_place(index, length))
        at += length
    for group, embeddings in ((groups[0], True), (groups[-1], False)):
        loose = set().union(*(names[source.model] for source in group.sources))
        found += [
            Placed(name, {source.model: name for source in group.sources}, group, 0.0)
            for name in loose
            if layer_of(name) is None and (group_of(name) == "embeddings") is embeddings
        ]
    return found


def _only_prefix(names: Mapping[str, Collection[str]]) -> str:
    prefixes = sorted(set().union(*(layer_counts(own) for own in names.values())))
    if len(prefixes) != 1:
        raise RecipeError(
            f"slices need models with one stack of layers, found {', '.join(prefixes) or 'none'}: use models instead"
        )
    return prefixes[0]


def _length(group: Slice, names: Mapping[str, Collection[str]], prefix: str) -> int:
    length = 0
    for source in group.sources:
        low, high = source.layer_range or (0, 0)
        count = layer_counts(names[source.model]).get(prefix, 0)
        if high > count:
            raise RecipeError(
                f"the layer_range [{low}, {high}] of {source.model} goes beyond its {count} layers"
            )
        length = high - low
    return length


def _layer(
    group: Slice, names: Mapping[str, Collection[str]], prefix: str, *, index: int, at: int, t: float
) -> list[Placed]:
    """The tensors of one layer of the output: the union of what the sources' layers hold."""
    starts = {source.model: (source.layer_range or (0, 0))[0] + index for source in group.sources}
    rests = set()
    for model, number in starts.items():
        rests |= {
            name.removeprefix(f"{prefix}{number}")
            for name in names[model]
            if name.startswith(f"{prefix}{number}.")
        }
    return [
        Placed(
            f"{prefix}{at}{rest}",
            {model: f"{prefix}{number}{rest}" for model, number in starts.items()},
            group,
            t,
        )
        for rest in rests
    ]
