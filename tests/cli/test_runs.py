"""The commands around a store: what they show, and what they refuse."""

import json
from pathlib import Path

import pytest

from langmerge.results.records import Cell, Outcome, Sweep
from langmerge.results.store import Store
from tests.cli.conftest import Run
from tests.experiments.test_standing import cells


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
    assert run("runs", "export", store / "rows.csv", "--store", store).code == 0
    assert (store / "rows.csv").read_text().count("\n") == 17


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("list", "--store", "nowhere.sqlite"), "there is no store at nowhere.sqlite"),
        (("list", "--mode", "both"), "it is ExcTar or IncTar"),
        (("list", "--sweep", "second"), "no sweep 'second': it has first"),
        (("compare", "wudi", "ties"), "may be several"),
        (("export", "rows.doc"), "ends with .doc"),
    ],
)
def test_what_cannot_be_is_one_line(run: Run, store: Path, arguments: tuple[str, ...], said: str) -> None:
    given = arguments if "--store" in arguments else (*arguments, "--store", store)
    ran = run("runs", *given)
    assert ran.code == 2
    assert said in ran.err
    assert len(ran.err.strip().splitlines()) == 1
