"""What a merge makes of tensors."""

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from langmerge.coefficients import Coefficients, block_of, group_of
from langmerge.engine import make_plan, merge, merged_tensors
from langmerge.methods import METHODS, SPECS, checked_parameters
from langmerge.methods.mixing import mixing_of
from langmerge.recipe import Recipe
from tests.engine.conftest import SOURCES, bits, entries, recipe_of, streamed, ulps
from tests.tiny import (
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
    ("arcee_fusion", {}),
    ("breadcrumbs", {"density": 0.7, "gamma": 0.1}),
    ("breadcrumbs_ties", {"density": 0.7, "gamma": 0.1}),
    ("consensus", {"k": 2, "lambda_": 0.2}),
    ("dare_linear", {"density": [0.6, 0.7, 0.8], "seed": 3, "normalize": True}),
    ("dare_ties", {"density": 0.6, "seed": 3}),
    ("della_linear", {"density": 0.6, "epsilon": 0.2, "seed": 3}),
    ("della_ties", {"density": 0.6, "epsilon": 0.2, "seed": 3}),
    ("directional_consensus", {"alpha": 0.4}),
    ("iso_c", {}),
    ("iso_cts", {"common_share": 0.5}),
    ("karcher", {}),
    ("karcher", {"about": "base"}),
    ("layer_swap", {"bottom": 1, "top": 0, "transition": 1}),
    ("linear", {}),
    ("linear", {"normalize": False}),
    ("model_stock", {}),
    ("model_stock", {"filter_wise": True}),
    ("multislerp", {}),
    ("multislerp", {"about": "base"}),
    ("nearswap", {"t": 0.05}),
    ("neuromerging", {"mask": 0.3}),
    ("nuslerp", {}),
    ("nuslerp", {"flatten": False, "about": "base"}),
    ("passthrough", {"scale": 1.1}),
    ("pcb", {"ratio": 0.4}),
    ("ram", {}),
    ("ramplus", {"r": 0.3}),
    ("sce", {"topk": 0.5}),
    ("slerp", {}),
    ("slerp", {"t": 0.3}),
    ("task_arithmetic", {"scale": 0.7}),
    ("ties", {"density": 0.3}),
    ("ties", {"density": [0.2, 0.3, 0.4], "normalize": False}),
    ("ties", {"density": 0.3, "scope": "model", "election": "count"}),
    ("tsv_m", {}),
    ("wudi", {"ridge": 0.2}),
]
CHANGED = {"arcee_fusion": 8, "consensus": 5, "model_stock": 2, "pcb": 5}
"""Tensors that change, where some do not: by random deltas, which share no direction, the base stays."""

WEIGHTS = {"de-DE": 0.5, "fr-FR": 0.2, "sw-KE": 0.4}


def case_recipe(root: Path, method: str, parameters: dict[str, Any], **changes: Any) -> Recipe:
    names = SOURCES[: SPECS[method].sources[1]]
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
    return float(magnitudes.sort(descending=True).values[max(1, int(density * len(magnitudes))) - 1])


def in_memory(recipe: Recipe) -> Tensors:
    """The merge by METHODS on tensors that were loaded whole."""
    base = read_raw(Path(recipe.base))
    names = sorted(recipe.sources)
    loaded = {name: read_raw(Path(recipe.sources[name])) for name in names}
    parameters = dict(recipe.parameters)
    matrices = SPECS[recipe.method].matrices
    # Weights are divided by their sum in float64 where dividing is all there is to it.
    divides = ("linear", "dare_linear", "della_linear", "breadcrumbs")
    ahead = recipe.method in divides and parameters.get("normalize", recipe.method == "linear")
    known: dict[str, Any] = {}
    if parameters.pop("scope", "tensor") == "model":
        density = parameters["density"]
        bounds = [[whole_model_threshold(base, loaded[name], density)] for name in names]
        known = {"thresholds": torch.tensor(bounds)}
    merged = {}
    for tensor, own in base.items():
        row = recipe.weights.for_tensor(tensor)
        weights = [row[name] for name in names]
        shared = torch.tensor([weight / sum(weights) for weight in weights])
        stacked = torch.stack([loaded[name][tensor] for name in names])
        if matrices and (group_of(tensor) in ("embeddings", "head") or own.ndim != 2):
            merged[tensor] = METHODS["linear"](own, stacked, shared, normalize=False)
            continue
        method = METHODS[recipe.method]
        outside = -1 if group_of(tensor) == "embeddings" else 2
        block = block_of(tensor)
        more = {"key": tensor, "sources": names, "block": outside if block is None else block, "blocks": 2}
        more |= ({"normalize": False} if ahead else {}) | ({"known": known} if known else {})
        taken = {key: one for key, one in more.items() if key in inspect.signature(method).parameters}
        used = shared if ahead else torch.tensor(weights)
        merged[tensor] = method(own, stacked, used, **{**parameters, **taken})
    return merged


