"""Scores and the transfer matrix on a tiny pool."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from langmerge import evaluate as module
from langmerge.checkpoint import folder_signature, open_checkpoint
from langmerge.errors import CheckpointError, InputError, LocaleError
from langmerge.evaluate import (
    PoolEvaluator,
    RowWork,
    evaluate_model,
    evaluate_row,
    score,
    transfer_matrix,
)
from langmerge.pool import Pool
from langmerge.results import kept_logits, load_logits
from langmerge.selection import TransferMatrix
from langmerge.tasks import Task, load_task
from langmerge.training import Training, train_pool
from tests.experiments.conftest import write_task
from tests.tiny import permuted, write_raw
from tests.tiny_encoder import write_tiny_encoder

LOCALES = ("sw-KE", "de-DE", "fr-FR")


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    """A folder task."""
    return load_task(f"folder:{write_task(tmp_path_factory.mktemp('task') / 'text')}")


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory, task: Task) -> Pool:
    """Two experts."""
    root = tmp_path_factory.mktemp("pool")
    base = write_tiny_encoder(root / "encoder")
    training = Training(epochs=2, lr=5e-3, head_lr=2e-2, batch_size=8)
    return train_pool(root / "pool", base=base, task=task, locales=["de-DE", "en-US"], training=training)


def test_a_cell_of_the_matrix_is_the_experts_accuracy_on_that_locale(pool: Pool, task: Task) -> None:
    matrix = transfer_matrix(PoolEvaluator(pool, task), locales=["de-DE", "en-US", "sw-KE"])
    for expert in pool.locales:
        for locale in matrix.targets:
            alone = evaluate_model(pool.expert(expert), task, [locale], split="dev")[locale]
            assert matrix.score(expert, locale) == pytest.approx(float(alone.correct.mean()))
    assert (matrix.sources, matrix.split) == (("de-DE", "en-US"), "dev")
    kept = TransferMatrix.load(pool.root / "transfer.dev.json")
    np.testing.assert_allclose(kept.values, matrix.values, atol=1e-6)


def test_the_matrix_is_resumed_cell_by_cell(pool: Pool, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    transfer_matrix(PoolEvaluator(pool, task), locales=["de-DE", "en-US", "sw-KE"])
    cell = pool.root / "logits" / "dev" / "sw-KE" / "en-US.safetensors"
    cell.unlink()
    computed: list[int] = []

    def counted(model: Any, encoded: Any, **options: Any) -> np.ndarray:
        computed.append(len(encoded))
        return predict(model, encoded, **options)

    predict = module.predict_logits
    monkeypatch.setattr(module, "predict_logits", counted)
    transfer_matrix(PoolEvaluator(pool, task), locales=["de-DE", "en-US", "sw-KE"])
    assert computed == [24]
    assert cell.exists()


def test_each_locale_is_tokenised_once(pool: Pool, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def counted(tokenizer: Any, texts: Any, **options: Any) -> list[list[int]]:
        seen.append(len(texts))
        return encode(tokenizer, texts, **options)

    encode = module.encode
    monkeypatch.setattr(module, "encode", counted)
    evaluator = PoolEvaluator(pool, task, limits={"train": 7})
    transfer_matrix(evaluator, split="train", locales=["fr-FR", "sw-KE"])
    assert seen == [7, 7]


def test_logits_of_another_model_are_not_reused(pool: Pool, task: Task) -> None:
    evaluator = PoolEvaluator(pool, task)
    cell = evaluator.cell("de-DE", "fr-FR", "dev")
    path = pool.root / "logits" / "dev" / "fr-FR" / "de-DE.safetensors"
    evaluator.cell("en-US", "fr-FR", "dev").save(path)
    again = PoolEvaluator(pool, task).cell("de-DE", "fr-FR", "dev")
    np.testing.assert_array_equal(again.values, cell.values)


def test_kept_logits_are_the_fresh_ones(pool: Pool, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pool.root / "logits" / "dev" / "fr-FR" / "de-DE.safetensors"
    path.unlink(missing_ok=True)
    fresh = PoolEvaluator(pool, task).cell("de-DE", "fr-FR", "dev")
    assert load_logits(path, fresh.signature) is not None
    monkeypatch.setattr(module, "load_classifier", lambda *_: pytest.fail("nothing is left to compute"))
    again = PoolEvaluator(pool, task).cell("de-DE", "fr-FR", "dev")
    np.testing.assert_array_equal(again.values, fresh.values)
    np.testing.assert_array_equal(again.labels, fresh.labels)
    assert (again.ids, again.signature) == (fresh.ids, fresh.signature)
    np.testing.assert_array_equal(kept_logits(fresh.values), fresh.values)


def test_logits_outlive_a_new_version_but_not_a_new_way_of_making_them(
    pool: Pool, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    import langmerge

    evaluator = PoolEvaluator(pool, task)
    before = evaluator.signature("0123456789ab", "de-DE", "dev")
    monkeypatch.setattr(langmerge, "__version__", "99.0")
    monkeypatch.setattr(module, "__version__", "99.0", raising=False)
    assert PoolEvaluator(pool, task).signature("0123456789ab", "de-DE", "dev") == before
    monkeypatch.setattr(module, "EVALUATION", module.EVALUATION + 1)
    assert evaluator.signature("0123456789ab", "de-DE", "dev") != before


def test_a_cell_is_told_from_every_other(pool: Pool, task: Task) -> None:
    evaluator = PoolEvaluator(pool, task, limits={"dev": 7})
    signatures = [
        PoolEvaluator(pool, task).signature("a", "de-DE", "dev"),
        evaluator.signature("a", "de-DE", "dev"),
        evaluator.signature("b", "de-DE", "dev"),
        evaluator.signature("a", "en-US", "dev"),
        evaluator.signature("a", "de-DE", "test"),
    ]
    assert len(set(signatures)) == len(signatures)
    assert signatures[0] == PoolEvaluator(pool, task).signature("a", "de-DE", "dev")


def test_rows_that_come_back_in_any_order_fill_their_places(
    pool: Pool, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a cluster is given and gives, without one."""
    local = transfer_matrix(PoolEvaluator(pool, task), locales=LOCALES)
    asked: list[Any] = []

    def backwards(work: Any, items: Any, **where: Any) -> Any:
        asked.append((work, items, where))
        for place in reversed(range(len(items))):
            yield place, work(items[place])

    monkeypatch.setattr(module, "executed", backwards)
    spread = transfer_matrix(
        PoolEvaluator(pool, task),
        locales=LOCALES,
        executor="ray",
        address="head:6379",
        gpus=0.5,
        data=Path("data"),
    )
    np.testing.assert_array_equal(spread.values, local.values)
    assert (spread.sources, spread.targets) == (local.sources, LOCALES)
    assert spread.provenance == local.provenance
    ((work, items, where),) = asked
    assert (work, where) == (evaluate_row, {"executor": "ray", "address": "head:6379", "gpus": 0.5})
    assert items == [
        RowWork(pool.root.absolute(), Path("data"), expert, LOCALES, "dev", None) for expert in pool.locales
    ]


