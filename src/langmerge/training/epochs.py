"""What every training here shares: optimiser, schedule, one pass over the rows, and the best weights so far."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.optim.lr_scheduler import LambdaLR

from langmerge.errors import TrainingError
from langmerge.models.devices import autocast_for_gradients
from langmerge.models.encoding import padded, shuffled_batches
from langmerge.models.pooling import pooling_parameters

Encoded = Sequence[Sequence[int]]

Weights = dict[str, torch.Tensor]


def bare(model: Any) -> Any:
    """The classifier itself: what adapters are wrapped around, where there are any."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def fixed_parameters(model: Any, *, freeze_embeddings: bool) -> list[torch.nn.Parameter]:
    """What does not train: weights that only pool, and the word embeddings when asked."""
    inner = bare(model)
    embeddings = [inner.get_input_embeddings().weight] if freeze_embeddings else []
    return [*pooling_parameters(inner), *embeddings]


@contextmanager
def frozen(parameters: Sequence[torch.nn.Parameter]) -> Iterator[None]:
    """Parameters that do not train within the block; afterwards they do or do not, as before."""
    before = [parameter.requires_grad for parameter in parameters]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, trained in zip(parameters, before, strict=True):
            parameter.requires_grad_(trained)


def adamw(model: Any, *, lr: float, head_lr: float, weight_decay: float) -> torch.optim.AdamW:
    """Return the optimiser over the parameters that train: encoder and head, with and without decay."""
    encoder = {id(parameter) for parameter in bare(model).base_model.parameters()}
    # A prefix is no part of the encoder, and no head either.
    encoder |= {id(parameter) for name, parameter in model.named_parameters() if "prompt_encoder" in name}
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


def trained_weights(model: Any) -> Weights:
    """A copy of every parameter that trains, by name."""
    return {
        name: parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


@torch.no_grad()
def put_back(model: Any, weights: Weights) -> None:
    """Write kept weights into the model."""
    for name, parameter in model.named_parameters():
        if name in weights:
            parameter.copy_(weights[name])


class Best:
    """The trained weights at the highest score so far; of equal ones the first."""

    def __init__(self) -> None:
        self.score = -math.inf
        self.epoch = 0
        self.weights: Weights = {}

    def offer(self, model: Any, score: float, epoch: int) -> None:
        """Keep the model's weights if the score is a new highest."""
        if score > self.score:
            self.score, self.epoch, self.weights = score, epoch, trained_weights(model)

    def restore(self, model: Any) -> None:
        """Write the kept weights back, and leave training mode."""
        put_back(model, self.weights)
        model.eval()


def run_epoch(
    model: Any,
    encoded: Encoded,
    targets: np.ndarray,
    optimizer: torch.optim.Optimizer,
    schedule: LambdaLR,
    *,
    batch_size: int,
    generator: torch.Generator,
    bf16: bool,
    advance: Callable[[int], None],
    temperature: float = 1.0,
    taken: tuple[int, float] = (0, 0.0),
    after_step: Callable[[int, float], None] = lambda _steps, _total: None,
) -> float:
    """Take one pass, or the rest of one, and return its mean loss.

    Loss: T² · cross-entropy(logits / T, targets); T² keeps the gradients' size (Hinton et al. 2015).

    Args:
        model: in any mode; it is put into training mode.
        encoded: token ids of each row.
        targets: labels, int64 of shape (rows,), or probabilities, float32 of shape (rows, labels).
        optimizer: of the parameters that train.
        schedule: of its rates.
        batch_size: rows in a step.
        generator: of the order of rows; as it was at the pass's first step.
        bf16: bfloat16 products.
        advance: told of steps.
        temperature: T.
        taken: steps of this pass that were taken before, and the sum of their rows' losses.
        after_step: told both after each step.

    Raises:
        TrainingError: the loss is not finite.
    """
    model.train()
    device = next(model.parameters()).device
    steps, total = taken
    batches = shuffled_batches([len(row) for row in encoded], batch_size=batch_size, generator=generator)
    for rows in islice(batches, steps, None):
        ids, mask = padded([encoded[row] for row in rows], pad_id=model.config.pad_token_id or 0)
        target = torch.from_numpy(np.asarray(targets)[rows]).to(device)
        with autocast_for_gradients(device, bf16):
            logits = model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits
        loss = temperature**2 * torch.nn.functional.cross_entropy(logits.float() / temperature, target)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(
                f"The loss is {value} at step {schedule.last_epoch + 1}, learning rate "
                f"{schedule.get_last_lr()[0]:.2e}: use a lower learning rate or bf16=False"
            )
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
        steps, total = steps + 1, total + value * len(rows)
        after_step(steps, total)
        advance(1)
    return total / len(encoded)
