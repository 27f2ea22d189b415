"""Refinement and its controls on a tiny pool."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from langmerge.engine.execute import merge
from langmerge.errors import InputError, OutputError, PlanError
from langmerge.evaluate import evaluate_model
from langmerge.measuring import head_statistics
from langmerge.pool import Pool
from langmerge.recipe import Recipe
from langmerge.refining import MODEL, Job, Line, best_source, controls_folder, refine
from langmerge.selection import TransferMatrix
from langmerge.tasks import Examples, Task, file_text, load_task, paired_difference, task_text
from langmerge.training import RECEIPT, Refinement
from tests.tiny_pool import ABSENT, write_tiny_pool

TARGET = "sw-KE"
SETTINGS = Refinement(lr=2e-3, head_lr=1e-2, batch_size=8, epochs=1, bf16=False)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """Four experts."""
    return write_tiny_pool(tmp_path_factory.mktemp("refining"))


@pytest.fixture(scope="module")
def task(pool: Pool) -> Task:
    """The pool's."""
    return load_task(pool.task)


@pytest.fixture(scope="module")
def merged(pool: Pool) -> Path:
    """Three sources by task arithmetic."""
    recipe = Recipe(
        base=pool.base_folder,
        sources={source: pool.expert(source) for source in ("de-DE", "en-US", "fr-FR")},
        method="task_arithmetic",
        parameters={"scale": 0.5},
        coefficients={"values": {"model": {"de-DE": 0.6, "en-US": 0.2, "fr-FR": 0.2}}},  # type: ignore[arg-type]
        target=TARGET,
    )
    return merge(recipe, pool.root.parent / "merged")


def job(task: Task, merged: Path, out: Path, **changes: Any) -> Job:
    return Job(merged, task_text(task, TARGET), out, **{"refinement": SETTINGS, "task": task, **changes})


@pytest.fixture(scope="module")
def done(pool: Pool, task: Task, merged: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Line]:
    """With controls, on dev and test."""
    out = tmp_path_factory.mktemp("done") / "out"
    return refine(job(task, merged, out, splits=("dev", "test")), pool=pool)


def test_the_controls_are_refined_by_the_same_settings(done: list[Line], pool: Pool, task: Task) -> None:
    best = TransferMatrix.load(pool.root / "transfer.dev.json").best_zero_shot(TARGET)
    assert [line.name for line in done] == [MODEL, f"best source, {best}", "linear merge"]
    assert [line.folder for line in done][1] == pool.expert(best)
    place = controls_folder(done[0].refined.out)
    assert [line.refined.out for line in done[1:]] == [place / f"{best}-refined", place / "linear-refined"]
    first, *others = [json.loads((line.refined.out / RECEIPT).read_text()) for line in done]
    for other in others:
        assert (other["settings"], other["text"]) == (first["settings"], first["text"])
        assert other["model"]["signature"] != first["model"]["signature"]
    assert first["text"]["signature"] == task_text(task, TARGET).signature


def test_the_linear_control_is_the_plain_average_of_the_models_sources(
    done: list[Line], pool: Pool, tmp_path: Path
) -> None:
    plain = Recipe(
        base=pool.base_folder,
        sources={source: pool.expert(source) for source in ("de-DE", "en-US", "fr-FR")},
        method="linear",
    )
    expected = merge(plain, tmp_path / "plain") / "model.safetensors"
    assert (done[2].folder / "model.safetensors").read_bytes() == expected.read_bytes()


def test_the_table_is_of_the_same_rows_before_and_after(done: list[Line], task: Task) -> None:
    lead = {}
    for line in done:
        for shift in line.shifts:
            rows = {
                side: evaluate_model(folder, task, [TARGET], split=shift.split)[TARGET]
                for side, folder in (("before", line.folder), ("after", line.refined.out))
            }
            lead.setdefault(shift.split, rows["after"])
            assert shift.before == pytest.approx(rows["before"].correct.mean())
            assert shift.after == pytest.approx(rows["after"].correct.mean())
            assert shift.rows == len(rows["after"].labels)
            assert shift.gain == paired_difference(rows["after"].correct, rows["before"].correct)
            ahead = paired_difference(lead[shift.split].correct, rows["after"].correct)
            assert shift.lead == (None if line.name == MODEL else ahead)
    assert [[shift.split for shift in line.shifts] for line in done] == [["dev", "test"]] * 3


def test_the_same_again_keeps_all(done: list[Line], pool: Pool, task: Task, merged: Path) -> None:
    out = done[0].refined.out
    linear = done[2].folder / "model.safetensors"
    before = linear.stat().st_mtime_ns
    again = refine(job(task, merged, out), pool=pool)
    assert [line.refined.kept for line in done] == [False] * 3
    assert [line.refined.kept for line in again] == [True] * 3
    assert linear.stat().st_mtime_ns == before
    assert [line.refined.record for line in again] == [line.refined.record for line in done]


def test_a_model_merged_by_statistics_has_a_linear_control(pool: Pool, task: Task, tmp_path: Path) -> None:
    sources = ("de-DE", "fr-FR")
    recipe = Recipe(
        base=pool.base_folder,
        sources={source: pool.expert(source) for source in sources},
        method="wudi",
        head="regmean",
        statistics=head_statistics(pool, task, sources, TARGET),
        target=TARGET,
    )
    model = merge(recipe, tmp_path / "merged")
    lines = refine(job(task, model, tmp_path / "out"), pool=pool)
    assert [line.name for line in lines][-1] == "linear merge"


