"""Merges that read statistics: artefacts, plans, faults, receipts."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from langmerge.checkpoint import folder_signature
from langmerge.coefficients import group_of
from langmerge.engine import make_plan, merge, recipe_payload
from langmerge.engine.inputs import TensorInputs
from langmerge.engine.statistics import open_statistics, write_statistics
from langmerge.engine.verify import verify
from langmerge.errors import CheckpointError, MethodError, OutputError
from langmerge.methods import METHODS
from langmerge.recipe import Recipe
from langmerge.results import signature
from tests.engine.conftest import SOURCES, bits, entries, faults_of, recipe_of, streamed
from tests.tiny import HEAD, QUERY, SHAPES, WORDS, permuted, read_raw, write_raw

DENSE = "roberta.encoder.layer.1.output.dense.weight"
POOL = "classifier.dense.weight"
WEIGHTS = {"de-DE": 0.5, "fr-FR": 0.2, "sw-KE": 0.4}


def numbers(kind: str, seed: int) -> dict[str, np.ndarray[Any, Any]]:
    """Statistics of a raw model, drawn."""
    draw = np.random.default_rng(seed)
    if kind == "fisher":
        return {name: draw.standard_normal(shape).astype(np.float32) ** 2 for name, shape in SHAPES.items()}
    found = {}
    for name in (QUERY, DENSE, POOL, HEAD):
        inputs = draw.standard_normal((9, SHAPES[name][1])).astype(np.float32)
        found[name] = inputs.T @ inputs
    return found


def write_all(root: Path, kind: str, **changes: Any) -> dict[str, Path]:
    """An artefact for every source of a raw pool."""
    files = {}
    for seed, name in enumerate(SOURCES):
        files[name] = root / f"{name}.{kind}.safetensors"
        given = {"kind": kind, "model": folder_signature(root / name), **changes}
        write_statistics(files[name], numbers(kind, seed), **given)
    return files


@pytest.fixture(scope="module")
def measured_pool(tmp_path_factory: pytest.TempPathFactory, raw_pool: Path) -> Path:
    """Read-only: the raw pool with statistics of both kinds."""
    root = Path(shutil.copytree(raw_pool, tmp_path_factory.mktemp("measured") / "pool"))
    write_all(root, "fisher")
    write_all(root, "grams")
    return root


def files_of(root: Path, kind: str) -> dict[str, Path]:
    return {name: root / f"{name}.{kind}.safetensors" for name in SOURCES}


def reading(root: Path, method: str, kind: str = "grams", **changes: Any) -> Recipe:
    fields = {"method": method, "coefficients": WEIGHTS, "statistics": files_of(root, kind)}
    return recipe_of(root, **{**fields, **changes})


def in_memory(root: Path, method: str, kind: str, **parameters: Any) -> dict[str, Tensor]:
    """The merge by METHODS on what is loaded whole."""
    base = read_raw(root / "base")
    loaded = [read_raw(root / name) for name in SOURCES]
    known = [load_file(root / f"{name}.{kind}.safetensors") for name in SOURCES]
    weights = torch.tensor(list(WEIGHTS.values()))
    merged = {}
    for name, own in base.items():
        stacked = torch.stack([one[name] for one in loaded])
        inside = group_of(name) not in ("embeddings", "head") and own.ndim == 2
        if method == "fisher" or inside:
            statistics = torch.stack([one[name] for one in known])
            merged[name] = METHODS[method](own, stacked, weights, statistics=statistics, **parameters)
        else:
            merged[name] = METHODS["linear"](
                own, stacked, torch.tensor([w / 1.1 for w in WEIGHTS.values()]), normalize=False
            )
    return merged


@pytest.mark.parametrize(
    ("method", "kind", "parameters"),
    [
        ("fisher", "fisher", {}),
        ("fisher", "fisher", {"floor": 0.5}),
        ("regmean", "grams", {}),
        ("regmean", "grams", {"off_diagonal": 0.5, "ridge": 0.1}),
        ("gram", "grams", {}),
        ("gram", "grams", {"mix": 1.0, "off_diagonal": 1.0}),
    ],
)
def test_streamed_is_in_memory(
    measured_pool: Path, tmp_path: Path, method: str, kind: str, parameters: dict[str, Any]
) -> None:
    recipe = reading(measured_pool, method, kind, parameters=parameters)
    expected = bits(in_memory(measured_pool, method, kind, **parameters))
    assert bits(streamed(recipe)) == expected
    backwards = reading(
        measured_pool,
        method,
        kind,
        parameters=parameters,
        sources={name: measured_pool / name for name in SOURCES[::-1]},
        statistics=dict(reversed(files_of(measured_pool, kind).items())),
    )
    out = merge(backwards, tmp_path / "out", max_shard=200, threads=5)
    assert bits(read_raw(out)) == expected
    assert bits(expected_without(measured_pool, method)) != expected


def expected_without(root: Path, method: str) -> dict[str, Tensor]:
    base, loaded = read_raw(root / "base"), [read_raw(root / name) for name in SOURCES]
    weights = torch.tensor(list(WEIGHTS.values()))
    return {
        n: METHODS[method](own, torch.stack([one[n] for one in loaded]), weights) for n, own in base.items()
    }


@pytest.mark.usefixtures("small_steps")
def test_fishers_of_chunks(measured_pool: Path) -> None:
    expected = bits(in_memory(measured_pool, "fisher", "fisher"))
    assert bits(streamed(reading(measured_pool, "fisher", "fisher"))) == expected


def test_fishers_of_label_rows_in_another_order(measured_pool: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(measured_pool, tmp_path / "pool"))
    order, labels = [2, 0, 1], ("alarm", "music", "rain")
    moved, names = permuted(read_raw(root / "fr-FR"), labels, order)
    write_raw(root / "fr-FR", moved, labels=names)
    turned = {
        name: one[order] if name.startswith("classifier.out_proj") else one
        for name, one in numbers("fisher", 1).items()
    }
    write_statistics(
        root / "fr-FR.fisher.safetensors", turned, kind="fisher", model=folder_signature(root / "fr-FR")
    )
    expected = bits(in_memory(measured_pool, "fisher", "fisher"))
    assert bits(streamed(reading(root, "fisher", "fisher"))) == expected


def test_of_rows_that_a_source_does_not_have_nothing_is_known(measured_pool: Path) -> None:
    plan = make_plan(reading(measured_pool, "fisher", "fisher"))
    words = next(one for one in plan.tensors if one.name == WORDS)
    rows = np.array([3, -1, 0, *range(4, 12), -1])
    inputs = TensorInputs(plan, replace(words, rows={"fr-FR": rows}))
    for start, stop in ((0, 12), (1, 3)):
        found = inputs.statistics(start * 6, stop * 6)
        for seed, own in enumerate(found):
            expected = numbers("fisher", seed)[WORDS]
            if seed == 1:
                expected = np.where(rows[:, None] < 0, 0, expected[rows])
            np.testing.assert_array_equal(own, expected[start:stop].reshape(-1))


@pytest.mark.parametrize("method", ["linear", "wudi", "gram", "regmean"])
def test_the_head_by_regmean(measured_pool: Path, tmp_path: Path, method: str) -> None:
    out = merge(reading(measured_pool, method, head="regmean"), tmp_path / "out")
    reads = method in ("gram", "regmean")
    own = reading(measured_pool, method) if reads else reading(measured_pool, method, statistics={})
    merged, plain = read_raw(out), streamed(own)
    known = [numbers("grams", seed) for seed in range(3)]
    base, loaded = read_raw(measured_pool / "base"), [read_raw(measured_pool / name) for name in SOURCES]
    for name, one in merged.items():
        if name in (HEAD, POOL):
            statistics = torch.stack([torch.from_numpy(own[name]) for own in known])
            stacked = torch.stack([own[name] for own in loaded])
            expected = METHODS["regmean"](
                base[name], stacked, torch.tensor(list(WEIGHTS.values())), statistics=statistics
            )
            assert torch.equal(one, expected)
            assert not torch.allclose(one, plain[name], atol=1e-3)
        elif name != "classifier.out_proj.bias" or method != "linear":
            assert torch.equal(one, plain[name]), name
    told = entries(out)
    assert told[HEAD]["treatment"] == "merged"
    assert told["classifier.out_proj.bias"]["treatment"] == "mean"
    assert told["classifier.out_proj.bias"]["reason"].startswith(
        "the recipe says head: regmean, which is for"
    )


def test_the_head_of_sources_whose_base_has_none(measured_pool: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(measured_pool, tmp_path / "pool"))
    body = {name: one for name, one in read_raw(root / "base").items() if not name.startswith("classifier")}
    write_raw(root / "base", body, labels=None)
    expected = streamed(reading(measured_pool, "wudi", head="regmean"))
    found = streamed(reading(root, "wudi", head="regmean"))
    assert torch.equal(found[HEAD], expected[HEAD])


def test_a_layer_in_which_all_agree_stays(measured_pool: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(measured_pool, tmp_path / "pool"))
    fixed = 0.5 * torch.eye(6)
    for name in ("base", *SOURCES):
        write_raw(root / name, {**read_raw(root / name), POOL: fixed})
    write_all(root, "grams")
    out = merge(reading(root, "regmean", head="regmean"), tmp_path / "out")
    assert torch.equal(read_raw(out)[POOL], fixed)
    assert entries(out)[POOL]["treatment"] == "unchanged"


def test_layers_share_one_gram(measured_pool: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(measured_pool, tmp_path / "pool"))
    for seed, name in enumerate(SOURCES):
        given = numbers("grams", seed)
        given[POOL] = given[QUERY]
        write_statistics(
            root / f"{name}.grams.safetensors", given, kind="grams", model=folder_signature(root / name)
        )
    twice = streamed(reading(root, "wudi", head="regmean"))
    hashes = [one.signature for one in make_plan(reading(root, "regmean")).statistics.values()]
    for seed, name in enumerate(SOURCES):
        given = numbers("grams", seed)
        del given[POOL]
        file, model = root / f"{name}.grams.safetensors", folder_signature(root / name)
        write_statistics(file, given, kind="grams", model=model, shared={POOL: QUERY})
    once = streamed(reading(root, "wudi", head="regmean"))
    assert bits(once) == bits(twice)
    # What is stored once or twice is the same statistics.
    assert [one.signature for one in make_plan(reading(root, "regmean")).statistics.values()] == hashes


def test_a_method_that_is_told_to_read_nothing_needs_nothing(measured_pool: Path) -> None:
    plan = make_plan(recipe_of(measured_pool, method="gram", parameters={"mix": 0}))
    assert not plan.statistics
    without = streamed(recipe_of(measured_pool, method="gram", parameters={"mix": 0}))
    assert bits(without) == bits(streamed(recipe_of(measured_pool, method="wudi")))
    given = reading(measured_pool, "gram", parameters={"mix": 0}, coefficients=None)
    assert bits(streamed(given)) == bits(without)


def test_receipt_signature_and_verify(measured_pool: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(measured_pool, tmp_path / "pool"))
    recipe = reading(root, "regmean")
    out = merge(recipe, tmp_path / "out")
    record = json.loads((out / "langmerge.json").read_text())
    files = files_of(root, "grams")
    assert record["hashes"]["statistics"] == {n: open_statistics(f).signature for n, f in files.items()}
    assert record["recipe"]["statistics"] == {n: str(f) for n, f in files.items()}
    assert record["signature"] == signature(recipe_payload(make_plan(recipe)))
    assert verify(out, sample=None).agrees
    # The same numbers made again elsewhere, with another note: the same merge.
    write_statistics(
        files["de-DE"], numbers("grams", 0), kind="grams", model=folder_signature(root / "de-DE"),
        metadata={"seconds": 3.5},
    )  # fmt: skip
    assert verify(out, sample=None).agrees
    write_statistics(
        files["de-DE"], numbers("grams", 9), kind="grams", model=folder_signature(root / "de-DE")
    )
    found = verify(out, sample=None)
    assert found.faults[0].startswith("the statistics of source de-DE have changed: their hash was ")
    assert {QUERY, DENSE} == set(found.differing)
    assert signature(recipe_payload(make_plan(recipe))) != record["signature"]


def test_a_recipe_without_statistics_is_recorded_as_before(raw_pool: Path) -> None:
    plan = make_plan(recipe_of(raw_pool))
    assert "statistics" not in plan.recipe
    assert "statistics" not in recipe_payload(plan)


def test_a_recipes_paths_start_at_its_folder(measured_pool: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(measured_pool, tmp_path / "pool"))
    lines = ["base: base", "method: regmean", "sources:", *(f"  {n}: {n}" for n in SOURCES), "statistics:"]
    lines += [f"  {name}: {name}.grams.safetensors" for name in SOURCES]
    (root / "recipe.yaml").write_text("\n".join(lines) + "\n")
    found = Recipe.load(root / "recipe.yaml")
    assert found.statistics == files_of(root, "grams")
    assert bits(streamed(found)) == bits(streamed(reading(root, "regmean", coefficients=None)))


def test_every_fault_at_once(measured_pool: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(measured_pool, tmp_path / "pool"))
    files = files_of(root, "grams")
    given = numbers("grams", 1)
    given[QUERY] = given[QUERY][:3]
    del given[DENSE]
    write_statistics(files["fr-FR"], given, kind="grams", model=folder_signature(root / "fr-FR"))
    found = faults_of(
        root, method="regmean", statistics={"fr-FR": files["fr-FR"], "xx": files["de-DE"]}, layers="7"
    )
    assert found[0] == (
        "regmean reads grams of every source, the recipe's statistics name none for de-DE, sw-KE: "
        "make them with langmerge learn gram"
    )
    assert found[1] == "statistics are given for xx, which is no source of the recipe"
    found = faults_of(root, method="regmean", statistics=files)
    assert f"have the shape (3, 6) for tensor {QUERY!r}, not (6, 6)" in found[0]
    assert (
        found[1]
        == f"the statistics of source fr-FR ({files['fr-FR']}) lack 1 tensors that are merged: {DENSE!r}"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "regmean", "kind": "fisher"}, "are of the kind fisher, regmean reads grams: make them with langmerge learn gram"),
        ({"method": "fisher", "kind": "grams"}, "are of the kind grams, fisher reads fisher: make them with langmerge learn fisher"),
        ({"method": "linear", "kind": "fisher", "head": "regmean"}, "of the kind fisher, head: regmean reads grams"),
        ({"method": "linear", "kind": "grams"}, "the recipe gives statistics, which linear does not read: leave them out"),
        ({"method": "fisher", "kind": "fisher", "head": "regmean"}, "fisher reads fisher and head: regmean reads grams, a recipe has one kind"),
        ({"method": "gram", "kind": None}, "gram reads grams of every source, the recipe's statistics name none for de-DE, fr-FR, sw-KE"),
        ({"method": "linear", "kind": None, "head": "regmean"}, "head: regmean reads grams of every source, the recipe's"),
        ({"method": "task_arithmetic", "kind": "grams", "head": "regmean", "coefficients": {"de-DE": -1, "fr-FR": 1, "sw-KE": 1}}, "regmean: weights [-1.0, 1.0, 1.0] include a negative one"),
        ({"method": "linear", "kind": "headless", "head": "regmean"}, "the statistics hold no Gram of a matrix of the head: say head: mean"),
        ({"method": "regmean", "kind": "other model"}, "were made for another model than "),
        ({"method": "regmean", "kind": "model"}, "holds no statistics of the format langmerge-statistics/1: make them with"),
        ({"method": "regmean", "kind": "nothing"}, "the statistics of source de-DE: "),
    ],
)  # fmt: skip
def test_faults(measured_pool: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    root = Path(shutil.copytree(measured_pool, tmp_path / "pool"))
    fields = dict(changes)
    kind = fields.pop("kind")
    files = files_of(root, kind) if kind in ("fisher", "grams") else files_of(root, "grams") if kind else {}
    if kind == "other model":
        write_all(root, "grams", model="0" * 12)
    elif kind == "model":
        files["de-DE"] = root / "base" / "model.safetensors"
    elif kind == "nothing":
        files["de-DE"] = root / "absent.safetensors"
    elif kind == "headless":
        for seed, name in enumerate(SOURCES):
            given: Mapping[str, Any] = {
                n: one for n, one in numbers("grams", seed).items() if n not in (HEAD, POOL)
            }
            write_statistics(files[name], given, kind="grams", model=folder_signature(root / name))
    found = faults_of(root, statistics=files, **fields)
    assert any(message in one for one in found), found
    assert len(found) == (3 if kind == "other model" or "of the kind" in message else 1), found


def test_broken_numbers_name_the_tensor(measured_pool: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(measured_pool, tmp_path / "pool"))
    given = numbers("fisher", 0)
    given[WORDS][3, 1] = -1
    write_statistics(
        root / "de-DE.fisher.safetensors", given, kind="fisher", model=folder_signature(root / "de-DE")
    )
    with pytest.raises(MethodError, match=rf"tensor '{WORDS}': fisher: the statistics hold NaN"):
        merge(reading(root, "fisher", "fisher"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_artefact_is_what_was_written(tmp_path: Path) -> None:
    given = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.ones((2, 2)), "none": np.ones((0, 3))}
    file = tmp_path / "one.safetensors"
    write_statistics(
        file,
        given,
        kind="grams",
        model="m" * 12,
        shared={"c": "a"},
        metadata={"rows": 3, "settings": {"x": [1]}},
    )
    found = open_statistics(file)
    assert (found.kind, found.model, list(found.tensors)) == ("grams", "m" * 12, ["a", "b", "c", "none"])
    assert (found.metadata["rows"], found.metadata["settings"]) == (3, {"x": [1]})
    for name, one in {**given, "c": given["a"]}.items():
        np.testing.assert_array_equal(found.array(name), one)
        assert found.array(name).dtype == one.dtype
    assert set(load_file(file)) == {"a", "b", "none"}
    assert [one.name for one in tmp_path.iterdir()] == ["one.safetensors"]


def signature_of(tmp_path: Path, **changes: Any) -> str:
    file = tmp_path / "x.safetensors"
    given = {"kind": "grams", "model": "m", "tensors": {"a": np.ones(2), "none": np.ones(0)}, **changes}
    write_statistics(file, given.pop("tensors"), **given)
    return open_statistics(file).signature


def test_the_signature_is_of_what_decides_a_merge(tmp_path: Path) -> None:
    first = signature_of(tmp_path)
    assert signature_of(tmp_path, metadata={"seconds": 2}) == first
    none = {"none": np.ones(0)}
    others = [
        {"kind": "fisher"}, {"model": "n"}, {"tensors": {"b": np.ones(2), **none}},
        {"tensors": {"a": np.array([1.0, 2.0]), **none}}, {"tensors": {"a": np.ones((2, 1)), **none}},
        {"tensors": {"a": np.ones(2)}}, {"tensors": {"z": np.ones(2), **none}},
        {"tensors": {"z": np.zeros(2), **none}},
    ]  # fmt: skip
    assert len({first, *(signature_of(tmp_path, **one) for one in others)}) == 9


def test_what_is_no_artefact_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="shares tensors that it does not hold"):
        signature_of(tmp_path, shared={"b": "c"})
    with pytest.raises(CheckpointError, match="holds no statistics of the format"):
        signature_of(tmp_path, kind="else")
    whole = tmp_path / "whole.safetensors"
    given = {"format": "langmerge-statistics/1", "kind": "grams", "model": "m"}
    save_file({"a": torch.ones(2, dtype=torch.int64)}, whole, metadata=given)
    with pytest.raises(CheckpointError, match="is not a floating-point tensor: make it again"):
        open_statistics(whole)
    with pytest.raises(OutputError, match=r"absent/x\.safetensors cannot be written: No such file"):
        write_statistics(tmp_path / "absent" / "x.safetensors", {}, kind="grams", model="m")
