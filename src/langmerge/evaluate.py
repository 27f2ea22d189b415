"""Scores and the transfer matrix; every example's logits are kept."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from langmerge.checkpoint import folder_signature
from langmerge.errors import CheckpointError
from langmerge.executors import executed
from langmerge.models import (
    MAX_LENGTH,
    best_device,
    encode,
    has_fast_bf16,
    load_classifier,
    load_tokenizer,
    predict_logits,
)
from langmerge.pool import Pool
from langmerge.progress import Advance, Progress, silent
from langmerge.results import Logits, kept_logits, load_logits, signature
from langmerge.selection import TransferMatrix
from langmerge.tasks import (
    Examples,
    Interval,
    Task,
    Unlabelled,
    accuracy,
    bootstrap_interval,
    load_task,
    macro_f1,
)

EVALUATION = 2
"""Number of the way in which logits are made: a change of the code that changes none of them leaves kept ones valid."""


@dataclass(frozen=True)
class Score:
    """Accuracy and macro-F1 in [0, 1] with bootstrap 95 % intervals over rows.

    Attributes:
        accuracy: share of rows predicted right.
        accuracy_interval: of it.
        macro_f1: mean of the classes' F1.
        macro_f1_interval: of it.
        rows: number of rows.
        signature: of what was scored.
    """

    accuracy: float
    accuracy_interval: Interval
    macro_f1: float
    macro_f1_interval: Interval
    rows: int
    signature: str


def score(logits: Logits) -> Score:
    """Both metrics of one model on one locale's split."""
    labels, predictions = logits.labels, logits.predictions
    return Score(
        accuracy(labels, predictions),
        bootstrap_interval(labels, predictions),
        macro_f1(labels, predictions),
        bootstrap_interval(labels, predictions, metric="macro_f1"),
        len(labels),
        logits.signature,
    )


@dataclass(frozen=True)
class Rows:
    """One locale's split, tokenised."""

    examples: Examples
    encoded: list[list[int]]


class Evaluator:
    """Scores models that share a task and a tokenizer; every locale is read and tokenised once.

    Args:
        task: what is scored.
        tokenizer: of every model.
        limits: at most so many rows of a split; splits that are not named are whole.
    """

    def __init__(self, task: Task, tokenizer: Any, *, limits: Mapping[str, int | None] | None = None) -> None:
        self.task, self.limits = task, dict(limits or {})
        self.tokenizer = tokenizer
        self._rows: dict[tuple[str, str], Rows] = {}

    def rows(self, locale: str, split: str) -> Rows:
        """The tokenised rows of a locale's split."""
        key = (locale, split)
        if key not in self._rows:
            examples = self.task.load(locale, split).limited(self.limits.get(split))
            self._rows[key] = Rows(examples, encode(self.tokenizer, examples.texts))
        return self._rows[key]

    def signature(self, model: str, locale: str, split: str) -> str:
        """What a cell's numbers came from: model, data, rows, precision and version."""
        return signature(
            {
                "model": model,
                "task": self.task.name,
                "revision": self.task.revision,
                "locale": locale,
                "split": split,
                "limit": self.limits.get(split),
                "max_length": MAX_LENGTH,
                "bf16": has_fast_bf16(best_device()),
                "evaluation": EVALUATION,
            }
        )

    def logits(
        self,
        model: Callable[[], Any],
        model_signature: str,
        locale: str,
        split: str,
        *,
        kept: Path | None = None,
    ) -> Logits:
        """Logits of a model on a locale's split, read from `kept` where they are there with the same signature.

        Args:
            model: gives the classifier; only called if there is something to compute.
            model_signature: of its weights.
            locale: the locale.
            split: the split.
            kept: file to read from or write to.
        """
        own = self.signature(model_signature, locale, split)
        if kept is not None and (found := load_logits(kept, own)) is not None:
            return found
        rows = self.rows(locale, split)
        values = self._predicted(model(), rows.encoded, locale)
        made = Logits(own, rows.examples.ids, rows.examples.labels, values)
        if kept is not None:
            made.save(kept)
        return made

    def _predicted(
        self, classifier: Any, encoded: Sequence[Sequence[int]], locale: str
    ) -> np.ndarray[Any, np.dtype[np.float32]]:
        """A model's logits as they are kept, in the task's order of labels."""
        values = predict_logits(classifier, encoded)[:, _columns(classifier, self.task)]
        if not np.isfinite(values).all():
            raise CheckpointError(
                f"the model {classifier.name_or_path} gives NaN or infinity on {locale}: its weights are broken"
            )
        return kept_logits(values)


