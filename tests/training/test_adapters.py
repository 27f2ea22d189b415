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
    load_form,
    new_classifier,
    new_model,
)
from langmerge.training import AdapterTraining, Bench, train_adapters
from langmerge.training.completion import completion_loss, completions, mean_completion_loss
from langmerge.training.fitting import Pace
from langmerge.training.masked import masked, masked_loss, mean_masked_loss, train_masked
from tests.experiments.conftest import write_task
from tests.tiny_encoder import write_tiny_encoder
from tests.tiny_pool import write_rows

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
    assert max(record["training"]["scores"]) > 0.7
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


def test_tasks_that_differ_in_a_hyphen_have_folders_of_their_own(base: Path, tmp_path: Path) -> None:
    bench = Bench.opened(tmp_path / "bench", base=base)
    names = {
        bench.adapter(f"folder:/data/{one}", "sw-KE").parent.name for one in ("news/sw", "news-sw", "news sw")
    }
    assert len(names) == 3
    assert bench.adapter("massive:intent", "sw-KE").parent.name == "massive-intent"


def test_a_task_whose_labels_have_changed_needs_a_new_bench(base: Path, tmp_path: Path) -> None:
    bench, text = Bench.opened(tmp_path / "bench", base=base), tmp_path / "text"
    for split in ("train", "dev", "test"):
        (text / "sw-KE").mkdir(parents=True, exist_ok=True)
        rows = [{"id": f"{split}{i}", "text": "a b", "label": label} for i, label in enumerate(("x", "y"))]
        write_rows(text / "sw-KE" / f"{split}.jsonl", rows)
    first = bench.model(f"folder:{text}")
    assert bench.model(f"folder:{text}") == first
    for file in (text / "sw-KE").iterdir():
        file.write_text(file.read_text().replace('"y"', '"z"'))
    with pytest.raises(PoolError, match="has a head for other labels of folder:"):
        bench.model(f"folder:{text}")


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
    model = load_form(Bench.opened(tmp_path / "bench", base=base).model(f"mlm:{task}"), "masked")
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
    model = load_form(Bench.opened(tmp_path / "bench", base=base).model(f"mlm:{task}"), "masked")
    with pytest.raises(TrainingError, match="needs 2 texts or more"):
        train_masked(model, [[0, 5, 2]], Pace(1, 1e-3, 1e-3), special=frozenset(), mask_id=9)


# Slots.


@pytest.fixture
def massive(tmp_path: Path) -> Path:
    """A folder like MASSIVE's whose rows name a time behind a word that says so."""
    folder = tmp_path / "data" / "massive" / "1.1" / "data"
    folder.mkdir(parents=True)
    rng, rows = np.random.default_rng(0), []
    for number in range(90):
        words = [str(one) for one in rng.choice(["wake", "me", "up", "please"], 2)]
        when = [str(one) for one in rng.choice(["today", "sun", "rain"], int(rng.integers(1, 3)))]
        text, marked = " ".join([*words, *when]), " ".join([*words, f"[time : {' '.join(when)}]"])
        rows.append(
            {
                "id": str(number), "locale": "en-US", "partition": ("train", "train", "dev")[number % 3],
                "scenario": "alarm", "intent": "alarm_set", "utt": text, "annot_utt": marked,
            }
        )  # fmt: skip
    (folder / "en-US.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "data"


@pytest.mark.parametrize("kind", ["lora", "prefix"])
def test_slots_are_learned(base: Path, massive: Path, tmp_path: Path, kind: str) -> None:
    bench = Bench.opened(tmp_path / "bench", base=base, data=massive)
    asked = training(shape={"kind": kind}, epochs=8, lr=2e-2)
    record = train_adapters(bench, "massive:slots", ["en-US"], asked)["en-US"]
    assert record["training"]["score"] == "span F1"
    assert max(record["training"]["scores"]) > 0.9
    assert record["labels"][0] == "O"
    modules = {
        name for name in load_file(bench.trained("massive:slots", "en-US") / WEIGHTS) if "lora_" in name
    }
    assert {name.split(".layer.")[1][0] for name in modules} == (
        {"0", "1"} if kind == "lora" else set()
    ) or not modules


# Causal language models.


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    """A two-layer Llama of width 16 with the encoder's tokenizer."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("causal") / "llama"
    config = LlamaConfig(
        vocab_size=15, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        intermediate_size=32, max_position_embeddings=64, bos_token_id=0, eos_token_id=2, pad_token_id=1,
        initializer_range=0.2,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


def test_the_prompt_has_no_loss(causal: Path) -> None:
    model, tokenizer = new_model(causal, "causal", seed=0)
    rows = completions(tokenizer, ["play music", "stop"], ["rain", "sun today"])
    assert [(len(ids), prompt) for ids, prompt in rows] == [(5, 3), (5, 2)]
    assert [ids[-1] for ids, _ in rows] == [2, 2]
    total, count = completion_loss(model, rows)
    expected = 0.0
    for ids, prompt in rows:
        logits = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1).detach()
        expected -= sum(float(logits[place - 1, ids[place]]) for place in range(prompt, len(ids)))
    assert count == 5
    assert float(total.detach()) == pytest.approx(expected, rel=1e-4)
    assert mean_completion_loss(model, rows) == pytest.approx(expected / 5, rel=1e-4)
    (long, prompt), *_ = completions(tokenizer, ["play music stop rain"], ["sun"], max_length=5)
    assert (len(long), prompt, long[1:3]) == (
        5,
        3,
        tokenizer("stop rain", add_special_tokens=False)["input_ids"],
    )


@pytest.mark.parametrize("kind", ["lora", "ia3", "prefix"])
@pytest.mark.parametrize("start", ["clm:", "prompt:"])
def test_causal_adapters_learn(causal: Path, task: str, tmp_path: Path, kind: str, start: str) -> None:
    bench = Bench.opened(tmp_path / "bench", base=causal)
    asked = training(shape={"kind": kind}, epochs=3, lr=5e-2, prompt="{text} ")
    record = train_adapters(bench, f"{start}{task}", ["en-US"], asked)["en-US"]
    losses = record["training"]["train_loss"]
    assert losses[-1] < losses[0]
    assert record["training"]["score"] == "− dev loss, nats"
    assert bench.trained(f"{start}{task}", "en-US").is_dir()


def test_rates_by_kind_and_task() -> None:
    """A language adapter at the rate of a task adapter loses the encoder (docs/results.md)."""
    plain = AdapterTraining()
    assert (plain.rate("massive:intent"), plain.rate("mlm:massive:intent")) == (2e-3, 3e-4)
    assert AdapterTraining(lr=1e-3).rate("mlm:massive:intent") == 1e-3
    assert AdapterTraining(shape=AdapterShape(kind="ia3")).rate("mlm:massive:intent") == 1e-2
