"""Self-distillation: a copy of the model is trained, with dropout, on soft labels that it gave unlabelled text."""

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim.lr_scheduler import LambdaLR

from langmerge.errors import InputError, TrainingError
from langmerge.models.classifier import label_names
from langmerge.models.prediction import predict_logits
from langmerge.progress import Advance, Progress, silent
from langmerge.training.alignment import aligning_bias, distance, head_bias, ordered_prior
from langmerge.training.diagnostics import check_finite, collapse_notes, divergence, spread
from langmerge.training.epochs import (
    Best,
    Encoded,
    adamw,
    fixed_parameters,
    frozen,
    linear_schedule,
    put_back,
    run_epoch,
    trained_weights,
)
from langmerge.training.kept_state import drop_state, load_state, save_state
from langmerge.training.refinement import Refined, Refinement

SAVE_EVERY = 60.0
"""Seconds between two saved states within an epoch."""


def soft_labels(logits: Sequence[np.ndarray], temperature: float) -> np.ndarray:
    """mean over teachers of softmax(z / T): float32, shape (rows, labels).

    Args:
        logits: one array of shape (rows, labels) per teacher.
        temperature: T.

    Raises:
        TrainingError: a teacher's logits are not finite.
    """
    total = np.zeros(logits[0].shape)
    for one in logits:
        check_finite(one)
        scaled = one.astype(np.float64) / temperature
        odds = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        total += odds / odds.sum(axis=1, keepdims=True)
    return np.asarray(total / len(logits), dtype=np.float32)


def refine_classifier(
    model: Any,
    encoded: Encoded,
    teach: Callable[[], Sequence[np.ndarray]] | None = None,
    *,
    refinement: Refinement,
    dev: tuple[Encoded, np.ndarray] | None = None,
    state: Path | None = None,
    signature: str = "",
    save_every: float = SAVE_EVERY,
    progress: Progress = silent,
) -> Refined:
    """Refine the model in place and leave it, in eval mode, at the best epoch of its last round.

    The best epoch is the one with the least cross-entropy to the teacher on held-out rows; with dev labels that with
    the highest dev accuracy, and then the round's start counts as epoch 0: a round that helps nowhere is undone and is
    the last. The caller's generators are as before afterwards.

    Args:
        model: a classifier on its device, or one with an adapter.
        encoded: token ids of each text.
        teach: gives the first round's logits, one array of shape (rows, labels) per teacher; called once; the model itself
            by default.
        refinement: settings.
        dev: token ids and labels (columns of the logits), to choose the epoch by.
        state: file that is kept up to date while this runs, continued from if it has the same signature, and
            removed at the end; nothing is kept by default.
        signature: of everything that decides the result.
        save_every: seconds between two saved states within an epoch.
        progress: told of steps.

    Raises:
        TrainingError: fewer than two texts, nothing that trains, a loss that is not finite, or a teacher with logits of another shape or that
            are not finite.
        InputError: a prior for other labels, neither rounds nor a prior, or teachers without rounds.
        CheckpointError: a prior, and a head without a bias.
    """
    if len(encoded) < 2:
        raise TrainingError(f"Refinement needs 2 texts or more (one is held out): found {len(encoded)}")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise TrainingError(
            "Nothing of this model trains: a prefix that PEFT has loaded, for one, stays as it is"
        )
    if not refinement.rounds and refinement.prior is None:
        raise InputError("no rounds and no prior: there is nothing to do")
    if not refinement.rounds and teach is not None:
        raise InputError(
            "without rounds nothing learns from a teacher: leave the teachers out, or refine for a round"
        )
    work = _Refining(model, encoded, teach, refinement, dev, state, signature, save_every)
    device = next(model.parameters()).device
    total = refinement.rounds * refinement.epochs * work.steps
    with (
        frozen(fixed_parameters(model, freeze_embeddings=refinement.freeze_embeddings)),
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        progress("refine", total) as advance,
    ):
        work.run(advance)
    if state is not None:
        drop_state(state)
    return work.found()


