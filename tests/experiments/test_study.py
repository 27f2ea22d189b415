"""The whole story on a tiny encoder."""

from pathlib import Path

import numpy as np
import pytest

from langmerge.errors import PoolError, RecipeError
from langmerge.experiments import DEMO_GRID, Grid, run_sweep
from langmerge.experiments.grid import MethodChoice
from langmerge.pool import Pool
from langmerge.results import Row, Study, load_logits
from tests.experiments.conftest import tiny_grid


def rows_of(study: Study, kind: str, mode: str) -> list[Row]:
    return [row for row in study.rows if row.kind == kind and row.mode == mode]


def test_every_method_has_a_row_for_every_k_and_mode(study: Study) -> None:
    found = {(row.mode, row.name, row.k) for row in study.rows if row.kind == "merge"}
    four = ("linear", "linear(softmax T=0.1)", "ties(scope=model)", "wudi")
    wanted = {("ExcTar", name, k) for name in four for k in (2, 3)}
    wanted |= {("IncTar", name, k) for name in four for k in (2, 4)}
    assert found == wanted | {("ExcTar", "slerp", 2), ("IncTar", "slerp", 2)}


def test_exctar_never_uses_the_target_and_inctar_always_does(study: Study) -> None:
    for row in study.rows:
        if row.kind in ("merge", "soft_vote", "source_mean"):
            assert ("sw-KE" in row.sources) == (row.mode == "IncTar"), row


def test_the_references_are_the_experts_own_scores(study: Study, study_folder: Path) -> None:
    matrix = study.matrix
    column = matrix["targets"].index("sw-KE")
    dev = {source: matrix["values"][i][column] for i, source in enumerate(matrix["sources"])}
    best = max((source for source in dev if source != "sw-KE"), key=lambda source: dev[source])
    (found,) = [row for row in study.rows if row.kind == "best_zero_shot"]
    assert (found.name, found.dev) == (best, dev[best])
    kept = study_folder / "out" / "pool" / "logits" / "test" / "sw-KE" / f"{best}.safetensors"
    logits = load_logits(kept, found.signature)
    assert logits is not None
    assert found.test == pytest.approx(float(logits.correct.mean()), abs=1e-6)


def test_gain_and_effect_are_differences_of_the_rows(study: Study) -> None:
    (best,) = [row for row in study.rows if row.kind == "best_zero_shot"]
    (own,) = [row for row in study.rows if row.kind == "self"]
    means = {(row.mode, row.sources): row for row in study.rows if row.kind == "source_mean"}
    merges = [row for row in study.rows if row.kind == "merge"]
    assert merges
    for row in merges:
        assert row.gain is not None
        assert row.effect is not None
        reference = own if row.mode == "IncTar" else best
        assert row.gain.points == pytest.approx(100 * (row.test - reference.test), abs=1e-3)
        assert row.effect.points == pytest.approx(
            100 * (row.test - means[row.mode, row.sources].test), abs=1e-3
        )
        assert row.gain.low <= row.gain.points <= row.gain.high


def test_every_row_has_interval_seed_and_signature(study: Study) -> None:
    for row in study.rows:
        assert row.low <= row.test <= row.high
        assert row.seed == 0
        assert len(row.signature) == 12
    merges = [row.signature for row in study.rows if row.kind == "merge"]
    assert len(set(merges)) == len(merges)


def test_the_verdict_is_the_best_merge_on_dev(study: Study) -> None:
    for verdict in study.verdicts:
        merges = rows_of(study, "merge", verdict.mode)
        (chosen,) = [row for row in merges if row.signature == verdict.signature]
        assert chosen.dev == max(row.dev for row in merges)
        assert verdict.gain == chosen.gain
    assert {verdict.mode for verdict in study.verdicts} == {"ExcTar", "IncTar"}


def test_the_experts_learned(study: Study) -> None:
    (own,) = [row for row in study.rows if row.kind == "self"]
    assert own.test > 0.5  # three labels: 0.33 by chance


