"""Pickled weights: refused unless asked for, and then read without running code."""

import contextlib
import gc
import io
import json
import os
import pickle
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from langmerge.checkpoint import checkpoint_signature, folder_signature, kept_fingerprint, open_checkpoint
from langmerge.checkpoint.tensors import TORCH_DTYPES
from langmerge.engine import make_plan, merge
from langmerge.errors import CheckpointError, PlanError
from langmerge.recipe import Recipe
from tests.tiny import SHAPES, Tensors, drawn, read_raw, tuned, write_raw

INDEX = "pytorch_model.bin.index.json"


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the copies are made; nothing may be left of them."""
    place = tmp_path / "scratch"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    yield place
    gc.collect()
    assert list(place.iterdir()) == []


def write_pickled(folder: Path, state: Any, *, shards: int = 1, **options: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    if shards == 1:
        torch.save(state, folder / "pytorch_model.bin", **options)
        return folder
    names, weight_map = sorted(state), {}
    for number in range(shards):
        file = f"pytorch_model-{number + 1:05d}-of-{shards:05d}.bin"
        own = names[number::shards]
        torch.save({name: state[name] for name in own}, folder / file, **options)
        weight_map |= dict.fromkeys(own, file)
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return folder


OLD = {"_use_new_zipfile_serialization": False}
"""How torch wrote before 1.6."""

YOUNGER = ("U64", "U32", "U16", "F8_E4M3", "F8_E5M2")
"""dtypes that the old files do not know."""


def of_all_dtypes(options: dict[str, Any]) -> Tensors:
    dtypes = {name: dtype for name, dtype in TORCH_DTYPES.items() if not options or name not in YOUNGER}
    some = {name: torch.tensor([[0, 1], [3, 2]]).to(dtype) for name, dtype in dtypes.items()}
    return some | {
        "scalar": torch.tensor(2.5),
        "none": torch.zeros(0, 3),
        "turned": torch.arange(6.0).reshape(2, 3).T,
    }


@pytest.mark.parametrize("options", [{}, OLD])
@pytest.mark.parametrize("shards", [1, 3])
def test_what_was_pickled_is_what_is_read(tmp_path: Path, shards: int, options: dict[str, Any]) -> None:
    state = of_all_dtypes(options)
    folder = write_pickled(tmp_path / "model", state, shards=shards, **options)
    opened = open_checkpoint(folder, pickle=True)
    assert opened.folder == folder
    assert opened.tensors.keys() == state.keys()
    for name, tensor in state.items():
        found = opened.read(name)
        assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
        assert found.to(torch.float64).tolist() == tensor.to(torch.float64).tolist()


def test_a_tensor_longer_than_a_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("langmerge.checkpoint.pickled._PIECE", 4)
    state = {"x": torch.arange(11, dtype=torch.int16)}
    opened = open_checkpoint(write_pickled(tmp_path / "model", state), pickle=True)
    assert opened.array("x").tolist() == list(range(11))


def test_the_copy_lives_as_long_as_the_checkpoint(tmp_path: Path, scratch: Path) -> None:
    opened = open_checkpoint(write_pickled(tmp_path / "model", drawn(0)), pickle=True)
    name = "classifier.out_proj.bias"
    array = opened.array(name)
    assert len(list(scratch.iterdir())) == 1
    del opened
    gc.collect()
    assert list(scratch.iterdir()) == []
    # What was mapped before stays readable.
    assert array.tolist() == drawn(0)[name].tolist()


def test_copies_that_killed_runs_left_are_removed(tmp_path: Path, scratch: Path) -> None:
    folder = write_pickled(tmp_path / "model", drawn(0))
    left = scratch / ".langmerge-model.abcdefgh.tmp"
    (left / "new").mkdir(parents=True)
    (left / "lock").touch()
    opened = open_checkpoint(folder, pickle=True)
    assert not left.exists()
    other = open_checkpoint(folder, pickle=True)
    assert len(list(scratch.iterdir())) == 2, "the copy of a checkpoint that is open is no leftover"
    assert opened.read("classifier.out_proj.bias").equal(other.read("classifier.out_proj.bias"))


def test_tied_weights_are_stored_twice(tmp_path: Path) -> None:
    embeddings = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    state = {"embed.weight": embeddings, "lm_head.weight": embeddings, "part": embeddings[1:3]}
    opened = open_checkpoint(write_pickled(tmp_path / "model", state), pickle=True)
    assert {name: opened.read(name).tolist() for name in state} == {n: t.tolist() for n, t in state.items()}


def test_parameters_are_tensors(tmp_path: Path) -> None:
    state = torch.nn.Linear(2, 3).state_dict() | {"p": torch.nn.Parameter(torch.ones(2))}
    opened = open_checkpoint(write_pickled(tmp_path / "model", state), pickle=True)
    assert opened.read("p").tolist() == [1, 1]


@pytest.mark.parametrize("shards", [1, 2])
def test_without_being_asked_it_is_refused_with_the_way_out(tmp_path: Path, shards: int) -> None:
    folder = write_pickled(tmp_path / "model", drawn(0), shards=shards)
    with pytest.raises(
        CheckpointError, match=r"only pickled weights.*say pickle: true in the recipe"
    ) as caught:
        open_checkpoint(folder)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["model.pt", "optimizer.bin"])
@pytest.mark.parametrize("asked", [False, True])
def test_other_pickled_files_are_never_opened(tmp_path: Path, name: str, asked: bool) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_bytes(pickle.dumps(Trap(tmp_path / "it ran")))
    with pytest.raises(CheckpointError, match=rf"only pickled weights \({name}\).*convert them"):
        open_checkpoint(tmp_path, pickle=asked)
    assert not (tmp_path / "it ran").exists()


@pytest.mark.parametrize("asked", [False, True])
def test_safetensors_come_first(tmp_path: Path, asked: bool) -> None:
    folder = write_raw(tmp_path / "model", drawn(0))
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(tmp_path / "it ran")))
    assert open_checkpoint(folder, pickle=asked).tensors.keys() == SHAPES.keys()
    assert not (tmp_path / "it ran").exists()


class Trap:
    """Runs code when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[str, int], int], tuple[str, int]]:
        return os.open, (str(self.mark), os.O_CREAT)


