"""mergekit's YAML recipes: what they may hold, and the value of every parameter for a tensor."""

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from langmerge.coefficients import first_fault
from langmerge.errors import MethodError, RecipeError
from langmerge.mergekit_methods import PEER_METHODS, PeerMethod, Treatment, Values
from langmerge.mergekit_settings import Settings, check_settings, resolved


def _one_spelling(reference: str) -> str:
    """`./a/` and `a` are one folder."""
    return os.path.normpath(reference) if reference else reference


def _without_torch(name: Any) -> Any:
    return name.removeprefix("torch.") if isinstance(name, str) else name


Reference = Annotated[str, AfterValidator(_one_spelling), Field(min_length=1)]
"""A model's folder, as the file names it."""
Dtype = Annotated[Literal["float32", "float16", "bfloat16"], BeforeValidator(_without_torch)]
_WAYS_OUT = {
    "modules": "write models or slices; models of several modules (encoder and decoder) merge under models",
    "tokenizer": "write tokenizer_source; embeddings of single pieces cannot be chosen",
    "residual_weight": "mergekit itself ignores it; remove it",
    "name": "one recipe is one merge here; remove it",
}


class Source(BaseModel):
    """A model that takes part: with its own parameters, and in a slice with the layers that are taken of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Reference
    layer_range: tuple[int, int] | None = None
    parameters: Settings = Field(default_factory=dict)


class Slice(BaseModel):
    """Layers of the output, merged from as many layers of each source."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sources: tuple[Source, ...] = Field(min_length=1)
    base_model: Reference | None = None
    parameters: Settings = Field(default_factory=dict)


