"""The stream over tensors: whatever is cut, threaded or measured in parts gives what the whole gives."""

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from langmerge.checkpoint import DTYPES
from langmerge.engine import faults, inputs, make_plan, merge, reference, stream
from langmerge.engine.inputs import TensorInputs
from langmerge.engine.stream import Stream
from langmerge.errors import PlanError
from langmerge.methods import METHODS
from langmerge.recipe import Recipe
from tests.engine.conftest import SOURCES, WIDE_SHAPES, bits, case_recipe, entries, recipe_of, streamed
from tests.tiny import QUERY, WORDS, Tensors, drawn, read_raw, tuned, write_raw

CASES: list[tuple[str, dict[str, Any]]] = [
    ("dare_ties", {"density": 0.6, "seed": 3}),
    ("della_ties", {"density": 0.6, "epsilon": 0.2}),
    ("linear", {}),
    ("model_stock", {}),
    ("slerp", {}),
    ("ties", {"density": 0.3}),
    ("ties", {"density": 0.3, "scope": "model"}),
    ("wudi", {}),
]


def record_of(out: Path) -> dict[str, Any]:
    """The receipt without the places that it names."""
    record: dict[str, Any] = json.loads((out / "langmerge.json").read_text())
    del record["recipe"]
    return record


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize(("method", "parameters"), CASES)
def test_threads_shards_and_order_change_neither_bytes_nor_receipt(
    wide_pool: Path, own_wide_pool: Path, tmp_path: Path, method: str, parameters: dict[str, Any]
) -> None:
    names = sorted(WIDE_SHAPES)
    for name in ("base", "fr-FR"):
        tensors = read_raw(own_wide_pool / name)
        shutil.rmtree(own_wide_pool / name)
        write_raw(own_wide_pool / name, tensors, shards=[names[3:], names[:1], names[1:3]])
    whole = case_recipe(wide_pool, method, parameters)
    cut = case_recipe(own_wide_pool, method, parameters)
    backwards = dict(reversed(cut.sources.items()))
    cut = cut.model_copy(update={"sources": backwards})
    found = []
    for number, (recipe, threads, max_shard) in enumerate([(whole, 1, 10**9), (whole, 2, 1), (cut, 5, 1500)]):
        out = merge(recipe, tmp_path / str(number), threads=threads, max_shard=max_shard)
        assert len(list(out.glob("*.safetensors"))) == {10**9: 1, 1: 5}.get(max_shard, 3)
        found.append((bits(read_raw(out)), record_of(out)))
    assert found[1] == found[0]
    assert found[2] == found[0]


@pytest.mark.parametrize(("method", "parameters"), CASES)
def test_tensors_measured_one_by_one_or_in_groups(
    wide_pool: Path, monkeypatch: pytest.MonkeyPatch, method: str, parameters: dict[str, Any]
) -> None:
    recipe = case_recipe(wide_pool, method, parameters)
    expected = bits(streamed(recipe))
    monkeypatch.setattr(stream, "GROUP", 1)
    assert bits(streamed(recipe)) == expected


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("method", ["linear", "ties", "slerp"])
def test_pages_that_are_let_go_are_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr(inputs, "PIECE", 4096)
    base = drawn(0, shapes={"w": (70, 1001)})
    write_raw(tmp_path / "base", base)
    for seed, name in enumerate(SOURCES, start=1):
        write_raw(tmp_path / name, tuned(base, seed))
    recipe = case_recipe(tmp_path, method)
    let_go, calls = TensorInputs.let_go, []

    def counted(self: TensorInputs, start: int, stop: int) -> None:
        calls.append((start, stop))
        let_go(self, start, stop)

    monkeypatch.setattr(TensorInputs, "let_go", counted)
    found = bits(streamed(recipe))
    assert len(calls) >= 70070 // 4096
    monkeypatch.setattr(TensorInputs, "let_go", lambda *_: None)
    assert bits(streamed(recipe)) == found


