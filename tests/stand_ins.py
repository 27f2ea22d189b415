"""Experiments without models: what each expert and each merge gets right is given."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import langmerge.experiments.desk as desk_module
import langmerge.experiments.sweep as sweep_module
from langmerge.evaluate import transfer_matrix
from langmerge.experiments import Grid, run_sweep
from langmerge.experiments.board import TargetBoard
from langmerge.experiments.candidates import Candidate
from langmerge.experiments.desk import Ground
from langmerge.pool import Expert, Pool
from langmerge.results import Logits, Study, signature
from langmerge.tasks import Task

SOURCES = ("de-DE", "fr-FR", "tr-TR")
TARGET = "sw-KE"
EXPERTS = (*SOURCES, TARGET)
DEV = {"de-DE": 0.50, "fr-FR": 0.60, "tr-TR": 0.30, TARGET: 0.90}
TEST = {"de-DE": 0.70, "fr-FR": 0.45, "tr-TR": 0.20, TARGET: 0.85}
MERGES = {
    "dev": {"linear": 0.55, "ties": 0.65, "wudi": 0.60},
    "test": {"linear": 0.80, "ties": 0.50, "wudi": 0.60},
}
ROWS = 60


def answers(name: str, locale: str, split: str, accuracy: float) -> Logits:
    """Logits that are right on the given share of rows, which rows depending on the name."""
    labels = np.arange(ROWS, dtype=np.int64) % 3
    order = np.random.default_rng(sum(map(ord, name + split))).permutation(ROWS)
    predictions = (labels + 1) % 3
    predictions[order[: round(accuracy * ROWS)]] = labels[order[: round(accuracy * ROWS)]]
    values = 5 * np.eye(3, dtype=np.float32)[predictions]
    return Logits(signature([name, locale, split]), tuple(map(str, range(ROWS))), labels, values)


class FakeEvaluator:
    """Stands for `PoolEvaluator`."""

    def __init__(self, pool: Pool, scores: Mapping[str, Mapping[str, float]]) -> None:
        self.pool, self.scores = pool, scores
        self.task = Task("fake:intent", ("a", "b", "c"), EXPERTS, "r1", lambda *_: pytest.fail("reads data"))
        self.limits: dict[str, int | None] = {}
        self.splits: list[str] = []

    def cell(self, expert: str, locale: str, split: str) -> Logits:
        self.splits.append(split)
        return answers(expert, locale, split, self.scores[split][expert])

    def kept(self, name: str, locale: str, split: str) -> Path:
        return Path(f"{split}/{locale}/{name}")


class FakeScorer:
    """Stands for `CandidateScorer`: a merge's score depends on its method alone."""

    def __init__(self, merges: Mapping[str, Mapping[str, float]] = MERGES) -> None:
        self.merges = merges

    def logits(self, candidate: Candidate, split: str) -> Logits:
        name = f"{candidate.choice.name} {candidate.mode} {len(candidate.selection.sources)}"
        return answers(name, candidate.target, split, self.merges[split][candidate.choice.method])

    def kept(self, candidate: Candidate, split: str) -> Path:
        return Path(f"{split}/{candidate.choice.method}")


def fake_pool(root: Path) -> Pool:
    root.mkdir(parents=True, exist_ok=True)
    experts = {name: Expert(folder=Path("experts") / name) for name in EXPERTS}
    return Pool(root=root, task="fake:intent", labels=("a", "b", "c"), base=Path("base"), experts=experts)


def fake_evaluator(root: Path, *, test: Mapping[str, float] = TEST) -> Any:
    return FakeEvaluator(fake_pool(root), {"dev": DEV, "test": test})


def fake_board(
    root: Path, *, merges: Mapping[str, Mapping[str, float]] = MERGES, **scores: Any
) -> TargetBoard:
    evaluator = fake_evaluator(root, **scores)
    scorer: Any = FakeScorer(merges)
    return TargetBoard(evaluator, transfer_matrix(evaluator), TARGET, seed=7, scorer=scorer)


class FakeDesk:
    """Stands for `Desk`."""

    def __init__(
        self, root: Path, test: Mapping[str, float], merges: Mapping[str, Mapping[str, float]]
    ) -> None:
        self.target_board = fake_board(root, test=test, merges=merges)
        self.evaluator = self.target_board.evaluator

    def board(self, _: str) -> TargetBoard:
        return self.target_board

    def grounds(self, _: str) -> dict[str, Any]:
        return {"models": "none"}


def fake_study(
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    test: Mapping[str, float] = TEST,
    merges: Mapping[str, Mapping[str, float]] = MERGES,
) -> Study:
    """`run_sweep` as it is, around the stand-ins."""
    desk = FakeDesk(out / "pool", test, merges)
    ground = Ground(out / "pool", None, SOURCES, (), 7, "")
    monkeypatch.setattr(sweep_module, "prepare", lambda *_, **__: [ground])
    monkeypatch.setattr(sweep_module, "base_name", lambda _: "nothing")
    for module in (sweep_module, desk_module):
        monkeypatch.setattr(module, "desk", lambda _: desk)
    grid = {
        "task": "fake:intent", "base": "nowhere", "sources": SOURCES, "targets": [TARGET], "training": {"seed": 7},
        "k": [2, "all"], "modes": ["ExcTar", "IncTar"], "methods": [{"method": name} for name in MERGES["dev"]],
    }  # fmt: skip
    found = run_sweep(Grid.model_validate(grid), out)
    assert found.failed == ()
    (study,) = found.studies
    return study
