import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from langmerge.coefficients import Coefficients
from langmerge.engine import make_plan, merge, recipe_payload
from langmerge.kernels import compiled_kernels
from langmerge.results import signature
from tests.engine.conftest import SOURCES, recipe_of
from tests.tiny import BUFFER, QUERY, SHAPES, WORDS, read_raw, tuned, write_raw


def signature_of(root: Path, **changes: Any) -> str:
    return signature(recipe_payload(make_plan(recipe_of(root, **changes))))


def record_of(root: Path, out: Path, **changes: Any) -> dict[str, Any]:
    return dict(json.loads((merge(recipe_of(root, **changes), out) / "langmerge.json").read_text()))


def test_every_tensor_has_its_treatment(own_pool: Path, tmp_path: Path) -> None:
    """Merged, mean, base, unchanged and dropped in one merge; none is left out."""
    base = read_raw(own_pool / "base")
    extra = {BUFFER: torch.arange(4), "pooler.dense.weight": torch.ones(6, 6)}
    write_raw(own_pool / "base", {**base, **extra})
    for name in SOURCES:
        same = {BUFFER: torch.arange(4), QUERY: base[QUERY]}
        write_raw(own_pool / name, {**read_raw(own_pool / name), **same})
    record = record_of(own_pool, tmp_path / "out", method="ties", embeddings="mean")
    found = {entry["tensor"]: entry for entry in record["tensors"]}
    assert found.keys() == {*SHAPES, *extra}
    embeddings = {WORDS, "roberta.embeddings.LayerNorm.weight"}
    for name, entry in found.items():
        expected = {BUFFER: "base", "pooler.dense.weight": "dropped", QUERY: "unchanged"}.get(
            name, "mean" if name in embeddings else "merged"
        )
        assert entry["treatment"] == expected, name
        assert ("reason" in entry) is (expected != "merged")
    assert found["pooler.dense.weight"]["reason"] == "only the base has it"
    assert found[WORDS]["reason"] == "the recipe says embeddings: mean"
    assert found[WORDS]["group"] == "embeddings"
    assert record["treatments"] == {"merged": 6, "mean": 2, "base": 1, "unchanged": 1, "dropped": 1}


def test_the_receipt_says_how_the_model_came_about(own_pool: Path, tmp_path: Path) -> None:
    values = {"model": {"de-DE": 0.5, "fr-FR": 0.25, "sw-KE": 0.25}}
    record = record_of(
        own_pool,
        tmp_path / "out",
        method="ties",
        parameters={"density": 0.5},
        coefficients=Coefficients(values=values),
        target="cy-GB",
    )
    assert record["format"] == "langmerge-receipt/1"
    defaults = {"scale": 1.0, "election": "sum", "normalize": True, "scope": "tensor"}
    assert record["parameters"] == {"density": 0.5, **defaults}
    assert record["recipe"]["coefficients"]["values"] == values
    assert record["recipe"]["sources"] == {name: str(own_pool / name) for name in SOURCES}
    assert record["target"] == "cy-GB"
    assert record["labels"] == ["alarm", "music", "rain"]
    assert record["label_rows_permuted"] == []
    assert record["hashes"]["sources"].keys() == set(SOURCES)
    assert len({record["hashes"]["base"], *record["hashes"]["sources"].values()}) == 4
    assert record["versions"].keys() >= {"langmerge", "numpy", "python"}
    card = (tmp_path / "out" / "README.md").read_text()
    assert record["signature"] in card
    for name in SOURCES:
        assert f"| {name} | {values['model'][name]:.4f} | `{record['hashes']['sources'][name]}` |" in card