def _columns(classifier: Any, task: Task) -> list[int]:
    """Where the classifier keeps each of the task's labels: logits are matched by name, as heads are."""
    names = {str(name): int(column) for column, name in classifier.config.id2label.items()}
    if missing := [label for label in task.labels if label not in names]:
        raise CheckpointError(
            f"the model {classifier.name_or_path} has no output for {task.name}'s labels {', '.join(missing[:5])}"
            f"{' …' if len(missing) > 5 else ''}: it was trained for another task"
        )
    return [names[label] for label in task.labels]


def evaluate_model(
    folder: Path,
    task: Task,
    locales: Sequence[str],
    *,
    split: str = "test",
    limit: int | None = None,
    progress: Progress = silent,
) -> dict[str, Logits]:
    """One model's logits on several locales.

    Raises:
        CheckpointError: no model there, or it was trained for other labels.
        LocaleError: the task has no such locale.
    """
    for locale in locales:
        task.load(locale, split)
    model = load_classifier(folder)
    evaluator = Evaluator(task, load_tokenizer(folder), limits={split: limit})
    own = folder_signature(folder)
    found = {}
    with progress(f"evaluating {folder.name}", len(locales)) as advance:
        for locale in locales:
            found[locale] = evaluator.logits(lambda: model, own, locale, split)
            advance(1)
    return found


class PoolEvaluator(Evaluator):
    """An evaluator for a pool, whose experts' logits are kept in the pool's folder, one file per cell.

    Args:
        pool: the pool.
        task: its task, loaded.
        limits: at most so many rows of a split.
    """

    def __init__(self, pool: Pool, task: Task, *, limits: Mapping[str, int | None] | None = None) -> None:
        super().__init__(task, load_tokenizer(pool.base_folder), limits=limits)
        self.pool = pool
        self._loaded: tuple[str, Any] | None = None
        self._signatures: dict[str, str] = {}

    def cell(self, expert: str, locale: str, split: str) -> Logits:
        """One expert's logits on one locale's split."""
        kept = self.kept(expert, locale, split)
        return self.logits(lambda: self._model(expert), self._signature(expert), locale, split, kept=kept)

    def kept(self, name: str, locale: str, split: str) -> Path:
        """Where an expert's, or by another name some other model's logits on a locale's split are kept."""
        # Apart from those of whole splits: a quick look must not cost what a long run has kept.
        limit = self.limits.get(split)
        rows = split if limit is None else f"{split}.{limit}"
        return self.pool.root / "logits" / rows / locale / f"{name}.safetensors"

    def on_text(self, expert: str, text: Unlabelled) -> Logits:
        """One expert's logits on text without labels; its labels are −1."""
        return self.on_text_of(lambda: self._model(expert), self._signature(expert), expert, text)

    def on_text_of(
        self, model: Callable[[], Any], model_signature: str, name: str, text: Unlabelled
    ) -> Logits:
        """The same for any model; kept under a name."""
        kept = self.pool.root / "logits" / f"text.{text.signature}" / text.locale / f"{name}.safetensors"
        # The text's signature stands for split and rows.
        own = self.signature(model_signature, text.locale, text.signature)
        if (found := load_logits(kept, own)) is not None:
            return found
        values = self._predicted(model(), encode(self.tokenizer, text.texts), text.locale)
        made = Logits(own, text.ids, np.full(len(text), -1, dtype=np.int64), values)
        made.save(kept)
        return made

    def _signature(self, expert: str) -> str:
        # Once for a row: telling a folder from another looks at its files.
        if expert not in self._signatures:
            self._signatures[expert] = folder_signature(self.pool.expert(expert))
        return self._signatures[expert]

    def _model(self, expert: str) -> Any:
        if self._loaded is None or self._loaded[0] != expert:
            self._loaded = (expert, load_classifier(self.pool.expert(expert)))
        return self._loaded[1]


