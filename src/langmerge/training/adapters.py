"""A bench of adapters: one per task and language, all from one base and one draw, so that their differences mean something."""

import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field

from langmerge import __version__
from langmerge.adapters.applied import put_in
from langmerge.adapters.reading import RECORD, open_parsed
from langmerge.adapters.writing import FORMAT
from langmerge.checkpoint import folder_signature, new_folder, read_json
from langmerge.errors import PoolError
from langmerge.models import (
    AdapterShape,
    Form,
    add_adapter,
    encode,
    keeps_head,
    load_classifier,
    load_form,
    load_tokenizer,
    new_classifier,
    new_model,
    save_classifier,
)
from langmerge.progress import Progress, silent
from langmerge.results import signature
from langmerge.tasks import Examples, SlotTask, Task, load_task, slot_task, task_text
from langmerge.training.completion import Row, completions, train_completion
from langmerge.training.expert import train_expert
from langmerge.training.fitting import Pace
from langmerge.training.masked import train_masked
from langmerge.training.tokens import train_slots

FORMS: dict[str, Form] = {"mlm:": "masked", "clm:": "causal", "prompt:": "causal"}
"""Before a task's name: masked or causal language modelling on its text without its labels; or its labels' names as what a
causal language model goes on with."""

SLOTS = "massive:slots"

RATES = {"lora": 2e-3, "ia3": 1e-2, "prefix": 3e-2}
"""Peak learning rates of adapters, by kind. A prefix at 1e-2 or 1e-1 learns half as much in three epochs."""

LANGUAGE_RATES = {"lora": 3e-4}
"""The same for masked language modelling, where another is known to be better: at 2e-3 the encoder is lost (docs/results.md)."""


class AdapterTraining(BaseModel):
    """How every adapter of a bench is trained.

    Attributes:
        shape: of the adapter.
        epochs: most passes.
        max_train: most training rows per locale (the same parallel ids for every locale); None takes all.
        max_dev: most dev rows to choose the epoch by.
        lr: peak learning rate of the adapter; that of `RATES` and `LANGUAGE_RATES` by default.
        head_lr: peak learning rate of the head.
        batch_size: rows in a step.
        seed: of the adapter's draw, the order of rows and dropout.
        shared: every task and locale begins at the same draw; without, each at its own.
        prompt: of `prompt:` tasks, with {text} in it; the label's name is the completion.
        on: a task with adapters of the same locales, such as a language model's: the new adapters are trained on the base
            with those put in for good (MAD-X: a task above a language). They mean nothing without one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    shape: AdapterShape = AdapterShape()
    epochs: Annotated[int, Field(ge=1)] = 3
    max_train: Annotated[int, Field(ge=1)] | None = None
    max_dev: Annotated[int, Field(ge=1)] | None = 500
    lr: Annotated[float, Field(gt=0)] | None = None
    head_lr: Annotated[float, Field(gt=0)] = 2e-3
    batch_size: Annotated[int, Field(ge=1)] = 32
    seed: int = 0
    shared: bool = True
    prompt: str = "{text}\nlabel: "
    on: str | None = None

    def rate(self, task: str) -> float:
        """The adapter's peak learning rate for a task."""
        if self.lr is not None:
            return self.lr
        kind = self.shape.kind
        return LANGUAGE_RATES.get(kind, RATES[kind]) if form_of(task)[0] == "masked" else RATES[kind]

    def draw(self, task: str, locale: str) -> int:
        """The seed of one adapter's draw."""
        return self.seed if self.shared else int(signature([self.seed, task, locale])[:7], 16)


