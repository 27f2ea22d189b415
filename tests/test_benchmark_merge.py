"""benchmarks/merge.py: its models, its recipes, what it measures and how it judges; on tiny models, and no time is judged."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from langmerge.checkpoint import open_checkpoint
from langmerge.engine.planning import load_recipe, make_plan

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import _measure
import _models
import merge as benchmark
from _agreement import Agreement, compared
from _measure import Memory, read_all_write_one, run_process
from _models import FAMILIES, Family, make_models, scaled, tiny
from _recipes import METHODS, mergekit_recipe, native_recipe, write_recipe
from _report import Case, growth, verdicts

SMALL = {name: replace(tiny(family), layers=2, vocabulary=90) for name, family in FAMILIES.items()}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    for family in SMALL.values():
        make_models(family, folder)
    return folder


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("name", FAMILIES)
def test_sizes_are_those_of_the_real_models(name: str) -> None:
    parameters = {"xlmr": 278_089_788, "qwen": 494_032_768}[name]
    assert FAMILIES[name].nbytes == parameters * {"xlmr": 4, "qwen": 2}[name]
    assert tiny(FAMILIES[name]).shapes.keys() == FAMILIES[name].shapes.keys()
    assert tiny(FAMILIES[name]).nbytes < 1e6


@pytest.mark.parametrize("gigabytes", [1, 2, 4])
def test_a_scaled_family_comes_near_its_size(gigabytes: int) -> None:
    assert scaled(FAMILIES["xlmr"], gigabytes * 10**9).nbytes == pytest.approx(gigabytes * 1e9, rel=0.01)


@pytest.mark.parametrize("name", FAMILIES)
def test_models_are_read_as_they_were_meant(work: Path, name: str) -> None:
    family = SMALL[name]
    base, expert = (open_checkpoint(work / family.name / which) for which in ("base", "e2"))
    assert {key: info.shape for key, info in base.tensors.items()} == family.shapes
    assert {info.dtype for info in base.tensors.values()} == {family.dtype}
    entries = [
        np.concatenate([found.array(key).astype(np.float32).ravel() for key in family.shapes])
        for found in (base, expert)
    ]
    assert entries[0].std() == pytest.approx(0.05, rel=0.03)
    assert (entries[1] - entries[0]).std() == pytest.approx(0.004, rel=0.03)


def test_blocks_change_no_byte(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_models, "BLOCK", 101)
    for family in SMALL.values():
        folder = make_models(family, tmp_path)
        assert all(
            weights(folder / name) == weights(work / family.name / name) for name in ("base", "e1", "e3")
        )


def test_bfloat16_is_rounded_to_the_nearest_even() -> None:
    values = np.random.default_rng(0).standard_normal(1000, dtype=np.float32)
    values[:2] = 1 + 2**-8, 1 + 3 * 2**-8
    assert _models._stored(values, "BF16") == values.astype(ml_dtypes.bfloat16).tobytes()


def test_models_that_are_there_are_not_made_again(tmp_path: Path) -> None:
    family = SMALL["xlmr"]
    kept = make_models(family, tmp_path) / "e1" / "model.safetensors"
    before = kept.stat().st_mtime_ns
    make_models(family, tmp_path)
    assert kept.stat().st_mtime_ns == before
    kept.write_bytes(kept.read_bytes()[:-1])
    make_models(family, tmp_path)
    assert kept.stat().st_mtime_ns != before
    assert not list(tmp_path.rglob("*.part"))


def test_no_room_is_said_before_a_byte_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_models.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(OSError, match="choose another --work"):
        make_models(SMALL["xlmr"], tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_both_recipes_mean_the_same_merge(work: Path, tmp_path: Path, name: str, method: str) -> None:
    family = SMALL[name]
    plans = [
        make_plan(load_recipe(write_recipe(make(family, method, work / family.name), tmp_path / "r.yaml")))
        for make in (native_recipe, mergekit_recipe)
    ]
    assert [_merges(tensor) for tensor in plans[0].written] == [
        _merges(tensor) for tensor in sorted(plans[1].written, key=lambda t: _place(plans[0], t.name))
    ]


def _place(plan: Any, name: str) -> int:
    return [tensor.name for tensor in plan.written].index(name)


def _merges(tensor: Any) -> Any:
    """What happens to a tensor: files and weights of its sources, method and parameters that matter."""
    n = len(tensor.inputs)
    matter = {"density", "normalize", "scale", "t", "eps", "about", "election"}
    parameters = {key: value for key, value in tensor.parameters.items() if key in matter}
    if not isinstance(parameters.get("density", []), list):
        parameters["density"] = [parameters["density"]] * n
    share = [] if tensor.method == "slerp" else [round(weight, 12) for weight in tensor.weights]
    return tensor.name, tensor.method, parameters, share, [info.file for info in tensor.inputs], tensor.dtype


def _changed_copy(folder: Path, out: Path, entries: dict[int, float]) -> Path:
    """A copy of a float32 model with some entries of the last tensor, counted from its end, replaced."""
    out.mkdir()
    raw = bytearray(weights(folder))
    for place, value in entries.items():
        raw[len(raw) - 4 * place : len(raw) - 4 * (place - 1)] = np.float32(value).tobytes()
    (out / "model.safetensors").write_bytes(raw)
    return out


def test_outputs_are_compared_entry_by_entry(work: Path, tmp_path: Path) -> None:
    models = work / SMALL["xlmr"].name
    same = compared(models / "e1", models / "e1", models / "base")
    assert (same.dtype, same.largest, same.astray, same.norm_ratio) == ("F32", 0.0, 0.0, 1.0)
    last = np.frombuffer(weights(models / "e1")[-4:], np.float32)[0]
    far = compared(
        _changed_copy(models / "e1", tmp_path / "far", {1: last + 0.25}), models / "e1", models / "base"
    )
    assert far.largest == pytest.approx(0.25, rel=1e-5)
    assert far.astray == 1 / (SMALL["xlmr"].nbytes / 4)
    assert far.norm_ratio > 1.02
    assert same.holds("linear")
    assert not far.holds("linear")


def test_nan_is_astray(work: Path, tmp_path: Path) -> None:
    models = work / SMALL["xlmr"].name
    wrong = _changed_copy(models / "e1", tmp_path / "nan", {2: np.nan})
    assert compared(wrong, models / "e1", models / "base").astray > 0


def test_bfloat16_is_compared_in_its_own_steps(work: Path) -> None:
    models = work / SMALL["qwen"].name
    found = compared(models / "e1", models / "e2", models / "base")
    first, second = (open_checkpoint(models / name) for name in ("e1", "e2"))
    differences = [
        np.abs(first.array(name).astype(np.float32) - second.array(name).astype(np.float32)).max()
        for name in first.tensors
    ]
    assert (found.dtype, found.largest) == ("BF16", max(differences))
    assert found.norm_ratio == pytest.approx(1, abs=0.02)
    assert not found.holds("ties")
    assert found.holds("dare_ties")


def test_outputs_of_other_layouts_are_not_compared(work: Path) -> None:
    one, two = (work / family.name / "e1" for family in SMALL.values())
    with pytest.raises(ValueError, match="differ in"):
        compared(one, two, one)


def test_memory_is_that_of_a_process_and_its_children(tmp_path: Path) -> None:
    child = "b = bytearray(40_000_000); import time; time.sleep(.4)"
    code = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {child!r}]); b = bytearray(60_000_000); p.wait()"
    run = run_process([sys.executable, "-c", code], log=tmp_path / "log", env={}, watched=True)
    assert run.memory is not None
    assert 100e6 < run.memory.anonymous <= run.memory.private <= run.memory.resident
    assert run.memory.anonymous < 160e6
    assert 0 < run.cpu_seconds < run.seconds * 8


def test_a_mapped_file_is_private_but_not_anonymous(tmp_path: Path) -> None:
    with (tmp_path / "data").open("wb") as file:
        file.write(bytes(50_000_000))
        # Written to the disk, its pages are clean, like those of any checkpoint.
        os.fsync(file.fileno())
    code = (
        "import mmap, time; f = open('data', 'rb'); m = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ); "
        "sum(m[::4096]); time.sleep(.3)"
    )
    script = tmp_path / "script.py"
    script.write_text(code.replace("'data'", repr(str(tmp_path / "data"))))
    run = run_process([sys.executable, str(script)], log=tmp_path / "log", env={}, watched=True)
    assert run.memory is not None
    assert run.memory.private - run.memory.anonymous > 45e6


def test_a_process_that_fails_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import os; print('first'); raise SystemExit(os.environ['WORDS'])"]
    with pytest.raises(RuntimeError, match=r"ended with 1: no room \(all of it: .*log\)"):
        run_process(command, log=tmp_path / "log", env={"WORDS": "no room"})


def test_the_floor_reads_all_and_writes_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_measure, "WINDOW", 4 * 4096)
    monkeypatch.setattr(_measure, "CHUNK", 3 * 4096)
    contents = [np.random.default_rng(i).bytes(100_004) for i in range(3)]
    files = [tmp_path / str(i) for i in range(3)]
    for file, content in zip(files, contents, strict=True):
        file.write_bytes(content)
    seen: list[int] = []
    watched = SimpleNamespace(reduce=lambda x: seen.append(int(np.add.reduce(x))))
    stand_in = SimpleNamespace(add=watched, frombuffer=np.frombuffer, uint64=np.uint64)
    monkeypatch.setattr(_measure, "np", stand_in)
    read_all_write_one(files, tmp_path / "out", threads=2)
    assert (tmp_path / "out").read_bytes() == contents[2][:100_000]
    whole = sum(int(np.frombuffer(content[:100_000], np.uint64).sum(dtype=np.uint64)) for content in contents)
    assert sum(seen) % 2**64 == whole % 2**64


def _case(method: str = "linear", **change: Any) -> Case:
    seconds = {
        "langmerge": [1.0, 2.0, 1.0],
        "mergekit": [7.0, 8.0, 9.0],
        "start-up": [0.4] * 3,
        "floor": [0.5] * 3,
    }
    memory = {"langmerge": Memory(300_000_000, 100_000_000, 900_000_000), "mergekit": Memory(7, 5, 9)}
    agreement = Agreement("F32", 5, 1e-7, 1.0, 0.0, 1.0)
    return replace(Case("xlmr", "xlmr", method, 6, 10**9, seconds, {}, memory, agreement), **change)


def _words(case: Case) -> dict[str, str]:
    return {verdict.what: verdict.row[-1] for verdict in verdicts(case)}


def test_verdicts_take_the_median_of_paired_ratios() -> None:
    case = _case()
    assert case.times_faster == [7.0, 4.0, 9.0]
    assert case.beyond_floor == pytest.approx([1.2, 3.2, 1.2])
    words = _words(case)
    assert words["mergekit / langmerge"] == "met"
    assert words["beyond start-up / floor"] == "met"
    assert "7.00 (4.00–9.00)" in [verdict.value for verdict in verdicts(case)]
    assert _words(_case("ties"))["mergekit / langmerge"] == "missed"
    assert _words(_case("ties"))["beyond start-up / floor"] == ""
    slower = case.seconds | {"langmerge": [2.0] * 3}
    assert _words(_case(seconds=slower))["beyond start-up / floor"] == "missed"


def test_verdicts_on_memory_and_agreement() -> None:
    assert {"private memory", "resident memory", "difference, F32"} <= {
        what for what, word in _words(_case()).items() if word == "met"
    }
    heavy = _words(_case(memory={"langmerge": Memory(351_000_000, 1, 1_001_000_000)}))
    assert (heavy["private memory"], heavy["resident memory"]) == ("missed", "missed")
    wrong = _case(agreement=Agreement("F32", 5, 0.1, 9.0, 2e-5, 1.0))
    assert _words(wrong)["difference, F32"] == "missed"
    alone = _case(
        seconds={key: [1.0] for key in ("langmerge", "start-up", "floor")},
        memory={"langmerge": Memory(1, 1, 1)},
        agreement=None,
    )
    assert list(_words(alone)) == ["beyond start-up / floor", "private memory", "resident memory"]


def test_growth_is_measured_against_the_smallest_model() -> None:
    cases = [_case(family=f"xlmr-{size}gb") for size in (1, 2, 4)]
    assert {verdict.met for verdict in growth(cases)} == {True}
    cases[1] = _case(memory={"langmerge": Memory(340_000_000, 1, 1)})
    grown = [verdict for verdict in growth(cases) if verdict.met is False]
    assert [(verdict.what, verdict.value) for verdict in grown] == [("private, largest / first", "1.13")]


def _stand_in(folder: Path) -> Path:
    """An environment whose mergekit-yaml is langmerge, which reads mergekit's recipes too."""
    folder.mkdir()
    langmerge = Path(sys.executable).with_name("langmerge")
    for name, line in (("python", "echo stand-in"), ("mergekit-yaml", f'exec {langmerge} merge "$1" "$2"')):
        (folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / name).chmod(0o755)
    return folder / "python"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without waiting for the disk, which others may keep busy."""
    monkeypatch.setattr(benchmark.os, "sync", lambda: None)


def test_a_whole_run(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[str] = []
    run = benchmark.run_process
    monkeypatch.setattr(
        benchmark,
        "run_process",
        lambda command, **more: (started.append(command[0]), run(command, **more))[1],
    )
    python = _stand_in(tmp_path / "peer")
    arguments = ["--work", str(tmp_path / "work"), "--tiny", "--rounds", "2", "--only", "xlmr/linear"]
    benchmark.main([*arguments, "--mergekit", str(python), "--json", str(tmp_path / "r.json")])
    found = json.loads((tmp_path / "r.json").read_text())
    assert (found["machine"]["mergekit"], found["machine"]["rounds"]) == ("stand-in", 2)
    (case,) = found["cases"]
    assert {key: len(values) for key, values in case["seconds"].items()} == dict.fromkeys(
        ("start-up", "langmerge", "mergekit", "floor"), 2
    )
    assert min(case["memory"]["langmerge"].values()) > 1e6
    assert (case["agreement"]["largest"], case["agreement"]["norm_ratio"]) == (0.0, 1.0)
    # Watched; first round: start-up, langmerge, mergekit; second round the other way round.
    names = ["peer" if "peer" in command else "own" for command in started]
    assert names == ["own", "peer", "own", "own", "peer", "peer", "own", "own"]
    assert not list((tmp_path / "work").glob("out-*"))
    assert not (tmp_path / "work" / "floor.bin").exists()
    printed = capsys.readouterr().out
    assert "xlmr-tiny/linear  private memory" in printed
    assert "kernels: " in printed


def test_sizes_are_made_measured_and_removed(
    tmp_path: Path, quick: None, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--work", str(tmp_path), "--tiny", "--only", "slerp", "--scale", "0.0006", "0.0005"]
    benchmark.main([*arguments, "--json", str(tmp_path / "r.json")])
    cases = json.loads((tmp_path / "r.json").read_text())["cases"]
    assert [case["family"] for case in cases] == ["xlmr-tiny-0.0005gb", "xlmr-tiny-0.0006gb"]
    assert cases[0]["nbytes"] < cases[1]["nbytes"]
    assert not list(tmp_path.glob("xlmr*"))
    assert "xlmr/slerp" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--no-mergekit", "--only", "karcher"], "--only karcher: there are xlmr"),
        ([], "give --install-mergekit once"),
        (["--mergekit", "/nowhere/python"], "/nowhere/mergekit-yaml does not exist"),
    ],
)
def test_what_cannot_be_measured_is_one_line(tmp_path: Path, arguments: list[str], words: str) -> None:
    with pytest.raises(SystemExit, match=words):
        benchmark.main(["--work", str(tmp_path), *arguments])


def test_merges_are_chosen_by_family_method_or_both() -> None:
    families: list[Family] = list(FAMILIES.values())

    def names(*only: str) -> list[str]:
        return [f"{family.name}/{method}" for family, method in benchmark.chosen_cases(list(only), families)]

    assert len(names()) == 10
    assert names("slerp") == ["xlmr/slerp", "qwen/slerp"]
    assert names("qwen/ties", "xlmr/linear") == ["xlmr/linear", "qwen/ties"]
    assert len(names("qwen")) == 5
