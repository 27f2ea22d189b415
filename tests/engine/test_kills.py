"""A kill at any moment leaves the output as it was, or whole. `scripts/kill_merges.py 200` does it more often."""

import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "kill_merges.py"


@pytest.fixture(scope="module")
def kills() -> ModuleType:
    spec = importlib.util.spec_from_file_location("kill_merges", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Its dataclasses look their module up.
    sys.modules["kill_merges"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_ten_merges_killed(kills: ModuleType, tmp_path: Path) -> None:
    tally = kills.run(10, tmp_path, seed=0, methods=["ties"], width=64)
    assert tally.faults == []
    assert tally.kills == 10


def test_the_eye_that_looks_at_outputs_is_not_blind(kills: ModuleType, tmp_path: Path) -> None:
    """What half-written outputs look like."""
    pool, whole = tmp_path / "pool", tmp_path / "whole"
    kills.write_pool(pool, width=16)
    shutil.copytree(pool / "base", whole)
    (whole / "langmerge.json").write_text("{}")

    def fault(change: str) -> str | None:
        out = tmp_path / change
        shutil.copytree(whole, out)
        weights = out / "model.safetensors"
        if change == "no receipt":
            (out / "langmerge.json").unlink()
        elif change == "shorter":
            weights.write_bytes(weights.read_bytes()[:-1])
        elif change == "a byte":
            weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
        elif change == "more":
            (out / "lock").touch()
        elif change == "no weights":
            weights.unlink()
        found: str | None = kills.output_fault(out, [pool / "de-DE", whole])
        return found

    assert fault("nothing") is None
    for change in ("no receipt", "shorter", "a byte", "more", "no weights"):
        assert fault(change), change


def test_nor_to_what_is_left(kills: ModuleType, tmp_path: Path) -> None:
    pool, work = tmp_path / "pool", tmp_path / "work"
    kills.write_pool(pool, width=16)
    (work / "out").mkdir(parents=True)
    (pool / "base" / ".langmerge.fingerprint").touch()
    assert kills.left(work, pool) == []
    (work / ".out.abcdefgh.tmp").mkdir()
    (pool / "base" / ".langmerge.fingerprint.tmp").touch()
    assert len(kills.left(work, pool)) == 2
