"""Iterative merging on a tiny encoder: what starts from what, and that the control differs in merging alone."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from langmerge.checkpoint import folder_signature
from langmerge.errors import InputError, LocaleError, MethodError, PoolError
from langmerge.evaluate import evaluate_model
from langmerge.experiments import rounds as module
from langmerge.experiments.rounds import Rounds, RoundsSettings, run_rounds
from langmerge.experiments.rounds_table import Scored, table
from langmerge.models import load_classifier
from langmerge.pool import Pool
from langmerge.results import Logits, signature
from langmerge.tasks import Task, load_task
from langmerge.training import Training, train_pool
from tests.experiments.conftest import write_task
from tests.tiny_encoder import write_tiny_encoder

LOCALES = ("de-DE", "en-US", "fr-FR")
TARGETS = ("en-US", "sw-KE")
TRAINING = {"epochs": 1, "batch_size": 8, "lr": 5e-3, "head_lr": 2e-2}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text, encoder, and two rounds in `out`."""
    folder = tmp_path_factory.mktemp("rounds")
    write_task(folder / "text")
    write_tiny_encoder(folder / "encoder")
    return folder


def settings(place: Path, **changes: Any) -> RoundsSettings:
    fields = {
        "task": f"folder:{place / 'text'}", "base": str(place / "encoder"), "locales": LOCALES, "targets": TARGETS,
        "rounds": 2, "training": TRAINING,
    }  # fmt: skip
    return RoundsSettings.checked(**{**fields, **changes})


@pytest.fixture(scope="module")
def found(place: Path) -> Rounds:
    """Two rounds."""
    return run_rounds(settings(place), place / "out")


@pytest.fixture(scope="module")
def task(place: Path) -> Task:
    """Of the pools."""
    return load_task(f"folder:{place / 'text'}")


def weights(folder: Path) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in load_classifier(folder).state_dict().items()}


def test_a_round_starts_from_the_merge_before(found: Rounds, place: Path, task: Task) -> None:
    """Every weight, the head and the pooling layer too: trained here by hand, the experts have the same bytes."""
    root = place / "out"
    assert Pool.load(root / "round-2").base_folder.resolve() == (root / "round-1" / "merged").resolve()
    merged = weights(root / "round-1" / "merged")
    experts = [weights(root / "round-1" / "experts" / locale) for locale in LOCALES]
    for name, value in merged.items():
        mean = np.mean([expert[name] for expert in experts], axis=0, dtype=np.float64)
        np.testing.assert_allclose(value, mean, atol=1e-6)
    for start, expert in [
        (root / "round-1" / "merged", root / "round-2" / "experts" / "fr-FR"),
        (root / "round-1" / "experts" / "fr-FR", root / "control-2" / "fr-FR" / "experts" / "fr-FR"),
    ]:
        by_hand = place / f"hand-{expert.parent.parent.name}"
        Pool(root=by_hand, task=task.name, labels=task.labels, base=Path("base")).with_base(start).save()
        training = Training(**{**TRAINING, "seed": 1})
        made = train_pool(by_hand, base=start, task=task, locales=["fr-FR"], training=training)
        assert folder_signature(made.expert("fr-FR")) == folder_signature(expert)


def test_the_control_differs_in_merging_alone(found: Rounds, place: Path) -> None:
    root = place / "out"
    one, other = Pool.load(root / "round-2"), Pool.load(root / "control-2")
    assert other.base_folder.resolve() == (root / "round-1" / "base").resolve()
    for locale in LOCALES:
        assert one.experts[locale].training["settings"] == other.experts[locale].training["settings"]
        assert folder_signature(one.expert(locale)) != folder_signature(other.expert(locale))
    assert one.experts["de-DE"].training["settings"]["seed"] == 1
    assert found.same_steps
    assert found.steps[1]["control"] == dict.fromkeys(LOCALES, 6)
    first, control = Pool.load(root / "round-1"), Pool.load(root / "control-1")
    for locale in LOCALES:
        assert first.expert(locale).resolve() == control.expert(locale).resolve()


