"""Iterative merging: train, merge, train on from the merge; beside it the same training without merging."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from langmerge.coefficients import Coefficients, first_fault
from langmerge.engine import make_plan, merge, recipe_payload
from langmerge.errors import InputError, PoolError
from langmerge.experiments.rounds_table import RoundRow, scores, table
from langmerge.files import replace_text
from langmerge.locales import canonical_locale
from langmerge.methods import checked_parameters, spec_of
from langmerge.pool import Pool
from langmerge.progress import Progress, silent
from langmerge.recipe import Recipe
from langmerge.results import signature
from langmerge.tasks import Task, load_task
from langmerge.training import Training, ensure_base, train_pool

FORMAT = "langmerge-rounds/1"

RESULT = "rounds.json"
"""In the folder of the rounds: settings and rows."""


class RoundsSettings(BaseModel):
    """What decides everything.

    Attributes:
        task: what for.
        base: `e5-small`, a folder or a hub id.
        locales: one expert each.
        targets: locales to score on; those of the experts by default.
        rounds: how often to train and merge.
        method: by which to merge, with equal coefficients.
        parameters: of the method.
        about: what task vectors are taken against: `base`, the pretrained one, or `round`, what the round started from.
        training: of one round: its epochs are those of a round. Round r has the seed plus r − 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str
    base: str = "e5-small"
    locales: tuple[str, ...] = Field(min_length=2)
    targets: tuple[str, ...] = ()
    rounds: Annotated[int, Field(ge=1)] = 3
    method: str = "linear"
    parameters: dict[str, Any] = Field(default_factory=dict)
    about: Literal["base", "round"] = "base"
    training: Training = Training(epochs=1)

    @classmethod
    def checked(cls, **fields: Any) -> Self:
        """The settings, or one line that says what is wrong with them.

        Raises:
            InputError: a value outside its range, or values that do not go together.
            MethodError: an unknown method or parameter.
            LocaleError: no such locale.
        """
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise InputError(f"rounds: {first_fault(error)}") from None

    @field_validator("locales", "targets")
    @classmethod
    def _canonical(cls, locales: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(canonical_locale(locale) for locale in locales))

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        checked_parameters(self.method, self.parameters)
        low, high = spec_of(self.method).sources
        if not low <= len(self.locales) <= (high or len(self.locales)):
            raise ValueError(
                f"method {self.method} does not merge {len(self.locales)} experts: choose another"
            )
        if len(self.locales) < 2:
            raise ValueError(
                f"one locale alone ({self.locales[0]}) has nothing to merge with: give two or more"
            )
        return self

    @property
    def scored(self) -> tuple[str, ...]:
        """Locales of the table."""
        return self.targets or self.locales

    def training_of(self, number: int) -> Training:
        """How experts are trained in a round, from 1."""
        return self.training.model_copy(update={"seed": self.training.seed + number - 1})


@dataclass(frozen=True)
class Rounds:
    """What came out.

    Attributes:
        settings: of it all.
        revision: of the task's data.
        limit: at most so many dev rows were scored.
        rows: by round and target.
        steps: optimiser steps of each round's experts: by round, `merged` or `control`, and locale.
    """

    settings: RoundsSettings
    revision: str
    limit: int | None
    rows: tuple[RoundRow, ...]
    steps: tuple[Mapping[str, Mapping[str, int]], ...]

    @property
    def same_steps(self) -> bool:
        """Whether the control took as many steps; stopping early on dev can part them where a round has many epochs."""
        return all(one["merged"] == one["control"] for one in self.steps)

    def payload(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "format": FORMAT,
            "settings": self.settings.model_dump(mode="json"),
            "revision": self.revision,
            "limit": self.limit,
            "rows": [asdict(row) for row in self.rows],
            "steps": [dict(one) for one in self.steps],
            "same_steps": self.same_steps,
        }

    def save(self, path: Path) -> None:
        """Write as JSON, atomically."""
        replace_text(path, json.dumps(self.payload(), indent=1, ensure_ascii=False) + "\n")


def run_rounds(
    settings: RoundsSettings,
    root: Path,
    *,
    data: Path | None = None,
    limit: int | None = None,
    progress: Progress = silent,
) -> Rounds:
    """Train and merge in rounds; whatever is finished is kept, and a second call goes on from there.

    Round 1 trains every expert from the base with its one head (`round-1`, an ordinary pool) and merges them into
    `round-1/merged`, from which round 2 trains, and so on. The control's experts (`control-2`, …) go on from their own
    weights instead: same data, seeds, order of batches and learning rates, as many epochs; their merge is
    `control-2/merged`. In round 1 both are the same experts.

    Conventions: the optimiser and its schedule begin anew with each round, in both runs. The control's experts have no
    start in common but the base, so their task vectors are taken against it whatever `about` says.

    Args:
        settings: what to do. More rounds may be asked for later; other targets too, unless the base is `e5-small`: its
            vocabulary is that of the locales it was made for.
        root: folder for everything.
        data: where the task's data is.
        limit: at most so many dev rows of a target.
        progress: told about every step.

    Returns:
        The table, also written to `root`/rounds.json after every round.

    Raises:
        PoolError: the folder was begun with other settings.
        OutputError: it has an offline base made for other locales.
        LocaleError: the task has no such locale (found before anything is trained).
    """
    task = load_task(settings.task, data=data)
    for locale in dict.fromkeys([*settings.locales, *settings.scored]):
        task.load(locale, "train" if locale in settings.locales else "dev")
    _check_begun(root, settings)
    read = tuple(dict.fromkeys([*settings.locales, *settings.scored]))
    base = ensure_base(settings.base, root / "pretrained", task=task, locales=read, progress=progress)
    found = Rounds(settings, task.revision, limit, (), ())
    runs = _Runs(root, task, settings, base, progress)
    for number in range(1, settings.rounds + 1):
        pool = runs.trained(number)
        merged = runs.merged(pool, about=settings.about)
        control = runs.control(number)
        control_merged = merged if number == 1 else runs.merged(control, about="base")
        rows = table(
            number,
            settings.scored,
            scores(pool, merged, task, settings.scored, limit, progress),
            scores(control, control_merged, task, settings.scored, limit, progress),
        )
        steps = {"merged": _steps(pool), "control": _steps(control)}
        found = Rounds(settings, task.revision, limit, (*found.rows, *rows), (*found.steps, steps))
        found.save(root / RESULT)
    return found