def test_controls_of_other_settings_are_made_anew(
    done: list[Line], pool: Pool, task: Task, merged: Path
) -> None:
    out = done[0].refined.out
    other = SETTINGS.model_copy(update={"seed": 5})
    again = refine(job(task, merged, out, refinement=other, overwrite=True), pool=pool)
    assert [line.refined.kept for line in again] == [False] * 3
    assert {line.refined.record["settings"]["seed"] for line in again} == {5}
    refine(job(task, merged, out, overwrite=True), pool=pool)


def test_choices_and_a_report_on_dev_never_look_at_test(
    pool: Pool, task: Task, merged: Path, tmp_path: Path
) -> None:
    def load(locale: str, split: str) -> Examples:
        assert split != "test"
        return task.load(locale, split)

    asked = dataclasses.replace(
        job(task, merged, tmp_path / "out"), task=dataclasses.replace(task, load=load), dev_labels=True
    )
    lines = refine(asked, pool=pool)
    assert {shift.split for line in lines for shift in line.shifts} == {"dev"}
    assert {line.refined.record["chosen_by"] for line in lines} == {"dev accuracy"}
    for line in lines:
        assert line.shifts[0].after == pytest.approx(line.refined.record["rounds"][-1]["score"])
        assert line.shifts[0].gain.points >= 0


def test_the_targets_labels_decide_nothing_unless_asked(task: Task, merged: Path, tmp_path: Path) -> None:
    def load(locale: str, split: str) -> Examples:
        found = task.load(locale, split)
        return dataclasses.replace(found, labels=np.roll(found.labels, 1))

    turned = dataclasses.replace(task, load=load)
    for name, own in (("a", task), ("b", turned)):
        refine(job(own, merged, tmp_path / name))
    for file in ("model.safetensors", RECEIPT):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_the_best_source_is_measured_where_the_matrix_lacks_the_target(
    pool: Pool, task: Task, merged: Path, tmp_path: Path
) -> None:
    asked = dataclasses.replace(job(task, merged, tmp_path / "out"), text=task_text(task, ABSENT))
    found = {
        expert: evaluate_model(pool.expert(expert), task, [ABSENT], split="dev")[ABSENT].correct.mean()
        for expert in pool.locales
    }
    assert best_source(asked, pool, ["de-DE"]) == min(found, key=lambda e: (-found[e], e))


def test_the_targets_own_expert_is_a_control_only_of_a_merge_with_it(
    pool: Pool, task: Task, merged: Path, tmp_path: Path
) -> None:
    asked = job(task, merged, tmp_path / "out")
    column = TransferMatrix.load(pool.root / "transfer.dev.json").column(TARGET)
    assert best_source(asked, pool, ["de-DE"]) != TARGET
    assert best_source(asked, pool, ["de-DE", TARGET]) == min(column, key=lambda e: (-column[e], e))


def test_a_file_without_a_task_gives_no_table(merged: Path, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("wake me\nplay music\nrain today\n" * 4, encoding="utf-8")
    asked = Job(merged, file_text(file, locale=TARGET), tmp_path / "out", SETTINGS)
    (line,) = refine(asked)
    assert line.shifts == ()
    assert line.payload()["receipt"]["text"]["origin"] == str(file)
    assert json.loads(json.dumps(line.payload())) == line.payload()


def test_bad_input_is_found_before_anything_is_written(
    pool: Pool, task: Task, merged: Path, tmp_path: Path
) -> None:
    whole = job(task, merged, tmp_path / "out")
    elsewhere = pool.model_copy(update={"task": "demo:intent"})
    faults = [
        (dataclasses.replace(whole, task=None), pool, "name it with --task"),
        (
            dataclasses.replace(whole, task=None, dev_labels=True),
            None,
            "--dev-labels needs the labels of a task",
        ),
        (whole, elsewhere, "is for demo:intent, not folder:"),
        (dataclasses.replace(whole, model=pool.expert("de-DE")), pool, "has no langmerge.json"),
    ]
    for asked, given, says in faults:
        with pytest.raises(InputError, match=says) as found:
            refine(asked, pool=given)
        assert "\n" not in str(found.value)
    assert list(tmp_path.iterdir()) == []


def test_a_receipt_whose_sources_are_gone(pool: Pool, task: Task, merged: Path, tmp_path: Path) -> None:
    receipt = json.loads((merged / "langmerge.json").read_text())
    receipt["recipe"]["sources"]["de-DE"] = "nowhere"
    (tmp_path / "moved").mkdir()
    for path in merged.iterdir():
        (tmp_path / "moved" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "moved" / "langmerge.json").write_text(json.dumps(receipt))
    with pytest.raises(PlanError, match="nowhere"):
        refine(job(task, tmp_path / "moved", tmp_path / "out"), pool=pool)
    assert [path.name for path in tmp_path.iterdir()] == ["moved"]


def test_an_output_that_is_there_is_found_before_the_controls_are_made(
    pool: Pool, task: Task, merged: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="exists already"):
        refine(job(task, merged, tmp_path / "out"), pool=pool)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
