"""A plan reads headers only: eight sources of 70 B parameters in seconds."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from langmerge.checkpoint import open_checkpoint
from langmerge.errors import OutputError
from langmerge.recipe import Recipe
from tests.checkpoint.large import write_sparse_llama

SOURCES = [f"source{number}" for number in range(8)]
PLAN = (sys.executable, "-c", "from langmerge.cli import program; program()", "plan", "--json")


def cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("70b")
    try:
        for name in ("base", *SOURCES):
            write_sparse_llama(root / name)
    except OSError as error:
        pytest.skip(f"files of 5 GB without content cannot be made here: {error}")
    assert sum(file.stat().st_blocks for file in root.rglob("*.safetensors")) * 512 < 20_000_000
    return root


def test_a_plan_of_eight_sources_of_70b_parameters(models: Path) -> None:
    """As a process, start-up included; its own time, for others may use the machine."""
    recipe = models / "recipe.yaml"
    sources = "".join(f"  {name}: {name}\n" for name in SOURCES)
    recipe.write_text(f"base: base\nsources:\n{sources}method: ties\n")
    before = cpu_of_children()
    ended = subprocess.run([*PLAN, str(recipe)], check=True, capture_output=True)
    assert cpu_of_children() - before < 3
    tensors = json.loads(ended.stdout)["tensors"]
    # All are zeros, and a plan does not look at all of that: it must not say that the sources equal the base.
    assert [one["treatment"] for one in tensors] == ["merged"] * 723


def test_opening_costs_little(models: Path) -> None:
    opened = open_checkpoint(models / "base")
    assert sum(info.nbytes for info in opened.tensors.values()) == 141_107_412_992
    assert len({info.file for info in opened.tensors.values()}) == 30


def test_a_disk_too_small_is_told_before_anything_is_read(models: Path, small_disk: Path) -> None:
    from langmerge.engine import merge

    recipe = Recipe(
        base=models / "base", sources={name: models / name for name in SOURCES[:2]}, method="linear"
    )
    with pytest.raises(OutputError, match=r"needs 141,107\.4 MB, the disk has 1\.0 MB left"):
        merge(recipe, small_disk / "out")
    assert list(small_disk.iterdir()) == []
