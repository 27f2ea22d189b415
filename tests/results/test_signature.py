import os
import shutil
from pathlib import Path

import pytest

from langmerge.results import folder_signature, signature
from tests.tiny import drawn, write_raw


def test_a_signature_is_twelve_digits_of_the_content() -> None:
    found = signature({"a": 1, "b": [2, {"c": None}]})
    assert len(found) == 12
    assert int(found, 16) >= 0
    assert found == signature({"b": [2, {"c": None}], "a": 1})


@pytest.mark.parametrize(
    "other", [{"a": 2}, {"b": 1}, {"a": 1, "b": None}, {"a": [1]}, {"a": "1"}, {"a": 1.5}]
)
def test_other_content_has_another_signature(other: dict[str, object]) -> None:
    assert signature(other) != signature({"a": 1})


def test_the_order_of_a_list_matters() -> None:
    assert signature([1, 2]) != signature([2, 1])


def test_a_folder_is_its_contents(tmp_path: Path) -> None:
    one = write_raw(tmp_path / "one", drawn(0))
    two = shutil.copytree(one, tmp_path / "deeper" / "two")
    assert folder_signature(one) == folder_signature(two)
    (two / "notes.txt").write_text("beside the model")
    assert folder_signature(one) == folder_signature(two)


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors", "more.safetensors"])
def test_every_file_of_the_model_counts(tmp_path: Path, file: str) -> None:
    folder = write_raw(tmp_path / "model", drawn(0))
    before = folder_signature(folder)
    (folder / file).write_bytes(b"another")
    assert folder_signature(folder) != before


def test_files_are_hashed_once_until_they_change(tmp_path: Path) -> None:
    folder = write_raw(tmp_path / "model", drawn(0))
    first = folder_signature(folder)
    weights = folder / "model.safetensors"
    stat = weights.stat()
    # Same size and time: the kept hash is trusted.
    weights.write_bytes(bytes(stat.st_size))
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert folder_signature(folder) == first
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert folder_signature(folder) != first


def test_a_broken_kept_hash_is_not_trusted(tmp_path: Path) -> None:
    folder = write_raw(tmp_path / "model", drawn(0))
    first = folder_signature(folder)
    for kept in folder.glob(".*.sha256"):
        kept.write_text(kept.read_text()[:-9])
    assert folder_signature(folder) == first


def test_a_folder_that_cannot_be_written_is_signed_all_the_same(tmp_path: Path) -> None:
    folder = write_raw(tmp_path / "model", drawn(0))
    expected = folder_signature(shutil.copytree(folder, tmp_path / "copy"))
    for file in ("model.safetensors", "config.json"):
        # A folder in the place of the kept hash: it can be neither read as text nor replaced.
        (folder / f".{file}.sha256").unlink(missing_ok=True)
        (folder / f".{file}.sha256").symlink_to(tmp_path / "nowhere" / file)
    assert folder_signature(folder) == expected
