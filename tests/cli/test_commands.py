"""The commands on tiny models: tables for people, one JSON document for programs."""

import json
from pathlib import Path

import pytest
import torch

from langmerge.coefficients import Coefficients
from langmerge.models import load_classifier
from tests.cli.conftest import Run
from tests.experiments.conftest import tiny_grid, write_task
from tests.tiny import QUERY, SHAPES, WORDS, write_raw_pool
from tests.tiny_encoder import write_tiny_encoder
from tests.tiny_pool import write_tiny_pool


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a task and an encoder."""
    root = tmp_path_factory.mktemp("commands")
    write_task(root / "text")
    write_tiny_encoder(root / "encoder")
    return root


def test_from_training_to_a_measured_merge(run: Run, place: Path) -> None:
    task = f"folder:{place / 'text'}"
    pool = place / "pool"
    options = [
        "--task",
        task,
        "--locales",
        "en-US,de-DE,sw-KE",
        "--epochs",
        "2",
        "--lr",
        "0.005",
        "--head-lr",
        "0.02",
    ]
    trained = run("train", pool, "--base", place / "encoder", *options, "--json")
    assert trained.code == 0, trained.err
    assert set(json.loads(trained.out)["experts"]) == {"en-US", "de-DE", "sw-KE"}

    measured = run("matrix", pool, "--json")
    assert measured.code == 0, measured.err
    assert json.loads(measured.out)["split"] == "dev"

    chosen = run("select", pool, "--target", "sw-KE", "-k", "2", "-o", place / "c.json", "--json")
    assert chosen.code == 0, chosen.err
    assert set(Coefficients.load(place / "c.json").sources) == {"en-US", "de-DE"}
    assert json.loads(chosen.out)["values"] == Coefficients.load(place / "c.json").values

    merged = run(
        "merge",
        place / "merged",
        "--pool",
        pool,
        "--target",
        "sw-KE",
        "--method",
        "ties",
        "-k",
        "2",
        "-p",
        "density=0.5",
        "--json",
    )
    assert merged.code == 0, merged.err
    assert (
        json.loads(merged.out)["signature"]
        == json.loads((place / "merged" / "langmerge.json").read_text())["signature"]
    )

    scored = run(
        "evaluate",
        place / "merged",
        "--task",
        task,
        "--locales",
        "sw-KE",
        "--against",
        pool / "base",
        "--json",
    )
    assert scored.code == 0, scored.err
    payload = json.loads(scored.out)
    score = payload["scores"]["sw-KE"]
    assert score["accuracy_interval"]["low"] <= score["accuracy"] <= score["accuracy_interval"]["high"]
    assert payload["differences"]["sw-KE"]["n"] == score["rows"] == 60

    people = run("evaluate", place / "merged", "--task", task, "--locales", "sw-KE")
    assert "accuracy %" in people.out
    assert people.err == ""


def test_a_pool_of_checkpoints_that_exist(run: Run, place: Path) -> None:
    task = f"folder:{place / 'text'}"
    first = place / "first"
    options = ["--task", task, "--locales", "en-US,de-DE", "--epochs", "1"]
    assert run("train", first, "--base", place / "encoder", *options).code == 0
    experts = [f"--expert={locale}={first / 'experts' / locale}" for locale in ("en-US", "de-DE")]
    made = run("pool", "create", place / "second", "--base", first / "base", *experts, "--task", task)
    assert made.code == 0, made.err
    assert run("matrix", place / "second").code == 0
    assert "de-DE" in run("select", place / "second", "--target", "en-US", "-k", "1").out


def test_the_targets_labels_are_learned_from_a_merge_head_and_all(run: Run, place: Path) -> None:
    task = f"folder:{place / 'text'}"
    first, merged = place / "others", place / "from-here"
    options = ["--task", task, "--epochs", "1"]
    assert run("train", first, "--base", place / "encoder", "--locales", "en-US,de-DE", *options).code == 0
    assert run("matrix", first, "--locales", "en-US,de-DE,sw-KE").code == 0
    assert run("merge", merged, "--pool", first, "--target", "sw-KE", "-k", "2").code == 0
    ran = run("train", place / "own", "--base", merged, "--locales", "sw-KE", *options)
    assert ran.code == 0, ran.err
    assert (
        f"note: {merged} is a classifier for these labels: training goes on from it, head and all" in ran.err
    )
    name = "classifier.out_proj.weight"
    start, given, fresh = (
        load_classifier(folder).state_dict()[name]
        for folder in (place / "own" / "base", merged, first / "base")
    )
    assert torch.equal(start, given)
    assert not torch.equal(start, fresh)


def test_a_pool_that_was_made_of_checkpoints_keeps_its_base(run: Run, tmp_path: Path) -> None:
    """Such a pool does not say what its base was made from; another one is refused all the same."""
    own = write_tiny_pool(tmp_path)
    text = str(own.task)
    made = tmp_path / "made"
    created = run(
        "pool",
        "create",
        made,
        "--base",
        own.base_folder,
        "--task",
        text,
        "--expert",
        f"sw-KE={own.expert('sw-KE')}",
    )
    assert created.code == 0, created.err
    (own.base_folder / "langmerge_origin.json").unlink()
    line = ("--locales", "de-DE", "--task", text, "--epochs", "1")
    other = run("train", made, "--base", tmp_path / "encoder", *line)
    assert other.code == 2
    assert "has a base of its own" in other.err
    assert run("train", made, "--base", own.base_folder, *line).code == 0


def test_a_sweep_ends_with_verdict_and_page(run: Run, tmp_path: Path) -> None:
    import yaml

    grid = tiny_grid(tmp_path, modes=["ExcTar"], methods=[{"method": "wudi"}], k=[2], training={"epochs": 1})
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid.model_dump(mode="json")))
    dry = run("sweep", tmp_path / "grid.yaml", "--out", tmp_path / "out", "--dry-run")
    assert "seed 0: 4 experts to train and measure: en-US, de-DE, fr-FR, sw-KE" in dry.out
    assert "10 cells: 0 done, 0 failed, 10 to do; --keep-models would write 1 models" in dry.out
    assert dry.out.count("by a few rows tried here") == 3
    assert not (tmp_path / "out").exists()
    ran = run("sweep", tmp_path / "grid.yaml", "--out", tmp_path / "out")
    assert ran.code == 0, ran.err
    assert "sw-KE (ExcTar): merging " in ran.out
    assert "<svg" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert (tmp_path / "out" / "store.sqlite").exists()
    assert (tmp_path / "out" / "results.md").exists()
    done = run("sweep", tmp_path / "grid.yaml", "--out", tmp_path / "out", "--dry-run")
    assert done.out.strip() == "10 cells: 10 done, 0 failed, 0 to do; --keep-models would write 1 models"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe that leaves some parts out."""
    write_raw_pool(tmp_path)
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "base: base\nsources: {de-DE: de-DE, fr-FR: fr-FR}\nmethod: ties\nparameters: {density: 0.5}\n"
        "embeddings: source:fr-FR\nlayers: 1\n"
    )
    return path


