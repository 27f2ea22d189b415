"""The stream over tensors: whatever is cut, threaded or measured in parts gives what the whole gives."""

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from langmerge.checkpoint import DTYPES, open_checkpoint
from langmerge.engine import compiled as backend_module
from langmerge.engine import faults, inputs, make_plan, merge, reference, stream
from langmerge.engine.compiled import CompiledBackend
from langmerge.engine.inputs import TensorInputs
from langmerge.engine.passes import Job, run_all
from langmerge.engine.stream import Stream
from langmerge.errors import CheckpointError, PlanError
from langmerge.methods import SPECS
from tests.engine.conftest import SOURCES, bits, entries, recipe_of, streamed
from tests.tiny import QUERY, WORDS, Tensors, drawn, read_raw, tuned, write_raw

STEPS = 4
"""How often the largest tensor of these tests is cut."""

SHAPES = {
    WORDS: (40, 6),
    QUERY: (16, 16),
    "roberta.encoder.layer.1.output.dense.weight": (5, 12),
    "roberta.encoder.layer.1.output.dense.bias": (200,),
    "classifier.out_proj.weight": (3, 6),
}

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


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read-only: tensors of some hundred entries, the sources' deltas with a direction in common."""
    root = tmp_path_factory.mktemp("stream")
    base = drawn(0, shapes=SHAPES)
    moved = tuned(base, 9)
    write_raw(root / "base", base)
    for seed, name in enumerate(SOURCES, start=1):
        write_raw(root / name, tuned(moved, seed))
    return root


