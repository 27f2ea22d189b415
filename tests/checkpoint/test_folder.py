"""Output appears by one rename, whole or not at all; leftovers go, what lives stays."""

import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from langmerge.checkpoint import check_output, new_folder
from langmerge.checkpoint import folder as module
from langmerge.checkpoint.folder import Workplace, leftovers
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


KILLED = """
import os, signal, sys
from pathlib import Path
from langmerge.checkpoint import new_folder
fresh, there = (Path(place) for place in sys.argv[1:])
with new_folder(fresh), new_folder(there, overwrite=True) as folder:
    (folder / "half").write_text("new")
    os.kill(os.getpid(), signal.SIGKILL)
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
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fresh", "out"]


def leftover(
    parent: Path, name: str, *, random: str = "abcd_123", old: bool = False, lock: bool = True
) -> Path:
    """What a run leaves that is killed while it writes."""
    own = parent / f".{name}.{random}.tmp"
    (own / "new" / "deep").mkdir(parents=True)
    (own / "new" / "deep" / "x").write_text("half")
    if old:
        (own / "old").mkdir()
        (own / "old" / "x").write_text("old")
    if lock:
        (own / "lock").touch()
    return own


def test_leftovers_are_removed_by_the_next_run_to_the_same_output(tmp_path: Path) -> None:
    for number in range(3):
        leftover(tmp_path, "out", random=f"abcdefg{number}")
    (tmp_path / ".out.abcdefgh.tmp").mkdir()
    with new_folder(tmp_path / "out"):
        assert len(list(tmp_path.iterdir())) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_leftovers_go_though_the_next_run_fails(tmp_path: Path) -> None:
    leftover(tmp_path, "out")
    with pytest.raises(RuntimeError), new_folder(tmp_path / "out"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["other", "out.more", "ou", "out.abcd_123.tmp", "*", "o?t", "[out]"])
def test_what_belongs_to_another_output_stays(tmp_path: Path, name: str) -> None:
    own = leftover(tmp_path, name)
    with new_folder(tmp_path / "out"):
        pass
    assert own.exists()
    with new_folder(tmp_path / name):
        pass
    assert not own.exists()


def test_what_only_looks_like_a_leftover_stays(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "x").write_text("precious")
    (tmp_path / ".out.abcdefg1.tmp").symlink_to(tmp_path / "mine")
    (tmp_path / ".out.abcdefg2.tmp").write_text("precious")
    own = leftover(tmp_path, "out", random="abcdefg3", lock=False)
    short = leftover(tmp_path, "out", random="short")
    with new_folder(tmp_path / "out"):
        pass
    assert (tmp_path / "mine" / "x").read_text() == "precious"
    assert (tmp_path / ".out.abcdefg1.tmp").is_symlink()
    assert (tmp_path / ".out.abcdefg2.tmp").is_file()
    assert own.exists(), "it has no lock: it is none of ours"
    assert short.exists()


def test_a_living_run_keeps_its_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with new_folder(out) as first:
        (first / "x").write_text("first")
        with new_folder(out) as second:
            assert first != second
            (second / "x").write_text("second")
        assert (first / "x").exists()
        assert (out / "x").read_text() == "second"
        shutil.rmtree(out)
    assert (out / "x").read_text() == "first"
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("kind", ["pipe", "link", "folder"])
def test_a_lock_that_is_none_is_not_waited_for(tmp_path: Path, kind: str) -> None:
    own = leftover(tmp_path, "out", lock=False)
    if kind == "pipe":
        os.mkfifo(own / "lock")
    elif kind == "link":
        (own / "lock").symlink_to(tmp_path / "nowhere")
    else:
        (own / "lock").mkdir()
    with new_folder(tmp_path / "out"):
        pass
    assert not (tmp_path / "nowhere").exists()


def test_an_old_output_that_stepped_aside_comes_back(tmp_path: Path) -> None:
    """Without renameat2 a kill between two renames leaves no output: the next run puts the old one back."""
    out = tmp_path / "out"
    own = leftover(tmp_path, "out", old=True)
    with pytest.raises(RuntimeError), new_folder(out):
        raise RuntimeError
    assert (out / "x").read_text() == "old"
    assert not own.exists()


def test_an_old_output_is_not_put_over_a_new_one(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "x").write_text("new")
    own = leftover(tmp_path, "out", old=True)
    with pytest.raises(RuntimeError), new_folder(out, overwrite=True):
        raise RuntimeError
    assert (out / "x").read_text() == "new"
    assert not own.exists()


def test_a_new_folder_that_is_taken_for_a_leftover_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The moment between making a folder and locking it: another run finds it empty and removes it."""
    mkdtemp, made = tempfile.mkdtemp, []

    def raced(**options: str) -> str:
        made.append(mkdtemp(**options))
        if len(made) < 3:
            assert list(leftovers(tmp_path, "out")) == []
            assert not Path(made[-1]).exists()
        return made[-1]

    monkeypatch.setattr(tempfile, "mkdtemp", raced)
    with new_folder(tmp_path / "out") as folder:
        (folder / "x").write_text("new")
    assert len(made) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_lock_that_is_taken_before_it_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The moment between making the lock file and locking it: another run locks it first, and removes all."""
    import fcntl

    flock, found = fcntl.flock, []

    def raced(file: int, how: int) -> None:
        if not found:
            found.append(None)
            found[:] = list(leftovers(tmp_path, "out"))
            assert len(found) == 1
            if removes_first:
                found[0].remove()
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", raced)
    for removes_first in (True, False):
        found.clear()
        with new_folder(tmp_path / "out", overwrite=True) as folder:
            (folder / "x").write_text("new")
        if not removes_first:
            found[0].remove()
        assert (tmp_path / "out" / "x").exists()
        assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_many_runs_to_one_output_at_once(tmp_path: Path) -> None:
    """Each makes its folder while the others clean up: none loses it, and nothing is left."""
    done = []

    def run(number: int) -> None:
        for _ in range(30):
            with new_folder(tmp_path / "out", overwrite=True) as folder:
                (folder / "x").write_text(str(number))
        done.append(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == list(range(8))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Output is written as ever; leftovers stay, for nobody can tell whether they are."""
    import fcntl

    def unable(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    own = leftover(tmp_path, "out")
    monkeypatch.setattr(fcntl, "flock", unable)
    with new_folder(tmp_path / "out") as folder:
        (folder / "x").write_text("new")
    assert (tmp_path / "out" / "x").exists()
    assert own.exists()


def test_removing_ends_with_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill while a leftover is removed leaves a leftover."""
    seen = []
    rmtree = shutil.rmtree

    def watched(path: Path, **options: bool) -> None:
        rmtree(path, **options)
        seen.append(sorted(entry.name for entry in path.parent.iterdir()))

    work = Workplace.make(tmp_path, "out")
    work.old.mkdir()
    monkeypatch.setattr(shutil, "rmtree", watched)
    work.remove()
    assert seen == [["lock", "old"], ["lock"]]
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_at_the_start_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", full)
        with pytest.raises(OutputError, match="No space left on device"), new_folder(tmp_path / "out"):
            pass
    assert list(tmp_path.iterdir()) == []
    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", full)
        with pytest.raises(OSError, match="No space left"):
            Workplace.make(tmp_path, "out")
    assert list(tmp_path.iterdir()) == []


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
