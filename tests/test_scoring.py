"""Merges in memory score as merges on disk do."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from langmerge import evaluate as evaluation
from langmerge.coefficients import Coefficients
from langmerge.engine import merge
from langmerge.errors import CheckpointError, InputError, MethodError, PoolError
from langmerge.evaluate import PoolEvaluator, evaluate_model
from langmerge.learned.fewshot import mean_cross_entropy
from langmerge.pool import Pool
from langmerge.recipe import Recipe
from langmerge.scoring import MergeScorer, ResidentClassifier
from langmerge.tasks import load_task
from tests.tiny_pool import write_tiny_pool

TARGET = "sw-KE"
PAIR = Coefficients(values={"model": {"de-DE": 0.7, "en-US": 0.4}})
BLOCKS = Coefficients(
    values={"model": {"de-DE": 0.5, "en-US": 0.5}, "block:1": {"de-DE": 1.0, "en-US": 0.1}, "head": {"de-DE": 0, "en-US": 1}}
)  # fmt: skip


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """Four experts."""
    return write_tiny_pool(tmp_path_factory.mktemp("scoring"))


def scorer(pool: Pool, *, limit: int | None = None, **options: Any) -> MergeScorer:
    return MergeScorer(PoolEvaluator(pool, load_task(pool.task), limits={"dev": limit}), TARGET, **options)


@pytest.mark.parametrize(
    ("coefficients", "method", "parameters"),
    [
        (PAIR, "task_arithmetic", {}),
        (BLOCKS, "task_arithmetic", {"scale": 0.8}),
        (PAIR, "linear", {}),
        (PAIR, "ties", {"density": 0.5}),
        (BLOCKS, "wudi", {}),
    ],
)
def test_as_the_merge_that_is_written(
    pool: Pool, tmp_path: Path, coefficients: Coefficients, method: str, parameters: dict[str, Any]
) -> None:
    sources = {source: pool.expert(source) for source in coefficients.sources}
    recipe = Recipe(
        base=pool.base_folder,
        sources=sources,
        method=method,
        parameters=parameters,
        coefficients=coefficients,
    )
    merge(recipe, tmp_path / "out")
    written = evaluate_model(tmp_path / "out", load_task(pool.task), [TARGET], split="dev")[TARGET]
    own = scorer(pool, method=method, parameters=parameters)
    # Not only from the base's weights: also after another merge.
    own.accuracy(Coefficients.uniform(["fr-FR", "sw-KE"]))
    found = own.logits(coefficients)
    np.testing.assert_array_equal(found.values, written.values)
    assert found.ids == written.ids
    assert own.accuracy(coefficients) == float(written.correct.mean())
    assert own.cross_entropy(coefficients) == mean_cross_entropy(written.values, written.labels)


def test_one_source_alone_is_that_expert(pool: Pool) -> None:
    own = scorer(pool, method="linear")
    expert = own.evaluator.cell("fr-FR", TARGET, "dev")
    np.testing.assert_array_equal(own.logits(Coefficients.uniform(["fr-FR"])).values, expert.values)


def test_only_so_many_rows_and_each_merge_once(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def counted(model: Any, encoded: Any, **options: Any) -> np.ndarray:
        seen.append(len(encoded))
        return predict(model, encoded, **options)

    predict = evaluation.predict_logits
    monkeypatch.setattr(evaluation, "predict_logits", counted)
    own = scorer(pool, limit=10)
    own.accuracy(PAIR)
    own.cross_entropy(PAIR)
    assert seen == [10]
    own.accuracy(BLOCKS)
    assert seen == [10, 10]
    assert not list(pool.root.rglob("merges"))


def test_logits_are_kept_when_asked(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    first = scorer(pool, limit=7, keep=True).logits(PAIR)
    kept = list((pool.root / "logits" / "dev.7" / TARGET / "merges").iterdir())
    assert len(kept) == 1
    monkeypatch.setattr(evaluation, "predict_logits", lambda *_, **__: pytest.fail("computed"))
    again = scorer(pool, limit=7, keep=True)
    np.testing.assert_array_equal(again.logits(PAIR).values, first.values)
    assert again.accuracy(PAIR) == float(first.correct.mean())


def test_a_merge_without_finite_logits_has_no_score(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(model: Any, encoded: Any, **_: Any) -> np.ndarray:
        return np.full((len(encoded), model.config.num_labels), np.nan, dtype=np.float32)

    own = scorer(pool)
    monkeypatch.setattr(evaluation, "predict_logits", broken)
    assert np.isnan(own.accuracy(PAIR))
    assert np.isnan(own.cross_entropy(PAIR))
    with pytest.raises(CheckpointError, match="NaN or infinity"):
        own.logits(PAIR)


def test_other_faults_are_raised(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    own = scorer(pool)
    with pytest.raises(PoolError, match="no expert for 'cy-GB'"):
        own.accuracy(Coefficients.uniform(["de-DE", "cy-GB"]))
    with pytest.raises(InputError, match="not chosen on test"):
        scorer(pool, split="test")
    with pytest.raises(MethodError, match="'tie'"):
        scorer(pool, method="tie")
    # A head without the task's labels is no bad score but a fault.
    own.accuracy(PAIR)
    own._resident._model.config.id2label = {0: "x", 1: "y", 2: "z"}
    with pytest.raises(CheckpointError, match="no output for"):
        own.accuracy(BLOCKS)


def test_an_interrupted_fill_is_no_merge(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    own, resident = scorer(pool), ResidentClassifier(pool)

    def filled(name: str, coefficients: Coefficients) -> dict[str, torch.Tensor]:
        model = resident.filled(own.plan(coefficients), name)
        return {key: value.clone() for key, value in model.state_dict().items()}

    expected = filled("blocks", BLOCKS)
    copy = torch.Tensor.copy_
    left = iter(range(3))

    def failing(*arguments: Any, **options: Any) -> torch.Tensor:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return copy(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "copy_", failing)
        with pytest.raises(KeyboardInterrupt):
            filled("pair", PAIR)
    for name, value in filled("blocks", BLOCKS).items():
        assert torch.equal(value, expected[name]), name


def test_groups_are_those_that_experts_differ_in(pool: Pool) -> None:
    """Block 2 is the layer that pools: it never trains."""
    assert scorer(pool).groups(PAIR) == ("head", "embeddings", "block:0", "block:1")


def test_what_decides_scores_has_no_coefficients_in_it(pool: Pool) -> None:
    one = scorer(pool).about(PAIR)
    assert one == scorer(pool).about(BLOCKS)
    assert one["target"] == TARGET
    others = [
        scorer(pool, limit=5).about(PAIR),
        scorer(pool, method="linear").about(PAIR),
        scorer(pool, parameters={"scale": 0.5}).about(PAIR),
        scorer(pool, split="train").about(PAIR),
        scorer(pool).about(Coefficients.uniform(["de-DE", "fr-FR"])),
    ]
    assert len({one["signature"], *(other["signature"] for other in others)}) == 6
