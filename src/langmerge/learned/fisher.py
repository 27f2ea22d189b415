"""The diagonal Fisher information of a classifier, example by example.

F(p) = E_x E_y (∂ log p(y|x) / ∂p)². Gradients of different examples must not be added before they are squared, so every
example has a backward pass of its own; each tensor's gradient is squared into the one accumulator and freed as soon as it
is there. Beside the model there are never more than the accumulator and one tensor's gradient.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from langmerge.engine.statistics import open_statistics, write_statistics
from langmerge.errors import CheckpointError, InputError
from langmerge.learned.steps import whole_steps
from langmerge.progress import Progress, silent
from langmerge.results import signature

KINDS = ("empirical", "sampled", "exact")
"""Where y comes from: the given label; drawn from p(y|x), one for each text; or all of them, weighted by p(y|x)."""

KEPT_EVERY = 300.0
"""Seconds between two states that are kept."""

Arrays = dict[str, np.ndarray[Any, Any]]


def fisher_diagonal(
    model: Any,
    encoded: Sequence[Sequence[int]],
    *,
    kind: str = "sampled",
    labels: Sequence[int] | None = None,
    seed: int = 0,
    kept: Path | None = None,
    identity: str = "",
    every: float = KEPT_EVERY,
    progress: Progress = silent,
) -> Arrays:
    """Mean of the squared gradients of log p(y|x) over texts, for every parameter.

    Args:
        model: a classifier, `(input_ids, attention_mask) → .logits`; it is put into eval mode.
        encoded: token ids of each text.
        kind: of `KINDS`.
        labels: for `empirical`, the output of each text's label.
        seed: of the labels that `sampled` draws; it draws the same ones after an interruption.
        kept: file for what has been done so far, written every few minutes and when interrupted; a later call with the
            same arguments goes on from there, to the same bytes. Whoever has the result removes it.
        identity: of the model, so that nothing is taken up that was kept of another.
        every: seconds between two such states.
        progress: told of texts.

    Returns:
        By parameter, in its shape and dtype. Rows of the input embedding that no text touches are zero: they were never
        differentiated (a plain `nn.Embedding`; any other has a dense gradient).

    Raises:
        InputError: an unknown kind, no text, or labels where there must be none or none where there must be.
        CheckpointError: the model gives NaN or infinity.
    """
    _check(kind, encoded, labels)
    asked = signature([identity, kind, seed, list(map(list, encoded)), list(map(int, labels or ()))])
    draws = torch.rand(len(encoded), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    model.eval()
    squares = _Squares(model, encoded)
    done = squares.restore(kept, asked) if kept is not None else 0
    since = time.monotonic()
    with (
        squares.collecting(),
        whole_steps() as check,
        progress(f"{kind} Fisher", len(encoded)) as advance,
    ):
        advance(done)
        try:
            while done < len(encoded):
                label = labels[done] if labels is not None else None
                _example(model, encoded[done], squares, kind, label, float(draws[done]), len(encoded))
                done += 1
                advance(1)
                check()
                if kept is not None and time.monotonic() - since > every:
                    squares.save(kept, asked, done)
                    since = time.monotonic()
        except KeyboardInterrupt:
            # A second Ctrl-C may fall into a step: then the last state that was kept stays.
            if kept is not None and squares.whole:
                squares.save(kept, asked, done)
            raise
    return squares.dense()


def _check(kind: str, encoded: Sequence[Sequence[int]], labels: Sequence[int] | None) -> None:
    if kind not in KINDS:
        raise InputError(f"unknown kind of Fisher {kind!r}: there are {', '.join(KINDS)}")
    if not len(encoded):
        raise InputError("a Fisher needs text: found no row")
    if (labels is not None) != (kind == "empirical"):
        wants = "needs a label for each text" if kind == "empirical" else "looks at no labels"
        raise InputError(f"the {kind} Fisher {wants}: {'none were' if labels is None else 'some were'} given")
    if labels is not None and len(labels) != len(encoded):
        raise InputError(f"the {kind} Fisher needs a label for each text: {len(labels)} for {len(encoded)}")


def _example(
    model: Any, row: Sequence[int], squares: "_Squares", kind: str, label: int | None, draw: float, rows: int
) -> None:
    """Add one text's share to the squares: Σ_y p(y) (∂ log p(y))² / rows, or that of one y."""
    squares.whole = False
    ids = torch.tensor([list(row)], device=next(model.parameters()).device)
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
    known = logits.log_softmax(0)
    shares = known.detach().double().exp()
    if not bool(torch.isfinite(shares).all()):
        raise CheckpointError("the model gives NaN or infinity: its weights are broken")
    if kind == "exact":
        chosen = list(range(len(known)))
    elif kind == "sampled":
        # Rounding may leave the sum of all shares below the draw.
        below = int(
            torch.searchsorted(shares.cumsum(0), torch.tensor(draw, device=shares.device), right=True)
        )
        chosen = [min(below, len(known) - 1)]
    else:
        chosen = [int(label or 0)]
    for place, y in enumerate(chosen):
        squares.weight = (float(shares[y]) if kind == "exact" else 1.0) / rows
        torch.autograd.backward(known[y], retain_graph=place + 1 < len(chosen))
    squares.whole = True