@pytest.fixture
def own(pool: Path, tmp_path: Path) -> Path:
    """A copy of it to change."""
    return Path(shutil.copytree(pool, tmp_path / "pool"))


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several steps in a piece and several pieces in a tensor."""
    monkeypatch.setattr(inputs, "STEP", 64)
    monkeypatch.setattr(inputs, "PIECE", 128)


def case_recipe(root: Path, method: str, parameters: dict[str, Any] | None = None, **changes: Any) -> Any:
    names = SOURCES[: SPECS[method].sources[1]]
    fields: dict[str, Any] = {"method": method, "parameters": parameters or {}}
    return recipe_of(root, **{**fields, "sources": {name: root / name for name in names}, **changes})


def record_of(out: Path) -> dict[str, Any]:
    """The receipt without the places that it names."""
    record: dict[str, Any] = json.loads((out / "langmerge.json").read_text())
    del record["recipe"]
    return record


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize(("method", "parameters"), CASES)
def test_threads_shards_and_order_change_neither_bytes_nor_receipt(
    pool: Path, own: Path, tmp_path: Path, method: str, parameters: dict[str, Any]
) -> None:
    names = sorted(SHAPES)
    for name in ("base", "fr-FR"):
        tensors = read_raw(own / name)
        shutil.rmtree(own / name)
        write_raw(own / name, tensors, shards=[names[3:], names[:1], names[1:3]])
    whole = case_recipe(pool, method, parameters)
    cut = case_recipe(own, method, parameters)
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
    pool: Path, monkeypatch: pytest.MonkeyPatch, method: str, parameters: dict[str, Any]
) -> None:
    recipe = case_recipe(pool, method, parameters)
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


# Thresholds


def thresholds(recipe: Any) -> dict[str, list[float]]:
    """Of every tensor, as the kernels measure them."""
    kernels = pytest.importorskip("langmerge.kernels._compiled")
    backend, plan = CompiledBackend(kernels), make_plan(recipe)
    jobs = [Job(TensorInputs(plan, tensor), {}) for tensor in plan.written]
    together = plan.parameters["scope"] == "model"
    works = [backend.measure(jobs)] if together else [backend.measure([job]) for job in jobs]
    with ThreadPoolExecutor(2) as pool:
        run_all(pool, [work for work in works if work is not None])
    return {job.inputs.tensor.name: job.known["thresholds"].tolist() for job in jobs}


def by_sorting(root: Path, names: list[str], densities: list[float]) -> list[float]:
    """The same over the named tensors together: the magnitude at its rank in a sorted list, per source."""
    base = read_raw(root / "base")
    found = []
    for source, density in zip(SOURCES, densities, strict=True):
        own = read_raw(root / source)
        magnitudes = np.sort(np.concatenate([(own[n] - base[n]).abs().flatten().numpy() for n in names]))[
            ::-1
        ]
        found.append(float(magnitudes[max(1, int(density * len(magnitudes))) - 1]))
    return found


def ties_and_zeros(root: Path) -> None:
    """Steps of a quarter: many ties; in sw-KE most deltas are zero."""
    generator = torch.Generator().manual_seed(5)
    base = {name: one.round() for name, one in drawn(0, shapes=SHAPES).items()}
    write_raw(root / "base", base)
    for name in SOURCES:
        steps = {key: torch.randint(-3, 4, one.shape, generator=generator) / 4 for key, one in base.items()}
        share = 0.05 if name == "sw-KE" else 1.0
        kept = {key: one * (torch.rand(one.shape, generator=generator) < share) for key, one in steps.items()}
        write_raw(root / name, {key: base[key] + one for key, one in kept.items()})


@pytest.fixture(params=["normal", "ties"])
def deltas(request: pytest.FixtureRequest, pool: Path, tmp_path: Path) -> Path:
    """Deltas of two kinds."""
    if request.param == "normal":
        return pool
    ties_and_zeros(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("selected", [1 << 22, 0], ids=["selected", "counted"])
@pytest.mark.parametrize("scope", ["tensor", "model"])
@pytest.mark.parametrize(
    "densities", [[1e-9] * 3, [0.2] * 3, [0.5, 0.07, 0.93], [1.0, 0.3, 1.0], [0.999999] * 3]
)
def test_thresholds_are_exact(
    deltas: Path, monkeypatch: pytest.MonkeyPatch, densities: list[float], scope: str, selected: int
) -> None:
    monkeypatch.setattr(backend_module, "SELECTED", selected)
    parameters = {"density": densities, "scope": scope}
    found = thresholds(case_recipe(deltas, "ties", parameters))
    assert found.keys() == SHAPES.keys()
    for name, one in found.items():
        assert one == by_sorting(deltas, sorted(SHAPES) if scope == "model" else [name], densities)


def test_sources_that_keep_everything_need_no_threshold(pool: Path) -> None:
    kernels = pytest.importorskip("langmerge.kernels._compiled")
    plan = make_plan(case_recipe(pool, "ties", {"density": 1.0}))
    assert CompiledBackend(kernels).measure([Job(TensorInputs(plan, plan.written[0]), {})]) is None


@pytest.mark.parametrize("sampled", ["zeros", "the largest"])
def test_a_sample_that_misleads_costs_two_passes_and_no_accuracy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampled: str
) -> None:
    """What the sample sees has nothing to do with the rest."""
    monkeypatch.setattr(backend_module, "SELECTED", 0)
    monkeypatch.setattr(backend_module, "_SAMPLE", 1 << 10)
    monkeypatch.setattr(backend_module, "_RUN", 64)
    size = 40_000
    base = torch.zeros(size)
    seen = torch.zeros(size, dtype=torch.bool)
    every = size // (1 << 10)
    for start in range(0, size, 64 * every):
        seen[start : start + 64] = True
    write_raw(tmp_path / "base", {"w": base})
    for seed, name in enumerate(SOURCES):
        own = drawn(seed, shapes={"w": (size,)})["w"]
        write_raw(tmp_path / name, {"w": torch.where(seen, 0.0 if sampled == "zeros" else 1e6 * own, own)})
    passes: list[int] = []

    class Counted(backend_module._Counts):
        def __init__(self, kernels: Any, low: Any, span: int, shift: int) -> None:
            passes.append(shift)
            super().__init__(kernels, low, span, shift)

    monkeypatch.setattr(backend_module, "_Counts", Counted)
    found = thresholds(case_recipe(tmp_path, "ties", {"density": 0.3}))["w"]
    assert found == by_sorting(tmp_path, ["w"], [0.3] * 3)
    assert passes == [15, 0, 15, 0], "a sample, a count that missed, all in coarse buckets, a count"


def test_a_fair_sample_is_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend_module, "SELECTED", 0)
    monkeypatch.setattr(backend_module, "_SAMPLE", 1 << 13)
    monkeypatch.setattr(backend_module, "_RUN", 64)
    base = drawn(0, shapes={"a": (300, 70), "b": (41_000,)})
    write_raw(tmp_path / "base", base)
    for seed, name in enumerate(SOURCES, start=1):
        write_raw(tmp_path / name, tuned(base, seed))
    passes: list[int] = []

    class Counted(backend_module._Counts):
        def __init__(self, kernels: Any, low: Any, span: int, shift: int) -> None:
            passes.append(shift)
            super().__init__(kernels, low, span, shift)

    monkeypatch.setattr(backend_module, "_Counts", Counted)
    found = thresholds(case_recipe(tmp_path, "ties", {"density": 0.3, "scope": "model"}))
    assert found["a"] == found["b"] == by_sorting(tmp_path, ["a", "b"], [0.3] * 3)
    assert passes == [15, 0]


# Numbers that are none


def spoilt(folder: Path, name: str, place: int, value: float) -> None:
    tensors = read_raw(folder)
    tensors[name].view(-1)[place] = value
    write_raw(folder, tensors)


PLACES = {"first": 0, "middle": 130, "last": -1}


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("kernels", ["", "torch"])
@pytest.mark.parametrize("victim", ["base", "de-DE", "fr-FR"])
@pytest.mark.parametrize(
    "method", ["linear", "ties", "dare_linear", "dare_ties", "slerp", "multislerp", "model_stock"]
)
def test_nan_anywhere_is_an_error_that_names_tensor_and_file(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, victim: str, kernels: str
) -> None:
    monkeypatch.setenv("LANGMERGE_KERNELS", kernels)
    clean = (own / victim / "model.safetensors").read_bytes()
    for bad, place in zip((np.nan, np.inf, -np.inf), PLACES.values(), strict=True):
        spoilt(own / victim, QUERY, place, bad)
        # No weight lets it pass.
        weights = dict(zip(SOURCES, (0.0, 0.4, 0.6), strict=True)) if method == "ties" else None
        with pytest.raises(CheckpointError, match=rf"{QUERY}.*{victim}/model.safetensors holds NaN"):
            merge(case_recipe(own, method, coefficients=weights), tmp_path / "out")
        assert [path.name for path in tmp_path.iterdir()] == ["pool"]
        (own / victim / "model.safetensors").write_bytes(clean)


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize(
    ("method", "changes", "tensor", "victim"),
    [
        ("della_ties", {}, QUERY, "fr-FR"),
        ("sce", {}, WORDS, "base"),
        ("neuromerging", {}, QUERY, "sw-KE"),
        ("wudi", {}, QUERY, "base"),
        ("wudi", {}, QUERY, "sw-KE"),
        ("wudi", {}, WORDS, "sw-KE"),
        ("ties", {"embeddings": "base"}, WORDS, "base"),
        ("ties", {"embeddings": "source:fr-FR"}, WORDS, "fr-FR"),
        ("ties", {"embeddings": "mean"}, WORDS, "de-DE"),
        ("ties", {"parameters": {"scope": "model"}}, WORDS, "de-DE"),
        ("ties", {"layers": "0", "other_layers": "mean"}, "roberta.encoder.layer.1.output.dense.bias", "sw-KE"),
        ("iso_c", {}, QUERY, "fr-FR"),
        ("karcher", {"coefficients": {"de-DE": 0.0, "fr-FR": 0.5, "sw-KE": 0.5}}, QUERY, "de-DE"),
    ],
)  # fmt: skip
def test_nan_in_every_other_path(
    own: Path, tmp_path: Path, method: str, changes: dict[str, Any], tensor: str, victim: str
) -> None:
    for bad in (np.nan, np.inf):
        spoilt(own / victim, tensor, -1, bad)
        with pytest.raises(CheckpointError, match=rf"{tensor}.*{victim}/model.safetensors holds NaN"):
            merge(case_recipe(own, method, **changes), tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_nan_in_heads_that_the_base_lacks(own: Path, tmp_path: Path) -> None:
    head = "classifier.out_proj.weight"
    write_raw(own / "base", {name: one for name, one in read_raw(own / "base").items() if name != head})
    spoilt(own / "sw-KE", head, 5, np.nan)
    with pytest.raises(CheckpointError, match=rf"{head}.*sw-KE/model.safetensors holds NaN"):
        merge(case_recipe(own, "ties"), tmp_path / "out")


@pytest.mark.parametrize("kernels", ["", "torch"])
@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "dare_ties", "della_linear"])
def test_a_result_that_overflows_is_named(
    pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, kernels: str
) -> None:
    monkeypatch.setenv("LANGMERGE_KERNELS", kernels)
    parameters = {"scale": 3e38, **({"normalize": False} if method.endswith("ties") else {})}
    recipe = case_recipe(pool, method, parameters, coefficients=dict.fromkeys(SOURCES, 1000.0))
    with pytest.raises(CheckpointError, match=r"^merging tensor '.+' gave NaN or infinity: the coefficients"):
        merge(recipe, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kernels", ["", "torch"])
@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "directional_consensus"])
def test_coefficients_beyond_float32_overflow_without_a_warning(
    pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, kernels: str
) -> None:
    monkeypatch.setenv("LANGMERGE_KERNELS", kernels)
    parameters = {"normalize": False} if method == "linear" else {}
    recipe = case_recipe(pool, method, parameters, coefficients=dict.fromkeys(SOURCES, 1e39))
    with pytest.raises(CheckpointError, match="gave NaN or infinity: the coefficients or parameters are too"):
        merge(recipe, tmp_path / "out")


@pytest.mark.parametrize("kernels", ["", "torch"])
@pytest.mark.parametrize(("dtype", "largest"), [("F16", 65504.0), ("F8_E4M3", 448.0), ("F8_E5M2", 57344.0)])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"method": "wudi"},
        {"embeddings": "base"},
        {"embeddings": "source:fr-FR"},
        {"embeddings": "mean"},
    ],
)
def test_a_result_too_large_for_its_dtype_is_an_error(
    own: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    dtype: str,
    largest: float,
    kernels: str,
) -> None:
    """Not infinity, not NaN, and not cut off."""
    monkeypatch.setenv("LANGMERGE_KERNELS", kernels)
    for value, fits in ((largest, True), (-1.1 * largest, False)):
        for name in ("base", *SOURCES):
            spoilt(own / name, WORDS, 7, value)
        recipe = case_recipe(own, **{"method": "linear", **changes}, dtype=dtype)
        if fits:
            out = merge(recipe, tmp_path / "out")
            assert open_checkpoint(out).array(WORDS).reshape(-1)[7] == largest
            assert {info.dtype for info in open_checkpoint(out).tensors.values()} == {dtype}
            continue
        match = rf"tensor '{WORDS}' of the result has numbers too large for {dtype}: store it as BF16 or F32"
        with pytest.raises(CheckpointError, match=match):
            merge(recipe, tmp_path / "none")
        assert not (tmp_path / "none").exists()


# What else can go wrong


def test_a_source_that_has_not_moved_is_found_while_merging(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a large model the plan compares only the first megabytes."""
    shutil.copy(own / "base" / "model.safetensors", own / "sw-KE" / "model.safetensors")
    with pytest.raises(PlanError, match="its task vector is zero"):
        make_plan(case_recipe(own, "ties"))
    monkeypatch.setattr(faults, "COMPARED", 0)
    make_plan(case_recipe(own, "ties"))
    with pytest.raises(PlanError, match=r"source sw-KE .* equals the base .*: its task vector is zero"):
        merge(case_recipe(own, "ties"), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["pool"]


@pytest.mark.usefixtures("small_steps")
def test_no_thread_writes_after_a_merge_has_failed(pool: Path, tmp_path: Path) -> None:
    """The files are closed by then, and their numbers may be another file's."""

    @contextmanager
    def progress(description: str, total: int) -> Iterator[Callable[[int], None]]:
        def failing(_: int) -> None:
            raise KeyboardInterrupt

        yield failing

    before = set(threading.enumerate())
    # The error is kept, and with it everything that its traceback holds.
    with pytest.raises(KeyboardInterrupt) as kept:
        merge(case_recipe(pool, "ties"), tmp_path / "out", threads=3, progress=progress)
    assert set(threading.enumerate()) == before
    assert kept.value is not None
    assert list(tmp_path.iterdir()) == []


def test_torch_computes_with_one_thread_for_each_of_ours(pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
        streamed(case_recipe(pool, "sce"))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert used == {1}


def test_a_failing_sink_ends_the_stream(pool: Path) -> None:
    plan = make_plan(case_recipe(pool, "linear"))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    before = set(threading.enumerate())
    with pytest.raises(OSError, match="No space left"):
        list(Stream(plan, 3).run(plan.written, full))
    assert set(threading.enumerate()) == before


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("threads", [1, 4])
def test_every_byte_is_written_once(pool: Path, threads: int) -> None:
    plan = make_plan(case_recipe(pool, "ties", embeddings="base", dtype="BF16"))
    lock = threading.Lock()
    written: dict[str, list[tuple[int, int]]] = {}

    def keep(tensor: Any, start: int, data: Any) -> None:
        with lock:
            written.setdefault(tensor.name, []).append((start, start + len(memoryview(data).cast("B"))))

    results = list(Stream(plan, threads).run(plan.written, keep))
    assert [result.plan.name for result in results] == sorted(SHAPES)
    for tensor in plan.written:
        ranges = sorted(written[tensor.name])
        assert [start for start, _ in ranges] == [0, *(stop for _, stop in ranges[:-1])]
        assert ranges[-1][1] == int(np.prod(tensor.shape)) * 2
        assert len(ranges) >= int(np.prod(tensor.shape)) // 64


def test_tensors_may_be_merged_alone(pool: Path) -> None:
    """Also where a method looks at the whole model: `measured` says what that is."""
    recipe = case_recipe(pool, "ties", {"density": 0.3, "scope": "model"})
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


def test_what_agrees_is_kept_step_by_step(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A third of three times the same number may round to another; the base's bytes are kept where nobody moved."""
    monkeypatch.setattr(inputs, "STEP", 64)
    base = read_raw(own / "base")[WORDS].view(-1)
    for name in SOURCES:
        tensors = read_raw(own / name)
        tensors[WORDS].view(-1)[:64] = base[:64]
        write_raw(own / name, tensors)
    weights = dict(zip(SOURCES, (0.1, 0.2, 0.7), strict=True))
    out = merge(recipe_of(own, coefficients=weights), tmp_path / "out")
    found = read_raw(out)[WORDS].view(-1)
    assert torch.equal(found[:64], base[:64])
    assert not (found[64:] == base[64:]).any()
    assert entries(out)[WORDS]["treatment"] == "merged"


def test_hashes_are_the_same_whether_taken_in_the_merge_or_before(pool: Path, tmp_path: Path) -> None:
    from langmerge.checkpoint import checkpoint_signature

    for name in ("base", *SOURCES):
        shutil.copytree(pool / name, tmp_path / name, ignore=shutil.ignore_patterns(".langmerge*"))
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
            checkpoint, lambda name, c=checkpoint: running.digests.get((c.tensors[name].file, name))
        )
        assert known == alone
