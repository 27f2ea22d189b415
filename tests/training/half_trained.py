"""A half-trained tiny classifier, unlabelled text, and what tests of refinement look at."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from langmerge.models import encode, load_tokenizer, new_classifier, save_classifier
from langmerge.progress import Advance
from langmerge.tasks import Unlabelled
from langmerge.training import Refinement, train_expert
from tests.tiny_encoder import WORDS, write_tiny_encoder

LABELS = ("alarm", "music")
FAST = {"lr": 1e-3, "head_lr": 5e-3, "batch_size": 8, "bf16": False}
SETTINGS = Refinement(**FAST)  # type: ignore[arg-type]
STILL = Refinement(**FAST, weight_decay=0.0)  # type: ignore[arg-type]
"""Nothing moves without a gradient."""


def write_half_trained(root: Path) -> Path:
    """Write an encoder and a classifier on it below a folder; return the classifier's."""
    model, tokenizer = new_classifier(write_tiny_encoder(root / "encoder"), LABELS, seed=0)
    texts, labels = drawn(96, 1)
    dev, dev_labels = drawn(32, 2)
    train_expert(
        model, encode(tokenizer, texts), labels, encode(tokenizer, dev), dev_labels,
        epochs=5, patience=5, lr=5e-3, head_lr=2e-2, batch_size=8, bf16=False,
    )  # fmt: skip
    save_classifier(model, tokenizer, root / "model")
    return root / "model"


def drawn(count: int, seed: int) -> tuple[list[str], np.ndarray]:
    """Texts whose label is whether "music" occurs."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, 2, count)
    others = [word for word in WORDS if word != "music"]
    texts = [
        " ".join(draw.permutation([*draw.choice(others, draw.integers(1, 5)), *["music"] * label]))
        for label in labels
    ]
    return texts, labels


def encoded(folder: Path, texts: Unlabelled) -> list[list[int]]:
    return encode(load_tokenizer(folder), texts.texts)


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def changed(before: dict[str, torch.Tensor], model: Any) -> set[str]:
    return {name for name, value in model.state_dict().items() if not torch.equal(before[name], value)}


def files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if not path.name.startswith(".")}


def without_dropout(model: Any) -> Any:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def saying(probabilities: np.ndarray, temperature: float = 1.0) -> Callable[[], list[np.ndarray]]:
    """A teacher whose softmax(z / T) is this."""
    return lambda: [temperature * np.log(probabilities)]


class Interrupting:
    """A progress that is interrupted after some steps of the training."""

    def __init__(self, after: int) -> None:
        self.left = after

    @contextmanager
    def __call__(self, description: str, total: int) -> Iterator[Advance]:  # noqa: ARG002
        def advance(finished: int) -> None:
            if description == "refine":
                self.left -= finished
                if self.left == 0:
                    raise KeyboardInterrupt

        yield advance
