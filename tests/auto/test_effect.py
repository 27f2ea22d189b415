"""Features of sets of sources, predictions for targets that were not seen, and what `auto` takes of them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from langmerge.auto import Question, decide
from langmerge.auto import effect as effect_module
from langmerge.auto.effect import (
    FEWEST,
    Example,
    all_predicted,
    examples,
    predicted,
    read_effects,
    write_effects,
)
from langmerge.auto.evidence import Evidence
from langmerge.auto.features import FEATURES, NEEDS, TEXTS, PoolFeatures, names
from langmerge.engine.deltas import sign_agreement
from langmerge.errors import InputError
from langmerge.pool import Pool
from langmerge.results import Logits
from langmerge.similarities import PoolSelectors
from langmerge.tasks import load_task, task_text
from tests.auto.test_hindsight import store
from tests.tiny_pool import ABSENT, EXPERTS, write_tiny_pool

SOURCES = ("de-DE", "en-US", "fr-FR")


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """Four experts, and a locale without one."""
    return write_tiny_pool(tmp_path_factory.mktemp("effect"))


@pytest.fixture(autouse=True)
def few_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    """The forest takes seconds otherwise."""
    monkeypatch.setattr(effect_module, "TREES", 30)


@pytest.fixture(scope="module")
def features(pool: Pool) -> PoolFeatures:
    """Of that pool."""
    return PoolFeatures(PoolSelectors(pool))


def test_signs_are_counted_where_both_have_moved(pool: Pool) -> None:
    folders = {one: pool.expert(one) for one in EXPERTS}
    found = sign_agreement(pool.base_folder, folders)
    base = load_file(pool.base_folder / "model.safetensors")
    moved = [
        np.concatenate(
            [
                np.sign(tensor - base[name]).reshape(-1)
                for name, tensor in sorted(load_file(folder / "model.safetensors").items())
                if "classifier" not in name
            ]
        )
        for folder in folders.values()
    ]
    for i, one in enumerate(moved):
        for j, other in enumerate(moved):
            both = (one != 0) & (other != 0)
            assert found[i, j] == pytest.approx((one[both] == other[both]).mean())
    assert np.diag(found) == pytest.approx(1.0)
    assert found[0, 1] < 1


def test_signs_are_compared_by_the_names_of_the_plan(pool: Pool, tmp_path: Path) -> None:
    """The base saved without the prefix that its experts have."""
    folders = {one: pool.expert(one) for one in EXPERTS[:2]}
    shutil.copytree(pool.base_folder, tmp_path / "bare")
    file = tmp_path / "bare" / "model.safetensors"
    prefix = "roberta."
    bare = {
        name.removeprefix(prefix): one for name, one in load_file(file).items() if name.startswith(prefix)
    }
    save_file(bare, file, metadata={"format": "pt"})
    found = sign_agreement(tmp_path / "bare", folders)
    np.testing.assert_allclose(found, sign_agreement(pool.base_folder, folders))


def test_features_are_what_they_say(pool: Pool, features: PoolFeatures) -> None:
    found = features.of("sw-KE", SOURCES)
    assert list(found) == list(FEATURES)
    evaluator = features.selectors.evaluator()
    text = task_text(evaluator.task, "sw-KE", limit=TEXTS)
    read: list[Logits] = [evaluator.on_text(s, text) for s in SOURCES]
    cells: list[Logits] = [evaluator.cell(s, "sw-KE", "dev") for s in SOURCES]
    own = features.selectors.evaluator().cell("sw-KE", "sw-KE", "dev")
    right = [100 * one.correct.mean() for one in cells]
    pairs = [(0, 1), (0, 2), (1, 2)]
    apart = [(read[i].predictions != read[j].predictions).mean() for i, j in pairs]

    def vote(members: list[Logits]) -> np.ndarray:
        odds = [np.exp(one.values.astype(float)) for one in members]
        return np.asarray(np.mean([one / one.sum(1, keepdims=True) for one in odds], axis=0))

    assert found["disagreement"] == pytest.approx(np.mean(apart))
    assert found["confidence"] == pytest.approx(vote(read).max(1).mean(), rel=1e-5)
    assert found["level"] == pytest.approx(max(right))
    assert found["spread"] == pytest.approx(np.std(right))
    assert found["vote gain"] == pytest.approx(
        100 * (vote(cells).argmax(1) == own.labels).mean() - max(right)
    )
    assert found["ZS/Self"] == pytest.approx(max(right) / (100 * own.correct.mean()))
    assert -1 <= found["cosine"] <= 1
    assert 0 <= found["signs"] <= 1


def test_without_labels_none_is_read(pool: Pool) -> None:
    task = load_task(pool.task)
    loaded: list[tuple[str, str]] = []

    def watched(locale: str, split: str) -> Any:
        loaded.append((locale, split))
        return task.load(locale, split)

    selectors = PoolSelectors(pool)
    selectors.evaluator().task = replace(task, load=watched)
    found = PoolFeatures(selectors, experts=SOURCES).of(ABSENT, SOURCES, needs="text")
    assert list(found) == names("text")
    # Train text without its labels; test text is looked at for overlap.
    assert ("sw-KE", "dev") not in loaded
    assert (ABSENT, "dev") not in loaded
    # The same experts, whether compared among themselves or among all of the pool.
    assert PoolFeatures(PoolSelectors(pool)).of(ABSENT, SOURCES, needs="text") == pytest.approx(found)


def made(gain: Any, *, targets: int = 10, seeds: int = 3, needs: str = "labels") -> list[Example]:
    """Cells whose features are drawn."""
    draw = np.random.default_rng(1)
    found = []
    for target in range(targets):
        for seed in range(seeds):
            own = {name: float(draw.normal()) for name in names(needs)}
            found.append(Example(f"t{target}", seed, "wudi", own, float(gain(own, target, draw)), None))
    return found


def test_what_features_decide_is_predicted() -> None:
    found = predicted(made(lambda own, *_: 3 + 2 * own["level"]), "wudi", "gain", "labels", "ridge")
    assert found.error < 0.1 * found.constant
    assert found.helps
    assert found.spearman > 0.95
    assert (found.targets, found.cells) == (10, 30)
    # Without labels that feature is not there.
    assert not predicted(made(lambda own, *_: 3 + 2 * own["level"]), "wudi", "gain", "text", "ridge").helps


@pytest.mark.parametrize("model", ["ridge", "forest"])
def test_what_belongs_to_a_target_alone_is_not(model: str) -> None:
    """Its other seeds would give it away, if they took part."""

    def gain(own: dict[str, float], target: int, draw: np.random.Generator) -> float:
        own["level"] = float(target % 5) + 1e-3 * float(draw.normal())
        return float((target * 7919) % 11)

    found = predicted(made(gain), "wudi", "gain", "labels", model)
    assert not found.helps
    assert found.error > 1


def test_the_constant_is_the_mean_of_the_other_targets() -> None:
    found = predicted(made(lambda _, target, __: float(target), targets=4), "wudi", "gain", "text", "ridge")
    # 0 against 2, 1 against 5/3, 2 against 4/3, 3 against 1.
    assert found.constant == pytest.approx(np.mean([2, 2 / 3, 2 / 3, 2]))


def test_few_targets_predict_nothing() -> None:
    with pytest.raises(InputError, match=rf"wudi: 3 targets, and a prediction needs {FEWEST}"):
        predicted(made(lambda *_: 1.0, targets=3), "wudi", "gain", "text", "ridge")


def test_examples_are_a_stores_candidates() -> None:
    asked = []

    def featured(seed: int, target: str, sources: Any) -> dict[str, float]:
        asked.append((seed, target, tuple(sources)))
        return {"level": 1.0}

    found = examples(store(), "ExcTar", featured)
    assert {(one.target, one.name, one.gain) for one in found} == {
        ("cy-GB", "linear", 0.0), ("cy-GB", "wudi", 10.0), ("sw-KE", "linear", 0.0), ("sw-KE", "wudi", 10.0),
        ("vi-VN", "linear", 0.0), ("vi-VN", "wudi", -10.0),
    }  # fmt: skip
    assert len(asked) == 3
    with pytest.raises(InputError, match="the store has no cells of auto's candidates"):
        examples(store(), "IncTar", featured)


def test_every_set_of_features_is_tried() -> None:
    found = [replace(one, effect=one.gain) for one in made(lambda own, *_: own["level"], targets=5)]
    judged = all_predicted(found)
    assert {(one.what, one.needs, one.model) for one in judged} == {
        (what, needs, model)
        for what in ("gain", "effect")
        for needs in NEEDS[:2]
        for model in ("ridge", "forest")
    }


def test_a_file_predicts_what_the_model_does(tmp_path: Path) -> None:
    found = [replace(one, effect=one.gain) for one in made(lambda own, *_: 3 + 2 * own["level"])]
    judged = all_predicted(found)
    file = tmp_path / "effects.json"
    assert write_effects(file, found, judged, task="task", mode="ExcTar") == ["wudi (labels)"]
    own = dict.fromkeys(names("labels"), 0.0) | {"level": 1.5}
    ask = {"task": "task", "mode": "ExcTar", "target": "new", "features": lambda: own}
    known = read_effects(file, needs="labels", **ask)
    assert known["wudi"].mean == pytest.approx(6.0, abs=0.1)
    assert known["wudi"].origin == "predicted by effects.json"
    # A target that was measured is predicted by the others alone.
    rest = [one for one in found if one.target != "t3"]
    write_effects(tmp_path / "rest.json", rest, all_predicted(rest), task="task", mode="ExcTar")
    apart = read_effects(tmp_path / "rest.json", needs="labels", **ask)["wudi"]
    left_out = read_effects(file, needs="labels", **{**ask, "target": "t3"})["wudi"]
    assert left_out.mean == pytest.approx(apart.mean, rel=1e-9)
    assert left_out.mean != known["wudi"].mean
    # What was not seen to help is not used, and costs nothing.
    assert read_effects(file, needs="text", **{**ask, "features": lambda: pytest.fail("asked")}) == {}
    with pytest.raises(InputError, match="is for task, ExcTar, not for task, IncTar"):
        read_effects(file, needs="text", **{**ask, "mode": "IncTar"})
    for content in ("{}", "[]", "no", json.dumps({"format": "other", "lines": []})):
        file.write_text(content)
        with pytest.raises(InputError, match="is no file of effects: make one with langmerge runs predict"):
            read_effects(file, needs="text", **ask)


def test_auto_takes_what_helps_and_leaves_the_rest(pool: Pool, tmp_path: Path) -> None:
    def line(name: str, intercept: float, *, helps: bool) -> dict[str, Any]:
        return {
            "name": name, "needs": "text", "helps": helps, "residual": 0.1, "targets": 30, "without": {},
            "line": {"slope": {"cosine": 0.0}, "intercept": intercept},
        }  # fmt: skip

    task = load_task(pool.task)
    never = {name: Evidence(-30.0, 0.0, 1000, "by hand") for name in ("linear", "ties", "wudi", "wudi+head")}
    lines = [line("wudi", 20.0, helps=True), line("linear", 90.0, helps=False)]
    file = tmp_path / "effects.json"
    file.write_text(
        json.dumps({"format": "langmerge-effect/1", "task": task.name, "mode": "ExcTar", "lines": lines})
    )
    asked = Question(pool, task, ABSENT, labels="none", k=3, by="strength", evidence=never, effects=file)
    found = decide(asked, tmp_path / "out")
    assert found.choice == "wudi"
    assert "predicted by effects.json" in found.reasons[2]
    assert found.record["evidence"]["wudi"]["mean"] == 20.0
    with pytest.raises(InputError, match="leave out --no-statistics"):
        decide(replace(asked, statistics=False), tmp_path / "other")
