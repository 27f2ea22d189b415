import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch

from langmerge.checkpoint import (
    CHUNK,
    checkpoint_signature,
    fingerprint,
    folder_signature,
    kept_fingerprint,
    open_checkpoint,
    tensor_digest,
)
from langmerge.checkpoint.fingerprint import chunk_digests
from langmerge.engine import merge
from langmerge.errors import CheckpointError
from langmerge.recipe import Recipe
from tests.tiny import SHAPES, Tensors, drawn, write_raw, write_raw_pool

KEPT = ".langmerge.fingerprint"
WEIGHTS = "model.safetensors"
NAMES = sorted(SHAPES)


def aged(folder: Path) -> Path:
    """The weights as if they had been there for an hour: what has only just been written is not trusted."""
    for file in folder.glob("*.safetensors"):
        stat = file.stat()
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns - 3_600_000_000_000))
    return folder


def of(folder: Path) -> str:
    return fingerprint(open_checkpoint(folder))


def written(folder: Path, tensors: Tensors, shards: Sequence[Sequence[str]] | None = None) -> str:
    return of(write_raw(folder, tensors, shards=shards))


def test_sharding_and_order_do_not_matter(tmp_path: Path) -> None:
    tensors = drawn(0)
    found = {
        written(tmp_path / "one", tensors),
        written(tmp_path / "reversed", dict(reversed(tensors.items()))),
        written(tmp_path / "three", tensors, [NAMES[:1], NAMES[1:5], NAMES[5:]]),
        written(tmp_path / "each", tensors, [[name] for name in reversed(NAMES)]),
    }
    assert len(found) == 1
    assert len(found.pop()) == 32


def test_everything_else_matters(tmp_path: Path) -> None:
    values = torch.arange(6, dtype=torch.int32)
    some = {
        "name": {"y": values},
        "shape": {"x": values.reshape(2, 3)},
        "dtype": {"x": values.view(torch.float32)},
        "value": {"x": values.flip(0)},
        "sign of zero": {"x": torch.tensor([0, 0x80000000 - 2**32, 2, 3, 4, 5], dtype=torch.int32)},
        "more": {"x": values, "y": values[:0]},
        "as it was": {"x": values},
        "two": {"x": values[:3].clone(), "y": values[3:].clone()},
        "two others": {"x": values[:4].clone(), "y": values[4:].clone()},
    }
    found = {name: written(tmp_path / name, tensors) for name, tensors in some.items()}
    assert len(set(found.values())) == len(some)


def test_a_tensor_longer_than_a_chunk(tmp_path: Path) -> None:
    """Every entry counts, the last of the last chunk too; and the digest is that of the stored bytes in chunks."""
    values = torch.arange(2 * CHUNK + 3).to(torch.bfloat16)
    before = written(tmp_path / "before", {"x": values})
    for place in (0, CHUNK - 1, CHUNK, 2 * CHUNK + 2):
        changed = values.clone()
        changed[place] = -1
        assert written(tmp_path / str(place), {"x": changed}) != before
    stored = open_checkpoint(tmp_path / "before").array("x")
    assert stored.dtype == ml_dtypes.bfloat16
    assert [len(chunk_digests(stored[:n])) for n in (0, 1, CHUNK, CHUNK + 1)] == [0, 1, 1, 2]
    # What begins where a chunk begins can be hashed in stretches: so a merge does it.
    assert chunk_digests(stored) == chunk_digests(stored[:CHUNK]) + chunk_digests(stored[CHUNK:])


def test_digests_given_by_whoever_has_read_the_weights(tmp_path: Path) -> None:
    tensors = drawn(0) | {"long": torch.arange(float(CHUNK + 9)), "none": torch.zeros(0, 3)}
    opened = open_checkpoint(write_raw(tmp_path / "model", tensors))
    given = {name: tensor_digest(chunk_digests(one.numpy().reshape(-1))) for name, one in tensors.items()}
    assert fingerprint(opened, given) == fingerprint(opened)
    # They are used, not compared.
    given["long"] = "0" * 32
    assert fingerprint(opened, given) != fingerprint(opened)


def test_a_merge_takes_the_hash_in_passing(tmp_path: Path) -> None:
    """The receipt's hashes, taken while the tensors were merged, are those of the folders read alone."""
    base, folders = write_raw_pool(tmp_path / "pool")
    out = merge(
        Recipe(base=base, sources=folders, method="ties", parameters={"density": 0.5}), tmp_path / "out"
    )
    hashes = json.loads((out / "langmerge.json").read_text())["hashes"]
    copies = {name: shutil.copytree(folder, tmp_path / name) for name, folder in folders.items()}
    assert hashes["sources"] == {name: folder_signature(copy) for name, copy in copies.items()}
    assert hashes["base"] == folder_signature(base)


def test_the_hash_is_kept_until_a_file_changes(tmp_path: Path) -> None:
    folder = aged(write_raw(tmp_path / "model", drawn(0)))
    assert kept_fingerprint(open_checkpoint(folder)) is None
    first = of(folder)
    assert kept_fingerprint(open_checkpoint(folder)) == first
    weights = folder / WEIGHTS
    stat, content = weights.stat(), weights.read_bytes()
    # Same size and time: the kept hash is trusted.
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert of(folder) == first
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert kept_fingerprint(open_checkpoint(folder)) is None
    assert of(folder) not in (first, None)


