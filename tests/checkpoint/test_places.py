"""Links, pipes, devices and folders in the place of files, and indexes that lead astray."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from langmerge.checkpoint import open_checkpoint, read_header, read_json
from langmerge.checkpoint.mapping import OPEN_FILES
from langmerge.checkpoint.reader import SMALL
from langmerge.errors import CheckpointError
from tests.tiny import SHAPES, drawn, write_raw

INDEX = "model.safetensors.index.json"


@contextmanager
def refused(message: str) -> Iterator[None]:
    with pytest.raises(CheckpointError, match=message) as caught:
        yield
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600


FILES = (
    "model.safetensors",
    "config.json",
    "tokenizer.json",
    "vocab.txt",
    "spiece.model",
    "chat_template.jinja",
)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "dangling", "circle"])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, name: str, kind: str) -> None:
    folder = write_raw(tmp_path / "model", drawn(0))
    file = folder / name
    file.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    else:
        file.symlink_to({"device": "/dev/zero", "dangling": "nowhere", "circle": name}[kind])
    with refused(f"{name} is no ordinary file"):
        open_checkpoint(folder)


def test_pipes_and_devices_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for file in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with refused("it is no ordinary file"):
            read_header(file)
        with refused("it is no ordinary file"):
            read_json(file)


def test_other_names_in_the_folder_do_not_matter(tmp_path: Path) -> None:
    folder = write_raw(tmp_path / "model", drawn(0))
    (folder / "log").symlink_to("/dev/zero")
    (folder / "runs").mkdir()
    os.mkfifo(folder / "events.out")
    assert open_checkpoint(folder).tensors.keys() == SHAPES.keys()


@pytest.mark.parametrize("name", FILES)
def test_a_link_out_of_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    folder = write_raw(tmp_path / "model", drawn(0))
    secret = tmp_path / "secret"
    secret.write_text("{}")
    (folder / name).unlink(missing_ok=True)
    for target in (secret, Path("../secret")):
        (folder / name).symlink_to(target)
        with refused(f"{name} is a link out of its folder, to .*secret: copy the file"):
            open_checkpoint(folder)
        (folder / name).unlink()


def test_a_shard_that_is_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = write_raw(tmp_path / "model", drawn(0), shards=[sorted(SHAPES)[:3], sorted(SHAPES)[3:]])
    index = json.loads((folder / INDEX).read_text())
    # A name that ends like no weight file: it is looked at because the index names it.
    moved = {
        name: "shard" if file == "model-00001-of-00002.safetensors" else file
        for name, file in index["weight_map"].items()
    }
    (folder / INDEX).write_text(json.dumps({"weight_map": moved}))
    (folder / "model-00001-of-00002.safetensors").rename(folder / "shard")
    assert open_checkpoint(folder).tensors.keys() == SHAPES.keys()
    (folder / "shard").rename(tmp_path / "shard")
    (folder / "shard").symlink_to(tmp_path / "shard")
    with refused("shard is a link out of its folder"):
        open_checkpoint(folder)


def test_a_link_inside_the_folder_is_followed(tmp_path: Path) -> None:
    folder = write_raw(tmp_path / "model", drawn(0))
    (folder / "model.safetensors").rename(folder / "weights-of-step-500")
    (folder / "model.safetensors").symlink_to("weights-of-step-500")
    assert open_checkpoint(folder).tensors.keys() == SHAPES.keys()


@pytest.mark.parametrize("below", ["", "sub/deeper"])
def test_the_hubs_cache_can_be_read(tmp_path: Path, below: str) -> None:
    """snapshots/<revision>/[folder of the model/]file → blobs/<hash>."""
    repository = tmp_path / "models--someone--model"
    blobs, snapshot = repository / "blobs", repository / "snapshots" / "0123abc" / below
    blobs.mkdir(parents=True)
    plain = write_raw(tmp_path / "plain", drawn(0))
    snapshot.mkdir(parents=True)
    for number, name in enumerate(("config.json", "model.safetensors")):
        (plain / name).rename(blobs / str(number))
        (snapshot / name).symlink_to(os.path.relpath(blobs / str(number), snapshot))
    assert open_checkpoint(snapshot).tensors.keys() == SHAPES.keys()
    (snapshot / "config.json").unlink()
    (tmp_path / "config.json").write_text("{}")
    (snapshot / "config.json").symlink_to(tmp_path / "config.json")
    with refused("config.json is a link out of its folder"):
        open_checkpoint(snapshot)


def test_a_folder_may_be_a_link(tmp_path: Path) -> None:
    write_raw(tmp_path / "far" / "model", drawn(0))
    (tmp_path / "link").symlink_to("far/model")
    (tmp_path / "parent").symlink_to("far")
    for folder in (tmp_path / "link", tmp_path / "parent" / "model"):
        assert open_checkpoint(folder).folder == folder
        assert open_checkpoint(folder).read("classifier.out_proj.bias").shape == (3,)


@pytest.mark.parametrize(
    "shard",
    ["../a.safetensors", "sub/a.safetensors", "/a.safetensors", "..", ".", "", "sub\\a.safetensors", "a\nb", "a\0b",
     "a\ud800", "a" * 2000, "a" * 1_000_000],
)  # fmt: skip
def test_shards_outside_the_folder_are_refused(tmp_path: Path, shard: str) -> None:
    folder = write_raw(tmp_path / "model", drawn(0))
    (folder / "model.safetensors").unlink()
    (folder / "sub").mkdir()
    for place in (tmp_path, folder / "sub"):
        save_file({"x": torch.ones(2)}, place / "a.safetensors")
    named = str(tmp_path) + shard if shard.startswith("/") else shard
    (folder / INDEX).write_text(json.dumps({"weight_map": {"x": named}}))
    with refused("names a shard outside its folder|is not valid JSON"):
        open_checkpoint(folder)


def test_a_shard_whose_name_is_too_long_for_the_system(tmp_path: Path) -> None:
    folder = write_raw(tmp_path / "model", drawn(0))
    (folder / "model.safetensors").unlink()
    (folder / INDEX).write_text(json.dumps({"weight_map": {"x": "a" * 999}}))
    with refused("lists 'aaa.*…, which does not exist"):
        open_checkpoint(folder)


def test_weights_that_are_there_twice_are_not_chosen_between(tmp_path: Path) -> None:
    folder = write_raw(tmp_path / "model", drawn(0), shards=[sorted(SHAPES)])
    assert open_checkpoint(folder).tensors.keys() == SHAPES.keys()
    save_file({"x": torch.ones(2)}, folder / "model.safetensors")
    with refused("has its weights twice, in model.safetensors and as .*index.json says: remove one"):
        open_checkpoint(folder)
    # An index may name the single file.
    (folder / INDEX).write_text(json.dumps({"weight_map": {"x": "model.safetensors"}}))
    assert open_checkpoint(folder).tensors.keys() == {"x"}


@pytest.mark.parametrize("folder", ["a" * 300, "a\0b", "a/" * 3000])
def test_a_folder_that_cannot_be(tmp_path: Path, folder: str) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        open_checkpoint(tmp_path / folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{" * 100_000, "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b'{"a": "\\ud800"}', "is not valid JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is not valid JSON"),
        (b'"a"', "holds no JSON object"),
        (b"", "is not valid JSON"),
    ],
)  # fmt: skip
def test_hostile_json_is_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with refused(message):
        read_json(tmp_path / "x.json")


def test_json_of_any_size_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "x.json").open("wb") as handle:
        handle.truncate(1 << 40)
    with refused("has more than 100000000 bytes"):
        read_json(tmp_path / "x.json")


def test_a_character_outside_the_basic_plane_may_be_escaped(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"a": "\\ud83d\\ude00"}')
    assert read_json(tmp_path / "x.json") == {"a": "😀"}


Change = Callable[[Path], None]


def shorter(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 4)


def longer(file: Path) -> None:
    os.truncate(file, file.stat().st_size + 4)


def empty(file: Path) -> None:
    os.truncate(file, 0)


def rewritten(file: Path) -> None:
    later = file.stat().st_mtime_ns + 1_000_000_000
    file.write_bytes(file.read_bytes())
    os.utime(file, ns=(later, later))


@pytest.mark.parametrize("change", [shorter, longer, empty, rewritten, Path.unlink])
def test_a_file_that_changes_between_opening_and_reading(tmp_path: Path, change: Change) -> None:
    large = {"large": torch.zeros(SMALL // 4 + 1)}
    opened = open_checkpoint(write_raw(tmp_path / "model", drawn(0) | large))
    file = tmp_path / "model" / "model.safetensors"
    change(file)
    looks = [
        lambda: opened.array("large"),
        lambda: opened.array("classifier.out_proj.bias"),
        lambda: opened.mapped(file),
        opened.check_unchanged,
    ]
    for look in looks:
        with refused(r"model\.safetensors (has changed since it was opened|cannot be read)"):
            look()


def test_a_file_that_is_replaced_by_a_rename_is_read_on(tmp_path: Path) -> None:
    folder, tensors = write_raw(tmp_path / "model", drawn(0)), drawn(0)
    opened = open_checkpoint(folder)
    info = opened.tensors["classifier.out_proj.bias"]
    opened.mapped(info.file)
    save_file(drawn(1), tmp_path / "new")
    (tmp_path / "new").replace(folder / "model.safetensors")
    found = np.frombuffer(opened.mapped(info.file), np.float32, info.entries, info.offset)
    assert found.tolist() == tensors[info.name].tolist()
    with refused("has changed since it was opened"):
        opened.check_unchanged()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are counted in /proc")
def test_few_files_are_open_at_once(tmp_path: Path) -> None:
    """One descriptor for each mapped file: a large model has more shards than some systems allow."""
    tensors = {f"x{i:02d}": torch.full((2,), float(i)) for i in range(3 * OPEN_FILES)}
    opened = open_checkpoint(write_raw(tmp_path / "model", tensors, shards=[[name] for name in tensors]))
    before = len(list(Path("/proc/self/fd").iterdir()))
    infos = list(opened.tensors.values())
    for info in infos:
        opened.mapped(info.file)
    assert len(list(Path("/proc/self/fd").iterdir())) - before == OPEN_FILES
    # What is held stays valid after its file was let go.
    held = [np.frombuffer(opened.mapped(i.file), np.float32, i.entries, i.offset) for i in infos]
    assert [one.tolist() for one in held] == [[float(i), float(i)] for i in range(3 * OPEN_FILES)]
    del held
    opened.files.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
