"""Sweeps: what is planned, what a fault costs, what a second call does, and that it does not matter who works."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import langmerge.experiments.board as board_module
import langmerge.experiments.cost as cost_module
from langmerge.checkpoint import folder_signature
from langmerge.errors import OutputError, PoolError, RecipeError
from langmerge.evaluate import evaluate_model
from langmerge.experiments import Cost, Grid, Swept, Workers, estimate, run_sweep
from langmerge.experiments import sweep as module
from langmerge.experiments.places import places
from langmerge.models import PROVENANCE_FILE
from langmerge.pool import Pool
from langmerge.report import markdown, page
from langmerge.results.ensembles import ENSEMBLES
from langmerge.results.records import Outcome
from langmerge.results.store import Store
from langmerge.tasks import load_task
from langmerge.training import Training, train_pool
from langmerge.training.rates import Rates
from tests.experiments.conftest import tiny_grid

METHODS = [{"method": "linear"}, {"method": "ties", "vary": {"density": [0.2, 0.5]}}]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a sweep over two seeds and two selectors was run, into `out`."""
    return tmp_path_factory.mktemp("sweep")


def grid(place: Path, **changes: Any) -> Grid:
    fields = {
        "seeds": [0, 1], "selectors": ["measured", "strength"], "k": [2], "modes": ["ExcTar"], "methods": METHODS,
        "training": {"epochs": 1, "batch_size": 8, "lr": 5e-3, "head_lr": 2e-2},
    }  # fmt: skip
    return tiny_grid(place, **{**fields, **changes})


@pytest.fixture(scope="module")
def found(place: Path) -> Swept:
    """That sweep."""
    return run_sweep(grid(place), place / "out")


@pytest.fixture
def store(found: Swept, place: Path) -> Iterator[Store]:
    """Its store."""
    with Store(place / "out" / "store.sqlite") as opened:
        yield opened


def bare(outcome: Outcome) -> Outcome:
    """Without what differs from one time to another."""
    run = outcome.run and replace(
        outcome.run, seconds=0.0, scores=tuple(replace(one, logits=None) for one in outcome.run.scores)
    )
    return replace(outcome, seconds=0.0, run=run)


def test_every_place_has_a_cell_for_every_seed(found: Swept, store: Store) -> None:
    cells = [one.cell for one in store.outcomes(found.sweep.signature)]
    assert {cell.seed for cell in cells} == {0, 1}
    first = [cell for cell in cells if cell.seed == 0]
    assert Counter(cell.kind for cell in first) == {
        "first_source": 1, "best_zero_shot": 1, "best_in_hindsight": 1, "self": 1, "source_mean": 2, "merge": 6, **dict.fromkeys(ENSEMBLES, 2),
    }  # fmt: skip
    names = {cell.name for cell in first if cell.kind == "merge"}
    plain = {"linear", "ties(density=0.2)", "ties(density=0.5)"}
    assert names == plain | {f"{name}, by strength" for name in plain}
    assert len({cell.signature for cell in cells}) == len(cells)
    assert (found.found, found.filled, found.failed) == (0, len(cells), ())


def test_experts_of_another_seed_are_others(found: Swept) -> None:
    one, other = found.studies
    assert (one.seed, other.seed) == (0, 1)
    assert {row.seed for row in other.rows} == {1}
    assert one.matrix["signature"] != other.matrix["signature"]


def test_the_same_sources_are_merged_once(found: Swept, store: Store) -> None:
    """Two selectors may choose the same sources: two cells, one run."""
    merges = store.outcomes(kind="merge", seed=0)
    sets = {one.cell.name: one.run.sources for one in merges if one.run}
    assert any(sets[name] == sets[f"{name}, by strength"] for name in sets if ", by" not in name), (
        "no case of it"
    )
    by_sources = {(one.run.sources, one.cell.name.split(",")[0]): one.run for one in merges if one.run}
    for one in merges:
        assert one.run is not None
        twin = by_sources[one.run.sources, one.cell.name.split(",")[0]]
        assert one.run.signature == twin.signature
        assert set(one.run.coefficients["model"]) == set(one.run.sources)