class MergekitRecipe(BaseModel):
    """A mergekit recipe, checked.

    Example (YAML):
        merge_method: ties
        base_model: base
        models:
          - {model: expert-a, parameters: {weight: 0.6, density: [0.2, 0.6]}}
          - {model: expert-b, parameters: {weight: 0.4, density: 0.5}}
        parameters: {normalize: true}
        dtype: float32
        out_dtype: bfloat16

    Attributes:
        merge_method: a method of mergekit 0.1.5.
        models: the models to merge; or else `slices`.
        slices: the output's layers, from the first to the last.
        parameters: for all models, where neither a model nor its slice says otherwise.
        base_model: what it is to the method, `PEER_METHODS` says; config and tokenizer come from it.
        dtype: stored dtype of the output, if `out_dtype` is not given; arithmetic is in float32 in any case.
        out_dtype: stored dtype of the output.
        tokenizer_source: whose vocabulary the output gets: `base`, `union` of all, or a model.
        chat_template: text of a template, or `auto` for the one that most models have.
        folder: where relative paths start; a file cannot give it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    merge_method: str
    models: tuple[Source, ...] | None = Field(default=None, min_length=1)
    slices: tuple[Slice, ...] | None = Field(default=None, min_length=1)
    parameters: Settings = Field(default_factory=dict)
    base_model: Reference | None = None
    dtype: Dtype | None = None
    out_dtype: Dtype | None = None
    tokenizer_source: str | None = Field(default=None, min_length=1)
    chat_template: str | None = None
    folder: Path = Path()

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if self.merge_method not in PEER_METHODS:
            raise ValueError(
                f"merge_method {self.merge_method!r} is not supported: there are {', '.join(sorted(PEER_METHODS))}"
            )
        if (self.models is None) == (self.slices is None):
            raise ValueError("give either models or slices")
        _check_chat_template(self.chat_template)
        check_settings(self.parameters, self.peer, where="parameters")
        for number, group in enumerate(self.groups):
            self._check_group(group, where=f"slices[{number}]" if self.slices else "models")
        return self

    @property
    def peer(self) -> PeerMethod:
        """What is known of the method."""
        return PEER_METHODS[self.merge_method]

    @cached_property
    def groups(self) -> tuple[Slice, ...]:
        """The slices; models are one slice of all layers, to which the base belongs whether it is listed or not."""
        if self.slices is not None:
            return self.slices
        models = self.models or ()
        if self.base_model and self.base_model not in [source.model for source in models]:
            models = (*models, Source(model=self.base_model))
        return (Slice(sources=models),)

    @property
    def references(self) -> tuple[str, ...]:
        """Every model named, the base first, then in the order of the file."""
        bases = [self.base_model, *(group.base_model for group in self.groups)]
        named = [one.model for group in self.groups for one in group.sources]
        return tuple(dict.fromkeys(one for one in [*bases[:1], *named, *bases[1:]] if one))

    @property
    def tokenizer_reference(self) -> str | None:
        """The model whose vocabulary the output gets; None for the union of all, or if nothing is said."""
        source = self.tokenizer_source
        if source == "base":
            return self.references[0]
        return _one_spelling(source) if source and source != "union" else None

    def folder_of(self, reference: str) -> Path:
        """The folder of a model."""
        return self.folder / reference

    def base_of(self, group: Slice) -> str | None:
        """The base apart from a group's sources, if the method has one."""
        return (group.base_model or self.base_model) if self.peer.role != "source" else None

    def sources_of(self, group: Slice) -> tuple[str, ...]:
        """The sources of a group in the order of arithmetic, without a base that is none of them."""
        base, named = self.base_of(group), [source.model for source in group.sources]
        others = tuple(name for name in named if name != base)
        return (base, *others) if base and self.peer.role == "first" else others

    def treatment(self, name: str, inputs: Mapping[str, str], *, group: Slice, t: float) -> Treatment:
        """What is done to a tensor.

        Args:
            name: of the output's tensor.
            inputs: name of the tensor in each model of the group: filters of a source see its own name.
            group: one of `groups`.
            t: place of the layer among those of the group, 0 to 1; 0 outside the layers.

        Raises:
            RecipeError: a parameter that must be given has no value for this tensor.
            MethodError: a value that the method refuses, or that cannot be carried over.
        """
        sources, base = self.sources_of(group), self.base_of(group)
        own = {source.model: source.parameters for source in group.sources}
        outer = (group.parameters, self.parameters)
        shared: dict[str, Any] = {}
        each: dict[str, tuple[Any, ...]] = {}
        for key, parameter in self.peer.parameters.items():
            if parameter.per_source:
                each[key] = tuple(
                    resolved(key, parameter, (own[one], *outer), inputs[one], t, of=f" for {one}")
                    for one in sources
                )
            else:
                shared[key] = resolved(key, parameter, outer, name, t)
        values = Values(shared, each, len(sources), base is not None and base not in sources)
        try:
            return self.peer.treatment(values)
        except MethodError as error:
            raise MethodError(f"tensor {name!r}: {error}") from None

    def _check_group(self, group: Slice, *, where: str) -> None:
        named = [source.model for source in group.sources]
        if twice := [name for name in named if named.count(name) > 1]:
            raise ValueError(f"{where} lists the model {twice[0]!r} twice: list every model once")
        self._check_roles(group, named, where)
        self._check_layers(group, where)
        check_settings(group.parameters, self.peer, where=f"{where}.parameters")
        base = self.base_of(group) if self.peer.role in ("base", "origin") else None
        for source in group.sources:
            own = f"{where} {source.model}.parameters"
            check_settings(source.parameters, self.peer, where=own, own=True)
            if source.model == base and source.parameters:
                raise ValueError(
                    f"{own}: this is the base_model of {self.merge_method}, for which {next(iter(source.parameters))} "
                    "has no effect: remove it"
                )

    def _check_roles(self, group: Slice, named: Sequence[str], where: str) -> None:
        base, role = self.base_of(group), self.peer.role
        if role in ("base", "first") and base is None:
            raise ValueError(f"{self.merge_method} needs base_model")
        if base is not None and base not in named:
            raise ValueError(f"{where}: the base_model {base!r} must be among its sources")
        found = len(self.sources_of(group))
        low, high = self.peer.sources
        if found < low or (high is not None and found > high):
            wanted = f"{'exactly' if low == high else 'at least'} {low}"
            besides = " besides base_model" if role in ("base", "origin") else ", base_model included,"
            raise ValueError(
                f"{where}: {self.merge_method} merges {wanted} model(s){besides} and finds {found}"
            )

    def _check_layers(self, group: Slice, where: str) -> None:
        ranges = {source.model: source.layer_range for source in group.sources}
        if self.slices is None:
            if given := [name for name, found in ranges.items() if found]:
                raise ValueError(f"{where} {given[0]}: layer_range belongs under slices")
            return
        lengths = set()
        for name, found in ranges.items():
            if found is None or not 0 <= found[0] < found[1]:
                raise ValueError(
                    f"{where} {name}: layer_range must be [first, behind the last], found {found}"
                )
            lengths.add(found[1] - found[0])
        if len(lengths) > 1:
            raise ValueError(f"{where}: its sources have different numbers of layers, {sorted(lengths)}")

    @classmethod
    def parse(cls, raw: Mapping[str, Any], *, folder: Path = Path(), where: str = "recipe") -> Self:
        """Check a mapping; relative paths in it start at `folder`.

        Raises:
            RecipeError: a key or value that is not supported, or a model that is no local folder.
        """
        try:
            if unknown := [key for key in raw if key not in cls.model_fields or key == "folder"]:
                way_out = _WAYS_OUT.get(unknown[0], "remove it")
                raise ValueError(f"the key {unknown[0]!r} is not supported: {way_out}")
            recipe = cls.model_validate({**raw, "folder": folder})
            for reference in (*recipe.references, *filter(None, [recipe.tokenizer_reference])):
                _check_reference(reference, folder)
        except ValidationError as error:
            raise RecipeError(f"{where}: {_fault(error)}") from None
        except ValueError as error:
            raise RecipeError(f"{where}: {error}") from None
        return recipe


def is_mergekit(raw: Mapping[str, Any]) -> bool:
    """Whether a recipe is one of mergekit's."""
    return "merge_method" in raw


def _check_reference(reference: str, folder: Path) -> None:
    # Unlike Path.is_dir it takes a name that is too long for no folder.
    if os.path.isdir(folder / reference):  # noqa: PTH112
        return
    if "+" in reference:
        raise ValueError(
            f"{reference!r} is a model with an adapter: merge the adapter into its model first and name the result's folder"
        )
    raise ValueError(
        f"the model {reference!r} is no folder (paths are relative to the recipe): models are read from this machine "
        "only, so download one of the hub first and give its folder"
    )


def _check_chat_template(text: str | None) -> None:
    if text is not None and text != "auto" and "{" not in text:
        raise ValueError(f"chat_template {text!r} is neither auto nor a template: give the template's text")


def _fault(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    if first["type"] == "extra_forbidden":
        key = str(first["loc"][-1])
        return f"{_path(first['loc'])}: not supported: {_WAYS_OUT.get(key, 'remove it')}"
    return first_fault(error)


def _path(places: Sequence[Any]) -> str:
    return ".".join(str(place) for place in places)
