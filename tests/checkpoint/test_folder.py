"""Output appears by one rename, whole or not at all; leftovers go, what lives stays."""

import os
import stat
import sys
import threading
from pathlib import Path

import pytest

from langmerge.checkpoint import check_output, new_folder
from langmerge.checkpoint import folder as module
from langmerge.errors import OutputError


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


@pytest.fixture(params=["exchange", "two renames"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """By the system's call, and without it."""
    if request.param == "two renames":
        monkeypatch.setattr(module, "_rename2", lambda *_: False)
    elif not sys.platform.startswith("linux"):
        pytest.skip("no renameat2")
    return str(request.param)


def test_overwriting_replaces_the_whole_folder(tmp_path: Path, way: str) -> None:
    out = existing(tmp_path)
    with new_folder(out, overwrite=True) as folder:
        (folder / "x").write_text("new")
        assert (out / "sub" / "old").exists()
    assert [path.name for path in out.iterdir()] == ["x"]
    assert list(tmp_path.iterdir()) == [out]


def test_overwriting_is_one_step(tmp_path: Path) -> None:
    """There is no moment without an output: somebody who looks all the time always finds one."""
    if not sys.platform.startswith("linux"):
        pytest.skip("no renameat2")
    out = existing(tmp_path)
    missed, done = [], threading.Event()

    def look() -> None:
        while not done.is_set():
            if not out.exists():
                missed.append(1)

    watcher = threading.Thread(target=look)
    watcher.start()
    for _ in range(200):
        with new_folder(out, overwrite=True) as folder:
            (folder / "x").write_text("new")
    done.set()
    watcher.join()
    assert not missed


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
        if len(calls) == 3:
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(module, "_rename2", lambda *_: False)
    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OutputError, match="Input/output error"), new_folder(out, overwrite=True):
        pass
    assert len(calls) == 4
    assert (out / "sub" / "old").read_text() == "old"
    assert list(tmp_path.iterdir()) == [out]


def test_what_appears_meanwhile_is_not_touched(tmp_path: Path, way: str) -> None:
    out = tmp_path / "out"
    with pytest.raises(OutputError, match="exists already"), new_folder(out):
        existing(tmp_path)
    assert (out / "sub" / "old").read_text() == "old"
    assert list(tmp_path.iterdir()) == [out]


def test_not_even_in_the_last_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another run's output that appears after the last look: rename(2) would replace an empty folder."""
    if not sys.platform.startswith("linux"):
        pytest.skip("no renameat2")
    out = tmp_path / "out"
    with pytest.raises(OutputError, match="File exists"), new_folder(out):
        monkeypatch.setattr(module, "check_output", lambda *_, **__: out.mkdir())
    assert list(tmp_path.iterdir()) == [out]


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
