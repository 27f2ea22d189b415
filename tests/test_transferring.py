"""AdaMergeX beside its baselines on a tiny bench."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from langmerge.adapters import (
    Adapter,
    Transfer,
    arimerge,
    emptied,
    layer_swap,
    open_parsed,
    put_in,
    transfer_adapter,
)
from langmerge.errors import InputError, PoolError
from langmerge.evaluate import Evaluator
from langmerge.models import AdapterShape, load_adapted_classifier, load_tokenizer
from langmerge.tasks import load_task
from langmerge.training import AdapterTraining, Bench, train_adapters
from langmerge.training.epochs import bare
from langmerge.transferring import Comparison, Crossing, compare_transfers
from tests.cli.conftest import Run, run  # noqa: F401
from tests.experiments.conftest import write_task
from tests.tiny_encoder import write_tiny_encoder

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

TARGETS = ("de-DE", "fr-FR", "sw-KE")


@pytest.fixture(scope="module")
def crossing(tmp_path_factory: pytest.TempPathFactory) -> Crossing:
    """Intents of en-US, and masked language models of all."""
    place = tmp_path_factory.mktemp("bench")
    bench = Bench.opened(place / "bench", base=write_tiny_encoder(place / "encoder"))
    task = f"folder:{write_task(place / 'text')}"
    asked = AdapterTraining(
        shape=AdapterShape(rank=2, alpha=4), epochs=3, lr=2e-2, head_lr=2e-2, batch_size=8
    )
    train_adapters(bench, task, ["en-US", "sw-KE"], asked)
    train_adapters(bench, f"mlm:{task}", ["en-US", *TARGETS], asked)
    train_adapters(bench, task, ["en-US"], asked.model_copy(update={"on": f"mlm:{task}"}))
    return Crossing(bench, task, f"mlm:{task}", "en-US", TARGETS, grid=(0.5, 1.0), splits=("dev", "test"))


def test_every_method_on_every_target(crossing: Crossing) -> None:
    found = compare_transfers(crossing)
    methods = {
        "direct transfer",
        "AdaMergeX",
        "AriMerge",
        "language arithmetic",
        "MAD-X stack",
        "head on the bare base",
    }
    assert {(line.target, line.name) for line in found.lines if line.split == "test"} == {
        (target, name) for target in TARGETS for name in methods
    } | {("sw-KE", "self")}
    assert found.left_out == {}
    # The chosen value is the best on the other targets, and its line is that adapter's score.
    evaluator = Evaluator(load_task(crossing.task), load_tokenizer(crossing.bench.model(crossing.task)))
    points = {(point.name, point.value): point for point in found.curve}
    for line in found.lines:
        if line.name != "AdaMergeX":
            continue
        others = [target for target in TARGETS if target != line.target]

        def mean(value: float, others: list[str] = others) -> float:
            return float(np.mean([points["AdaMergeX", value].accuracies[one] for one in others]))

        assert line.value is not None
        assert mean(line.value) == max(mean(value) for value in (0.0, 0.5, 1.0))
        score = by_hand(crossing, evaluator, line.target, line.value, line.split)
        assert line.accuracy == pytest.approx(score)
    direct = {
        line.target: line for line in found.lines if (line.name, line.split) == ("direct transfer", "dev")
    }
    assert points["AdaMergeX", 0.0].accuracies == {target: line.accuracy for target, line in direct.items()}
    assert points["AdaMergeX", 0.0].gain.points == 0


def by_hand(crossing: Crossing, evaluator: Evaluator, target: str, t: float, split: str) -> float:
    bench = crossing.bench
    folder = bench.trained(crossing.task, "en-US")
    if t:
        out = bench.root / f"by-hand-{target}-{t}"
        if not out.exists():
            transfer_adapter(
                out, task_source=folder, reference_target=bench.trained(crossing.reference, target),
                reference_source=bench.trained(crossing.reference, "en-US"), asked=Transfer(t=t),
            )  # fmt: skip
        folder = out
    model = load_adapted_classifier(folder)
    return float(evaluator.logits(lambda: model, f"{target} {t}", target, split).correct.mean())


def test_a_task_above_a_language(crossing: Crossing) -> None:
    """base + ΔW(target's language) + ΔW(task): each put in by itself."""
    found = {
        line.target: line
        for line in compare_transfers(crossing).lines
        if line.name == "MAD-X stack" and line.split == "dev"
    }
    bench = crossing.bench
    above = bench.trained(crossing.task, "en-US", on=crossing.reference)
    assert json.loads((above / "langmerge_adapter.json").read_text())["on"] == crossing.reference
    model = load_adapted_classifier(above)
    put_in(bare(model), _renamed(open_parsed(bench.trained(crossing.reference, "sw-KE"))))
    evaluator = Evaluator(load_task(crossing.task), load_tokenizer(bench.model(crossing.task)))
    logits = evaluator.logits(lambda: model, "stack", "sw-KE", "dev")
    assert found["sw-KE"].accuracy == pytest.approx(float(logits.correct.mean()))


def _renamed(adapter: Adapter) -> Adapter:
    """For a model that PEFT has wrapped: its modules lie in layers of PEFT's."""
    return replace(adapter, keys={f"{name}.base_layer": keys for name, keys in adapter.keys.items()})


def test_what_was_predicted_is_kept(crossing: Crossing, monkeypatch: pytest.MonkeyPatch) -> None:
    first = compare_transfers(crossing)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("an adapter was loaded again")

    monkeypatch.setattr("langmerge.transferring.AdaptedModel.holding", never)
    assert compare_transfers(crossing) == first


def test_a_targets_own_labels_choose_nothing(crossing: Crossing) -> None:
    """With the target's dev rows turned upside down, its value stays."""
    work = Comparison(crossing)
    family = next(one for one in work.families if one.name == "AdaMergeX")
    before, others = work.chosen(family, "sw-KE"), work.chosen(family, "de-DE")
    for key, one in list(work._tried.items()):
        if key[1] == "sw-KE":
            # Right wherever t is 1, wrong elsewhere.
            wrong = (one.predictions + (key[2] != 1.0)) % 3
            work._tried[key] = type(one)(one.signature, one.ids, wrong.astype(np.int64), one.values)
    assert work.chosen(family, "sw-KE") == before
    assert work.chosen(family, "de-DE") == 1.0 != others


def test_faults(crossing: Crossing) -> None:
    with pytest.raises(InputError, match="give two or more, without the source en-US"):
        compare_transfers(replace(crossing, targets=("sw-KE",)))
    with pytest.raises(InputError, match="without the source"):
        compare_transfers(replace(crossing, targets=("sw-KE", "en-US")))
    with pytest.raises(PoolError, match=r"has no adapter for .* in cy-GB"):
        compare_transfers(replace(crossing, targets=("sw-KE", "cy-GB")))
    with pytest.raises(InputError, match="mode 'ratio' is not for lora"):
        compare_transfers(replace(crossing, mode="ratio"))


# Baselines.


def three(crossing: Crossing) -> dict[str, Path]:
    bench = crossing.bench
    return {
        "task_source": bench.trained(crossing.task, "en-US"),
        "reference_target": bench.trained(crossing.reference, "sw-KE"),
        "reference_source": bench.trained(crossing.reference, "en-US"),
    }


def test_arimerge_by_hand(crossing: Crossing, tmp_path: Path) -> None:
    folders = three(crossing)
    arimerge(tmp_path / "out", **folders, c=0.25)
    one, two, other, made = (
        load_file(f / "adapter_model.safetensors") for f in (*folders.values(), tmp_path / "out")
    )
    for name, own in made.items():
        if "lora_A" in name:
            expected = 0.75 * one[name] + 0.25 * two[name] + 0.25 * other[name]
        elif "lora_B" in name:
            expected = 0.75 * one[name] + 0.25 * two[name] - 0.25 * other[name]
        else:
            expected = one[name]
        np.testing.assert_allclose(own, expected, rtol=1e-5, atol=1e-7)
    with pytest.raises(InputError, match="between 0 and 1"):
        arimerge(tmp_path / "never", **folders, c=1.0)


def test_layers_are_exchanged(crossing: Crossing, tmp_path: Path) -> None:
    folders = three(crossing)
    layer_swap(
        tmp_path / "out", task=folders["task_source"], language=folders["reference_target"], layers={1}
    )
    one, two, made = (
        load_file(f / "adapter_model.safetensors")
        for f in (folders["task_source"], folders["reference_target"], tmp_path / "out")
    )
    for name, own in made.items():
        expected = two if "layer.1." in name else one
        np.testing.assert_array_equal(own, expected[name])
    with pytest.raises(InputError, match=r"no module in layers \[7\]"):
        layer_swap(
            tmp_path / "never", task=folders["task_source"], language=folders["reference_target"], layers={7}
        )


def test_an_adapter_that_does_nothing_but_bring_the_head(crossing: Crossing, tmp_path: Path) -> None:
    task = three(crossing)["task_source"]
    emptied(tmp_path / "out", task=task)
    with_adapter, without = load_adapted_classifier(task), load_adapted_classifier(tmp_path / "out")
    import torch

    ids = torch.tensor([[0, 5, 6, 2]])
    with torch.inference_mode():
        expected = without(input_ids=ids).logits
        for name, one in with_adapter.named_parameters():
            if "lora_B" in name:
                one.zero_()
        torch.testing.assert_close(with_adapter(input_ids=ids).logits, expected)


def test_the_command(crossing: Crossing, run: Run) -> None:  # noqa: F811
    asked = (
        "adapters", "compare", crossing.bench.root, "--task", crossing.task, "--reference", crossing.reference,
        "--targets", ",".join(TARGETS), "--grid", "0,0.5,1",
    )  # fmt: skip
    ran = run(*asked)
    assert (ran.code, ran.err) == (0, "")
    assert "AdaMergeX" in ran.out
    assert "every value on dev" in ran.out
    found = json.loads(run(*asked, "--report", "test", "--json").out)
    assert {line["split"] for line in found["lines"]} == {"dev", "test"}
    assert found["curve"][0]["value"] == 0
    for more, says in ((("--grid", "x"), "--grid 'x'"), (("--report", "train"), "give dev or test")):
        ran = run(*asked, *more)
        assert (ran.code, ran.out) == (2, "")
        assert says in ran.err


def test_training_by_command(crossing: Crossing, run: Run, tmp_path: Path) -> None:  # noqa: F811
    asked = (
        "adapters",
        "train",
        tmp_path / "bench",
        "--task",
        crossing.task,
        "--locales",
        "en-US,de-DE",
        "--epochs",
        "1",
    )
    ran = run(*asked)
    assert ran.code == 2
    assert "make one with langmerge adapters train --base" in ran.err
    ran = run(*asked, "--base", crossing.bench.base, "--kind", "ia3", "--batch-size", "8")
    assert ran.code == 0, ran.err
    assert "ia3 adapters for" in ran.out
    ran = run(*asked, "--kind", "lohan")
    assert (ran.code, ran.out, ran.err) == (2, "", "error: --kind is 'lohan': give lora, ia3 or prefix\n")
