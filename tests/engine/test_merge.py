"""What a merge writes, from raw folders."""

import hashlib
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from langmerge.coefficients import Coefficients, group_of
from langmerge.engine import make_plan, merge, merged_tensors
from langmerge.errors import CheckpointError, OutputError
from langmerge.methods import METHODS
from langmerge.recipe import Recipe
from tests.engine.conftest import SOURCES, recipe_of
from tests.tiny import (
    BUFFER,
    HEAD,
    LABELS,
    QUERY,
    SHAPES,
    WORDS,
    Tensors,
    drawn,
    permuted,
    read_raw,
    tuned,
    write_raw,
)

CASES: list[tuple[str, dict[str, Any]]] = [
    ("dare_ties", {"density": 0.6, "seed": 3}),
    ("directional_consensus", {"alpha": 0.4}),
    ("linear", {}),
    ("linear", {"normalize": False}),
    ("slerp", {}),
    ("slerp", {"t": 0.3}),
    ("task_arithmetic", {"scale": 0.7}),
    ("ties", {"density": 0.3}),
    ("ties", {"density": 0.3, "scope": "model", "election": "count"}),
    ("wudi", {"ridge": 0.2}),
]
WEIGHTS = {"de-DE": 0.5, "fr-FR": 0.2, "sw-KE": 0.4}


def case_recipe(root: Path, method: str, parameters: dict[str, Any], **changes: Any) -> Recipe:
    names = SOURCES[:2] if method == "slerp" else SOURCES
    fields = {
        "method": method,
        "parameters": parameters,
        "sources": {name: root / name for name in names},
        "coefficients": {name: WEIGHTS[name] for name in names},
    }
    return recipe_of(root, **{**fields, **changes})


def whole_model_threshold(base: Tensors, source: Tensors, density: float) -> float:
    """By sorting every entry of the task vector."""
    magnitudes = torch.cat([(source[name] - base[name]).abs().flatten() for name in base])
    return float(magnitudes.sort(descending=True).values[round(density * len(magnitudes)) - 1])


def in_memory(recipe: Recipe) -> Tensors:
    """The merge by METHODS on tensors that were loaded whole."""
    base = read_raw(Path(recipe.base))
    names = sorted(recipe.sources)
    loaded = {name: read_raw(Path(recipe.sources[name])) for name in names}
    parameters = dict(recipe.parameters)
    scope = parameters.pop("scope", "tensor")
    merged = {}
    for tensor, own in base.items():
        row = recipe.weights.for_tensor(tensor)
        weights = torch.tensor([row[name] for name in names])
        stacked = torch.stack([loaded[name][tensor] for name in names])
        more: dict[str, Any] = {}
        if recipe.method == "dare_ties":
            more = {"key": tensor, "sources": names}
        if scope == "model":
            density = parameters["density"]
            more["thresholds"] = torch.tensor(
                [whole_model_threshold(base, loaded[name], density) for name in names]
            )
        if recipe.method == "wudi" and (group_of(tensor) in ("embeddings", "head") or own.ndim != 2):
            merged[tensor] = METHODS["linear"](own, stacked, weights)
        else:
            merged[tensor] = METHODS[recipe.method](own, stacked, weights, **parameters, **more)
    return merged


def bits(tensors: Tensors) -> dict[str, tuple[torch.dtype, bytes]]:
    return {
        name: (one.dtype, one.contiguous().flatten().view(torch.uint8).numpy().tobytes())
        for name, one in tensors.items()
    }


def streamed(recipe: Recipe) -> Tensors:
    return {one.plan.name: one.tensor for one in merged_tensors(make_plan(recipe))}


def entries(out: Path) -> dict[str, dict[str, Any]]:
    record = json.loads((out / "langmerge.json").read_text())
    return {entry["tensor"]: entry for entry in record["tensors"]}


def test_the_cases_cover_every_method() -> None:
    assert {method for method, _ in CASES} == METHODS.keys()