def test_the_local_executor_is_the_default(pool: Pool, task: Task) -> None:
    default = transfer_matrix(PoolEvaluator(pool, task), locales=LOCALES)
    named = transfer_matrix(PoolEvaluator(pool, task), locales=LOCALES, executor="local")
    np.testing.assert_array_equal(default.values, named.values)
    assert default.provenance == named.provenance


def test_a_row_on_another_machine_is_the_same_row(pool: Pool, task: Task, tmp_path: Path) -> None:
    import pickle
    import shutil

    evaluator = PoolEvaluator(pool, task, limits={"dev": 9})
    cells = [evaluator.cell("en-US", locale, "dev") for locale in LOCALES]
    copy = tmp_path / "pool"
    shutil.copytree(pool.root, copy, ignore=shutil.ignore_patterns("logits"))
    work = RowWork(copy, None, "en-US", LOCALES, "dev", 9)
    found = evaluate_row(pickle.loads(pickle.dumps(work)))
    assert found == [(float(cell.correct.mean()), cell.signature) for cell in cells]
    assert (copy / "logits" / "dev.9" / "sw-KE" / "en-US.safetensors").exists()


def test_an_unknown_executor_is_an_error_and_writes_nothing(pool: Pool, task: Task) -> None:
    transfer_matrix(PoolEvaluator(pool, task), locales=LOCALES)
    kept = {path: path.stat().st_mtime_ns for path in pool.root.rglob("*")}
    with pytest.raises(InputError, match="unknown executor 'dask': there are local, ray"):
        transfer_matrix(PoolEvaluator(pool, task), locales=["en-US"], executor="dask")
    assert {path: path.stat().st_mtime_ns for path in pool.root.rglob("*")} == kept