def test_a_second_call_fills_nothing(found: Swept, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "fill", lambda _: pytest.fail("worked again"))
    again = run_sweep(grid(place), place / "out")
    assert (again.found, again.filled) == (found.filled, 0)
    assert [study.rows for study in again.studies] == [study.rows for study in found.studies]
    assert again.sweep == found.sweep


def test_a_larger_grid_takes_what_is_there(found: Swept, place: Path) -> None:
    more = run_sweep(grid(place, methods=[*METHODS, {"method": "wudi"}]), place / "out")
    assert more.found == found.filled
    assert more.filled == 4
    assert more.sweep.signature != found.sweep.signature


def test_a_cell_that_fails_is_recorded_and_stops_nothing(
    place: Path, found: Swept, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand: no memory for one of the methods."""
    real = board_module.TargetBoard._merge

    def short(self: Any, where: Any) -> Any:
        if where.choice.method == "ties":
            raise MemoryError("5 GB\nare not there")
        return real(self, where)

    with Store(place / "failing.sqlite") as own:
        with monkeypatch.context() as patch:
            patch.setattr(board_module.TargetBoard, "_merge", short)
            swept = run_sweep(grid(place), place / "out", store=own)
        assert {one.reason for one in swept.failed} == {"MemoryError: 5 GB are not there"}
        assert len(swept.failed) == 8
        assert own.states([one.cell.signature for one in swept.failed]).keys() == {
            one.cell.signature for one in swept.failed
        }
        # They are left as they are, until they are asked for.
        assert run_sweep(grid(place), place / "out", store=own).filled == 0
        again = run_sweep(grid(place), place / "out", store=own, retry=True)
        assert (again.filled, again.failed) == (8, ())
        with Store(place / "out" / "store.sqlite") as whole:
            assert [bare(one) for one in own.outcomes(found.sweep.signature)] == [
                bare(one) for one in whole.outcomes(found.sweep.signature)
            ]


def test_an_interrupted_sweep_keeps_what_is_done(
    place: Path, found: Swept, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, done = module.fill, []

    def cut(work: Any) -> Outcome:
        if len(done) == 7:
            raise KeyboardInterrupt
        done.append(work)
        return real(work)

    with Store(place / "cut.sqlite") as own:
        with monkeypatch.context() as patch:
            patch.setattr(module, "fill", cut)
            with pytest.raises(KeyboardInterrupt):
                run_sweep(grid(place), place / "out", store=own)
        assert len(own.outcomes()) == 7
        after = run_sweep(grid(place), place / "out", store=own)
        assert (after.found, after.filled) == (7, found.filled - 7)
        assert [study.rows for study in after.studies] == [study.rows for study in found.studies]


def test_two_sweeps_in_one_folder_are_refused(place: Path, found: Swept) -> None:
    with module._alone(place / "out"), pytest.raises(OutputError, match="another sweep is at work"):
        run_sweep(grid(place), place / "out")


def test_an_estimate_writes_nothing(place: Path, found: Swept, store: Store, tmp_path: Path) -> None:
    whole = estimate(grid(place), place / "out", store=store)
    assert (whole.cells, whole.done, whole.failed, whole.untrained) == (found.filled, found.filled, 0, {})
    assert whole.training == whole.measuring == whole.filling == Cost(0.0)
    assert whole.unwritten == 12
    more = estimate(grid(place, seeds=[0, 1, 2], modes=["ExcTar", "IncTar"]), place / "out", store=store)
    assert more.untrained == {2: ("en-US", "de-DE", "fr-FR", "sw-KE")}
    assert more.cells == 3 * len(places(grid(place, modes=["ExcTar", "IncTar"])))
    assert more.done == found.filled
    # Experts and cells of these kinds have finished; how long a row of the matrix takes is kept nowhere.
    assert more.training.seconds > 0
    assert more.filling.seconds > 0
    assert (more.training.tried, more.measuring.tried, more.filling.tried) == (False, True, False)
    nothing = estimate(grid(place), tmp_path / "new")
    assert (nothing.cells, nothing.done) == (found.filled, 0)
    assert nothing.training.tried
    assert nothing.filling.tried
    assert not (tmp_path / "new").exists()


def test_what_an_estimate_counts(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: a second for a row that is predicted, a hundred for one that is trained on."""
    monkeypatch.setattr(cost_module, "measured_rates", lambda *_: Rates(1.0, 100.0))
    whole = estimate(grid(place, seeds=[0, 1], selectors=["measured"], matrix_limit=20), tmp_path / "new")
    # Two seeds of four experts: one epoch of 48 rows and 24 of dev; each on 20 dev rows of four locales.
    assert whole.training == Cost(8 * (48 * 100.0 + 24), tried=True)
    assert whole.measuring == Cost(8 * 4 * 20.0, tried=True)
    # Best in hindsight looks at all four experts' 60 test rows; three merges of 20 and 60 rows.
    assert whole.filling == Cost(2 * (4 * 60 + 3 * 80.0), tried=True)
    joint = {"epochs": 2, "max_dev": 10}
    more = estimate(grid(place, selectors=["measured"], matrix_limit=20, joint=joint), tmp_path / "new")
    # One joint model a seed: two epochs of two sources' 96 rows and 10 of dev, then 20 and 60 rows.
    assert more.filling.seconds - whole.filling.seconds == 2 * (2 * (96 * 100 + 10) + 80)


def test_a_method_for_one_selector_has_the_cells_of_a_grid_of_its_own(place: Path) -> None:
    both = ["measured", "strength"]
    one = grid(
        place, methods=[{"method": "linear", "selectors": ["strength"]}, {"method": "wudi"}], selectors=both
    )
    assert [(p.selector, p.what) for p in places(one) if p.kind == "merge"] == [
        ("strength", "linear"), ("measured", "wudi"), ("strength", "wudi")
    ]  # fmt: skip
    alone = {
        p.payload()["kind"]: p.payload()
        for p in places(grid(place, methods=[{"method": "linear"}], selectors=["strength"]))
    }
    assert alone["merge"] in [p.payload() for p in places(one)]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        # Experts of other settings are trained anew, and whatever they have done with them.
        ({"training": {"epochs": 2, "batch_size": 8}}, {"untrained": 4, "measuring": 16, "done": 0}),
        ({"ids": "disjoint"}, {"untrained": 4, "measuring": 16, "done": 0}),
        # One more target needs an expert of its own, and a column; the other's cells are there.
        ({"targets": ["sw-KE", "en-US"]}, {"untrained": 0, "measuring": 0, "done": 22}),
        ({"matrix_limit": 20}, {"untrained": 0, "measuring": 16, "done": 0}),
    ],
)
def test_an_estimate_counts_what_a_run_would_do(
    place: Path, found: Swept, store: Store, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], expected: dict[str, int]
) -> None:  # fmt: skip
    monkeypatch.setattr(cost_module, "measured_rates", lambda *_: Rates(1.0, 0.0))
    asked = grid(place, seeds=[0], **changes)
    told = estimate(asked, place / "out", store=store)
    rows = told.measuring.seconds / (20 if "matrix_limit" in changes else 24)
    assert (len(told.untrained.get(0, ())), rows) == (expected["untrained"], expected["measuring"])
    assert told.done == expected["done"]
    assert told.due == told.cells - told.done
    # What experts of other settings took says nothing of these.
    assert told.training.tried == (expected["untrained"] > 0)


