"""The folder that a merge writes, or does not."""

import hashlib
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from langmerge.engine import merge
from langmerge.errors import CheckpointError, OutputError
from langmerge.recipe import Recipe
from tests.engine.conftest import SOURCES, bits, entries, recipe_of, streamed
from tests.tiny import (
    BUFFER,
    HEAD,
    LABELS,
    QUERY,
    SHAPES,
    WORDS,
    permuted,
    read_raw,
    write_raw,
)


def test_integers_are_copied_exactly(own_pool: Path, tmp_path: Path) -> None:
    large = (1 << 53) + 1  # neither float32 nor float64 can hold it
    for place, name in enumerate(("base", *SOURCES)):
        tensors = {**read_raw(own_pool / name), BUFFER: torch.tensor([[large + place, 0]])}
        write_raw(own_pool / name, tensors)
    out = merge(recipe_of(own_pool), tmp_path / "out")
    assert read_raw(out)[BUFFER].tolist() == [[large, 0]]
    assert entries(out)[BUFFER]["treatment"] == "base"


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_the_dtype_of_the_output(own_pool: Path, tmp_path: Path, dtype: str) -> None:
    for name in ("base", *SOURCES):
        write_raw(own_pool / name, {**read_raw(own_pool / name), BUFFER: torch.tensor([[1, 2]])})
    short = {"F16": torch.float16, "BF16": torch.bfloat16}[dtype]
    out = merge(recipe_of(own_pool, dtype=dtype), tmp_path / "out")
    whole = streamed(recipe_of(own_pool))
    found = read_raw(out)
    assert found.pop(BUFFER).dtype == torch.int64
    assert bits(found) == bits({name: whole[name].to(short) for name in SHAPES})
    assert json.loads((out / "config.json").read_text())["dtype"] == str(short).removeprefix("torch.")


