"""What `learning_results.py` has kept, as tables: nothing is computed but means and intervals.

python scripts/learning_tables.py table OUT POOL [POOL…] --targets … [--against best]
python scripts/learning_tables.py rank  OUT POOL [POOL…] --targets …     label-free scores as judges of what is kept
python scripts/learning_tables.py wrong OUT POOL [POOL…] --targets …     what a wrong prior costs
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from learning_results import CONTINUED, REFINED, VARIANTS, Bench, Cell, arguments, cells, logits_of

from langmerge.selection.judging import spearman
from langmerge.tasks import seeded_interval
from langmerge.training.alignment import aligning_bias, ordered_prior

OTHERS = {"self", "vote", *CONTINUED, *REFINED}
"""No merges."""


def table(given: argparse.Namespace) -> None:
    """Mean accuracy over targets and seeds, and the paired gain with a bootstrap over targets' rows and seeds."""
    benches = {pool: Bench(pool, given.out, given.dev, given.test) for pool in given.pools}
    for mode, k in (("Exc", 5), ("Exc", 3), ("Inc", 5)):
        chosen = [cell for cell in cells(given) if (cell.mode, cell.k) == (mode, k)]
        print(
            f"\n### {mode}Tar, k = {k}\n\n| variant | {' | '.join(given.targets.split(','))} | mean | gain [95 %] | cells |"
        )
        print(f"|---|{'---|' * (len(given.targets.split(',')) + 3)}")
        for name in VARIANTS:
            kept = {
                c: logits_of(benches[c.pool], c, name)["test"].correct
                for c in chosen
                if _done(given, c, name) and _done(given, c, given.against)
            }
            if kept:
                print(_row(given, benches, name, kept))


def _done(given: argparse.Namespace, cell: Cell, name: str) -> bool:
    return (given.out / cell.name / f"{name.replace('/', '.')}.test.safetensors").exists()


def _row(
    given: argparse.Namespace, benches: dict[Path, Bench], name: str, kept: dict[Cell, np.ndarray]
) -> str:
    against = {c: logits_of(benches[c.pool], c, given.against)["test"].correct for c in kept}
    by_target = {
        t: [100 * one.mean() for c, one in kept.items() if c.target == t] for t in given.targets.split(",")
    }
    points, interval = seeded_interval(
        {(c.target, place): 100.0 * (kept[c].astype(float) - against[c]) for place, c in enumerate(kept)}
    )
    values = [f"{np.mean(v):.1f}" if v else "–" for v in by_target.values()]
    mean = np.mean([np.mean(v) for v in by_target.values() if v])
    return f"| {name} | {' | '.join(values)} | {mean:.1f} | {points:+.1f} [{interval.low:+.1f}, {interval.high:+.1f}] | {len(kept)} |"