def test_cells_of_a_target_are_known_while_another_has_no_expert(place: Path, tmp_path: Path) -> None:
    """By hand: the pool loses one target's expert."""
    asked = grid(place, sources=["en-US", "de-DE"], targets=["sw-KE", "fr-FR"], seeds=[0])
    with Store(tmp_path / "own.sqlite") as own:
        swept = run_sweep(asked, tmp_path / "out", store=own)
        pool = Pool.load(tmp_path / "out" / "pool")
        pool.model_copy(update={"experts": {k: v for k, v in pool.experts.items() if k != "fr-FR"}}).save()
        told = estimate(asked, tmp_path / "out", store=own)
    assert told.untrained == {0: ("fr-FR",)}
    assert (told.cells, told.done) == (swept.filled, swept.filled // 2)


def test_an_estimate_tries_failed_cells_again_if_asked(place: Path, found: Swept, store: Store) -> None:
    (work, *_) = module.planned(grid(place), [module.ground_of(grid(place), place / "out", 0, None)])
    with Store(place / "one-failed.sqlite") as own:
        for one in store.outcomes(found.sweep.signature):
            own.record(replace(one, run=None, reason="no") if one.cell == work.cell else one)
        told, again = (
            estimate(grid(place), place / "out", store=own, retry=retry) for retry in (False, True)
        )
    assert (told.failed, told.due, again.failed, again.due) == (1, 0, 1, 1)


def test_an_estimate_refuses_what_a_run_would(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / PROVENANCE_FILE).write_text(json.dumps({"locales": ["en-US"]}))
    with pytest.raises(OutputError, match="holds a base made with"):
        estimate(grid(place, base="e5-small"), tmp_path)
    few = Training(disjoint=tuple(f"x{i}" for i in range(1000)))
    monkeypatch.setattr(Grid, "trainings", property(lambda _: (few,)))
    with pytest.raises(PoolError, match="has no part of the training ids"):
        estimate(grid(place), tmp_path)


def test_one_grid_under_two_names_is_two_sweeps_of_the_same_cells(
    place: Path, found: Swept, store: Store
) -> None:
    again = run_sweep(grid(place), place / "out", store=store, name="second")
    assert (again.found, again.filled) == (found.filled, 0)
    assert [one.name for one in store.sweeps()][-1] == "second"
    assert store.outcomes(again.sweep.signature) == store.outcomes(found.sweep.signature)


def test_ray_finds_the_same_rows(place: Path, found: Swept, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    # Workers find what this process does, and no more threads.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["src", os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Nothing is kept of what this process has computed.
    with Store(place / "ray.sqlite") as own, Store(place / "out" / "store.sqlite") as whole:
        for kept in (place / "out").glob("pool*/logits/*/*/merges/*"):
            kept.unlink()
        swept = run_sweep(grid(place), place / "out", store=own, workers=Workers("ray"))
        assert (swept.found, swept.filled, swept.failed) == (0, found.filled, ())
        assert [bare(one) for one in own.outcomes(swept.sweep.signature)] == [
            bare(one) for one in whole.outcomes(found.sweep.signature)
        ]


def test_disjoint_ids_are_a_pool_of_their_own(place: Path, found: Swept) -> None:
    own = grid(place, ids="disjoint", seeds=[], selectors=["measured"], methods=[{"method": "linear"}])
    run_sweep(own, place / "out")
    parallel, disjoint = (Pool.load(place / "out" / name) for name in ("pool", "pool-disjoint"))
    rows = {
        locale: disjoint.experts[locale].training["settings"]["train_rows"] for locale in disjoint.locales
    }
    assert sum(rows.values()) == 48
    assert all(own.training["settings"]["train_rows"] == 48 for own in parallel.experts.values())
    task = load_task(own.task)
    training = own.trainings[0]
    seen = [name for locale in own.locales for name in training.rows(task.load(locale, "train")).ids]
    assert len(seen) == len(set(seen)) == 48


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"selectors": ["nearest"]}, "unknown selector 'nearest'"),
        ({"selectors": ["manual"]}, "manual has no scores in a grid"),
        ({"ensembles": ["mean"]}, "unknown ensemble 'mean'"),
        ({"methods": [{"method": "ties", "vary": {"densty": [1]}}]}, "no parameter 'densty'"),
        ({"methods": [{"method": "ties", "vary": {"density": []}}]}, "vary density has no values"),
        (
            {"methods": [{"method": "ties", "vary": {"density": [0.1]}, "parameters": {"density": 0.2}}]},
            "density is given twice",
        ),
    ],
)
def test_a_grid_that_cannot_be(tmp_path: Path, change: dict[str, Any], fault: str) -> None:
    import yaml

    fields = {
        "task": "demo:intent",
        "sources": ["en-US", "de-DE"],
        "targets": ["sw-KE"],
        "methods": [{"method": "wudi"}],
    }
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump({**fields, **change}))
    with pytest.raises(RecipeError, match=fault):
        Grid.load(tmp_path / "grid.yaml")


EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))


@pytest.mark.parametrize("file", EXAMPLES, ids=[one.stem for one in EXAMPLES])
def test_the_examples_are_grids(file: Path) -> None:
    read = Grid.load(file)
    assert len(places(read)) >= 80


@pytest.fixture(scope="module")
def wide(place: Path) -> tuple[Swept, list[Outcome]]:
    """A sweep with joint models, a share for the target's own expert and heads by RegMean, over the pool of seed 0."""
    methods = [
        {"method": "linear", "own": 0.9},
        {"method": "wudi", "head": "regmean", "modes": ["ExcTar"]},
        {"method": "wudi", "own": 0.9, "modes": ["IncTar"]},
    ]
    changes = {
        "seeds": [0], "selectors": ["measured"], "modes": ["ExcTar", "IncTar"], "methods": methods, "ensembles": ["soft_vote"],
        "references": ["best_zero_shot", "self"], "joint": {"epochs": 2, "batch_size": 8, "lr": 5e-3, "head_lr": 2e-2},
    }  # fmt: skip
    swept = run_sweep(grid(place, **changes), place / "out", store=Store(place / "wide.sqlite"))
    with Store(place / "wide.sqlite") as opened:
        return swept, opened.outcomes(swept.sweep.signature)


def test_a_share_belongs_to_the_target_where_it_is_a_source_and_a_method_to_its_modes(
    wide: tuple[Swept, list[Outcome]],
) -> None:
    swept, outcomes = wide
    assert swept.failed == ()
    merges = {(one.cell.mode, one.cell.name): one for one in outcomes if one.cell.kind == "merge"}
    assert set(merges) == {
        ("ExcTar", "linear"), ("ExcTar", "wudi(head=regmean)"),
        ("IncTar", "linear(own=0.9)"), ("IncTar", "wudi(own=0.9)"),
    }  # fmt: skip
    own = merges["IncTar", "wudi(own=0.9)"].run
    plain = merges["ExcTar", "linear"].run
    assert own is not None
    assert plain is not None
    assert own.coefficients["model"]["sw-KE"] == 0.9
    assert sum(own.coefficients["model"].values()) == pytest.approx(1)
    assert set(plain.coefficients["model"].values()) == {0.5}
    assert {one.cell.kind for one in outcomes} == {
        "best_zero_shot", "self", "source_mean", "soft_vote", "joint", "merge",
    }  # fmt: skip


