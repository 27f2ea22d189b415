"""The loop of every training whose loss is a sum over places in a text: what is hidden, what completes, what is labelled."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.optim.lr_scheduler import LambdaLR

from langmerge.errors import TrainingError
from langmerge.models import autocast_for_gradients, has_fast_bf16
from langmerge.models.encoding import shuffled_batches
from langmerge.progress import Progress
from langmerge.training.epochs import Best, adamw, linear_schedule

Loss = Callable[[np.ndarray], tuple[torch.Tensor, int]]
"""Of a batch's row numbers: the sum of cross-entropies in nats, and over how many places."""


@dataclass(frozen=True)
class Pace:
    """How fast and how long.

    Attributes:
        epochs: passes; every epoch is scored, the best is kept.
        lr: peak rate of the body.
        head_lr: peak rate of the head.
        batch_size: texts in a step.
        seed: of order and dropout.
        warmup: share of the steps in which the rate rises.
        weight_decay: of matrices.
        bf16: bfloat16 products; None takes them where the device is faster with them.
    """

    epochs: int
    lr: float
    head_lr: float
    batch_size: int = 32
    seed: int = 0
    warmup: float = 0.1
    weight_decay: float = 0.01
    bf16: bool | None = None


def fit(
    model: Any,
    lengths: Sequence[int],
    pace: Pace,
    *,
    loss: Loss,
    score: Callable[[], float],
    before_epoch: Callable[[], None] = lambda: None,
    progress: Progress,
) -> dict[str, Any]:
    """Train what trains of a model in place; leave it, in eval mode, at its best epoch. Caller's generators stay as they are.

    Args:
        model: on its device.
        lengths: tokens of each text.
        pace: how fast and how long.
        loss: of a batch.
        score: of the model after an epoch; higher is better.
        before_epoch: called before each.
        progress: told of steps.

    Returns:
        train_loss by epoch (nats a place), scores, best_epoch, steps.

    Raises:
        TrainingError: a loss that is not finite.
    """
    device = next(model.parameters()).device
    bf16 = has_fast_bf16(device) if pace.bf16 is None else pace.bf16
    steps = math.ceil(len(lengths) / pace.batch_size)
    best, losses, scores = Best(), [], []
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        progress("train", pace.epochs * steps) as advance,
    ):
        torch.manual_seed(pace.seed)
        optimizer = adamw(model, lr=pace.lr, head_lr=pace.head_lr, weight_decay=pace.weight_decay)
        schedule = LambdaLR(optimizer, linear_schedule(steps=pace.epochs * steps, warmup=pace.warmup))
        generator = torch.Generator().manual_seed(pace.seed)
        for epoch in range(1, pace.epochs + 1):
            before_epoch()
            model.train()
            total, count = 0.0, 0
            for rows in shuffled_batches(lengths, batch_size=pace.batch_size, generator=generator):
                with autocast_for_gradients(device, bf16):
                    summed, places = loss(rows)
                if places:
                    value = float(summed.detach())
                    if not math.isfinite(value):
                        raise TrainingError(
                            f"The loss is {value} at step {schedule.last_epoch + 1}: use a lower learning rate"
                        )
                    optimizer.zero_grad(set_to_none=True)
                    torch.autograd.backward(summed / places)
                    optimizer.step()
                    total, count = total + value, count + places
                schedule.step()
                advance(1)
            losses.append(total / max(1, count))
            scores.append(score())
            best.offer(model, scores[-1], epoch)
        best.restore(model)
    return {
        "train_loss": losses,
        "scores": scores,
        "best_epoch": best.epoch,
        "steps": len(losses) * steps,
    }


@torch.inference_mode()
def mean_loss(model: Any, batches: Sequence[np.ndarray], loss: Loss) -> float:
    """Mean cross-entropy in nats over all places of some batches; the model is put into eval mode.

    Raises:
        TrainingError: it is not finite.
    """
    model.eval()
    total, count = 0.0, 0
    for rows in batches:
        summed, places = loss(rows)
        total, count = total + float(summed), count + places
    if not math.isfinite(total):
        raise TrainingError("The model gives NaN or infinity on held-out text: use a lower learning rate")
    return total / max(1, count)