def test_a_plan_says_what_becomes_of_every_tensor(run: Run, recipe: Path) -> None:
    ran = run("plan", recipe, "--json")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    tensors = {tensor.pop("name"): tensor for tensor in found["tensors"]}
    assert {name: tuple(tensor["shape"]) for name, tensor in tensors.items()} == SHAPES
    assert tensors[WORDS] == {
        "shape": [12, 6], "dtype": "F32", "treatment": "source", "method": "", "parameters": {},
        "reason": "the recipe says embeddings: source:fr-FR", "weights": {"de-DE": 0.0, "fr-FR": 1.0},
    }  # fmt: skip
    assert (tensors[QUERY]["treatment"], tensors[QUERY]["reason"]) == ("base", "the recipe says layers: 1")
    merged = tensors["roberta.encoder.layer.1.output.dense.weight"]
    assert (merged["method"], merged["parameters"]["density"]) == ("ties", 0.5)
    people = run("plan", recipe)
    assert people.code == 0
    assert "by the method" in people.out
    assert {path.name for path in recipe.parent.iterdir()} == {
        "base",
        "de-DE",
        "fr-FR",
        "sw-KE",
        "recipe.yaml",
    }


def test_threads_and_parameters_of_a_merge(run: Run, recipe: Path) -> None:
    first, second = recipe.parent / "first", recipe.parent / "second"
    ran = run("merge", recipe, first, "--threads", "1", "-p", "density=0.25", "--json")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["treatments"] == {"merged": 5, "source": 2, "base": 2}
    assert run("merge", recipe, second, "--threads", "3", "-p", "density=0.25", "--shard", "0.001").code == 0
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
    assert json.loads((first / "langmerge.json").read_text())["parameters"]["density"] == 0.25


def test_help_names_every_command(run: Run) -> None:
    ran = run("--help")
    for command in (
        "demo",
        "base",
        "train",
        "evaluate",
        "matrix",
        "similarity",
        "select",
        "estimate",
        "plan",
        "merge",
        "sweep",
        "pool",
        "doctor",
    ):
        assert f"  {command} " in ran.out


def test_doctor_says_what_is_missing(run: Run, tmp_path: Path) -> None:
    ran = run("doctor", "--data", tmp_path / "nowhere", "--json")
    assert ran.code == 0
    found = json.loads(ran.out)
    assert found["data"] is None
    assert any("LANGMERGE_DATA" in line for line in found["missing"])
