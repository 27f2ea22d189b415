"""Grids: which merges to try for which targets, as a file."""

from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from langmerge.coefficients import first_fault
from langmerge.errors import LangmergeError, RecipeError
from langmerge.locales import canonical_locale
from langmerge.methods import checked_parameters
from langmerge.results.ensembles import ENSEMBLES
from langmerge.results.study import REFERENCES, Kind
from langmerge.selection import WEIGHTINGS, check_selector
from langmerge.training import Training

Mode = Literal["ExcTar", "IncTar"]

Head = Literal["merge", "mean", "base", "regmean"]


class MethodChoice(BaseModel):
    """A method with parameters; everything left out takes the method's default.

    Attributes:
        method: its name.
        parameters: values.
        vary: parameter → values, of which every combination is tried.
        weights: how a selection's scores become coefficients.
        temperature: of softmax.
        own: IncTar: share of the target's own expert; by `weights` like the others if None. Nothing in ExcTar.
        head: of the merge, as in a recipe; `regmean` runs the sources on the task's text of the target, without labels.
        modes: of the grid's modes those that it is for; all by default.
        selectors: the same of its selectors.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str
    parameters: dict[str, Any] = Field(default_factory=dict)
    vary: dict[str, list[Any]] = Field(default_factory=dict)
    weights: str = "uniform"
    temperature: float = 0.1
    own: Annotated[float, Field(ge=0, le=1)] | None = None
    head: Head = "merge"
    modes: tuple[Mode, ...] = ()
    selectors: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """How tables call it: the method, and what was said beyond its defaults."""
        said = [f"{key}={value}" for key, value in sorted(self.parameters.items())]
        if self.weights in ("softmax", "sinkhorn"):
            said.append(f"{self.weights} T={self.temperature}")
        elif self.weights != "uniform":
            said.append(self.weights)
        if self.own is not None:
            said.append(f"own={self.own}")
        if self.head != "merge":
            said.append(f"head={self.head}")
        return f"{self.method}({', '.join(said)})" if said else self.method

    def each(self) -> tuple["MethodChoice", ...]:
        """One choice for every combination of what varies."""
        return tuple(
            self.model_copy(
                update={
                    "parameters": {**self.parameters, **dict(zip(self.vary, values, strict=True))},
                    "vary": {},
                }
            )
            for values in product(*self.vary.values())
        )


class Grid(BaseModel):
    """Everything from the base to the numbers.

    Attributes:
        task: what for.
        base: `e5-small`, a folder or a hub id.
        sources: locales of the source experts.
        targets: locales to merge for; each gets its own expert too, as the reference "self".
        training: how experts are trained.
        ids: of the training rows: `parallel`, the same for every expert, or `disjoint`, none seen by two.
        seeds: of the training: a pool for each; `training`'s own by default.
        selectors: by which sources are chosen; see `langmerge select --help`.
        k: numbers of sources; `all` for every one.
        modes: ExcTar, IncTar or both.
        methods: what is tried.
        ensembles: upper references, from the experts' kept logits.
        references: single experts beside the merges.
        joint: one model trained on the data of the chosen sources together, how (`max_train` that of `training` unless
            given); none by default: it takes as long as all of them.
        columns: locales the experts are measured on: `all` for the whole picture, `targets` where time is short.
        matrix_limit: dev rows per locale behind the choice of sources and the verdict; all by default.
        test_limit: test rows per locale that everything is reported on; all by default.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str
    base: str = "e5-small"
    sources: tuple[str, ...] = Field(min_length=2)
    targets: tuple[str, ...] = Field(min_length=1)
    training: Training = Training()
    ids: Literal["parallel", "disjoint"] = "parallel"
    seeds: tuple[int, ...] = ()
    selectors: tuple[str, ...] = Field(("measured",), min_length=1)
    k: tuple[Annotated[int, Field(ge=1)] | Literal["all"], ...] = (5,)
    modes: tuple[Mode, ...] = ("ExcTar",)
    methods: tuple[MethodChoice, ...] = Field(min_length=1)
    ensembles: tuple[str, ...] = tuple(ENSEMBLES)
    references: tuple[Kind, ...] = REFERENCES
    joint: Training | None = None
    columns: Literal["all", "targets"] = "all"
    matrix_limit: int | None = Field(None, ge=1)
    test_limit: int | None = Field(None, ge=1)

    @field_validator("sources", "targets")
    @classmethod
    def _canonical(cls, locales: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(canonical_locale(locale) for locale in locales))

    @field_validator("methods")
    @classmethod
    def _known(cls, methods: tuple[MethodChoice, ...]) -> tuple[MethodChoice, ...]:
        for choice in methods:
            if twice := sorted(choice.vary.keys() & choice.parameters.keys()):
                raise ValueError(f"{choice.method}: {twice[0]} is given twice, in parameters and in vary")
            if empty := [name for name, values in choice.vary.items() if not values]:
                raise ValueError(f"{choice.method}: vary {empty[0]} has no values")
            for one in choice.each():
                checked_parameters(one.method, one.parameters)
            if choice.own is not None and choice.modes == ("ExcTar",):
                raise ValueError(f"{choice.method}: own is for IncTar, and modes says ExcTar")
            if choice.weights not in WEIGHTINGS:
                raise ValueError(f"unknown weighting {choice.weights!r}: there are {', '.join(WEIGHTINGS)}")
        return methods

    @field_validator("training", "joint")
    @classmethod
    def _told_elsewhere(cls, training: Training | None, info: ValidationInfo) -> Training | None:
        if training is not None and training.disjoint:
            raise ValueError("disjoint is not said here: write ids: disjoint")
        if training is not None and info.field_name == "joint" and training.seed:
            raise ValueError("joint models have the seeds of the experts: leave seed out")
        return training

    @field_validator("selectors")
    @classmethod
    def _selectors(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            check_selector(name)
            if name == "manual":
                raise ValueError("selector manual has no scores in a grid: write coefficients instead")
        return tuple(dict.fromkeys(names))

    @field_validator("ensembles")
    @classmethod
    def _ensembles(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [name for name in names if name not in ENSEMBLES]:
            raise ValueError(f"unknown ensemble {unknown[0]!r}: there are {', '.join(ENSEMBLES)}")
        return tuple(dict.fromkeys(names))

    @field_validator("references")
    @classmethod
    def _references(cls, kinds: tuple[Kind, ...]) -> tuple[Kind, ...]:
        if other := [kind for kind in kinds if kind not in REFERENCES]:
            raise ValueError(f"{other[0]!r} is no single expert: there are {', '.join(REFERENCES)}")
        return tuple(dict.fromkeys(kinds))

    @model_validator(mode="after")
    def _modes_of_methods(self) -> Self:
        for choice in self.methods:
            for own, there in ((choice.modes, self.modes), (choice.selectors, self.selectors)):
                if not set(own) <= set(there):
                    raise ValueError(
                        f"{choice.name} is for {', '.join(own)}, the grid for {', '.join(there)}"
                    )
            if choice.own is not None and "IncTar" not in self.modes:
                raise ValueError(
                    f"{choice.name}: own is the share of the target's own expert, and modes has no IncTar"
                )
        return self

    @property
    def locales(self) -> tuple[str, ...]:
        """Locales that need an expert."""
        return tuple(dict.fromkeys([*self.sources, *self.targets]))

    @property
    def measured_on(self) -> tuple[str, ...]:
        """Columns of the dev matrix."""
        return self.locales if self.columns == "all" else self.targets

    @property
    def choices(self) -> tuple[MethodChoice, ...]:
        """Every method with every combination of what varies."""
        return tuple(one for choice in self.methods for one in choice.each())

    @property
    def trainings(self) -> tuple[Training, ...]:
        """One for each seed."""
        seeds = self.seeds or (self.training.seed,)
        return tuple(self._seeded(self.training, seed) for seed in dict.fromkeys(seeds))

    def joint_training(self, seed: int) -> Training | None:
        """Of the joint models of a seed, on the rows that the experts have, unless others are asked for."""
        if self.joint is None:
            return None
        given = "max_train" in self.joint.model_fields_set
        same = {} if given else {"max_train": self.training.max_train}
        return self._seeded(self.joint.model_copy(update=same), seed)

    def _seeded(self, training: Training, seed: int) -> Training:
        shared_out = self.locales if self.ids == "disjoint" else ()
        return training.model_copy(update={"seed": seed, "disjoint": shared_out})

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
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise RecipeError(f"grid {path} is not valid YAML: {' '.join(str(error).split())}") from None
        except ValidationError as error:
            raise RecipeError(f"grid {path}: {first_fault(error)}") from None
        except LangmergeError as error:
            raise RecipeError(f"grid {path}: {error}") from None