def test_the_config_says_what_is_stored(own_pool: Path, tmp_path: Path) -> None:
    """The config's donor may be a source that was stored shorter than the base."""
    head = [name for name in SHAPES if name.startswith("classifier")]
    base = {name: one for name, one in read_raw(own_pool / "base").items() if name not in head}
    write_raw(own_pool / "base", base, labels=None)
    for name in SOURCES:
        tensors = {
            key: one if key in head else one.to(torch.bfloat16)
            for key, one in read_raw(own_pool / name).items()
        }
        write_raw(own_pool / name, tensors, torch_dtype="bfloat16")
    out = merge(recipe_of(own_pool), tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    assert {one.dtype for one in read_raw(out).values()} == {torch.float32}
    assert config["dtype"] == "float32"
    assert "torch_dtype" not in config


def test_label_rows_are_matched_by_name(own_pool: Path, tmp_path: Path) -> None:
    expected = bits(streamed(recipe_of(own_pool, method="ties", parameters={"density": 0.5})))
    for name, order in (("de-DE", (2, 0, 1)), ("sw-KE", (1, 0, 2))):
        moved, labels = permuted(read_raw(own_pool / name), LABELS, order)
        write_raw(own_pool / name, moved, labels=labels)
    out = merge(recipe_of(own_pool, method="ties", parameters={"density": 0.5}), tmp_path / "out")
    assert bits(read_raw(out)) == expected
    config = json.loads((out / "config.json").read_text())
    assert config["id2label"] == {"0": "alarm", "1": "music", "2": "rain"}
    assert config["label2id"] == {"alarm": 0, "music": 1, "rain": 2}
    assert json.loads((out / "langmerge.json").read_text())["label_rows_permuted"] == ["de-DE", "sw-KE"]


def test_the_base_decides_the_order_of_labels(own_pool: Path, tmp_path: Path) -> None:
    plain = streamed(recipe_of(own_pool))
    moved, labels = permuted(read_raw(own_pool / "base"), LABELS, (2, 0, 1))
    write_raw(own_pool / "base", moved, labels=labels)
    out = merge(recipe_of(own_pool), tmp_path / "out")
    assert json.loads((out / "config.json").read_text())["id2label"] == dict(zip("012", labels, strict=True))
    assert torch.equal(read_raw(out)[HEAD], plain[HEAD][[2, 0, 1]])
    assert torch.equal(read_raw(out)[QUERY], plain[QUERY])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_in_a_source_is_an_error_and_nothing_is_written(
    own_pool: Path, tmp_path: Path, bad: float
) -> None:
    tensors = read_raw(own_pool / "fr-FR")
    tensors[QUERY][2, 3] = bad
    write_raw(own_pool / "fr-FR", tensors)
    out = tmp_path / "made" / "out"
    with pytest.raises(CheckpointError, match=rf"{QUERY}.*fr-FR/model.safetensors holds NaN") as caught:
        merge(recipe_of(own_pool), out)
    assert "\n" not in str(caught.value)
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize("changes", [{}, {"embeddings": "base"}])
def test_nan_in_the_base_is_an_error(own_pool: Path, tmp_path: Path, changes: dict[str, str]) -> None:
    tensors = read_raw(own_pool / "base")
    tensors[WORDS][0, 0] = float("nan")
    write_raw(own_pool / "base", tensors)
    with pytest.raises(CheckpointError, match=rf"{WORDS}.*base/model.safetensors holds NaN"):
        merge(recipe_of(own_pool, method="task_arithmetic", **changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_merge_that_overflows_is_an_error(raw_pool: Path, tmp_path: Path) -> None:
    recipe = recipe_of(raw_pool, method="task_arithmetic", parameters={"scale": 1e39})
    with pytest.raises(CheckpointError, match="gave NaN or infinity: the coefficients or parameters are too"):
        merge(recipe, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_output_stays_unless_overwriting(raw_pool: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("old")
    with pytest.raises(OutputError, match="exists already"):
        merge(recipe_of(raw_pool), out)
    assert [path.name for path in out.iterdir()] == ["mine"]
    assert merge(recipe_of(raw_pool), str(out), overwrite=True) == out
    assert not (out / "mine").exists()
    assert read_raw(out).keys() == SHAPES.keys()


def test_a_failed_merge_leaves_the_old_output(own_pool: Path, tmp_path: Path) -> None:
    out = merge(recipe_of(own_pool), tmp_path / "out")
    before = (out / "model.safetensors").read_bytes()
    write_raw(
        own_pool / "sw-KE", {name: one * float("nan") for name, one in read_raw(own_pool / "sw-KE").items()}
    )
    with pytest.raises(CheckpointError):
        merge(recipe_of(own_pool), out, overwrite=True)
    assert (out / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("place", ["fr-FR", "base", "."])
def test_the_inputs_are_never_overwritten(own_pool: Path, place: str) -> None:
    with pytest.raises(OutputError, match=r"output .* holds the input .*: choose another place"):
        merge(recipe_of(own_pool), own_pool / place, overwrite=True)
    assert read_raw(own_pool / "fr-FR").keys() == SHAPES.keys()


def test_the_inputs_weights_stay_as_they_are(own_pool: Path, tmp_path: Path) -> None:
    def hashes() -> dict[str, str]:
        return {
            str(file): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in own_pool.rglob("*")
            if file.is_file() and not file.name.startswith(".")
        }

    before = hashes()
    merge(recipe_of(own_pool), tmp_path / "out")
    assert hashes() == before


KILLED = """
import os, signal, sys
from contextlib import contextmanager
from pathlib import Path
from langmerge.engine import merge
from langmerge.recipe import Recipe
@contextmanager
def progress(description, total):
    done = []
    def advance(n):
        done.append(n)
        if len(done) == 4:
            os.kill(os.getpid(), signal.SIGKILL)
    yield advance
merge(Recipe.load(sys.argv[1]), sys.argv[2], max_shard=1, progress=progress)
"""


def test_a_killed_merge_leaves_no_output(raw_pool: Path, tmp_path: Path) -> None:
    listed = "".join(f"  {name}: {raw_pool / name}\n" for name in SOURCES)
    (tmp_path / "recipe.yaml").write_text(f"base: {raw_pool / 'base'}\nsources:\n{listed}method: linear\n")
    command = [sys.executable, "-c", KILLED, str(tmp_path / "recipe.yaml"), str(tmp_path / "out")]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    assert merge(Recipe.load(tmp_path / "recipe.yaml"), tmp_path / "out").is_dir()


def test_progress_reaches_its_total(raw_pool: Path, tmp_path: Path) -> None:
    told: list[Any] = []

    @contextmanager
    def progress(description: str, total: int) -> Iterator[Any]:
        told.append((description, total))
        yield lambda finished: told.append(finished)
        told.append("closed")

    merge(recipe_of(raw_pool), tmp_path / "out", progress=progress)
    assert told == [("merging by linear", 9), *[1] * 9, "closed"]


def test_files_beside_the_weights_come_along(own_pool: Path, tmp_path: Path) -> None:
    (own_pool / "base" / "generation_config.json").write_text('{"from": "base"}')
    for name in ("de-DE", "fr-FR"):
        (own_pool / name / "generation_config.json").write_text('{"from": "source"}')
        (own_pool / name / "vocab.txt").write_text(name)
    (own_pool / "base" / "notes.txt").write_text("not a model's file")
    out = merge(recipe_of(own_pool), tmp_path / "out")
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md", "config.json", "generation_config.json", "langmerge.json", "model.safetensors", "vocab.txt",
    ]  # fmt: skip
    assert json.loads((out / "generation_config.json").read_text()) == {"from": "base"}
    assert (out / "vocab.txt").read_text() == "de-DE"


def test_a_place_that_cannot_be_written(raw_pool: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is not a folder"):
        merge(recipe_of(raw_pool), tmp_path / "file" / "out")


def test_sources_may_be_sharded(own_pool: Path, tmp_path: Path) -> None:
    expected = bits(streamed(recipe_of(own_pool)))
    tensors, names = read_raw(own_pool / "fr-FR"), sorted(SHAPES)
    shutil.rmtree(own_pool / "fr-FR")
    write_raw(own_pool / "fr-FR", tensors, shards=[names[:2], names[2:]])
    assert bits(streamed(recipe_of(own_pool))) == expected
    out = merge(recipe_of(own_pool), tmp_path / "out", max_shard=100)
    assert len(list(out.glob("*.safetensors"))) > 3
    again = recipe_of(own_pool, sources={"merged": out, "de-DE": own_pool / "de-DE"})
    assert streamed(again).keys() == SHAPES.keys()
