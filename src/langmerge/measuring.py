"""Statistics of a pool's experts on text: an artefact for each source, and a recipe that reads them."""

import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from langmerge import __version__
from langmerge.checkpoint import Checkpoint, checkpoint_signature, folder_signature, open_checkpoint
from langmerge.coefficients import Coefficients, group_of
from langmerge.engine.statistics import open_statistics, write_statistics
from langmerge.errors import CheckpointError, InputError, OutputError
from langmerge.files import replace_text
from langmerge.learned.fisher import KINDS, fisher_diagonal
from langmerge.learned.grams import Arrays, Grams, input_grams
from langmerge.learned.merged_grams import merged_grams
from langmerge.learned.steps import peak_memory
from langmerge.methods import checked_parameters
from langmerge.models import MAX_LENGTH, encode, load_classifier, load_tokenizer
from langmerge.pool import Pool
from langmerge.progress import Progress, silent
from langmerge.results import signature
from langmerge.tasks import Task, task_text

TEXTS = ("target", "source")
"""Whose train text is read: the target's, without labels, or each source's own."""

ROWS = 256


@dataclass(frozen=True)
class Measurement:
    """What is to be measured, on which text.

    Attributes:
        coefficients: of the sources; they go into the recipe.
        target: locale to merge for.
        text: of `TEXTS`.
        rows: at most so many texts of each locale.
    """

    coefficients: Coefficients
    target: str
    text: str = "target"
    rows: int = ROWS

    def __post_init__(self) -> None:
        if self.text not in TEXTS:
            raise InputError(f"unknown text {self.text!r}: it is target or source")
        if self.rows < 1:
            raise InputError(f"rows is {self.rows}: statistics need at least one text")


@dataclass(frozen=True)
class Measured:
    """What was made.

    Attributes:
        recipe: the file that reads the statistics.
        files: by source.
        notes: what is to be known of the text: rows shared with the test split.
        kept: sources whose file was there already.
        peak: most memory that this process has had, in bytes.
    """

    recipe: Path
    files: Mapping[str, Path]
    notes: tuple[str, ...]
    kept: tuple[str, ...]
    peak: int