def _check_begun(root: Path, settings: RoundsSettings) -> None:
    """Raise where the folder holds rounds of other settings; if it holds none, say there which ones it will have."""
    file = root / RESULT
    free = {"rounds", "targets"}
    wanted = {k: v for k, v in settings.model_dump(mode="json").items() if k not in free}
    if not file.exists():
        root.mkdir(parents=True, exist_ok=True)
        Rounds(settings, "", None, (), ()).save(file)
        return
    try:
        said = json.loads(file.read_text(encoding="utf-8"))["settings"]
        # An older file lacks what later versions have added: it was begun with the default.
        kept = RoundsSettings.model_validate(said).model_dump(mode="json")
        other = [key for key in wanted if kept[key] != wanted[key]]
    except (OSError, ValueError, KeyError, TypeError):
        raise PoolError(f"{file} is no file of rounds: choose another folder") from None
    if other:
        key = other[0]
        raise PoolError(
            f"the rounds in {root} were begun with {key} {kept[key]}, now {wanted[key]} is asked for: "
            "choose another folder"
        )


class _Runs:
    """The folders of both runs, each made once."""

    def __init__(
        self, root: Path, task: Task, settings: RoundsSettings, base: Path | str, progress: Progress
    ) -> None:
        self._root, self._task, self._settings = root, task, settings
        self._base, self._progress = base, progress

    def trained(self, number: int) -> Pool:
        """The round's experts, from the base or from what the round before merged."""
        folder = self._root / f"round-{number}"
        start: Path | str = self._base
        if number > 1:
            start = self._root / f"round-{number - 1}" / "merged"
            self._begin(folder, start)
        return self._train(folder, start, self._settings.locales, number)

    def control(self, number: int) -> Pool:
        """The control's experts after as many rounds: a pool on the pretrained base."""
        folder = self._root / f"control-{number}"
        experts = {}
        if number == 1:
            first = Pool.load(self._root / "round-1")
            for locale in self._settings.locales:
                experts[locale] = (first.expert(locale), first.experts[locale].training)
        else:
            before = Pool.load(self._root / f"control-{number - 1}")
            for locale in self._settings.locales:
                start = before.expert(locale)
                # A pool of its own: no two of them start from the same weights.
                self._begin(folder / locale, start)
                alone = self._train(folder / locale, start, [locale], number)
                experts[locale] = (alone.expert(locale), alone.experts[locale].training)
        raw = {
            "task": self._task.name,
            "labels": self._task.labels,
            "base": _relative(self._root / "round-1" / "base", folder),
            "experts": {
                locale: {"folder": _relative(expert, folder), "training": record}
                for locale, (expert, record) in experts.items()
            },
        }
        pool = Pool.model_validate({**raw, "root": folder})
        pool.save()
        return pool

    def merged(self, pool: Pool, *, about: str) -> Path:
        """The merge of a pool's experts, in its folder."""
        base = self._root / "round-1" / "base" if about == "base" else pool.base_folder
        locales = self._settings.locales
        recipe = Recipe(
            base=base,
            sources={locale: pool.expert(locale) for locale in locales},
            method=self._settings.method,
            parameters=self._settings.parameters,
            coefficients=Coefficients.uniform(locales),
        )
        out = pool.root / "merged"
        wanted = signature(recipe_payload(make_plan(recipe)))
        if not (out / "langmerge.json").exists() or _signed(out) != wanted:
            merge(recipe, out, overwrite=True, progress=self._progress)
        return out

    def _train(self, folder: Path, start: Path | str, locales: Sequence[str], number: int) -> Pool:
        return train_pool(
            folder,
            base=start,
            task=self._task,
            locales=locales,
            training=self._settings.training_of(number),
            progress=lambda text, total: self._progress(f"{folder.relative_to(self._root)} {text}", total),
        )

    def _begin(self, folder: Path, start: Path) -> None:
        """A pool whose base is a trained classifier where it is: `train_pool` would copy it."""
        if (folder / "pool.yaml").exists():
            return
        base = _relative(start, folder)
        Pool(root=folder, task=self._task.name, labels=self._task.labels, base=base).save()


def _relative(path: Path, folder: Path) -> Path:
    """From a folder to a path beside it: everything can be moved together."""
    return Path(os.path.relpath(path, folder))


def _signed(folder: Path) -> str:
    return str(json.loads((folder / "langmerge.json").read_text(encoding="utf-8"))["signature"])


def _steps(pool: Pool) -> dict[str, int]:
    return {locale: int(pool.experts[locale].training["steps"]) for locale in pool.locales}