@dataclass(frozen=True)
class Bench:
    """Where adapters lie: `base/<task>` and `adapters/<task>/<locale>`.

    Attributes:
        root: the folder.
        base: the pretrained encoder that all stand on.
        data: where tasks have their text.
    """

    root: Path
    base: Path
    data: Path | None = None

    @classmethod
    def opened(cls, root: Path, *, base: Path | None = None, data: Path | None = None) -> "Bench":
        """The bench at `root`, made if it is not there and a base is given.

        Raises:
            PoolError: it is not there, or has another base.
        """
        file = root / "bench.json"
        if not file.is_file():
            if base is None:
                raise PoolError(
                    f"{root} is no bench of adapters: make one with langmerge adapters train --base DIR"
                )
            pretrained = folder_signature(base)
            root.mkdir(parents=True, exist_ok=True)
            file.write_text(
                json.dumps({"base": str(base.absolute()), "pretrained": pretrained}, indent=1) + "\n"
            )
        found = read_json(file)
        if base is not None and folder_signature(base) != found["pretrained"]:
            raise PoolError(f"bench {root} stands on {found['base']}, not on {base}: choose another folder")
        return cls(root, Path(found["base"]), data)

    @cached_property
    def pretrained(self) -> str:
        """Signature of the base."""
        return str(read_json(self.root / "bench.json")["pretrained"])

    def adapter(self, task: str, locale: str, *, on: str | None = None) -> Path:
        """An adapter's folder; `on`: as in `AdapterTraining`."""
        name = _place(task) if on is None else f"{_place(task)}.on.{_place(on)}"
        return self.root / "adapters" / name / locale

    def trained(self, task: str, locale: str, *, on: str | None = None) -> Path:
        """An adapter's folder.

        Raises:
            PoolError: it is not there.
        """
        folder = self.adapter(task, locale, on=on)
        if not (folder / RECORD).is_file():
            raise PoolError(
                f"bench {self.root} has no adapter for {task} in {locale}: langmerge adapters train {self.root} --task {task} "
                f"--locales {locale}"
            )
        return folder

    def model(self, task: str) -> Path:
        """The base with the task's head, made once from seed 0: every adapter of the task begins with it."""
        folder = self.root / "base" / _place(task)
        with FileLock(self.root / ".bench.lock"):
            if not folder.is_dir():
                if folder_signature(self.base) != self.pretrained:
                    raise PoolError(
                        f"bench {self.root} stands on {self.base}, which has changed: make a new bench"
                    )
                form, plain = form_of(task)
                if form == "classifier":
                    made = new_classifier(self.base, load_task(plain, data=self.data).labels, seed=0)
                else:
                    labels = slot_task(self.data).labels if form == "tokens" else ()
                    made = new_model(self.base, form, seed=0, labels=labels)
                with new_folder(folder) as place:
                    save_classifier(*made, place)
            self._check_labels(task, folder)
        return folder

    def _check_labels(self, task: str, folder: Path) -> None:
        """A task's labels may have changed since its head was made: rows would be called what they are not."""
        form, plain = form_of(task)
        if form == "classifier" and not keeps_head(folder, load_task(plain, data=self.data).labels):
            raise PoolError(f"bench {self.root} has a head for other labels of {task}: make a new bench")


def _place(task: str) -> str:
    """A task's name as that of a folder."""
    plain = re.sub(r"[^\w.]+", "-", task)
    # Of two paths that differ in a slash and a hyphen each has its own.
    told_apart = len(plain) <= 80 and "folder:" not in task
    return plain if told_apart else f"{plain[-60:].lstrip('-')}-{signature(task)}"


def form_of(task: str) -> tuple[Form, str]:
    """What a model for a task says, and the name of the task whose text it reads.

    >>> form_of("mlm:sib200:topic"), form_of("massive:intent")
    (('masked', 'sib200:topic'), ('classifier', 'massive:intent'))
    """
    for start, form in FORMS.items():
        if task.startswith(start):
            return form, task.removeprefix(start)
    return ("tokens" if task == SLOTS else "classifier"), task


def train_adapters(
    bench: Bench, task: str, locales: Sequence[str], training: AdapterTraining, *, progress: Progress = silent
) -> dict[str, dict[str, Any]]:
    """Train what is missing; adapters that are there with the same signature are kept.

    Args:
        bench: where they go.
        task: a classification task's name, `massive:slots`, or one of `FORMS` and a task's name.
        locales: one adapter each.
        training: settings.
        progress: told of steps.

    Returns:
        By locale the record beside the adapter.

    Raises:
        DataError, LocaleError: no such task or locale (found before anything is trained).
        TrainingError: see `train_expert` and `fit`.
    """
    form, plain = form_of(task)
    loaded = slot_task(bench.data) if form == "tokens" else load_task(plain, data=bench.data)
    for locale in locales:
        loaded.load(locale, "train")
        if training.on is not None:
            bench.trained(training.on, locale)
    found = {}
    for locale in locales:
        own = signature(
            {
                "pretrained": bench.pretrained, "task": task, "revision": loaded.revision, "locale": locale,
                "training": {**training.model_dump(), "lr": training.rate(task)}, "langmerge": __version__,
                "on": training.on and open_parsed(bench.trained(training.on, locale)).signature(),
            }
        )  # fmt: skip
        folder = bench.adapter(task, locale, on=training.on)
        kept = read_json(folder / RECORD) if (folder / RECORD).is_file() else {}
        if kept.get("signature") != own:
            kept = _train_one(bench, task, loaded, locale, training, own, progress)
        found[locale] = kept
    return found


