"""Fine-tune one expert: a classifier on one locale's labelled text."""

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.optim.lr_scheduler import LambdaLR

from langmerge.errors import TrainingError
from langmerge.models.devices import has_fast_bf16
from langmerge.models.prediction import predict_logits
from langmerge.progress import Progress, silent
from langmerge.training.epochs import (
    Best,
    Encoded,
    adamw,
    fixed_parameters,
    frozen,
    linear_schedule,
    run_epoch,
)


@dataclass(frozen=True)
class ExpertRecord:
    """What was done to train one expert, and how it went.

    Attributes:
        steps: optimiser steps taken.
        seconds: wall time, dev passes included.
        dev_accuracy: after each epoch, in [0, 1].
        train_loss: mean cross-entropy of each epoch, in nats.
        best_epoch: the epoch whose weights were kept, from 1.
        settings: every argument that decides the result.
    """

    steps: int
    seconds: float
    dev_accuracy: tuple[float, ...]
    train_loss: tuple[float, ...]
    best_epoch: int
    settings: dict[str, Any]


def train_expert(
    model: Any,
    train_encoded: Encoded,
    train_labels: np.ndarray,
    dev_encoded: Encoded,
    dev_labels: np.ndarray,
    *,
    epochs: int = 3,
    lr: float = 1e-4,
    head_lr: float = 2e-3,
    batch_size: int = 32,
    seed: int = 0,
    freeze_embeddings: bool = True,
    warmup: float = 0.1,
    weight_decay: float = 0.01,
    patience: int = 2,
    bf16: bool | None = None,
    progress: Progress = silent,
) -> ExpertRecord:
    """Train the model in place and leave it, in eval mode, at its best epoch on dev.

    AdamW; the rate rises linearly over the first `warmup` share of the steps and falls linearly to zero.
    Batches hold rows of similar length. Order and dropout come from `seed`; the caller's generators are
    as before afterwards. Nothing is written: an interrupted run leaves no trace on disk.

    Args:
        model: a classifier on its device.
        train_encoded: token ids of each row.
        train_labels: int64, shape (rows,), positions in the label list.
        dev_encoded: as above, for choosing the epoch.
        dev_labels: as above.
        epochs: at most so many passes.
        lr: peak rate of the encoder.
        head_lr: peak rate of the head, which starts from nothing.
        batch_size: rows in a step.
        seed: of order and dropout.
        freeze_embeddings: word embeddings stay as in the base (rows of unseen pieces would not move anyway).
        warmup: share of the steps, in [0, 1).
        weight_decay: of matrices; none on biases and layer norms.
        patience: stop after so many epochs without a better dev accuracy.
        bf16: bfloat16 products with float32 weights; None takes them where the device is faster with them.
        progress: told of steps.

    Raises:
        TrainingError: there are no rows, or the loss is not finite.
    """
    if not len(train_encoded) or not len(dev_encoded):
        raise TrainingError(
            f"Training needs rows: found {len(train_encoded)} train and {len(dev_encoded)} dev rows"
        )
    device = next(model.parameters()).device
    bf16 = has_fast_bf16(device) if bf16 is None else bf16
    settings = {
        "epochs": epochs, "lr": lr, "head_lr": head_lr, "batch_size": batch_size, "seed": seed,
        "freeze_embeddings": freeze_embeddings, "warmup": warmup, "weight_decay": weight_decay,
        "patience": patience, "bf16": bf16, "train_rows": len(train_encoded), "dev_rows": len(dev_encoded),
    }  # fmt: skip
    started = time.perf_counter()
    steps = math.ceil(len(train_encoded) / batch_size)
    best, dev_accuracy, train_loss = Best(), [], []
    with (
        frozen(fixed_parameters(model, freeze_embeddings=freeze_embeddings)),
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        progress("train", epochs * steps) as advance,
    ):
        torch.manual_seed(seed)
        optimizer = adamw(model, lr=lr, head_lr=head_lr, weight_decay=weight_decay)
        schedule = LambdaLR(optimizer, linear_schedule(steps=epochs * steps, warmup=warmup))
        generator = torch.Generator().manual_seed(seed)
        for epoch in range(1, epochs + 1):
            train_loss.append(
                run_epoch(
                    model, train_encoded, train_labels, optimizer, schedule,
                    batch_size=batch_size, generator=generator, bf16=bf16, advance=advance,
                )
            )  # fmt: skip
            predictions = predict_logits(model, dev_encoded, bf16=bf16).argmax(axis=1)
            dev_accuracy.append(float(np.mean(predictions == dev_labels)))
            best.offer(model, dev_accuracy[-1], epoch)
            if epoch - best.epoch >= patience:
                break
        best.restore(model)
    return ExpertRecord(
        len(train_loss) * steps,
        time.perf_counter() - started,
        tuple(dev_accuracy),
        tuple(train_loss),
        best.epoch,
        settings,
    )
