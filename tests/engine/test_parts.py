"""Parts of a model that are treated apart, and numbers per source."""

from pathlib import Path

import pytest
import torch

from langmerge.engine import make_plan
from tests.engine.conftest import SOURCES, faults_of, recipe_of, treatments
from tests.tiny import HEAD, SHAPES, WORDS, read_raw, write_raw


@pytest.mark.parametrize(
    ("changes", "group", "treatment"),
    [
        ({"embeddings": "base"}, "embeddings", "base"),
        ({"embeddings": "mean"}, "embeddings", "mean"),
        ({"embeddings": "source:fr-FR"}, "embeddings", "source"),
        ({"head": "mean"}, "classifier", "mean"),
        ({"head": "base"}, "classifier", "base"),
        ({"head": "source:sw-KE"}, "classifier", "source"),
        ({"layers": "1"}, "layer.0.", "base"),
        ({"layers": 1, "other_layers": "mean"}, "layer.0.", "mean"),
        ({"layers": "0-0", "other_layers": "source:de-DE"}, "layer.1.", "source"),
        ({"layers": "0,1", "other_layers": "mean"}, "no such part", ""),
    ],
)
def test_policies(raw_pool: Path, changes: dict[str, str], group: str, treatment: str) -> None:
    found = treatments(raw_pool, method="task_arithmetic", **changes)
    assert {name: one for name, one in found.items() if one != "merged"} == {
        name: treatment for name in SHAPES if group in name
    }


def test_one_sources_part_says_whose_it_is(raw_pool: Path) -> None:
    plan = make_plan(recipe_of(raw_pool, embeddings="source:fr-FR"))
    (words,) = [tensor for tensor in plan.written if tensor.name == WORDS]
    assert (words.sources, words.weights) == (SOURCES, (0.0, 1.0, 0.0))
    assert words.reason == "the recipe says embeddings: source:fr-FR"


def test_the_head_of_a_base_without_one(own_pool: Path) -> None:
    base = {name: one for name, one in read_raw(own_pool / "base").items() if "classifier" not in name}
    write_raw(own_pool / "base", base, labels=None)
    for said, treatment in (("merge", "mean"), ("mean", "mean"), ("source:de-DE", "source")):
        found = treatments(own_pool, method="ties", head=said)
        assert {one for name, one in found.items() if "classifier" in name} == {treatment}
    faults = faults_of(own_pool, head="base")
    assert len(faults) == 3
    assert all(fault.startswith("the recipe says head: base, but the base") for fault in faults)
    assert sum(HEAD in fault for fault in faults) == 1


@pytest.mark.parametrize("layers", ["2", "0-2", "7,0"])
def test_layers_that_the_model_lacks(raw_pool: Path, layers: str) -> None:
    (fault,) = faults_of(raw_pool, layers=layers)
    missing = "7" if "7" in layers else "2"
    assert fault == f"layers names {missing}, the sources have layers 0 to 1"


def test_layers_of_a_model_without_any(tmp_path: Path) -> None:
    for place, name in enumerate(("base", *SOURCES)):
        write_raw(tmp_path / name, {"w": torch.full((2,), float(place))})
    (fault,) = faults_of(tmp_path, layers="0-20")
    assert fault == "layers names 0, 1, 2, 3, 4, 5, 6, 7 …, the sources have no numbered layers"


def test_numbers_per_source_follow_their_source(raw_pool: Path) -> None:
    """Given in the recipe's order, used in the order of arithmetic."""
    backwards = {name: raw_pool / name for name in reversed(SOURCES)}
    parameters = {"density": [0.1, 0.2, 0.3]}
    plan = make_plan(recipe_of(raw_pool, method="ties", sources=backwards, parameters=parameters))
    assert tuple(plan.sources) == SOURCES
    assert plan.parameters["density"] == [0.3, 0.2, 0.1]
    assert plan.tensors[0].parameters["density"] == [0.3, 0.2, 0.1]
    two = {name: raw_pool / name for name in ("fr-FR", "de-DE")}
    kept = make_plan(recipe_of(raw_pool, method="slerp", sources=two, parameters={"t": 0.25}))
    assert tuple(kept.sources) == ("fr-FR", "de-DE")


def test_density_and_epsilon_are_checked_together(raw_pool: Path) -> None:
    """0.1 is no density for the default epsilon of 0.15, but it is for 0.05."""
    good = {"density": 0.1, "epsilon": 0.05}
    assert make_plan(recipe_of(raw_pool, method="della_ties", parameters=good)).parameters["density"] == 0.1
    (fault,) = faults_of(raw_pool, method="della_ties", parameters={"density": 0.1})
    assert "density 0.1 and epsilon 0.15" in fault
    (fault,) = faults_of(raw_pool, method="della_ties", parameters={"density": 0.1, "epsilon": 0.2})
    assert "density 0.1 and epsilon 0.2" in fault


def test_a_list_of_another_length(raw_pool: Path) -> None:
    (fault,) = faults_of(raw_pool, method="ties", parameters={"density": [0.1, 0.2]})
    assert fault == "ties: density has 2 numbers for 3 sources"
