"""Tiny model folders: raw safetensors with an XLM-R's names, and real XLM-R classifiers."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

LABELS = ("alarm", "music", "rain")
HEAD = "classifier.out_proj.weight"
QUERY = "roberta.encoder.layer.0.attention.self.query.weight"
WORDS = "roberta.embeddings.word_embeddings.weight"
BUFFER = "roberta.embeddings.position_ids"
SHAPES: dict[str, tuple[int, ...]] = {
    WORDS: (12, 6),
    "roberta.embeddings.LayerNorm.weight": (6,),
    QUERY: (6, 6),
    "roberta.encoder.layer.0.attention.self.query.bias": (6,),
    "roberta.encoder.layer.1.output.dense.weight": (6, 10),
    "roberta.encoder.layer.1.output.dense.bias": (6,),
    "classifier.dense.weight": (6, 6),
    HEAD: (3, 6),
    "classifier.out_proj.bias": (3,),
}

Tensors = dict[str, Tensor]


def drawn(seed: int, *, scale: float = 1.0, shapes: Mapping[str, tuple[int, ...]] = SHAPES) -> Tensors:
    """Normal float32 tensors."""
    generator = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def tuned(base: Tensors, seed: int, *, scale: float = 0.1) -> Tensors:
    """The base's floating-point tensors, moved at random; the others as they are."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (one + scale * torch.randn(one.shape, generator=generator)).to(one.dtype)
        if one.is_floating_point()
        else one.clone()
        for name, one in base.items()
    }


def write_raw(
    folder: Path,
    tensors: Tensors,
    *,
    labels: Sequence[str] | None = LABELS,
    shards: Sequence[Sequence[str]] | None = None,
    **config: Any,
) -> Path:
    """A folder with config.json and weights, in one file or in the given shards."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_type": "xlm-roberta", **config}
    if labels is not None:
        config["id2label"] = {str(row): label for row, label in enumerate(labels)}
        config["label2id"] = {label: row for row, label in enumerate(labels)}
    (folder / "config.json").write_text(json.dumps(config))
    if shards is None:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    weight_map = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file({name: tensors[name] for name in names}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def write_raw_pool(
    root: Path, sources: Sequence[str] = ("de-DE", "fr-FR", "sw-KE")
) -> tuple[Path, dict[str, Path]]:
    """A base and its sources, raw."""
    base = drawn(0)
    folders = {name: write_raw(root / name, tuned(base, seed)) for seed, name in enumerate(sources, start=1)}
    return write_raw(root / "base", base), folders


def read_raw(folder: Path) -> Tensors:
    """All tensors of a folder, whatever its shards."""
    found: Tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def permuted(tensors: Tensors, labels: Sequence[str], order: Sequence[int]) -> tuple[Tensors, list[str]]:
    """The same classifier with its label rows, and their names, in another order."""
    rows = list(order)
    moved = {
        name: one[rows].contiguous() if name.startswith("classifier.out_proj") else one
        for name, one in tensors.items()
    }
    return moved, [labels[row] for row in rows]


PIECES = ("<s>", "<pad>", "</s>", "<unk>", *(f"▁w{number}" for number in range(35)), "<mask>")


def xlm_roberta(kind: str, *, labels: Sequence[str] = LABELS, seed: int = 0) -> Any:
    """A two-layer XLM-R of width 8: "classifier", "encoder" or "masked_lm"."""
    from transformers import (
        XLMRobertaConfig,
        XLMRobertaForMaskedLM,
        XLMRobertaForSequenceClassification,
        XLMRobertaModel,
    )

    names = dict(enumerate(labels)) if kind == "classifier" else {0: "LABEL_0", 1: "LABEL_1"}
    config = XLMRobertaConfig(
        vocab_size=len(PIECES), hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=20, type_vocab_size=1, pad_token_id=1, bos_token_id=0, eos_token_id=2,
        id2label=names, label2id={name: row for row, name in names.items()}, initializer_range=0.3,
    )  # fmt: skip
    classes = {
        "classifier": XLMRobertaForSequenceClassification,
        "encoder": XLMRobertaModel,
        "masked_lm": XLMRobertaForMaskedLM,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return classes[kind](config).eval()


def write_xlm_roberta(folder: Path, kind: str = "classifier", **options: Any) -> Path:
    """The model saved with its tokenizer."""
    from transformers import XLMRobertaTokenizer

    xlm_roberta(kind, **options).save_pretrained(folder)
    vocabulary = [(piece, -float(place)) for place, piece in enumerate(PIECES)]
    XLMRobertaTokenizer(vocab=vocabulary).save_pretrained(folder)
    return folder


def write_expert(
    folder: Path, base: Path, seed: int, *, order: Sequence[int] | None = None, scale: float = 0.1
) -> Path:
    """A classifier moved away from `base` (a classifier), its labels in another order where one is given."""
    shutil.copytree(base, folder)
    tensors = tuned(load_file(base / "model.safetensors"), seed, scale=scale)
    if order is not None:
        config = json.loads((folder / "config.json").read_text())
        labels = [config["id2label"][str(row)] for row in range(len(order))]
        tensors, labels = permuted(tensors, labels, order)
        config["id2label"] = {str(row): label for row, label in enumerate(labels)}
        config["label2id"] = {label: row for row, label in enumerate(labels)}
        (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def label_probabilities(folder: Path) -> dict[str, Tensor]:
    """What a saved classifier says of a fixed text, by label name."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[0, 5, 9, 17, 30, 2], [0, 8, 4, 4, 21, 2]])).logits
    found = logits.float().softmax(dim=1)
    return {model.config.id2label[row]: found[:, row] for row in range(found.shape[1])}
