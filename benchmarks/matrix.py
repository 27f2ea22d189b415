"""How long a transfer matrix takes, against the naive way, paired in one run over several rounds.

    python benchmarks/matrix.py [--pool DIR] [--locales en-US,de-DE,sw-KE] [--limit 300] [--rounds 3] [--json FILE]

langmerge tokenises every locale once, sorts rows by length into batches of few pads and loads an expert once for its row.
The naive way is what a first script does: for every cell load the expert from disk, tokenise, and take 32 rows after the
other in file order, each batch padded to its longest row, in float32; or, as many scripts do, each row padded to the
greatest length of 128 tokens (`fixed`). All read the data once and have one tokenizer.
None has results of before: logits go to a fresh folder and kept hashes of the experts are removed. The order turns
round with every round.

Without --pool one is made and trained for a moment: MASSIVE's intents (LANGMERGE_DATA) on the offline base (the extra
`offline`). A pool that is given is left as it is, but for those hashes.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _measure import warm
from _report import aligned

import langmerge
from langmerge.evaluate import PoolEvaluator, transfer_matrix
from langmerge.locales import canonical_locale
from langmerge.models import (
    MAX_LENGTH,
    best_device,
    encode,
    has_fast_bf16,
    load_classifier,
    load_tokenizer,
    padded,
)
from langmerge.pool import Expert, Pool
from langmerge.tasks import Task, load_task
from langmerge.training import Training, ensure_base, train_pool

MADE_FOR = ("de-DE", "en-US", "sw-KE", "ja-JP")
"""Locales of a pool that is made, by default."""

BATCH = 32
"""Rows of a naive batch."""

KEPT_HASH = ".langmerge.fingerprint"

Ways = dict[str, Callable[[], np.ndarray]]


@dataclass
class Case:
    """One matrix, measured.

    Attributes:
        experts: its rows.
        columns: locales.
        rows: of each locale.
        seconds: of `langmerge`, `naive` and `fixed`, one entry a round.
        differences: the largest of the accuracies' differences over all cells, in points, one entry a round.
    """

    experts: tuple[str, ...]
    columns: tuple[str, ...]
    rows: dict[str, int]
    seconds: dict[str, list[float]] = field(default_factory=dict)
    differences: list[float] = field(default_factory=list)

    @property
    def ratios(self) -> dict[str, list[float]]:
        """The other ways' times over langmerge's, round by round."""
        own = self.seconds["langmerge"]
        return {
            way: [b / a for a, b in zip(own, taken, strict=True)]
            for way, taken in self.seconds.items()
            if way != "langmerge"
        }

    @property
    def lines(self) -> list[list[str]]:
        """Median and range of everything, with a heading."""
        what = {f"{way} s": values for way, values in self.seconds.items()}
        what |= {f"{way} / langmerge": found for way, found in self.ratios.items()}
        what |= {"largest difference, points": self.differences}
        return [["", "median", "smallest", "largest"]] + [
            [name, *(f"{pick(values):.2f}" for pick in (statistics.median, min, max))]
            for name, values in what.items()
        ]


def made_pool(place: Path, locales: Sequence[str], task: Task) -> Pool:
    """A pool on the offline base, trained on a few hundred rows: what its experts know changes no second."""
    base = ensure_base("e5-small", place / "encoder", task=task, locales=locales)
    training = Training(epochs=1, max_train=256, max_dev=64)
    return train_pool(place / "pool", base=base, task=task, locales=locales, training=training)


def without_results(pool: Pool, root: Path) -> Pool:
    """The same experts in a pool whose own folder is empty."""
    experts = {locale: Expert(folder=pool.expert(locale).absolute()) for locale in pool.locales}
    root.mkdir()
    return pool.model_copy(update={"root": root, "base": pool.base_folder.absolute(), "experts": experts})


def langmerge_matrix(pool: Pool, task: Task, columns: Sequence[str], limit: int | None) -> np.ndarray:
    """Accuracies as `langmerge matrix` finds them, nothing kept from before."""
    for locale in pool.locales:
        (pool.expert(locale) / KEPT_HASH).unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as place:
        fresh = without_results(pool, Path(place) / "pool")
        evaluator = PoolEvaluator(fresh, task, limits={"dev": limit})
        return transfer_matrix(evaluator, locales=columns).values


def naive_matrix(
    pool: Pool, task: Task, columns: Sequence[str], limit: int | None, *, width: int = 0
) -> np.ndarray:
    """Accuracies cell by cell; rows are padded to `width` tokens at least."""
    tokenizer = load_tokenizer(pool.base_folder)
    examples = {locale: task.load(locale, "dev").limited(limit) for locale in columns}
    values = np.zeros((len(pool.locales), len(columns)))
    for row, expert in enumerate(pool.locales):
        for column, locale in enumerate(columns):
            model, own = load_classifier(pool.expert(expert)), examples[locale]
            names = naive_predictions(model, tokenizer, own.texts, width)
            values[row, column] = np.mean(
                [task.labels[i] == name for i, name in zip(own.labels, names, strict=True)]
            )
    return values


@torch.inference_mode()
def naive_predictions(model: Any, tokenizer: Any, texts: Sequence[str], width: int = 0) -> list[str]:
    """Names of the labels with the largest logits."""
    encoded, found = encode(tokenizer, texts), []
    device = next(model.parameters()).device
    for start in range(0, len(encoded), BATCH):
        pad_id = model.config.pad_token_id or 0
        ids, mask = padded(encoded[start : start + BATCH], pad_id=pad_id)
        more = (0, max(0, width - ids.shape[1]))
        ids, mask = torch.nn.functional.pad(ids, more, value=pad_id), torch.nn.functional.pad(mask, more)
        logits = model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits
        found += logits.argmax(dim=1).tolist()
    return [str(model.config.id2label[label]) for label in found]


def measured(
    pool: Pool,
    task: Task,
    columns: Sequence[str],
    limit: int | None,
    *,
    rounds: int,
    say: Callable[[str], None],
) -> Case:
    """Both ways in turn, the first one another one every round."""
    rows = {locale: len(task.load(locale, "dev").limited(limit)) for locale in columns}
    case = Case(pool.locales, tuple(columns), rows, {"langmerge": [], "naive": [], "fixed": []})
    ways: Ways = {
        "langmerge": lambda: langmerge_matrix(pool, task, columns, limit),
        "naive": lambda: naive_matrix(pool, task, columns, limit),
        "fixed": lambda: naive_matrix(pool, task, columns, limit, width=MAX_LENGTH),
    }
    # What only a first call does (threads, kernels of the first shapes) is nobody's.
    naive_matrix(pool, task, columns[:1], 2 * BATCH)
    for turn in range(rounds):
        say(f"round {turn + 1} of {rounds}")
        found = {}
        for way in ways if turn % 2 == 0 else reversed(ways):
            warm(file for locale in pool.locales for file in pool.expert(locale).glob("*.safetensors"))
            started = time.perf_counter()
            found[way] = ways[way]()
            case.seconds[way].append(time.perf_counter() - started)
        gaps = [np.abs(found["langmerge"] - values).max() for values in found.values()]
        case.differences.append(100 * float(max(gaps)))
    return case


def machine() -> dict[str, Any]:
    """What the numbers were measured on, and with."""
    device = best_device()
    return {
        "device": str(device),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "bf16": has_fast_bf16(device),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "langmerge": langmerge.__version__,
    }


def options(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pool", type=Path, metavar="DIR", help="a pool that is there; made by default")
    parser.add_argument(
        "--locales", metavar="LIST", help="columns, by commas; experts too of a pool that is made"
    )
    parser.add_argument("--limit", type=int, metavar="ROWS", help="at most so many dev rows of each locale")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE", help="all numbers")
    found = parser.parse_args(arguments)
    if found.rounds < 1 or (found.limit is not None and found.limit < 1):
        parser.error("--rounds and --limit must be above zero")
    return found


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> None:
    """Measure what the command line asks for."""
    given = options(arguments)
    named = [canonical_locale(part) for part in (given.locales or "").split(",") if part.strip()]
    with tempfile.TemporaryDirectory() as place:
        if given.pool is None:
            task = load_task("massive:intent")
            _say("making a pool")
            pool = made_pool(Path(place), named or MADE_FOR, task)
        else:
            pool = Pool.load(given.pool)
            task = load_task(pool.task)
        facts = machine()
        print("\n".join(f"{name}: {value}" for name, value in facts.items()), flush=True)
        case = measured(pool, task, named or pool.locales, given.limit, rounds=given.rounds, say=_say)
    total = sum(case.rows.values()) * len(case.experts)
    print(f"{len(case.experts)} experts on {len(case.columns)} locales: {total} predictions of each way")
    print(aligned(case.lines))
    if given.json is not None:
        payload = {"machine": facts, "case": asdict(case) | {"ratios": case.ratios}}
        given.json.write_text(json.dumps(payload, indent=1) + "\n")


if __name__ == "__main__":
    main()
