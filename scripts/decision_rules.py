"""Rules of decision on what `learning_results.py` has kept: gain over the best source and regret against hindsight on test.

python scripts/decision_rules.py OUT POOL [POOL…] --targets … [--rows 100,250,500]

Labelled rows are drawn from the kept dev rows, again and again; evidence of a target is that of the other targets' cells.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from langmerge.auto.decision import judged, simplest_best
from langmerge.auto.evidence import Evidence

NAMES = {"single": "best", "linear": "linear", "ties": "ties", "wudi": "wudi", "wudi+head": "wudi+head"}
"""Candidates, from simple to not so simple, by the names under which they are kept."""

Right = Mapping[str, np.ndarray]
Rule = Callable[[Right, Mapping[str, Evidence]], str]


def right(file: Path) -> np.ndarray:
    """Which rows are predicted right."""
    kept = load_file(file)
    found: np.ndarray = kept["logits"].argmax(1) == kept["labels"]
    return found


def best_on_dev(dev: Right, _: Mapping[str, Evidence]) -> str:
    """The rule that nobody thinks about."""
    return max(dev, key=lambda name: float(dev[name].mean()))


def simplest_not_worse(deviations: float) -> Rule:
    """The simplest whose paired difference to the best on dev is within so many standard errors."""

    def rule(dev: Right, evidence: Mapping[str, Evidence]) -> str:
        best = best_on_dev(dev, evidence)
        for name, own in dev.items():
            difference = dev[best].astype(float) - own
            if difference.mean() <= deviations * difference.std() / len(own) ** 0.5:
                return name
        return best

    return rule


def with_evidence(dev: Right, evidence: Mapping[str, Evidence]) -> str:
    """That of `langmerge auto`."""
    reference = dev["single"]
    return simplest_best([judged(name, evidence.get(name), own, reference) for name, own in dev.items()]).name


def evidence_alone(dev: Right, evidence: Mapping[str, Evidence]) -> str:
    """That of `langmerge auto` without labels."""
    return simplest_best([judged(name, evidence.get(name), None, None) for name in dev]).name


RULES: dict[str, Rule] = {
    "best on dev": best_on_dev,
    "simplest within 1.96 standard errors": simplest_not_worse(1.96),
    "simplest within 1": simplest_not_worse(1.0),
    "evidence and labels": with_evidence,
    "evidence alone": evidence_alone,
}


def cells(given: argparse.Namespace) -> dict[tuple[str, str], dict[str, Right]]:
    """By pool and target: split → candidate → rows."""
    found = {}
    for pool in given.pools:
        for target in given.targets.split(","):
            folder = given.out / pool.name / target / "Exc5"
            files = {
                s: {n: folder / f"{kept}.{s}.safetensors" for n, kept in NAMES.items()}
                for s in ("dev", "test")
            }
            if all(file.exists() for own in files.values() for file in own.values()):
                found[pool.name, target] = {
                    s: {n: right(f) for n, f in own.items()} for s, own in files.items()
                }
    return found


def evidence_without(
    target: str, known: Mapping[tuple[str, str], Mapping[str, Right]]
) -> dict[str, Evidence]:
    """Of the other targets' test rows."""
    found = {}
    for name in NAMES:
        differences = [
            100.0 * (own["test"][name].astype(float) - own["test"]["single"])
            for (_, other), own in known.items()
            if other != target
        ]
        errors = [float(one.std()) / len(one) ** 0.5 for one in differences]
        if name != "single":
            found[name] = Evidence.of([float(one.mean()) for one in differences], errors, "other targets")
    return found


def main() -> None:
    """Print a line for each rule and number of rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("pools", type=Path, nargs="+")
    parser.add_argument("--targets", required=True)
    parser.add_argument("--rows", default="100,250,500")
    parser.add_argument("--draws", type=int, default=200)
    given = parser.parse_args()
    known = cells(given)
    print(
        f"{len(known)} cells\n\n| rule | labelled rows | gain over the best source | regret | chosen |\n|---|---|---|---|---|"
    )
    for rows in map(int, given.rows.split(",")):
        for name, rule in RULES.items():
            gains, regrets, chosen = [], [], Counter[str]()
            draw = np.random.default_rng(0)
            for (_, target), own in known.items():
                test = {one: 100 * float(values.mean()) for one, values in own["test"].items()}
                evidence = evidence_without(target, known)
                for _ in range(given.draws):
                    some = draw.permutation(len(own["dev"]["single"]))[:rows]
                    choice = rule({one: values[some] for one, values in own["dev"].items()}, evidence)
                    gains.append(test[choice] - test["single"])
                    regrets.append(max(test.values()) - test[choice])
                    chosen[choice] += 1
            said = ", ".join(f"{one} {100 * count / len(gains):.0f} %" for one, count in chosen.most_common())
            print(f"| {name} | {rows} | {np.mean(gains):+.2f} | {np.mean(regrets):.2f} | {said} |")


if __name__ == "__main__":
    main()