def measure_fishers(
    pool: Pool,
    task: Task,
    wanted: Measurement,
    out: Path,
    *,
    kind: str = "sampled",
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Measured:
    """The diagonal Fisher of every source, and a recipe for `fisher`. Goes on where it stopped.

    Args:
        pool: of the sources.
        task: the pool's, loaded; labels are looked at for `empirical` alone.
        wanted: sources and text.
        out: a folder; gets `<source>.safetensors` and `recipe.yaml`.
        kind: see `fisher_diagonal`; `empirical` needs the sources' own text.
        seed: of `sampled`.
        overwrite: replace statistics that were made in another way.
        progress: told of sources and texts.

    Raises:
        InputError: a wrong kind or text.
        OutputError: the folder has statistics that were made in another way.
        CheckpointError: an expert cannot be read, or gives NaN.
    """
    if kind not in KINDS:
        raise InputError(f"unknown kind of Fisher {kind!r}: there are {', '.join(KINDS)}")
    if kind == "empirical" and wanted.text != "source":
        raise InputError(
            "the empirical Fisher needs labels, and the target's text is read without: say --text source, "
            "or --kind sampled"
        )
    work = _Work(pool, task, wanted, out, {"made": "fisher", "kind": kind, "seed": seed}, overwrite)

    def measure(source: str, checkpoint: Checkpoint, state: Path) -> Made:
        model = load_classifier(checkpoint.folder)
        labels = work.labels(source, model) if kind == "empirical" else None
        identity = checkpoint_signature(checkpoint)
        arrays = fisher_diagonal(
            model, work.encoded(source), kind=kind, labels=labels, seed=seed, kept=state, identity=identity,
            progress=progress,
        )  # fmt: skip
        return arrays, {}, {}

    work.each("fisher", measure, progress)
    return work.finished("fisher", {}, {})


def measure_grams(
    pool: Pool,
    task: Task,
    wanted: Measurement,
    out: Path,
    *,
    plus: bool = False,
    head_only: bool = False,
    parameters: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Measured:
    """The Grams of every source's layer inputs, and a recipe for `regmean`, head included. Goes on where it stopped.

    Args:
        pool: of the sources.
        task: the pool's, loaded; its labels are not looked at.
        wanted: sources and text.
        out: a folder; gets `<source>.safetensors` and `recipe.yaml`.
        plus: RegMean++: inputs that come through the merged layers before.
        head_only: of the inputs of the head's layers alone, for recipes that say `head: regmean`: small files.
        parameters: of `regmean`, for the recipe and for what `plus` merges on the way.
        overwrite: replace statistics that were made in another way.
        progress: told of sources and texts.

    Raises:
        InputError, OutputError, CheckpointError, MethodError: as for `measure_fishers`; a wrong parameter; `plus` of
            the head alone.
    """
    if head_only and parameters:
        raise InputError(
            f"{next(iter(parameters))} is a parameter of regmean, and the head alone is merged by its statistics as they are: "
            "leave it out"
        )
    if plus and head_only:
        raise InputError("RegMean++ goes through every layer: leave out the head alone, or plus")
    given = dict(parameters or {})
    settings: dict[str, Any] = {"made": "grams", "plus": plus, **({"head_only": True} if head_only else {})}
    own = checked_parameters("regmean", given)
    if plus:
        settings |= _what_decides_a_merge(pool, wanted, own)
    work = _Work(pool, task, wanted, out, settings, overwrite)
    made: dict[str, Grams] = {}
    layers = out / f".layers.{work.identity}"

    def together() -> dict[str, Grams]:
        layers.mkdir(parents=True, exist_ok=True)
        opened = {source: open_checkpoint(pool.expert(source)) for source in work.sources}
        model = load_classifier(pool.expert(work.sources[0]))
        texts = {source: work.encoded(source) for source in work.sources}
        return merged_grams(
            model, opened, texts, coefficients=wanted.coefficients, parameters=own, kept=layers,
            identity=work.identity, progress=progress,
        )  # fmt: skip

    def measure(source: str, checkpoint: Checkpoint, _: Path) -> Made:
        if plus:
            made.update(made or together())
            one = made[source]
        else:
            only = _is_head if head_only else _is_any
            one = input_grams(
                load_classifier(checkpoint.folder), work.encoded(source), only=only, progress=progress
            )
        return one.tensors, one.shared, {"tokens": one.tokens}

    work.each("grams", measure, progress)
    made.clear()
    shutil.rmtree(layers, ignore_errors=True)
    return work.finished("linear" if head_only else "regmean", given, {"head": "regmean"})


def head_statistics(pool: Pool, task: Task, sources: Sequence[str], target: str) -> dict[str, Path]:
    """The head's Gram of every source on the target's text, for `head: regmean`; kept in the pool for the next merge.

    Raises:
        InputError, OutputError, CheckpointError: as for `measure_grams`.
    """
    found, text = {}, task_text(task, target, limit=ROWS)
    for source in sources:
        # By contents: an expert that is trained anew is another, and so is other text.
        wanted = Measurement(Coefficients.uniform([source], target=target), target)
        kept = pool.root / "statistics" / target / f"{folder_signature(pool.expert(source))}.{text.signature}"
        work = _Work(
            pool, task, wanted, kept, {"made": "grams", "plus": False, "head_only": True}, overwrite=False
        )

        def measure(source: str, checkpoint: Checkpoint, _: Path, work: _Work = work) -> Made:
            model = load_classifier(checkpoint.folder)
            one = input_grams(model, work.encoded(source), only=_is_head)
            return one.tensors, one.shared, {"tokens": one.tokens}

        work.each("grams", measure, silent)
        found[source] = work.file(source)
    return found


def _is_head(name: str) -> bool:
    return group_of(name) == "head"


def _is_any(_: str) -> bool:
    return True


def _what_decides_a_merge(pool: Pool, wanted: Measurement, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """With RegMean++ it decides the Grams too: inputs come through what is merged."""
    values = {group: dict(sorted(row.items())) for group, row in wanted.coefficients.values.items()}
    models = {s: checkpoint_signature(open_checkpoint(pool.expert(s))) for s in values["model"]}
    return {"parameters": dict(parameters), "coefficients": values, "models": models}


Made = tuple[Arrays, Mapping[str, str], Mapping[str, Any]]
"""Arrays by tensor, what is shared, and what else is to be recorded."""


@dataclass
class _Work:
    """The sources of one measurement, one after the other."""

    pool: Pool
    task: Task
    wanted: Measurement
    out: Path
    settings: dict[str, Any]
    overwrite: bool
    _texts: dict[str, tuple[list[list[int]], dict[str, Any]]] = field(default_factory=dict)
    _notes: list[str] = field(default_factory=list)
    _kept: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sources = tuple(sorted(self.wanted.coefficients.sources))
        for source in self.sources:
            self.pool.expert(source)
        if self.out.exists() and not self.out.is_dir():
            raise OutputError(f"output {self.out} is a file: give a folder")
        self._tokenizer = load_tokenizer(self.pool.base_folder)
        for source in self.sources:
            self._read(self._locale(source))
        asked = {s: self._texts[self._locale(s)][1] for s in self.sources}
        self.identity = signature([self.settings, asked, MAX_LENGTH])

    def _locale(self, source: str) -> str:
        return source if self.wanted.text == "source" else self.wanted.target

    def _read(self, locale: str) -> None:
        if locale in self._texts:
            return
        found = task_text(self.task, locale, limit=self.wanted.rows)
        self._notes += [f"{found.origin}: {note}" for note in found.notes]
        told = {
            "origin": found.origin,
            "rows": len(found),
            "signature": found.signature,
            "overlap": found.overlap,
        }
        self._texts[locale] = (encode(self._tokenizer, found.texts), told)

    def encoded(self, source: str) -> list[list[int]]:
        """Token ids of the texts that go through a source."""
        return self._texts[self._locale(source)][0]

    def labels(self, source: str, model: Any) -> list[int]:
        """The label of each of the source's own texts, as the model's outputs are numbered."""
        found = self.task.load(source, "train").limited(self.wanted.rows)
        outputs = {str(name): int(place) for place, name in model.config.id2label.items()}
        names = [self.task.labels[label] for label in found.labels]
        if missing := sorted(set(names) - set(outputs)):
            raise CheckpointError(
                f"expert {source} has no output for {self.task.name}'s label {missing[0]!r}"
            )
        return [outputs[name] for name in names]

    def file(self, source: str) -> Path:
        """Where a source's statistics go."""
        return self.out / f"{source}.safetensors"

    def each(self, kind: str, measure: Callable[[str, Checkpoint, Path], Made], progress: Progress) -> None:
        """Measure every source whose file is not there yet; `measure` is also given a place for its state."""
        wanting = [s for s in self.sources if not self._is_made(s, kind)]
        self._kept = [source for source in self.sources if source not in wanting]
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"output {self.out} cannot be written: {error.strerror}") from None
        with progress("sources", len(self.sources)) as advance:
            advance(len(self._kept))
            for source in wanting:
                self._measure(source, kind, measure)
                advance(1)

    def _measure(self, source: str, kind: str, measure: Callable[[str, Checkpoint, Path], Made]) -> None:
        checkpoint = open_checkpoint(self.pool.expert(source))
        started, state = time.perf_counter(), self.out / f".{source}.state"
        arrays, shared, more = measure(source, checkpoint, state)
        _check_names(source, checkpoint, arrays, shared, kind)
        metadata = {
            "settings": self.settings,
            "identity": self.identity,
            "source": source,
            "text": self._texts[self._locale(source)][1],
            **more,
            "seconds": round(time.perf_counter() - started, 3),
            "peak_memory": peak_memory(),
            "langmerge": __version__,
        }
        own = checkpoint_signature(checkpoint)
        write_statistics(self.file(source), arrays, kind=kind, model=own, shared=shared, metadata=metadata)
        state.unlink(missing_ok=True)

    def _is_made(self, source: str, kind: str) -> bool:
        file = self.file(source)
        if not file.exists() or self.overwrite:
            return False
        found = open_statistics(file)
        own = checkpoint_signature(open_checkpoint(self.pool.expert(source)))
        # Of a set of sources only what each of them saw counts, unless all are measured together.
        text = self._texts[self._locale(source)][1]
        same = found.metadata.get("settings") == self.settings and found.metadata.get("text") == text
        if found.kind != kind or found.model != own or not same:
            raise OutputError(
                f"{file} exists and was made in another way: choose another folder, or say --overwrite"
            )
        return True

    def finished(self, method: str, parameters: Mapping[str, Any], more: Mapping[str, Any]) -> Measured:
        """Write the recipe."""
        values = self.wanted.coefficients.values
        recipe: dict[str, Any] = {
            "base": self._place(self.pool.base_folder),
            "sources": {source: self._place(self.pool.expert(source)) for source in self.sources},
            "method": method,
            **({"parameters": dict(parameters)} if parameters else {}),
            "coefficients": dict(values["model"]) if len(values) == 1 else {"values": dict(values)},
            **more,
            "target": self.wanted.target,
            "statistics": {source: self.file(source).name for source in self.sources},
        }
        path = self.out / "recipe.yaml"
        replace_text(path, yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True))
        files = {source: self.file(source) for source in self.sources}
        return Measured(path, files, tuple(self._notes), tuple(self._kept), peak_memory())

    def _place(self, folder: Path) -> str:
        """As the recipe names it: from its own folder where that lies in the pool, so that both can move together."""
        out, root = self.out.resolve(), self.pool.root.resolve()
        inside = out.is_relative_to(root) and folder.resolve().is_relative_to(root)
        return os.path.relpath(folder.resolve(), out) if inside else str(folder.resolve())


def _check_names(
    source: str, checkpoint: Checkpoint, arrays: Arrays, shared: Mapping[str, str], kind: str
) -> None:
    """The model in memory and its folder must agree on names and shapes, or no merge would find the statistics."""
    named = {**arrays, **{name: arrays[owner] for name, owner in shared.items()}}
    for name, one in named.items():
        info = checkpoint.tensors.get(name)
        fits = info is not None and (
            info.shape == one.shape if kind == "fisher" else info.shape[1:] == one.shape[1:]
        )
        if not fits:
            raise CheckpointError(
                f"expert {source}: the model in memory has a tensor {name!r} which its folder {checkpoint.folder} has not, "
                "or in another shape: save it again with transformers' save_pretrained"
            )
