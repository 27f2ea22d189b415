"""How fast this machine is, by a few rows: what a long run would take can be said before it has begun."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from langmerge.models import best_device, encode, new_classifier, predict_logits
from langmerge.progress import Advance
from langmerge.tasks import Task
from langmerge.training.expert import train_expert
from langmerge.training.pool import Training

ROWS = 96
"""Rows that are read for it."""

STEPS = 10
"""Optimiser steps that are taken for it; the first are slower than the rest, and the median is not theirs."""


@dataclass(frozen=True)
class Rates:
    """Seconds for a row on this machine, by a sample of one locale's text.

    Attributes:
        forward: to predict it.
        training: to train on it once.
    """

    forward: float
    training: float


def measured_rates(base: Path | str, task: Task, locale: str, training: Training) -> Rates:
    """Train and predict on a few rows of a task's training text; nothing is kept.

    Args:
        base: pretrained encoder: a folder or a hub id.
        task: whose rows.
        locale: whose rows.
        training: of an expert.

    Raises:
        CheckpointError: the base cannot be read.
    """
    model, tokenizer = new_classifier(base, task.labels, seed=training.seed)
    model.to(best_device())
    rows = training.rows(task.load(locale, "train")).limited(max(ROWS, STEPS * training.batch_size))
    encoded = encode(tokenizer, rows.texts)
    moments = [time.perf_counter()]

    @contextmanager
    def clock(description: str, total: int) -> Iterator[Advance]:  # noqa: ARG001
        yield lambda _: moments.append(time.perf_counter())

    train_expert(
        model, encoded, rows.labels, encoded[:1], rows.labels[:1], epochs=1, lr=training.lr, head_lr=training.head_lr,
        batch_size=training.batch_size, seed=training.seed, freeze_embeddings=training.freeze_embeddings, progress=clock,
    )  # fmt: skip
    step = float(np.median(np.diff(moments)))
    predict_logits(model, encoded[:ROWS])
    started = time.perf_counter()
    predict_logits(model, encoded[:ROWS])
    forward = (time.perf_counter() - started) / len(encoded[:ROWS])
    return Rates(forward, step / min(training.batch_size, len(encoded)))
