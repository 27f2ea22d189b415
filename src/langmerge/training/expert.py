"""Fine-tune one expert: a classifier on one locale's labelled text."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.optim.lr_scheduler import LambdaLR

from langmerge.errors import TrainingError
from langmerge.models.devices import autocast, has_fast_bf16
from langmerge.models.encoding import padded, shuffled_batches
from langmerge.models.pooling import pooling_parameters
from langmerge.models.prediction import predict_logits
from langmerge.progress import Progress, silent

Encoded = Sequence[Sequence[int]]


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
    best, dev_accuracy, train_loss = _Best(), [], []
    with (
        _frozen([*pooling_parameters(model), *_embeddings(model, frozen=freeze_embeddings)]),
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        progress("train", epochs * steps) as advance,
    ):
        torch.manual_seed(seed)
        optimizer = adamw(model, lr=lr, head_lr=head_lr, weight_decay=weight_decay)
        schedule = LambdaLR(optimizer, linear_schedule(steps=epochs * steps, warmup=warmup))
        generator = torch.Generator().manual_seed(seed)
        for epoch in range(1, epochs + 1):
            train_loss.append(
                _run_epoch(
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


@contextmanager
def _frozen(parameters: Sequence[torch.nn.Parameter]) -> Iterator[None]:
    """Parameters that do not train within the block."""
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def _embeddings(model: Any, *, frozen: bool) -> list[torch.nn.Parameter]:
    return [model.get_input_embeddings().weight] if frozen else []


def adamw(model: Any, *, lr: float, head_lr: float, weight_decay: float) -> torch.optim.AdamW:
    """Return the optimiser over the parameters that train: encoder and head, with and without decay."""
    encoder = {id(parameter) for parameter in model.base_model.parameters()}
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            rate = lr if id(parameter) in encoder else head_lr
            decay = weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((rate, decay), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "lr": rate, "weight_decay": decay}
            for (rate, decay), parameters in groups.items()
        ],
        fused=True,
    )


def linear_schedule(*, steps: int, warmup: float) -> Callable[[int], float]:
    """Return the factor on the rate for step 0, 1, …: up to 1 over the warm-up, then down to 0 at `steps`."""
    rising = max(1, round(warmup * steps))

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        return max(0.0, (steps - step) / max(1, steps - rising))

    return factor


class _Best:
    """The trainable weights at the best dev accuracy so far; of equal ones the first."""

    def __init__(self) -> None:
        self.accuracy = -1.0
        self.epoch = 0
        self._state: dict[str, torch.Tensor] = {}

    def offer(self, model: Any, accuracy: float, epoch: int) -> None:
        if accuracy > self.accuracy:
            self.accuracy, self.epoch = accuracy, epoch
            self._state = {
                name: parameter.detach().clone()
                for name, parameter in model.named_parameters()
                if parameter.requires_grad
            }

    @torch.no_grad()
    def restore(self, model: Any) -> None:
        for name, parameter in model.named_parameters():
            if name in self._state:
                parameter.copy_(self._state[name])
        model.eval()


def _run_epoch(
    model: Any,
    encoded: Encoded,
    labels: np.ndarray,
    optimizer: torch.optim.Optimizer,
    schedule: LambdaLR,
    *,
    batch_size: int,
    generator: torch.Generator,
    bf16: bool,
    advance: Callable[[int], None],
) -> float:
    """Take one pass and return its mean loss.

    Raises:
        TrainingError: the loss is not finite.
    """
    model.train()
    device = next(model.parameters()).device
    total = 0.0
    lengths = [len(row) for row in encoded]
    for rows in shuffled_batches(lengths, batch_size=batch_size, generator=generator):
        ids, mask = padded([encoded[row] for row in rows], pad_id=model.config.pad_token_id or 0)
        target = torch.from_numpy(np.asarray(labels)[rows]).to(device)
        with autocast(device, bf16):
            logits = model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits
        loss = torch.nn.functional.cross_entropy(logits.float(), target)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(
                f"The loss is {value} at learning rate {schedule.get_last_lr()[0]:.2e}: "
                "use a lower learning rate or bf16=False"
            )
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
        total += value * len(rows)
        advance(1)
    return total / len(encoded)
