"""Tiny data sets in MASSIVE's, SIB-200's and the folder task's layouts, and the real ones where they are."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from langmerge.tasks import data_folder

WriteMassive = Callable[..., Path]
WriteLines = Callable[[str, Sequence[str]], Path]


def massive_record(**changes: Any) -> dict[str, Any]:
    """One good record of sw-KE, with changes; a value of None removes the key."""
    record = {
        "id": "0",
        "locale": "sw-KE",
        "partition": "train",
        "scenario": "alarm",
        "intent": "alarm_set",
        "utt": "niamshe saa moja",
        "annot_utt": "niamshe [time : saa moja]",
    }
    return {key: value for key, value in {**record, **changes}.items() if value is not None}


@pytest.fixture
def write_massive(tmp_path: Path) -> WriteMassive:
    """Writes `<tmp>/massive/1.1/data/<name>` and returns the data folder."""

    def write(records: Sequence[Mapping[str, Any] | str], *, name: str = "sw-KE.jsonl") -> Path:
        path = tmp_path / "massive" / "1.1" / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        return tmp_path

    return write


@pytest.fixture
def write_lines(tmp_path: Path) -> WriteLines:
    """Writes a file below `<tmp>/own` and returns that folder."""

    def write(name: str, lines: Sequence[str]) -> Path:
        path = tmp_path / "own" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        return tmp_path / "own"

    return write


@pytest.fixture
def real_data() -> Path:
    """The folder with the real data sets; skips where there is none."""
    folder = data_folder()
    for part in ("massive/1.1/data", "sib200"):
        if not (folder / part).is_dir():
            pytest.skip(f"no real data: {folder / part} does not exist, set LANGMERGE_DATA")
    return folder