def test_a_joint_model_has_seen_its_sources_and_not_the_target(
    wide: tuple[Swept, list[Outcome]], place: Path
) -> None:
    _, outcomes = wide
    joint = {one.cell.mode: one for one in outcomes if one.cell.kind == "joint"}
    apart, along = joint["ExcTar"].run, joint["IncTar"].run
    assert apart is not None
    assert along is not None
    assert "sw-KE" not in apart.sources
    assert "sw-KE" in along.sources
    records = [
        json.loads(file.read_text())
        for file in (place / "out" / "pool" / "joint").glob("*/langmerge_joint.json")
    ]
    assert sorted(tuple(one["locales"]) for one in records) == sorted(
        tuple(sorted(run.sources)) for run in (apart, along)
    )
    # 48 rows of each of the two.
    assert {one["settings"]["train_rows"] for one in records} == {96}
    assert joint["ExcTar"].gain is not None
    assert joint["ExcTar"].effect is not None
    assert apart.signature != along.signature


def test_pages_name_every_kind_of_row(wide: tuple[Swept, list[Outcome]], found: Swept) -> None:
    study = wide[0].studies[0]
    assert "joint training" in markdown(study)
    assert "joint training" in page(study)
    # By another selector than dev accuracy there is the first source by it.
    assert "first source" in markdown(found.studies[0])
    assert "first source" in page(found.studies[0])


def test_joint_models_see_the_rows_of_the_experts(place: Path) -> None:
    training = {"max_train": 30, "epochs": 1}
    asked = grid(place, training=training, joint={"epochs": 2}, ids="disjoint")
    joint = asked.joint_training(1)
    assert joint is not None
    assert (joint.max_train, joint.epochs, joint.seed, joint.disjoint) == (30, 2, 1, asked.locales)
    other = grid(place, training=training, joint={"epochs": 2, "max_train": None}).joint_training(0)
    assert other is not None
    assert other.max_train is None