@pytest.mark.parametrize(("method", "parameters"), CASES)
def test_streamed_is_in_memory(raw_pool: Path, method: str, parameters: dict[str, Any]) -> None:
    recipe = case_recipe(raw_pool, method, parameters)
    found, expected = streamed(recipe), in_memory(recipe)
    assert bits(found) == bits(expected)
    for name, base in read_raw(raw_pool / "base").items():
        assert not torch.equal(found[name], base)


@pytest.mark.parametrize(("method", "parameters"), CASES)
def test_shards_threads_and_order_change_no_byte(
    raw_pool: Path, tmp_path: Path, method: str, parameters: dict[str, Any]
) -> None:
    recipe = case_recipe(raw_pool, method, parameters)
    expected = bits(streamed(recipe))
    order = list(recipe.sources) if parameters.get("t") is not None else list(recipe.sources)[::-1]
    backwards = case_recipe(
        raw_pool,
        method,
        parameters,
        sources={name: raw_pool / name for name in order},
        coefficients={name: WEIGHTS[name] for name in order},
    )
    records = set()
    for number, (one, max_shard, threads) in enumerate(
        [(recipe, 10**9, 1), (recipe, 200, 2), (backwards, 1, 1), (backwards, 300, 2)]
    ):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            out = merge(one, tmp_path / str(number), max_shard=max_shard)
        finally:
            torch.set_num_threads(before)
        assert bits(read_raw(out)) == expected
        record = json.loads((out / "langmerge.json").read_text())
        records.add(json.dumps([record["tensors"], record["signature"], record["norm_ratio"]]))
    assert len(records) == 1


@pytest.mark.parametrize(
    ("method", "tensors"), [("directional_consensus", 8), ("slerp", 8), ("ties", 1), ("wudi", 2)]
)
def test_threads_change_no_byte_of_large_tensors(tmp_path: Path, method: str, tensors: int) -> None:
    """Sums over a tensor are cut among threads only from 32,768 entries on, and may then round differently."""
    base = drawn(1, shapes={f"encoder.layer.{layer}.weight": (200, 200) for layer in range(tensors)})
    write_raw(tmp_path / "base", base)
    for seed, name in enumerate(SOURCES):
        write_raw(tmp_path / name, tuned(base, seed, scale=0.01))
    recipe = case_recipe(tmp_path, method, {})
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(bits(streamed(recipe)))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1]


def test_ties_over_the_whole_model_by_brute_force(raw_pool: Path) -> None:
    """Trim, elect and merge one long vector, entry by entry."""
    recipe = case_recipe(raw_pool, "ties", {"density": 0.25, "scope": "model"})
    base = read_raw(raw_pool / "base")
    names = sorted(base)
    long_base = torch.cat([base[name].flatten() for name in names])
    kept = []
    for source in SOURCES:
        tensors = read_raw(raw_pool / source)
        tau = torch.cat([tensors[name].flatten() for name in names]) - long_base
        largest = tau.abs().topk(round(0.25 * len(tau))).indices
        trimmed = torch.zeros_like(tau)
        trimmed[largest] = tau[largest]
        kept.append(trimmed.tolist())
    expected = []
    for start, *entry in zip(long_base.tolist(), *kept, strict=True):
        weighted = list(zip(WEIGHTS.values(), entry, strict=True))
        vote = sum(weight * value for weight, value in weighted)
        agreeing = [(weight, value) for weight, value in weighted if value * vote > 0]
        total = sum(weight for weight, _ in agreeing)
        expected.append(start + (sum(w * v for w, v in agreeing) / total if agreeing else 0.0))
    found = streamed(recipe)
    long_found = torch.cat([found[name].flatten() for name in names])
    torch.testing.assert_close(long_found, torch.tensor(expected), rtol=1e-6, atol=1e-6)
    unequal = [float((found[name] != base[name]).float().mean()) for name in names]
    assert max(unequal) - min(unequal) > 0.2, "trimmed per tensor, every tensor would move alike"