def test_every_shard_counts_for_the_kept_hash(tmp_path: Path) -> None:
    folder = aged(write_raw(tmp_path / "model", drawn(0), shards=[NAMES[:2], NAMES[2:]]))
    of(folder)
    assert kept_fingerprint(open_checkpoint(folder))
    os.utime(folder / "model-00001-of-00002.safetensors")
    assert kept_fingerprint(open_checkpoint(folder)) is None


def test_what_was_written_just_now_is_not_kept(tmp_path: Path) -> None:
    """Within one tick of the clock a file may be written twice."""
    folder = write_raw(tmp_path / "model", drawn(0))
    of(folder)
    assert not (folder / KEPT).exists()


def test_a_file_written_to_meanwhile_is_an_error_and_not_a_hash(tmp_path: Path) -> None:
    folder = aged(write_raw(tmp_path / "model", drawn(0)))
    opened = open_checkpoint(folder)
    os.utime(folder / WEIGHTS)
    with pytest.raises(CheckpointError, match="has changed since it was opened"):
        fingerprint(opened, dict.fromkeys(opened.tensors, "0" * 32))
    assert not (folder / KEPT).exists()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"weights": 1}',
        '{"weights": "0"}',
        '{"stamp": [], "weights": "%s"}' % ("0" * 32),
    ],
)
def test_a_broken_kept_hash_is_not_trusted(tmp_path: Path, text: str) -> None:
    folder = aged(write_raw(tmp_path / "model", drawn(0)))
    first = of(folder)
    (folder / KEPT).write_text(text)
    assert of(folder) == first
    assert kept_fingerprint(open_checkpoint(folder)) == first, "it was not written anew"


def test_a_kept_hash_of_another_form_is_not_trusted(tmp_path: Path) -> None:
    folder = aged(write_raw(tmp_path / "model", drawn(0)))
    first = of(folder)
    kept = json.loads((folder / KEPT).read_text())
    for other in ("0" * 31, "g" * 32, ["0"] * 32, 7):
        (folder / KEPT).write_text(json.dumps({**kept, "weights": other}))
        assert of(folder) == first


@pytest.mark.parametrize("kind", ["pipe", "folder", "link", "link to nowhere"])
def test_what_stands_in_the_place_of_the_kept_hash_is_not_followed(tmp_path: Path, kind: str) -> None:
    """A folder from elsewhere may hold a link with that name: nothing must be written through it."""
    folder = aged(write_raw(tmp_path / "model", drawn(0)))
    expected = of(shutil.copytree(folder, tmp_path / "copy"))
    mine = tmp_path / "mine"
    if kind == "link":
        mine.write_text("precious")
    for name in (KEPT, f"{KEPT}.tmp"):
        if kind == "pipe":
            os.mkfifo(folder / name)
        elif kind == "folder":
            (folder / name).mkdir()
        else:
            (folder / name).symlink_to(mine)
    assert of(folder) == expected
    assert mine.exists() is (kind == "link")
    assert kind != "link" or mine.read_text() == "precious"


def test_a_half_written_kept_hash_of_a_killed_run_is_removed(tmp_path: Path) -> None:
    folder = aged(write_raw(tmp_path / "model", drawn(0)))
    (folder / f"{KEPT}.tmp").write_text("{")
    assert of(folder) == kept_fingerprint(open_checkpoint(folder))
    assert sorted(file.name for file in folder.iterdir()) == [KEPT, "config.json", WEIGHTS]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_has_a_hash_all_the_same(tmp_path: Path) -> None:
    folder = aged(write_raw(tmp_path / "model", drawn(0)))
    folder.chmod(0o500)
    assert len(of(folder)) == 32
    assert not (folder / KEPT).exists()


def test_a_disk_that_refuses_the_kept_hash_costs_time_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = aged(write_raw(tmp_path / "model", drawn(0)))
    expected = of(shutil.copytree(folder, tmp_path / "copy"))

    def refused(self: Path, *_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", refused)
    monkeypatch.setattr(Path, "replace", refused)
    assert of(folder) == expected
    assert not (folder / KEPT).exists()


def test_a_model_is_its_weights_config_and_tokenizer(tmp_path: Path) -> None:
    one = write_raw(tmp_path / "one", drawn(0))
    two = Path(shutil.copytree(one, tmp_path / "deeper" / "two"))
    found = folder_signature(one)
    assert len(found) == 12
    assert int(found, 16) >= 0
    assert found == folder_signature(two) == checkpoint_signature(open_checkpoint(two))
    (two / "notes.txt").write_text("beside the model")
    assert folder_signature(two) == found
    seen = {found}
    for name, text in (("tokenizer.json", "{}"), ("tokenizer.json", "{ }"), ("config.json", "{}")):
        (two / name).write_text(text)
        seen.add(folder_signature(two))
    write_raw(two, drawn(1))
    (two / "config.json").write_text("{}")
    seen.add(folder_signature(two))
    assert len(seen) == 5


def test_only_a_model_folder_has_a_signature(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        folder_signature(tmp_path / "nowhere")


def test_an_array_of_any_dtype_is_hashed_by_its_bytes() -> None:
    values = np.arange(5, dtype=np.int16)
    expected = chunk_digests(values.view(np.uint8).view(np.int16))
    assert (
        chunk_digests(values.view(ml_dtypes.bfloat16)) == chunk_digests(values.view(np.float16)) == expected
    )
