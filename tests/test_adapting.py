"""AdaMerging on a pool: what it reads, what its file replays, and the hybrid rule."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from langmerge.adapting import Adapted, Problem, Resident, adapt, decide
from langmerge.coefficients import Coefficients
from langmerge.engine import make_plan, merge
from langmerge.errors import InputError, SelectionError
from langmerge.evaluate import PoolEvaluator
from langmerge.learned.objectives import entropy
from langmerge.learned.settings import PRESETS, Settings, settings_of
from langmerge.models import encode, predict_logits
from langmerge.pool import Pool
from langmerge.recipe import Recipe
from langmerge.results import Logits
from langmerge.tasks import Unlabelled, load_task, task_text
from tests.tiny_pool import task_folder, write_tiny_pool

SOURCES = ("de-DE", "en-US", "fr-FR")


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """Read-only, but for logits that are kept."""
    return write_tiny_pool(tmp_path_factory.mktemp("adapting"))


def evaluator_of(pool: Pool) -> PoolEvaluator:
    return PoolEvaluator(pool, load_task(pool.task))


def quick(preset: str = "safe", **changes: Any) -> Settings:
    return settings_of(
        preset, **{"steps": 4, "batch_size": 8, "check_every": 2, "lr": 0.02, "bf16": False, **changes}
    )


def problem_of(pool: Pool, *, sources: tuple[str, ...] = SOURCES, **changes: Any) -> Problem:
    settings = changes.pop("settings", quick())
    text = changes.pop("text", None) or task_text(load_task(pool.task), "sw-KE")
    return Problem(Coefficients.uniform(sources), "sw-KE", text, settings, **changes)


def recipe_of(pool: Pool, found: Coefficients) -> Recipe:
    return Recipe(
        base=pool.base_folder,
        sources={source: pool.expert(source) for source in found.sources},
        method=found.provenance["method"],
        parameters=found.provenance["parameters"],
        coefficients=found,
    )


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_merging_with_the_file_gives_the_adapted_model_bit_for_bit(
    pool: Pool, tmp_path: Path, preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[Resident] = []
    whole = Resident.__init__

    def keeping(self: Resident, *arguments: Any, **named: Any) -> None:
        whole(self, *arguments, **named)
        left.append(self)

    monkeypatch.setattr(Resident, "__init__", keeping)
    found = adapt(evaluator_of(pool), problem_of(pool, settings=quick(preset)))
    found.coefficients.save(tmp_path / "c.json")
    out = merge(recipe_of(pool, Coefficients.load(tmp_path / "c.json")), tmp_path / "out")
    written, held = load_file(out / "model.safetensors"), dict(left[0].model.state_dict())
    embeddings = "roberta.embeddings.word_embeddings.weight"
    # Its rows are those that the text uses: compared by the predictions below.
    held.pop(embeddings)
    assert len(held) > 30
    assert found.learned.values.std() > 0
    for name, one in held.items():
        assert torch.equal(one, written[name]), name


def test_its_predictions_are_those_of_the_merged_model(pool: Pool) -> None:
    plan = make_plan(
        recipe_of(
            pool, Coefficients.uniform(SOURCES, provenance={"method": "task_arithmetic", "parameters": {}})
        )
    )
    evaluator = evaluator_of(pool)
    encoded = encode(evaluator.tokenizer, task_text(evaluator.task, "sw-KE").texts)
    resident = Resident(plan, [encoded[:9], encoded[9:]], device=torch.device("cpu"))
    held = Resident(plan, [encoded], device=torch.device("cpu"))
    held.deltas = held._held(torch.device("cpu"))
    weights = {name: [0.5, 0.25, 0.1] for name in resident.deltas.tensors}
    for one in (resident, held):
        one.deltas.fill(weights)
    logits = predict_logits(resident.model, resident.encoded[1])
    np.testing.assert_allclose(logits, predict_logits(held.model, held.encoded[0][9:]), rtol=0, atol=2e-6)


def test_labels_are_never_looked_at(pool: Pool, tmp_path: Path) -> None:
    """Other labels in every file of the target: the same bytes."""

    def learned(root: Path) -> str:
        own = Pool.load(root)
        return json.dumps(adapt(evaluator_of(own), problem_of(own)).coefficients.values)

    (tmp_path / "a").mkdir()
    first = _copied(pool, tmp_path / "a")
    (tmp_path / "b").mkdir()
    second = _copied(pool, tmp_path / "b")
    for file in (task_folder(Pool.load(second)) / "sw-KE").iterdir():
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        turned = [row["label"] for row in reversed(rows)]
        file.write_text(
            "".join(json.dumps({**r, "label": t}) + "\n" for r, t in zip(rows, turned, strict=True))
        )
    assert learned(first) == learned(second)


def _copied(pool: Pool, root: Path) -> Path:
    shutil.copytree(task_folder(pool), root / "text")
    shutil.copytree(pool.root, root / "pool")
    file = root / "pool" / "pool.yaml"
    file.write_text(file.read_text().replace(str(task_folder(pool)), str(root / "text")))
    shutil.rmtree(root / "pool" / "logits")
    return root / "pool"


def test_the_teacher_is_the_mean_of_the_sources_or_in_inctar_the_targets_own_expert(pool: Pool) -> None:
    assert problem_of(pool).teachers == SOURCES
    own = problem_of(pool, sources=("en-US", "sw-KE"))
    assert own.teachers == ("sw-KE",)
    assert problem_of(pool, teacher=("fr-FR",)).teachers == ("fr-FR",)


def test_soft_labels_are_kept_and_taken_again(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    first = adapt(evaluator_of(pool), problem_of(pool))

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("a teacher was run again")

    monkeypatch.setattr(PoolEvaluator, "_predicted", never)
    again = adapt(evaluator_of(pool), problem_of(pool))
    assert again.coefficients == first.coefficients


def test_the_order_of_sources_changes_nothing(pool: Pool) -> None:
    forth = adapt(evaluator_of(pool), problem_of(pool))
    back = adapt(evaluator_of(pool), problem_of(pool, sources=SOURCES[::-1]))
    assert {
        s: forth.coefficients.for_tensor("roberta.encoder.layer.0.output.dense.bias")[s] for s in SOURCES
    } == {s: back.coefficients.for_tensor("roberta.encoder.layer.0.output.dense.bias")[s] for s in SOURCES}


def test_a_custom_objective(pool: Pool, tmp_path: Path) -> None:
    found = adapt(evaluator_of(pool), problem_of(pool), objective=lambda logits, _: entropy(logits))
    named = adapt(evaluator_of(pool), problem_of(pool, settings=quick(objective="entropy")))
    np.testing.assert_array_equal(found.learned.values, named.learned.values)
    assert found.coefficients.provenance["settings"]["objective"] == "custom"
    with pytest.raises(InputError, match="custom objective"):
        adapt(
            evaluator_of(pool), problem_of(pool), objective=lambda z, _: entropy(z), state=tmp_path / "s.json"
        )


def test_text_that_overlaps_test_is_recorded(pool: Pool) -> None:
    text = task_text(load_task(pool.task), "sw-KE", split="test")
    recorded = adapt(evaluator_of(pool), problem_of(pool, text=text)).coefficients.provenance["text"]
    assert recorded["overlap_with_test"] == len(text)
    assert "transductive" in recorded["notes"][0]


def test_beside_the_result_stand_start_uniform_best_source_vote_and_self(pool: Pool) -> None:
    found = adapt(evaluator_of(pool), problem_of(pool, sources=("de-DE", "en-US", "sw-KE")), beside=True)
    names = [line["name"] for line in found.beside]
    assert [name.split(" (")[0] for name in names] == [
        "start",
        "uniform",
        "learned",
        "best source",
        "soft vote",
        "self",
    ]
    own = dict(zip(names, found.beside, strict=True))
    assert own["start"]["accuracy"] == own["uniform"]["accuracy"]
    learned = own["learned"]["accuracy"]
    assert own["self"]["difference"] == pytest.approx(100 * (learned - own["self"]["accuracy"]))
    assert own["self"]["low"] <= own["self"]["difference"] <= own["self"]["high"]


def test_on_top_of_a_merged_model(pool: Pool, tmp_path: Path) -> None:
    merged = merge(
        Recipe(base=pool.base_folder, sources={s: pool.expert(s) for s in SOURCES}, method="wudi"),
        tmp_path / "wudi",
    )
    start = Coefficients(values={"model": {"merged": 1.0, "de-DE": 0.0}})
    text = task_text(load_task(pool.task), "sw-KE")
    found = adapt(
        evaluator_of(pool), Problem(start, "sw-KE", text, quick(high=2.0), extra={"merged": merged})
    )
    row = found.coefficients.for_tensor("roberta.encoder.layer.0.output.dense.weight")
    assert row["merged"] != 1.0
    assert found.coefficients.provenance["teachers"] == ["de-DE"]
    assert found.coefficients.provenance["extra"] == {"merged": str(merged)}


def test_a_state_file_of_other_settings_is_refused(pool: Pool, tmp_path: Path) -> None:
    state = tmp_path / "s.json"
    adapt(evaluator_of(pool), problem_of(pool), state=state)
    with pytest.raises(InputError, match="another run has left"):
        adapt(evaluator_of(pool), problem_of(pool, settings=quick(seed=1)), state=state)
    other = Unlabelled(("wake me up",) * 30, tuple(map(str, range(30))), "elsewhere", "sw-KE", "other")
    with pytest.raises(InputError, match="another run has left"):
        adapt(evaluator_of(pool), problem_of(pool, text=other), state=state)


# ---- the hybrid rule


def logits(right: list[int]) -> Logits:
    labels = np.zeros(len(right), np.int64)
    values = np.array([[1.0, 0.0] if one else [0.0, 1.0] for one in right], np.float32)
    return Logits("s", tuple(map(str, range(len(right)))), labels, values)


@pytest.mark.parametrize(
    ("simple", "learns"), [([1, 1, 1, 0], False), ([1, 1, 0, 0], True), ([1, 0, 0, 0], True)]
)
def test_coefficients_are_learned_only_where_the_simple_merge_is_no_better(
    simple: list[int], learns: bool
) -> None:
    sources = {"de-DE": logits([1, 0, 0, 0]), "fr-FR": logits([0, 0, 1, 1]), "sw-KE": logits([1, 1, 1, 1])}
    found = decide(logits(simple), sources, method="ties", target="sw-KE")
    assert (found.best_source, found.best) == ("fr-FR", 0.5)
    assert found.learns is learns
    assert ("coefficients are learned" in found.reason) is learns


def test_the_hybrid_rule_needs_a_source_that_is_not_self() -> None:
    with pytest.raises(SelectionError, match="hybrid"):
        decide(logits([1]), {"sw-KE": logits([1])}, method="ties", target="sw-KE")


def test_what_is_given_back(pool: Pool) -> None:
    found = adapt(evaluator_of(pool), problem_of(pool))
    assert isinstance(found, Adapted)
    assert found.coefficients.provenance["groups"] == ["embeddings", "block:0", "block:1"]
    assert found.beside == []
