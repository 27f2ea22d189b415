"""What the diagonal Fisher of an XLM-R-base-sized classifier takes: memory over the resident model, and time.

    python benchmarks/fisher.py [--utterances 1000] [--kind sampled] [--layers 12]

Random weights; token ids are random too, their numbers those of MASSIVE's Swahili utterances where the data is there (a
piece for every 3.6 characters, and two special tokens), else 5 to 30. Memory is private memory of the process, looked at ten
times a second, over what it had when the model was built; the artefact is written within. Goal: 2.2 × the model.
"""

import argparse
import gc
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _measure import memory_of
from transformers import XLMRobertaConfig, XLMRobertaForSequenceClassification

from langmerge.engine.statistics import write_statistics
from langmerge.errors import LangmergeError
from langmerge.learned.fisher import KINDS, fisher_diagonal
from langmerge.tasks import load_task

GOAL = 2.2
"""Largest extra memory, in models."""

PERIOD = 0.1
LABELS = 60


def model_of(layers: int) -> Any:
    """XLM-R base with a head for MASSIVE's intents."""
    config = XLMRobertaConfig(
        vocab_size=250_002, hidden_size=768, num_hidden_layers=layers, num_attention_heads=12,
        intermediate_size=3072, max_position_embeddings=514, type_vocab_size=1, num_labels=LABELS,
    )  # fmt: skip
    torch.manual_seed(0)
    return XLMRobertaForSequenceClassification(config).eval()


def utterances(count: int) -> tuple[list[list[int]], str]:
    """Random token ids, and where their numbers come from."""
    draw = np.random.default_rng(0)
    try:
        texts = load_task("massive:intent").load("sw-KE", "train").limited(count).texts
        lengths, origin = [2 + round(len(text) / 3.6) for text in texts], "MASSIVE's lengths"
    except LangmergeError:
        lengths, origin = draw.integers(5, 31, count).tolist(), "lengths 5 to 30"
    return [[0, *draw.integers(4, 250_000, length - 2).tolist(), 2] for length in lengths], origin


@contextmanager
def watched() -> Iterator[list[int]]:
    """The private memory of this process now, then its peak as the second entry when the block has ended."""
    gc.collect()
    found = [memory_of(os.getpid()).private]
    peak, stop = found[0], threading.Event()

    def watch() -> None:
        nonlocal peak
        while not stop.wait(PERIOD):
            peak = max(peak, memory_of(os.getpid()).private)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join()
        found.append(peak)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--utterances", type=int, default=1_000)
    parser.add_argument("--kind", choices=KINDS[1:], default="sampled")
    parser.add_argument("--layers", type=int, default=12)
    given = parser.parse_args()
    model = model_of(given.layers)
    size = sum(one.numel() * one.element_size() for one in model.parameters())
    encoded, origin = utterances(given.utterances)
    with tempfile.TemporaryDirectory() as folder, watched() as memory:
        started = time.perf_counter()
        arrays = fisher_diagonal(model, encoded, kind=given.kind)
        seconds = time.perf_counter() - started
        write_statistics(Path(folder) / "fisher.safetensors", arrays, kind="fisher", model="0" * 12)
        written = time.perf_counter() - started - seconds
    before, peak = memory
    ratio = (peak - before) / size
    print(f"model: {size / 1e9:.3f} GB; {len(encoded)} utterances, {origin}, {given.kind}")
    print(f"private memory: {before / 1e9:.3f} GB before, {peak / 1e9:.3f} GB at most")
    print(f"extra: {(peak - before) / 1e9:.3f} GB = {ratio:.2f} models (goal: {GOAL})")
    print(
        f"time: {seconds / len(encoded):.3f} s an utterance, {seconds:.1f} s in all; writing {written:.1f} s"
    )
    if ratio > GOAL:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