def test_the_cases_cover_every_method() -> None:
    # Those that read statistics are in test_statistics.
    assert {method for method, _ in CASES} == {name for name in METHODS if SPECS[name].statistics is None}


@pytest.mark.parametrize(("method", "parameters"), CASES)
def test_streamed_is_in_memory(raw_pool: Path, method: str, parameters: dict[str, Any]) -> None:
    recipe = case_recipe(raw_pool, method, parameters)
    found, expected = streamed(recipe), in_memory(recipe)
    assert found.keys() == expected.keys()
    # Dot products may be added up in another order, and coefficients that follow from them differ in their last bit.
    allowed = 1 if mixing_of(method, checked_parameters(method, parameters)) else 0
    for name, one in found.items():
        assert ulps(one, expected[name]) <= allowed, name
    changed = [
        name for name, base in read_raw(raw_pool / "base").items() if not torch.equal(found[name], base)
    ]
    assert len(changed) >= CHANGED.get(method, len(SHAPES))


@pytest.mark.parametrize(("method", "parameters"), CASES)
def test_shards_threads_and_order_change_no_byte(
    raw_pool: Path, tmp_path: Path, method: str, parameters: dict[str, Any]
) -> None:
    recipe = case_recipe(raw_pool, method, parameters)
    expected = bits(streamed(recipe))
    ordered = parameters.get("t") is not None or method == "layer_swap"
    order = list(recipe.sources) if ordered else list(recipe.sources)[::-1]
    backwards = case_recipe(
        raw_pool,
        method,
        {key: one[::-1] if isinstance(one, list) else one for key, one in parameters.items()},
        sources={name: raw_pool / name for name in order},
        coefficients={name: WEIGHTS[name] for name in order},
    )
    records = set()
    for number, (one, max_shard, threads) in enumerate([(recipe, 10**9, 1), (backwards, 200, 5)]):
        out = merge(one, tmp_path / str(number), max_shard=max_shard, threads=threads)
        assert bits(read_raw(out)) == expected
        record = json.loads((out / "langmerge.json").read_text())
        records.add(json.dumps({key: one for key, one in record.items() if key != "recipe"}))
    assert len(records) == 1


@pytest.mark.parametrize(
    ("method", "tensors"), [("directional_consensus", 8), ("slerp", 8), ("ties", 1), ("wudi", 2)]
)
def test_torchs_threads_change_no_byte_of_large_tensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, tensors: int
) -> None:
    """Sums over a tensor are cut among threads only from 32,768 entries on, and may then round differently."""
    monkeypatch.setenv("LANGMERGE_KERNELS", "torch")
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
        largest = tau.abs().topk(int(0.25 * len(tau))).indices
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


def test_one_sources_embeddings_and_head_are_copied(own_pool: Path) -> None:
    tensors = read_raw(own_pool / "fr-FR")
    tensors[WORDS][0, :2] = torch.tensor([-0.0, 1e-45])  # arithmetic would lose the sign
    write_raw(own_pool / "fr-FR", tensors)
    said = {"embeddings": "source:fr-FR", "head": "source:sw-KE"}
    found = streamed(recipe_of(own_pool, method="task_arithmetic", **said))
    plain = streamed(recipe_of(own_pool, method="task_arithmetic"))
    swahili = read_raw(own_pool / "sw-KE")
    expected = {
        name: tensors[name]
        if "embeddings" in name
        else swahili[name]
        if "classifier" in name
        else plain[name]
        for name in SHAPES
    }
    assert bits(found) == bits(expected)