def test_labels_are_matched_by_name(pool: Pool, task: Task, tmp_path: Path) -> None:
    """The same model with its label rows in another order has the same accuracy."""
    import json
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(pool.expert("en-US"), tmp_path / "turned")
    tensors, names = permuted(load_file(tmp_path / "turned" / "model.safetensors"), task.labels, [2, 0, 1])
    save_file(tensors, tmp_path / "turned" / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tmp_path / "turned" / "config.json").read_text())
    config["id2label"] = dict(enumerate(names))
    config["label2id"] = {name: i for i, name in enumerate(names)}
    (tmp_path / "turned" / "config.json").write_text(json.dumps(config))
    straight = evaluate_model(pool.expert("en-US"), task, ["en-US"])["en-US"]
    turned = evaluate_model(tmp_path / "turned", task, ["en-US"])["en-US"]
    # A step of half precision where the products differ in their last digit.
    np.testing.assert_allclose(turned.values, straight.values, rtol=2**-10, atol=1e-5)
    np.testing.assert_array_equal(turned.predictions, straight.predictions)
    assert straight.correct.mean() > 0.5


def test_a_model_for_other_labels_is_refused(pool: Pool) -> None:
    with pytest.raises(CheckpointError, match="trained for another task"):
        evaluate_model(pool.expert("en-US"), load_task("demo:intent"), ["en-US"])


def test_an_unknown_locale_is_found_before_a_model_is_loaded(task: Task, tmp_path: Path) -> None:
    with pytest.raises(LocaleError, match="cy-GB"):
        evaluate_model(tmp_path / "no model here", task, ["en-US", "cy-GB"])


def test_a_score_has_intervals_around_it(pool: Pool, task: Task) -> None:
    found = score(evaluate_model(pool.expert("de-DE"), task, ["de-DE"])["de-DE"])
    assert found.accuracy_interval.low < found.accuracy < found.accuracy_interval.high
    assert found.macro_f1_interval.low < found.macro_f1 < found.macro_f1_interval.high
    assert found.rows == 60


def test_an_interrupted_pool_is_continued(pool: Pool, task: Task, tmp_path: Path) -> None:
    """One expert finished, then the process died: the second call trains only what is missing, to the same bytes."""
    base = pool.root.parent / "encoder"
    training = Training(epochs=2, lr=5e-3, head_lr=2e-2, batch_size=8)
    begun = train_pool(tmp_path / "pool", base=base, task=task, locales=["de-DE"], training=training)
    finished = (begun.expert("de-DE") / "model.safetensors").stat().st_mtime_ns
    whole = train_pool(tmp_path / "pool", base=base, task=task, locales=["de-DE", "en-US"], training=training)
    assert (whole.expert("de-DE") / "model.safetensors").stat().st_mtime_ns == finished
    for locale in ("de-DE", "en-US"):
        assert folder_signature(whole.expert(locale)) == folder_signature(pool.expert(locale))


def test_changed_settings_train_again(pool: Pool, task: Task, tmp_path: Path) -> None:
    base = pool.root.parent / "encoder"
    first = train_pool(
        tmp_path / "pool", base=base, task=task, locales=["de-DE"], training=Training(epochs=1, batch_size=8)
    )
    before = open_checkpoint(first.expert("de-DE")).read("classifier.out_proj.weight")
    second = train_pool(
        tmp_path / "pool", base=base, task=task, locales=["de-DE"], training=Training(epochs=2, batch_size=8)
    )
    after = open_checkpoint(second.expert("de-DE")).read("classifier.out_proj.weight")
    assert not np.array_equal(before.numpy(), after.numpy())


def test_a_base_that_is_raw_is_refused_with_its_name(tmp_path: Path) -> None:
    import torch

    write_raw(tmp_path / "raw", {"weight": torch.zeros(2, 2)})
    with pytest.raises(CheckpointError, match="raw"):
        evaluate_model(tmp_path / "raw", load_task("demo:intent"), ["en-US"])


def test_a_model_that_gives_no_numbers_is_refused(
    pool: Pool, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        module, "predict_logits", lambda _, encoded: np.full((len(encoded), len(task.labels)), np.nan)
    )
    with pytest.raises(CheckpointError, match="gives NaN or infinity on fr-FR"):
        PoolEvaluator(pool, task, limits={"dev": 5}).cell("de-DE", "fr-FR", "dev")
    assert not list((pool.root / "logits" / "dev.5").glob("fr-FR/*"))
