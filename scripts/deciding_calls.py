"""Does `langmerge auto` do what `langmerge runs hindsight` says it would have done? Real calls, on a sweep's pools.

python scripts/deciding_calls.py STORE POOL [POOL…] --sweep deciding-disjoint [--labels none] [--shipped]

For every target of the sweep and every pool (one a seed) `auto` decides without the target's expert, by the evidence of the
other targets' cells (or, with --shipped, by that which it has by itself), and writes its model into a temporary folder. What
it chose is looked up among the sweep's cells: its gain over the best source and its regret on test are theirs. A choice that
the rule would not have made on the same rows in the same order is listed, and so is a candidate that was given up.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from langmerge.auto import Decision, Question, decide
from langmerge.auto.evidence import Evidence
from langmerge.auto.hindsight import RULES, Case, Known, Right, cases, evidence_of_others
from langmerge.auto.measured import measured
from langmerge.pool import Pool
from langmerge.results.records import Run
from langmerge.results.stored import stored
from langmerge.tasks import Task, load_task
from langmerge.tasks.task import drawn_rows

RULE = {"dev": "auto, labels", "none": "auto, no labels"}


@dataclass(frozen=True)
class Call:
    """One call of auto: what it brought on test, in points, how long it took, and what is to be said of it."""

    gain: float
    regret: float
    seconds: float
    notes: tuple[str, ...]


def accuracy(run: Run) -> float:
    """On test, in percent."""
    return 100 * next(one.accuracy for one in run.scores if one.split == "test")


def as_drawn(right: Right, ids: Sequence[str]) -> Right:
    """Rows as auto looks at them: the first n are those that a limit of n draws."""
    order: list[int] = []
    for count in (len(ids) // 4, len(ids) // 2, len(ids)):
        order += sorted(set(drawn_rows(ids, count, of="dev")) - set(order))
    return {name: own[order] for name, own in right.items()}


def called(
    case: Case, pool: Pool, task: Task, given: argparse.Namespace, evidence: Mapping[str, Evidence]
) -> Call:
    """Auto on one target."""
    asked = Question(
        pool, task, case.target, data=given.data, labels=given.labels, include_target=False, evidence=evidence
    )
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="langmerge-") as place:
        found = decide(asked, Path(place) / "model")
    seconds = time.monotonic() - started
    # Whoever chose its sources, its own kind of cells says what it brought.
    runs = case.candidates if given.labels == "dev" else case.label_free
    if found.choice not in runs or set(runs[found.choice].sources) != set(found.sources):
        raise SystemExit(
            f"{case.target}, seed {case.seed}: auto took {found.choice} of {', '.join(found.sources)}, which is no cell of the "
            "sweep: are these its pools?"
        )
    dev = as_drawn(case.right("dev"), task.load(case.target, "dev").limited(asked.rows).ids)
    rule = RULES[RULE[given.labels]](Known(case, dev, evidence))
    got = accuracy(runs[found.choice])
    return Call(
        got - accuracy(case.candidates["single"]),
        max(map(accuracy, case.candidates.values())) - got,
        seconds,
        tuple(
            _notes(case, found, next(name for name, run in runs.items() if run.signature == rule.signature))
        ),
    )


def _notes(case: Case, found: Decision, rule: str) -> list[str]:
    where = f"{case.target}, seed {case.seed}"
    given_up = [
        f"{where}: {one['name']} given up: {one['out']}" for one in found.record["candidates"] if one["out"]
    ]
    return given_up + (
        [f"{where}: auto chose {found.choice}, the rule {rule}"] if found.choice != rule else []
    )


def by_seed(roots: Sequence[Path]) -> dict[int, Pool]:
    """Pools by the seed of their experts."""
    found: dict[int, Pool] = {}
    for root in roots:
        pool = Pool.load(root)
        (seed,) = {one.training["settings"]["seed"] for one in pool.experts.values()}
        if seed in found:
            raise SystemExit(f"{root} and {found[seed].root} are both of seed {seed}: name one sweep's pools")
        found[seed] = pool
    return found


def main() -> None:
    """Call it for every target and seed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("store")
    parser.add_argument("pools", nargs="+", type=Path)
    parser.add_argument("--sweep", required=True, help="names, by commas")
    parser.add_argument("--labels", choices=list(RULE), default="dev")
    parser.add_argument("--shipped", action="store_true", help="by the evidence that auto has by itself")
    parser.add_argument("--data", type=Path)
    given = parser.parse_args()
    among = cases(stored(given.store, None, given.sweep), "ExcTar")
    pools = by_seed(given.pools)
    calls = []
    for case in (one for one in among if one.seed in pools):
        pool = pools[case.seed]
        evidence = (
            measured("ExcTar", without=case.target)
            if given.shipped
            else evidence_of_others(among, case.target, "ExcTar", free=given.labels == "none")
        )
        calls.append(called(case, pool, load_task(pool.task, data=given.data), given, evidence))
        print(f"{case.target}, seed {case.seed}: {calls[-1].gain:+.1f}", file=sys.stderr)
    print(
        f"{len(calls)} calls of auto --labels {given.labels}: gain {np.mean([one.gain for one in calls]):+.2f}, regret "
        f"{np.mean([one.regret for one in calls]):.2f}, median {np.median([one.seconds for one in calls]):.0f} s"
    )
    notes = [note for one in calls for note in one.notes]
    print("\n".join(notes) or "the rule chose the same everywhere, and no candidate was given up")


if __name__ == "__main__":
    main()