def test_one_sources_head_comes_in_the_bases_order_of_labels(own_pool: Path) -> None:
    expected = read_raw(own_pool / "sw-KE")
    moved, labels = permuted(expected, LABELS, (2, 0, 1))
    write_raw(own_pool / "sw-KE", moved, labels=labels)
    found = streamed(recipe_of(own_pool, head="source:sw-KE"))
    heads = {name: one for name, one in expected.items() if "classifier" in name}
    assert bits({name: found[name] for name in heads}) == bits(heads)


@pytest.mark.parametrize("other", ["base", "mean", "source:fr-FR"])
@pytest.mark.parametrize("layers", ["1", "0-1"])
def test_some_layers(raw_pool: Path, layers: str, other: str) -> None:
    method = {"method": "ties", "parameters": {"density": 0.3}}
    found = streamed(recipe_of(raw_pool, **method, layers=layers, other_layers=other))
    whole, linear = streamed(recipe_of(raw_pool, **method)), streamed(recipe_of(raw_pool))
    others = {
        "base": read_raw(raw_pool / "base"),
        "mean": linear,
        "source:fr-FR": read_raw(raw_pool / "fr-FR"),
    }
    for name, one in found.items():
        outside = layers == "1" and ".layer.0." in name
        assert torch.equal(one, (others[other] if outside else whole)[name]), name


def test_a_part_copied_in_a_shorter_dtype(own_pool: Path, tmp_path: Path) -> None:
    said = {"embeddings": "source:fr-FR", "head": "base", "layers": "1", "dtype": "F16"}
    found = read_raw(merge(recipe_of(own_pool, method="ties", **said), tmp_path / "out"))
    french, base = read_raw(own_pool / "fr-FR"), read_raw(own_pool / "base")
    for name in SHAPES:
        if "layer.1" not in name:
            expected = (french if "embeddings" in name else base)[name].to(torch.float16)
            assert torch.equal(found[name], expected), name


def test_numbers_per_source_reach_their_source(raw_pool: Path) -> None:
    """Only sw-KE is trimmed, wherever it stands."""
    expected = streamed(recipe_of(raw_pool, method="ties", parameters={"density": [1.0, 1.0, 0.2]}))
    backwards = {name: raw_pool / name for name in reversed(SOURCES)}
    found = streamed(
        recipe_of(raw_pool, method="ties", sources=backwards, parameters={"density": [0.2, 1.0, 1.0]})
    )
    assert bits(found) == bits(expected)
    other = streamed(recipe_of(raw_pool, method="ties", parameters={"density": [0.2, 1.0, 1.0]}))
    assert bits(other) != bits(expected)


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


def test_a_merge_of_one_source_is_that_source(raw_pool: Path) -> None:
    recipe = recipe_of(raw_pool, sources={"fr-FR": raw_pool / "fr-FR"})
    assert bits(streamed(recipe)) == bits(read_raw(raw_pool / "fr-FR"))


def test_scalars_and_empty_tensors_are_merged(own_pool: Path, tmp_path: Path) -> None:
    for place, name in enumerate(("base", *SOURCES)):
        more = {"roberta.scale": torch.tensor(float(place)), "roberta.none": torch.zeros(0, 6)}
        write_raw(own_pool / name, {**read_raw(own_pool / name), **more})
    for number, (method, parameters) in enumerate(CASES):
        out = merge(case_recipe(own_pool, method, parameters), tmp_path / str(number))
        found = read_raw(out)
        assert found["roberta.scale"].shape == ()
        assert found["roberta.none"].shape == (0, 6)
        if method == "linear" and not parameters:
            assert float(found["roberta.scale"]) == pytest.approx((0.5 * 1 + 0.2 * 2 + 0.4 * 3) / 1.1)


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
