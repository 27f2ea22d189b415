import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from langmerge.coefficients import Coefficients
from langmerge.engine import make_plan, merge
from langmerge.errors import PlanError
from langmerge.recipe import Recipe
from tests.engine.conftest import SOURCES, faults_of, recipe_of, treatments
from tests.tiny import BUFFER, HEAD, LABELS, QUERY, SHAPES, WORDS, drawn, permuted, read_raw, tuned, write_raw


def rewritten(folder: Path, change: Callable[[dict[str, torch.Tensor]], None], **options: Any) -> None:
    """The folder with other tensors (and label names, where given)."""
    tensors = read_raw(folder)
    change(tensors)
    shutil.rmtree(folder)
    write_raw(folder, tensors, **options)


def test_a_good_recipe_is_planned_whole(raw_pool: Path) -> None:
    plan = make_plan(recipe_of(raw_pool, method="ties", parameters={"density": 0.3}))
    assert [tensor.name for tensor in plan.written] == sorted(SHAPES)
    assert {tensor.name: tensor.shape for tensor in plan.written} == SHAPES
    assert {(tensor.treatment, tensor.reason, tensor.dtype) for tensor in plan.tensors} == {
        ("merged", "", "F32")
    }
    assert {tensor.name for tensor in plan.tensors if tensor.label_rows} == {
        HEAD,
        "classifier.out_proj.bias",
    }
    assert plan.parameters == {
        "density": 0.3,
        "scale": 1.0,
        "election": "sum",
        "normalize": True,
        "scope": "tensor",
    }
    assert (plan.labels, plan.permuted, tuple(plan.sources)) == (LABELS, (), SOURCES)
    assert plan.companions.donor == raw_pool / "base"
    for tensor in plan.tensors:
        assert (tensor.sources, tensor.weights, tensor.method) == (SOURCES, (1 / 3,) * 3, "ties")
        assert {info.name for info in (tensor.base, *tensor.inputs) if info} == {tensor.name}
        assert [info.file.parent.name for info in tensor.inputs] == list(SOURCES)
        assert not tensor.gathered
    # Embeddings lie before the first layer, the head behind the last.
    assert {tensor.block for tensor in plan.tensors} == {-1, 0, 1, 2}
    assert {tensor.blocks for tensor in plan.tensors} == {2}


def test_base_and_source_missing(own_pool: Path) -> None:
    shutil.rmtree(own_pool / "base")
    shutil.rmtree(own_pool / "fr-FR")
    base, source = faults_of(own_pool)
    assert "/base does not exist" in base
    assert "/fr-FR does not exist" in source


def test_all_sources_missing(tmp_path: Path) -> None:
    assert len(faults_of(tmp_path)) == 4


def test_an_unknown_method_names_the_close_one(raw_pool: Path) -> None:
    (fault,) = faults_of(raw_pool, method="tise", parameters={"density": 0.2})
    assert fault.startswith("unknown method 'tise': did you mean 'ties'?")


def test_every_wrong_parameter_is_named(raw_pool: Path) -> None:
    given = {"densty": 0.2, "scale": "big", "election": "sum", "scope": "block"}
    faults = faults_of(raw_pool, method="ties", parameters=given)
    assert len(faults) == 3
    assert "has no parameter 'densty': it has density, scale, election, normalize, scope" in faults[0]
    assert "scale is 'big', it must be of type float" in faults[1]
    assert "scope is 'block'" in faults[2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "ties", "parameters": {"density": 0.0}}, "density is 0.0, it must lie in"),
        ({"method": "wudi", "parameters": {"ridge": -1.0}}, "ridge is -1.0, it must be above 0"),
        ({"method": "slerp"}, "slerp merges exactly 2 sources, the recipe has 3"),
        ({"coefficients": {"de-DE": 1, "fr-FR": -1, "sw-KE": 0}}, "sum to zero"),
        ({"method": "ties", "coefficients": {"de-DE": 1, "fr-FR": -1, "sw-KE": 1}}, "include a negative one"),
    ],
)
def test_values_outside_a_methods_range(raw_pool: Path, changes: dict[str, Any], message: str) -> None:
    (fault,) = faults_of(raw_pool, **changes)
    assert message in fault


def test_weights_of_one_block_are_checked_too(raw_pool: Path) -> None:
    values = {
        "model": dict.fromkeys(SOURCES, 1.0),
        "block:1": {"de-DE": 1.0, "fr-FR": -1.0, "sw-KE": 0.0},
    }
    (fault,) = faults_of(raw_pool, coefficients=Coefficients(values=values))
    assert "sum to zero" in fault