def test_the_table_is_of_the_models_on_disk(found: Rounds, place: Path, task: Task) -> None:
    root = place / "out"
    assert [(row.round, row.target) for row in found.rows] == [
        (number, target) for number in (1, 2) for target in (*TARGETS, "all")
    ]
    for row in found.rows:
        if row.target == "all":
            continue
        number = row.round
        pools = Pool.load(root / f"round-{number}"), Pool.load(root / f"control-{number}")

        def correct(folder: Path, target: str = row.target) -> np.ndarray:
            return evaluate_model(folder, task, [target], split="dev")[target].correct

        merged = correct(root / f"round-{number}" / "merged")
        after = merged if number == 1 else correct(root / f"control-{number}" / "merged")
        means = [np.mean([correct(pool.expert(one)) for one in LOCALES], axis=0) for pool in pools]
        assert row.merged == pytest.approx(merged.mean(), abs=1e-6)
        assert row.control_merged == pytest.approx(after.mean(), abs=1e-6)
        assert [row.experts, row.control_experts] == pytest.approx([m.mean() for m in means], abs=1e-6)
        assert row.over_control_merged.points == pytest.approx(100 * (merged.mean() - after.mean()))
        assert row.over_experts.points == pytest.approx(100 * (merged.mean() - means[0].mean()))
        assert row.over_control_experts.points == pytest.approx(100 * (merged.mean() - means[1].mean()))
        assert row.over_experts.low <= row.over_experts.points <= row.over_experts.high
    first = [row for row in found.rows if row.round == 1]
    assert all(row.merged == row.control_merged and row.experts == row.control_experts for row in first)


def test_the_mean_over_targets_is_by_sentence() -> None:
    def scored(name: str, right: list[int], experts: list[float], ids: str) -> Scored:
        values = np.array([[1.0, 0.0] if one else [0.0, 1.0] for one in right], dtype=np.float32)
        logits = Logits(signature(name), tuple(ids), np.zeros(4, dtype=np.int64), values)
        return Scored(logits, np.array(experts))

    run = {
        "a": scored("a", [1, 1, 0, 0], [0.5, 0.5, 0, 0], "wxyz"),
        "b": scored("b", [0, 0, 1, 1], [0, 0, 0.5, 0.5], "wxyz"),
    }
    control = {
        "a": scored("c", [1, 0, 0, 0], [0.5] * 4, "wxyz"),
        "b": scored("d", [0, 0, 0, 1], [0.5] * 4, "wxyz"),
    }
    a, b, mean = table(3, ["a", "b"], run, control)
    assert (a.round, a.target, a.merged, a.control_merged, a.rows) == (3, "a", 0.5, 0.25, 4)
    assert (a.over_control_merged.points, b.over_control_merged.points) == (25.0, 25.0)
    assert (a.signature, a.control_signature) == (signature("a"), signature("c"))
    assert a.over_control_merged.p_value == 1.0
    assert (mean.target, mean.merged, mean.experts, mean.control_experts) == ("all", 0.5, 0.25, 0.5)
    # Each sentence is right once in two: against its experts' mean no row differs from another.
    assert (mean.over_experts.low, mean.over_experts.points, mean.over_experts.high) == (25.0, 25.0, 25.0)
    run["b"] = scored("b", [0, 0, 1, 1], [0, 0, 0.5, 0.5], "wxyv")
    control["b"] = scored("d", [0, 0, 0, 1], [0.5] * 4, "wxyv")
    assert [row.target for row in table(3, ["a", "b"], run, control)] == ["a", "b"]


