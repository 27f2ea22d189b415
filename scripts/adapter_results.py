"""The experiment on adapters in docs/results.md: benches of several seeds and kinds, every transfer beside its baselines.

    python scripts/adapter_results.py train OUT --base DIR [--only 'lora-0,ia3-*'] [--references '*:scenario'] [--data DIR]
    python scripts/adapter_results.py table OUT [--only …] [--references …] [--data DIR]

A bench is a kind, a way of drawing and a seed: lora-0, own-0 (LoRA, every adapter at its own draw), ia3-0, prefix-0, lora-1, ….
In each: intent and topic of en-US and of the targets (what is moved, and self), scenario, topic, intent and masked-LM
references. Everything is kept, so that a run can be stopped at any time, and several processes can share the work by different
--only. The table uses what is there: dev (300 rows) chooses every number on the other targets, test (1,000 rows, 204 of
SIB-200) is predicted once.
"""

import argparse
import fnmatch
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from langmerge.errors import InputError
from langmerge.models import AdapterShape
from langmerge.tasks import seeded_interval
from langmerge.training import AdapterTraining, Bench, train_adapters
from langmerge.transferring import DIRECT, STACK, Comparison, Crossing

SOURCE, TARGETS = "en-US", ("sw-KE", "cy-GB", "sq-AL", "vi-VN", "th-TH", "hi-IN")
INTENT, SCENARIO, TOPIC, LANGUAGE = "massive:intent", "massive:scenario", "sib200:topic", "mlm:massive:intent"
KINDS = {
    "lora": (AdapterShape(rank=8, alpha=16), 2e-3, 3, True),
    "own": (AdapterShape(rank=8, alpha=16), 2e-3, 3, False),
    "ia3": (AdapterShape(kind="ia3"), 1e-2, 3, True),
    # On en-US dev, 3 epochs: 16 % at 1e-2, 36 % at 3e-2, 17 % at 1e-1. Prefixes learn slowly.
    "prefix": (AdapterShape(kind="prefix"), 3e-2, 6, True),
}
"""Shape, peak rate, epochs, and whether all begin at one draw."""
LANGUAGE_LR = 3e-4
"""On en-US 3 epochs of masked LM end at 7.06 nats at 2e-3 (the pieces' frequencies, and the encoder is lost), at 6.31 at 3e-4."""

SEEDS, ROWS = (0, 1, 2), 1500
MOVED, BASELINES = "AdaMergeX", ("AriMerge", "language arithmetic", "layer swap", STACK)
Correct = dict[tuple[str, int], np.ndarray]
"""By target and seed, which test rows are right."""
ROLES = ((INTENT, SCENARIO), (INTENT, TOPIC), (INTENT, LANGUAGE), (TOPIC, INTENT))
"""What is moved, and by which reference."""


class Stage(NamedTuple):
    """Adapters that the tables of a reference need; for MAD-X's stack the task is trained on another's adapter."""

    reference: str
    task: str
    locales: tuple[str, ...]
    on: str | None = None


STAGES = (
    Stage(SCENARIO, INTENT, (SOURCE,)),
    Stage(SCENARIO, SCENARIO, (SOURCE, *TARGETS)),
    Stage(TOPIC, INTENT, (SOURCE,)),
    Stage(TOPIC, TOPIC, (SOURCE, *TARGETS)),
    Stage(INTENT, TOPIC, (SOURCE,)),
    Stage(INTENT, INTENT, (SOURCE, *TARGETS)),
    Stage(LANGUAGE, INTENT, (SOURCE,)),
    Stage(LANGUAGE, LANGUAGE, (SOURCE, *TARGETS)),
    Stage(LANGUAGE, INTENT, (SOURCE,), on=LANGUAGE),
)


def matches(name: str, globs: str) -> bool:
    """Whether one of the globs, by commas, is the name's."""
    return any(fnmatch.fnmatch(name, one) for one in globs.split(","))


def benches(given: argparse.Namespace) -> Iterator[tuple[str, int, Path]]:
    """Kind, seed and folder."""
    for seed in SEEDS:
        for kind in KINDS:
            if matches(f"{kind}-{seed}", given.only):
                yield kind, seed, given.out / f"{kind}-{seed}"


