"""What transformers makes of a merge's output."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from langmerge.engine import make_plan, merge
from langmerge.errors import PlanError
from tests.engine.conftest import SOURCES, recipe_of
from tests.tiny import HEAD, LABELS, PIECES, label_probabilities, read_raw, write_expert, write_xlm_roberta


def loaded(folder: Path) -> Any:
    """The model, if every tensor has found its place and none is missing."""
    model, report = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    return model


@pytest.mark.parametrize("base", ["base", "encoder", "masked_lm"])
@pytest.mark.parametrize("method", ["linear", "ties", "wudi"])
def test_the_output_loads_whole(xlm_pool: Path, tmp_path: Path, base: str, method: str) -> None:
    out = merge(recipe_of(xlm_pool, base=xlm_pool / base, method=method), tmp_path / "out", max_shard=2_000)
    model = loaded(out)
    assert model.config.id2label == dict(enumerate(LABELS))
    assert model.config.label2id == {label: row for row, label in enumerate(LABELS)}
    assert {one.dtype for one in model.parameters()} == {torch.float32}
    tokenizer, theirs = (AutoTokenizer.from_pretrained(folder) for folder in (out, xlm_pool / "de-DE"))
    text = "w3 w17 w4"
    assert tokenizer(text)["input_ids"] == theirs(text)["input_ids"]
    assert len(set(tokenizer(text)["input_ids"])) == 5


def test_a_headless_base_leaves_the_heads_mean_and_merges_the_encoder(xlm_pool: Path, tmp_path: Path) -> None:
    """`XLMRobertaModel` saves without `roberta.`, and with a pooler that classifiers have not."""
    recipe = recipe_of(
        xlm_pool, base=xlm_pool / "encoder", method="task_arithmetic", parameters={"scale": 0.5}
    )
    out = merge(recipe, tmp_path / "out")
    record = json.loads((out / "langmerge.json").read_text())
    treatments = {entry["tensor"]: entry["treatment"] for entry in record["tensors"]}
    dropped = {name for name, one in treatments.items() if one == "dropped"}
    assert dropped == {"pooler.dense.weight", "pooler.dense.bias"}
    encoder, sources = read_raw(xlm_pool / "encoder"), [read_raw(xlm_pool / name) for name in SOURCES]
    for name, one in read_raw(out).items():
        mean = torch.stack([source[name] for source in sources]).mean(0)
        if name.startswith("classifier"):
            assert treatments[name] == "mean"
            torch.testing.assert_close(one, mean)
        else:
            assert treatments[name] == "merged"
            start = encoder[name.removeprefix("roberta.")]
            torch.testing.assert_close(one, start + 0.5 * (mean - start))


def test_bf16_output_loads_as_bf16(xlm_pool: Path, tmp_path: Path) -> None:
    model = loaded(merge(recipe_of(xlm_pool, dtype="BF16"), tmp_path / "out"))
    assert {one.dtype for one in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("permuted", [("de-DE",), SOURCES, (*SOURCES, "base")])
@pytest.mark.parametrize("base", ["base", "encoder"])
def test_permuted_label_maps_give_the_same_predictions(
    xlm_pool: Path, tmp_path: Path, permuted: tuple[str, ...], base: str
) -> None:
    orders = {"de-DE": (2, 0, 1), "fr-FR": (0, 2, 1), "sw-KE": (1, 2, 0), "base": (2, 1, 0)}
    for seed, name in enumerate(SOURCES, start=1):
        order = orders[name] if name in permuted else None
        write_expert(tmp_path / name, xlm_pool / "base", seed, order=order)
    # Nothing is added to the weights of this copy: it is the base in another order.
    order = orders["base"] if "base" in permuted else None
    write_expert(tmp_path / "base", xlm_pool / "base", 0, order=order, scale=0.0)
    shutil.copytree(xlm_pool / "encoder", tmp_path / "encoder")
    settings: dict[str, Any] = {"method": "ties", "parameters": {"density": 0.5}}
    plain = merge(recipe_of(xlm_pool, base=xlm_pool / base, **settings), tmp_path / "plain")
    mixed = merge(recipe_of(tmp_path, base=tmp_path / base, **settings), tmp_path / "mixed")
    expected, found = label_probabilities(plain), label_probabilities(mixed)
    assert found.keys() == expected.keys()
    for label in LABELS:
        torch.testing.assert_close(found[label], expected[label])
    loaded(mixed)
    # The rows follow the base, or the first source where the base has no head.
    moved = "base" in permuted if base == "base" else "de-DE" in permuted
    assert torch.equal(read_raw(mixed)[HEAD], read_raw(plain)[HEAD]) is not moved


def test_a_source_with_another_order_of_pieces_gives_the_same_model(xlm_pool: Path, tmp_path: Path) -> None:
    """▁w3 and ▁w4 change places in one source's tokenizer and embeddings."""
    for name in ("base", *SOURCES):
        shutil.copytree(xlm_pool / name, tmp_path / name)
    file = tmp_path / "fr-FR" / "tokenizer.json"
    swapped = {"▁w3": "▁w4", "▁w4": "▁w3"}
    text = re.sub('(?<=")(▁w[34])(?=")', lambda found: swapped[found[1]], file.read_text())
    assert text != file.read_text()
    file.write_text(text)
    tensors = read_raw(tmp_path / "fr-FR")
    words = "roberta.embeddings.word_embeddings.weight"
    first = PIECES.index("▁w3")
    tensors[words][[first, first + 1]] = tensors[words][[first + 1, first]]
    save_file(tensors, tmp_path / "fr-FR" / "model.safetensors", metadata={"format": "pt"})
    plain = merge(recipe_of(xlm_pool, method="ties"), tmp_path / "plain")
    mixed = merge(recipe_of(tmp_path, method="ties"), tmp_path / "mixed")
    loaded(mixed)
    for name, one in read_raw(mixed).items():
        assert torch.equal(one, read_raw(plain)[name]), name
    assert (mixed / "tokenizer.json").read_bytes() == (xlm_pool / "base" / "tokenizer.json").read_bytes()
    report = json.loads((mixed / "langmerge.json").read_text())["vocabulary"]["checkpoints"]
    assert report["fr-FR"]["moved"] == 2


def test_the_merge_can_be_merged_again(xlm_pool: Path, tmp_path: Path) -> None:
    first = merge(recipe_of(xlm_pool), tmp_path / "first")
    again = recipe_of(xlm_pool, sources={"first": first, "sw-KE": xlm_pool / "sw-KE"})
    loaded(merge(again, tmp_path / "again"))


def test_a_fresh_head_of_other_labels_is_no_base(xlm_pool: Path, tmp_path: Path) -> None:
    write_xlm_roberta(tmp_path / "base", labels=("yes", "no"))
    with pytest.raises(PlanError) as caught:
        make_plan(recipe_of(xlm_pool, base=tmp_path / "base"))
    assert any(
        "have different labels: only there: alarm, music, rain; missing: no, yes" in f
        for f in caught.value.faults
    )
    assert any(f"{HEAD!r} has different shapes" in fault for fault in caught.value.faults)
