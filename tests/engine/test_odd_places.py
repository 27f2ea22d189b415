"""Weights may begin at any byte of a file: old files have headers of any length."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from langmerge.engine import merge
from tests.engine.conftest import SOURCES, recipe_of
from tests.tiny import drawn, read_raw, tuned, write_raw


def write_at(folder: Path, tensors: dict[str, torch.Tensor], pad: int) -> None:
    """A model whose weights begin `pad` bytes later than they should."""
    write_raw(folder, tensors)
    content = save(tensors)
    length = int.from_bytes(content[:8], "little")
    moved = (
        (length + pad).to_bytes(8, "little") + content[8 : 8 + length] + b" " * pad + content[8 + length :]
    )
    (folder / "model.safetensors").write_bytes(moved)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.float16])
@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("linear", {}),
        ("ties", {"density": 0.4}),
        ("dare_ties", {"density": 0.5}),
        ("slerp", {"t": 0.3}),
        ("wudi", {}),
    ],
)
def test_where_weights_begin_changes_no_byte(
    tmp_path: Path, method: str, parameters: dict[str, float], dtype: torch.dtype
) -> None:
    # Longer than any step of a loop that works on several entries at once.
    shapes = {"a.weight": (37, 53), "b.bias": (1003,), "c.weight": (5,)}
    base = {name: one.to(dtype) for name, one in drawn(0, shapes=shapes).items()}
    names = SOURCES[:2] if method == "slerp" else SOURCES
    found = []
    for pad in (0, 1, 2, 3):
        pool = tmp_path / str(pad)
        write_at(pool / "base", base, pad)
        for seed, name in enumerate(names, start=1):
            write_at(pool / name, tuned(base, seed), (pad * seed) % 8)
        recipe = recipe_of(
            pool, method=method, parameters=parameters, sources={name: pool / name for name in names}
        )
        out = read_raw(merge(recipe, pool / "out"))
        hashes = json.loads((pool / "out" / "langmerge.json").read_text())["hashes"]
        found.append(({name: one.to(torch.float64).tolist() for name, one in out.items()}, hashes))
    assert all(one == found[0] for one in found)
