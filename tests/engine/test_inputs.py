"""How a tensor is cut, and what is read of every input."""

import mmap
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from langmerge.checkpoint import CHUNK, DTYPES, Checkpoint
from langmerge.engine import Plan, inputs, make_plan, merge
from langmerge.engine.inputs import Span, TensorInputs
from langmerge.engine.plan import Rows, TensorPlan
from tests.engine.conftest import SOURCES, recipe_of, streamed
from tests.tiny import drawn, read_raw, tuned, write_raw

SEES = ("entry", "row", "tensor")


class Unplanned:
    """Stands for a plan where nothing is read."""

    base = None
    sources: dict[str, Any] = {}  # noqa: RUF012


def cut(shape: tuple[int, ...], *, gathered: bool = False) -> TensorInputs:
    rows = {"x": np.arange(shape[0])} if gathered else {}
    plan: Any = Unplanned()
    return TensorInputs(plan, TensorPlan("w", shape, "F32", "merged", rows=rows))


SHAPE = st.lists(st.integers(0, 9), max_size=3).map(tuple)


@settings(deadline=None, max_examples=200)
@given(SHAPE, st.sampled_from(SEES), st.booleans(), st.integers(1, 30), st.integers(1, 4))
def test_pieces_and_steps_cover_every_entry_once(
    shape: tuple[int, ...], sees: str, gathered: bool, step: int, steps: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inputs, "STEP", step)
        patch.setattr(inputs, "PIECE", step * steps)
        made = cut(shape, gathered=gathered and bool(shape))
        pieces = made.pieces(sees=sees)
        chunks = [chunk for piece in pieces for chunk in made.chunks(*piece, sees=sees)]
        assert made.entries == int(np.prod(shape, dtype=int))
        assert [start for start, _ in pieces] == [0, *(stop for _, stop in pieces[:-1])]
        assert pieces[-1][1] == made.entries
        if not made.entries:
            assert chunks == []
            return
        assert [start for start, _ in chunks] == [0, *(stop for _, stop in chunks[:-1])]
        assert chunks[-1][1] == made.entries
        # All begin at multiples of one number, whatever the pieces are.
        assert all(start % made.step(sees) == 0 for start, _ in chunks)
        assert all(stop - start <= made.step(sees) for start, stop in chunks)
        if sees == "tensor" or (sees == "row" and len(shape) < 2):
            assert chunks == [(0, made.entries)]
        elif sees == "row" or made.tensor.gathered:
            width = int(np.prod(shape[1:], dtype=int))
            assert made.width == width
            assert all(start % width == stop % width == 0 for start, stop in chunks)
            assert made.step(sees) <= max(width, step)
        else:
            assert made.step(sees) == step


def test_steps_and_hashes_begin_together() -> None:
    assert inputs.STEP % CHUNK == 0
    assert inputs.PIECE % inputs.STEP == 0


def planned(root: Path, *, base: Rows | None = None, **rows: Rows) -> tuple[Plan, TensorInputs]:
    """The inputs of tensor `w` with row maps."""
    plan = make_plan(recipe_of(root, method="ties"))
    (tensor,) = plan.written
    length = next((len(one) for one in (base, *rows.values()) if one is not None), tensor.shape[0])
    named = {name.replace("_", "-"): one for name, one in rows.items()}
    tensor = replace(tensor, shape=(length, *tensor.shape[1:]), rows=named, base_rows=base)
    return plan, TensorInputs(plan, tensor)


def write_pool(root: Path, *, shape: tuple[int, ...] = (5, 3), dtype: torch.dtype = torch.float32) -> None:
    base = drawn(0, shapes={"w": shape})
    for seed, name in enumerate(("base", *SOURCES)):
        tensors = {key: one.to(dtype) for key, one in (base if seed == 0 else tuned(base, seed)).items()}
        write_raw(root / name, tensors)


