"""The tables of docs/results.md, "Merge or not": gains by target, rules of decision in hindsight, what predicts a gain.

python scripts/deciding_results.py STORE [--sweeps deciding] [--rows 100,250]
"""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from langmerge.auto.hindsight import cases, judge, rules_for
from langmerge.experiments.standing import compare, lines
from langmerge.results.records import Outcome
from langmerge.results.stored import stored
from langmerge.selection.judging import spearman

REFERENCE = {"ExcTar": "best zero-shot", "IncTar": "self"}


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Markdown."""
    print("| " + " | ".join(header) + " |\n|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def by_target(outcomes: Sequence[Outcome], mode: str) -> None:
    """Test accuracy of every line, mean over seeds, and its gain over the reference."""
    own = [one for one in lines(outcomes) if one.mode == mode or one.title in REFERENCE.values()]
    targets = sorted({one.target for one in own})
    values: dict[str, dict[str, float]] = {}
    for line in own:
        values.setdefault(line.title, {})[line.target] = 100 * line.test
    rows = []
    for title, scores in sorted(values.items(), key=lambda item: -np.mean(list(item[1].values()))):
        gain = compare(outcomes, title, REFERENCE[mode], mode=mode).over_all if _paired(title, mode) else ""
        cells = [f"{scores[t]:.1f}" if t in scores else "–" for t in targets]
        rows.append([title, *cells, f"{np.mean(list(scores.values())):.1f}", str(gain)])
    table([mode, *targets, "mean", f"over {REFERENCE[mode]}, points [95 %]"], rows)


def _paired(title: str, mode: str) -> bool:
    return title != REFERENCE[mode] and not title.startswith("mean of the sources")


def hindsight(outcomes: Sequence[Outcome], mode: str, rows: Sequence[int | None]) -> None:
    """Every rule, by the number of labelled rows."""
    among = cases(outcomes, mode)
    found = [judge(rule, among, mode, rows=count) for count in rows for rule in rules_for(among, count)]
    print(f"{mode}: {len(among)} cells, {len({case.target for case in among})} targets\n")
    table(
        ["rule", "labelled rows", "gain, points [95 %]", "over the soft vote", "regret", "significantly below the single expert", "chosen"],
        [
            [
                one.rule, str(one.rows), str(one.gain), str(one.over_vote or "–"), f"{one.regret:.2f}",
                ", ".join(one.below) or "nowhere", ", ".join(f"{name} {share:.0%}" for name, share in one.chosen.items()),
            ]
            for one in found
        ],
    )  # fmt: skip


def claims(outcomes: Sequence[Outcome]) -> None:
    """What goes with the gain, over targets; where merges are below what they are made of."""
    means = {
        (one.target, one.title): one for one in lines(outcomes) if one.mode == "ExcTar" or one.title == "self"
    }
    targets = sorted({target for target, _ in means})
    merges = sorted(
        {
            title
            for _, title in means
            if ", k=" in title and not title.startswith(("mean of", "soft vote", "joint"))
        }
    )
    rows = []
    for title in merges:
        gains = _values(means, targets, title, lambda one: one.gain.points if one.gain else float("nan"))
        zero = _values(means, targets, "best zero-shot", lambda one: one.test)
        own = _values(means, targets, "self", lambda one: one.test)
        rows.append(
            [
                title,
                f"{spearman(zero, gains):+.2f}",
                f"{spearman((zero / own).tolist(), gains):+.2f}",
                _signs(outcomes, title),
            ]
        )
    header = [
        "merge",
        "ρ of gain and best zero-shot",
        "ρ of gain and ZS/Self",
        "merging effect: cells below zero, significantly",
    ]
    table(header, rows)


def _values(
    means: Mapping[tuple[str, str], Any], targets: Sequence[str], title: str, of: Any
) -> np.ndarray[Any, Any]:
    return np.array([of(means[target, title]) for target in targets])


def _signs(outcomes: Sequence[Outcome], title: str) -> str:
    own = [
        o.effect
        for o in outcomes
        if o.effect is not None and o.cell.mode == "ExcTar" and f"{o.cell.name}, k={o.cell.k}" == title
    ]
    below = [one for one in own if one.points < 0]
    return f"{len(below)} of {len(own)}, {sum(one.high < 0 for one in below)}"


def costs(outcomes: Sequence[Outcome]) -> None:
    """Seconds of a cell, by what it is."""
    seconds: dict[str, list[float]] = {}
    for one in outcomes:
        seconds.setdefault(one.cell.name, []).append(one.seconds)
    table(
        ["cell", "median seconds"], [[name, f"{np.median(own):.1f}"] for name, own in sorted(seconds.items())]
    )


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("store")
    parser.add_argument("--sweeps", default="deciding")
    parser.add_argument("--rows", default="100,250", help="labelled rows, besides all")
    given = parser.parse_args()
    outcomes = stored(given.store, None, given.sweeps)
    for mode in ("ExcTar", "IncTar"):
        by_target(outcomes, mode)
        hindsight(outcomes, mode, [*map(int, given.rows.split(",")), None])
    claims(outcomes)
    costs(outcomes)


if __name__ == "__main__":
    main()