@pytest.mark.parametrize("group", ["tensor:" + QUERY, "block:0", "embeddings", "head", "model"])
def test_coefficients_reach_their_tensors(raw_pool: Path, group: str) -> None:
    """One source has all the weight in one group, and another one elsewhere."""
    german = {"de-DE": 1.0, "fr-FR": 0.0, "sw-KE": 0.0}
    swahili = {"de-DE": 0.0, "fr-FR": 0.0, "sw-KE": 1.0}
    recipe = recipe_of(raw_pool, coefficients=Coefficients(values={"model": german, group: swahili}))
    found = streamed(recipe)
    sources = {name: read_raw(raw_pool / name) for name in SOURCES}
    for name, one in found.items():
        here = group in (f"tensor:{name}", group_of(name), "model")
        assert torch.equal(one, sources["sw-KE" if here else "de-DE"][name]), name


def test_the_embeddings_of_the_base(raw_pool: Path) -> None:
    found = streamed(recipe_of(raw_pool, embeddings="base"))
    base, linear = read_raw(raw_pool / "base"), streamed(recipe_of(raw_pool))
    for name, one in found.items():
        assert torch.equal(one, (base if "embeddings" in name else linear)[name])


@pytest.mark.parametrize(("policy", "part"), [("embeddings", "embeddings"), ("head", "classifier")])
def test_the_mean_of_embeddings_or_head(raw_pool: Path, policy: str, part: str) -> None:
    method = {"method": "ties", "parameters": {"density": 0.3}}
    found = streamed(recipe_of(raw_pool, **method, **{policy: "mean"}))
    whole, linear = streamed(recipe_of(raw_pool, **method)), streamed(recipe_of(raw_pool))
    for name, one in found.items():
        assert torch.equal(one, (linear if part in name else whole)[name])


def test_a_tensor_that_nobody_moved_is_left_and_said_so(own_pool: Path, tmp_path: Path) -> None:
    words = read_raw(own_pool / "base")[WORDS]
    for name in SOURCES:
        write_raw(own_pool / name, {**read_raw(own_pool / name), WORDS: words})
    out = merge(recipe_of(own_pool), tmp_path / "out")
    assert torch.equal(read_raw(out)[WORDS], words)
    assert entries(out)[WORDS]["treatment"] == "unchanged"
    assert entries(out)[WORDS]["reason"] == "the same in the base and every source"
    # Σ w_i θ_i without normalisation is another tensor even then.
    recipe = recipe_of(own_pool, parameters={"normalize": False}, coefficients=dict.fromkeys(SOURCES, 1.0))
    assert torch.equal(streamed(recipe)[WORDS], 3 * words)


def test_integers_are_copied_exactly(own_pool: Path, tmp_path: Path) -> None:
    large = (1 << 53) + 1  # neither float32 nor float64 can hold it
    for place, name in enumerate(("base", *SOURCES)):
        tensors = {**read_raw(own_pool / name), BUFFER: torch.tensor([[large + place, 0]])}
        write_raw(own_pool / name, tensors)
    out = merge(recipe_of(own_pool), tmp_path / "out")
    assert read_raw(out)[BUFFER].tolist() == [[large, 0]]
    assert entries(out)[BUFFER]["treatment"] == "base"


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_the_dtype_of_the_output(own_pool: Path, tmp_path: Path, dtype: str) -> None:
    for name in ("base", *SOURCES):
        write_raw(own_pool / name, {**read_raw(own_pool / name), BUFFER: torch.tensor([[1, 2]])})
    short = {"F16": torch.float16, "BF16": torch.bfloat16}[dtype]
    out = merge(recipe_of(own_pool, dtype=dtype), tmp_path / "out")
    whole = streamed(recipe_of(own_pool))
    found = read_raw(out)
    assert found.pop(BUFFER).dtype == torch.int64
    assert bits(found) == bits({name: whole[name].to(short) for name in SHAPES})
    assert json.loads((out / "config.json").read_text())["dtype"] == str(short).removeprefix("torch.")