@dataclass(frozen=True)
class RowWork:
    """One row of a transfer matrix, as it can be sent to another process.

    Attributes:
        root: the pool's folder.
        data: where the task's data is.
        expert: the row.
        locales: the columns.
        split: of the rows.
        limit: at most so many rows.
    """

    root: Path
    data: Path | None
    expert: str
    locales: tuple[str, ...]
    split: str
    limit: int | None


def evaluate_row(work: RowWork) -> list[tuple[float, str]]:
    """Accuracy and signature of every cell of a row; the expert is loaded once, and only if a cell is missing."""
    pool = Pool.load(work.root)
    evaluator = PoolEvaluator(pool, load_task(pool.task, data=work.data), limits={work.split: work.limit})
    return _row(evaluator, work.expert, work.locales, work.split)


def _row(
    evaluator: PoolEvaluator,
    expert: str,
    locales: Sequence[str],
    split: str,
    advance: Advance = lambda _: None,
) -> list[tuple[float, str]]:
    found = []
    for locale in locales:
        cell = evaluator.cell(expert, locale, split)
        found.append((accuracy(cell.labels, cell.predictions), cell.signature))
        advance(1)
    return found


def transfer_matrix(
    evaluator: PoolEvaluator,
    *,
    split: str = "dev",
    locales: Sequence[str] | None = None,
    executor: str = "local",
    address: str | None = None,
    gpus: float = 0.0,
    data: Path | None = None,
    keep: bool = False,
    progress: Progress = silent,
) -> TransferMatrix:
    """Every expert's accuracy on every locale; cells that are kept already are not computed again.

    Args:
        evaluator: of the pool.
        split: dev for choosing.
        locales: the columns; the pool's locales by default.
        executor: `local`, or `ray`: rows are spread over a cluster that sees the pool's folder.
        address: of a Ray cluster.
        gpus: of a row, as Ray counts them.
        data: where the workers of a cluster find the task's data.
        keep: columns that the file has already of as many rows are in the new one too; what is kept of them is not computed again.
        progress: told about every cell.

    Returns:
        The matrix, also written to `<pool>/transfer.<split>.json`.

    Raises:
        InputError: there is no such executor.
    """
    pool = evaluator.pool
    file, limit = pool.root / f"transfer.{split}.json", evaluator.limits.get(split)
    columns = tuple(pool.locales if locales is None else locales)
    if keep and file.exists() and (there := TransferMatrix.load(file)).provenance.get("limit") == limit:
        columns = tuple(dict.fromkeys([*there.targets, *columns]))
    values = np.full((len(pool.locales), len(columns)), np.nan)
    signatures: dict[int, list[str]] = {}
    with progress(f"transfer matrix on {split}", values.size) as advance:
        if executor == "ray":
            works = [RowWork(pool.root.absolute(), data, e, columns, split, limit) for e in pool.locales]
            rows = executed(evaluate_row, works, executor=executor, address=address, gpus=gpus)
        else:
            # This evaluator keeps the tokenised text of all columns, and each expert is loaded once.
            rows = executed(
                lambda expert: _row(evaluator, expert, columns, split, advance),
                pool.locales,
                executor=executor,
            )
        for row, cells in rows:
            values[row] = [share for share, _ in cells]
            signatures[row] = [own for _, own in cells]
            if executor == "ray":
                advance(len(cells))
    provenance = {
        "task": evaluator.task.name,
        "revision": evaluator.task.revision,
        "limit": limit,
        # Of those whose models are there still: their logits may have been kept without them.
        "experts": {
            one: folder_signature(pool.expert(one)) for one in pool.locales if pool.expert(one).is_dir()
        },
        "signature": signature([own for row in sorted(signatures) for own in signatures[row]]),
    }
    matrix = TransferMatrix(pool.locales, columns, values, split, provenance=provenance)
    matrix.save(file)
    return matrix
