"""From a model folder and unlabelled text to a refined model folder with its receipt."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from langmerge import __version__
from langmerge.checkpoint import check_output, check_outside, new_folder, read_json
from langmerge.errors import CheckpointError, DataError
from langmerge.models import (
    best_device,
    encode,
    label_names,
    load_model,
    model_signature,
    predict_logits,
    save_classifier,
)
from langmerge.progress import Progress, silent
from langmerge.results import signature
from langmerge.tasks import Examples, Unlabelled
from langmerge.training.refine import SAVE_EVERY, refine_classifier
from langmerge.training.refinement import Refined, Refinement

RECEIPT = "langmerge_refined.json"
FORMAT = "langmerge-refined/1"


@dataclass(frozen=True, eq=False)
class DevLabels:
    """Labelled dev rows to choose an epoch by.

    Attributes:
        examples: the rows.
        labels: the task's label names, whose positions the rows' labels are.
    """

    examples: Examples
    labels: tuple[str, ...]


@dataclass(frozen=True)
class RefinedFolder:
    """What `refine_folder` leaves.

    Attributes:
        out: the folder.
        record: its receipt.
        kept: it was there already, made by the same from the same.
        seconds: wall time of the training that this run did.
        steps: its optimiser steps.
    """

    out: Path
    record: Mapping[str, Any]
    kept: bool = False
    seconds: float = 0.0
    steps: int = 0

    @property
    def notes(self) -> list[str]:
        """What deserves a warning: about the text, then about the training."""
        return [*self.record["text"]["notes"], *self.record["notes"]]


def refine_folder(
    model: Path,
    text: Unlabelled,
    out: Path,
    *,
    refinement: Refinement | None = None,
    teachers: Sequence[Path] = (),
    dev: DevLabels | None = None,
    base: Path | str | None = None,
    overwrite: bool = False,
    save_every: float = SAVE_EVERY,
    progress: Progress = silent,
) -> RefinedFolder:
    """Refine a model on unlabelled text; the new folder appears whole or not at all.

    An interrupted run goes on from the state that it keeps in `.<name of out>.refining` beside `out`. A folder that
    the same settings made of the same inputs is kept as it is.

    Args:
        model: a classifier's folder, or a PEFT adapter's: then `out` is an adapter on the same base.
        text: what to learn on.
        out: the new folder.
        refinement: settings; the defaults if None.
        teachers: other models whose mean probabilities are the first round's labels; the model itself by default.
        dev: labelled rows to choose the epoch by.
        base: of the model, where it is an adapter, instead of the one its config names.
        overwrite: replace `out` if it exists and is anything else.
        save_every: seconds between two saved states within an epoch.
        progress: told of steps.

    Raises:
        OutputError: `out` exists, holds one of the inputs, or cannot be written.
        CheckpointError: a model cannot be read, or lacks a label that another has.
        TrainingError: see `refine_classifier`.
    """
    asked = (refinement or Refinement()).resolved(best_device())
    inputs = {folder: model_signature(folder) for folder in teachers}
    inputs[model] = model_signature(model, base=base)
    payload = _payload(asked, inputs[model], [inputs[one] for one in teachers], text, dev)
    own = signature(payload)
    if (found := _kept(out, own, base)) is not None:
        return RefinedFolder(out, found, kept=True)
    check_output(out, overwrite=overwrite)
    check_outside(out, inputs)
    classifier, tokenizer = load_model(model, base=base)
    names = label_names(classifier.config)
    encoded = encode(tokenizer, text.texts)
    chosen_by = _encoded_dev(dev, names, tokenizer, model) if dev else None

    def taught() -> list[np.ndarray]:
        return [_teacher_logits(one, text, names, asked, progress) for one in teachers]

    went = refine_classifier(
        classifier,
        encoded,
        taught if teachers else None,
        refinement=asked,
        dev=chosen_by,
        state=out.absolute().parent / f".{out.name}.refining",
        signature=own,
        save_every=save_every,
        progress=progress,
    )
    record = _record(own, payload, model, teachers, text, went)
    with new_folder(out, overwrite=overwrite) as folder:
        save_classifier(classifier, tokenizer, folder)
        record = {**record, "result": model_signature(folder, base=base)}
        (folder / RECEIPT).write_text(
            json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    return RefinedFolder(out, record, seconds=went.seconds, steps=went.steps)


def _payload(
    asked: Refinement, model: str, teachers: Sequence[str], text: Unlabelled, dev: DevLabels | None
) -> dict[str, Any]:
    """What decides the result, and nothing else."""
    rows = dev.examples if dev else None
    return {
        "model": model,
        "teachers": list(teachers),
        "text": {"locale": text.locale, "signature": text.signature},
        "settings": asked.model_dump(),
        "dev": signature([rows.ids, rows.texts, rows.labels.tolist()]) if rows else None,
        "langmerge": __version__,
    }


def _record(
    own: str,
    payload: Mapping[str, Any],
    model: Path,
    teachers: Sequence[Path],
    text: Unlabelled,
    went: Refined,
) -> dict[str, Any]:
    merged = model / "langmerge.json"
    return {
        "format": FORMAT,
        "signature": own,
        "model": {
            "folder": str(model.absolute()),
            "signature": payload["model"],
            "merge": read_json(merged).get("signature") if merged.is_file() else None,
        },
        "teachers": [
            {"folder": str(folder.absolute()), "signature": one}
            for folder, one in zip(teachers, payload["teachers"], strict=True)
        ]
        or "the model itself",
        "text": {
            "origin": text.origin,
            "locale": text.locale,
            "rows": len(text),
            "signature": text.signature,
            "overlap": text.overlap,
            "notes": list(text.notes),
        },
        "settings": payload["settings"],
        "dev": payload["dev"],
        "chosen_by": went.chosen_by,
        "rounds": list(went.rounds),
        "history": list(went.history),
        "alignment": went.alignment,
        "notes": list(went.notes),
        "versions": {
            "langmerge": __version__,
            "torch": version("torch"),
            "transformers": version("transformers"),
        },
    }


def _kept(out: Path, own: str, base: Path | str | None) -> dict[str, Any] | None:
    """The receipt of a folder that need not be made again, because it still is what the receipt says."""
    if not (out / RECEIPT).is_file():
        return None
    record = dict(read_json(out / RECEIPT))
    if record.get("signature") != own or record.get("result") != model_signature(out, base=base):
        return None
    return record


def _teacher_logits(
    folder: Path,
    text: Unlabelled,
    names: Sequence[str],
    asked: Refinement,
    progress: Progress,
) -> np.ndarray:
    """A teacher's logits with its columns in the student's order; it reads the text with its own tokenizer."""
    teacher, tokenizer = load_model(folder)
    own = label_names(teacher.config)
    if sorted(own) != sorted(names):
        other = sorted(set(own) ^ set(names))
        raise CheckpointError(
            f"the teacher {folder} has other labels than the model: {', '.join(other[:5]) or 'one twice'}"
            f"{' …' if len(other) > 5 else ''} is only in one of them"
        )
    logits = predict_logits(teacher, encode(tokenizer, text.texts), bf16=asked.bf16, progress=progress)
    return np.asarray(logits[:, [own.index(name) for name in names]])


def _encoded_dev(
    dev: DevLabels, names: Sequence[str], tokenizer: Any, model: Path
) -> tuple[list[list[int]], np.ndarray]:
    """Token ids and columns of the logits."""
    if not len(dev.examples):
        raise DataError(f"{dev.examples.locale} has no dev rows to choose an epoch by")
    if missing := [label for label in dev.labels if label not in names]:
        raise CheckpointError(
            f"the model {model} has no output for the labels {', '.join(missing[:5])}"
            f"{' …' if len(missing) > 5 else ''}: it was trained for another task"
        )
    columns = np.array([names.index(label) for label in dev.labels], dtype=np.int64)
    return encode(tokenizer, dev.examples.texts), columns[dev.examples.labels]
