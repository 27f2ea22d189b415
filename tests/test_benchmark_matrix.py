"""benchmarks/matrix.py: both ways find the same matrix, each works as it is said to; no time is judged."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from langmerge import evaluate
from langmerge.models import devices
from langmerge.pool import Pool
from langmerge.tasks import Task, load_task
from tests.tiny_pool import ABSENT, EXPERTS, write_tiny_pool

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import matrix as benchmark


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """Read-only."""
    return write_tiny_pool(tmp_path_factory.mktemp("benchmark"))


@pytest.fixture
def task(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> Task:
    """The pool's; everything is computed in float32, so that both ways find the same."""
    monkeypatch.setattr(devices, "has_fast_bf16", lambda _: False)
    return load_task(pool.task)


def test_both_ways_find_the_same_matrix(pool: Pool, task: Task) -> None:
    ways = (benchmark.langmerge_matrix, benchmark.naive_matrix)
    found = [way(pool, task, EXPERTS, None) for way in ways]
    np.testing.assert_array_equal(found[0], found[1])
    alone = evaluate.evaluate_model(pool.expert("fr-FR"), task, ["sw-KE"], split="dev")["sw-KE"]
    assert found[1][EXPERTS.index("fr-FR"), EXPERTS.index("sw-KE")] == float(alone.correct.mean())
    assert len(np.unique(found[0])) > 4


def test_columns_and_limit(pool: Pool, task: Task) -> None:
    columns = [ABSENT, "de-DE"]
    found = [way(pool, task, columns, 7) for way in (benchmark.langmerge_matrix, benchmark.naive_matrix)]
    assert found[0].shape == (4, 2)
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_allclose(found[0] * 7, np.round(found[0] * 7), atol=1e-9)


def test_a_given_pool_is_not_written_to(pool: Pool, task: Task) -> None:
    def state() -> dict[Path, int]:
        files = (path for path in pool.root.rglob("*") if path.is_file() and path.name != benchmark.KEPT_HASH)
        return {path: path.stat().st_mtime_ns for path in files}

    before = state()
    benchmark.langmerge_matrix(pool, task, [ABSENT], None)
    benchmark.naive_matrix(pool, task, [ABSENT], None)
    assert state() == before


def test_each_way_works_as_it_is_said_to(pool: Pool, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """langmerge loads once a row and tokenises once a column, every time; the naive way both once a cell."""
    calls: list[str] = []

    def counted(module: Any, name: str) -> None:
        function = getattr(module, name)

        def call(*arguments: Any, **named: Any) -> Any:
            calls.append(name)
            return function(*arguments, **named)

        monkeypatch.setattr(module, name, call)

    for module in (evaluate, benchmark):
        counted(module, "load_classifier")
        counted(module, "encode")
    for _ in range(2):
        calls.clear()
        benchmark.langmerge_matrix(pool, task, EXPERTS[:3], 5)
        assert (calls.count("load_classifier"), calls.count("encode")) == (4, 3)
    calls.clear()
    benchmark.naive_matrix(pool, task, EXPERTS[:3], 5)
    assert (calls.count("load_classifier"), calls.count("encode")) == (12, 12)


def test_naive_batches_are_in_file_order_and_padded_to_their_longest(
    pool: Pool, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[tuple[int, ...]] = []
    padded = benchmark.padded

    def watched(encoded: Any, **named: Any) -> Any:
        ids, mask = padded(encoded, **named)
        shapes.append(tuple(ids.shape))
        return ids, mask

    monkeypatch.setattr(benchmark, "padded", watched)
    texts = task.load("de-DE", "test").texts
    model = benchmark.load_classifier(pool.expert("de-DE"))
    tokenizer = benchmark.load_tokenizer(pool.base_folder)
    names = benchmark.naive_predictions(model, tokenizer, texts)
    assert len(names) == 60
    lengths = [len(text.split()) + 2 for text in texts]
    assert shapes == [(32, max(lengths[:32])), (28, max(lengths[32:]))]


def test_the_order_turns_round_with_every_round(
    pool: Pool, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[str] = []
    for way, value in (("langmerge", 0.5), ("naive", 0.75)):

        def found(*arguments: Any, way: str = way, value: float = value, width: int = 0) -> np.ndarray:
            turns.append("fixed" if width else way)
            return np.full((4, 1), value)

        monkeypatch.setattr(benchmark, f"{way}_matrix", found)
    case = benchmark.measured(pool, task, [ABSENT], 9, rounds=3, say=lambda _: None)
    # The first call warms up.
    there = ["langmerge", "naive", "fixed"]
    assert turns == ["naive", *there, *reversed(there), *there]
    assert case.rows == {ABSENT: 9}
    assert case.differences == [25.0] * 3
    assert [len(values) for values in case.seconds.values()] == [3, 3, 3]


def test_ratios_are_taken_round_by_round() -> None:
    seconds = {"langmerge": [1.0, 2.0, 4.0], "naive": [3.0, 8.0, 10.0], "fixed": [10.0, 20.0, 40.0]}
    case = benchmark.Case(("a",), ("b",), {"b": 1}, seconds, [0.0, 0.1, 0.0])
    assert case.ratios == {"naive": [3.0, 4.0, 2.5], "fixed": [10.0] * 3}
    assert case.lines == [
        ["", "median", "smallest", "largest"],
        ["langmerge s", "2.00", "1.00", "4.00"],
        ["naive s", "8.00", "3.00", "10.00"],
        ["fixed s", "20.00", "10.00", "40.00"],
        ["naive / langmerge", "3.00", "2.50", "4.00"],
        ["fixed / langmerge", "10.00", "10.00", "10.00"],
        ["largest difference, points", "0.00", "0.00", "0.10"],
    ]


def test_the_whole_program(
    pool: Pool, task: Task, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--pool", str(pool.root), "--locales", "de-de,sw-KE", "--limit", "6", "--rounds", "2"]
    benchmark.main([*command, "--json", str(tmp_path / "m.json")])
    out = capsys.readouterr().out
    assert "4 experts on 2 locales: 48 predictions of each way" in out
    assert "naive / langmerge" in out
    found = json.loads((tmp_path / "m.json").read_text())
    case = found["case"]
    assert (case["experts"], case["columns"]) == (list(EXPERTS), ["de-DE", "sw-KE"])
    assert case["rows"] == {"de-DE": 6, "sw-KE": 6}
    assert case["differences"] == [0.0, 0.0]
    assert len(case["ratios"]["naive"]) == len(case["seconds"]["fixed"]) == 2
    assert found["machine"]["threads"] >= 1


def test_a_pool_is_made_where_none_is_given(
    pool: Pool, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def base(name: str, out: Path, **named: Any) -> Path:
        asked.append((name, named["locales"]))
        return pool.root.parent / "encoder"

    monkeypatch.setattr(benchmark, "ensure_base", base)
    made = benchmark.made_pool(tmp_path, ["de-DE", "sw-KE"], task)
    assert asked == [("e5-small", ["de-DE", "sw-KE"])]
    assert made.locales == ("de-DE", "sw-KE")
    assert all((made.expert(locale) / "model.safetensors").exists() for locale in made.locales)


@pytest.mark.parametrize("wrong", [["--rounds", "0"], ["--limit", "0"], ["--limit", "many"]])
def test_a_wrong_command_line(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        benchmark.main(wrong)
    assert stopped.value.code == 2
    assert wrong[0] in capsys.readouterr().err