def as_plain_pickle(trap: Trap) -> bytes:
    return pickle.dumps({"x": trap})


def as_archive(trap: Trap) -> bytes:
    buffer = io.BytesIO()
    torch.save({"x": torch.ones(2), "trap": trap}, buffer)
    return buffer.getvalue()


def as_old_file(trap: Trap) -> bytes:
    buffer = io.BytesIO()
    torch.save({"x": torch.ones(2), "trap": trap}, buffer, **OLD)
    return buffer.getvalue()


@pytest.mark.parametrize("form", [as_plain_pickle, as_archive, as_old_file])
def test_no_code_is_run(tmp_path: Path, form: Callable[[Trap], bytes]) -> None:
    mark = tmp_path / "it ran"
    content = form(Trap(mark))
    folder = write_pickled(tmp_path / "model", {"x": torch.ones(2)})
    (folder / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(
        CheckpointError, match=r"pytorch_model.bin cannot be loaded as plain tensors"
    ) as caught:
        open_checkpoint(folder, pickle=True)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500
    assert "\\n" not in str(caught.value)
    assert not mark.exists()
    # The trap works: the same bytes run when they are unpickled in earnest.
    with contextlib.suppress(RuntimeError):
        torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert mark.exists()


def test_nor_when_only_one_shard_is_bad(tmp_path: Path) -> None:
    folder = write_pickled(tmp_path / "model", drawn(0), shards=2)
    mark = tmp_path / "it ran"
    (folder / "pytorch_model-00002-of-00002.bin").write_bytes(as_archive(Trap(mark)))
    with pytest.raises(CheckpointError, match=r"00002-of-00002.bin cannot be loaded as plain tensors"):
        open_checkpoint(folder, pickle=True)
    assert not mark.exists()


def huge() -> torch.Tensor:
    return torch.zeros(1).expand(1 << 40)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ([torch.ones(2)], "holds no mapping from names to tensors"),
        (torch.ones(2), "holds no mapping from names to tensors"),
        ({}, "holds no mapping from names to tensors"),
        ({"state_dict": {"x": torch.ones(2)}}, "holds 'state_dict', which is no tensor"),
        ({"x": torch.ones(2), "epoch": 3}, "holds 'epoch', which is no tensor"),
        ({"x": None}, "holds 'x', which is no tensor"),
        ({1: torch.ones(2)}, "an entry named 1"),
        ({"a\nb": torch.ones(2)}, r"an entry named 'a\\nb'"),
        ({"x": torch.ones(2, dtype=torch.complex64)}, "has dtype complex64, not supported"),
        ({"x": torch.eye(2).to_sparse()}, "'x' in .* is no dense tensor"),
        ({"x": huge()}, "'x' in .* is no dense tensor"),
        ({"x": torch.ones(2, device="meta")}, "'x' in .* is no dense tensor"),
    ],
)
def test_anything_but_tensors_is_refused(tmp_path: Path, state: Any, message: str) -> None:
    folder = write_pickled(tmp_path / "model", state)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(folder, pickle=True)
    assert str(folder / "pytorch_model.bin") in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x02.", b"garbage" * 99])
