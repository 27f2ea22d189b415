"""A bench of adapters: one draw for all, what trains, what is kept, and masked language modelling."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from langmerge.errors import CheckpointError, LocaleError, PoolError, TrainingError
from langmerge.models import (
    AdapterShape,
    add_adapter,
    load_adapted_classifier,
    load_masked_lm,
    new_classifier,
)
from langmerge.training import AdapterTraining, Bench, train_adapters
from langmerge.training.masked import masked, masked_loss, mean_masked_loss, train_masked
from tests.experiments.conftest import write_task
from tests.tiny_encoder import write_tiny_encoder

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_encoder(tmp_path_factory.mktemp("base") / "encoder")


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"folder:{write_task(tmp_path_factory.mktemp('text') / 'text')}"


def training(**changes: Any) -> AdapterTraining:
    shape = AdapterShape(**{"rank": 2, "alpha": 4, "tokens": 3, **changes.pop("shape", {})})
    return AdapterTraining(shape=shape, **{"epochs": 2, "head_lr": 2e-2, "batch_size": 8, **changes})


@pytest.mark.parametrize("kind", ["lora", "ia3", "prefix"])
def test_adapters_learn_and_load(base: Path, task: str, tmp_path: Path, kind: str) -> None:
    bench = Bench.opened(tmp_path / "bench", base=base)
    asked = training(shape={"kind": kind}, epochs=6, lr=2e-2)
    record = train_adapters(bench, task, ["en-US"], asked)["en-US"]
    assert max(record["training"]["dev_accuracy"]) > 0.7
    assert (record["kind"], record["locale"], record["labels"]) == (
        kind,
        "en-US",
        ["alarm", "music", "weather"],
    )
    folder = bench.trained(task, "en-US")
    assert json.loads((folder / "langmerge_adapter.json").read_text()) == record
    model = load_adapted_classifier(folder)
    assert list(model.config.id2label.values()) == record["labels"]
    assert len(load_file(folder / WEIGHTS)) > 3
    again = train_adapters(bench, task, ["en-US"], asked)["en-US"]
    assert again == record
    other = train_adapters(bench, task, ["en-US"], asked.model_copy(update={"epochs": 1}))["en-US"]
    assert other["signature"] != record["signature"]


def starts(
    base: Path, kind: str, *, seeds: tuple[int, int], labels: tuple[int, int]
) -> list[dict[str, torch.Tensor]]:
    found = []
    for seed, count in zip(seeds, labels, strict=True):
        model, _ = new_classifier(base, [f"label {i}" for i in range(count)], seed=count)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = add_adapter(model, AdapterShape(kind=kind, rank=2, tokens=3), seed=seed)  # type: ignore[arg-type]
        found.append(
            {n: p.detach() for n, p in made.named_parameters() if p.requires_grad and "classifier" not in n}
        )
    return found


@pytest.mark.parametrize("kind", ["lora", "prefix"])
def test_one_draw_for_all_tasks(base: Path, kind: str) -> None:
    one, two = starts(base, kind, seeds=(4, 4), labels=(3, 7))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    one, two = starts(base, kind, seeds=(4, 5), labels=(3, 3))
    assert not all(torch.equal(one[name], two[name]) for name in one)


def test_the_layer_that_pools_gets_none(base: Path) -> None:
    one, _ = starts(base, "lora", seeds=(0, 0), labels=(3, 3))
    assert {name.split(".layer.")[1][0] for name in one} == {"0", "1"}


def test_own_draws_by_task_and_locale() -> None:
    shared, own = AdapterTraining(seed=3), AdapterTraining(seed=3, shared=False)
    assert shared.draw("a", "en-US") == shared.draw("b", "sw-KE") == 3
    assert len({own.draw(task, locale) for task in "ab" for locale in ("en-US", "sw-KE")}) == 4


def test_a_bench_has_one_base(base: Path, tmp_path: Path) -> None:
    with pytest.raises(
        PoolError, match="is no bench of adapters: make one with langmerge adapters train --base"
    ):
        Bench.opened(tmp_path / "bench")
    bench = Bench.opened(tmp_path / "bench", base=base)
    assert Bench.opened(tmp_path / "bench").pretrained == bench.pretrained
    other = write_tiny_encoder(tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 1e-3}))
    with pytest.raises(PoolError, match=r"stands on .*encoder, not on .*other"):
        Bench.opened(tmp_path / "bench", base=other)
    with pytest.raises(PoolError, match=r"has no adapter for demo:intent in sw-KE: langmerge adapters train"):
        bench.trained("demo:intent", "sw-KE")


def test_faults_before_training(base: Path, task: str, tmp_path: Path) -> None:
    bench = Bench.opened(tmp_path / "bench", base=base)
    with pytest.raises(LocaleError):
        train_adapters(bench, task, ["en-US", "th-TH"], training())
    assert not (tmp_path / "bench" / "adapters").exists()
    with pytest.raises(CheckpointError, match="no adapter can be put on"):
        train_adapters(bench, task, ["en-US"], training(shape={"targets": ("nothing",)}))
    with pytest.raises(CheckpointError, match="a prefix is for the layers of a classifier"):
        train_adapters(bench, f"mlm:{task}", ["en-US"], training(shape={"kind": "prefix"}))


# Masked language modelling.


def test_a_masked_lm_learns_and_its_modules_are_the_classifiers(
    base: Path, task: str, tmp_path: Path
) -> None:
    bench = Bench.opened(tmp_path / "bench", base=base)
    record = train_adapters(bench, f"mlm:{task}", ["en-US"], training(epochs=6, lr=3e-2))["en-US"]
    losses = record["training"]["train_loss"]
    assert losses[-1] < losses[0] - 0.1
    assert record["labels"] is None
    train_adapters(bench, task, ["en-US"], training())
    own, other = (
        {name for name in load_file(bench.trained(one, "en-US") / WEIGHTS) if "lora_" in name}
        for one in (f"mlm:{task}", task)
    )
    assert own == other
    heads = {
        name for name in load_file(bench.trained(f"mlm:{task}", "en-US") / WEIGHTS) if "lora_" not in name
    }
    assert {name.split("lm_head.")[1] for name in heads} == {
        "dense.weight", "dense.bias", "layer_norm.weight", "layer_norm.bias",
    }  # fmt: skip


SPECIAL = {"special": frozenset({0, 1, 2}), "mask_id": 9, "vocabulary": 12}


def test_what_is_hidden() -> None:
    texts = [[0, *([5] * 200), 2]] * 50
    hidden, asked = masked(texts, np.random.default_rng(0), **SPECIAL)  # type: ignore[arg-type]
    flat, wanted = np.concatenate(hidden), np.concatenate(asked)
    places = wanted >= 0
    assert set(wanted[places]) == {5}
    assert places.mean() == pytest.approx(0.15, abs=0.01)
    assert (flat[places] == 9).mean() == pytest.approx(0.8 + 0.1 / 12, abs=0.02)
    assert (flat[places] == 5).mean() == pytest.approx(0.1 + 0.1 / 12, abs=0.02)
    assert (flat[~places] == np.concatenate(texts)[~places]).all()
    short, one = masked([[0, 7, 2], [0, 2]], np.random.default_rng(0), **SPECIAL)  # type: ignore[arg-type]
    assert one == [[-1, 7, -1], [-1, -1]]
    assert short[1] == [0, 2]


def test_the_loss_is_that_of_the_whole_head(base: Path, task: str, tmp_path: Path) -> None:
    model = load_masked_lm(Bench.opened(tmp_path / "bench", base=base).model(f"mlm:{task}"))
    ids, asked = [[0, 5, 14, 7, 2], [0, 14, 2]], [[-1, -1, 6, 7, -1], [-1, 4, -1]]
    total, count = masked_loss(model, ids, asked)
    expected = 0.0
    for row, wanted in zip(ids, asked, strict=True):
        logits = model(input_ids=torch.tensor([row])).logits[0].log_softmax(-1).detach()
        expected -= sum(float(logits[place, one]) for place, one in enumerate(wanted) if one >= 0)
    assert count == 3
    assert float(total.detach()) == pytest.approx(expected, rel=1e-4)
    assert mean_masked_loss(model, ids, asked) == pytest.approx(expected / 3, rel=1e-4)


def test_too_little_text(base: Path, task: str, tmp_path: Path) -> None:
    model = load_masked_lm(Bench.opened(tmp_path / "bench", base=base).model(f"mlm:{task}"))
    with pytest.raises(TrainingError, match="needs 2 texts or more"):
        train_masked(model, [[0, 5, 2]], special=frozenset(), mask_id=9, epochs=1, lr=1e-3, head_lr=1e-3)
