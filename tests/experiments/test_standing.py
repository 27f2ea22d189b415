"""Lines over seeds, paired comparisons and exports of a store, on cells written by hand."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from langmerge.errors import InputError, OutputError
from langmerge.experiments.standing import compare, export, lines, title
from langmerge.results.records import Cell, Outcome, Run, Scored
from langmerge.results.study import Difference

ROWS = 8


def outcome(
    name: str, right: str, *, kind: Any = "merge", target: str = "sw-KE", mode: str = "ExcTar", seed: int = 0,
    k: int = 2, dev: float = 0.5, ids: str = "i",
) -> Outcome:  # fmt: skip
    """One cell; `right` has a 1 for each test row that is predicted right."""
    bits = np.array([one == "1" for one in right])
    scores = (
        Scored("dev", "d", 100, dev, dev - 0.1, dev + 0.1, dev, None, ids, None),
        Scored("test", "t", ROWS, float(bits.mean()), 0.1, 0.9, 0.5, None, ids, np.packbits(bits).tobytes()),
    )
    own = f"{name}{target}{mode}{seed}{k}"
    run = Run(
        f"r{own}"[:32], name, target, "demo", "r1", ("de-DE", "fr-FR"), seed, scores, "ties", {"density": 0.2}
    )
    cell = Cell(f"c{own}"[:32], kind, target, mode, "measured" if k else None, k, name, seed)
    return Outcome(cell, run, None, None if kind == "best_zero_shot" else Difference(9.0, 8.0, 10.0, 0.5))


def cells() -> list[Outcome]:
    found = []
    for seed in (0, 1):
        for target in ("sw-KE", "cy-GB"):
            found += [
                outcome("de-DE", "11110000", kind="best_zero_shot", target=target, seed=seed, k=0),
                outcome("wudi", "11111000" if seed else "11111110", target=target, seed=seed, k=3, dev=0.6),
                outcome("wudi", "11110000", target=target, seed=seed, k=5, dev=0.7),
                outcome("ties", "00001111", target=target, seed=seed, dev=0.65),
            ]
    return found


def test_lines_are_means_over_seeds() -> None:
    found = {(line.target, line.title): line for line in lines(cells())}
    assert len(found) == 8
    three = found["sw-KE", "wudi, k=3"]
    assert (three.seeds, three.dev, three.test) == ((0, 1), 0.6, 0.75)
    # Seeds gain 37.5 and 12.5 points: neither cell's own difference is said of the line.
    assert three.gain is not None
    assert three.gain.points == 25.0
    assert three.gain.low <= 12.5
    assert three.gain.high >= 37.5
    assert found["cy-GB", "de-DE"].gain is None
    assert [line.title for line in lines(cells())][:4] == ["wudi, k=3", "de-DE", "ties, k=2", "wudi, k=5"]


def test_a_line_of_one_seed_keeps_its_own_interval() -> None:
    (line,) = [one for one in lines(cells()[:4]) if one.title == "ties, k=2"]
    assert line.gain == Difference(9.0, 8.0, 10.0, 0.5)


def test_a_gain_whose_reference_lacks_a_seed_is_not_said() -> None:
    some = [one for one in cells() if (one.cell.kind, one.cell.seed) != ("best_zero_shot", 1)]
    (line,) = [one for one in lines(some) if (one.target, one.title) == ("sw-KE", "ties, k=2")]
    assert line.gain is None


def test_a_comparison_is_paired_over_rows() -> None:
    found = compare(cells(), "wudi, k=3", "ties")
    assert (found.first, found.second) == ("wudi, k=3", "ties, k=2")
    assert found.over_all.points == 25.0
    assert found.targets.keys() == {"sw-KE", "cy-GB"}
    assert found.seeds == {"sw-KE": 2, "cy-GB": 2}
    assert found.over_all.high - found.over_all.low < found.targets["sw-KE"].high - found.targets["sw-KE"].low
    same = compare(cells(), "wudi, k=5", "best_zero_shot")
    assert (same.over_all.points, same.over_all.low, same.over_all.high) == (0.0, 0.0, 0.0)
    back = compare(cells(), "ties", "wudi, k=3")
    assert back.over_all.points == -25.0


def test_two_tasks_are_not_two_seeds_of_one() -> None:
    """Their locales and row ids may be the same."""
    first, second = (outcome("ties", "11110000", seed=seed) for seed in (0, 1))
    assert second.run is not None
    other = replace(second, run=replace(second.run, task="other"))
    with pytest.raises(InputError, match=r"several tasks, demo \(r1\), other \(r1\): name sweeps of one"):
        lines([first, other])
    assert len(lines([first, second])) == 1


def test_a_comparison_takes_what_both_have() -> None:
    some = [one for one in cells() if (one.cell.name, one.cell.seed, one.cell.target) != ("ties", 1, "cy-GB")]
    assert compare(some, "wudi, k=3", "ties").seeds == {"sw-KE": 2, "cy-GB": 1}


def test_a_name_in_both_modes_needs_one() -> None:
    both = [
        *cells(),
        outcome("ties", "11110000", mode="IncTar"),
        outcome("wudi", "1" * 8, mode="IncTar", k=3),
    ]
    with pytest.raises(InputError, match=r"ties, k=2 \(ExcTar\); ties, k=2 \(IncTar\)"):
        compare(both, "ties", "best_zero_shot")
    assert compare(both, "wudi, k=3", "ties", mode="IncTar").over_all.points == 50.0
    # References belong to a target, whatever the mode.
    assert compare(both, "ties", "best_zero_shot", mode="IncTar").over_all.points == 0.0


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("wudi", "ties"), r"'wudi' may be several: wudi, k=3 \(ExcTar\); wudi, k=5"),
        (("slerp", "ties"), "has no 'slerp': it has de-DE; ties, k=2"),
    ],
)
def test_names_that_say_too_little_or_nothing(names: tuple[str, str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        compare(cells(), *names)


def test_other_rows_are_not_compared() -> None:
    with pytest.raises(InputError, match="sw-KE, seed 0: the two were tested on other rows"):
        compare([outcome("a", "1" * 8), outcome("b", "1" * 8, ids="j")], "a", "b")


@pytest.mark.parametrize("ending", [".csv", ".parquet", ".tex"])
def test_an_export_has_a_row_for_every_cell(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"rows{ending}"
    failed = Outcome(Cell("f", "merge", "sw-KE", "ExcTar", None, 2, "bad", 0), reason="no")
    assert export([*cells(), failed], path) == 16
    if ending == ".tex":
        text = path.read_text()
        assert [line.split("&")[1].strip() for line in text.splitlines() if "ExcTar" in line] == [
            "best zero-shot", "ties, k=2", "wudi, k=3", "wudi, k=5",
        ]  # fmt: skip
        assert "wudi, k=3 & 75.0 & 75.0 & 75.0" in text
        return
    table = pd.read_csv(path) if ending == ".csv" else pd.read_parquet(path)
    assert len(table) == 16
    first = table[table["name"] == "ties"].iloc[0]
    assert (first["test"], first["dev"], first["gain_points"], first["k"]) == (0.5, 0.65, 9.0, 2)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_an_export_replaces_nothing_unasked(tmp_path: Path) -> None:
    (tmp_path / "paper.tex").write_text("mine")
    with pytest.raises(OutputError, match=r"paper\.tex exists"):
        export(cells(), tmp_path / "paper.tex")
    assert (tmp_path / "paper.tex").read_text() == "mine"
    export(cells(), tmp_path / "paper.tex", overwrite=True)
    assert (tmp_path / "paper.tex").read_text() != "mine"


def test_an_export_to_something_else(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ends with \.xlsx: give one of \.csv, \.parquet, \.tex"):
        export(cells(), tmp_path / "rows.xlsx")


def test_two_pools_with_one_seed_are_told_apart() -> None:
    found = cells()
    one = next(one for one in found if one.cell.kind == "merge")
    assert one.run is not None
    other = replace(one, cell=replace(one.cell, signature="x"), run=replace(one.run, signature="y"))
    with pytest.raises(InputError, match=r"several cells are called .*name one sweep with --sweep"):
        lines([*found, other])
    with pytest.raises(InputError, match=r"several cells are called .*name one sweep with --sweep"):
        compare([*found, other], title(one.cell), "best zero-shot")
    # The same run in a cell of another signature is the same thing, once.
    again = replace(one, cell=replace(one.cell, signature="x"))
    assert lines([*found, again]) == lines(found)