class _Refining:
    """One refinement, from its first step or from the state in which another run left it."""

    def __init__(
        self,
        model: Any,
        encoded: Encoded,
        teach: Callable[[], Sequence[np.ndarray]] | None,
        refinement: Refinement,
        dev: tuple[Encoded, np.ndarray] | None,
        state: Path | None,
        signature: str,
        save_every: float,
    ) -> None:
        self.model, self.encoded, self.teach, self.dev = model, encoded, teach, dev
        self.device = next(model.parameters()).device
        self.asked = refinement.resolved(self.device)
        self.file, self.signature, self.save_every = state, signature, save_every
        order = np.random.default_rng([self.asked.seed, 0]).permutation(len(encoded))
        held = min(max(1, round(self.asked.held_out * len(encoded))), len(encoded) - 1)
        self.held, self.rows = np.sort(order[:held]), np.sort(order[held:])
        self.steps = math.ceil(len(self.rows) / self.asked.batch_size)
        self.history: list[dict[str, Any]] = []
        self.rounds: list[dict[str, Any]] = []
        self.round, self.epoch, self.taken = 1, 0, (0, 0.0)
        self.soft: np.ndarray | None = None
        self.best = Best()
        self.prior: np.ndarray | None = None
        self.alignment: dict[str, Any] | None = None
        if self.asked.prior is not None:
            self.prior = ordered_prior(self.asked.prior, label_names(model.config))
            self.bias = head_bias(model, encoded[0])
        self.order = torch.Generator()
        self.started = self.saved = time.perf_counter()
        self.done = 0

    def run(self, advance: Advance) -> None:
        """All rounds, or what is left of them."""
        # Created where nothing may train yet: its groups are those of every round.
        self._new_optimizer()
        if self.file is not None and (kept := load_state(self.file, self.signature)) is not None:
            self._resume(kept)
            each = self.asked.epochs * self.steps
            advance((self.round - 1) * each + self.epoch * self.steps + self.taken[0])
        while self.round <= self.asked.rounds:
            if self.soft is None:
                self._begin_round()
            self._run_round(advance)
            self.best.restore(self.model)
            self.rounds.append(self._round_entry())
            if self.best.epoch == 0:
                break
            self.round, self.epoch, self.soft = self.round + 1, 0, None
        self.model.eval()
        if self.prior is not None:
            self._align(self.prior)

    def _align(self, prior: np.ndarray) -> None:
        """Move the head's bias, unless dev labels say that it does harm."""
        logits = self._own_logits()
        bias = aligning_bias(logits, prior, self.asked.strength)
        scores = None if self.dev is None else self._dev_accuracies(0.0, bias)
        kept = scores is None or scores[1] >= scores[0]
        if kept:
            with torch.no_grad():
                self.bias.add_(torch.from_numpy(bias).to(self.bias))
        self.alignment = {
            "kept": kept,
            "dev_accuracy": scores,
            "distance": [distance(logits, prior), distance(logits + bias, prior)],
            "bias": dict(zip(label_names(self.model.config), bias.tolist(), strict=True)),
        }

    def found(self) -> Refined:
        """What happened."""
        return Refined(
            tuple(self.history),
            tuple(self.rounds),
            self.alignment,
            "held-out cross-entropy to the teacher" if self.dev is None else "dev accuracy",
            tuple(self._notes()),
            time.perf_counter() - self.started,
            self.done,
        )

    def _begin_round(self) -> None:
        taught = self.teach() if self.teach is not None and self.round == 1 else [self._own_logits()]
        shape = (len(self.encoded), self.model.config.num_labels)
        if wrong := [one.shape for one in taught if one.shape != shape]:
            raise TrainingError(f"A teacher's logits have shape {wrong[0]}, expected {shape}")
        if self.prior is not None:
            taught = [one + aligning_bias(one, self.prior, self.asked.strength) for one in taught]
        self.soft = soft_labels(taught, self.asked.temperature)
        self.best, self.epoch, self.taken = Best(), 0, (0, 0.0)
        seed = int(np.random.SeedSequence([self.asked.seed, self.round]).generate_state(1)[0])
        torch.manual_seed(seed)
        self.order.manual_seed(seed)
        self._new_optimizer()
        if self.dev is not None:
            self.best.offer(self.model, self._dev_accuracies(0.0)[0], 0)
        self._save()

    def _run_round(self, advance: Advance) -> None:
        assert self.soft is not None
        encoded, targets = [self.encoded[row] for row in self.rows], self.soft[self.rows]
        while self.epoch < self.asked.epochs:
            # The start (epoch 0, with dev labels) is no epoch that patience could run out after.
            if self.epoch - max(self.best.epoch, 1) >= self.asked.patience:
                break
            loss = run_epoch(
                self.model,
                encoded,
                targets,
                self.optimizer,
                self.schedule,
                batch_size=self.asked.batch_size,
                generator=self.order,
                bf16=bool(self.asked.bf16),
                advance=advance,
                temperature=self.asked.temperature,
                taken=self.taken,
                after_step=partial(self._after_step, begun=self.order.get_state()),
            )
            self.epoch, self.taken = self.epoch + 1, (0, 0.0)
            self._look(loss)
            self._save()

    def _after_step(self, steps: int, total: float, begun: torch.Tensor) -> None:
        self.taken = (steps, total)
        self.done += 1
        # The state at an epoch's end is saved with its measurements, not here.
        if steps < self.steps and time.perf_counter() - self.saved >= self.save_every:
            self._save(begun)

    def _look(self, loss: float) -> None:
        """Measure the epoch on held-out rows, and offer its weights."""
        assert self.soft is not None
        logits = predict_logits(self.model, [self.encoded[row] for row in self.held], bf16=self.asked.bf16)
        if not np.isfinite(logits).all():
            raise TrainingError(
                f"The model gives NaN or infinity after step {self.schedule.last_epoch} of round {self.round}: "
                "use a lower learning rate or bf16=False"
            )
        teacher = self.soft[self.held]
        entry = {
            "round": self.round,
            "epoch": self.epoch,
            "loss": loss,
            **divergence(teacher, logits, self.asked.temperature),
            **spread(soft_labels([logits], 1.0)),
        }
        score = -entry["cross_entropy"]
        if self.dev is not None:
            score = entry["dev_accuracy"] = self._dev_accuracies(0.0)[0]
        self.history.append(entry)
        self.best.offer(self.model, score, self.epoch)

    def _dev_accuracies(self, *biases: np.ndarray | float) -> list[float]:
        """Dev accuracy with each of these added to the logits."""
        assert self.dev is not None
        encoded, labels = self.dev
        logits = predict_logits(self.model, encoded, bf16=self.asked.bf16)
        return [float(np.mean((logits + bias).argmax(axis=1) == labels)) for bias in biases]

    def _own_logits(self) -> np.ndarray:
        return predict_logits(self.model, self.encoded, bf16=self.asked.bf16)

    def _round_entry(self) -> dict[str, Any]:
        assert self.soft is not None
        return {
            "round": self.round,
            "kept_epoch": self.best.epoch,
            "score": self.best.score,
            "trained_rows": len(self.rows),
            "held_out_rows": len(self.held),
            "teacher": spread(self.soft[self.held]),
        }

    def _notes(self) -> list[str]:
        rates = [m.p for m in self.model.modules() if isinstance(m, torch.nn.Dropout)]
        found = []
        if self.teach is None and not any(rates):
            found.append(
                "the model has no dropout: it is its own teacher already, and learns little from itself"
            )
        return [*found, *collapse_notes(self.history, self.rounds)]

    def _new_optimizer(self) -> None:
        self.optimizer = adamw(
            self.model, lr=self.asked.lr, head_lr=self.asked.head_lr, weight_decay=self.asked.weight_decay
        )
        schedule = linear_schedule(steps=self.asked.epochs * self.steps, warmup=self.asked.warmup)
        self.schedule = LambdaLR(self.optimizer, schedule)

    def _save(self, begun: torch.Tensor | None = None) -> None:
        """Keep the state; `begun`: of the order, where an epoch is under way."""
        self.saved = time.perf_counter()
        if self.file is None or self.soft is None:
            return
        cuda = self.device.type == "cuda"
        payload = {
            "round": self.round, "epoch": self.epoch, "taken": list(self.taken),
            "soft": torch.from_numpy(self.soft), "weights": trained_weights(self.model),
            "optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict(),
            "order": self.order.get_state() if begun is None else begun,
            "random": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state(self.device) if cuda else None,
            "best": {"score": self.best.score, "epoch": self.best.epoch, "weights": self.best.weights},
            "history": self.history, "rounds": self.rounds,
        }  # fmt: skip
        save_state(self.file, self.signature, payload)

    def _resume(self, kept: dict[str, Any]) -> None:
        self.round, self.epoch = kept["round"], kept["epoch"]
        self.taken = (kept["taken"][0], kept["taken"][1])
        self.soft = kept["soft"].numpy()
        put_back(self.model, kept["weights"])
        self.optimizer.load_state_dict(kept["optimizer"])
        self.schedule.load_state_dict(kept["schedule"])
        self.order.set_state(kept["order"])
        torch.set_rng_state(kept["random"])
        if kept["cuda"] is not None:
            torch.cuda.set_rng_state(kept["cuda"], self.device)
        self.best = Best()
        self.best.score, self.best.epoch = kept["best"]["score"], kept["best"]["epoch"]
        self.best.weights = kept["best"]["weights"]
        self.history, self.rounds = kept["history"], kept["rounds"]
