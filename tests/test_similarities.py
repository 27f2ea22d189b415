"""Every selector on a small real pool: what it reads, and what it does not."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from langmerge import similarities as module
from langmerge.errors import DataError, SelectionError
from langmerge.pool import Pool
from langmerge.selection import SELECTORS, TransferMatrix, composite, strength, typology
from langmerge.similarities import PoolSelectors
from tests.tiny import read_raw
from tests.tiny_pool import ABSENT, EXPERTS, task_folder, write_rows, write_tiny_pool

SCORING = [by for by in SELECTORS if by != "manual"]
Rows = list[dict[str, str]]
Change = Callable[[str, str, Rows], Rows]
LABEL_FREE = [by for by in SCORING if by not in ("measured", "delta")]


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """Read-only."""
    return write_tiny_pool(tmp_path_factory.mktemp("similarities"))


@pytest.fixture
def selectors(pool: Pool) -> PoolSelectors:
    """Nothing read yet."""
    return PoolSelectors(pool)


def rewritten(pool: Pool, folder: Path, change: Change) -> Pool:
    """A copy of the pool over other text: `change` gets locale, split and rows, and gives rows."""
    shutil.copytree(task_folder(pool), folder / "text")
    for file in sorted((folder / "text").glob("*/*.jsonl")):
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        write_rows(file, change(file.parent.name, file.stem, rows))
    shutil.copytree(pool.root, folder / "pool", ignore=shutil.ignore_patterns("logits"))
    return pool.model_copy(update={"root": folder / "pool", "task": f"folder:{folder / 'text'}"})


@pytest.mark.parametrize("by", SCORING)
def test_every_selector_scores_every_expert(selectors: PoolSelectors, by: str) -> None:
    found = selectors.matrix(by, ["sw-KE"])
    assert (found.by, found.sources, found.targets) == (by, EXPERTS, ("sw-KE",))
    column = found.column("sw-KE")
    assert set(column) == set(EXPERTS)
    assert len({column[source] for source in EXPERTS if source != "sw-KE"}) > 1


@pytest.mark.parametrize("by", LABEL_FREE)
def test_a_target_needs_no_expert(selectors: PoolSelectors, by: str) -> None:
    found = selectors.matrix(by, [ABSENT, "sw-KE"])
    assert found.targets == (ABSENT, "sw-KE")
    assert set(found.column(ABSENT)) == set(EXPERTS)


def test_what_a_target_without_expert_or_labels_cannot_have(selectors: PoolSelectors) -> None:
    with pytest.raises(
        SelectionError, match="delta needs the target's own expert, and the pool has none for"
    ):
        selectors.matrix("delta", ["sw-KE", ABSENT])
    with pytest.raises(SelectionError, match=f"'{ABSENT}': measure it with langmerge matrix"):
        selectors.matrix("measured", [ABSENT])


def test_measured_is_the_pools_dev_matrix(selectors: PoolSelectors, pool: Pool) -> None:
    kept = TransferMatrix.load(pool.root / "transfer.dev.json")
    for locale in EXPERTS:
        assert selectors.matrix("measured", [locale]).column(locale) == kept.column(locale)


def test_a_cell_that_was_not_measured_says_how_to_fill_it(pool: Pool, tmp_path: Path) -> None:
    """The source would drop out of a choice unseen."""
    holed = rewritten(pool, tmp_path, lambda _, __, rows: rows)
    kept = TransferMatrix.load(holed.root / "transfer.dev.json")
    kept.values[EXPERTS.index("fr-FR"), EXPERTS.index("sw-KE")] = np.nan
    kept.save(holed.root / "transfer.dev.json")
    with pytest.raises(SelectionError, match="column 'sw-KE' lacks fr-FR: run langmerge matrix again"):
        PoolSelectors(holed).matrix("measured", ["sw-KE"])
    assert PoolSelectors(holed).matrix("measured", ["de-DE"]).targets == ("de-DE",)
    assert set(PoolSelectors(holed).matrix("strength", ["de-DE"]).column("de-DE")) == set(EXPERTS)


def test_a_pool_without_a_matrix_says_how_to_get_one(pool: Pool, tmp_path: Path) -> None:
    bare = rewritten(pool, tmp_path, lambda _, __, rows: rows)
    (bare.root / "transfer.dev.json").unlink()
    for by in ("measured", "strength", "composite"):
        with pytest.raises(SelectionError, match="measure it with langmerge matrix"):
            PoolSelectors(bare).matrix(by, ["sw-KE"])
    assert PoolSelectors(bare).matrix("typology", ["sw-KE"]).sources == EXPERTS


@pytest.mark.parametrize("by", ["strength", "composite"])
def test_labels_of_a_hidden_locale_are_not_looked_at(pool: Pool, tmp_path: Path, by: str) -> None:
    spoilt = rewritten(pool, tmp_path, lambda _, __, rows: rows)
    kept = TransferMatrix.load(spoilt.root / "transfer.dev.json")
    kept.values[:, EXPERTS.index("sw-KE")] = [0.0, 1.0, 0.5, 0.1]
    kept.save(spoilt.root / "transfer.dev.json")
    for hidden in ("sw-KE", None):
        before, after = (
            PoolSelectors(one).matrix(by, ["de-DE"], hidden=hidden).values for one in (pool, spoilt)
        )
        assert np.array_equal(before, after) is (hidden == "sw-KE")


def test_what_is_worked_out_elsewhere_is_passed_on(selectors: PoolSelectors, pool: Pool) -> None:
    transfer = selectors.transfer()
    for by, expected in {
        "strength": strength(transfer, [ABSENT]),
        "composite": composite(transfer, [ABSENT]),
        "typology": typology(EXPERTS, [ABSENT]),
    }.items():
        np.testing.assert_array_equal(selectors.matrix(by, [ABSENT]).values, expected.values)
    weighed = PoolSelectors(pool, features={"syntax": 1.0}).matrix("typology", [ABSENT])
    np.testing.assert_array_equal(weighed.values, typology(EXPERTS, [ABSENT], {"syntax": 1.0}).values)
    assert not np.allclose(weighed.values, typology(EXPERTS, [ABSENT]).values)


def test_delta_is_the_cosine_of_the_experts_task_vectors(selectors: PoolSelectors, pool: Pool) -> None:
    base = read_raw(pool.base_folder)
    vectors = []
    for locale in EXPERTS:
        moved = read_raw(pool.expert(locale))
        parts = [(moved[name].double() - base[name].double()).flatten() for name in sorted(base)]
        vectors.append(np.concatenate([part.numpy() for part in parts]))
    expected = np.array([[a @ b / np.sqrt((a @ a) * (b @ b)) for b in vectors] for a in vectors])
    found = selectors.matrix("delta", EXPERTS)
    np.testing.assert_allclose(found.values, expected, atol=1e-5)
    assert found.sources == found.targets == EXPERTS
    assert expected.min() < 0.99


def test_agreement_looks_at_no_label(pool: Pool, tmp_path: Path) -> None:
    def shifted(locale: str, split: str, rows: Rows) -> Rows:
        labels = [row["label"] for row in rows]
        return [{**row, "label": labels[i - 1]} for i, row in enumerate(rows)]

    mixed = rewritten(pool, tmp_path, shifted)
    straight, turned = PoolSelectors(pool), PoolSelectors(mixed)
    for target in ("sw-KE", ABSENT):
        expected = straight.matrix("agreement", [target])
        np.testing.assert_array_equal(turned.matrix("agreement", [target]).values, expected.values)
        # The labels are other ones indeed.
        before, after = straight.logits(target)["en-US"], turned.logits(target)["en-US"]
        assert before.correct.mean() > 0.4 > after.correct.mean()


def test_agreement_by_hand(selectors: PoolSelectors) -> None:
    logits = selectors.logits("sw-KE")
    total: Any = 0
    for expert in ("de-DE", "en-US", "fr-FR"):
        odds = np.exp(logits[expert].values.astype(np.float64))
        total = total + odds / odds.sum(axis=1, keepdims=True)
    expected = {
        expert: float((own.predictions == total.argmax(axis=1)).mean()) for expert, own in logits.items()
    }
    assert selectors.matrix("agreement", ["sw-KE"]).column("sw-KE") == expected


def test_a_limit_is_of_the_targets_rows(pool: Pool, tmp_path: Path) -> None:
    own = rewritten(pool, tmp_path, lambda _, __, rows: rows)
    logits = PoolSelectors(own, limit=7).logits("sw-KE")
    assert {expert: found.values.shape for expert, found in logits.items()} == dict.fromkeys(EXPERTS, (7, 3))
    assert PoolSelectors(own).logits("sw-KE")["de-DE"].values.shape == (24, 3)


def test_the_same_texts_are_represented_the_same(pool: Pool, tmp_path: Path) -> None:
    german = {
        file.stem: [json.loads(line) for line in file.read_text().splitlines()]
        for file in (task_folder(pool) / "de-DE").iterdir()
    }

    def twins(locale: str, split: str, rows: Rows) -> Rows:
        return german[split] if locale == ABSENT else rows

    own = rewritten(pool, tmp_path, twins)
    for how in ("cka", "cosine"):
        column = PoolSelectors(own, how=how).matrix("representation", [ABSENT]).column(ABSENT)
        assert column["de-DE"] == pytest.approx(1.0, abs=1e-6)
        assert max(column[other] for other in EXPERTS if other != "de-DE") < 0.99


def unparallel(locale: str, split: str, rows: Rows) -> Rows:
    return [{**row, "id": f"other-{row['id']}"} for row in rows] if locale == ABSENT else rows


def test_cka_wants_parallel_texts_and_cosine_any(pool: Pool, tmp_path: Path) -> None:
    own = rewritten(pool, tmp_path, unparallel)
    for targets in ([ABSENT], ["sw-KE", ABSENT]):
        with pytest.raises(SelectionError, match=rf"{ABSENT} and .* have other ids: use --how cosine"):
            PoolSelectors(own, how="cka").matrix("representation", targets)
    found = PoolSelectors(own, how="cosine").matrix("representation", [ABSENT])
    np.testing.assert_array_equal(
        found.values, PoolSelectors(pool, how="cosine").matrix("representation", [ABSENT]).values
    )


def test_texts_that_come_later_are_checked_against_the_earlier(pool: Pool, tmp_path: Path) -> None:
    selectors = PoolSelectors(rewritten(pool, tmp_path, unparallel), how="cka")
    selectors.matrix("representation", ["sw-KE"])
    with pytest.raises(SelectionError, match="use --how cosine"):
        selectors.matrix("representation", [ABSENT])


def test_an_unknown_comparison(pool: Pool) -> None:
    with pytest.raises(SelectionError, match="'taste': there are cka and cosine"):
        PoolSelectors(pool, how="taste").matrix("representation", ["sw-KE"])


def test_texts_become_vectors_once(selectors: PoolSelectors, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def counted(model: Any, encoded: Sequence[Any]) -> np.ndarray:
        seen.append(len(encoded))
        return pooled(model, encoded)

    pooled = module.mean_pooled
    monkeypatch.setattr(module, "mean_pooled", counted)
    monkeypatch.setattr(module, "TEXTS", 20)
    found = selectors.matrix("representation", ["sw-KE"])
    assert seen == [20] * 4
    assert found.provenance == {"how": "cka", "texts": 20}
    selectors.matrix("representation", ["sw-KE", ABSENT])
    assert seen == [20] * 5


def test_the_experts_are_not_run_for_what_does_not_need_them(
    selectors: PoolSelectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "load_task", lambda *_, **__: pytest.fail("reads the task's data"))
    for by in ("measured", "typology", "strength", "composite", "delta"):
        selectors.matrix(by, ["sw-KE"])


def test_unknown_selectors_and_scores_by_hand(selectors: PoolSelectors) -> None:
    with pytest.raises(SelectionError, match="unknown selector 'taste': there are measured, typology"):
        selectors.matrix("taste", ["sw-KE"])
    with pytest.raises(SelectionError, match="manual has no scores of its own: give them with --scores"):
        selectors.matrix("manual", ["sw-KE"])


def test_text_that_is_not_there_is_named(pool: Pool, tmp_path: Path) -> None:
    gone = pool.model_copy(update={"task": f"folder:{tmp_path / 'nowhere'}"})
    for by in ("agreement", "representation"):
        with pytest.raises(DataError, match="nowhere"):
            PoolSelectors(gone).matrix(by, ["sw-KE"])


def test_what_takes_long_is_told(pool: Pool) -> None:
    told: list[tuple[str, int, int]] = []

    @contextmanager
    def progress(description: str, total: int) -> Iterator[Any]:
        finished: list[int] = []
        yield finished.append
        told.append((description, total, sum(finished)))

    selectors = PoolSelectors(pool, progress=progress)
    for by in ("agreement", "representation", "delta"):
        selectors.matrix(by, ["sw-KE"])
    assert [(description, total) for description, total, _ in told][:2] == [
        ("experts on sw-KE", 4),
        ("texts as vectors", 4),
    ]
    assert told[2][0] == "comparing task vectors"
    assert all(total == finished for _, total, finished in told)


def test_a_quick_look_leaves_what_is_kept(pool: Pool, tmp_path: Path) -> None:
    """Logits of a limited look stand apart, and without a limit the rows are those of the matrix."""
    shutil.copytree(pool.root, tmp_path / "pool")
    own = pool.model_copy(update={"root": tmp_path / "pool"})
    whole = PoolSelectors(own).logits("sw-KE")
    files = {file: file.read_bytes() for file in (own.root / "logits").rglob("*.safetensors")}
    limited = PoolSelectors(own, limit=7).logits("sw-KE")
    assert {len(one.labels) for one in limited.values()} == {7}
    assert {file: file.read_bytes() for file in files} == files
    record = own.root / "transfer.dev.json"
    raw = json.loads(record.read_text())
    record.write_text(json.dumps({**raw, "provenance": {**raw["provenance"], "limit": 7}}))
    as_measured = PoolSelectors(own).logits("sw-KE")
    assert {name: one.signature for name, one in as_measured.items()} == {
        name: one.signature for name, one in limited.items()
    }
    assert whole["de-DE"].signature != limited["de-DE"].signature