def test_short_inputs_are_merged_in_float32(own_pool: Path, tmp_path: Path) -> None:
    for name in ("base", *SOURCES):
        short = {key: one.to(torch.bfloat16) for key, one in read_raw(own_pool / name).items()}
        write_raw(own_pool / name, short, dtype="bfloat16")
    out = merge(recipe_of(own_pool, method="task_arithmetic"), tmp_path / "out")
    base, sources = read_raw(own_pool / "base"), [read_raw(own_pool / name) for name in SOURCES]
    for name, one in read_raw(out).items():
        third = torch.tensor(1 / 3)
        delta = sum((third * (source[name].float() - base[name].float()) for source in sources), start=0.0)
        assert torch.equal(one, (base[name].float() + delta).to(torch.bfloat16))


def test_the_config_says_what_is_stored(own_pool: Path, tmp_path: Path) -> None:
    """The config's donor may be a source that was stored shorter than the base."""
    head = [name for name in SHAPES if name.startswith("classifier")]
    base = {name: one for name, one in read_raw(own_pool / "base").items() if name not in head}
    write_raw(own_pool / "base", base, labels=None)
    for name in SOURCES:
        tensors = {
            key: one if key in head else one.to(torch.bfloat16)
            for key, one in read_raw(own_pool / name).items()
        }
        write_raw(own_pool / name, tensors, torch_dtype="bfloat16")
    out = merge(recipe_of(own_pool), tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    assert {one.dtype for one in read_raw(out).values()} == {torch.float32}
    assert config["dtype"] == "float32"
    assert "torch_dtype" not in config


def test_label_rows_are_matched_by_name(own_pool: Path, tmp_path: Path) -> None:
    expected = bits(streamed(recipe_of(own_pool, method="ties", parameters={"density": 0.5})))
    for name, order in (("de-DE", (2, 0, 1)), ("sw-KE", (1, 0, 2))):
        moved, labels = permuted(read_raw(own_pool / name), LABELS, order)
        write_raw(own_pool / name, moved, labels=labels)
    out = merge(recipe_of(own_pool, method="ties", parameters={"density": 0.5}), tmp_path / "out")
    assert bits(read_raw(out)) == expected
    config = json.loads((out / "config.json").read_text())
    assert config["id2label"] == {"0": "alarm", "1": "music", "2": "rain"}
    assert config["label2id"] == {"alarm": 0, "music": 1, "rain": 2}
    assert json.loads((out / "langmerge.json").read_text())["label_rows_permuted"] == ["de-DE", "sw-KE"]


def test_the_base_decides_the_order_of_labels(own_pool: Path, tmp_path: Path) -> None:
    plain = streamed(recipe_of(own_pool))
    moved, labels = permuted(read_raw(own_pool / "base"), LABELS, (2, 0, 1))
    write_raw(own_pool / "base", moved, labels=labels)
    out = merge(recipe_of(own_pool), tmp_path / "out")
    assert json.loads((out / "config.json").read_text())["id2label"] == dict(zip("012", labels, strict=True))
    assert torch.equal(read_raw(out)[HEAD], plain[HEAD][[2, 0, 1]])
    assert torch.equal(read_raw(out)[QUERY], plain[QUERY])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_in_a_source_is_an_error_and_nothing_is_written(
    own_pool: Path, tmp_path: Path, bad: float
) -> None:
    tensors = read_raw(own_pool / "fr-FR")
    tensors[QUERY][2, 3] = bad
    write_raw(own_pool / "fr-FR", tensors)
    out = tmp_path / "made" / "out"
    with pytest.raises(CheckpointError, match=rf"{QUERY}.*fr-FR/model.safetensors holds NaN") as caught:
        merge(recipe_of(own_pool), out)
    assert "\n" not in str(caught.value)
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize("changes", [{}, {"embeddings": "base"}])
def test_nan_in_the_base_is_an_error(own_pool: Path, tmp_path: Path, changes: dict[str, str]) -> None:
    tensors = read_raw(own_pool / "base")
    tensors[WORDS][0, 0] = float("nan")
    write_raw(own_pool / "base", tensors)
    with pytest.raises(CheckpointError, match=rf"{WORDS}.*base/model.safetensors holds NaN"):
        merge(recipe_of(own_pool, method="task_arithmetic", **changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_merge_that_overflows_is_an_error(raw_pool: Path, tmp_path: Path) -> None:
    recipe = recipe_of(raw_pool, method="task_arithmetic", parameters={"scale": 1e39})
    with pytest.raises(CheckpointError, match="gave NaN or infinity: the coefficients or parameters are too"):
        merge(recipe, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_output_stays_unless_overwriting(raw_pool: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("old")
    with pytest.raises(OutputError, match="exists already"):
        merge(recipe_of(raw_pool), out)
    assert [path.name for path in out.iterdir()] == ["mine"]
    assert merge(recipe_of(raw_pool), str(out), overwrite=True) == out
    assert not (out / "mine").exists()
    assert read_raw(out).keys() == SHAPES.keys()


def test_a_failed_merge_leaves_the_old_output(own_pool: Path, tmp_path: Path) -> None:
    out = merge(recipe_of(own_pool), tmp_path / "out")
    before = (out / "model.safetensors").read_bytes()
    write_raw(
        own_pool / "sw-KE", {name: one * float("nan") for name, one in read_raw(own_pool / "sw-KE").items()}
    )
    with pytest.raises(CheckpointError):
        merge(recipe_of(own_pool), out, overwrite=True)
    assert (out / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("place", ["fr-FR", "base", "."])
def test_the_inputs_are_never_overwritten(own_pool: Path, place: str) -> None:
    with pytest.raises(OutputError, match=r"output .* holds the input .*: choose another place"):
        merge(recipe_of(own_pool), own_pool / place, overwrite=True)
    assert read_raw(own_pool / "fr-FR").keys() == SHAPES.keys()


def test_the_inputs_weights_stay_as_they_are(own_pool: Path, tmp_path: Path) -> None:
    def hashes() -> dict[str, str]:
        return {
            str(file): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in own_pool.rglob("*")
            if file.is_file() and not file.name.startswith(".")
        }

    before = hashes()
    merge(recipe_of(own_pool), tmp_path / "out")
    assert hashes() == before


KILLED = """
import os, signal, sys
from contextlib import contextmanager
from pathlib import Path
from langmerge.engine import merge
from langmerge.recipe import Recipe
@contextmanager
def progress(description, total):
    done = []
    def advance(n):
        done.append(n)
        if len(done) == 4:
            os.kill(os.getpid(), signal.SIGKILL)
    yield advance
merge(Recipe.load(sys.argv[1]), sys.argv[2], max_shard=1, progress=progress)
"""


def test_a_killed_merge_leaves_no_output(raw_pool: Path, tmp_path: Path) -> None:
    listed = "".join(f"  {name}: {raw_pool / name}\n" for name in SOURCES)
    (tmp_path / "recipe.yaml").write_text(f"base: {raw_pool / 'base'}\nsources:\n{listed}method: linear\n")
    command = [sys.executable, "-c", KILLED, str(tmp_path / "recipe.yaml"), str(tmp_path / "out")]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    assert merge(Recipe.load(tmp_path / "recipe.yaml"), tmp_path / "out").is_dir()


def test_progress_reaches_its_total(raw_pool: Path, tmp_path: Path) -> None:
    told: list[Any] = []

    @contextmanager
    def progress(description: str, total: int) -> Iterator[Any]:
        told.append((description, total))
        yield lambda finished: told.append(finished)
        told.append("closed")

    merge(recipe_of(raw_pool), tmp_path / "out", progress=progress)
    assert told == [("merging by linear", 9), *[1] * 9, "closed"]


def test_files_beside_the_weights_come_along(own_pool: Path, tmp_path: Path) -> None:
    (own_pool / "base" / "generation_config.json").write_text('{"from": "base"}')
    for name in ("de-DE", "fr-FR"):
        (own_pool / name / "generation_config.json").write_text('{"from": "source"}')
        (own_pool / name / "vocab.txt").write_text(name)
    (own_pool / "base" / "notes.txt").write_text("not a model's file")
    out = merge(recipe_of(own_pool), tmp_path / "out")
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md", "config.json", "generation_config.json", "langmerge.json", "model.safetensors", "vocab.txt",
    ]  # fmt: skip
    assert json.loads((out / "generation_config.json").read_text()) == {"from": "base"}
    assert (out / "vocab.txt").read_text() == "de-DE"


def test_a_merge_of_one_source_is_that_source(raw_pool: Path) -> None:
    recipe = recipe_of(raw_pool, sources={"fr-FR": raw_pool / "fr-FR"})
    assert bits(streamed(recipe)) == bits(read_raw(raw_pool / "fr-FR"))


def test_scalars_and_empty_tensors_are_merged(own_pool: Path, tmp_path: Path) -> None:
    for place, name in enumerate(("base", *SOURCES)):
        more = {"roberta.scale": torch.tensor(float(place)), "roberta.none": torch.zeros(0, 6)}
        write_raw(own_pool / name, {**read_raw(own_pool / name), **more})
    for number, (method, parameters) in enumerate(CASES):
        if method == "slerp":
            continue
        out = merge(case_recipe(own_pool, method, parameters), tmp_path / str(number))
        found = read_raw(out)
        assert found["roberta.scale"].shape == ()
        assert found["roberta.none"].shape == (0, 6)
        if method == "linear" and not parameters:
            assert float(found["roberta.scale"]) == pytest.approx((0.5 * 1 + 0.2 * 2 + 0.4 * 3) / 1.1)


def test_a_place_that_cannot_be_written(raw_pool: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is not a folder"):
        merge(recipe_of(raw_pool), tmp_path / "file" / "out")


def test_sources_may_be_sharded(own_pool: Path, tmp_path: Path) -> None:
    expected = bits(streamed(recipe_of(own_pool)))
    tensors, names = read_raw(own_pool / "fr-FR"), sorted(SHAPES)
    shutil.rmtree(own_pool / "fr-FR")
    write_raw(own_pool / "fr-FR", tensors, shards=[names[:2], names[2:]])
    assert bits(streamed(recipe_of(own_pool))) == expected
    out = merge(recipe_of(own_pool), tmp_path / "out", max_shard=100)
    assert len(list(out.glob("*.safetensors"))) > 3
    again = recipe_of(own_pool, sources={"merged": out, "de-DE": own_pool / "de-DE"})
    assert streamed(again).keys() == SHAPES.keys()


def test_tensors_come_in_the_order_of_their_names(raw_pool: Path) -> None:
    assert [one.plan.name for one in merged_tensors(make_plan(recipe_of(raw_pool)))] == sorted(SHAPES)


def test_norms_are_those_of_the_deltas(raw_pool: Path) -> None:
    base, sources = read_raw(raw_pool / "base"), [read_raw(raw_pool / name) for name in SOURCES]

    def norm(one: Tensor) -> float:
        return float((one.double() ** 2).sum() ** 0.5)

    for one in merged_tensors(make_plan(recipe_of(raw_pool))):
        name = one.plan.name
        assert one.delta_norm == pytest.approx(norm(one.tensor - base[name]), rel=1e-6)
        mean = sum(norm(source[name] - base[name]) for source in sources) / 3
        assert one.mean_source_norm == pytest.approx(mean, rel=1e-6)
