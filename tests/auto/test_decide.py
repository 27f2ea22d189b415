"""Decisions on the tiny pool: what is tried, what is written, what is said."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from langmerge.auto import RECORD, Evidence, Question, decide
from langmerge.auto import pilot as pilot_module
from langmerge.auto import run as run_module
from langmerge.auto.pilot import Pilot
from langmerge.checkpoint import folder_signature
from langmerge.errors import InputError, OutputError
from langmerge.evaluate import evaluate_model
from langmerge.models import load_classifier
from langmerge.pool import Pool
from langmerge.results.store import Store
from langmerge.scoring import ResidentClassifier
from langmerge.tasks import Task, load_task, task_text
from langmerge.training import Refinement
from tests.cli.conftest import Run, run
from tests.tiny_pool import ABSENT, write_tiny_pool

__all__ = ["run"]

SURE = {name: Evidence(gain, 0.0, 1000, "by hand") for name, gain in (("linear", 1.0), ("wudi", 30.0))}
NEVER = {
    name: Evidence(-30.0, 0.0, 1000, "by hand") for name in ("linear", "ties", "wudi", "wudi+head", "refined")
}


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """Four experts, and a locale without one."""
    return write_tiny_pool(tmp_path_factory.mktemp("auto"))


@pytest.fixture(scope="module")
def task(pool: Pool) -> Task:
    """Its task."""
    return load_task(pool.task)


def question(pool: Pool, task: Task, target: str = ABSENT, **changes: Any) -> Question:
    by = "strength" if changes.get("labels") == "none" else "measured"
    return Question(pool, task, target, **{"k": 3, "by": by, **changes})


def weights(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "model.safetensors")


def test_with_labels_everything_is_tried_and_the_choice_is_what_the_record_says(
    pool: Pool, task: Task, tmp_path: Path
) -> None:
    matrix = (pool.root / "transfer.dev.json").read_bytes()
    found = decide(question(pool, task, test=True), tmp_path / "out")
    assert (pool.root / "transfer.dev.json").read_bytes() == matrix
    record = json.loads((tmp_path / "out" / RECORD).read_text())
    assert record == json.loads(json.dumps(found.record))
    first = {one["name"] for one in record["rungs"][0]["judged"]}
    assert first == {"single", "linear", "ties", "wudi", "wudi+head"}
    assert record["choice"] == found.choice
    assert record["model"] == folder_signature(tmp_path / "out")
    # What stands in the record is what the folder scores.
    split = "test"
    own = evaluate_model(tmp_path / "out", task, [ABSENT], split=split)[ABSENT]
    single = evaluate_model(
        pool.expert(
            record["rungs"][0]["judged"] and found.record["sources"] and next(iter(found.record["sources"]))
        ),
        task,
        [ABSENT],
        split=split,
    )[ABSENT]
    assert record["test"]["accuracy"] == pytest.approx(own.correct.mean())
    assert record["test"]["gain"]["points"] == pytest.approx(
        100 * (own.correct.mean() - single.correct.mean())
    )
    assert not list(tmp_path.glob(".out*"))
    card = (tmp_path / "out" / "README.md").read_text()
    assert all(line in card for line in found.reasons)
    assert "language: cy" in card


def test_sure_evidence_decides_without_labels(pool: Pool, task: Task, tmp_path: Path) -> None:
    found = decide(question(pool, task, labels="none", evidence=SURE, statistics=False), tmp_path / "out")
    assert found.choice == "wudi"
    assert "merge: WUDI, of" in found.reasons[0]
    assert "No label of the target was looked at; gains elsewhere: by hand." in found.reasons[2]
    assert load_classifier(tmp_path / "out").config.num_labels == 3
    assert (tmp_path / "out" / "langmerge.json").exists()


def test_without_labels_no_label_of_the_target_is_read(pool: Pool, task: Task, tmp_path: Path) -> None:
    """Its dev rows are not loaded at all; of train rows the text alone is taken."""
    loaded = []

    def watched(locale: str, split: str) -> Any:
        loaded.append((locale, split))
        return task.load(locale, split)

    asked = question(pool, replace(task, load=watched), labels="none", evidence=SURE)
    found = decide(asked, tmp_path / "out")
    assert found.choice == "wudi"
    assert (ABSENT, "train") in loaded
    assert (ABSENT, "dev") not in loaded


def test_do_not_merge_is_an_answer(pool: Pool, task: Task, tmp_path: Path) -> None:
    found = decide(question(pool, task, labels="none", evidence=NEVER, statistics=False), tmp_path / "out")
    assert (found.choice, len(found.sources)) == ("single", 1)
    assert "do not merge: take" in found.reasons[0]
    for name, value in weights(pool.expert(found.sources[0])).items():
        np.testing.assert_array_equal(weights(tmp_path / "out")[name], value)


def test_with_an_own_expert_it_is_the_reference(pool: Pool, task: Task, tmp_path: Path) -> None:
    asked = question(pool, task, "sw-KE", labels="none", statistics=False, evidence=NEVER)
    found = decide(asked, tmp_path / "out")
    assert (found.choice, found.sources) == ("single", ("sw-KE",))
    assert "IncTar" in found.reasons[0]
    pilot = Pilot(question(pool, task, "sw-KE", statistics=False), tmp_path / "work")
    assert pilot.sources[0] == "sw-KE"
    for name, share in (("linear", 0.9), ("wudi", 0.9), ("wudi-half", 0.5), ("wudi-equal", 1 / 3)):
        numbers = pilot.recipe(name).weights.values["model"]
        assert numbers["sw-KE"] == pytest.approx(share)
        assert sum(numbers.values()) == pytest.approx(1.0)
    out = decide(
        question(pool, task, "sw-KE", labels="none", include_target=False, statistics=False, evidence=SURE),
        tmp_path / "exc",
    )
    assert "sw-KE" not in out.sources


def test_a_merge_is_made_once_whatever_the_steps_of_halving(
    pool: Pool, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, real = [], ResidentClassifier._fill
    monkeypatch.setattr(ResidentClassifier, "_fill", lambda self, plan: (made.append(0), real(self, plan))[1])
    # Rows that no other test has asked for: nothing is kept of them.
    rungs = Pilot(question(pool, task, rows=17), tmp_path / "work").merges()
    assert [rung.rows for rung in rungs] == [4, 8, 17]
    assert len(made) == 4
    whole, half = ({one.name: one for one in rung.judged} for rung in (rungs[-1], rungs[-2]))
    assert all(whole[name].accuracy is not None and name in half for name in whole)


def test_of_what_there_is_no_evidence_labels_alone_decide(pool: Pool, task: Task, tmp_path: Path) -> None:
    asked = question(pool, task, "sw-KE", evidence={"linear": Evidence(1.0, 0.1, 12, "by hand")})
    found = decide(asked, tmp_path / "out")
    assert {"wudi-half", "wudi-equal"} <= {one["name"] for one in found.record["rungs"][0]["judged"]}
    blind = decide(replace(asked, labels="none", by="strength", statistics=False), tmp_path / "blind")
    assert {one["name"] for one in blind.record["candidates"]} == {"single", "linear"}


@pytest.mark.parametrize("labels", ["dev", "none"])
def test_learned_coefficients_are_tried_if_asked_for(
    pool: Pool, task: Task, tmp_path: Path, labels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pilot_module, "LEARN", {**pilot_module.LEARN, "steps": 3, "check_every": 1})
    evidence = {**NEVER, "learned": Evidence(90.0, 0.0, 1000, "by hand")}
    asked = question(
        pool, task, labels=labels, evidence=evidence, text=task_text(task, ABSENT), learned=True,
        refinement=Refinement(epochs=1, lr=1e-3),
    )  # fmt: skip
    found = decide(asked, tmp_path / "out")
    assert found.choice == "learned"
    assert len(found.sources) == 3
    record = json.loads((tmp_path / "out" / "langmerge.json").read_text())
    weights = record["recipe"]["coefficients"]["values"]
    # By block, and no longer equal.
    assert len(weights) > 1
    assert len({value for row in weights.values() for value in row.values()}) > 1
    with pytest.raises(InputError, match="give --text"):
        decide(replace(asked, text=None), tmp_path / "none")
    with pytest.raises(InputError, match="there is one source"):
        decide(replace(asked, k=1), tmp_path / "none")
    unknown = replace(asked, labels="none", by="strength", evidence=NEVER)
    with pytest.raises(InputError, match="nothing is known of learned coefficients in ExcTar"):
        decide(unknown, tmp_path / "none")


def test_a_refined_model_is_tried_and_may_win(pool: Pool, task: Task, tmp_path: Path) -> None:
    evidence = {**SURE, "refined": Evidence(90.0, 0.0, 1000, "by hand")}
    asked = question(
        pool, task, labels="none", evidence=evidence, statistics=False, text=task_text(task, ABSENT),
        refinement=Refinement(epochs=1, lr=1e-3),
    )  # fmt: skip
    found = decide(asked, tmp_path / "out")
    assert found.choice == "refined"
    assert len(found.sources) == 3
    assert (tmp_path / "out" / "langmerge_refined.json").exists()
    assert found.record["candidates"][-1]["seconds"] > 0
    never = decide(
        question(
            pool, task, labels="none", evidence={**SURE, "refined": NEVER["refined"]}, statistics=False,
            text=task_text(task, ABSENT), refinement=Refinement(epochs=1, lr=1e-3),
        ), tmp_path / "not",
    )  # fmt: skip
    assert never.choice == "wudi"


def test_a_merge_that_no_longer_says_what_its_sources_say_is_out(
    pool: Pool, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pilot, "_agreement", lambda _, name: 0.2 if name == "wudi" else 0.8)
    found = decide(question(pool, task, labels="none", evidence=SURE), tmp_path / "out")
    assert found.choice == "linear"
    (wudi,) = [one for one in found.record["candidates"] if one["name"] == "wudi"]
    assert wudi["out"] == "agrees with the sources' vote on 20% of the texts, the single expert on 80%"
    assert pilot_module.ALLOWED < 0.6


def test_the_same_question_has_the_same_answer_and_is_in_the_store(
    pool: Pool, task: Task, tmp_path: Path
) -> None:
    with Store(tmp_path / "store.sqlite") as store:
        one = decide(question(pool, task), tmp_path / "one", store=store)
        other = decide(question(pool, task), tmp_path / "other", store=store)
        (kept,) = store.decisions(target=ABSENT)
        looked = decide(question(pool, task, test=True), tmp_path / "looked", store=store)
        assert [one["record"]["test"] is None for one in store.decisions(target=ABSENT)] == [True, False]
    # What has looked at test is another record of the same choice.
    assert looked.record["signature"] != one.record["signature"]
    assert looked.choice == one.choice
    assert one.record["signature"] == other.record["signature"] == kept["signature"]
    assert one.reasons == other.reasons
    assert (kept["choice"], kept["labels"]) == (one.choice, "dev")
    different = decide(question(pool, task, rows=20), tmp_path / "less")
    assert different.record["signature"] != one.record["signature"]
    assert different.record["rungs"][-1]["rows"] == 20


def test_what_an_interrupted_question_left_serves_no_other(
    pool: Pool, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after its merge was written; asked again with other sources, the merge is another."""

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    asked = question(pool, task, labels="none", evidence=SURE, statistics=False)
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "_record", stop)
        with pytest.raises(KeyboardInterrupt):
            decide(asked, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert len(list((tmp_path / ".out.auto").glob("*/wudi/model.safetensors"))) == 1
    other = decide(replace(asked, k=2), tmp_path / "out")
    clean = decide(replace(asked, k=2), tmp_path / "clean")
    assert other.record["model"] == clean.record["model"]
    assert len(other.sources) == 2
    assert not (tmp_path / ".out.auto").exists()


def test_what_is_there_is_not_replaced(pool: Pool, task: Task, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(OutputError, match="overwrite"):
        decide(question(pool, task), tmp_path / "out")
    with pytest.raises(OutputError):
        decide(question(pool, task), pool.expert("de-DE"), overwrite=True)
    assert (tmp_path / "out" / "mine").read_text() == "x"


def test_the_command(run: Run, pool: Pool, tmp_path: Path) -> None:
    ran = run(
        "auto",
        pool.root,
        tmp_path / "out",
        "--target",
        ABSENT,
        "-k",
        "2",
        "--store",
        tmp_path / "s.sqlite",
        "--test",
    )
    assert ran.code == 0, ran.err
    assert "cy-GB (ExcTar): " in ran.out
    assert "test: " in ran.out
    again = run("auto", pool.root, tmp_path / "two", "--target", ABSENT, "-k", "2", "--json")
    assert json.loads(again.out)["choice"] in ("single", "linear", "ties", "wudi", "wudi+head")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--labels", "some"), "it is dev or none"),
        (("--target", "xx-YY"), "xx-YY"),
        (("--by", "measured", "--labels", "none"), "looks at labels of the target"),
        (("--by", "nearest"), "unknown selector 'nearest'"),
        (("--text", "nowhere.txt"), "nowhere.txt"),
    ],
)
def test_what_cannot_be_is_one_line(
    run: Run, pool: Pool, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    given = arguments if "--target" in arguments else ("--target", ABSENT, *arguments)
    ran = run("auto", pool.root, tmp_path / "out", *given)
    assert ran.code == 2
    assert said in ran.err
    assert len(ran.err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