def test_a_mean_that_does_not_exist_is_found_beforehand(raw_pool: Path) -> None:
    opposite = {"de-DE": 1.0, "fr-FR": -1.0, "sw-KE": 0.0}
    changes: dict[str, Any] = {"method": "task_arithmetic", "coefficients": opposite}
    assert make_plan(recipe_of(raw_pool, **changes)).written
    (fault,) = faults_of(raw_pool, **changes, head="mean")
    assert fault.startswith("the mean is taken of the sources' head tensors, but weights [1.0, -1.0, 0.0]")
    # One tensor of a group may have weights of its own.
    of_one = {"model": dict.fromkeys(SOURCES, 1.0), "tensor:classifier.dense.weight": opposite}
    numbers = Coefficients(values=of_one)
    (same,) = faults_of(raw_pool, method="task_arithmetic", head="mean", coefficients=numbers)
    assert same == fault


def test_labels_in_another_order_whose_rows_are_not_known(tmp_path: Path) -> None:
    """XLM's head keeps its labels in sequence_summary.summary, which in XLNet is no head at all."""
    for name, expected in (
        ("logits_proj", True),
        ("classifier.linear_out", True),
        ("sequence_summary.summary", False),
    ):
        base = drawn(0, shapes={f"{name}.weight": (3, 4)})
        sources = {}
        for seed, (source, labels) in enumerate((("a", LABELS), ("b", LABELS[::-1])), start=1):
            sources[source] = write_raw(tmp_path / name / source, tuned(base, seed), labels=labels)
        recipe = Recipe(base=write_raw(tmp_path / name / "base", base), sources=sources, method="linear")
        if expected:
            (tensor,) = make_plan(recipe).written
            assert tensor.label_rows
            continue
        with pytest.raises(
            PlanError, match=r"b: labels are in another order .* no tensor is known whose rows are labels"
        ):
            make_plan(recipe)


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_beside_the_embeddings_is_read_by_loaders(tmp_path: Path, tied: bool) -> None:
    """The base ties its embeddings and stores the head all the same; or the other way round."""
    shapes = {"model.embed_tokens.weight": (5, 4), "lm_head.weight": (5, 4)}
    base = drawn(0, shapes=shapes)
    recipe = Recipe(
        base=write_raw(tmp_path / "base", base, labels=None, tie_word_embeddings=tied),
        sources={
            name: write_raw(tmp_path / name, tuned(base, seed), labels=None, tie_word_embeddings=False)
            for seed, name in enumerate(("a", "b"), start=1)
        },
        method="linear",
    )
    out = merge(recipe, tmp_path / "out")
    assert "lm_head.weight" in read_raw(out)
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False


@pytest.mark.parametrize("group", ["block:2", "other", "tensor:roberta.encoder.layer.0.query"])
def test_coefficients_for_nothing(raw_pool: Path, group: str) -> None:
    values = {"model": dict.fromkeys(SOURCES, 1.0), group: dict.fromkeys(SOURCES, 0.5)}
    (fault,) = faults_of(raw_pool, coefficients=Coefficients(values=values))
    assert fault == f"coefficients are given for {group}, which matches no tensor of the sources"


def test_other_shapes(own_pool: Path) -> None:
    def widen(tensors: dict[str, torch.Tensor]) -> None:
        tensors[WORDS] = torch.zeros(13, 6)
        tensors[QUERY] = torch.zeros(6, 7)

    rewritten(own_pool / "fr-FR", widen)
    tokenizers, words, query = faults_of(own_pool)
    assert "no tokenizer.json and 12 rows of embeddings where fr-FR has 13" in tokenizers
    assert f"{WORDS!r} has different shapes: (12, 6) in de-DE, (13, 6) in fr-FR" in words
    assert words.endswith("(a different vocabulary: use one tokenizer for all)")
    assert f"{QUERY!r} has different shapes: (6, 6) in de-DE, (6, 7) in fr-FR, (6, 6) in sw-KE" in query
    assert query.endswith("(6, 6) in the base")


def test_numbers_and_integers_do_not_mix(own_pool: Path) -> None:
    rewritten(own_pool / "sw-KE", lambda tensors: tensors.update({QUERY: tensors[QUERY].long()}))
    (fault,) = faults_of(own_pool)
    assert "is floating-point in some and not in others: F32 in de-DE, F32 in fr-FR, I64 in sw-KE" in fault


def test_a_tensor_missing_in_one_source(own_pool: Path) -> None:
    rewritten(own_pool / "fr-FR", lambda tensors: tensors.pop(QUERY))
    (fault,) = faults_of(own_pool)
    assert fault.startswith(f"tensor {QUERY!r} is missing in source fr-FR: sources must be saved from the")


def test_a_tensor_that_the_base_lacks(own_pool: Path) -> None:
    rewritten(own_pool / "base", lambda tensors: tensors.pop(QUERY))
    (fault,) = faults_of(own_pool)
    assert fault.startswith(f"tensor {QUERY!r} is in the sources but not in the base {own_pool}/base")


