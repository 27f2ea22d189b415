"""What killed runs leave is removed by the next run to the same place; what a living run works in stays."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from langmerge.checkpoint import new_folder
from langmerge.checkpoint.folder import Workplace, leftovers
from langmerge.errors import OutputError
from tests.checkpoint.test_folder import existing

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
    (tmp_path / "mine" / "new").mkdir(parents=True)
    (tmp_path / "mine" / "lock").touch()
    (tmp_path / "mine" / "new" / "x").write_text("precious")
    (tmp_path / ".out.abcdefg1.tmp").symlink_to(tmp_path / "mine")
    (tmp_path / ".out.abcdefg2.tmp").write_text("precious")
    own = leftover(tmp_path, "out", random="abcdefg3", lock=False)
    short = leftover(tmp_path, "out", random="short")
    with new_folder(tmp_path / "out"):
        pass
    assert (tmp_path / "mine" / "new" / "x").read_text() == "precious"
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
        (tmp_path / "somewhere").touch()
        (own / "lock").symlink_to(tmp_path / "somewhere")
    else:
        (own / "lock").mkdir()
    with new_folder(tmp_path / "out"):
        pass
    assert kind == "pipe" or own.exists()


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
            assert folder != found[0].new
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


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are counted in /proc")
def test_locks_are_let_go(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for number in range(3):
        leftover(tmp_path, "out", random=f"abcdefg{number}")
    with new_folder(tmp_path / "out"):
        pass
    assert len(list(Path("/proc/self/fd").iterdir())) == before


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
