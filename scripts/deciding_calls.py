"""Does `langmerge auto` do what `langmerge runs hindsight` says it would have done? Real calls, on a sweep's pools.

python scripts/deciding_calls.py DECIDING --sweep deciding-disjoint --labels dev

For every target and seed of the sweep `auto` decides without the target's expert, by the evidence of the other targets' cells
(or, with --shipped, by that which it has by itself), and writes its model into a temporary folder. What it chose is looked up among the sweep's cells: its gain over the best source
and its regret on test are theirs. A choice that the rule would not have made is listed.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from langmerge.auto import Question, decide
from langmerge.auto.evidence import Evidence
from langmerge.auto.hindsight import RULES, Case, Known, cases
from langmerge.auto.stored import evidence_from
from langmerge.pool import Pool
from langmerge.results.records import Run
from langmerge.results.stored import stored
from langmerge.tasks import load_task

RULE = {"dev": "auto, labels", "none": "auto, no labels"}


def accuracy(run: Run) -> float:
    """On test, in percent."""
    return 100 * next(one.accuracy for one in run.scores if one.split == "test")


def told(case: Case, labels: str, evidence: Mapping[str, Evidence]) -> str:
    """What the rule chooses."""
    known = Known(case, case.right("dev"), evidence)
    found = RULES[RULE[labels]](known)
    return next(name for name, run in runs(case, labels).items() if run.signature == found.signature)


def runs(case: Case, labels: str) -> Mapping[str, Run]:
    """The candidates as they are where labels choose sources, or where none do."""
    return case.candidates if labels == "dev" else case.label_free


def main() -> None:
    """Call it for every target and seed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="of the sweep")
    parser.add_argument("--sweep", required=True, help="names, by commas")
    parser.add_argument("--labels", choices=list(RULE), default="dev")
    parser.add_argument("--pools", default="pool*", help="which folders are the sweep's pools, one a seed")
    parser.add_argument("--shipped", action="store_true", help="by the evidence that auto has by itself")
    parser.add_argument("--data", type=Path)
    given = parser.parse_args()
    outcomes = stored(given.folder, None, given.sweep)
    among = cases(outcomes, "ExcTar")
    pools = {}
    for root in sorted(given.folder.glob(given.pools)):
        pool = Pool.load(root)
        pools[next(iter(pool.experts.values())).training["settings"]["seed"]] = pool
    gains, regrets, seconds, other, given_up = [], [], [], [], []
    for case in among:
        if case.seed not in pools:
            continue
        pool = pools[case.seed]
        task = load_task(pool.task, data=given.data)
        evidence = evidence_from(
            outcomes, task=task.name, target=case.target, mode="ExcTar", origin=f"sweep {given.sweep}"
        )
        asked = Question(
            pool,
            task,
            case.target,
            data=given.data,
            labels=given.labels,
            include_target=False,
            evidence=evidence,
        )
        with tempfile.TemporaryDirectory(prefix="langmerge-") as place:
            started = time.monotonic()
            found = decide(asked, Path(place) / "model")
            seconds.append(time.monotonic() - started)
        candidates = runs(case, given.labels)
        got = accuracy(candidates[found.choice])
        gains.append(got - accuracy(case.candidates["single"]))
        # Against every candidate that a user could have had, whoever chose its sources.
        regrets.append(max(map(accuracy, case.candidates.values())) - got)
        given_up += [
            f"{case.target}, seed {case.seed}: {one['name']}: {one['out']}"
            for one in found.record["candidates"]
            if one["out"]
        ]
        if found.choice != (rule := told(case, given.labels, of_rule)):
            other.append(f"{case.target}, seed {case.seed}: auto chose {found.choice}, the rule {rule}")
        print(
            f"{case.target}, seed {case.seed}: {found.choice}, {gains[-1]:+.1f}, {seconds[-1]:.0f} s",
            file=sys.stderr,
        )
    print(
        f"{len(gains)} calls of auto --labels {given.labels}: gain {np.mean(gains):+.2f}, regret {np.mean(regrets):.2f}, "
        f"median {np.median(seconds):.0f} s; the rule chose otherwise {len(other)} times"
    )
    for line in (*other, *given_up):
        print(line)


if __name__ == "__main__":
    main()
