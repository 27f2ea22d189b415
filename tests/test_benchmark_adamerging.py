"""benchmarks/adamerging.py: what it compares is the same thing."""

import argparse
import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module("adamerging")
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def work(bench: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of the same names with next to nothing in them, and utterances."""
    folder = tmp_path_factory.mktemp("adamerging")
    small = replace(bench.FAMILIES["xlmr"], experts=3, hidden=28, inner=56, vocabulary=120, layers=2)
    bench.make_models(small, folder)
    draw = np.random.default_rng(0)
    rows = [[0, *draw.integers(4, 120, draw.integers(3, 9)).tolist(), 2] for _ in range(130)]
    (folder / "utterances.json").write_text(json.dumps(rows))
    return folder


def test_both_ways_give_the_same_gradient_and_the_same_step(bench: ModuleType, work: Path) -> None:
    encoded = json.loads((work / "utterances.json").read_text())
    ours, peer = bench.Ours(work / "xlmr", 3, 1e-3, encoded), bench.Autograd(work / "xlmr", 3, 1e-3)
    order = [peer.groups.index(group) for group in ours.groups]
    with ours.prepared:
        found = ours.gradient(False)
        expected = peer.gradient(bench.batches_of(encoded)[0], False)[order]
        assert np.abs(expected).max() > 0
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
        ours.run._step()
    peer.adam.step()
    np.testing.assert_allclose(
        ours.run.free.detach().numpy(), peer.free.detach().numpy()[order], rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("kind", ["plain", "plain-math", "plain-all", "langmerge", "autograd"])
def test_every_kind_runs_and_is_watched(bench: ModuleType, work: Path, kind: str) -> None:
    given = argparse.Namespace(
        work=work, worker=kind, steps=1, sources=3, threads=1, gradient=False, watch=True
    )
    found = bench.worker(given)
    assert (found["kind"], len(found["seconds"])) == (kind, 1)
    assert found["peak"]["anonymous"] > 0


def test_the_report_divides_what_was_measured(bench: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    given = argparse.Namespace(sources=5, threads=2, rounds=1, steps=2)
    seconds = {"plain": 2.0, "plain-math": 1.6, "plain-all": 3.0, "langmerge": 2.4, "autograd": 9.6}
    size = bench.FAMILIES["xlmr"].nbytes

    def memory(own: float) -> dict[str, int]:
        return {"private": 0, "anonymous": int(own * size), "resident": int(own * size)}

    runs = {kind: [{"seconds": [one, one]}] for kind, one in seconds.items()}
    watched = {kind: {"peak": memory(one), "one_model": memory(0.4)} for kind, one in seconds.items()}
    bench.report(given, runs, watched)
    lines = capsys.readouterr().out
    for words in (
        "1.20 (1.20–1.20), at most 1.25",
        "4.00 (4.00–4.00), at least 2",
        "2.00, at most 1.3",
        "4.6, at least 4",
    ):
        assert words in lines
