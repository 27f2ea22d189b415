"""The commands around a store: what they show, and what they refuse."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from langmerge.auto import effect
from langmerge.results.records import Cell, Outcome, Sweep
from langmerge.results.store import Store
from tests.auto.test_hindsight import store as by_hand
from tests.cli.conftest import Run
from tests.experiments.test_standing import cells, outcome
from tests.tiny_pool import EXPERTS, write_tiny_pool


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Those cells, and one that failed, in a store."""
    with Store(tmp_path / "store.sqlite") as opened:
        for one in cells():
            opened.record(one)
        opened.record(
            Outcome(Cell("f", "merge", "sw-KE", "ExcTar", None, 2, "bad", 0), reason="PlanError: no")
        )
        opened.plan(Sweep("s", "first", "demo", "r1", "base", {}), [cells()[1].cell.signature])
    return tmp_path


def test_the_commands(run: Run, store: Path) -> None:
    listed = run("runs", "list", "--store", store, "--target", "sw-KE", "--json")
    assert listed.code == 0, listed.err
    assert len(json.loads(listed.out)) == 4
    assert "wudi, k=3" in run("runs", "list", "--store", store / "store.sqlite").out
    assert "PlanError: no" in run("runs", "list", "--store", store, "--failed").out
    best = json.loads(run("runs", "best", "--store", store, "--json").out)
    assert {(one["target"], one["title"]) for one in best} == {("sw-KE", "wudi, k=5"), ("cy-GB", "wudi, k=5")}
    own = json.loads(run("runs", "list", "--store", store, "--sweep", "first", "--json").out)
    assert [(one["title"], one["seeds"]) for one in own] == [("wudi, k=3", [0])]
    found = run("runs", "compare", "wudi, k=3", "ties", "--store", store)
    assert "+25.0" in found.out
    both = json.loads(run("runs", "list", "--store", store, "--sweep", "first,first", "--json").out)
    assert both == own
    assert run("runs", "export", store / "rows.csv", "--store", store).code == 0
    assert (store / "rows.csv").read_text().count("\n") == 17


def test_equals_on_dev_are_not_told_apart_by_test(run: Run, tmp_path: Path) -> None:
    with Store(tmp_path / "store.sqlite") as opened:
        for name, right, k in (("ties", "11111111", 5), ("wudi", "11110000", 3), ("wudi", "11111111", 5)):
            opened.record(outcome(name, right, k=k, dev=0.7))
        opened.record(outcome("linear", "11111110", dev=0.6))
    (found,) = json.loads(run("runs", "best", "--store", tmp_path, "--json").out)
    assert found["title"] == "wudi, k=3"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("list", "--store", "nowhere.sqlite"), "there is no store at nowhere.sqlite"),
        (("list", "--mode", "both"), "it is ExcTar or IncTar"),
        (("list", "--sweep", "second"), "no sweep 'second': it has first"),
        (("compare", "wudi", "ties"), "may be several"),
        (("compare", "de-DE", "best_zero_shot", "--mode", "both"), "--mode both: it is ExcTar or IncTar"),
        (("export", "rows.doc"), "ends with .doc"),
        (("hindsight", "--mode", "IncTar"), "hindsight needs two targets or more"),
        (("hindsight", "--mode", "both"), "--mode both: it is ExcTar or IncTar"),
        (("predict", "nowhere"), "nowhere"),
    ],
)
def test_what_cannot_be_is_one_line(run: Run, store: Path, arguments: tuple[str, ...], said: str) -> None:
    given = arguments if "--store" in arguments else (*arguments, "--store", store)
    ran = run("runs", *given)
    assert ran.code == 2
    assert said in ran.err
    assert len(ran.err.strip().splitlines()) == 1


def test_hindsight_and_what_auto_takes_of_a_store(run: Run, tmp_path: Path) -> None:
    with Store(tmp_path / "store.sqlite") as opened:
        for one in by_hand():
            opened.record(one)
    found = run("runs", "hindsight", "--store", tmp_path, "--json")
    assert found.code == 0, found.err
    rules = {one["rule"]: one for one in json.loads(found.out)}
    assert rules["best on dev"]["gain"]["points"] == pytest.approx(20 / 3)
    said = run("runs", "hindsight", "--store", tmp_path, "--rows", 20, "--draws", 3).out
    assert "3 cells of 3 targets, 20 labelled rows" in said
    assert "evidence of a target is that of the others" in said
    said = run("runs", "hindsight", "--store", tmp_path, "--shipped").out
    assert "evidence of a target is what auto has by itself" in said


def test_predicting_needs_the_pools_of_the_cells(run: Run, tmp_path: Path) -> None:
    pool = write_tiny_pool(tmp_path)
    with Store(tmp_path / "store.sqlite") as opened:
        for one in by_hand():
            assert one.run is not None
            opened.record(replace(one, cell=replace(one.cell, seed=7), run=replace(one.run, task=pool.task)))
    arguments = ("runs", "predict", pool.root, "--store", tmp_path)
    none = run(*arguments)
    assert (none.code, len(none.err.strip().splitlines())) == (2, 1)
    assert "the store has cells of seed 7, and no pool given has it" in none.err
    twice = run(*arguments, pool.root)
    assert "another pool given has seed 0 too" in twice.err


def test_a_sweep_whose_effects_are_predicted(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four targets of one pool; the file is what `auto` reads."""
    monkeypatch.setattr(effect, "TREES", 30)
    pool = write_tiny_pool(tmp_path)
    grid = {
        "task": pool.task, "base": str(tmp_path / "encoder"), "sources": list(EXPERTS), "targets": list(EXPERTS), "k": [2],
        "training": {"epochs": 2, "batch_size": 8, "lr": 5e-3, "head_lr": 2e-2}, "methods": [{"method": "linear"}],
        "ensembles": [], "references": ["best_zero_shot"],
    }  # fmt: skip
    (tmp_path / "grid.yaml").write_text(json.dumps(grid))
    out = tmp_path / "out"
    assert run("sweep", tmp_path / "grid.yaml", "-o", out).code == 0
    found = run("runs", "predict", out / "pool", "--store", out, "-o", tmp_path / "effects.json", "--json")
    assert found.code == 0, found.err
    rows = json.loads(found.out)
    assert {(one["name"], one["what"], one["targets"]) for one in rows} == {
        ("linear", "gain", 4),
        ("linear", "effect", 4),
    }
    assert {one["needs"] for one in rows} == {"text", "labels", "self"}
    told = json.loads((tmp_path / "effects.json").read_text())
    assert {one["name"] for one in told["lines"]} == {"linear"}
    told["lines"] = [{**one, "helps": False} for one in told["lines"]]
    (tmp_path / "effects.json").write_text(json.dumps(told))
    decided = run(
        "auto", out / "pool", tmp_path / "model", "--target", "sw-KE", "--exclude-target", "--labels", "none", "-k", "2",
        "--evidence", out, "--effects", tmp_path / "effects.json",
    )  # fmt: skip
    assert decided.code == 0, decided.err
    record = json.loads((tmp_path / "model" / "langmerge_decision.json").read_text())
    assert record["evidence"]["linear"]["origin"] == f"the store {out}, sources chosen by labels"
    assert record["evidence"]["linear"]["targets"] == 3
    assert record["evidence"]["wudi"]["origin"].startswith("MASSIVE")
