"""Dot products of task vectors: as by hand, over what a merge would merge."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from langmerge.engine import make_plan
from langmerge.engine.deltas import delta_gram
from langmerge.engine.stream import Stream
from langmerge.errors import CheckpointError, PlanError
from tests.engine.conftest import SOURCES, recipe_of
from tests.tiny import (
    BUFFER,
    HEAD,
    LABELS,
    QUERY,
    WORDS,
    Tensors,
    drawn,
    permuted,
    read_raw,
    tuned,
    write_expert,
    write_raw,
)


def experts(root: Path, names: Sequence[str] = SOURCES) -> dict[str, Path]:
    return {name: root / name for name in names}


def by_hand(base: Tensors, sources: Sequence[Tensors]) -> np.ndarray:
    """Every task vector as one long float64 vector."""
    long = [
        torch.cat([(one[name].double() - base[name].double()).flatten() for name in sorted(base)])
        for one in sources
    ]
    return np.array([[float(a @ b) for b in long] for a in long])


@pytest.fixture(params=["", "torch"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Compiled where they are, and torch."""
    monkeypatch.setenv("LANGMERGE_KERNELS", request.param)
    return str(request.param)


@pytest.mark.usefixtures("kernels")
def test_two_vectors_by_hand(tmp_path: Path) -> None:
    """τ₁ = (1, 2 | 0), τ₂ = (3, −1 | 2), τ₃ = (0, 0 | 0.5)."""
    base = {"a.weight": torch.tensor([1.0, 1.0]), "b.weight": torch.tensor([4.0])}
    moves = {"x": ([1.0, 2.0], [0.0]), "y": ([3.0, -1.0], [2.0]), "z": ([0.0, 0.0], [0.5])}
    write_raw(tmp_path / "base", base, labels=None)
    for name, (a, b) in moves.items():
        moved = {
            "a.weight": base["a.weight"] + torch.tensor(a),
            "b.weight": base["b.weight"] + torch.tensor(b),
        }
        write_raw(tmp_path / name, moved, labels=None)
    found = delta_gram(tmp_path / "base", experts(tmp_path, ("x", "y", "z")))
    assert found.dtype == np.float64
    assert found.tolist() == [[5.0, 1.0, 0.0], [1.0, 14.0, 1.0], [0.0, 1.0, 0.25]]


@pytest.mark.usefixtures("kernels", "small_steps")
def test_the_matrix_is_torchs_in_many_pieces(wide_pool: Path) -> None:
    found = delta_gram(wide_pool / "base", experts(wide_pool))
    expected = by_hand(read_raw(wide_pool / "base"), [read_raw(wide_pool / name) for name in SOURCES])
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_array_equal(found, found.T)
    # The experts have a direction in common: off the diagonal there is something to be wrong about.
    assert abs(expected[0, 1]) > 0.1 * expected[0, 0]


@pytest.mark.usefixtures("kernels")
def test_rows_and_columns_have_the_experts_order(raw_pool: Path) -> None:
    order = [2, 0, 1]
    straight = delta_gram(raw_pool / "base", experts(raw_pool))
    turned = delta_gram(raw_pool / "base", experts(raw_pool, [SOURCES[place] for place in order]))
    np.testing.assert_array_equal(turned, straight[np.ix_(order, order)])
    assert len(set(np.diag(straight))) == 3