def test_the_norm_ratio_by_hand(tmp_path: Path) -> None:
    """Deltas (3, 0) and (0, 4): the mean is (1.5, 2) with norm 2.5, the mean of the norms 3.5."""
    write_raw(tmp_path / "base", {"w": torch.zeros(2)})
    write_raw(tmp_path / "de-DE", {"w": torch.tensor([3.0, 0.0])})
    write_raw(tmp_path / "fr-FR", {"w": torch.tensor([0.0, 4.0])})
    record = record_of(
        tmp_path, tmp_path / "out", sources={name: tmp_path / name for name in ("de-DE", "fr-FR")}
    )
    assert record["norm_ratio"] == round(2.5 / 3.5, 4)
    (entry,) = record["tensors"]
    assert (entry["delta_norm"], entry["mean_source_delta_norm"]) == (2.5, 3.5)


def test_the_signature_is_of_contents_not_of_places(own_pool: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(own_pool, tmp_path / "elsewhere" / "pool"))
    first = record_of(own_pool, tmp_path / "first")
    second = record_of(moved, tmp_path / "second")
    assert first["signature"] == second["signature"] == signature_of(own_pool)
    assert first["recipe"] != second["recipe"]
    assert first["tensors"] == second["tensors"]


def test_the_signature_does_not_depend_on_the_order_of_sources(raw_pool: Path) -> None:
    backwards = {name: raw_pool / name for name in reversed(SOURCES)}
    weights = {"de-DE": 0.1, "fr-FR": 0.2, "sw-KE": 0.3}
    assert signature_of(raw_pool, coefficients=weights) == signature_of(
        raw_pool, sources=backwards, coefficients=dict(reversed(weights.items()))
    )


def test_slerp_to_a_place_between_two_is_signed_with_their_order(raw_pool: Path) -> None:
    one, other = ({name: raw_pool / name for name in names} for names in (SOURCES[:2], SOURCES[1::-1]))
    for parameters, is_same in (({}, True), ({"t": 0.3}, False)):
        first, second = (
            signature_of(raw_pool, method="slerp", parameters=parameters, sources=sources)
            for sources in (one, other)
        )
        assert (first == second) is is_same


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "ties"},
        {"parameters": {"normalize": False}},
        {"coefficients": {"de-DE": 0.5, "fr-FR": 0.3, "sw-KE": 0.2}},
        {"embeddings": "base"},
        {"head": "mean"},
        {"dtype": "BF16"},
    ],
)
def test_whatever_decides_the_result_changes_the_signature(raw_pool: Path, changes: dict[str, Any]) -> None:
    assert signature_of(raw_pool, **changes) != signature_of(raw_pool)


@pytest.mark.parametrize("name", ["base", "sw-KE"])
def test_other_weights_change_the_signature(own_pool: Path, name: str) -> None:
    before = signature_of(own_pool)
    write_raw(own_pool / name, tuned(read_raw(own_pool / name), 9))
    assert signature_of(own_pool) != before


def test_defaults_said_and_left_out_sign_alike(raw_pool: Path) -> None:
    said = {"method": "ties", "parameters": {"density": 0.2, "scope": "tensor"}}
    assert signature_of(raw_pool, **said) == signature_of(raw_pool, method="ties")
    third = dict.fromkeys(SOURCES, 1 / 3)
    assert signature_of(raw_pool, coefficients=third) == signature_of(raw_pool)


def test_the_target_is_only_recorded(raw_pool: Path) -> None:
    assert signature_of(raw_pool, target="cy-GB") == signature_of(raw_pool)


def test_torch_is_named_where_it_has_computed(own_pool: Path, tmp_path: Path) -> None:
    """A version that could not change a byte is left out: receipts of the same bytes are the same."""
    by_kernel = record_of(own_pool, tmp_path / "a", method="task_arithmetic")["versions"]
    by_torch = record_of(own_pool, tmp_path / "b", method="breadcrumbs")["versions"]
    assert by_kernel.keys() == {"langmerge", "numpy", "python"} | (
        {"torch"} if compiled_kernels() is None else set()
    )
    assert by_torch["torch"].startswith(torch.__version__.split("+")[0])
