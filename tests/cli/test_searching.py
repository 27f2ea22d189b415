"""learn fewshot, soup, search: from the pool to a merge that replays what was found."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from langmerge import evaluate as evaluation
from langmerge.coefficients import Coefficients
from langmerge.evaluate import PoolEvaluator, evaluate_model
from langmerge.learned.fewshot import few_rows, mean_cross_entropy
from langmerge.pool import Pool
from langmerge.tasks import load_task
from tests.cli.conftest import Run
from tests.cli.test_bad_input import assert_refused
from tests.tiny_pool import ABSENT, write_tiny_pool

TARGET = "sw-KE"
needs_cma = pytest.mark.skipif(find_spec("cma") is None, reason="needs cma")


@pytest.fixture(autouse=True)
def _never_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """Coefficients are chosen without a look at test rows."""
    rows = evaluation.Evaluator.rows

    def guarded(self: Any, locale: str, split: str) -> Any:
        assert split != "test"
        return rows(self, locale, split)

    monkeypatch.setattr(evaluation.Evaluator, "rows", guarded)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """Four experts."""
    return write_tiny_pool(tmp_path_factory.mktemp("searching"))


def document(run: Run, *arguments: object) -> Any:
    """The one JSON document that a command prints."""
    ran = run(*arguments, "--json")
    assert ran.code == 0, ran.err
    return json.loads(ran.out)


def merged_dev(run: Run, pool: Pool, file: Path, method: str, limit: int | None = None) -> Any:
    """Dev logits of what `merge --coefficients` makes of a file."""
    out = file.with_suffix(".model")
    ran = run("merge", out, "--pool", pool.root, "--coefficients", file, "--method", method)
    assert ran.code == 0, ran.err
    return evaluate_model(out, load_task(pool.task), [TARGET], split="dev", limit=limit)[TARGET]


def test_fewshot(run: Run, pool: Pool, tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    line = ["learn", "fewshot", pool.root, "--target", "sw_KE", "-k", 2, "--rows", 9, "--seed", 4, "-o", file]
    found = document(run, *line, "--temperature", 0.5)
    kept = Coefficients.load(file)
    assert kept.model_dump(mode="json") == found
    assert (kept.target, len(kept.sources)) == (TARGET, 2)
    assert TARGET not in kept.sources
    evaluator = PoolEvaluator(pool, load_task(pool.task))
    rows = few_rows(24, 9, seed=4)
    for source, loss in found["provenance"]["losses"].items():
        cell = evaluator.cell(source, TARGET, "dev")
        assert loss == pytest.approx(mean_cross_entropy(cell.values[rows], cell.labels[rows]))
    assert found["provenance"]["temperature"] == 0.5
    assert found["provenance"]["begun"]["selector"] == "measured"
    ran = run(*line, "--include-target")
    assert "loss, nats" in ran.out
    assert TARGET in Coefficients.load(file).sources
    before = file.read_bytes()
    assert run(*line, "--include-target").code == 0
    assert file.read_bytes() == before
    merged_dev(run, pool, file, "task_arithmetic")


def test_soup(run: Run, pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "c.json"
    line = ["learn", "soup", pool.root, "--target", TARGET, "-k", "all", "-o", file]
    found = document(run, *line)
    trace = found["provenance"]["trace"]
    assert (found["provenance"]["method"], found["provenance"]["parameters"]) == ("linear", {})
    evaluator = PoolEvaluator(pool, load_task(pool.task))
    alone = {s: float(evaluator.cell(s, TARGET, "dev").correct.mean()) for s in ("de-DE", "en-US", "fr-FR")}
    assert {one["source"]: one["accuracy"] for one in trace} == pytest.approx(alone)
    assert trace[0]["score"] == pytest.approx(max(alone.values()))
    score = found["provenance"]["score"]
    assert score >= max(alone.values())
    assert float(merged_dev(run, pool, file, "linear").correct.mean()) == score
    # A second time nothing is run, and the bytes are the same.
    before = file.read_bytes()
    monkeypatch.setattr(evaluation, "predict_logits", lambda *_, **__: pytest.fail("computed"))
    assert "soup with it %" in run(*line).out
    assert file.read_bytes() == before


@needs_cma
@pytest.mark.parametrize(
    ("groups", "objective", "method"),
    [("model", "cross-entropy", "task_arithmetic"), ("block", "accuracy", "ties")],
)
def test_search(
    run: Run,
    pool: Pool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    groups: str,
    objective: str,
    method: str,
) -> None:
    file = tmp_path / "c.json"
    line = [
        "learn", "search", pool.root, "--target", TARGET, "-k", 2, "-o", file, "--groups", groups, "--budget", 26,
        "--objective", objective, "--method", method, "--limit", 20, "--sigma", 0.3,
    ]  # fmt: skip
    found = document(run, *line)
    said = found["provenance"]
    assert said["groups"] == (
        ["model"] if groups == "model" else ["head", "embeddings", "block:0", "block:1"]
    )
    assert said["score"] == max(said["scores"]) >= said["start_score"]
    assert (said["method"], said["parameters"]) == (method, {})
    logits = merged_dev(run, pool, file, method, limit=20)
    right = (
        float(logits.correct.mean())
        if objective == "accuracy"
        else -mean_cross_entropy(logits.values, logits.labels)
    )
    assert said["score"] == right
    if objective == "cross-entropy":
        assert said["score"] > said["start_score"]
    assert len((tmp_path / "c.json.journal").read_text().splitlines()) == 1 + len(said["scores"])
    before = file.read_bytes()
    file.unlink()
    monkeypatch.setattr(evaluation, "predict_logits", lambda *_, **__: pytest.fail("computed"))
    ran = run(*line)
    assert f"{objective} on dev" in ran.out
    assert file.read_bytes() == before
    changed = run(*line, "--seed", 1)
    assert changed.code == 2
    assert "is of another search" in changed.err
    assert file.read_bytes() == before


@needs_cma
def test_search_from_a_file(run: Run, pool: Pool, tmp_path: Path) -> None:
    start = Coefficients(values={"model": {"fr-FR": 0.25, "sw-KE": 0.5}})
    start.save(tmp_path / "start.json")
    line = [
        "learn",
        "search",
        pool.root,
        "--target",
        TARGET,
        "--start",
        tmp_path / "start.json",
        "--budget",
        7,
    ]
    found = document(run, *line, "-o", tmp_path / "c.json")
    assert found["provenance"]["start"] == [0.25, 0.5]
    assert found["target"] == TARGET
    flat = run(*line, "--method", "wudi", "--low", 0.2, "--high", 0.6, "-o", tmp_path / "d.json")
    assert flat.code == 0
    Coefficients(values={"model": {"cy-GB": 0.25}}).save(tmp_path / "odd.json")
    (tmp_path / "c.json.journal").unlink()
    line[line.index(tmp_path / "start.json")] = tmp_path / "odd.json"
    assert_refused(run, tmp_path, [*line, "-o", tmp_path / "c.json"], "no expert for 'cy-GB'")


@needs_cma
def test_what_cannot_be(run: Run, pool: Pool, tmp_path: Path) -> None:
    def line(command: str, *more: object) -> list[object]:
        return ["learn", command, pool.root, "--target", TARGET, "-k", 2, "-o", tmp_path / "c.json", *more]

    for arguments, named in [
        (line("fewshot", "--rows", 25), ["25 labelled examples", "there are 24"]),
        (line("fewshot", "--temperature", 0), ["--temperature"]),
        (line("fewshot", "--target", "ja-JP"), ["ja-JP"]),
        (line("fewshot", "--target", ABSENT), ["langmerge matrix"]),
        (line("soup", "-o", tmp_path / "nowhere" / "c.json"), ["nowhere", "a folder that exists"]),
        (line("soup", "-o", tmp_path), ["cannot be written"]),
        (line("search", "--groups", "tensor"), ["--groups is 'tensor'", "model and block"]),
        (line("search", "--objective", "f1"), ["--objective is 'f1'"]),
        (line("search", "--method", "tie"), ["'tie'"]),
        (line("search", "-p", "scales=1"), ["scales"]),
        (line("search", "--budget", 6), ["a budget of 6", "give 7 or more"]),
        (line("search", "--low", 1, "--high", 0), ["the bounds are 1.0 and 0.0"]),
        (line("search", "--high", 0.4), ["coefficient", "outside of [0.0, 0.4]"]),
        (line("search", "--sigma", 0), ["sigma is 0.0"]),
        (line("search", "--start", tmp_path / "none.json"), ["none.json", "does not exist"]),
    ]:
        assert_refused(run, tmp_path, arguments, *named)
