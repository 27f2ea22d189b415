"""Running the program in this process, as `python -m` would."""

import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from langmerge.cli import main


@dataclass(frozen=True)
class Ran:
    """What a command left behind."""

    code: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command line; arguments may be paths."""

    def ran(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["langmerge", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        found = capsys.readouterr()
        return Ran(int(stopped.value.code or 0), found.out, found.err)

    return ran
