"""Bad input: exit 2, one line on stderr that names the thing, nothing written."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from langmerge.pool import Pool
from langmerge.selection import TransferMatrix
from tests.cli.conftest import Run
from tests.tiny import LABELS, QUERY, drawn, tuned, write_raw, write_raw_pool


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """A raw base and three sources."""
    write_raw_pool(tmp_path)
    return tmp_path


def recipe(folders: Path, **changes: object) -> Path:
    """A recipe that is right but for the changes."""
    fields: dict[str, object] = {
        "base": "base",
        "sources": {"de-DE": "de-DE", "fr-FR": "fr-FR"},
        "method": "ties",
        **changes,
    }
    path = folders / "recipe.yaml"
    path.write_text(yaml.safe_dump(fields))
    return path


def everything(folder: Path) -> set[str]:
    return {
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.name != ".langmerge.fingerprint"
    }


def assert_refused(run: Run, folders: Path, arguments: list[object], *named: str) -> None:
    before = everything(folders)
    ran = run(*arguments)
    assert ran.code == 2, ran
    assert ran.out == ""
    assert ran.err.startswith("error: ")
    assert ran.err.count("\n") == 1, ran.err
    for name in named:
        assert name in ran.err
    assert everything(folders) == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"base": "nowhere"}, ["nowhere", "does not exist"]),
        ({"sources": {"de-DE": "nowhere"}}, ["nowhere", "does not exist"]),
        ({"method": "tie"}, ["'tie'", "did you mean 'ties'"]),
        ({"parameters": {"densty": 0.2}}, ["'densty'", "density"]),
        ({"parameters": {"density": 1.5}}, ["density is 1.5"]),
        ({"parameters": {"density": "high"}}, ["density", "'high'", "float"]),
        ({"method": "wudi", "parameters": {"ridge": 0.0}}, ["ridge is 0.0"]),
        ({"method": "slerp", "sources": {"de-DE": "de-DE"}}, ["exactly 2 sources"]),
        ({"sources": {"de-DE": "de-DE", "base": "base"}}, ["source base", "equals the base"]),
        ({"coefficients": {"de-DE": 1.0}}, ["every source needs a coefficient"]),
        ({"coefficients": {"de-DE": 0.0, "fr-FR": 0.0}, "method": "linear"}, ["sum to zero"]),
        ({"coefficients": "nowhere.json"}, ["nowhere.json", "does not exist"]),
        ({"colour": "blue"}, ["colour"]),
        ({"layers": "0-99999999999"}, ["layers is '0-99999999999'", "like 4-7"]),
        ({"layers": "0-2"}, ["layers names 2", "layers 0 to 1"]),
        ({"head": "source:sw-KE"}, ["head is 'source:sw-KE'"]),
        ({"parameters": {"density": [0.1, 0.2, 0.3]}}, ["density has 3 numbers for 2 sources"]),
    ],
)
def test_a_wrong_recipe(run: Run, folders: Path, change: dict[str, object], named: list[str]) -> None:
    path = recipe(folders, **change)
    assert_refused(run, folders, ["merge", path, folders / "out"], *named)
    assert_refused(run, folders, ["plan", path], *named)


def test_every_fault_is_told_at_once(run: Run, folders: Path) -> None:
    path = recipe(folders, base="nowhere", method="tiez", sources={"de-DE": "elsewhere"})
    assert_refused(run, folders, ["merge", path, folders / "out"], "3 faults", "nowhere", "elsewhere", "tiez")


def test_a_shape_mismatch(run: Run, folders: Path) -> None:
    tensors = tuned(drawn(0), 7)
    write_raw(folders / "odd", {**tensors, QUERY: torch.zeros(5, 6)})
    path = recipe(folders, sources={"de-DE": "de-DE", "odd": "odd"})
    assert_refused(run, folders, ["merge", path, folders / "out"], QUERY, "(6, 6)", "(5, 6)", "odd")


def test_different_labels(run: Run, folders: Path) -> None:
    write_raw(folders / "odd", tuned(drawn(0), 7), labels=(*LABELS[:-1], "snow"))
    path = recipe(folders, sources={"de-DE": "de-DE", "odd": "odd"})
    assert_refused(run, folders, ["merge", path, folders / "out"], "odd", "snow", LABELS[-1])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_none(run: Run, folders: Path, value: float) -> None:
    tensors = tuned(drawn(0), 7)
    tensors[QUERY][2, 3] = value
    write_raw(folders / "odd", tensors)
    path = recipe(folders, sources={"de-DE": "de-DE", "odd": "odd"})
    assert_refused(run, folders, ["merge", path, folders / "out"], QUERY, str(folders / "odd"), "NaN")


@pytest.mark.parametrize("device", ["abacus", "cpu:x", "vulkan"])
@pytest.mark.parametrize("method", ["linear", "wudi"])
def test_a_device_that_is_not_there(run: Run, folders: Path, method: str, device: str) -> None:
    path = recipe(folders, method=method)
    named = [f"device '{device}' cannot be used", "choose cpu"]
    assert_refused(run, folders, ["merge", path, folders / "out", "--device", device], *named)


def test_an_output_that_exists_is_left_alone(run: Run, folders: Path) -> None:
    out = folders / "out"
    out.mkdir()
    (out / "precious.txt").write_text("mine")
    assert_refused(run, folders, ["merge", recipe(folders), out], str(out), "exists", "--overwrite")
    assert (out / "precious.txt").read_text() == "mine"
    assert run("merge", recipe(folders), out, "--overwrite").code == 0
    assert not (out / "precious.txt").exists()
    assert (out / "langmerge.json").exists()


def test_a_place_that_cannot_be_written(run: Run, folders: Path) -> None:
    (folders / "file").write_text("")
    assert_refused(
        run,
        folders,
        ["merge", recipe(folders), folders / "file" / "out"],
        "cannot be written",
        str(folders / "file"),
    )


def pool_with_matrix(root: Path) -> Path:
    """A pool of three experts with a measured dev matrix."""
    pool = Pool(root=root, task="demo:intent", labels=LABELS, base=Path("base"))
    for locale in ("de-DE", "fr-FR", "sw-KE"):
        pool = pool.with_expert(locale, root / locale)
    pool.save()
    names = ("de-DE", "fr-FR", "sw-KE")
    values = np.array([[0.9, 0.6, 0.5], [0.7, 0.9, 0.4], [0.3, 0.2, 0.8]])
    TransferMatrix(names, names, values, "dev").save(root / "transfer.dev.json")
    return root


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--target", "sw-KE", "-k", "3"], ["k is 3", "from 1 to 2"]),
        (["--target", "sw-KE", "-k", "0"], ["'0'", "1 or more"]),
        (["--target", "sw-KE", "-k", "many"], ["'many'"]),
        (["--target", "cy-GB"], ["'cy-GB'", "langmerge matrix"]),
        (["--target", "xx-nowhere"], ["'xx-nowhere' is no locale"]),
        (["--target", "sw-KE", "--by", "taste"], ["'taste'", "measured"]),
        (["--target", "sw-KE", "-k", "2", "--weights", "heavy"], ["'heavy'", "uniform"]),
        (
            ["--target", "sw-KE", "-k", "2", "--weights", "softmax", "--temperature", "0"],
            ["temperature is 0"],
        ),
    ],
)
def test_a_wrong_selection(run: Run, folders: Path, options: list[str], named: list[str]) -> None:
    pool = pool_with_matrix(folders)
    assert_refused(run, folders, ["select", pool, *options, "-o", folders / "c.json"], *named)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["select", "nowhere", "--target", "sw-KE"], ["nowhere/pool.yaml", "langmerge train"]),
        (["train", "p", "--base", "b", "--locales", "xx-nowhere", "--task", "demo:intent"], ["xx-nowhere"]),
        (
            ["train", "p", "--base", "b", "--locales", "km-KH", "--task", "demo:intent"],
            ["km-KH", "demo:intent"],
        ),
        (["train", "p", "--base", "b", "--locales", ",", "--task", "demo:intent"], ["--locales is empty"]),
        (["train", "p", "--base", "./b", "--locales", "sw-KE", "--task", "demo:intent"], ["./b"]),
        (
            ["evaluate", "nowhere", "--locales", "sw-KE", "--task", "demo:intents"],
            ["demo:intents", "demo:intent"],
        ),
        (["merge", "only-one"], ["RECIPE", "OUT"]),
        (["merge", "recipe.yaml", "out"], ["recipe.yaml", "cannot be read"]),
        (["merge", "r.yaml", "out", "--method", "ties", "-k", "1"], ["--method, -k", "a recipe says it"]),
        (
            ["merge", "out", "--pool", "p", "--coefficients", "c.json", "--by", "typology"],
            ["--by", "--coefficients says it"],
        ),
        (["refine", "m", "--target", "sw-KE", "-o", "x", "--seed", "-1"], ["--seed"]),
        (["adapters", "train", "b", "--locales", "sw-KE", "--seed", "-1"], ["--seed"]),
        (["similarity", "p", "--by", "composite", "--features", "syntax=1"], ["--features", "typology"]),
        (["merge", "out", "--pool", "nowhere", "--target", "sw-KE"], ["nowhere/pool.yaml"]),
        (["merge", "out", "-p", "density", "--pool", "x", "--target", "sw-KE"], ["'density'", "name=value"]),
        (["sweep", "grid.yaml", "--out", "x"], ["grid.yaml", "cannot be read"]),
        (["sweep", "GRID", "--out", "x", "--ray-address", "a:1"], ["an address", "--executor ray"]),
        (["sweep", "GRID", "--out", "x", "--gpus", "0.5"], ["GPUs", "--executor ray"]),
        (["sweep", "GRID", "--out", "x", "--dry-run", "--executor", "rai"], ["'rai'", "local, ray"]),
        (["base", "e6", "out"], ["'e6'", "e5-small"]),
        (["mrege"], ["mrege"]),
        (["evaluate"], ["MODEL"]),
        (["matrix", "p", "--limit", "-1"], ["--limit"]),
    ],
)
def test_a_wrong_command_line(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], named: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(run, tmp_path, list(arguments), *named)


def test_debug_shows_the_traceback(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from langmerge.cli import main
    from langmerge.errors import PoolError

    monkeypatch.setattr(sys, "argv", ["langmerge", "select", str(tmp_path), "--target", "sw-KE", "--debug"])
    with pytest.raises(PoolError):
        main()


def test_an_interrupt_ends_with_130(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupted(root: Path) -> Pool:
        raise KeyboardInterrupt

    monkeypatch.setattr(Pool, "load", interrupted)
    ran = run("select", tmp_path, "--target", "sw-KE")
    assert ran.code == 130
    assert "interrupted" in ran.err
