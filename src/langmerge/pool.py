"""A pool: one base and its experts by locale, listed in pool.yaml."""

import os
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from langmerge.coefficients import first_fault
from langmerge.errors import PoolError
from langmerge.files import replace_text
from langmerge.locales import canonical_locale

FORMAT = "langmerge-pool/1"


class Expert(BaseModel):
    """One expert: its folder, and the record of its training."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: Path
    training: dict[str, Any] = Field(default_factory=dict)


class Pool(BaseModel):
    """What pool.yaml says; paths are relative to the pool's folder.

    Attributes:
        root: the pool's folder.
        task: name of the task.
        labels: the task's labels, in order.
        base: folder of the base, with its task head.
        experts: by locale.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    root: Path = Field(exclude=True)
    format: str = FORMAT
    task: str
    labels: tuple[str, ...]
    base: Path
    experts: dict[str, Expert] = Field(default_factory=dict)

    @classmethod
    def load(cls, root: Path | str) -> Self:
        """Read `root`/pool.yaml.

        Raises:
            PoolError: missing or malformed, or a listed folder does not exist.
        """
        root = Path(root)
        path = root / "pool.yaml"
        try:
            raw = yaml.safe_load(path.read_text())
            pool = cls.model_validate({**raw, "root": root})
        except OSError:
            raise PoolError(
                f"{path} does not exist: make a pool with langmerge train or langmerge pool create"
            ) from None
        except (yaml.YAMLError, UnicodeDecodeError, TypeError) as error:
            raise PoolError(f"{path} is no pool file: {' '.join(str(error).split())}") from None
        except ValidationError as error:
            raise PoolError(f"{path}: {first_fault(error)}") from None
        if pool.format != FORMAT:
            raise PoolError(f"{path}: format is {pool.format!r}; this version reads {FORMAT!r}")
        for name, folder in {
            "base": pool.base_folder,
            **{loc: pool.expert(loc) for loc in pool.experts},
        }.items():
            if not folder.is_dir():
                raise PoolError(f"{path} lists {name} at {folder}, which does not exist")
        return pool

    def save(self) -> None:
        """Write pool.yaml, atomically."""
        self.root.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        replace_text(self.root / "pool.yaml", text)

    @property
    def base_folder(self) -> Path:
        """Where the base is."""
        return self.root / self.base

    @property
    def locales(self) -> tuple[str, ...]:
        """Locales that have an expert, in alphabetical order."""
        return tuple(sorted(self.experts))

    def expert(self, locale: str) -> Path:
        """Folder of a locale's expert.

        Raises:
            PoolError: the pool has none.
        """
        if locale not in self.experts:
            raise PoolError(
                f"pool {self.root} has no expert for {locale!r}: it has {', '.join(self.locales) or 'none'}"
            )
        return self.root / self.experts[locale].folder

    def with_expert(self, locale: str, folder: Path, training: dict[str, Any] | None = None) -> Self:
        """A copy with one expert more; `folder` is stored relative to the root where it lies inside."""
        locale = canonical_locale(locale)
        expert = Expert(folder=_inside(folder, self.root), training=training or {})
        return self.model_copy(update={"experts": {**self.experts, locale: expert}})

    def with_base(self, folder: Path) -> Self:
        """A copy with this base."""
        return self.model_copy(update={"base": _inside(folder, self.root)})


def _inside(folder: Path, root: Path) -> Path:
    folder, root = folder.absolute(), root.absolute()
    return folder.relative_to(root) if folder.is_relative_to(root) else Path(os.path.realpath(folder))
