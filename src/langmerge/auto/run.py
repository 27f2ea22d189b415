"""Pilot, decision, model: merge for a target or not, and how."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from langmerge.auto.decision import MARGIN, Judged, Rung, simplest_best
from langmerge.auto.pilot import Pilot
from langmerge.auto.question import Question
from langmerge.checkpoint import check_output, check_outside, folder_signature, new_folder
from langmerge.progress import Progress, silent
from langmerge.results import signature
from langmerge.results.store import Store
from langmerge.tasks import PairedDifference, bootstrap_interval, paired_difference

RECORD = "langmerge_decision.json"
FORMAT = "langmerge-decision/1"


@dataclass(frozen=True)
class Decision:
    """What was decided.

    Attributes:
        out: the model's folder.
        choice: name of the candidate.
        what: it in words.
        sources: of the merge; of a single expert that one.
        reasons: three lines.
        record: everything: candidates, scores, beliefs, costs, what it was decided with.
    """

    out: Path
    choice: str
    what: str
    sources: tuple[str, ...]
    reasons: tuple[str, str, str]
    record: Mapping[str, Any]


def decide(
    question: Question,
    out: Path,
    *,
    store: Store | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Decision:
    """Try the candidates, decide, and write the model with its record and card; `out` appears whole or not at all.

    Args:
        question: what is to be decided.
        out: the new folder; what is tried on the way goes into `.<name>.auto` beside it, and is there for the next call
            if this one is interrupted.
        store: where the decision is written down as well.
        overwrite: replace `out` if it exists.
        progress: told of every step.

    Raises:
        OutputError: `out` exists, or holds an expert.
        SelectionError: the sources cannot be chosen.
        LocaleError, DataError: labels or text are asked for that the task does not have.
    """
    pool = question.pool
    check_output(out, overwrite=overwrite)
    check_outside(out, [pool.base_folder, *(pool.expert(one) for one in pool.locales)])
    work = out.with_name(f".{out.name}.auto")
    pilot = Pilot(question, work, progress)
    rungs = pilot.merges()
    last = list(rungs[-1].judged)
    chosen = simplest_best(last)
    if question.learned:
        last.append(pilot.learned())
        chosen = simplest_best(last)
    if question.text is not None:
        last.append(pilot.refined(chosen.name))
        chosen = simplest_best(last)
    made = pilot.written(chosen.name)
    reasons = _reasons(pilot, last, chosen)
    record = _record(pilot, rungs, last, chosen, made, reasons)
    with new_folder(out, overwrite=overwrite) as folder:
        shutil.copytree(made, folder, dirs_exist_ok=True)
        (folder / RECORD).write_text(
            json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        (folder / "README.md").write_text(_card(record), encoding="utf-8")
    shutil.rmtree(work, ignore_errors=True)
    if store is not None:
        store.decide(
            record["signature"], target=question.target, mode=question.mode, labels=question.labels,
            choice=chosen.name, run=None, record=record,
        )  # fmt: skip
    what = pilot.options[chosen.name].what
    return Decision(out, chosen.name, what, pilot.of(chosen.name), reasons, record)


def _record(
    pilot: Pilot,
    rungs: Sequence[Rung],
    last: Sequence[Judged],
    chosen: Judged,
    made: Path,
    reasons: Sequence[str],
) -> dict[str, Any]:
    asked, inputs = pilot.question, pilot.inputs
    return {
        # A record that has looked at test is another one.
        "format": FORMAT, "signature": signature({**inputs, "test": True} if asked.test else inputs), **inputs, "choice": chosen.name,
        "what": pilot.options[chosen.name].what, "sources_chosen": list(pilot.of(chosen.name)),
        "model": folder_signature(made), "reasons": list(reasons),
        "candidates": [{**asdict(one), "seconds": round(pilot.seconds.get(one.name, 0.0), 2)} for one in last],
        "rungs": [asdict(one) for one in rungs], "test": _test(pilot, chosen) if asked.test else None,
    }  # fmt: skip


def _test(pilot: Pilot, chosen: Judged) -> dict[str, Any]:
    """The choice and the reference on test: the one look at it."""
    found, reference = (pilot.logits(name, "test") for name in (chosen.name, "single"))
    gain: PairedDifference = paired_difference(found.correct, reference.correct)
    interval = bootstrap_interval(found.labels, found.predictions)
    return {
        "rows": len(found.labels), "accuracy": float(found.correct.mean()), "low": interval.low,
        "high": interval.high, "reference": float(reference.correct.mean()), "gain": asdict(gain),
    }  # fmt: skip


def _reasons(pilot: Pilot, last: Sequence[Judged], chosen: Judged) -> tuple[str, str, str]:
    """What, why, and on what ground, in three lines."""
    asked, option = pilot.question, pilot.options[chosen.name]
    single = f"{pilot.reference}'s expert"
    verb = "do not merge" if chosen.name == "single" else "merge"
    if chosen.name == "single":
        what = f"take {single} as it is"
    elif chosen.name == "refined" and pilot.of("refined") == (pilot.reference,):
        verb, what = "do not merge", f"take {single}, refined on the target's text"
    else:
        what = f"{option.what}, of {', '.join(pilot.of(chosen.name))}"
    first = f"{asked.target} ({asked.mode}): {verb}: {what}."
    others = [one for one in last[1:] if one.belief is not None and one.out is None]
    if chosen.name == "single":
        best = max(others, key=lambda one: one.belief.mean if one.belief else 0.0, default=None)
        second = f"Nothing else is expected to bring {MARGIN} points or more over it" + (
            f"; {best.name}: {_belief(best)}." if best is not None else "."
        )
    else:
        second = f"Expected over {single}: {_belief(chosen)}."
    evidence = pilot.evidence.get(chosen.name)
    third = _ground(asked, chosen, evidence.origin if evidence else None)
    return first, second, third


def _belief(one: Judged) -> str:
    if one.belief is None:
        return "not known"
    low, high = one.belief.interval
    return f"{one.belief.mean:+.1f} points, 95 % {low:+.1f} to {high:+.1f}"


def _ground(asked: Question, chosen: Judged, origin: str | None) -> str:
    if asked.labels == "none":
        said = "No label of the target was looked at"
    elif chosen.difference is None:
        said = f"The candidates were scored on {asked.rows} labelled dev rows at most"
    else:
        said = f"On {chosen.rows} labelled dev rows it is {chosen.difference:+.1f} points from it"
    return f"{said}; gains elsewhere: {origin or 'none are known for it'}."


def _card(record: Mapping[str, Any]) -> str:
    """README.md of the model."""
    rows = "\n".join(
        f"| {one['name']} | {_cell(one['accuracy'], 100)} | {_cell(one['difference'], 1, '+')} | "
        f"{_cell((one['belief'] or {}).get('mean'), 1, '+')} | {one['seconds']:.0f} | {one['out'] or ''} |"
        for one in record["candidates"]
    )
    test = record["test"]
    measured = (
        f"On {test['rows']} test rows: {100 * test['accuracy']:.1f} % [{100 * test['low']:.1f}, {100 * test['high']:.1f}], "
        f"{test['gain']['points']:+.1f} points [{test['gain']['low']:+.1f}, {test['gain']['high']:+.1f}] over the single expert."
        if test
        else "Not measured on test: do so with `langmerge evaluate` before use."
    )
    lines = "\n".join(f"- {line}" for line in record["reasons"])
    return f"""---
library_name: transformers
language: {record["target"].split("-")[0]}
tags: [merge, langmerge]
---
# {record["task"]} for {record["target"]}

Chosen by langmerge {record["langmerge"]}, signature `{record["signature"]}`:
{lines}

{measured}

| candidate | dev % | over the single expert, dev | expected gain, points | seconds | given up because |
|---|---|---|---|---|---|
{rows}

Sources: {", ".join(record["sources_chosen"])}, chosen by {record["selector"]}. All of it: `langmerge_decision.json`.
"""


def _cell(value: float | None, scale: float, sign: str = "") -> str:
    return "–" if value is None else f"{scale * value:{sign}.1f}"
