"""Recipes: what to merge, as a file."""

from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from langmerge.coefficients import Coefficients, first_fault
from langmerge.errors import RecipeError


class _UniqueKeys(yaml.SafeLoader):
    """YAML whose mappings name every key once: of two sources with one name, the first would vanish."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value]
        if twice := [name for name in names if names.count(name) > 1]:
            raise yaml.constructor.ConstructorError(
                None, None, f"found the key {twice[0]!r} twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping that a YAML recipe holds, not yet checked.

    Raises:
        RecipeError: missing, not YAML, a key given twice, or no mapping.
    """
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeys)
    except OSError as error:
        raise RecipeError(f"recipe {path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"recipe {path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise RecipeError(f"recipe {path} holds no mapping: it needs base, sources and method")
    return raw


_MOST_LAYERS = 10_000
"""No model has so many: a number beyond is a slip, and would fill the memory as a range."""

_PARTS = ("merge", "mean", "base")


def layer_numbers(text: str) -> frozenset[int]:
    """`0-3,8` as numbers.

    >>> sorted(layer_numbers("0-3,8"))
    [0, 1, 2, 3, 8]

    Raises:
        ValueError: no such list.
    """
    found: set[int] = set()
    for part in filter(None, text.replace(" ", "").split(",")):
        first, dash, last = part.partition("-")
        ends = [first, last] if dash else [first]
        if not all(end.isdecimal() and int(end) < _MOST_LAYERS for end in ends) or int(ends[-1]) < int(first):
            raise ValueError(f"layers is {text!r}: write numbers and ranges, like 4-7 or 0-3,8")
        found |= set(range(int(first), int(ends[-1]) + 1))
    if not found:
        raise ValueError(f"layers is {text!r}: write numbers and ranges, like 4-7 or 0-3,8")
    return frozenset(found)


class Recipe(BaseModel):
    """A merge, fully said: base, sources, method, parameters, coefficients.

    Example (YAML):
        base: pool/base
        sources:
          de-DE: pool/experts/de-DE
          fr-FR: pool/experts/fr-FR
        method: ties
        parameters: {density: 0.2}
        coefficients: {de-DE: 0.5, fr-FR: 0.5}    # or the path of a coefficients file; uniform if left out

    Attributes:
        base: folder of the pretrained model that every source was fine-tuned from.
        sources: folder of each source, by locale or any other name.
        method: a name from `METHODS`.
        parameters: of the method.
        coefficients: a number per source, a coefficients file, or nothing for uniform.
        embeddings: `merge` like everything else, `mean` of the sources, `base`, or `source:<name>` for one source's.
        head: the same for the head; with `base` other heads of the sources are not looked at, `mean` does not look at the base's. `regmean` merges its matrices by the Grams in
            `statistics`, whatever the method, and gives the rest the mean.
        layers: numbers of the layers that the method merges, like `4-7` or `0-3,8`; all by default.
        other_layers: what becomes of the others: `base`, `mean` or `source:<name>`.
        dtype: stored dtype of the output (safetensors name, like BF16); the inputs' by default.
        target: the locale that the merge is for; only recorded.
        statistics: a file per source, made by `langmerge learn fisher` or `langmerge learn gram` for a method (or a head)
            that reads it.
        pickle: take models that have only `pytorch_model.bin`; they are read without running code.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: Path
    sources: dict[str, Path] = Field(min_length=1)
    method: str
    parameters: dict[str, Any] = Field(default_factory=dict)
    coefficients: Coefficients | None = None
    embeddings: str = "merge"
    head: str = "merge"
    layers: str | None = None
    other_layers: str = "base"
    dtype: Literal["F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"] | None = None
    target: str | None = None
    statistics: dict[str, Path] = Field(default_factory=dict)
    pickle: bool = False

    @field_validator("coefficients", mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        if isinstance(value, dict) and "values" not in value:
            return {"values": {"model": value}}
        return value

    @field_validator("layers", mode="before")
    @classmethod
    def _layers_as_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("layers")
    @classmethod
    def _layers_are_ranges(cls, value: str | None) -> str | None:
        if value is not None:
            layer_numbers(value)
        return value

    @model_validator(mode="after")
    def _parts_name_what_there_is(self) -> Self:
        head = (*_PARTS, "regmean")
        for key, words in (("embeddings", _PARTS), ("head", head), ("other_layers", _PARTS[1:])):
            said = getattr(self, key)
            if said not in words and said not in {f"source:{name}" for name in self.sources}:
                raise ValueError(
                    f"{key} is {said!r}: it must be {', '.join(words)} or source:<name of a source>"
                )
        return self

    @model_validator(mode="after")
    def _other_layers_are_others(self) -> Self:
        if self.layers is None and self.other_layers != "base":
            raise ValueError(
                f"other_layers is {self.other_layers!r}, and without layers there are no others: say which layers are merged"
            )
        return self

    @property
    def blocks(self) -> frozenset[int]:
        """Numbers of the layers that the method merges, where `layers` is given."""
        return layer_numbers(self.layers) if self.layers is not None else frozenset()

    @model_validator(mode="after")
    def _coefficients_name_the_sources(self) -> Self:
        if self.coefficients is not None and set(self.coefficients.sources) != set(self.sources):
            raise ValueError(
                f"coefficients are for {sorted(self.coefficients.sources)}, sources are {sorted(self.sources)}: "
                "every source needs a coefficient, and every coefficient a source"
            )
        return self

    @property
    def weights(self) -> Coefficients:
        """The coefficients, uniform where none were given."""
        return self.coefficients or Coefficients.uniform(tuple(self.sources))

    def recorded(self) -> dict[str, Any]:
        """As a receipt keeps it: from another folder, too, it must name the same inputs."""
        dumped = self.model_dump(mode="json", exclude_none=True, exclude={"statistics"})
        dumped["base"] = str(self.base.absolute())
        dumped["sources"] = {name: str(folder.absolute()) for name, folder in self.sources.items()}
        files = {name: str(file.absolute()) for name, file in self.statistics.items()}
        return dumped | ({"statistics": files} if files else {})

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a YAML recipe; paths in it are relative to its folder.

        Raises:
            RecipeError: missing, not YAML, a key given twice, an unknown key, or a rule above broken.
        """
        path = Path(path)
        return cls.parse(read_mapping(path), folder=path.parent, where=f"recipe {path}")

    @classmethod
    def parse(cls, raw: dict[str, Any], *, folder: Path = Path(), where: str = "recipe") -> Self:
        """Check a mapping; relative paths in it start at `folder`.

        Raises:
            RecipeError: an unknown key, or a rule above broken.
        """
        raw = dict(raw)
        if isinstance(raw.get("coefficients"), str):
            raw["coefficients"] = Coefficients.load(folder / raw["coefficients"])
        try:
            recipe = cls.model_validate(raw)
        except ValidationError as error:
            raise RecipeError(f"{where}: {first_fault(error)}") from None
        absolute = {name: folder / source for name, source in recipe.sources.items()}
        statistics = {name: folder / file for name, file in recipe.statistics.items()}
        return recipe.model_copy(
            update={"base": folder / recipe.base, "sources": absolute, "statistics": statistics}
        )