def train(given: argparse.Namespace) -> None:
    """What is missing, of all benches first what most tables need."""
    for stage in STAGES:
        if not matches(stage.reference, given.references):
            continue
        for kind, seed, root in benches(given):
            if stage.reference == LANGUAGE and kind == "prefix":
                continue
            shape, lr, epochs, shared = KINDS[kind]
            asked = AdapterTraining(
                shape=shape,
                lr=LANGUAGE_LR if stage.task == LANGUAGE else lr,
                epochs=epochs,
                max_train=ROWS,
                max_dev=300,
                seed=seed,
                shared=shared,
                on=stage.on,
            )
            bench = Bench.opened(root, base=given.base, data=given.data)
            for locale in stage.locales:
                record = train_adapters(bench, stage.task, [locale], asked)[locale]
                print(
                    f"{root.name} {stage.task} {locale} {max(record['training']['scores']):.3f}", flush=True
                )


def table(given: argparse.Namespace) -> None:
    """Means over targets and seeds; gains over direct transfer with a bootstrap over rows and seeds."""
    for task, reference in ROLES:
        for kind in KINDS if matches(reference, given.references) else ():
            modes = ("product", "factors") if kind in ("lora", "own") else (None,)
            found = [_print(given, task, reference, kind, mode) for mode in modes]
            first = found[0].get(MOVED, {})
            pairs = [(MOVED, name, found[0].get(name, {})) for name in BASELINES]
            if len(found) == 2:
                pairs.append(("product", "factors", found[1].get(MOVED, {})))
            said = [_paired(one, other, first, second) for one, other, second in pairs if first and second]
            if said:
                print("\nPaired: " + "; ".join(said) + ".")


def _paired(name: str, other: str, first: Correct, second: Correct) -> str:
    both = {key: 100.0 * (first[key].astype(float) - second[key]) for key in first if key in second}
    point, interval = seeded_interval(both)
    return f"{name} − {other} {point:+.1f} [{interval.low:+.1f}, {interval.high:+.1f}]"


def _print(
    given: argparse.Namespace, task: str, reference: str, kind: str, mode: str | None
) -> dict[str, Correct]:
    correct: dict[str, Correct] = defaultdict(dict)
    values: dict[str, list[float]] = defaultdict(list)
    for own, seed, root in benches(given):
        if own != kind or not root.is_dir():
            continue
        limits = {"dev": 300, "test": 1000}
        crossing = Crossing(
            Bench.opened(root, data=given.data), task, reference, SOURCE, TARGETS, mode=mode, limits=limits
        )
        try:
            work = Comparison(crossing)
        except InputError as error:
            print(f"\n{root.name}, {task} by {reference}: {error}")
            continue
        for target in TARGETS:
            for name, (value, logits) in work.outcomes(target, "test").items():
                correct[name][target, seed] = logits.correct
                if value is not None:
                    values[name].append(value)
    if not correct:
        return {}
    seeds = sorted({seed for _, seed in correct[DIRECT]})
    print(
        f"\n### {kind}{f', {mode}' if mode else ''}: {task} by {reference}, seeds {', '.join(map(str, seeds))}\n"
    )
    print(
        f"| | {' | '.join(TARGETS)} | mean | gain over direct, points [95 %] | chosen |\n|---|{'---|' * (len(TARGETS) + 3)}"
    )
    for name, cells in correct.items():
        shares = [
            np.mean([100 * one.mean() for (t, _), one in cells.items() if t == target] or [np.nan])
            for target in TARGETS
        ]
        point, interval = seeded_interval(
            {key: 100.0 * (one.astype(float) - correct[DIRECT][key]) for key, one in cells.items()}
        )
        chosen = ", ".join(f"{value:g} × {values[name].count(value)}" for value in sorted(set(values[name])))
        # Of some targets only, where a bench is not whole: no mean over all.
        row = " | ".join("–" if np.isnan(share) else f"{share:.1f}" for share in (*shares, np.mean(shares)))
        gain = "" if name == DIRECT else f"{point:+.1f} [{interval.low:+.1f}, {interval.high:+.1f}]"
        print(f"| {name} | {row} | {gain} | {chosen} |")
    return correct


def main() -> None:
    """Train or print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("train", "table"))
    parser.add_argument("out", type=Path)
    parser.add_argument("--base", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--only", default="*", help="globs of benches, by commas")
    parser.add_argument("--references", default="*", help="globs of tasks, by commas")
    given = parser.parse_args()
    {"train": train, "table": table}[given.what](given)


if __name__ == "__main__":
    main()
