import errno
import json
import os
import random
import shutil
import threading
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from langmerge.checkpoint import Slot, WeightWriter, new_folder, open_checkpoint
from langmerge.checkpoint.tensors import TORCH_DTYPES
from langmerge.errors import OutputError
from tests.tiny import read_raw

NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}


def mixed() -> dict[str, Tensor]:
    """Tensors of every dtype, a scalar, an empty one and a name that is not ASCII."""
    some = {f"x.{name}": torch.arange(6).reshape(2, 3).to(dtype) for name, dtype in TORCH_DTYPES.items()}
    some["x.BOOL"] = torch.tensor([True, False, True])
    return some | {
        "scalar": torch.tensor(1.5),
        "none": torch.zeros(0, 3),
        "gewöhnlich": torch.randn(5, generator=torch.Generator().manual_seed(0)),
    }


def slots(tensors: dict[str, Tensor]) -> list[Slot]:
    return [Slot(name, tuple(one.shape), NAMES[one.dtype]) for name, one in tensors.items()]


def stored(one: Tensor) -> bytes:
    return one.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if one.numel() else b""


def write(folder: Path, tensors: dict[str, Tensor], **options: int) -> None:
    with WeightWriter(folder, slots(tensors), **options) as writer:
        for name, one in tensors.items():
            writer.write(name, 0, stored(one))


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        (one.dtype, one.shape, stored(one)) == (second[name].dtype, second[name].shape, stored(second[name]))
        for name, one in first.items()
    )


def test_one_file_holds_what_save_file_writes(tmp_path: Path) -> None:
    tensors = mixed()
    save_file(tensors, tmp_path / "theirs.safetensors")
    (tmp_path / "ours").mkdir()
    write(tmp_path / "ours", tensors)
    assert [file.name for file in (tmp_path / "ours").iterdir()] == ["model.safetensors"]
    found = load_file(tmp_path / "ours" / "model.safetensors")
    assert same(found, load_file(tmp_path / "theirs.safetensors"))
    with safe_open(tmp_path / "ours" / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("max_shard", [1, 40, 100, 1000])
def test_the_size_of_shards_changes_no_tensor(tmp_path: Path, max_shard: int) -> None:
    tensors = mixed()
    write(tmp_path, tensors, max_shard=max_shard)
    assert same(read_raw(tmp_path), tensors)
    (tmp_path / "config.json").write_text("{}")
    opened = open_checkpoint(tmp_path)
    assert same({name: opened.read(name) for name in opened.tensors}, tensors)
    files = sorted(tmp_path.glob("*.safetensors"))
    if max_shard == 1000:
        assert [file.name for file in files] == ["model.safetensors"]
        return
    assert [file.name for file in files] == [
        f"model-{number:05d}-of-{len(files):05d}.safetensors" for number in range(1, len(files) + 1)
    ]
    assert len(files) > 2
    for file in files:
        held = list(load_file(file).values())
        assert sum(one.nbytes for one in held) <= max_shard or sum(one.numel() > 0 for one in held) == 1
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(one.nbytes for one in tensors.values())
    assert index["weight_map"] == {name: file.name for file in files for name in load_file(file)}


def test_every_tensor_begins_where_its_dtype_may(tmp_path: Path) -> None:
    tensors = mixed()
    write(tmp_path, tensors)
    (tmp_path / "config.json").write_text("{}")
    for info in open_checkpoint(tmp_path).tensors.values():
        assert info.offset % tensors[info.name].element_size() == 0


def test_any_order_of_pieces_from_any_thread_gives_the_same_bytes(tmp_path: Path) -> None:
    tensors = {name: torch.arange(1000.0) * i for i, name in enumerate("abcd")}
    for place in ("whole", "pieces"):
        (tmp_path / place).mkdir()
    write(tmp_path / "whole", tensors, max_shard=9000)
    pieces = [(name, start) for name in tensors for start in range(0, 4000, 100)]
    random.Random(0).shuffle(pieces)
    with WeightWriter(tmp_path / "pieces", slots(tensors), max_shard=9000) as writer:

        def work(number: int) -> None:
            for name, start in pieces[number::4]:
                writer.write(name, start, stored(tensors[name])[start : start + 100])

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for file in (tmp_path / "whole").iterdir():
        assert file.read_bytes() == (tmp_path / "pieces" / file.name).read_bytes()


def test_short_writes_are_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system may write less than it is given."""
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, place: pwrite(file, data[:7], place))
    tensors = mixed()
    write(tmp_path, tensors)
    assert same(read_raw(tmp_path), tensors)


@pytest.mark.parametrize(("start", "size"), [(0, 12), (4, 8), (8, 1), (-4, 4)])
def test_no_tensor_is_written_over_by_its_neighbour(tmp_path: Path, start: int, size: int) -> None:
    planned = [Slot("a", (2,), "F32"), Slot("b", (2,), "F32")]
    with pytest.raises(ValueError, match=rf"tensor 'a' has 8 bytes, not {start} \+ {size}"):  # noqa: SIM117
        with WeightWriter(tmp_path, planned) as writer:
            writer.write("a", start, bytes(size))


def test_what_is_missing_is_found_out_at_the_end(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="12 of 20 bytes were written"):  # noqa: SIM117
        with WeightWriter(tmp_path, [Slot("a", (2,), "F32"), Slot("b", (3,), "F32")]) as writer:
            writer.write("b", 0, bytes(12))


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


linux = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are counted in /proc")


@linux
@pytest.mark.parametrize("fails", [False, True])
def test_files_are_closed_however_it_ends(tmp_path: Path, fails: bool) -> None:
    before = open_files()
    try:
        with WeightWriter(tmp_path, [Slot(name, (2,), "F32") for name in "ab"], max_shard=8) as writer:
            assert open_files() == before + 2
            writer.write("a", 0, bytes(8))
            if fails:
                raise RuntimeError
            writer.write("b", 0, bytes(8))
    except RuntimeError:
        assert fails
    assert open_files() == before
    assert (tmp_path / "model.safetensors.index.json").exists() is not fails


Usage = namedtuple("Usage", "total used free")


def test_the_space_is_looked_at_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(2_000_000_000, 0, 399_000_000))
    planned = [Slot("a", (100_000_000,), "F32")]
    message = r"the output needs 400.0 MB, the disk has 399.0 MB left: make room, or choose another disk"
    with pytest.raises(OutputError, match=message), new_folder(tmp_path / "out") as folder:
        WeightWriter(folder, planned)
    assert list(tmp_path.iterdir()) == []


@linux
def test_a_disk_that_has_less_than_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quota, or somebody else: space is taken before anything is merged, and given back."""
    taken = os.posix_fallocate
    before = open_files()

    def full(file: int, start: int, size: int) -> None:
        if open_files() > before + 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken(file, start, size)

    monkeypatch.setattr(os, "posix_fallocate", full)
    planned = [Slot(str(i), (2,), "F32") for i in range(9)]
    message = "output .*/out cannot be written: No space left on device"
    with pytest.raises(OutputError, match=message), new_folder(tmp_path / "out") as folder:
        WeightWriter(folder, planned, max_shard=8)
    assert list(tmp_path.iterdir()) == []
    assert open_files() == before


def test_a_disk_that_fills_up_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite, left = os.pwrite, [3]

    def full(file: int, data: memoryview, place: int) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(file, data, place)

    monkeypatch.setattr(os, "pwrite", full)
    message = "output .*/out cannot be written: No space left on device"
    with pytest.raises(OutputError, match=message), new_folder(tmp_path / "out") as folder:
        write(folder, mixed())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS])
def test_a_file_system_that_takes_no_space_beforehand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def unable(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "posix_fallocate", unable, raising=False)
    write(tmp_path, mixed())
    assert same(read_raw(tmp_path), mixed())


def test_a_small_disk(small_disk: Path) -> None:
    """A real one of 1 MB: what is too large is refused, leaves nothing, and what fits is written."""
    large = [Slot("a", (1 << 19,), "F32")]
    with pytest.raises(OutputError, match=r"needs 2\.1 MB, the disk has 1\.0 MB left"):  # noqa: SIM117
        with new_folder(small_disk / "out") as folder:
            WeightWriter(folder, large)
    (small_disk / "filler").write_bytes(bytes(900_000))
    with pytest.raises(OutputError, match=r"out cannot be written: No space left on device|disk has"):  # noqa: SIM117
        with new_folder(small_disk / "out") as folder:
            (folder / "x").write_bytes(bytes(200_000))
    assert [path.name for path in small_disk.iterdir()] == ["filler"]
    with new_folder(small_disk / "out") as folder:
        write(folder, mixed())
    assert same(read_raw(small_disk / "out"), mixed())
