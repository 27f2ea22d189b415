"""langmerge rounds."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.cli.test_bad_input import assert_refused
from tests.experiments.conftest import write_task
from tests.tiny_encoder import write_tiny_encoder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text and encoder."""
    folder = tmp_path_factory.mktemp("rounds")
    write_task(folder / "text")
    write_tiny_encoder(folder / "encoder")
    return folder


def command(place: Path, *more: object) -> list[object]:
    """Two locales, small and fast."""
    return [
        "rounds", place / "out", "--base", place / "encoder", "--task", f"folder:{place / 'text'}",
        "--batch-size", 8, "--lr", "5e-3", "--head-lr", "2e-2", *more,
    ]  # fmt: skip


def test_rounds(run: Run, place: Path) -> None:
    line = command(place, "--locales", "de-DE,en-US", "--rounds", 2, "--limit", 20)
    ran = run(*line, "--json")
    assert (ran.code, ran.err) == (0, "")
    found = json.loads(ran.out)
    assert found == json.loads((place / "out" / "rounds.json").read_text())
    assert [(row["round"], row["target"]) for row in found["rows"]] == [
        (number, target) for number in (1, 2) for target in ("de-DE", "en-US", "all")
    ]
    assert found["rows"][0]["rows"] == 20
    assert found["same_steps"] is True
    assert (place / "out" / "control-2" / "merged" / "model.safetensors").exists()
    again = run(*line)
    assert again.code == 0
    assert "2 all" in again.out
    assert f"{100 * found['rows'][-1]['merged']:.1f}" in again.out
    assert "early stopping" not in again.out


def test_what_cannot_be(run: Run, place: Path) -> None:
    for more, named in [
        (["--locales", "de-DE,en-US", "--rounds", 0], ["--rounds", "greater than or equal to 1"]),
        (["--locales", "de-DE,en-US", "--epochs-per-round", 0], ["--epochs-per-round"]),
        (["--locales", "de-DE"], ["at least 2"]),
        (["--locales", "de-DE,en-US,fr-FR", "--method", "slerp"], ["slerp does not merge 3 experts"]),
        (["--locales", "de-DE,en-US", "--about", "sun"], ["about", "'base' or 'round'"]),
        (["--locales", "de-DE,en-US", "-p", "normalise=1"], ["normalise"]),
        (["--locales", "de-DE,ja-JP"], ["ja-JP"]),
    ]:
        assert_refused(run, place, command(place, *more), *named)
