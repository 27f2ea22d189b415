"""How long one expert takes: 3,000 utterances × 3 epochs on the offline base, against the plain way, paired in one run.

    python benchmarks/train.py [--rows 3000] [--epochs 3] [--steps 12]

The plain way is what a first script does: float32, random batches, every row padded to 128 tokens. It is timed on a few
steps and compared by seconds per step. Both precisions are timed on the same steps too, in turn: which of them a machine
takes by itself is told by its instructions, and this is whether it is right. Needs MASSIVE (LANGMERGE_DATA) and the extra `offline`.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from langmerge.models import encode, load_classifier, load_tokenizer, new_classifier, padded, save_classifier
from langmerge.tasks import Examples, load_task
from langmerge.training import ensure_base, train_expert


def plain_step_seconds(folder: Path, encoded: list[list[int]], examples: Examples, *, steps: int) -> float:
    """Median seconds of a step of 32 rows, float32, padded to 128."""
    model = load_classifier(folder)
    model.get_input_embeddings().weight.requires_grad_(False)
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    generator, seconds = torch.Generator().manual_seed(0), []
    for _ in range(steps):
        rows = torch.randperm(len(encoded), generator=generator)[:32].tolist()
        ids, mask = padded([*(encoded[row] for row in rows), [0] * 128], pad_id=1)
        started = time.perf_counter()
        output: Any = model(input_ids=ids[:-1], attention_mask=mask[:-1])
        target = torch.from_numpy(examples.labels[rows])
        loss = torch.nn.functional.cross_entropy(output.logits, target)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def float32_over_bfloat16(
    folder: Path, encoded: list[list[int]], examples: Examples, *, steps: int
) -> list[float]:
    """How much longer these steps of 32 rows take in float32, three times over."""
    rows = slice(32 * steps)
    ratios = []
    for _ in range(3):
        seconds = {
            bf16: train_expert(
                load_classifier(folder), encoded[rows], examples.labels[rows], encoded[:1], examples.labels[:1],
                epochs=1, bf16=bf16,
            ).seconds
            for bf16 in (True, False)
        }  # fmt: skip
        ratios.append(seconds[False] / seconds[True])
    return sorted(ratios)


def main() -> None:
    """Time both and print the ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    options = parser.parse_args()
    task = load_task("massive:intent")
    with tempfile.TemporaryDirectory() as place:
        base = ensure_base("e5-small", Path(place) / "base", task=task, locales=["en-US"])
        model, tokenizer = new_classifier(base, task.labels, seed=0)
        folder = Path(place) / "start"
        save_classifier(model, tokenizer, folder)
        train, dev = task.load("en-US", "train").limited(options.rows), task.load("en-US", "dev").limited(500)
        encoded = encode(load_tokenizer(folder), train.texts)
        low, middle, high = float32_over_bfloat16(folder, encoded, train, steps=options.steps)
        plain = plain_step_seconds(folder, encoded, train, steps=options.steps)
        record = train_expert(
            load_classifier(folder), encoded, train.labels, encode(tokenizer, dev.texts), dev.labels,
            epochs=options.epochs, patience=options.epochs,
        )  # fmt: skip
    own = record.seconds / record.steps
    print(f"threads {torch.get_num_threads()}, bf16 {record.settings['bf16']}")
    print(
        f"langmerge: {len(train)} utterances x {options.epochs} epochs in {record.seconds:.0f} s (dev passes included), dev accuracy {max(record.dev_accuracy):.3f}"
    )
    print(f"seconds per step of 32: langmerge {own:.3f}, plain {plain:.3f}, ratio {plain / own:.1f}")
    print(f"float32 takes {middle:.2f} times as long as bfloat16 ({low:.2f}–{high:.2f})")


if __name__ == "__main__":
    main()