def test_how_joint_models_are_trained_decides_their_cells_alone(place: Path) -> None:
    def cells(epochs: int) -> dict[str, str]:
        asked = grid(place, seeds=[0], joint={"epochs": epochs})
        grounds = [module.ground_of(asked, place / "out", 0, None)]
        return {work.place.kind: work.cell.signature for work in module.planned(asked, grounds)}

    one, other = cells(1), cells(2)
    assert {kind for kind in one if one[kind] != other[kind]} == {"joint"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"references": ["soft_vote"]}, "is no single expert"),
        ({"methods": [{"method": "linear", "own": 1.5}]}, "less than or equal to 1"),
        ({"methods": [{"method": "linear", "own": 0.5, "modes": ["ExcTar"]}]}, "own is for IncTar"),
        ({"methods": [{"method": "linear", "own": 0.5}]}, "modes has no IncTar"),
        ({"methods": [{"method": "linear", "modes": ["IncTar"]}]}, "is for IncTar, the grid for ExcTar"),
        (
            {"methods": [{"method": "linear", "selectors": ["delta"]}]},
            "is for delta, the grid for measured, strength",
        ),
        ({"methods": [{"method": "linear", "head": "source:de-DE"}]}, "'merge', 'mean', 'base' or 'regmean'"),
    ],
)
def test_a_grid_says_what_is_wrong_with_references_and_shares(
    place: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        grid(place, **changes)


def test_fewer_test_rows_are_other_cells(found: Swept, place: Path) -> None:
    asked = grid(
        place, seeds=[0], selectors=["measured"], methods=[{"method": "linear"}], ensembles=[], test_limit=20
    )
    with Store(place / "few.sqlite") as opened:
        few = run_sweep(asked, place / "out", store=opened)
        assert few.failed == ()
        runs = [one.run for one in opened.outcomes(few.sweep.signature)]
    assert {(score.split, score.rows) for run in runs if run for score in run.scores} == {
        ("dev", 24),
        ("test", 20),
    }
    assert not {one.signature for one in few.studies[0].rows} & {
        one.signature for one in found.studies[0].rows
    }


def test_merges_are_written_if_asked_for_and_are_what_was_scored(found: Swept, place: Path) -> None:
    asked = grid(
        place, seeds=[0], selectors=["measured"], methods=METHODS[:1], ensembles=[], references=["self"]
    )
    with Store(place / "models.sqlite") as opened:
        assert run_sweep(asked, place / "out", store=opened).failed == ()
        assert not (place / "out" / "models").exists()
        # Cells that are done get theirs too, and stay as they are.
        again = run_sweep(asked, place / "out", store=opened, keep_models=True)
        (merge,) = opened.outcomes(again.sweep.signature, kind="merge")
        assert (again.filled, again.unwritten) == (0, {})
        assert [folder.name for folder in (place / "out" / "models").iterdir()] == [merge.cell.signature]
        # One that cannot be written is said, and no result is lost by it.
        shutil.rmtree(place / "out" / "models")
        (place / "out" / "models").write_text("a file")
        hindered = run_sweep(asked, place / "out", store=opened, keep_models=True)
        assert set(hindered.unwritten) == {merge.cell.signature}
        assert hindered.failed == ()
        (place / "out" / "models").unlink()
        run_sweep(asked, place / "out", store=opened, keep_models=True)
    assert merge.run is not None
    task = load_task(asked.task)
    scored = evaluate_model(place / "out" / "models" / merge.cell.signature, task, ["sw-KE"])["sw-KE"]
    test = next(one for one in merge.run.scores if one.split == "test")
    assert test.correct is not None
    np.testing.assert_array_equal(scored.correct, test.correct)


def test_ray_trains_the_same_experts(place: Path, found: Swept, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["src", os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    task, training = load_task(grid(place).task), grid(place).trainings[0]
    first = Pool.load(place / "out" / "pool")
    pool = train_pool(
        place / "by-ray", base=Path(grid(place).base), task=task, locales=["sw-KE", "de-DE"], training=training,
        executor="ray",
    )  # fmt: skip
    assert set(pool.locales) == {"de-DE", "sw-KE"}
    for locale in pool.locales:
        assert folder_signature(pool.expert(locale)) == folder_signature(first.expert(locale))
        assert pool.experts[locale].training["signature"] == first.experts[locale].training["signature"]