def _train_one(
    bench: Bench,
    task: str,
    loaded: Task | SlotTask,
    locale: str,
    training: AdapterTraining,
    own: str,
    progress: Progress,
) -> dict[str, Any]:
    form, _ = form_of(task)
    base, started = bench.model(task), time.perf_counter()
    inner = load_classifier(base) if form == "classifier" else load_form(base, form)
    if training.on is not None:
        put_in(inner, open_parsed(bench.trained(training.on, locale)))
    model = add_adapter(inner, training.shape, seed=training.draw(task, locale), form=form)
    for config in model.peft_config.values():
        config.base_model_name_or_path = str(base.absolute())

    def told(description: str, total: int) -> Any:
        return progress(f"{task} {locale}: {description}", total)

    went = _fitted(model, load_tokenizer(base), task, loaded, locale, training, told)
    record = {
        "format": FORMAT, "langmerge": __version__, "how": "train", "kind": training.shape.kind, "task": task,
        "locale": locale, "on": training.on, "labels": list(loaded.labels) if form in ("classifier", "tokens") else None,
        "pretrained": bench.pretrained, "signature": own, "settings": {**training.model_dump(), "lr": training.rate(task)},
        "training": went, "seconds": time.perf_counter() - started,
    }  # fmt: skip
    with new_folder(bench.adapter(task, locale, on=training.on), overwrite=True) as folder:
        model.save_pretrained(folder)
        (folder / RECORD).write_text(
            json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    return record


def _fitted(
    model: Any,
    tokenizer: Any,
    task: str,
    loaded: Task | SlotTask,
    locale: str,
    training: AdapterTraining,
    progress: Progress,
) -> dict[str, Any]:
    """Train by what the task asks for; scores are dev accuracy, span F1, or a loss with the sign turned."""
    pace = Pace(
        epochs=training.epochs, lr=training.rate(task), head_lr=training.head_lr, batch_size=training.batch_size,
        seed=training.seed,
    )  # fmt: skip
    if isinstance(loaded, SlotTask):
        train, dev = (loaded.load(locale, split) for split in ("train", "dev"))
        train, dev = train.limited(training.max_train), dev.limited(training.max_dev)
        return {
            "score": "span F1",
            **train_slots(model, tokenizer, train, dev, loaded.labels, pace, progress=progress),
        }
    form, _ = form_of(task)
    if form == "masked":
        text = task_text(loaded, locale, limit=training.max_train)
        went = train_masked(
            model, encode(tokenizer, text.texts), pace, special=frozenset(tokenizer.all_special_ids),
            mask_id=tokenizer.mask_token_id, progress=progress,
        )  # fmt: skip
        return {"score": "− held-out loss, nats", **went}
    rows = [
        loaded.load(locale, split).limited(limit)
        for split, limit in (("train", training.max_train), ("dev", training.max_dev))
    ]
    if form == "causal":
        completed = [_completed(tokenizer, task, one, loaded.labels, training.prompt) for one in rows]
        return {
            "score": "− dev loss, nats",
            **train_completion(model, completed[0], completed[1], pace, progress=progress),
        }
    found = train_expert(
        model, encode(tokenizer, rows[0].texts), rows[0].labels, encode(tokenizer, rows[1].texts), rows[1].labels,
        epochs=training.epochs, lr=training.rate(task), head_lr=training.head_lr, batch_size=training.batch_size,
        seed=training.seed, progress=progress,
    )  # fmt: skip
    return {
        "score": "dev accuracy", "train_loss": list(found.train_loss), "scores": list(found.dev_accuracy),
        "best_epoch": found.best_epoch, "steps": found.steps,
    }  # fmt: skip


def _completed(tokenizer: Any, task: str, rows: Examples, labels: Sequence[str], prompt: str) -> list[Row]:
    """Label names behind a prompt; or texts behind nothing."""
    if task.startswith("clm:"):
        return completions(tokenizer, [""] * len(rows), rows.texts)
    prompts = [prompt.replace("{text}", text) for text in rows.texts]
    return completions(tokenizer, prompts, [labels[label] for label in rows.labels])