def test_a_second_run_computes_nothing_and_more_rounds_go_on(
    found: Rounds, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = place / "out"
    before = (root / "rounds.json").read_bytes()
    watched = {path: path.stat().st_mtime_ns for path in root.rglob("*.safetensors")}
    assert len(watched) > 12
    with monkeypatch.context() as patch:
        patch.setattr(module, "merge", lambda *_, **__: pytest.fail("merged again"))
        again = run_rounds(settings(place), root)
    assert again == found
    assert (root / "rounds.json").read_bytes() == before
    assert {path: path.stat().st_mtime_ns for path in watched} == watched
    shutil.copytree(root, place / "moved")
    more = run_rounds(settings(place, rounds=3, targets=("en-US",)), place / "moved")
    assert [row.round for row in more.rows] == [1, 2, 3]
    assert more.rows[1].merged == next(r for r in found.rows if (r.round, r.target) == (2, "en-US")).merged
    assert (place / "moved" / "round-3" / "merged" / "langmerge.json").exists()
    goes_on = Pool.load(place / "moved" / "control-3" / "fr-FR").base_folder.resolve()
    assert goes_on == Pool.load(place / "moved" / "control-2").expert("fr-FR").resolve()
    assert goes_on.is_relative_to(place / "moved" / "control-2" / "fr-FR")


def test_an_interrupted_run_ends_with_the_same_bytes(
    found: Rounds, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(root: Path, **options: Any) -> Pool:
        if root.parts[-2:] == ("control-2", "en-US"):
            raise KeyboardInterrupt
        return train_pool(root, **options)

    with monkeypatch.context() as patch:
        patch.setattr(module, "train_pool", cut)
        with pytest.raises(KeyboardInterrupt):
            run_rounds(settings(place), place / "cut")
    assert len(json.loads((place / "cut" / "rounds.json").read_text())["rows"]) == 3
    kept = place / "cut" / "control-2" / "de-DE" / "experts" / "de-DE" / "model.safetensors"
    before = kept.stat().st_mtime_ns
    run_rounds(settings(place), place / "cut")
    assert kept.stat().st_mtime_ns == before
    assert (place / "cut" / "rounds.json").read_bytes() == (place / "out" / "rounds.json").read_bytes()


def test_task_vectors_about_the_base_or_the_round(found: Rounds, place: Path) -> None:
    """By task arithmetic with scale 0.5 the two differ: halfway to the base, or to the round's start."""
    pair = LOCALES[:2]
    half = {"method": "task_arithmetic", "parameters": {"scale": 0.5}}
    for about in ("base", "round"):
        root = place / f"about-{about}"
        run_rounds(settings(place, about=about, locales=pair, targets=pair[:1], **half), root)
        base = weights(root / "round-1" / "base")
        start = weights(root / "round-1" / "merged") if about == "round" else base
        experts = [weights(root / "round-2" / "experts" / locale) for locale in pair]
        controls = [weights(root / "control-2" / locale / "experts" / locale) for locale in pair]
        for folder, origin, models in [("round-2", start, experts), ("control-2", base, controls)]:
            name = "roberta.encoder.layer.0.attention.self.query.weight"
            wanted = 0.5 * origin[name] + 0.5 * np.mean([model[name] for model in models], axis=0)
            np.testing.assert_allclose(weights(root / folder / "merged")[name], wanted, atol=1e-6)


def test_settings_that_do_not_go_with_what_was_begun(found: Rounds, place: Path) -> None:
    for changes, named in [
        ({"training": {**TRAINING, "seed": 5}}, "training"),
        ({"method": "wudi"}, "method linear, now wudi"),
        ({"locales": LOCALES[:2]}, "locales"),
        ({"about": "round"}, "about base, now round"),
    ]:
        with pytest.raises(PoolError, match=f"were begun with {named}"):
            run_rounds(settings(place, **changes), place / "out")
    (place / "odd").mkdir()
    (place / "odd" / "rounds.json").write_text("[]")
    with pytest.raises(PoolError, match="no file of rounds"):
        run_rounds(settings(place), place / "odd")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"rounds": 0}, InputError, "rounds: rounds: Input should be greater than or equal to 1"),
        ({"locales": ["de-DE"]}, InputError, "at least 2"),
        ({"locales": ["de-DE", "de_DE"]}, InputError, r"one locale alone \(de-DE\)"),
        ({"method": "tie"}, MethodError, "'tie'"),
        ({"method": "slerp"}, InputError, "slerp does not merge 3 experts"),
        ({"about": "sun"}, InputError, "about"),
        ({"colour": 1}, InputError, "colour"),
    ],
)
def test_settings_that_cannot_be(place: Path, changes: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        settings(place, **changes)


def test_unknown_locales_are_found_before_anything_is_trained(place: Path) -> None:
    with pytest.raises(LocaleError):
        run_rounds(settings(place, targets=("ja-JP",)), place / "none")
    assert not (place / "none").exists()


def test_a_control_that_stopped_earlier_is_said(found: Rounds) -> None:
    parted = {"merged": {"de-DE": 6}, "control": {"de-DE": 4}}
    assert not Rounds(found.settings, "", None, (), (parted,)).same_steps