class _Squares:
    """The accumulator: squared gradients by parameter, filled by hooks while a backward pass runs.

    Attributes:
        sums: by parameter; of a compact embedding only the rows that occur in the texts.
        weight: what the next squares are multiplied by.
        whole: whether no example is half in.
    """

    def __init__(self, model: Any, encoded: Sequence[Sequence[int]]) -> None:
        self._model = model
        self.weight, self.whole = 0.0, True
        self._embedding = _plain_embedding(model)
        self._rows = torch.tensor(sorted({piece for row in encoded for piece in row}), dtype=torch.int64)
        self._compact = ""
        self.sums: dict[str, Tensor] = {}
        for name, parameter in model.named_parameters():
            if self._embedding is not None and parameter is self._embedding.weight:
                self._compact = name
                self.sums[name] = parameter.new_zeros(len(self._rows), *parameter.shape[1:]).detach()
            else:
                self.sums[name] = torch.zeros_like(parameter, requires_grad=False)

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Hooks on every parameter; they and what needs a gradient are as before afterwards."""
        parameters = dict(self._model.named_parameters())
        before = {name: parameter.requires_grad for name, parameter in parameters.items()}
        hooks: list[Any] = []
        try:
            for name, parameter in parameters.items():
                parameter.requires_grad_(name != self._compact)
                if name != self._compact:
                    hooks.append(parameter.register_post_accumulate_grad_hook(partial(self._add, name)))
            if self._embedding is not None:
                hooks.append(self._embedding.register_forward_hook(self._looked_up, with_kwargs=True))
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for name, parameter in parameters.items():
                parameter.requires_grad_(before[name])
                parameter.grad = None

    def _add(self, name: str, parameter: Tensor) -> None:
        gradient = parameter.grad
        assert gradient is not None
        self.sums[name].addcmul_(gradient, gradient, value=self.weight)
        parameter.grad = None

    def _looked_up(self, module: nn.Embedding, args: Any, kwargs: Any, output: Tensor) -> Tensor:
        """Cut the graph at the vectors that were looked up: their gradients say all that the rows' can."""
        ids = args[0] if args else kwargs["input"]
        vectors = output.detach().requires_grad_()
        taken = partial(self._add_rows, ids=ids, pad=module.padding_idx)
        vectors.register_post_accumulate_grad_hook(taken)  # type: ignore[no-untyped-call]
        return vectors

    def _add_rows(self, vectors: Tensor, *, ids: Tensor, pad: int | None) -> None:
        gradient = vectors.grad
        assert gradient is not None
        vectors.grad = None
        flat = ids.reshape(-1)
        pieces, places = torch.unique(flat, return_inverse=True)
        # A piece that occurs twice has one gradient, the sum.
        summed = gradient.new_zeros(len(pieces), gradient.shape[-1])
        summed.index_add_(0, places, gradient.reshape(len(flat), -1))
        if pad is not None:
            summed[pieces == pad] = 0
        rows = torch.searchsorted(self._rows.to(pieces.device), pieces)
        self.sums[self._compact].index_add_(0, rows, summed.square_().mul_(self.weight))

    def dense(self) -> Arrays:
        """By parameter, in its shape."""
        found = {name: one.cpu().numpy() for name, one in self.sums.items()}
        if self._compact and self._embedding is not None:
            # Zeros that are never written take no memory.
            whole = np.zeros(tuple(self._embedding.weight.shape), found[self._compact].dtype)
            whole[self._rows.numpy()] = found[self._compact]
            found[self._compact] = whole
        return found

    def save(self, file: Path, asked: str, done: int) -> None:
        """Keep what has been done so far."""
        arrays = {name: one.cpu().numpy() for name, one in self.sums.items()}
        write_statistics(file, arrays, kind="fisher", model=asked, metadata={"done": done})

    def restore(self, file: Path, asked: str) -> int:
        """Take up what was kept of the same work; returns the number of texts that are in."""
        if not file.exists():
            return 0
        found = open_statistics(file)
        if found.model != asked or found.tensors.keys() != self.sums.keys():
            return 0
        for name, one in self.sums.items():
            one.copy_(torch.from_numpy(np.array(found.array(name))))
        return int(found.metadata["done"])


def _plain_embedding(model: Any) -> nn.Embedding | None:
    """The input embedding, where its output is the looked-up row and nothing else uses its weights."""
    own = model.get_input_embeddings()
    if type(own) is not nn.Embedding or own.max_norm is not None or own.scale_grad_by_freq:
        return None
    output: Callable[[], Any] = getattr(model, "get_output_embeddings", lambda: None)
    tied = output()
    return None if tied is not None and tied.weight is own.weight else own
