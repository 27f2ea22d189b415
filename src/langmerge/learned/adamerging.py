"""AdaMerging: coefficients learned on text without labels, by exact gradients.

Source: Yang et al. 2024, AdaMerging: Adaptive model merging for multi-task learning. The gradient is that of the paper; how
it is computed is not (see `deltas`): no merge graph, no copy of the sources, the model's own gradients freed one by one.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from langmerge.errors import InputError, TrainingError
from langmerge.learned.deltas import Deltas, Numbers
from langmerge.learned.diagnostics import HELD_OUT_MOST, compare, split_rows
from langmerge.learned.groups import Grouping
from langmerge.learned.objectives import Objective
from langmerge.learned.settings import Settings
from langmerge.learned.state import Moment, State
from langmerge.models import autocast_for_gradients, padded, predict_logits, shuffled_batches
from langmerge.progress import Progress, silent

WAITING_MOST = 1 << 23
"""Entries of gradients that wait for the others of their layer: at most 32 MB and one tensor."""

Rows = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class TextStream:
    """Text of one task, and the model that reads it.

    Several streams share their encoder's parameters and have a head each; the gradient is that of the sum of their losses.

    Attributes:
        model: a classifier whose parameters the deltas fill.
        encoded: token ids of each row.
        objective: is given logits and numbers of rows.
        name: of the task.
    """

    model: Any
    encoded: Sequence[Sequence[int]]
    objective: Objective
    name: str = ""


@dataclass(frozen=True)
class Learned:
    """What was learned.

    Attributes:
        values: coefficients, (groups, sources).
        step: the step that they are of.
        history: looks at the run.
        diagnostics: what the objective alone does not say.
    """

    values: Numbers
    step: int
    history: list[Moment]
    diagnostics: dict[str, Any] = field(default_factory=dict)


def learn(
    deltas: Deltas,
    grouping: Grouping,
    streams: Sequence[TextStream],
    settings: Settings,
    *,
    run: str = "",
    state: Path | None = None,
    progress: Progress = silent,
) -> Learned:
    """Learn coefficients; the model is left filled with them, in eval mode, as a merge of them would be.

    Args:
        deltas: the task vectors, and the model that they fill.
        grouping: which tensors share a coefficient, and the start.
        streams: one or more.
        settings: see there.
        run: signature of what decides the result: a state with another is refused.
        state: file that is kept while it goes on: written at every look and when the run ends early, whatever ends it;
            an existing one of the same run is gone on from. It stays when the run is over.
        progress: told of steps.

    Raises:
        InputError: no text; a start out of bounds; a state file of another run.
        TrainingError: a loss that is not finite, or a coefficient that gets no gradient.
    """
    if not streams or any(not len(stream.encoded) for stream in streams):
        raise InputError("there is no text to learn on: every stream needs one row or more")
    own = Run(deltas, grouping, streams, settings, run, state)
    with own.prepared():
        return own.learn(progress)


class Run:
    """One run: what moves, where it stands."""

    def __init__(
        self,
        deltas: Deltas,
        grouping: Grouping,
        streams: Sequence[TextStream],
        settings: Settings,
        run: str,
        path: Path | None,
    ) -> None:
        self.deltas, self.grouping, self.streams, self.settings = deltas, grouping, streams, settings
        self.path, self.bounds = path, settings.limits
        self.start = torch.from_numpy(grouping.initial())
        self.free = self.bounds.free(self.start).requires_grad_()
        self.adam = torch.optim.Adam([self.free], lr=settings.lr)
        blank = torch.zeros_like(self.start).tolist()
        self.state = State(run, 0, self.free.tolist(), blank, blank)
        if path is not None and (found := State.load(path, run)) is not None:
            self._go_on_from(found)
        self.group_of = {n: at for at, names in enumerate(grouping.tensors) for n in names}
        self.dots = np.zeros(self.start.shape)
        self.reached: set[int] = set()
        self.waiting: dict[str, torch.Tensor] = {}
        self.orders: dict[tuple[int, int], list[Rows]] = {}
        self.splits = [
            split_rows(len(stream.encoded), share=settings.held_out, seed=settings.seed) for stream in streams
        ]

    # ---- one run

    def learn(self, progress: Progress) -> Learned:
        """All steps that are left."""
        settings = self.settings
        before = self._logits(self.start.numpy())
        self.fill()
        try:
            with progress("learning coefficients", settings.steps) as advance:
                advance(self.state.step)
                while True:
                    # Before the next step, not after the last: a look that was interrupted is made up for.
                    if self._is_due():
                        self._look()
                        self._save()
                    if self.state.step >= settings.steps or self.state.ended:
                        break
                    self._step()
                    advance(1)
        except BaseException:
            # The last whole step is what counts, whatever has ended this one.
            self._save()
            raise
        best = self._best()
        values = np.array(best.coefficients)
        after = self._logits(values)
        diagnostics = self._diagnostics(before, after, values)
        return Learned(values, best.step, self.state.history, diagnostics)

    def _is_due(self) -> bool:
        """Whether held-out text is to be looked at now, and has not been."""
        step, history = self.state.step, self.state.history
        due = step % self.settings.check_every == 0 or step == self.settings.steps
        return due and not (history and history[-1].step == step)

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Hooks that take each gradient as it comes; models as they were afterwards, besides their weights."""
        parameters = self._parameters()
        missing = [name for name in self.group_of if name not in parameters]
        if missing:
            raise InputError(f"the model has no parameter {missing[0]!r}, which the coefficients are to move")
        wanted = {id(one): one.requires_grad for s in self.streams for one in s.model.parameters()}
        handles = []
        for stream in self.streams:
            stream.model.eval()
            for one in stream.model.parameters():
                one.requires_grad_(False)
        for name in self.group_of:
            parameters[name].requires_grad_(True)
            hook: Any = parameters[name].register_post_accumulate_grad_hook
            handles.append(hook(self._taker(name)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            for stream in self.streams:
                for one in stream.model.parameters():
                    one.requires_grad_(wanted[id(one)])
                    one.grad = None

    def _parameters(self) -> dict[str, torch.nn.Parameter]:
        found: dict[str, torch.nn.Parameter] = {}
        for stream in self.streams:
            for name, one in stream.model.named_parameters():
                found.setdefault(name, one)
        return found

    def _taker(self, name: str) -> Callable[[torch.nn.Parameter], None]:
        at = self.group_of[name]

        def take(parameter: torch.nn.Parameter) -> None:
            assert parameter.grad is not None
            self.waiting[name] = parameter.grad
            self.reached.add(at)
            parameter.grad = None
            if sum(one.numel() for one in self.waiting.values()) >= WAITING_MOST:
                self._take_waiting()

        return take

    def _take_waiting(self) -> None:
        """Multiply the gradients that have come with the task vectors, and free them."""
        for name, products in self.deltas.dots(self.waiting).items():
            self.dots[self.group_of[name]] += products
        self.waiting.clear()

    # ---- one step

    def _step(self) -> None:
        settings = self.settings
        self.dots[:] = 0
        loss = sum(self.backward(at) for at in range(len(self.streams)))
        number = self.state.step + 1
        if not math.isfinite(loss) or not np.isfinite(self.dots).all():
            raise TrainingError(
                f"step {number}: the loss is {loss}{'' if math.isfinite(loss) else ', not finite'}"
                f"{'' if np.isfinite(self.dots).all() else ', its gradient is not finite'}; what was learned up to step "
                f"{number - 1} is kept: use a smaller learning rate or tighter bounds"
            )
        self._check_gradient()
        values = self.bounds.coefficients(self.free)
        pull = 2 * settings.anchor * (values.detach() - self.start)
        self.free.grad = torch.autograd.grad(values, self.free, torch.from_numpy(self.dots) + pull)[0]
        self.adam.step()
        self.bounds.project(self.free)
        self.fill()
        moments = self.adam.state[self.free]
        # Assigned at once: an interrupt comes before or after it, and a step is whole.
        self.state = State(
            self.state.run,
            number,
            self.free.tolist(),
            moments["exp_avg"].tolist(),
            moments["exp_avg_sq"].tolist(),
            [*self.state.losses, loss],
            self.state.history,
        )

    def backward(self, at: int) -> float:
        """Loss of one stream's batch; its gradients go to the hooks."""
        stream = self.streams[at]
        rows = self.batch(at)
        device = next(stream.model.parameters()).device
        ids, mask = padded(
            [stream.encoded[row] for row in rows], pad_id=stream.model.config.pad_token_id or 0
        )
        with autocast_for_gradients(device, self.settings.bf16):
            logits = stream.model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits
        # In float64 where the model is; bfloat16 logits would lose what the objective is about.
        loss = stream.objective(logits if logits.dtype == torch.float64 else logits.float(), rows)
        if not loss.requires_grad:
            raise TrainingError(
                "the loss has no gradient in the model's weights: an objective must be computed from the logits it is "
                "given, with torch, without .detach() or .data"
            )
        value = float(loss.detach())
        if math.isfinite(value):
            torch.autograd.backward(loss)
            self._take_waiting()
        return value

    def batch(self, at: int) -> Rows:
        """The rows of this step: a function of the seed and the step alone."""
        kept, size = self.splits[at][0], self.settings.batch_size
        epoch, place = divmod(self.state.step, math.ceil(len(kept) / size))
        if (at, epoch) not in self.orders:
            generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + epoch * 1_009 + at)
            lengths = [len(self.streams[at].encoded[row]) for row in kept]
            self.orders.pop((at, epoch - 1), None)
            self.orders[at, epoch] = [
                kept[rows] for rows in shuffled_batches(lengths, batch_size=size, generator=generator)
            ]
        return self.orders[at, epoch][place]

    def _check_gradient(self) -> None:
        """A coefficient without a gradient would stay where it is and look learned.

        Raises:
            TrainingError: autograd has not reached a group, or nothing has a gradient.
        """
        if unreached := set(range(len(self.grouping.groups))) - self.reached:
            group = self.grouping.groups[min(unreached)]
            raise TrainingError(
                f"the coefficients of {group} get no gradient: the loss does not depend on its tensors "
                f"({self.grouping.tensors[min(unreached)][0]}, …); freeze that part"
            )
        if self.state.step == 0 and not self.dots.any():
            raise TrainingError(
                "no coefficient has a gradient: the loss does not change with the weights (text of one row for infomax, "
                "or predictions that are certain everywhere)"
            )

    # ---- looks

    def _look(self) -> None:
        """Record where it stands; end it where the held-out loss has not become better for a while."""
        state = self.state
        loss = float(np.mean(state.losses)) if state.losses else None
        held_out = self._held_out_loss()
        if held_out is not None and not math.isfinite(held_out):
            raise TrainingError(f"step {state.step}: the held-out loss is {held_out}")
        with torch.no_grad():
            values = self.bounds.coefficients(self.free).tolist()
        history = [*state.history, Moment(state.step, loss, held_out, values)]
        best = (
            min(range(len(history)), key=lambda i: history[i].held_out or 0.0) if held_out is not None else 0
        )
        ended = held_out is not None and len(history) - 1 - best >= self.settings.patience
        self.state = State(state.run, state.step, state.free, state.first, state.second, [], history, ended)

    def _held_out_loss(self) -> float | None:
        """The sum over streams; None where nothing is held out."""
        total = None
        for stream, (_, held) in zip(self.streams, self.splits, strict=True):
            if len(held):
                logits = predict_logits(
                    stream.model, [stream.encoded[row] for row in held], bf16=self.settings.bf16
                )
                with torch.no_grad():
                    total = (total or 0.0) + float(stream.objective(torch.from_numpy(logits), held))
        return total

    def _best(self) -> Moment:
        history = self.state.history
        if history[-1].held_out is None:
            return history[-1]
        return min(history, key=lambda one: (one.held_out, one.step))

    def _logits(self, values: Numbers) -> list[np.ndarray[Any, Any]]:
        """Logits on the held-out rows (or the first ones) with these coefficients."""
        self.deltas.fill(self.grouping.weights(values))
        found = []
        for stream, (kept, held) in zip(self.streams, self.splits, strict=True):
            rows = held if len(held) else kept[:HELD_OUT_MOST]
            found.append(
                predict_logits(stream.model, [stream.encoded[row] for row in rows], bf16=self.settings.bf16)
            )
        return found

    def _diagnostics(
        self, before: list[np.ndarray[Any, Any]], after: list[np.ndarray[Any, Any]], values: Numbers
    ) -> dict[str, Any]:
        inert = {
            group: [s for s, moved in zip(self.grouping.sources, self._moves(at), strict=True) if not moved]
            for at, group in enumerate(self.grouping.groups)
        }
        return {
            "held_out_rows": [len(held) for _, held in self.splits],
            "streams": [
                {"name": stream.name, **compare(old, new)}
                for stream, old, new in zip(self.streams, before, after, strict=True)
            ],
            "moved_most": float(np.abs(values - self.start.numpy()).max()),
            "at_a_bound": int(((values <= self.bounds.low) | (values >= self.bounds.high)).sum())
            if self.bounds.kind != "none"
            else 0,
            # A zero task vector has no gradient: its coefficient means nothing.
            "inert": {group: names for group, names in inert.items() if names},
        }

    def _moves(self, at: int) -> np.ndarray[Any, Any]:
        rows = [self.deltas.norms[name] for name in self.grouping.tensors[at]]
        return np.asarray(np.sum(rows, axis=0) > 0)

    # ---- where it stands

    def fill(self) -> None:
        with torch.no_grad():
            values = self.bounds.coefficients(self.free).numpy()
        self.deltas.fill(self.grouping.weights(values))

    def _go_on_from(self, state: State) -> None:
        self.state = state
        with torch.no_grad():
            self.free.copy_(torch.tensor(state.free, dtype=torch.float64))
        if state.step:
            self.adam.state[self.free] = {
                "step": torch.tensor(float(state.step)),
                "exp_avg": torch.tensor(state.first, dtype=torch.float64),
                "exp_avg_sq": torch.tensor(state.second, dtype=torch.float64),
            }

    def _save(self) -> None:
        if self.path is not None:
            self.state.save(self.path)
