"""A small study, written by hand: two targets, two modes, every kind of row."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from langmerge.results.study import Difference, Kind, Row, Study, Verdict

SOURCES = ("en-US", "de-DE", "fr-FR", "sw-KE")
MakeRow = Callable[..., Row]


def row(target: str, kind: Kind, name: str, sources: tuple[str, ...], test: float, **changes: Any) -> Row:
    """A row whose signature is made of what it is."""
    mode = changes.get("mode", "ExcTar")
    plain = Row(
        target=target,
        kind=kind,
        name=name,
        mode=mode,
        k=len(sources) if len(sources) > 1 else 0,
        sources=sources,
        dev=test - 0.01,
        test=test,
        low=test - 0.02,
        high=test + 0.02,
        macro_f1=test - 0.05,
        gain=None,
        effect=None,
        rows=2974,
        seed=0,
        signature=f"{target[:2]}{mode[:1].lower()}{kind[-4:]}{len(sources)}{name[:3]}".replace(" ", "0"),
    )
    return replace(plain, **changes)


def target_rows(target: str, others: tuple[str, ...], at: float) -> list[Row]:
    """Every kind of row for one target, in both modes."""
    three, own = others[:3], (target, *others[:2])
    up, down, open_ = (
        Difference(2.3, 0.9, 3.7, 0.0004),
        Difference(-1.6, -2.5, -0.6, 0.0021),
        Difference(0.4, -0.6, 1.4, 0.43),
    )
    # Against a mean of several models there is no McNemar test.
    below, effect = Difference(-2.8, -3.4, -2.2), Difference(5.1, 4.2, 6.0)
    return [
        row(target, "best_zero_shot", others[0], others[:1], at),
        row(target, "best_in_hindsight", others[1], others[1:2], at + 0.004, gain=open_),
        row(target, "self", target, (target,), at + 0.11, mode="IncTar"),
        row(target, "source_mean", "mean of the sources", three, at - 0.028, macro_f1=None, gain=below),
        row(target, "soft_vote", "soft vote", three, at + 0.018, gain=up, effect=effect),
        row(target, "merge", "task_arithmetic", three, at + 0.023, gain=up, effect=effect),
        row(target, "merge", "ties(density=0.2)", three, at - 0.016, gain=down, effect=effect),
        row(target, "merge", "slerp", others[:2], at + 0.0041, gain=open_, effect=effect),
        row(
            target,
            "source_mean",
            "mean of the sources",
            own,
            at + 0.01,
            mode="IncTar",
            macro_f1=None,
            gain=below,
        ),
        row(target, "soft_vote", "soft vote", own, at + 0.1, mode="IncTar", gain=down, effect=effect),
        row(target, "merge", "task_arithmetic", own, at + 0.12, mode="IncTar", gain=open_, effect=effect),
    ]


def verdict(found: Row, reference: str, text: str) -> Verdict:
    """A verdict about a merge."""
    assert found.gain is not None
    return Verdict(
        target=found.target,
        mode=found.mode,
        choice=f"{found.name}, k={found.k}",
        signature=found.signature,
        reference=reference,
        gain=found.gain,
        text=text,
    )


@pytest.fixture
def make_row() -> MakeRow:
    """Builds a row."""
    return row


@pytest.fixture
def study() -> Study:
    """See `hand_made_study`."""
    return hand_made_study()


def hand_made_study() -> Study:
    """sq-AL has no expert among the sources; sw-KE has."""
    albanian = target_rows("sq-AL", ("de-DE", "fr-FR", "en-US", "sw-KE"), 0.612)
    swahili = target_rows("sw-KE", ("en-US", "de-DE", "fr-FR"), 0.498)
    # Dev misled: the merge that was best there is the worst on test.
    swahili[6] = replace(swahili[6], dev=0.53)
    verdicts = [
        verdict(albanian[5], "de-DE", "sq-AL (ExcTar): merging helped. +2.3 points."),
        verdict(albanian[10], "sq-AL", "sq-AL (IncTar): merging did not clearly help. +0.4 points."),
        verdict(
            swahili[6], "en-US", "sw-KE (ExcTar): merging did NOT help: it hurt. -1.6 points. Use en-US."
        ),
    ]
    columns = [*SOURCES, "sq-AL"]
    return Study(
        task="massive:intent",
        revision="MASSIVE 1.1",
        base="e5-small",
        rows=(*albanian, *swahili),
        verdicts=tuple(verdicts),
        matrix={
            "sources": columns,
            "targets": columns,
            "values": [[0.85 if s == t else 0.4 + 0.05 * abs(s - t) for t in range(5)] for s in range(5)],
            "split": "dev",
            "signature": "0123456789ab",
        },
        grid={
            "task": "massive:intent",
            "sources": list(SOURCES),
            "targets": ["sq-AL", "sw-KE"],
            "k": [3],
            "modes": ["ExcTar", "IncTar"],
        },
        seconds=754.0,
    )
