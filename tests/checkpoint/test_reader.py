import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from langmerge.checkpoint import DTYPES, label_names, open_checkpoint, read_json
from langmerge.checkpoint.tensors import TORCH_DTYPES
from langmerge.errors import CheckpointError
from tests.checkpoint.hostile import sparse
from tests.tiny import QUERY, SHAPES, WORDS, drawn, write_raw

INDEX = "model.safetensors.index.json"


def peak_memory() -> int:
    """The largest resident memory since the count was cleared, in bytes."""
    (line,) = [
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")
    ]
    return 1024 * int(line.split()[1])


def test_a_folder_says_what_it_holds(tmp_path: Path) -> None:
    tensors = drawn(0)
    opened = open_checkpoint(write_raw(tmp_path / "model", tensors, hidden_size=6))
    assert opened.folder == tmp_path / "model"
    assert opened.config["hidden_size"] == 6
    assert {name: info.shape for name, info in opened.tensors.items()} == SHAPES
    info = opened.tensors[QUERY]
    assert (info.name, info.dtype, info.is_float, info.nbytes) == (QUERY, "F32", True, 144)
    assert info.file == tmp_path / "model" / "model.safetensors"
    assert torch.equal(opened.read(QUERY), tensors[QUERY])


def test_the_folder_may_be_text(tmp_path: Path) -> None:
    assert open_checkpoint(str(write_raw(tmp_path / "model", drawn(0)))).tensors.keys() == SHAPES.keys()


def test_shards_read_like_one_file(tmp_path: Path) -> None:
    tensors = drawn(0)
    names = sorted(tensors)
    one = open_checkpoint(write_raw(tmp_path / "one", tensors))
    many = open_checkpoint(write_raw(tmp_path / "many", tensors, shards=[names[:1], names[1:5], names[5:]]))
    assert one.tensors.keys() == many.tensors.keys()
    assert {info.file.name for info in many.tensors.values()} == {
        f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)
    }
    for name in names:
        assert torch.equal(one.read(name), many.read(name))


