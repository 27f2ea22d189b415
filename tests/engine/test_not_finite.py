"""NaN and infinity, in the inputs or in the result, are errors that name the tensor."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from langmerge.checkpoint import open_checkpoint
from langmerge.engine import merge
from langmerge.errors import CheckpointError
from tests.engine.conftest import SOURCES, case_recipe
from tests.tiny import QUERY, WORDS, read_raw, write_raw


def spoilt(folder: Path, name: str, place: int, value: float) -> None:
    tensors = read_raw(folder)
    tensors[name].view(-1)[place] = value
    write_raw(folder, tensors)


PLACES = {"first": 0, "middle": 130, "last": -1}


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("kernels", ["", "torch"])
@pytest.mark.parametrize("victim", ["base", "de-DE", "fr-FR"])
@pytest.mark.parametrize(
    "method", ["linear", "ties", "dare_linear", "dare_ties", "slerp", "multislerp", "model_stock"]
)
def test_nan_anywhere_is_an_error_that_names_tensor_and_file(
    own_wide_pool: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    victim: str,
    kernels: str,
) -> None:
    monkeypatch.setenv("LANGMERGE_KERNELS", kernels)
    clean = (own_wide_pool / victim / "model.safetensors").read_bytes()
    for bad, place in zip((np.nan, np.inf, -np.inf), PLACES.values(), strict=True):
        spoilt(own_wide_pool / victim, QUERY, place, bad)
        # No weight lets it pass.
        weights = dict(zip(SOURCES, (0.0, 0.4, 0.6), strict=True)) if method == "ties" else None
        with pytest.raises(CheckpointError, match=rf"{QUERY}.*{victim}/model.safetensors holds NaN"):
            merge(case_recipe(own_wide_pool, method, coefficients=weights), tmp_path / "out")
        assert [path.name for path in tmp_path.iterdir()] == ["pool"]
        (own_wide_pool / victim / "model.safetensors").write_bytes(clean)


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize(
    ("method", "changes", "tensor", "victim"),
    [
        ("della_ties", {}, QUERY, "fr-FR"),
        ("sce", {}, WORDS, "base"),
        ("neuromerging", {}, QUERY, "sw-KE"),
        ("wudi", {}, QUERY, "base"),
        ("wudi", {}, QUERY, "sw-KE"),
        ("wudi", {}, WORDS, "sw-KE"),
        ("ties", {"embeddings": "base"}, WORDS, "base"),
        ("ties", {"embeddings": "source:fr-FR"}, WORDS, "fr-FR"),
        ("ties", {"embeddings": "mean"}, WORDS, "de-DE"),
        ("ties", {"parameters": {"scope": "model"}}, WORDS, "de-DE"),
        ("ties", {"layers": "0", "other_layers": "mean"}, "roberta.encoder.layer.1.output.dense.bias", "sw-KE"),
        ("iso_c", {}, QUERY, "fr-FR"),
        ("karcher", {"coefficients": {"de-DE": 0.0, "fr-FR": 0.5, "sw-KE": 0.5}}, QUERY, "de-DE"),
    ],
)  # fmt: skip
def test_nan_in_every_other_path(
    own_wide_pool: Path, tmp_path: Path, method: str, changes: dict[str, Any], tensor: str, victim: str
) -> None:
    for bad in (np.nan, np.inf):
        spoilt(own_wide_pool / victim, tensor, -1, bad)
        with pytest.raises(CheckpointError, match=rf"{tensor}.*{victim}/model.safetensors holds NaN"):
            merge(case_recipe(own_wide_pool, method, **changes), tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_nan_in_heads_that_the_base_lacks(own_wide_pool: Path, tmp_path: Path) -> None:
    head = "classifier.out_proj.weight"
    write_raw(
        own_wide_pool / "base",
        {name: one for name, one in read_raw(own_wide_pool / "base").items() if name != head},
    )
    spoilt(own_wide_pool / "sw-KE", head, 5, np.nan)
    with pytest.raises(CheckpointError, match=rf"{head}.*sw-KE/model.safetensors holds NaN"):
        merge(case_recipe(own_wide_pool, "ties"), tmp_path / "out")


@pytest.mark.parametrize("kernels", ["", "torch"])
@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "dare_ties", "della_linear"])
def test_a_result_that_overflows_is_named(
    wide_pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, kernels: str
) -> None:
    monkeypatch.setenv("LANGMERGE_KERNELS", kernels)
    parameters = {"scale": 3e38, **({"normalize": False} if method.endswith("ties") else {})}
    recipe = case_recipe(wide_pool, method, parameters, coefficients=dict.fromkeys(SOURCES, 1000.0))
    with pytest.raises(CheckpointError, match=r"^merging tensor '.+' gave NaN or infinity: the coefficients"):
        merge(recipe, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kernels", ["", "torch"])
@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "directional_consensus"])
def test_coefficients_beyond_float32_overflow_without_a_warning(
    wide_pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, kernels: str
) -> None:
    monkeypatch.setenv("LANGMERGE_KERNELS", kernels)
    parameters = {"normalize": False} if method == "linear" else {}
    recipe = case_recipe(wide_pool, method, parameters, coefficients=dict.fromkeys(SOURCES, 1e39))
    with pytest.raises(CheckpointError, match="gave NaN or infinity: the coefficients or parameters are too"):
        merge(recipe, tmp_path / "out")


@pytest.mark.parametrize("kernels", ["", "torch"])
@pytest.mark.parametrize(("dtype", "largest"), [("F16", 65504.0), ("F8_E4M3", 448.0), ("F8_E5M2", 57344.0)])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"method": "wudi"},
        {"embeddings": "base"},
        {"embeddings": "source:fr-FR"},
        {"embeddings": "mean"},
    ],
)
def test_a_result_too_large_for_its_dtype_is_an_error(
    own_wide_pool: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    dtype: str,
    largest: float,
    kernels: str,
) -> None:
    """Not infinity, not NaN, and not cut off."""
    monkeypatch.setenv("LANGMERGE_KERNELS", kernels)
    for value, fits in ((largest, True), (-1.1 * largest, False)):
        for name in ("base", *SOURCES):
            spoilt(own_wide_pool / name, WORDS, 7, value)
        recipe = case_recipe(own_wide_pool, **{"method": "linear", **changes}, dtype=dtype)
        if fits:
            out = merge(recipe, tmp_path / "out")
            assert open_checkpoint(out).array(WORDS).reshape(-1)[7] == largest
            assert {info.dtype for info in open_checkpoint(out).tensors.values()} == {dtype}
            continue
        match = rf"tensor '{WORDS}' of the result has numbers too large for {dtype}: store it as BF16 or F32"
        with pytest.raises(CheckpointError, match=match):
            merge(recipe, tmp_path / "none")
        assert not (tmp_path / "none").exists()