def test_a_pair_is_a_part_of_the_whole(raw_pool: Path) -> None:
    whole = delta_gram(raw_pool / "base", experts(raw_pool))
    pair = delta_gram(raw_pool / "base", experts(raw_pool, SOURCES[1:]))
    np.testing.assert_allclose(pair, whole[1:, 1:], rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_torch_and_kernels_agree_on_narrow_dtypes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    base = {name: one.to(dtype) for name, one in drawn(0).items()}
    sources = [tuned(base, seed) for seed in (1, 2)]
    write_raw(tmp_path / "base", base)
    for name, one in zip(SOURCES, sources, strict=False):
        write_raw(tmp_path / name, one)
    found = []
    for choice in ("", "torch"):
        monkeypatch.setenv("LANGMERGE_KERNELS", choice)
        found.append(delta_gram(tmp_path / "base", experts(tmp_path, SOURCES[:2])))
    np.testing.assert_allclose(found[0], by_hand(base, sources), rtol=1e-5)
    np.testing.assert_allclose(found[1], found[0], rtol=1e-6)


@pytest.mark.usefixtures("small_steps")
def test_the_number_of_threads_changes_no_bit(wide_pool: Path, kernels: str) -> None:
    found = [delta_gram(wide_pool / "base", experts(wide_pool), threads=count) for count in (1, 3)]
    np.testing.assert_array_equal(found[0], found[1])


@pytest.mark.usefixtures("kernels")
def test_buffers_take_no_part(raw_pool: Path, tmp_path: Path) -> None:
    for place, name in enumerate(("base", *SOURCES)):
        positions = {BUFFER: torch.arange(20) + 100 * place}
        write_raw(tmp_path / name, {**read_raw(raw_pool / name), **positions})
    found = delta_gram(tmp_path / "base", experts(tmp_path))
    np.testing.assert_array_equal(found, delta_gram(raw_pool / "base", experts(raw_pool)))


@pytest.mark.usefixtures("kernels")
def test_label_rows_are_matched_by_name(raw_pool: Path, tmp_path: Path) -> None:
    for name in ("base", "de-DE", "fr-FR"):
        shutil.copytree(raw_pool / name, tmp_path / name)
    turned, labels = permuted(read_raw(raw_pool / "sw-KE"), LABELS, [2, 0, 1])
    write_raw(tmp_path / "sw-KE", turned, labels=labels)
    found = delta_gram(tmp_path / "base", experts(tmp_path))
    np.testing.assert_allclose(found, delta_gram(raw_pool / "base", experts(raw_pool)), rtol=1e-12)
    # As they stand the rows would give another matrix.
    wrong = by_hand(read_raw(raw_pool / "base"), [read_raw(tmp_path / name) for name in SOURCES])
    assert abs(wrong[2, 2] / found[2, 2] - 1) > 1e-3


def test_a_head_that_the_base_lacks_takes_no_part(xlm_pool: Path) -> None:
    """There is nothing that it has moved away from."""
    base = {f"roberta.{name}": one for name, one in read_raw(xlm_pool / "encoder").items()}
    sources = [read_raw(xlm_pool / name) for name in SOURCES]
    shared = {name: one for name, one in base.items() if name in sources[0]}
    assert WORDS in shared
    assert HEAD not in shared
    found = delta_gram(xlm_pool / "encoder", experts(xlm_pool))
    np.testing.assert_allclose(found, by_hand(shared, sources), rtol=1e-5)


def test_norms_are_those_that_a_merge_sees(xlm_pool: Path, tmp_path: Path) -> None:
    for name in ("base", "de-DE", "fr-FR"):
        shutil.copytree(xlm_pool / name, tmp_path / name)
    write_expert(tmp_path / "sw-KE", tmp_path / "base", 9, order=[1, 2, 0], scale=0.3)
    found = delta_gram(tmp_path / "base", experts(tmp_path))
    plan = make_plan(recipe_of(tmp_path, method="linear"))
    results = list(Stream(plan).run(plan.written, lambda *_: None))
    squares = np.sum([np.square(one.source_norms) for one in results if one.source_norms], axis=0)
    np.testing.assert_allclose(np.diag(found), squares, rtol=1e-5)
    assert found[2, 2] > 4 * found[0, 0]


def test_every_tensor_is_told(raw_pool: Path) -> None:
    told: list[tuple[str, int]] = []
    finished: list[int] = []

    @contextmanager
    def progress(description: str, total: int) -> Iterator[object]:
        told.append((description, total))
        yield finished.append

    delta_gram(raw_pool / "base", experts(raw_pool), progress=progress)  # type: ignore[arg-type]
    assert told == [("comparing task vectors", len(read_raw(raw_pool / "base")))]
    assert sum(finished) == told[0][1]


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("victim", ["base", "de-DE"])
def test_a_number_that_is_none_names_tensor_and_file(own_pool: Path, victim: str) -> None:
    tensors = read_raw(own_pool / victim)
    tensors[QUERY][2, 3] = torch.nan
    write_raw(own_pool / victim, tensors)
    with pytest.raises(CheckpointError, match=rf"{QUERY}.*{victim}/model.safetensors holds NaN"):
        delta_gram(own_pool / "base", experts(own_pool))


def test_what_cannot_be_merged_cannot_be_compared(own_pool: Path) -> None:
    with pytest.raises(PlanError, match=r"source sw-KE \(.*\) equals the base"):
        delta_gram(own_pool / "base", {**experts(own_pool), "sw-KE": own_pool / "base"})
    write_raw(own_pool / "fr-FR", tuned(drawn(0), 2), labels=(*LABELS[:-1], "snow"))
    with pytest.raises(PlanError, match="snow"):
        delta_gram(own_pool / "base", experts(own_pool))
    write_raw(own_pool / "fr-FR", {**tuned(drawn(0), 2), QUERY: torch.zeros(5, 6)})
    with pytest.raises(PlanError, match=r"\(5, 6\)"):
        delta_gram(own_pool / "base", experts(own_pool))
    with pytest.raises(PlanError, match="nowhere"):
        delta_gram(own_pool / "nowhere", experts(own_pool))