@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak of memory is read from /proc"
)
def test_opening_reads_headers_only(tmp_path: Path) -> None:
    size = 1 << 30
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    sparse(tmp_path / "model" / "model.safetensors", {"big": ("F32", (size // 4,))})
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_memory()
    opened = open_checkpoint(tmp_path / "model")
    assert opened.tensors["big"].nbytes == size
    assert peak_memory() - before < size // 8


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_is_read_as_stored(tmp_path: Path, dtype: str) -> None:
    stored = torch.tensor([[0, 1], [3, 2]]).to(TORCH_DTYPES[dtype])
    opened = open_checkpoint(write_raw(tmp_path / "model", {"x": stored}))
    info, found, array = opened.tensors["x"], opened.read("x"), opened.array("x")
    assert (info.dtype, found.dtype, found.shape) == (dtype, TORCH_DTYPES[dtype], (2, 2))
    assert (array.dtype, array.shape) == (DTYPES[dtype], (2, 2))
    expected = stored.to(torch.float64).tolist()
    assert found.to(torch.float64).tolist() == array.astype(np.float64).tolist() == expected
    assert info.nbytes == 4 * stored.element_size()
    assert info.is_float is stored.dtype.is_floating_point


def test_weights_cannot_be_written_to(tmp_path: Path) -> None:
    opened = open_checkpoint(write_raw(tmp_path / "model", drawn(0)))
    with pytest.raises(ValueError, match="read-only"):
        opened.array(QUERY)[0] = 0
    opened.read(QUERY)[0] = 0
    assert opened.array(QUERY)[0, 0] != 0


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1, 1, 1)])
def test_scalars_and_empty_tensors(tmp_path: Path, shape: tuple[int, ...]) -> None:
    opened = open_checkpoint(write_raw(tmp_path / "model", {"x": torch.full(shape, 2.5)}))
    assert opened.tensors["x"].shape == shape
    assert torch.equal(opened.read_finite("x"), torch.full(shape, 2.5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn])
def test_arithmetic_is_in_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    stored = torch.tensor([0.5, -1.25, 3.0]).to(dtype)
    found = open_checkpoint(write_raw(tmp_path / "model", {"x": stored})).read_finite("x")
    assert found.dtype == torch.float32
    assert found.tolist() == [0.5, -1.25, 3.0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_an_error_that_names_tensor_and_file(tmp_path: Path, bad: float) -> None:
    tensors = drawn(0)
    tensors[WORDS][3, 4] = bad
    opened = open_checkpoint(write_raw(tmp_path / "model", tensors))
    assert torch.isfinite(opened.read_finite(QUERY)).all()
    with pytest.raises(CheckpointError, match=rf"{WORDS}.*{tmp_path}/model/model.safetensors.*NaN"):
        opened.read_finite(WORDS)


def test_opposite_infinities_are_found_too(tmp_path: Path) -> None:
    opened = open_checkpoint(
        write_raw(tmp_path / "model", {"x": torch.tensor([float("inf"), -float("inf")])})
    )
    with pytest.raises(CheckpointError, match="holds NaN or infinity"):
        opened.read_finite("x")


def test_large_numbers_are_finite_though_their_sum_is_not(tmp_path: Path) -> None:
    opened = open_checkpoint(write_raw(tmp_path / "model", {"x": torch.full((4,), 3e38)}))
    assert torch.equal(opened.read_finite("x"), torch.full((4,), 3e38))


def replaced(name: str, data: str | bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)

    return change


def removed(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def cut(size: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:size])

    return change


def indexed(weight_map: object, *, files: tuple[str, ...] = ("a.safetensors",)) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        for file in files:
            save_file({"x": torch.ones(2)}, folder / file)
        (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (removed("config.json"), r"config.json does not exist: .* is no model folder"),
        (replaced("config.json", "{"), "config.json is not valid JSON"),
        (replaced("config.json", b"\xff\xfe{}"), "config.json is not valid JSON"),
        (replaced("config.json", "[]"), "config.json holds no JSON object"),
        (removed("model.safetensors"), f"has no model.safetensors and no {INDEX}"),
        (replaced("model.safetensors", b""), "model.safetensors cannot be read as safetensors"),
        (replaced("model.safetensors", b"garbage" * 99), "model.safetensors cannot be read as safetensors"),
        (cut(300), "model.safetensors cannot be read as safetensors"),
        (cut(-4), "model.safetensors cannot be read as safetensors"),
        (replaced("model.safetensors", b"\x02" + bytes(7) + b"{}"), "holds no tensors"),
        (replaced(INDEX, "nothing"), f"{INDEX} is not valid JSON"),
        (replaced(INDEX, "{}"), f"{INDEX} has no weight_map"),
        (indexed(["x"]), "has no weight_map"),
        (indexed({"x": 1}), "has no weight_map"),
        (indexed({"x": ["a.safetensors"]}), "has no weight_map"),
        (indexed({"x": "b.safetensors"}), "lists 'b.safetensors', which does not exist"),
        (indexed({"x": "a.safetensors", "y": "a.safetensors"}), "lists tensor 'y', which is in no shard"),
        (
            indexed({"x": "a.safetensors", "z": "b.safetensors"}, files=("a.safetensors", "b.safetensors")),
            "tensor 'x' is in .*a.safetensors and in .*b.safetensors",
        ),
        (lambda folder: save_file({"x": torch.ones(2, dtype=torch.complex64)}, folder / "model.safetensors"),
         "tensor 'x' in .*model.safetensors has dtype 'C64', not supported"),
    ],
)  # fmt: skip
def test_a_broken_folder_is_one_clear_line(
    tmp_path: Path, change: Callable[[Path], None], message: str
) -> None:
    folder = write_raw(tmp_path / "model", drawn(0))
    change(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(folder)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_folder_at_all(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model folder .*/nowhere does not exist"):
        open_checkpoint(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("config", "labels"),
    [
        ({"id2label": {"0": "a", "1": "b"}}, ("a", "b")),
        ({"id2label": {str(row): f"l{row}" for row in (10, 9, 2, 1, 0, 3, 4, 5, 6, 7, 8)}},
         tuple(f"l{row}" for row in range(11))),
        ({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}, None),
        ({"id2label": {"0": "LABEL_1", "1": "LABEL_0"}}, ("LABEL_1", "LABEL_0")),
        ({"id2label": {"zero": "a"}}, None),
        ({"id2label": None}, None),
        ({}, None),
    ],
)  # fmt: skip
def test_label_names(config: dict[str, object], labels: tuple[str, ...] | None) -> None:
    assert label_names(config) == labels


def test_json_objects_only(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"a": 1}')
    assert read_json(tmp_path / "x.json") == {"a": 1}
    with pytest.raises(CheckpointError, match="does not exist"):
        read_json(tmp_path / "y.json")