def test_what_is_no_pickle_is_one_line(tmp_path: Path, content: bytes) -> None:
    folder = write_pickled(tmp_path / "model", {"x": torch.ones(2)})
    (folder / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"cannot be loaded as plain tensors|no mapping") as caught:
        open_checkpoint(folder, pickle=True)
    assert str(caught.value).isprintable()


def test_an_archive_cut_short_is_one_line(tmp_path: Path) -> None:
    folder = write_pickled(tmp_path / "model", {"x": torch.ones(2000)})
    file = folder / "pytorch_model.bin"
    whole = file.read_bytes()
    with zipfile.ZipFile(file) as archive:
        assert any(name.endswith("data.pkl") for name in archive.namelist())
    for size in (len(whole) - 1, len(whole) // 2, 100):
        file.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="cannot be loaded as plain tensors"):
            open_checkpoint(folder, pickle=True)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    folder = write_pickled(tmp_path / "model", {"x": torch.ones(2), "y": torch.ones(2)}, shards=2)
    torch.save({"x": torch.zeros(2)}, folder / "pytorch_model-00002-of-00002.bin")
    with pytest.raises(CheckpointError, match=r"tensor 'x' is in .* and in another shard"):
        open_checkpoint(folder, pickle=True)


def test_an_index_is_read_with_the_same_suspicion(tmp_path: Path) -> None:
    folder = write_pickled(tmp_path / "model", drawn(0), shards=2)
    (folder / INDEX).write_text(json.dumps({"weight_map": {"x": "../a.bin"}}))
    for asked in (False, True):
        with pytest.raises(CheckpointError, match="names a shard outside its folder"):
            open_checkpoint(folder, pickle=asked)


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = write_pickled(tmp_path / "model", drawn(0))
    (folder / "pytorch_model.bin").rename(tmp_path / "elsewhere")
    (folder / "pytorch_model.bin").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="is a link out of its folder"):
        open_checkpoint(folder, pickle=True)


def test_no_space_for_the_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scratch: Path) -> None:
    folder = write_pickled(tmp_path / "model", drawn(0))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(CheckpointError, match=r"cannot be converted in .*TMPDIR.*No space left on device"):
        open_checkpoint(folder, pickle=True)
    assert list(scratch.iterdir()) == []


def test_the_hash_is_that_of_the_same_weights(tmp_path: Path) -> None:
    """And what is kept beside the weights belongs to the pickled files, not to the copy."""
    folder = write_pickled(tmp_path / "model", drawn(0))
    old = (folder / "pytorch_model.bin").stat().st_mtime - 3600
    os.utime(folder / "pytorch_model.bin", (old, old))
    plain = write_raw(tmp_path / "plain", drawn(0))
    (plain / "config.json").write_text("{}")
    assert checkpoint_signature(open_checkpoint(folder, pickle=True)) == folder_signature(plain)
    assert kept_fingerprint(open_checkpoint(folder, pickle=True))
    torch.save(drawn(1), folder / "pytorch_model.bin")
    assert kept_fingerprint(open_checkpoint(folder, pickle=True)) is None


def test_a_recipe_may_ask_for_it(tmp_path: Path) -> None:
    base = drawn(0)
    sources = {name: tuned(base, seed) for seed, name in enumerate(("de-DE", "sw-KE"), start=1)}
    plain = {
        name: write_raw(tmp_path / "plain" / name, state) for name, state in {"base": base, **sources}.items()
    }
    pickled = {
        name: write_pickled(tmp_path / name, state) for name, state in {"base": base, **sources}.items()
    }
    for name, folder in pickled.items():
        (folder / "config.json").write_bytes((plain[name] / "config.json").read_bytes())

    def recipe(folders: dict[str, Path], **more: Any) -> Recipe:
        named = {name: folders[name] for name in sources}
        return Recipe(base=folders["base"], sources=named, method="task_arithmetic", **more)

    with pytest.raises(PlanError, match="only pickled weights") as caught:
        make_plan(recipe(pickled))
    assert len(caught.value.faults) == 3
    expected = read_raw(merge(recipe(plain), tmp_path / "expected"))
    found = read_raw(merge(recipe(pickled, pickle=True), tmp_path / "found"))
    assert {name: one.tolist() for name, one in found.items()} == {n: t.tolist() for n, t in expected.items()}
    records = [json.loads((tmp_path / out / "langmerge.json").read_text()) for out in ("expected", "found")]
    assert records[0]["hashes"] == records[1]["hashes"]
