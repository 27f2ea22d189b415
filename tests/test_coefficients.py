import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from langmerge.coefficients import Coefficients, group_of
from langmerge.errors import OutputError, RecipeError

MODEL = {"de-DE": 0.75, "fr-FR": 0.25}
OTHER = {"de-DE": 0.0, "fr-FR": 1.0}


@pytest.mark.parametrize(
    ("tensor", "group"),
    [
        ("roberta.embeddings.word_embeddings.weight", "embeddings"),
        ("embeddings.LayerNorm.bias", "embeddings"),
        ("model.embed_tokens.weight", "embeddings"),
        ("transformer.wte.weight", "embeddings"),
        ("roberta.encoder.layer.0.attention.self.query.weight", "block:0"),
        ("encoder.layer.11.output.LayerNorm.weight", "block:11"),
        ("model.layers.7.mlp.up_proj.weight", "block:7"),
        ("h.3.attn.c_attn.weight", "block:3"),
        ("encoder.block.2.layer.0.SelfAttention.q.weight", "block:2"),
        ("layer.4.weight", "block:4"),
        ("classifier.out_proj.bias", "head"),
        ("classifier.weight", "head"),
        ("score.weight", "head"),
        ("lm_head.dense.weight", "head"),
        ("cls.predictions.bias", "head"),
        ("pre_classifier.weight", "head"),
        ("roberta.pooler.dense.weight", "other"),
        ("model.norm.weight", "other"),
        ("roberta.classifiers.x", "other"),
        ("layer.x.weight", "other"),
    ],
)
def test_the_group_of_a_tensor(tensor: str, group: str) -> None:
    assert group_of(tensor) == group


def test_the_most_specific_group_decides() -> None:
    name = "encoder.layer.1.dense.weight"
    values = {"model": MODEL}
    assert Coefficients(values=values).for_tensor(name) == MODEL
    values = {**values, "block:1": OTHER}
    assert Coefficients(values=values).for_tensor(name) == OTHER
    assert Coefficients(values=values).for_tensor("encoder.layer.11.dense.weight") == MODEL
    values = {**values, f"tensor:{name}": {"de-DE": 2.0, "fr-FR": 3.0}}
    assert Coefficients(values=values).for_tensor(name) == {"de-DE": 2.0, "fr-FR": 3.0}
    assert Coefficients(values=values).for_tensor("encoder.layer.1.dense.bias") == OTHER


@pytest.mark.parametrize(
    ("group", "tensor"),
    [("embeddings", "embeddings.x"), ("head", "classifier.weight"), ("other", "pooler.weight")],
)
def test_named_groups(group: str, tensor: str) -> None:
    found = Coefficients(values={"model": MODEL, group: OTHER})
    assert found.for_tensor(tensor) == OTHER
    assert found.for_tensor("layer.0.weight") == MODEL


def test_uniform_weights_sum_to_one() -> None:
    found = Coefficients.uniform(["a", "b", "c", "d"], target="sw-KE")
    assert found.values == {"model": dict.fromkeys("abcd", 0.25)}
    assert (found.sources, found.target) == (("a", "b", "c", "d"), "sw-KE")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "values needs the group 'model'"),
        ({"model": {}}, "values needs the group 'model'"),
        ({"head": MODEL}, "values needs the group 'model'"),
        ({"model": MODEL, "heads": MODEL}, "unknown group 'heads'"),
        ({"model": MODEL, "block:x": MODEL}, "unknown group 'block:x'"),
        ({"model": MODEL, "block:1.5": MODEL}, "unknown group 'block:1.5'"),
        ({"model": MODEL, "tensor:": MODEL}, "unknown group 'tensor:'"),
        ({"model": MODEL, "head": {"de-DE": 1.0}}, "group 'head' has sources"),
        ({"model": MODEL, "head": {**MODEL, "sw-KE": 1.0}}, "group 'head' has sources"),
        ({"model": {**MODEL, "fr-FR": math.inf}}, "the coefficient of fr-FR is not finite"),
    ],
)
def test_coefficients_that_are_not_whole(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Coefficients(values=values)


def test_coefficients_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Coefficients(values={"model": MODEL}).target = "sw-KE"  # type: ignore[misc]


NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


@settings(deadline=None, max_examples=30)
@given(st.dictionaries(st.text(min_size=1), NUMBERS, min_size=1), st.data())
def test_coefficients_come_back_from_their_file(
    tmp_path_factory: pytest.TempPathFactory, model: dict[str, float], data: st.DataObject
) -> None:
    values = {"model": model, "block:3": {source: data.draw(NUMBERS) for source in model}}
    kept = Coefficients(values=values, target="sw-KE", provenance={"selector": "measured", "k": 2})
    path = tmp_path_factory.getbasetemp() / "coefficients.json"
    kept.save(path)
    found = Coefficients.load(path)
    assert found == kept
    assert found.sources == kept.sources == tuple(model)


def test_the_file_can_be_read_by_people(tmp_path: Path) -> None:
    Coefficients(values={"model": {"zażółć": 1.0}}).save(tmp_path / "c.json")
    assert "zażółć" in (tmp_path / "c.json").read_text()
    assert json.loads((tmp_path / "c.json").read_text())["format"] == "langmerge-coefficients/1"
    assert [path.name for path in tmp_path.iterdir()] == ["c.json"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Invalid JSON"),
        ("[]", "Input should be an object"),
        ("{}", "values: Field required"),
        ('{"format": "langmerge-coefficients/9", "values": {"model": {"a": 1}}}', "this version reads"),
        ('{"values": {"model": {"a": "much"}}}', "values.model.a: Input should be a valid number"),
        ('{"values": {"model": {"a": 1}}, "more": 1}', "more: Extra inputs are not permitted"),
    ],
)
def test_a_garbled_file_is_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "c.json"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message) as caught:
        Coefficients.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_missing_place(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="does not exist"):
        Coefficients.load(tmp_path / "c.json")
    with pytest.raises(RecipeError, match="Is a directory"):
        Coefficients.load(tmp_path)
    with pytest.raises(OutputError, match=r"none/c.json cannot be written: No such file or directory"):
        Coefficients(values={"model": MODEL}).save(tmp_path / "none" / "c.json")
