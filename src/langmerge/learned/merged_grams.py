"""RegMean++: Grams of what goes into every source's layer when the layers before it are merged already.

From the first layer to the last: texts come through the merged layers so far, pass through each source's own next layer
(whose Grams are taken on the way), and then that layer is merged by these Grams. One model is in memory; layers of
sources are read when it is their turn. What results are ordinary Grams: a merge by `regmean` repeats the merge.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from langmerge.checkpoint import Checkpoint
from langmerge.coefficients import Coefficients, group_of
from langmerge.engine.statistics import Statistics, open_statistics, write_statistics
from langmerge.errors import CheckpointError, InputError
from langmerge.learned.grams import BATCH_TOKENS, Collector, Grams, batches, linear_layers
from langmerge.methods import METHODS, checked_parameters
from langmerge.progress import Progress, silent

Sources = Mapping[str, Checkpoint]


@torch.inference_mode()
def merged_grams(
    model: Any,
    sources: Sources,
    encoded: Mapping[str, Sequence[Sequence[int]]],
    *,
    coefficients: Coefficients,
    parameters: Mapping[str, Any],
    kept: Path,
    identity: str = "",
    batch_tokens: int = BATCH_TOKENS,
    progress: Progress = silent,
) -> dict[str, Grams]:
    """Grams of every source for RegMean++.

    Args:
        model: a classifier of the sources' kind; its weights are overwritten.
        sources: by name.
        encoded: token ids of each source's texts (the same for all, or its own).
        coefficients: of the sources, as the merge will have them.
        parameters: of `regmean`, as the merge will have them.
        kept: folder for the Grams of every layer until all are there; a later call with the same arguments goes on
            after the last one. Whoever has written the result removes it.
        identity: of everything else that decides them: nothing is taken up that was kept of other work.
        batch_tokens: padded tokens in a batch.
        progress: told of every layer of every source.

    Returns:
        By source; arrays are mapped from `kept`.

    Raises:
        InputError: no text, or a model without a list of layers.
        CheckpointError: a source has other tensors than the model.
    """
    if not all(len(rows) for rows in encoded.values()):
        raise InputError("a Gram needs text: found no row")
    model.eval()
    merging = _Merging(model, dict(sorted(sources.items())), coefficients, dict(parameters), kept, identity)
    stages = [*merging.stages, ""]
    with progress("RegMean++", len(stages) * len(sources)) as advance:
        merging.merge_outside(encoded)
        streams = {name: merging.stream(encoded[name], batch_tokens) for name in merging.sources}
        for number, stage in enumerate(stages):
            for name in merging.sources:
                if not merging.file(number, name).exists():
                    merging.measure(number, stage, name, streams[name])
                advance(1)
            if stage:
                merging.merge(number, stage)
                for one in streams.values():
                    one.forward(merging.layers[number], number)
    return {name: merging.collected(name, len(stages)) for name in merging.sources}


@dataclass
class _Stream:
    """Texts on their way through the layers.

    Attributes:
        inputs: ids and mask of each batch.
        states: hidden states before the next layer.
        calls: what else each layer is given: of each batch, of each layer.
    """

    inputs: list[tuple[Tensor, Tensor]]
    states: list[Tensor]
    calls: list[list[tuple[tuple[Any, ...], dict[str, Any]]]]

    def through(self, layer: nn.Module, number: int, collector: Collector | None = None) -> Iterator[Tensor]:
        """Every batch after a layer."""
        for (_, mask), state, calls in zip(self.inputs, self.states, self.calls, strict=True):
            args, kwargs = calls[number]
            if collector is None:
                found = layer(state, *args, **kwargs)
            else:
                with collector.batch(mask):
                    found = layer(state, *args, **kwargs)
            yield found if isinstance(found, Tensor) else found[0]

    def forward(self, layer: nn.Module, number: int) -> None:
        """Go through a merged layer."""
        self.states = list(self.through(layer, number))


class _Merging:
    """The model that becomes the merged one, layer by layer."""

    def __init__(
        self,
        model: Any,
        sources: dict[str, Checkpoint],
        coefficients: Coefficients,
        parameters: dict[str, Any],
        kept: Path,
        identity: str,
    ) -> None:
        self.model, self.sources = model, sources
        self._coefficients, self._kept, self._identity = coefficients, kept, identity
        self._parameters = checked_parameters("regmean", parameters)
        prefix, self.layers = layer_list(model)
        self.stages = [f"{prefix}.{number}." for number in range(len(self.layers))]
        self._named = dict(model.named_parameters())
        for name, checkpoint in sources.items():
            for tensor, parameter in self._named.items():
                info = checkpoint.tensors.get(tensor)
                if info is None or info.shape != tuple(parameter.shape):
                    raise CheckpointError(
                        f"source {name} has {'no tensor' if info is None else 'another shape of'} {tensor!r}: "
                        "RegMean++ runs all sources as one model, with one vocabulary and one head"
                    )

    def file(self, number: int, source: str) -> Path:
        """Where the Grams of one layer of one source are kept."""
        return self._kept / f"{source}.{number}.safetensors"

    def _within(self, stage: str) -> list[str]:
        """Parameters of a layer; of none, those outside all layers."""
        if stage:
            return [name for name in self._named if name.startswith(stage)]
        return [name for name in self._named if not name.startswith(tuple(self.stages))]

    def merge_outside(self, encoded: Mapping[str, Sequence[Sequence[int]]]) -> None:
        """Embeddings and all else outside the layers: the mean. Of word embeddings the rows that the texts touch."""
        words = self.model.get_input_embeddings().weight
        touched = sorted({piece for rows in encoded.values() for row in rows for piece in row})
        for tensor in self._within(""):
            parameter = self._named[tensor]
            if parameter is words:
                rows = [torch.from_numpy(c.array(tensor)[touched]).float() for c in self.sources.values()]
                parameter[touched] = self._by("linear", tensor, torch.stack(rows)).to(parameter)
            else:
                parameter.copy_(self._by("linear", tensor, self._stacked(tensor)))

    def stream(self, encoded: Sequence[Sequence[int]], batch_tokens: int) -> _Stream:
        """Texts in front of the first layer, and what else every layer is called with."""
        found = _Stream([], [], [])
        device = next(self.model.parameters()).device
        for ids, mask in batches(self.model, encoded, batch_tokens):
            with _recorded(self.layers) as calls:
                self.model(input_ids=ids.to(device), attention_mask=mask.to(device))
            found.inputs.append((ids.to(device), mask.to(device)))
            found.states.append(calls[0][0][0])
            found.calls.append([(args[1:], kwargs) for args, kwargs in calls])
        return found

    def measure(self, number: int, stage: str, source: str, texts: _Stream) -> None:
        """Take and keep the Grams of one source's layer; of no layer, those of the head."""
        own = self._within(stage)
        layers = {name: one for name, one in linear_layers(self.model).items() if name in own}
        # What lies before the layers stays merged.
        for name in own if stage else [name for name in own if group_of(name) == "head"]:
            self._named[name].copy_(self.sources[source].read(name))
        collector = Collector(layers)
        with collector.collecting():
            if stage:
                for _ in texts.through(self.layers[number], number, collector):
                    pass
            else:
                for ids, mask in texts.inputs:
                    with collector.batch(mask):
                        self.model(input_ids=ids, attention_mask=mask)
        found = collector.grams()
        write_statistics(
            self.file(number, source), found.tensors, kind="grams", model=self._identity, shared=found.shared,
            metadata={"tokens": found.tokens},
        )  # fmt: skip

    def merge(self, number: int, stage: str) -> None:
        """Merge a layer by the Grams of all sources, as a merge by `regmean` will."""
        known = [self._open(number, source) for source in self.sources]
        for tensor in self._within(stage):
            if tensor in known[0].tensors:
                grams = torch.stack([torch.from_numpy(one.array(tensor).copy()) for one in known])
                merged = self._by(
                    "regmean", tensor, self._stacked(tensor), statistics=grams, **self._parameters
                )
            else:
                merged = self._by("linear", tensor, self._stacked(tensor))
            self._named[tensor].copy_(merged)

    def _stacked(self, tensor: str) -> Tensor:
        return torch.stack([one.read_finite(tensor) for one in self.sources.values()])

    def _by(self, method: str, tensor: str, stacked: Tensor, **parameters: Any) -> Tensor:
        row = self._coefficients.for_tensor(tensor)
        weights = torch.tensor([row[name] for name in self.sources], dtype=torch.float32)
        return METHODS[method](stacked[0], stacked, weights, **parameters)

    def _open(self, number: int, source: str) -> Statistics:
        found = open_statistics(self.file(number, source))
        if found.model != self._identity:
            raise CheckpointError(f"{found.file} was kept of other work: remove the folder {self._kept}")
        return found

    def collected(self, source: str, stages: int) -> Grams:
        """All that was kept of one source."""
        whole = Grams({}, {}, 0)
        for number in range(stages):
            one = self._open(number, source)
            shared = one.metadata.get("shared", {})
            whole.shared.update(shared)
            whole.tensors.update({name: one.array(name) for name in one.tensors if name not in shared})
            whole = Grams(whole.tensors, whole.shared, int(one.metadata["tokens"]))
        return whole


def layer_list(model: Any) -> tuple[str, nn.ModuleList]:
    """The name and the list of a model's layers: the longest list of modules of one class.

    Raises:
        InputError: there is none.
    """
    lists = {
        name: one
        for name, one in model.named_modules()
        if isinstance(one, nn.ModuleList) and len(one) and len({type(layer) for layer in one}) == 1
    }
    if not lists:
        raise InputError(f"RegMean++ goes layer by layer, and a {type(model).__name__} has no list of layers")
    name = max(lists, key=lambda name: len(lists[name]))
    return name, lists[name]


@contextmanager
def _recorded(layers: nn.ModuleList) -> Iterator[list[tuple[tuple[Any, ...], dict[str, Any]]]]:
    """What each layer is called with, in order, while a model runs; hidden states first."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        named = dict(kwargs)
        first = args if args else (named.pop("hidden_states"),)
        # Only the first layer's states are of use: the others' come from the merged layers.
        calls.append(((first[0] if not calls else None, *first[1:]), named))

    hooks = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()