def test_a_source_that_equals_the_base(own_pool: Path) -> None:
    (fault,) = faults_of(own_pool, base=own_pool / "fr-FR")
    assert "source fr-FR" in fault
    assert "its task vector is zero; the base must be the pretrained model" in fault


def test_a_source_that_equals_the_base_in_fewer_bits(own_pool: Path) -> None:
    short = {name: one.to(torch.bfloat16) for name, one in read_raw(own_pool / "base").items()}
    write_raw(own_pool / "sw-KE", short)
    (fault,) = faults_of(own_pool)
    assert "source sw-KE" in fault
    assert "its task vector is zero" in fault


def test_a_source_that_equals_the_base_but_for_the_order_of_its_labels(own_pool: Path) -> None:
    moved, labels = permuted(read_raw(own_pool / "base"), LABELS, (2, 0, 1))
    write_raw(own_pool / "sw-KE", moved, labels=labels)
    (fault,) = faults_of(own_pool)
    assert "source sw-KE" in fault
    assert "its task vector is zero" in fault


def test_a_source_that_differs_only_where_nothing_is_merged(own_pool: Path) -> None:
    rewritten(
        own_pool / "sw-KE",
        lambda tensors: tensors.update(
            {**read_raw(own_pool / "base"), WORDS: read_raw(own_pool / "base")[WORDS] + 1}
        ),
    )
    assert make_plan(recipe_of(own_pool)).written
    (fault,) = faults_of(own_pool, embeddings="base")
    assert "its task vector is zero" in fault


def test_other_labels_are_listed(own_pool: Path) -> None:
    rewritten(own_pool / "de-DE", lambda _: None, labels=("alarm", "musik", "rain"))
    rewritten(own_pool / "sw-KE", lambda _: None, labels=None)
    german, swahili = faults_of(own_pool)
    assert german.startswith("source de-DE and the base")
    assert german.endswith("have different labels: only there: musik; missing: music")
    assert swahili.startswith("source sw-KE")
    assert "has no label names in config.json (id2label)" in swahili


def test_a_label_named_twice(own_pool: Path) -> None:
    rewritten(own_pool / "de-DE", lambda _: None, labels=("alarm", "alarm", "rain"))
    (fault,) = faults_of(own_pool)
    assert "names a label twice" in fault


def test_a_named_head_against_an_unnamed_one(own_pool: Path) -> None:
    rewritten(own_pool / "base", lambda _: None, labels=None)
    (fault,) = faults_of(own_pool)
    assert "has a head without label names while de-DE names its labels" in fault


def test_more_rows_than_labels(own_pool: Path) -> None:
    for name in ("base", *SOURCES):
        rewritten(own_pool / name, lambda _: None, labels=("alarm", "music"))
    faults = faults_of(own_pool)
    assert len(faults) == 2
    assert all("has 3 rows for the 2 labels of config.json" in fault for fault in faults)


def test_heads_without_any_names_are_taken_as_they_are(own_pool: Path) -> None:
    for name in ("base", *SOURCES):
        rewritten(own_pool / name, lambda _: None, labels=None)
    plan = make_plan(recipe_of(own_pool))
    assert (plan.labels, plan.permuted) == (None, ())


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_all_faults_at_once_and_nothing_written(own_pool: Path) -> None:
    """One recipe with a fault of almost every kind."""
    shutil.rmtree(own_pool / "base")
    rewritten(
        own_pool / "de-DE",
        lambda tensors: tensors.update({WORDS: torch.zeros(2, 6)}),
        labels=("alarm", "musik", "rain"),
    )
    rewritten(own_pool / "fr-FR", lambda tensors: tensors.pop(QUERY))
    (own_pool / "sw-KE" / "model.safetensors").write_bytes(b"garbage")
    values = {"model": dict.fromkeys(SOURCES, 1.0), "block:7": dict.fromkeys(SOURCES, 1.0)}
    recipe = recipe_of(
        own_pool,
        method="ties",
        parameters={"densty": 0.2, "scale": "big"},
        coefficients=Coefficients(values=values),
        layers="0-1,9",
    )
    before = snapshot(own_pool)
    with pytest.raises(PlanError) as caught:
        merge(recipe, own_pool / "out")
    expected = [
        "no parameter 'densty'",
        "scale is 'big'",
        "/base does not exist",
        "sw-KE/model.safetensors cannot be read",
        "have different labels: only there: music; missing: musik",
        "is missing in source fr-FR",
        f"{WORDS!r} has different shapes",
        "block:7, which matches no tensor",
        "layers names 9, the sources have layers 0 to 1",
    ]
    faults = list(caught.value.faults)
    for part in expected:
        assert sum(part in fault for fault in faults) == 1, (part, faults)
    assert len(faults) == len(expected)
    assert str(caught.value) == "; ".join(faults)
    assert "\n" not in str(caught.value)
    assert snapshot(own_pool) == before