def test_a_second_run_computes_nothing_and_finds_the_same(study: Study, study_folder: Path) -> None:
    watched = [
        *(study_folder / "out" / "pool").rglob("*.safetensors"),
        *(study_folder / "out").rglob("*.safetensors"),
    ]
    before = {path: path.stat().st_mtime_ns for path in watched}
    (again,) = run_sweep(tiny_grid(study_folder), study_folder / "out").studies
    assert before
    assert {path: path.stat().st_mtime_ns for path in watched} == before
    assert again.rows == study.rows
    assert again.verdicts == study.verdicts


def test_all_experts_started_from_the_same_head(study: Study, study_folder: Path) -> None:
    from langmerge.checkpoint import open_checkpoint

    pool = Pool.load(study_folder / "out" / "pool")
    base = open_checkpoint(pool.base_folder)
    assert "classifier.out_proj.weight" in base.tensors
    distances = []
    for locale in pool.locales:
        expert = open_checkpoint(pool.expert(locale))
        assert expert.config["id2label"] == base.config["id2label"]
        delta = expert.read("classifier.out_proj.weight") - base.read("classifier.out_proj.weight")
        distances.append(float(delta.norm() / base.read("classifier.out_proj.weight").norm()))
    assert np.all(np.array(distances) > 0)


def test_a_pool_is_not_continued_with_another_head(study: Study, study_folder: Path) -> None:
    other = tiny_grid(study_folder, training={"epochs": 4, "seed": 1})
    with pytest.raises(PoolError, match="was begun with"):
        run_sweep(other, study_folder / "out")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"methods": [{"method": "tiez"}]}, "did you mean 'ties'"),
        ({"methods": [{"method": "ties", "parameters": {"densty": 0.2}}]}, "no parameter 'densty'"),
        ({"methods": [{"method": "linear", "weights": "best"}]}, "unknown weighting 'best'"),
        ({"targets": ["nowhere"]}, "is no locale"),
        ({"colour": 1}, "Extra inputs"),
        ({"k": [0]}, "k"),
        ({"training": {"disjoint": ["en-US"]}}, "write ids: disjoint"),
        ({"joint": {"disjoint": ["en-US"]}}, "write ids: disjoint"),
        ({"joint": {"seed": 7}}, "leave seed out"),
    ],
)
def test_a_wrong_grid_is_one_line_that_names_the_fault(
    tmp_path: Path, change: dict[str, object], fault: str
) -> None:
    import yaml

    fields = {
        "task": "demo:intent",
        "sources": ["en-US", "de-DE"],
        "targets": ["sw-KE"],
        "methods": [{"method": "wudi"}],
    }
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump({**fields, **change}))
    with pytest.raises(RecipeError) as found:
        Grid.load(path)
    assert fault in str(found.value)
    assert "\n" not in str(found.value)


def test_a_grid_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_bytes(b"task: \xff\xfe")
    with pytest.raises(RecipeError, match=r"grid\.yaml is not valid YAML"):
        Grid.load(tmp_path / "grid.yaml")


def test_choices_that_differ_have_other_names_and_equal_ones_one() -> None:
    ways = [{"weights": one, "temperature": t} for one in ("softmax", "sinkhorn") for t in (0.1, 0.5)]
    assert len({MethodChoice(method="linear", **way).name for way in ways}) == 4
    one, other = ({"density": 0.2, "scope": "model"}, {"scope": "model", "density": 0.2})
    assert (
        MethodChoice(method="ties", parameters=one).name == MethodChoice(method="ties", parameters=other).name
    )


def test_the_demo_keeps_its_promises() -> None:
    assert len(DEMO_GRID.locales) >= 6
    assert len(DEMO_GRID.targets) == 2
    assert len({choice.method for choice in DEMO_GRID.methods}) >= 5
    assert "wudi" in {choice.method for choice in DEMO_GRID.methods}
