import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from langmerge.checkpoint import DTYPES, Slot, check_output, new_folder, open_checkpoint, write_weights
from langmerge.errors import OutputError
from tests.tiny import read_raw

NAMES = {dtype: name for name, dtype in DTYPES.items()}


def mixed() -> dict[str, Tensor]:
    """Tensors of every dtype, a scalar, an empty one and a name that is not ASCII."""
    some = {f"x.{name}": torch.arange(6).reshape(2, 3).to(dtype) for name, dtype in DTYPES.items()}
    some["x.BOOL"] = torch.tensor([True, False])
    return some | {
        "scalar": torch.tensor(1.5),
        "none": torch.zeros(0, 3),
        "gewöhnlich": torch.randn(5, generator=torch.Generator().manual_seed(0)),
    }


def slots(tensors: dict[str, Tensor]) -> list[Slot]:
    return [Slot(name, tuple(one.shape), NAMES[one.dtype]) for name, one in tensors.items()]


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    def bits(one: Tensor) -> bytes:
        return one.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if one.numel() else b""

    return first.keys() == second.keys() and all(
        one.dtype == second[name].dtype
        and one.shape == second[name].shape
        and bits(one) == bits(second[name])
        for name, one in first.items()
    )


def test_one_file_holds_what_save_file_writes(tmp_path: Path) -> None:
    tensors = mixed()
    save_file(tensors, tmp_path / "theirs.safetensors")
    (tmp_path / "ours").mkdir()
    write_weights(tmp_path / "ours", slots(tensors), iter(tensors.values()))
    assert [file.name for file in (tmp_path / "ours").iterdir()] == ["model.safetensors"]
    found = load_file(tmp_path / "ours" / "model.safetensors")
    assert same(found, load_file(tmp_path / "theirs.safetensors"))
    with safe_open(tmp_path / "ours" / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("max_shard", [1, 40, 100, 1000])
def test_the_size_of_shards_changes_no_tensor(tmp_path: Path, max_shard: int) -> None:
    tensors = mixed()
    write_weights(tmp_path, slots(tensors), iter(tensors.values()), max_shard=max_shard)
    assert same(read_raw(tmp_path), tensors)
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
    (tmp_path / "config.json").write_text("{}")
    assert open_checkpoint(tmp_path).tensors.keys() == tensors.keys()


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16", "F8_E4M3"])
def test_the_stored_dtype_is_chosen_at_the_write(tmp_path: Path, dtype: str) -> None:
    tensor = torch.randn(50, generator=torch.Generator().manual_seed(0))
    write_weights(tmp_path, [Slot("x", (50,), dtype)], iter([tensor]))
    assert same(read_raw(tmp_path), {"x": tensor.to(DTYPES[dtype])})


def test_a_view_is_written_as_it_looks(tmp_path: Path) -> None:
    tensor = torch.arange(6.0).reshape(2, 3).T
    write_weights(tmp_path, [Slot("x", (3, 2), "F32")], iter([tensor]))
    assert read_raw(tmp_path)["x"].tolist() == [[0, 3], [1, 4], [2, 5]]


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(2,)], r"tensor 'b': planned \(3,\), got nothing"),
        ([(2,), (2,)], r"tensor 'b': planned \(3,\), got \(2,\)"),
        ([(2,), (3,), (1,)], "more tensors than the 2 planned"),
    ],
)
def test_what_comes_must_be_what_was_planned(
    tmp_path: Path, shapes: list[tuple[int, ...]], message: str
) -> None:
    planned = [Slot("a", (2,), "F32"), Slot("b", (3,), "F32")]
    with pytest.raises(ValueError, match=message):
        write_weights(tmp_path, planned, (torch.zeros(shape) for shape in shapes))


def test_tensors_are_written_as_they_come(tmp_path: Path) -> None:
    """When the third tensor is asked for, the first two are in their files and no longer needed."""
    sizes = []

    def stream() -> Iterator[Tensor]:
        for _ in range(4):
            sizes.append(sum(file.stat().st_size for file in tmp_path.glob("*.safetensors")))
            yield torch.zeros(100_000)
        sizes.append(-1)

    write_weights(tmp_path, [Slot(name, (100_000,), "F32") for name in "abcd"], stream(), max_shard=400_000)
    assert sizes[2] > 800_000 > sizes[1] > 400_000 > sizes[0]
    assert sizes[4] == -1, "the stream was not asked to finish"


