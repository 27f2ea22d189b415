"""A pool: the base with its head initialised once, then one expert per locale from that same base and head."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field

from langmerge import __version__
from langmerge.checkpoint import folder_signature, new_folder
from langmerge.errors import PoolError
from langmerge.executors import executed
from langmerge.models import (
    PROVENANCE_FILE,
    encode,
    keeps_head,
    load_classifier,
    load_tokenizer,
    new_classifier,
    save_classifier,
)
from langmerge.pool import Pool
from langmerge.progress import Progress, silent
from langmerge.results import signature
from langmerge.tasks import Examples, Task, load_task
from langmerge.training.bases import ORIGIN
from langmerge.training.expert import train_expert

JOINT = "langmerge_joint.json"
"""How a joint model was trained, in its folder."""


class Training(BaseModel):
    """How every expert of a pool is trained.

    Attributes:
        epochs: most passes over the training rows.
        max_train: most training rows per locale (the same parallel ids for every locale); None takes all.
        max_dev: most dev rows for early stopping; None takes all.
        lr: peak learning rate of the body.
        head_lr: peak learning rate of the head.
        batch_size: rows per optimiser step.
        seed: of the head, the order of rows and dropout.
        freeze_embeddings: leave the word embeddings as they are in the base.
        disjoint: locales among which the ids of the training rows are shared out: no id is seen by two of their experts.
            Empty: the same parallel ids for all.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: Annotated[int, Field(ge=1)] = 3
    max_train: Annotated[int, Field(ge=1)] | None = None
    max_dev: Annotated[int, Field(ge=1)] | None = 500
    lr: Annotated[float, Field(gt=0)] = 1e-4
    head_lr: Annotated[float, Field(gt=0)] = 2e-3
    batch_size: Annotated[int, Field(ge=1)] = 32
    seed: int = 0
    freeze_embeddings: bool = True
    disjoint: tuple[str, ...] = ()

    def rows(self, train: Examples) -> Examples:
        """What of a locale's training rows is trained on.

        Raises:
            PoolError: the locale has no part.
            DataError: its part is empty.
        """
        if self.disjoint and train.locale not in self.disjoint:
            raise PoolError(
                f"{train.locale} has no part of the training ids: they go to {', '.join(self.disjoint)}"
            )
        own = train.part(self.disjoint.index(train.locale), len(self.disjoint)) if self.disjoint else train
        return own.limited(self.max_train)

    def payload(self) -> dict[str, Any]:
        """What decides an expert; what later versions have added is there only where it is used."""
        said = self.model_dump()
        return said if self.disjoint else {key: value for key, value in said.items() if key != "disjoint"}


def train_pool(
    root: Path,
    *,
    base: Path | str,
    task: Task,
    locales: Sequence[str],
    training: Training,
    executor: str = "local",
    address: str | None = None,
    gpus: float = 0.0,
    data: Path | None = None,
    progress: Progress = silent,
) -> Pool:
    """Train what is missing of a pool; experts that are there with the same signature are kept.

    Args:
        root: the pool's folder.
        base: pretrained encoder: a folder or a hub id.
        task: what to train for.
        locales: one expert each.
        training: settings.
        executor: `local`, or `ray`: experts are trained on a cluster that sees the pool's folder.
        address: of the cluster.
        gpus: of an expert, as Ray counts them.
        data: where the workers of a cluster find the task's data.
        progress: told about every training step; on a cluster about every expert.

    Raises:
        InputError: there is no such executor.
        PoolError: the pool exists with another base, task or head seed.
        LocaleError: the task has no such locale (found before anything is trained).
    """
    for locale in locales:
        training.rows(task.load(locale, "train"))
    pool = open_pool(root, base=base, task=task, seed=training.seed)
    missing = untrained(pool, task, locales, training)
    if executor == "local":
        for locale in missing:
            _train_into(root, task, locale, training, progress)
        return Pool.load(root)
    works = [ExpertWork(root.absolute(), data, locale, training) for locale in missing]
    with progress("experts", len(works)) as advance:
        for _ in executed(train_one, works, executor=executor, address=address, gpus=gpus):
            advance(1)
    return Pool.load(root)


@dataclass(frozen=True)
class ExpertWork:
    """One expert to train, as it can be sent to another process.

    Attributes:
        root: the pool's folder.
        data: where the task's data is.
        locale: of the expert.
        training: settings.
    """

    root: Path
    data: Path | None
    locale: str
    training: Training


def train_one(work: ExpertWork) -> str:
    """Train an expert into its pool; gives its locale."""
    task = load_task(Pool.load(work.root).task, data=work.data)
    _train_into(work.root, task, work.locale, work.training, silent)
    return work.locale


def untrained(pool: Pool, task: Task, locales: Sequence[str], training: Training) -> list[str]:
    """Those of the locales whose experts a pool lacks, or has of other data or settings."""

    def signed(locale: str) -> Any:
        return pool.experts[locale].training.get("signature") if locale in pool.experts else None

    return [one for one in locales if signed(one) != expert_signature(pool, task, one, training)]


def _train_into(root: Path, task: Task, locale: str, training: Training, progress: Progress) -> None:
    pool, folder = Pool.load(root), root / "experts" / locale
    record = _train(pool, task, [locale], training, folder, progress)
    record["signature"] = expert_signature(pool, task, locale, training)
    # Another process may be training other locales of this pool.
    with FileLock(root / ".pool.lock"):
        Pool.load(root).with_expert(locale, folder, record).save()


def expert_signature(pool: Pool, task: Task, locale: str, training: Training) -> str:
    """What decides an expert: base, head, data, settings, version."""
    return signature(
        {
            "base": folder_signature(pool.base_folder),
            "task": task.name,
            "revision": task.revision,
            "locale": locale,
            "training": training.payload(),
            "langmerge": __version__,
        }
    )


def open_pool(root: Path, *, base: Path | str, task: Task, seed: int) -> Pool:
    """The pool at `root`, made with its base and task head if it is not there yet.

    Raises:
        PoolError: it is there with another base, task or head seed.
    """
    # A folder is known by its contents, so that a pool can be continued from another working directory.
    folder = Path(base)
    origin = {"base": folder_signature(folder) if folder.is_dir() else str(base), "head_seed": seed}
    if (root / "pool.yaml").exists():
        pool = Pool.load(root)
        if pool.task != task.name or pool.labels != task.labels:
            raise PoolError(f"pool {root} is for {pool.task}, not {task.name}: choose another folder")
        kept = pool.base_folder / ORIGIN
        if kept.exists() and (found := json.loads(kept.read_text())) != {**found, **origin}:
            raise PoolError(
                f"pool {root} was begun with {found}, now {origin} is asked for: choose another folder"
            )
        if not kept.exists() and origin["base"] != folder_signature(pool.base_folder):
            raise PoolError(
                f"pool {root} has a base of its own, {pool.base_folder}, and {base} is another: give that one, or choose "
                "another folder"
            )
        return pool
    model, tokenizer = new_classifier(base, task.labels, seed=seed)
    root.mkdir(parents=True, exist_ok=True)
    with new_folder(root / "base", overwrite=True) as folder:
        save_classifier(model, tokenizer, folder)
        (folder / ORIGIN).write_text(
            json.dumps({"name": str(base), **_provenance(base), **origin}, indent=1) + "\n"
        )
    pool = Pool(root=root, task=task.name, labels=task.labels, base=Path("base"))
    pool.save()
    return pool


def _provenance(base: Path | str) -> dict[str, Any]:
    file = Path(base) / PROVENANCE_FILE
    return dict(json.loads(file.read_text())) if file.exists() else {}


def joint_model(
    pool: Pool, task: Task, locales: Sequence[str], training: Training, *, progress: Progress = silent
) -> Path:
    """One model from the pool's base, trained on the rows of several locales together; kept in the pool's folder.

    Its epoch is chosen on dev rows of the same locales, `max_dev` of them altogether.

    Raises:
        LocaleError, PoolError: as for `train_pool`.
    """
    own = signature([expert_signature(pool, task, locale, training) for locale in locales])
    folder = pool.root / "joint" / own
    folder.parent.mkdir(exist_ok=True)
    # Several targets may want the same one at once.
    with FileLock(folder.with_name(f".{own}.lock")):
        if folder.exists():
            return folder
        _train(pool, task, locales, training, folder, progress, record_as=JOINT)
    return folder


def _train(
    pool: Pool,
    task: Task,
    locales: Sequence[str],
    training: Training,
    out: Path,
    progress: Progress,
    *,
    record_as: str | None = None,
) -> dict[str, Any]:
    """Train from the pool's base and write the model; its record, and a file of it if that is asked for."""
    model, tokenizer = load_classifier(pool.base_folder), load_tokenizer(pool.base_folder)
    if not keeps_head(pool.base_folder, task.labels):
        raise PoolError(f"the base of pool {pool.root} has other labels than {task.name}: make the pool anew")
    train = [training.rows(task.load(locale, "train")) for locale in locales]
    most = training.max_dev and math.ceil(training.max_dev / len(locales))
    dev = [task.load(locale, "dev").limited(most) for locale in locales]

    def encoded(examples: Sequence[Examples]) -> list[list[int]]:
        return [ids for one in examples for ids in encode(tokenizer, one.texts)]

    record = train_expert(
        model,
        encoded(train),
        np.concatenate([one.labels for one in train]),
        encoded(dev),
        np.concatenate([one.labels for one in dev]),
        epochs=training.epochs,
        lr=training.lr,
        head_lr=training.head_lr,
        batch_size=training.batch_size,
        seed=training.seed,
        freeze_embeddings=training.freeze_embeddings,
        progress=lambda description, total: progress(f"{', '.join(locales)}: {description}", total),
    )
    told = {
        **asdict(record), "dev_accuracy": list(record.dev_accuracy), "train_loss": list(record.train_loss)
    }  # fmt: skip
    with new_folder(out, overwrite=True) as folder:
        save_classifier(model, tokenizer, folder)
        if record_as is not None:
            (folder / record_as).write_text(json.dumps({"locales": list(locales), **told}, indent=1) + "\n")
    return told