def test_a_wrong_base_is_reported_beside_a_wrong_method(own_pool: Path) -> None:
    rewritten(own_pool / "de-DE", lambda _: None, labels=("alarm", "musik", "rain"))
    faults = faults_of(own_pool, base=own_pool / "fr-FR", method="tise")
    assert [fault.split(":")[0].split(" (")[0] for fault in faults] == [
        "unknown method 'tise'",
        f"source de-DE and the base {own_pool / 'fr-FR'} have different labels",
        "source fr-FR",
    ]
    assert "its task vector is zero" in faults[2]


def test_integer_buffers_come_from_the_base(own_pool: Path) -> None:
    for value, name in enumerate(("base", *SOURCES)):
        rewritten(
            own_pool / name, lambda tensors, value=value: tensors.update({BUFFER: torch.full((1, 4), value)})
        )
    plan = make_plan(recipe_of(own_pool, dtype="BF16"))
    (buffer,) = [tensor for tensor in plan.tensors if tensor.name == BUFFER]
    assert (buffer.treatment, buffer.reason, buffer.dtype) == ("base", "not a floating-point tensor", "I64")


def test_what_only_the_base_has_is_dropped_and_listed(own_pool: Path) -> None:
    rewritten(own_pool / "base", lambda tensors: tensors.update({"pooler.dense.bias": torch.zeros(6)}))
    plan = make_plan(recipe_of(own_pool))
    (dropped,) = [tensor for tensor in plan.tensors if tensor.treatment == "dropped"]
    assert (dropped.name, dropped.reason) == ("pooler.dense.bias", "only the base has it")
    assert plan.tensors[-1] == dropped
    assert "pooler.dense.bias" not in {tensor.name for tensor in plan.written}


def test_matrix_methods_take_the_encoders_matrices(raw_pool: Path) -> None:
    found = treatments(raw_pool, method="wudi")
    matrices = {QUERY, "roberta.encoder.layer.1.output.dense.weight"}
    assert {name for name, treatment in found.items() if treatment == "merged"} == matrices
    assert set(found.values()) == {"merged", "mean"}


def test_a_base_without_the_prefix_is_matched(own_pool: Path) -> None:
    """As `XLMRobertaModel` saves: no `roberta.`, no head, and a tensor that only it has, first by name."""
    base = {
        name.removeprefix("roberta."): one
        for name, one in read_raw(own_pool / "base").items()
        if not name.startswith("classifier")
    }
    write_raw(own_pool / "base", {**base, "a.first": torch.zeros(1)}, labels=None)
    plan = make_plan(recipe_of(own_pool))
    assert {t.name: t.base and t.base.name for t in plan.written} == {
        name: None if name.startswith("classifier") else name.removeprefix("roberta.") for name in SHAPES
    }
    assert {t.name for t in plan.written if t.treatment == "mean"} == {n for n in SHAPES if "classifier" in n}
    assert {t.reason for t in plan.written if t.treatment == "mean"} == {"the base has no such head"}
    assert plan.companions.donor == own_pool / "de-DE"
    assert plan.labels == LABELS


def test_a_base_with_a_prefix_of_its_own_is_matched(own_pool: Path) -> None:
    base = {f"model.{name}": one for name, one in read_raw(own_pool / "base").items()}
    write_raw(own_pool / "base", base)
    plan = make_plan(recipe_of(own_pool))
    assert {t.name: t.base and t.base.name for t in plan.written} == {
        name: f"model.{name}" for name in SHAPES
    }
    assert {t.treatment for t in plan.tensors} == {"merged"}


def test_a_masked_lm_base_has_no_classifier_to_difference(own_pool: Path) -> None:
    rewritten(
        own_pool / "base",
        lambda tensors: [
            *(tensors.pop(name) for name in list(tensors) if name.startswith("classifier")),
            tensors.update({"lm_head.bias": torch.zeros(12), "lm_head.dense.weight": torch.zeros(6, 6)}),
        ],
        labels=None,
    )
    plan = make_plan(recipe_of(own_pool))
    assert {t.name for t in plan.tensors if t.treatment == "dropped"} == {
        "lm_head.bias",
        "lm_head.dense.weight",
    }
    assert {t.name for t in plan.tensors if t.treatment == "mean"} == {n for n in SHAPES if "classifier" in n}
    assert plan.labels == LABELS


def test_sharded_sources_plan_like_whole_ones(own_pool: Path) -> None:
    tensors, names = read_raw(own_pool / "fr-FR"), sorted(SHAPES)
    shutil.rmtree(own_pool / "fr-FR")
    write_raw(own_pool / "fr-FR", tensors, shards=[names[:3], names[3:]])
    assert [t.name for t in make_plan(recipe_of(own_pool)).written] == names