def test_the_folder_appears_when_the_block_ends(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with new_folder(out) as folder:
        (folder / "x").write_text("new")
        assert not out.exists()
    assert (out / "x").read_text() == "new"
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_the_folder_has_ordinary_permissions(tmp_path: Path) -> None:
    with new_folder(tmp_path / "out"):
        pass
    (tmp_path / "ordinary").mkdir()
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == stat.S_IMODE(
        (tmp_path / "ordinary").stat().st_mode
    )


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, StopIteration])
@pytest.mark.parametrize("overwrite", [False, True])
def test_an_exception_leaves_nothing(tmp_path: Path, error: type[BaseException], overwrite: bool) -> None:
    with pytest.raises(error), new_folder(tmp_path / "out", overwrite=overwrite) as folder:  # noqa: PT012
        (folder / "x").write_text("new")
        raise error
    assert list(tmp_path.iterdir()) == []


def existing(tmp_path: Path) -> Path:
    out = tmp_path / "out"
    (out / "sub").mkdir(parents=True)
    (out / "sub" / "old").write_text("old")
    return out


def test_what_is_there_stays_unless_overwriting_is_asked_for(tmp_path: Path) -> None:
    out = existing(tmp_path)
    entered = False
    with pytest.raises(OutputError, match=r"output .*/out exists already.*--overwrite"), new_folder(out):
        entered = True
    assert not entered
    assert (out / "sub" / "old").read_text() == "old"
    assert list(tmp_path.iterdir()) == [out]


def test_overwriting_replaces_the_whole_folder(tmp_path: Path) -> None:
    out = existing(tmp_path)
    with new_folder(out, overwrite=True) as folder:
        (folder / "x").write_text("new")
        assert (out / "sub" / "old").exists()
    assert [path.name for path in out.iterdir()] == ["x"]
    assert list(tmp_path.iterdir()) == [out]


def test_an_exception_while_overwriting_leaves_the_old(tmp_path: Path) -> None:
    out = existing(tmp_path)
    with pytest.raises(RuntimeError), new_folder(out, overwrite=True):
        raise RuntimeError
    assert (out / "sub" / "old").read_text() == "old"
    assert list(tmp_path.iterdir()) == [out]


def test_a_failed_exchange_brings_the_old_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = existing(tmp_path)
    rename = Path.rename
    calls = []

    def failing(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == 2:
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OutputError, match="Input/output error"), new_folder(out, overwrite=True):
        pass
    assert (out / "sub" / "old").read_text() == "old"
    assert list(tmp_path.iterdir()) == [out]


KILLED = """
import os, signal, sys
from pathlib import Path
from langmerge.checkpoint import Slot, new_folder, write_weights
import torch
def stream():
    yield torch.ones(9)
    os.kill(os.getpid(), signal.SIGKILL)
fresh, there = (Path(place) for place in sys.argv[1:])
with new_folder(fresh), new_folder(there, overwrite=True) as folder:
    write_weights(folder, [Slot("a", (9,), "F32"), Slot("b", (9,), "F32")], stream())
"""


def test_a_killed_process_leaves_no_output(tmp_path: Path) -> None:
    fresh, there = tmp_path / "fresh", existing(tmp_path)
    ended = subprocess.run([sys.executable, "-c", KILLED, str(fresh), str(there)], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert not fresh.exists()
    assert [path.name for path in there.iterdir()] == ["sub"]
    # What the killed run left behind is hidden, and does not stand in the way of the next.
    left = [path.name for path in tmp_path.iterdir() if path != there]
    assert len(left) == 2
    assert all(name.startswith((".fresh.", ".out.")) for name in left)
    for out in (fresh, there):
        with new_folder(out, overwrite=True) as folder:
            (folder / "x").write_text("new")
        assert [path.name for path in out.iterdir()] == ["x"]


def test_a_place_below_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file" / "out", tmp_path / "file" / "deeper" / "out"):
        with pytest.raises(OutputError, match=r"cannot be written: .*/file is not a folder") as caught:
            check_output(out)
        assert "\n" not in str(caught.value)
        with pytest.raises(OutputError, match="cannot be written"), new_folder(out):
            pass


def test_a_file_is_never_replaced_by_a_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(OutputError, match=r"exists already|is a file"):
            check_output(tmp_path / "out", overwrite=overwrite)


def test_a_link_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("link", "dangling"):
        for overwrite in (False, True):
            with pytest.raises(OutputError, match=r"exists already|a link"):
                check_output(tmp_path / name, overwrite=overwrite)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="not a folder one may write to"):
        check_output(tmp_path / "out")


def test_trouble_with_the_disk_is_an_output_error(tmp_path: Path) -> None:
    message = r"output .*/out cannot be written: No space left on device"
    with pytest.raises(OutputError, match=message), new_folder(tmp_path / "out"):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []
