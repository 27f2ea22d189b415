"""Grids: which merges to try for which targets, as a file."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from langmerge.coefficients import first_fault
from langmerge.errors import LangmergeError, RecipeError
from langmerge.locales import canonical_locale
from langmerge.methods import checked_parameters
from langmerge.selection import WEIGHTINGS
from langmerge.training import Training


class MethodChoice(BaseModel):
    """A method with parameters; everything left out takes the method's default."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str
    parameters: dict[str, Any] = Field(default_factory=dict)
    weights: str = "uniform"
    temperature: float = 0.1

    @property
    def name(self) -> str:
        """How tables call it: the method, and what was said beyond its defaults."""
        said = [f"{key}={value}" for key, value in self.parameters.items()]
        if self.weights == "softmax":
            said.append(f"softmax T={self.temperature}")
        elif self.weights != "uniform":
            said.append(self.weights)
        return f"{self.method}({', '.join(said)})" if said else self.method


class Grid(BaseModel):
    """Everything from the base to the numbers.

    Attributes:
        task: what for.
        base: `e5-small`, a folder or a hub id.
        sources: locales of the source experts.
        targets: locales to merge for; each gets its own expert too, as the reference "self".
        training: how experts are trained.
        k: numbers of sources; `all` for every one.
        modes: ExcTar, IncTar or both.
        methods: what is tried.
        columns: locales the experts are measured on: `all` for the whole picture, `targets` where time is short.
        matrix_limit: dev rows per locale behind the choice of sources and the verdict; all by default.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str
    base: str = "e5-small"
    sources: tuple[str, ...] = Field(min_length=2)
    targets: tuple[str, ...] = Field(min_length=1)
    training: Training = Training()
    k: tuple[Annotated[int, Field(ge=1)] | Literal["all"], ...] = (5,)
    modes: tuple[Literal["ExcTar", "IncTar"], ...] = ("ExcTar",)
    methods: tuple[MethodChoice, ...] = Field(min_length=1)
    columns: Literal["all", "targets"] = "all"
    matrix_limit: int | None = Field(None, ge=1)

    @field_validator("sources", "targets")
    @classmethod
    def _canonical(cls, locales: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(canonical_locale(locale) for locale in locales))

    @field_validator("methods")
    @classmethod
    def _known(cls, methods: tuple[MethodChoice, ...]) -> tuple[MethodChoice, ...]:
        for choice in methods:
            checked_parameters(choice.method, choice.parameters)
            if choice.weights not in WEIGHTINGS:
                raise ValueError(f"unknown weighting {choice.weights!r}: there are {', '.join(WEIGHTINGS)}")
        return methods

    @property
    def locales(self) -> tuple[str, ...]:
        """Locales that need an expert."""
        return tuple(dict.fromkeys([*self.sources, *self.targets]))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a grid file.

        Raises:
            RecipeError: missing, not YAML, an unknown key or a wrong value.
        """
        try:
            return cls.model_validate(yaml.safe_load(path.read_text()))
        except OSError as error:
            raise RecipeError(f"grid {path} cannot be read: {error.strerror}") from None
        except yaml.YAMLError as error:
            raise RecipeError(f"grid {path} is not valid YAML: {' '.join(str(error).split())}") from None
        except ValidationError as error:
            raise RecipeError(f"grid {path}: {first_fault(error)}") from None
        except LangmergeError as error:
            raise RecipeError(f"grid {path}: {error}") from None
