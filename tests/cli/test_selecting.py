"""similarity, select, estimate, and merge --pool by any selector."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from langmerge.coefficients import Coefficients
from langmerge.locales import MASSIVE_LOCALES
from langmerge.pool import Pool
from langmerge.selection import SELECTORS, SimilarityMatrix, TransferMatrix
from langmerge.selection.label_free import ESTIMATORS
from tests.cli.conftest import Run
from tests.cli.test_bad_input import assert_refused
from tests.tiny_pool import ABSENT, EXPERTS, write_tiny_pool

SCORING = [by for by in SELECTORS if by != "manual"]


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """Read-only."""
    return write_tiny_pool(tmp_path_factory.mktemp("selecting"))


def document(run: Run, *arguments: object) -> Any:
    """The one JSON document that a command prints."""
    ran = run(*arguments, "--json")
    assert ran.code == 0, ran.err
    assert ran.err == ""
    return json.loads(ran.out)


def table(run: Run, *arguments: object) -> str:
    """What a command prints for people, in one line: a title is as narrow as its table."""
    ran = run(*arguments)
    assert ran.code == 0, ran.err
    assert ran.err == ""
    return " ".join(ran.out.split())


def test_a_matrix_of_other_experts_is_not_trusted(run: Run, tmp_path: Path) -> None:
    """An expert without a row would drop out unseen, and one that was trained anew keep its old numbers."""
    own = write_tiny_pool(tmp_path)
    own.with_expert("cy-GB", own.expert("sw-KE"), {}).save()
    ran = run("select", own.root, "--target", "sw-KE", "-k", "2")
    assert ran.code == 2
    assert f"has no row for the expert cy-GB: run langmerge matrix {own.root}" in ran.err
    own.save()
    assert run("select", own.root, "--target", "sw-KE", "-k", "2").code == 0
    shutil.rmtree(own.expert("de-DE"))
    shutil.copytree(own.expert("fr-FR"), own.expert("de-DE"))
    ran = run("select", own.root, "--target", "sw-KE", "-k", "2")
    assert ran.code == 2
    assert "was measured before the expert de-DE was trained anew" in ran.err


def test_another_column_leaves_those_that_are_there(run: Run, tmp_path: Path) -> None:
    own = write_tiny_pool(tmp_path)
    before = TransferMatrix.load(own.root / "transfer.dev.json")
    assert run("select", own.root, "--target", ABSENT, "-k", "2").code == 2
    assert run("matrix", own.root, "--locales", ABSENT).code == 0
    after = TransferMatrix.load(own.root / "transfer.dev.json")
    assert after.targets == (*before.targets, ABSENT)
    np.testing.assert_array_equal(after.values[:, :4], before.values)
    for target in (ABSENT, "sw-KE"):
        assert run("select", own.root, "--target", target, "-k", "2").code == 0
    # Other rows are other numbers: nothing of a whole split stands beside those of a part.
    assert run("matrix", own.root, "--locales", "sw-KE", "--limit", "8").code == 0
    assert TransferMatrix.load(own.root / "transfer.dev.json").targets == ("sw-KE",)


def test_all_of_massives_languages_without_a_pool(run: Run) -> None:
    found = document(run, "similarity", "--locales", ",".join(MASSIVE_LOCALES))
    assert found["by"] == "typology"
    assert found["sources"] == found["targets"] == list(MASSIVE_LOCALES)
    values = np.array(found["values"], dtype=np.float64)
    assert values.shape == (52, 52)
    np.testing.assert_array_equal(values, values.T)
    known = ~np.isnan(values)
    assert known.mean() > 0.9
    np.testing.assert_allclose(np.diag(values)[np.diag(known)], 1.0)
    assert values[known].min() >= 0
    assert values[known].max() <= 1
    place = {locale: row for row, locale in enumerate(MASSIVE_LOCALES)}
    # One language in two scripts; two neighbours of one family; two ends of the earth.
    assert values[place["zh-CN"], place["zh-TW"]] == pytest.approx(1.0)
    near = values[place["de-DE"], place["nl-NL"]]
    far = values[place["de-DE"], place["ja-JP"]]
    assert near > far + 0.2


def test_languages_by_code_and_name(run: Run) -> None:
    by_code = document(run, "similarity", "--locales", "sw-KE,cy-GB,deu")
    by_name = document(run, "similarity", "--locales", "Swahili, Welsh ,German")
    assert by_name["sources"] == ["Swahili", "Welsh", "German"]
    assert by_name["values"] == by_code["values"]
    assert by_name["values"][0][1] < 1


def test_weights_of_feature_sets(run: Run) -> None:
    parts = {
        name: np.array(
            document(run, "similarity", "--locales", "de-DE,sw-KE", "--features", f"{name}=2")["values"]
        )
        for name in ("syntax", "geography")
    }
    both = ["similarity", "--locales", "de-DE,sw-KE", "--features", "syntax=3,geography=1"]
    found = document(run, *both)
    assert found["provenance"]["features"] == {"syntax": 3.0, "geography": 1.0}
    expected = (3 * parts["syntax"] + parts["geography"]) / 4
    np.testing.assert_allclose(found["values"], expected, atol=2e-6)
    assert not np.allclose(parts["syntax"], parts["geography"])


def test_the_matrix_is_written(run: Run, tmp_path: Path) -> None:
    options = ["similarity", "--locales", "de-DE,sw-KE,ja-JP", "-o", tmp_path / "s.json"]
    found = document(run, *options)
    kept = SimilarityMatrix.load(tmp_path / "s.json")
    assert json.loads(json.dumps(kept.payload())) == found
    assert f"written to {tmp_path / 's.json'}" in table(run, *options)
    assert [path.name for path in tmp_path.iterdir()] == ["s.json"]


def test_what_is_not_known_is_said(run: Run) -> None:
    """Of Mai Brat URIEL has no family; nobody has observed Welsh phonology."""
    command = ["similarity", "--locales", "deu,cy-GB,ayz", "--features", "phonology=1,family=1"]
    found = document(run, *command)
    assert found["missing"] == {
        "cy-GB": "phonology filled in from neighbours",
        "ayz": "family not known",
    }
    assert [[value is None for value in row] for row in found["values"]] == [
        [False, False, True],
        [False, False, True],
        [True, True, True],
    ]
    out = table(run, *command)
    assert "source (row) for target (column)" in out
    assert out.endswith("cy-GB: phonology filled in from neighbours ayz: family not known")
    assert out.count("–") == 5


def test_a_page_of_languages(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("langmerge.report.languages")
    page = tmp_path / "s.html"
    found = document(run, "similarity", "--locales", "de-DE,nl-NL,sw-KE,ja-JP", "--html", page)
    assert found["targets"] == ["de-DE", "nl-NL", "sw-KE", "ja-JP"]
    text = page.read_text(encoding="utf-8")
    assert "<svg" in text
    assert "sw-KE" in text


@pytest.mark.parametrize("by", SCORING)
def test_similarity_of_a_pool(run: Run, pool: Pool, by: str) -> None:
    found = document(run, "similarity", pool.root, "--by", by)
    assert (found["by"], found["sources"], found["targets"]) == (by, list(EXPERTS), list(EXPERTS))
    assert np.isfinite(np.array(found["values"], dtype=np.float64)).all()
    if by not in ("measured", "delta"):
        one = document(run, "similarity", pool.root, "--by", by, "--locales", ABSENT)
        assert one["targets"] == [ABSENT]


@pytest.mark.parametrize("by", ["measured", "delta"])
def test_only_the_locales_that_were_asked_for(run: Run, pool: Pool, by: str) -> None:
    whole = document(run, "similarity", pool.root, "--by", by)
    some = document(run, "similarity", pool.root, "--by", by, "--locales", "sw-KE,de-DE")
    assert some["targets"] == ["sw-KE", "de-DE"]
    columns = [EXPERTS.index("sw-KE"), EXPERTS.index("de-DE")]
    np.testing.assert_array_equal(some["values"], np.array(whole["values"])[:, columns])


def test_representations_by_cosine(run: Run, pool: Pool) -> None:
    command = ["similarity", pool.root, "--by", "representation"]
    cka, cosine = document(run, *command), document(run, *command, "--how", "cosine")
    assert (cka["provenance"]["how"], cosine["provenance"]["how"]) == ("cka", "cosine")
    assert cka["values"] != cosine["values"]


@pytest.mark.parametrize("by", SCORING)
def test_a_selection_by_every_selector(run: Run, pool: Pool, tmp_path: Path, by: str) -> None:
    command = ["select", pool.root, "--target", "sw-KE", "--by", by, "-k", "2"]
    found = document(run, *command, "-o", tmp_path / "c.json")
    assert found == Coefficients.load(tmp_path / "c.json").model_dump(mode="json")
    assert found["provenance"]["selector"] == by
    assert len(found["values"]["model"]) == 2
    assert "sw-KE" not in found["values"]["model"]
    out = table(run, *command)
    assert f"sources for sw-KE by {by}" in out
    assert all(source in out for source in found["values"]["model"])


def test_the_targets_own_expert_and_weights(run: Run, pool: Pool) -> None:
    command = ["select", pool.root, "--target", "sw-ke", "-k", "3", "--include-target"]
    weights = {}
    for how in ("uniform", "softmax", "sinkhorn"):
        found = document(run, *command, "--weights", how)
        weights[how] = found["values"]["model"]
        assert next(iter(weights[how])) == "sw-KE"
        assert sum(weights[how].values()) == pytest.approx(1)
        assert found["provenance"]["temperature"] == (None if how == "uniform" else 0.1)
    assert len({json.dumps(one) for one in weights.values()}) == 3
    own = document(run, *command, "--own", "0.9")["values"]["model"]
    assert own["sw-KE"] == 0.9
    assert sum(own.values()) == pytest.approx(1)
    warm = document(run, *command, "--weights", "softmax", "--temperature", "50")["values"]["model"]
    assert warm == pytest.approx(weights["uniform"], abs=0.01)


@pytest.mark.parametrize("joint", ["rank", "greedy", "diverse"])
@pytest.mark.parametrize("by", ["measured", "typology"])
def test_sets_and_their_size(run: Run, pool: Pool, joint: str, by: str) -> None:
    command = ["select", pool.root, "--target", "sw-KE", "--by", by, "--joint", joint]
    some = document(run, *command, "-k", "auto")
    assert 1 <= len(some["values"]["model"]) <= 3
    assert joint in some["provenance"]["joint"]
    whole = document(run, *command, "-k", "all")
    assert set(whole["values"]["model"]) == {"de-DE", "en-US", "fr-FR"}
    assert "k chosen" in table(run, *command, "-k", "auto")
    # Worth alone: as by rank.
    ranked = document(run, *command[:6], "-k", "2")["values"]["model"]
    worth = document(run, *command[:6], "-k", "2", "--joint", "diverse", "--trade", "1")["values"]["model"]
    assert worth == ranked


def test_scores_by_hand(run: Run, pool: Pool) -> None:
    command = ["select", pool.root, "--target", ABSENT, "--by", "manual", "--scores", "fr-FR=3, de-DE=1"]
    found = document(run, *command, "--weights", "proportional")
    assert list(found["values"]["model"].items()) == [("fr-FR", 0.75), ("de-DE", 0.25)]
    assert found["target"] == ABSENT
    assert found["provenance"]["selector"] == "manual"


def test_all_selectors_side_by_side(run: Run, pool: Pool, tmp_path: Path) -> None:
    command = ["select", pool.root, "--target", "sw-KE", "-k", "2", "--compare"]
    found = document(run, *command)
    assert list(found["chosen"]) == SCORING
    assert all(len(sources) == 2 for sources in found["chosen"].values())
    assert "measured" not in found["spearman"]
    assert all(-1 <= rho <= 1 for rho in found["spearman"].values())
    out = table(run, *command)
    assert all(by in out for by in SCORING)
    assert "manual" in document(run, *command, "--scores", "de-DE=1,fr-FR=2")["chosen"]
    absent = document(run, "select", pool.root, "--target", ABSENT, "--compare")["chosen"]
    unavailable = {by for by, entry in absent.items() if isinstance(entry, str)}
    assert unavailable == {"measured", "delta"}
    assert "not available" in table(run, "select", pool.root, "--target", ABSENT, "--compare")


def test_why_each_expert_is_in_or_out(run: Run, pool: Pool, tmp_path: Path) -> None:
    command = ["select", pool.root, "--target", "sw-KE", "--by", "composite", "-k", "2", "--explain"]
    found = document(run, *command, "-o", tmp_path / "c.json")
    lines = found.pop("explained")
    assert found == Coefficients.load(tmp_path / "c.json").model_dump(mode="json")
    assert [line["source"] for line in lines[:2]] == list(found["values"]["model"])
    assert sorted(line["source"] for line in lines) == list(EXPERTS)
    assert [line["why"].partition(":")[0] for line in lines] == ["in", "in", "out", "out"]
    assert set(lines[0]["scores"]) == set(lines[0]["ranks"]) == set(SCORING)
    out = table(run, *command)
    assert "every score (and rank) of every source" in out
    assert "own expert" in out


def test_estimates_on_a_target_without_labels(run: Run, pool: Pool) -> None:
    found = document(run, "estimate", pool.root, "--target", ABSENT)
    assert found["calibration"] == []
    assert {(one["expert"], one["how"]) for one in found["estimates"]} == {
        (expert, how) for expert in EXPERTS for how in ESTIMATORS
    }
    assert all(one["truth"] is None and 0 <= one["estimated"] <= 1 for one in found["estimates"])
    out = table(run, "estimate", pool.root, "--target", ABSENT, "--by", "atc,entropy")
    assert f"estimated accuracy % on {ABSENT}" in out
    assert all(expert in out for expert in EXPERTS)
    assert "agreement_line" not in out


def test_how_wrong_estimates_are(run: Run, pool: Pool) -> None:
    found = document(run, "estimate", pool.root, "--by", "atc,agreement")
    assert [one["how"] for one in found["calibration"]] == ["atc", "agreement"]
    assert all(one["targets"] == 4 for one in found["calibration"])
    transfer = TransferMatrix.load(pool.root / "transfer.dev.json")
    assert len(found["estimates"]) == 2 * 4 * 3
    for one in found["estimates"]:
        assert one["truth"] == pytest.approx(transfer.score(one["expert"], one["target"]), abs=1e-6)
    out = table(run, "estimate", pool.root)
    assert all(how in out for how in ESTIMATORS)
    assert "over 4 targets" in out


def test_a_calibration_plot(run: Run, pool: Pool, tmp_path: Path) -> None:
    pytest.importorskip("langmerge.report.languages")
    document(run, "estimate", pool.root, "--html", tmp_path / "e.html")
    assert "<svg" in (tmp_path / "e.html").read_text(encoding="utf-8")


def test_a_merge_by_a_label_free_selector(run: Run, pool: Pool, tmp_path: Path) -> None:
    command = ["--pool", pool.root, "--target", ABSENT, "--by", "composite", "-k", "2", "--method", "linear"]
    found = document(run, "merge", tmp_path / "merged", *command, "--weights", "softmax")
    receipt = json.loads((tmp_path / "merged" / "langmerge.json").read_text())
    assert found["signature"] == receipt["signature"]
    chosen = document(
        run, "select", pool.root, "--target", ABSENT, "--by", "composite", "-k", "2", "--weights", "softmax"
    )
    assert receipt["recipe"]["coefficients"]["values"] == chosen["values"]
    assert set(receipt["hashes"]["sources"]) == set(chosen["values"]["model"])


def test_a_merge_with_a_number_that_is_chosen(run: Run, pool: Pool, tmp_path: Path) -> None:
    found = document(
        run,
        "merge",
        tmp_path / "m",
        "--pool",
        pool.root,
        "--target",
        "sw-KE",
        "-k",
        "auto",
        "--method",
        "linear",
    )
    receipt = json.loads((tmp_path / "m" / "langmerge.json").read_text())
    chosen = document(run, "select", pool.root, "--target", "sw-KE", "-k", "auto")
    assert found["signature"] == receipt["signature"]
    assert set(receipt["hashes"]["sources"]) == set(chosen["values"]["model"])


def test_a_matrix_here_is_the_matrix(run: Run, pool: Pool) -> None:
    expected = TransferMatrix.load(pool.root / "transfer.dev.json")
    found = document(run, "matrix", pool.root, "--executor", "local")
    np.testing.assert_allclose(found["values"], expected.values, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["similarity"], ["--locales"]),
        (["similarity", "--locales", " , "], ["--locales is empty"]),
        (["similarity", "--locales", "de-DE,Qwertyish"], ["'Qwertyish' is no language"]),
        (["similarity", "--locales", "de-DE,sw-KE", "--by", "measured"], ["--by typology", "experts"]),
        (["similarity", "--locales", "de-DE", "--features", "colour=1"], ["'colour'", "syntax", "geography"]),
        (
            ["similarity", "--locales", "de-DE", "--features", "syntax"],
            ["--features", "'syntax'", "NAME=NUMBER"],
        ),
        (["similarity", "--locales", "de-DE", "--features", "syntax=much"], ["'syntax=much'"]),
        (["similarity", "--locales", "de-DE", "--features", "syntax=1,syntax=2"], ["each name once"]),
        (["similarity", "--locales", "de-DE", "--features", ","], ["--features is empty"]),
        (["similarity", "--locales", "de-DE", "--features", "syntax=-1"], ["must be positive"]),
        (["similarity", "--locales", "de-DE", "--features", "syntax=0"], ["must be positive"]),
        (
            ["similarity", "--locales", "de-DE", "-o", "nowhere/s.json"],
            ["nowhere/s.json", "cannot be written"],
        ),
        (["similarity", "nowhere"], ["nowhere/pool.yaml"]),
        (["estimate", "nowhere"], ["nowhere/pool.yaml"]),
        (["select", "nowhere", "--target", "sw-KE", "--compare"], ["nowhere/pool.yaml"]),
    ],
)
def test_wrong_without_a_pool(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[object], named: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(run, tmp_path, arguments, *named)


SELECT = ["select", "POOL", "--target", "sw-KE", "-k", "2", "-o", "c.json"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["similarity", "POOL", "--by", "taste"], ["unknown selector 'taste'", "composite"]),
        (["similarity", "POOL", "--by", "manual", "-o", "s.json"], ["manual", "--scores"]),
        (["similarity", "POOL", "--locales", ","], ["--locales is empty"]),
        (["similarity", "POOL", "--by", "delta", "--locales", ABSENT], [ABSENT, "own expert"]),
        (["similarity", "POOL", "--by", "measured", "--locales", ABSENT], [ABSENT, "langmerge matrix"]),
        (["similarity", "POOL", "--by", "representation", "--how", "taste"], ["'taste'", "cosine"]),
        ([*SELECT, "--by", "taste"], ["'taste'"]),
        ([*SELECT, "--joint", "heap"], ["'heap'", "rank, greedy, diverse"]),
        ([*SELECT, "--joint", "diverse", "--trade", "2"], ["--trade"]),
        ([*SELECT, "--weights", "heavy"], ["'heavy'", "sinkhorn"]),
        ([*SELECT, "--weights", "sinkhorn", "--temperature", "-1"], ["temperature is -1"]),
        ([*SELECT, "--by", "manual"], ["--scores"]),
        ([*SELECT, "--by", "manual", "--scores", "tr-TR=1"], ["tr-TR", "no expert"]),
        ([*SELECT, "--by", "manual", "--scores", "de-DE=nan,fr-FR=1"], ["finite"]),
        ([*SELECT, "--by", "manual", "--scores", "de-DE"], ["--scores", "'de-DE'"]),
        ([*SELECT, "--by", "manual", "--scores", "de-DE=1"], ["k is 2", "from 1 to 1"]),
        ([*SELECT, "--by", "typology", "--features", "colour=1"], ["'colour'"]),
        ([*SELECT, "--compare"], ["--compare", "-o"]),
        (["select", "POOL", "--target", "sw-KE", "-k", "some"], ["'some'"]),
        (["select", "POOL", "--target", "sw-KE", "-k", "9", "--joint", "greedy"], ["from 1 to 3"]),
        (["select", "POOL", "--target", ABSENT, "-k", "2"], [ABSENT, "langmerge matrix"]),
        (["select", "POOL", "--target", ABSENT, "-k", "2", "--by", "delta"], [ABSENT, "own expert"]),
        (
            ["select", "POOL", "--target", ABSENT, "-k", "2", "--by", "typology", "--include-target"],
            [ABSENT, "no expert"],
        ),
        (["select", "POOL", "--target", "sw-KE", "-k", "2", "--own", "0.9"], ["--own", "--include-target"]),
        (["estimate", "POOL", "--by", "taste"], ["'taste'", "agreement_line"]),
        (["estimate", "POOL", "--target", "xx-nowhere"], ["'xx-nowhere'"]),
        (["estimate", "POOL", "--target", ABSENT, "--html", "e.html"], ["--target"]),
        (["merge", "out", "--pool", "POOL", "--target", "sw-KE", "--by", "taste"], ["'taste'"]),
        (["merge", "out", "--pool", "POOL", "--target", ABSENT, "--by", "delta"], [ABSENT]),
        (["matrix", "POOL", "--executor", "dask"], ["'dask'", "local, ray"]),
    ],
)
def test_wrong_with_a_pool(
    run: Run,
    pool: Pool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    named: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    # Logits that a wrong command may have computed before it was known to be wrong are no output.
    whole: list[object] = [pool.root if one == "POOL" else one for one in arguments]
    before = (pool.root / "transfer.dev.json").read_bytes()
    assert_refused(run, tmp_path, whole, *named)
    assert (pool.root / "transfer.dev.json").read_bytes() == before


def test_without_ray_the_extra_is_named(
    run: Run, pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    command: list[object] = ["matrix", pool.root, "--executor", "ray"]
    assert_refused(run, tmp_path, command, "--executor ray", "pip install 'langmerge[ray]'")