def whole(spans: tuple[Span | None, list[Span]], shape: tuple[int, ...]) -> list[np.ndarray[Any, Any]]:
    """The base's numbers, then the sources'."""
    base, sources = spans
    assert base is not None
    return [span.floats().reshape(shape) for span in (base, *sources)]


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn]
)
def test_spans_are_the_stored_numbers(tmp_path: Path, dtype: torch.dtype) -> None:
    write_pool(tmp_path, dtype=dtype)
    _, made = planned(tmp_path)
    base, sources = made.spans(4, 11)
    assert base is not None
    for name, span in zip(("base", *SOURCES), (base, *sources), strict=True):
        stored = read_raw(tmp_path / name)["w"].flatten()[4:11]
        assert torch.equal(torch.from_numpy(span.floats().copy()), stored.float())
        assert span.stored().dtype == DTYPES[span.dtype]
        assert span.entries == 7


def test_rows_are_looked_up(tmp_path: Path) -> None:
    write_pool(tmp_path)
    order = np.array([3, 3, 0, 4])
    plan, made = planned(tmp_path, fr_FR=order, base=np.array([0, 1, 2, 3]))
    plain = np.arange(4)
    found = whole(made.spans(0, 12), (4, 3))
    for name, rows, one in zip(("base", *SOURCES), (plain, plain, order, plain), found, strict=True):
        np.testing.assert_array_equal(one, read_raw(tmp_path / name)["w"].numpy()[rows])
    middle = whole(made.spans(3, 9), (2, 3))
    np.testing.assert_array_equal(np.stack(middle), np.stack(found)[:, 1:3])
    assert plan.sources.keys() == set(SOURCES)


def test_a_row_that_a_source_lacks_is_the_bases(tmp_path: Path) -> None:
    write_pool(tmp_path)
    _, made = planned(tmp_path, fr_FR=np.array([0, -1, 2, 3, 4]), sw_KE=np.array([-1, -1, 2, 3, 4]))
    base, german, french, swahili = whole(made.spans(0, 15), (5, 3))
    np.testing.assert_array_equal(base, read_raw(tmp_path / "base")["w"].numpy())
    np.testing.assert_array_equal(german, read_raw(tmp_path / "de-DE")["w"].numpy())
    np.testing.assert_array_equal(french[1], base[1])
    np.testing.assert_array_equal(swahili[:2], base[:2])
    assert not (french[[0, 2, 3, 4]] == base[[0, 2, 3, 4]]).any()


def test_a_row_that_the_base_lacks_is_the_mean_of_its_holders(tmp_path: Path) -> None:
    """Row 1 has two holders, row 2 one; the holders keep their own."""
    write_pool(tmp_path)
    _, made = planned(
        tmp_path,
        base=np.array([0, -1, -1, 3, 4]),
        fr_FR=np.array([0, -1, -1, 3, 4]),
        sw_KE=np.array([0, 1, -1, 3, 4]),
    )
    base, german, french, swahili = whole(made.spans(0, 15), (5, 3))
    own = read_raw(tmp_path / "de-DE")["w"].numpy(), read_raw(tmp_path / "sw-KE")["w"].numpy()
    np.testing.assert_allclose(base[1], (own[0][1] + own[1][1]) / 2, rtol=1e-6)
    np.testing.assert_array_equal(base[2], own[0][2])
    np.testing.assert_array_equal(french[1:3], base[1:3])
    np.testing.assert_array_equal(swahili[2], base[2])
    np.testing.assert_array_equal(swahili[1], own[1][1])
    np.testing.assert_array_equal(german, own[0])


def test_gathered_vectors_and_several_axes(tmp_path: Path) -> None:
    for number, shape in enumerate([(6,), (6, 2, 3)]):
        root = tmp_path / str(number)
        write_pool(root, shape=shape)
        order = np.array([5, 0, 1])
        _, made = planned(root, fr_FR=order, base=np.arange(3))
        found = whole(made.spans(0, made.entries), (3, *shape[1:]))
        np.testing.assert_array_equal(found[2], read_raw(root / "fr-FR")["w"].numpy()[order])