def label_free(values: np.ndarray, vote: np.ndarray) -> dict[str, float]:
    """Scores of a model's logits that need no label; the larger, the better. `vote`: the sources' mean probabilities.

    Source: nuclear norm: Deng et al. 2023, Confidence and dispersity speak. The others: METHODS' objectives, signs turned.
    """
    p = np.exp(values - values.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    mean = p.mean(0)
    entropy = -(p * np.log(p + 1e-12)).sum(1).mean()
    spread = -(mean * np.log(mean + 1e-12)).sum()
    return {
        "entropy": -entropy,
        "infomax": spread - entropy,
        "spread": spread,
        "teacher": (vote * np.log(p + 1e-12)).sum(1).mean(),
        "agreement": float((p.argmax(1) == vote.argmax(1)).mean()),
        "nuclear norm": float(np.linalg.svd(p, compute_uv=False).sum() / np.sqrt(len(p) * p.shape[1])),
    }


def rank(given: argparse.Namespace) -> None:
    """Spearman of each score with dev accuracy over the merges of a cell, and what picking its first costs on dev."""
    benches = {pool: Bench(pool, given.out, given.dev, given.test) for pool in given.pools}
    found: dict[str, list[tuple[float, float]]] = {}
    for cell in cells(given):
        bench = benches[cell.pool]
        names = [n for n in VARIANTS if n not in OTHERS and _done(given, cell, n)]
        if cell.mode != "Exc" or len(names) < 5 or not _done(given, cell, "vote"):
            continue
        vote = np.exp(logits_of(bench, cell, "vote")["dev"].values)
        vote /= vote.sum(1, keepdims=True)
        own = {n: logits_of(bench, cell, n)["dev"] for n in names}
        truth = np.array([100 * own[n].correct.mean() for n in names])
        scores = {n: label_free(own[n].values, vote) for n in names}
        for score in scores[names[0]]:
            column = np.array([scores[n][score] for n in names])
            regret = float(truth.max() - truth[column.argmax()])
            found.setdefault(score, []).append((spearman(truth.tolist(), column.tolist()), regret))
    print("| score | Spearman ρ with dev accuracy | regret of its first, points | cells |\n|---|---|---|---|")
    for score, pairs in found.items():
        rho, regret = np.mean(pairs, axis=0)
        print(f"| {score} | {rho:.2f} | {regret:.1f} | {len(pairs)} |")


def wrong(given: argparse.Namespace) -> None:
    """What a prior costs where the target's labels have other shares than it says: text and test are drawn anew by label.

    Each label's share is multiplied or divided by a factor, by a coin's toss, or is 0 by one; five draws, the same for all strengths.
    """
    benches = {pool: Bench(pool, given.out, given.dev, given.test) for pool in given.pools}
    kinds = {
        "as they are": (1.0, 1.0),
        "× 1.5 or / 1.5": (1.5, 1 / 1.5),
        "× 2 or / 2": (2.0, 0.5),
        "half are missing": (1.0, 0.0),
    }
    print("| true shares | gain at 0.25 | at 0.5 | at 0.9 | cells |\n|---|---|---|---|---|")
    for kind, factors in kinds.items():
        found = []
        for cell in cells(given):
            if cell.mode == "Exc" and cell.k == 5 and _done(given, cell, "wudi+head+prior"):
                found.append(_gains(benches[cell.pool], cell, factors))
        print(f"| {kind} | {' | '.join(f'{one:+.1f}' for one in np.mean(found, axis=0))} | {len(found)} |")


def _gains(bench: Bench, cell: Cell, factors: tuple[float, float]) -> np.ndarray:
    """Gain of each strength in points, a mean over draws."""
    text, test = bench.seen(cell, "wudi+head"), logits_of(bench, cell, "wudi+head")["test"]
    train = bench.evaluator.task.load(cell.target, "train")
    by_id = dict(zip(train.ids, train.labels.tolist(), strict=True))
    labels = np.array([by_id[row] for row in text.ids])
    prior = ordered_prior(bench.prior(cell), bench.evaluator.task.labels)
    rng, gains = np.random.default_rng(0), []
    for _ in range(5):
        factor = np.where(rng.random(len(prior)) < 0.5, *factors)
        rows, asked = (
            rng.choice(len(own), len(own), p=factor[own] / factor[own].sum()) for own in (labels, test.labels)
        )
        z, truth = test.values[asked], test.labels[asked]
        right = [
            np.mean((z + aligning_bias(text.values[rows], prior, strength)).argmax(1) == truth)
            for strength in (0.25, 0.5, 0.9)
        ]
        gains.append(100 * (np.array(right) - np.mean(z.argmax(1) == truth)))
    return np.asarray(np.mean(gains, axis=0))


def main() -> None:
    """Print what is asked for."""
    commands: dict[str, Callable[[argparse.Namespace], None]] = {"table": table, "rank": rank, "wrong": wrong}
    given = arguments(list(commands), str(__doc__))
    commands[given.command](given)


if __name__ == "__main__":
    main()