def test_a_source_that_has_not_moved_is_found_while_merging(
    own_wide_pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a large model the plan compares only the first megabytes."""
    shutil.copy(own_wide_pool / "base" / "model.safetensors", own_wide_pool / "sw-KE" / "model.safetensors")
    with pytest.raises(PlanError, match="its task vector is zero"):
        make_plan(case_recipe(own_wide_pool, "ties"))
    monkeypatch.setattr(faults, "COMPARED", 0)
    make_plan(case_recipe(own_wide_pool, "ties"))
    with pytest.raises(PlanError, match=r"source sw-KE .* equals the base .*: its task vector is zero"):
        merge(case_recipe(own_wide_pool, "ties"), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["pool"]


@pytest.mark.usefixtures("small_steps")
def test_no_thread_writes_after_a_merge_has_failed(wide_pool: Path, tmp_path: Path) -> None:
    """The files are closed by then, and their numbers may be another file's."""

    @contextmanager
    def progress(description: str, total: int) -> Iterator[Callable[[int], None]]:
        def failing(_: int) -> None:
            raise KeyboardInterrupt

        yield failing

    before = set(threading.enumerate())
    # The error is kept, and with it everything that its traceback holds.
    with pytest.raises(KeyboardInterrupt) as kept:
        merge(case_recipe(wide_pool, "ties"), tmp_path / "out", threads=3, progress=progress)
    assert set(threading.enumerate()) == before
    assert kept.value is not None
    assert list(tmp_path.iterdir()) == []


def test_torch_computes_with_one_thread_for_each_of_ours(
    wide_pool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums cut among threads round differently."""
    used: set[int] = set()
    squared = reference._squared

    def seen(delta: torch.Tensor) -> float:
        used.add(torch.get_num_threads())
        return squared(delta)

    monkeypatch.setattr(reference, "_squared", seen)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        streamed(case_recipe(wide_pool, "sce"))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert used == {1}


def test_a_failing_sink_ends_the_stream(wide_pool: Path) -> None:
    plan = make_plan(case_recipe(wide_pool, "linear"))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    before = set(threading.enumerate())
    with pytest.raises(OSError, match="No space left"):
        list(Stream(plan, 3).run(plan.written, full))
    assert set(threading.enumerate()) == before


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("threads", [1, 4])
def test_every_byte_is_written_once(wide_pool: Path, threads: int) -> None:
    plan = make_plan(case_recipe(wide_pool, "ties", embeddings="base", dtype="BF16"))
    lock = threading.Lock()
    written: dict[str, list[tuple[int, int]]] = {}

    def keep(tensor: Any, start: int, data: Any) -> None:
        with lock:
            written.setdefault(tensor.name, []).append((start, start + len(memoryview(data).cast("B"))))

    results = list(Stream(plan, threads).run(plan.written, keep))
    assert [result.plan.name for result in results] == sorted(WIDE_SHAPES)
    for tensor in plan.written:
        ranges = sorted(written[tensor.name])
        assert [start for start, _ in ranges] == [0, *(stop for _, stop in ranges[:-1])]
        assert ranges[-1][1] == int(np.prod(tensor.shape)) * 2
        assert len(ranges) >= int(np.prod(tensor.shape)) // 64


def test_tensors_may_be_merged_alone(wide_pool: Path) -> None:
    """Also where a method looks at the whole model: `measured` says what that is."""
    recipe = case_recipe(wide_pool, "ties", {"density": 0.3, "scope": "model"})
    plan, expected = make_plan(recipe), streamed(recipe)
    held: Tensors = {}

    def keep(tensor: Any, start: int, data: Any) -> None:
        flat = np.frombuffer(bytes(memoryview(data).cast("B")), DTYPES[tensor.dtype])
        held[tensor.name] = torch.from_numpy(flat.copy()).reshape(tensor.shape)

    chosen = [tensor for tensor in plan.written if tensor.name in (QUERY, WORDS)]
    list(Stream(plan).run(chosen, keep, measured=plan.written))
    assert bits(held) == bits({tensor.name: expected[tensor.name] for tensor in chosen})
    alone = dict(held)
    list(Stream(plan).run(chosen[:1], keep))
    assert bits(alone) != bits(held), "measured over one tensor, the threshold is another"


def test_what_agrees_is_kept_step_by_step(
    own_wide_pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A third of three times the same number may round to another; the base's bytes are kept where nobody moved."""
    monkeypatch.setattr(inputs, "STEP", 64)
    base = read_raw(own_wide_pool / "base")[WORDS].view(-1)
    for name in SOURCES:
        tensors = read_raw(own_wide_pool / name)
        tensors[WORDS].view(-1)[:64] = base[:64]
        write_raw(own_wide_pool / name, tensors)
    weights = dict(zip(SOURCES, (0.1, 0.2, 0.7), strict=True))
    out = merge(recipe_of(own_wide_pool, coefficients=weights), tmp_path / "out")
    found = read_raw(out)[WORDS].view(-1)
    assert torch.equal(found[:64], base[:64])
    assert not (found[64:] == base[64:]).any()
    assert entries(out)[WORDS]["treatment"] == "merged"


def test_hashes_are_the_same_whether_taken_in_the_merge_or_before(wide_pool: Path, tmp_path: Path) -> None:
    from langmerge.checkpoint import checkpoint_signature

    for name in ("base", *SOURCES):
        shutil.copytree(wide_pool / name, tmp_path / name, ignore=shutil.ignore_patterns(".langmerge*"))
    plan = make_plan(case_recipe(tmp_path, "ties", embeddings="base"))
    running = Stream(plan)
    list(running.run(plan.written, lambda *_: None))
    taken = {name for _, name in running.digests}
    assert QUERY in taken
    assert WORDS not in taken
    for checkpoint in plan.checkpoints:
        alone = checkpoint_signature(replace(checkpoint))
        (checkpoint.folder / ".langmerge.fingerprint").unlink(missing_ok=True)
        known = checkpoint_signature(
            checkpoint,
            {
                name: found
                for (file, name), found in running.digests.items()
                if file.parent == checkpoint.folder
            },
        )
        assert known == alone


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize(
    ("method", "parameters"),
    [("slerp", {"t": 0.5}), ("nuslerp", {}), ("karcher", {}), ("multislerp", {})],
)
def test_on_a_sphere_about_the_origin_what_nobody_has_moved_is_scaled_with_the_rest(
    tmp_path: Path, method: str, parameters: dict[str, Any]
) -> None:
    """Steps in which base and sources agree are no copies of the base: a jump would be where a step ends."""
    name, shape = "model.layers.0.mlp.up_proj.weight", (64, 32)
    base = drawn(0, shapes={name: shape})
    sources = {}
    for seed, source in enumerate(("a", "b"), start=1):
        moved = base[name].clone()
        moved[:16] = drawn(seed, shapes={name: (16, 32)})[name]
        sources[source] = write_raw(tmp_path / source, {name: moved}, labels=None)
    folder = write_raw(tmp_path / "base", base, labels=None)
    recipe = Recipe(base=folder, sources=sources, method=method, parameters=parameters)
    (plan,) = make_plan(recipe).written
    given = {key: value for key, value in plan.parameters.items() if key != "scope"}
    tuned_ones = torch.stack([read_raw(one)[name] for one in sources.values()])
    expected = METHODS[method](base[name], tuned_ones, torch.tensor(plan.weights), **given)
    found = streamed(recipe)[name]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(found[-1], base[name][-1], rtol=1e-3)