def test_the_pages_that_are_let_go_are_the_tensors_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = {"a": (1500,), "w": (3 * mmap.PAGESIZE,), "z": (700,)}
    base = drawn(0, shapes=shapes)
    for seed, name in enumerate(("base", *SOURCES)):
        write_raw(tmp_path / name, base if seed == 0 else tuned(base, seed))
    plan = make_plan(recipe_of(tmp_path))
    (tensor,) = [one for one in plan.written if one.name == "w"]
    made = TensorInputs(plan, tensor)
    asked: list[tuple[int, int]] = []

    class Recorder:
        def madvise(self, advice: int, start: int, length: int) -> None:
            assert advice == mmap.MADV_DONTNEED
            asked.append((start, start + length))

    monkeypatch.setattr(Checkpoint, "mapped", lambda *_: Recorder())
    info = tensor.inputs[0]
    made.let_go(100, 2 * mmap.PAGESIZE)
    assert len(asked) == 4
    for start, stop in asked:
        assert start % mmap.PAGESIZE == stop % mmap.PAGESIZE == 0
        assert info.offset + 400 <= start < info.offset + 400 + mmap.PAGESIZE
        assert info.offset + 8 * mmap.PAGESIZE - mmap.PAGESIZE < stop <= info.offset + 8 * mmap.PAGESIZE
    asked.clear()
    made.let_go(0, 10)
    assert asked == []


@pytest.mark.parametrize("method", ["della_ties", "neuromerging"])
def test_a_vector_is_one_row_also_where_it_is_looked_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """The bias of a head whose labels stand in another order; what ranks along a row must see all of it."""
    monkeypatch.setattr(inputs, "STEP", 8)
    labels = [f"l{row}" for row in range(40)]
    base = drawn(0, shapes={"classifier.bias": (40,), "classifier.weight": (40, 3)})
    write_raw(tmp_path / "base", base, labels=labels)
    for seed, name in enumerate(SOURCES, start=1):
        write_raw(tmp_path / name, tuned(base, seed), labels=labels)
    expected = streamed(recipe_of(tmp_path, method=method))
    back = {key: one.flip(0).contiguous() for key, one in read_raw(tmp_path / "fr-FR").items()}
    write_raw(tmp_path / "fr-FR", back, labels=labels[::-1])
    found = streamed(recipe_of(tmp_path, method=method))
    for name, one in found.items():
        assert torch.equal(one, expected[name]), name


def test_looked_up_rows_are_merged_like_rows_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By kernels and torch, in steps of a few rows."""
    labels = [f"l{row}" for row in range(50)]
    base = drawn(0, shapes={"classifier.bias": (50,), "classifier.weight": (50, 7)})
    for place in ("plain", "mixed"):
        write_raw(tmp_path / place / "base", base, labels=labels)
        for seed, name in enumerate(SOURCES, start=1):
            tensors, names = tuned(base, seed), labels
            if place == "mixed" and name != "de-DE":
                order = np.random.default_rng(seed).permutation(50)
                tensors = {key: one[torch.from_numpy(order)] for key, one in tensors.items()}
                names = [labels[row] for row in order]
            write_raw(tmp_path / place / name, tensors, labels=names)
    for number, method in enumerate(("linear", "ties", "dare_ties", "model_stock", "sce", "della_linear")):
        for kernels in ("", "torch"):
            monkeypatch.setenv("LANGMERGE_KERNELS", kernels)
            expected = read_raw(
                merge(recipe_of(tmp_path / "plain", method=method), tmp_path / f"{number}p{kernels}")
            )
            with monkeypatch.context() as patch:
                patch.setattr(inputs, "STEP", 30)
                patch.setattr(inputs, "PIECE", 60)
                found = read_raw(
                    merge(recipe_of(tmp_path / "mixed", method=method), tmp_path / f"{number}m{kernels}")
                )
            for name, one in found.items():
                if method == "model_stock":
                    torch.testing.assert_close(one, expected[name], rtol=1e-6, atol=1e-6)
                else:
                    assert torch.equal(one, expected[name]), (method, name)
