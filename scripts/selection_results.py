"""The table of selectors in docs/results.md: how well each finds the sources that do best on test.

    langmerge matrix POOL --split dev && langmerge matrix POOL --split test
    python scripts/selection_results.py POOL [--data DIR] [--json FILE]

Scores come from dev (and from no label of the target, but for measured and delta); accuracies from test, looked at once.
Means are over the pool's locales as targets, each without its own expert.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from langmerge.cli.console import bars
from langmerge.errors import LangmergeError
from langmerge.estimates import calibration, estimated
from langmerge.pool import Pool
from langmerge.selection import TransferMatrix
from langmerge.selection.judging import judged, over_targets
from langmerge.selection.label_free import ESTIMATORS
from langmerge.similarities import PoolSelectors

SELECTORS = ("measured", "composite", "strength", "agreement", "representation", "delta", "typology")
SETS = ("syntax", "family", "geography", "phonology", "inventory")
MEASURES = ("spearman", "overlap", "regret", "regret_of_first")


def main() -> None:
    """Judge every selector, print Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pool", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--limit", type=int, help="of the matrices, if they had one")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    pool = Pool.load(given.pool)
    truth = TransferMatrix.load(pool.root / "transfer.test.json")
    rows = {}
    for name, by, features, how in [
        *((by, by, None, "cka") for by in SELECTORS),
        ("representation, cosine", "representation", None, "cosine"),
        *((f"typology: {one}", "typology", {one: 1.0}, "cka") for one in SETS),
    ]:
        selectors = PoolSelectors(pool, given.data, features, how, given.limit, bars)
        matrix = selectors.matrix(by, pool.locales)
        found = []
        for target in pool.locales:
            try:
                found.append(judged(matrix.column(target), truth.column(target), target))
            except LangmergeError as error:
                print(f"<!-- {name}, {target}: {error} -->")
        rows[name] = {m: asdict(over_targets([getattr(one, m) for one in found])) for m in MEASURES}
    print(
        "| selector | Spearman ρ | overlap of the best 5 | regret of 5, points | regret of 1 |\n|---|---|---|---|---|"
    )
    for name, row in rows.items():
        print(f"| {name} | {' | '.join(_cell(row[m]) for m in MEASURES)} |")
    selectors = PoolSelectors(pool, given.data, limit=given.limit, progress=bars)
    estimates = estimated(selectors, pool.locales, list(ESTIMATORS), with_truth=True)
    errors = calibration(estimates)
    print("\n| estimate | mean absolute error, points [95 %] | bias |\n|---|---|---|")
    for one in errors:
        print(
            f"| {one.how} | {one.mean_absolute_error:.1f} [{one.low:.1f}, {one.high:.1f}] | {one.bias:+.1f} |"
        )
    if given.json:
        payload = {
            "selectors": rows,
            "estimates": [asdict(one) for one in errors],
            "provenance": truth.provenance,
        }
        given.json.write_text(json.dumps(payload, indent=1) + "\n")


def _cell(mean: dict[str, float]) -> str:
    return (
        f"{mean['value']:.2f} [{mean['low']:.2f}, {mean['high']:.2f}], {mean['least']:.2f}–{mean['most']:.2f}"
    )


if __name__ == "__main__":
    main()
