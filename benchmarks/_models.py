"""Models to merge, drawn from fixed seeds: a base and experts near it, written block by block."""

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

BLOCK = 1 << 22
"""Entries that are drawn at once."""

BASE_SPREAD, DELTA_SPREAD = np.float32(0.05), np.float32(0.004)
"""Standard deviations of the base's entries and of an expert's difference from it."""

WIDTHS = {"F32": 4, "BF16": 2}
LABELS = 60

Shapes = dict[str, tuple[int, ...]]
Floats = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Family:
    """One architecture in one size.

    Attributes:
        name: folder of its models, and how results call it.
        kind: `xlmr` (a classifier) or `qwen` (a decoder with tied embeddings).
        dtype: safetensors name.
        experts: how many there are besides the base.
        hidden: width of the residual stream.
        inner: width inside the feed-forward part.
        vocabulary: rows of the embedding.
        layers: number of layers.
        keys: width of keys and values together over heads (`qwen`).
    """

    name: str
    kind: str
    dtype: str
    experts: int
    hidden: int
    inner: int
    vocabulary: int
    layers: int
    keys: int = 0

    @property
    def models(self) -> list[str]:
        """Names of the model folders, the base first."""
        return ["base", *(f"e{i}" for i in range(1, self.experts + 1))]

    @property
    def shapes(self) -> Shapes:
        """Shape of every tensor, in the order of the file."""
        return _xlmr_shapes(self) if self.kind == "xlmr" else _qwen_shapes(self)

    @property
    def nbytes(self) -> int:
        """Size of the weights of one model."""
        return WIDTHS[self.dtype] * sum(math.prod(shape) for shape in self.shapes.values())


FAMILIES = {
    "xlmr": Family("xlmr", "xlmr", "F32", 5, 768, 3072, 250002, 12),
    "qwen": Family("qwen", "qwen", "BF16", 3, 896, 4864, 151936, 24, 128),
}
"""XLM-R-base with 60 labels (278 M, 1.11 GB) and Qwen2-0.5B (494 M, 0.99 GB)."""


def tiny(family: Family) -> Family:
    """The same tensors by name and number, with next to nothing in them: what is left is start-up."""
    return replace(
        family, name=f"{family.name}-tiny", hidden=28, inner=56, vocabulary=120, keys=4 if family.keys else 0
    )


def scaled(family: Family, nbytes: int) -> Family:
    """As many layers as come nearest to a size of one model, in bytes."""
    one, two = (replace(family, layers=layers).nbytes for layers in (1, 2))
    layers = max(1, round((nbytes - one) / (two - one)) + 1)
    return replace(family, name=f"{family.name}-{nbytes / 1e9:g}gb", layers=layers)


def make_models(family: Family, work: Path) -> Path:
    """Write the base and the experts of a family below `work`, unless they are there.

    Returns:
        The folder that holds them.

    Raises:
        OSError: no room for them.
    """
    folder = work / family.name
    folder.mkdir(parents=True, exist_ok=True)
    header = _header(family)
    size = len(header) + family.nbytes
    weights = [folder / name / "model.safetensors" for name in family.models]
    if not all(file.exists() and file.stat().st_size == size for file in weights):
        needed, free = size * len(weights), shutil.disk_usage(folder).free
        if needed > free:
            raise OSError(
                f"{folder} needs {needed / 1e9:.0f} GB, and {free / 1e9:.0f} GB are free: choose another --work"
            )
        _write_weights(family, header, weights)
    for file in weights:
        _write_companions(family, file.parent)
    return folder


def _write_weights(family: Family, header: bytes, files: list[Path]) -> None:
    """Write all models at once, block by block, because every expert needs the base's entries."""
    with ExitStack() as stack:
        parts = []
        for file in files:
            file.parent.mkdir(exist_ok=True)
            parts.append(stack.enter_context(file.with_suffix(".part").open("wb")))
            parts[-1].write(header)
        for place, shape in enumerate(family.shapes.values()):
            _write_tensor(parts, place, math.prod(shape), family.dtype)
    for file in files:
        file.with_suffix(".part").rename(file)


def _write_tensor(parts: Sequence[IO[bytes]], place: int, entries: int, dtype: str) -> None:
    """Write one tensor of every model; generator i draws the base (0) or the difference of expert i."""
    generators = [np.random.default_rng([1 + i, place]) for i in range(len(parts))]
    for count in _blocks(entries):
        base = generators[0].standard_normal(count, dtype=np.float32) * BASE_SPREAD
        parts[0].write(_stored(base, dtype))
        for part, generator in zip(parts[1:], generators[1:], strict=True):
            delta = generator.standard_normal(count, dtype=np.float32) * DELTA_SPREAD
            part.write(_stored(base + delta, dtype))


def _blocks(entries: int) -> Iterator[int]:
    for start in range(0, entries, BLOCK):
        yield min(BLOCK, entries - start)


def _stored(values: Floats, dtype: str) -> bytes:
    """As bytes of a dtype; bfloat16 by rounding to the nearest even."""
    if dtype == "F32":
        return values.tobytes()
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16).tobytes()


def _header(family: Family) -> bytes:
    """The safetensors header with its length before it."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, shape in family.shapes.items():
        stop = start + math.prod(shape) * WIDTHS[family.dtype]
        entries[name] = {"dtype": family.dtype, "shape": list(shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write_companions(family: Family, folder: Path) -> None:
    """Config and a tokenizer of a few pieces: without one mergekit spends time on looking for it."""
    config = _xlmr_config(family) if family.kind == "xlmr" else _qwen_config(family)
    for name, content in (("config.json", config), *_TOKENIZER.items()):
        (folder / name).write_text(json.dumps(content))


_TOKENIZER: dict[str, Any] = {
    "tokenizer.json": {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "WordLevel",
            "vocab": {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3},
            "unk_token": "<unk>",
        },
    },
    "tokenizer_config.json": {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
    },
}


def _linear(name: str, rows: int, columns: int) -> Shapes:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def _xlmr_shapes(family: Family) -> Shapes:
    d, ff, prefix = family.hidden, family.inner, "roberta.embeddings"
    norm = {"weight": (d,), "bias": (d,)}
    shapes: Shapes = {
        f"{prefix}.word_embeddings.weight": (family.vocabulary, d),
        f"{prefix}.position_embeddings.weight": (514, d),
        f"{prefix}.token_type_embeddings.weight": (1, d),
        **{f"{prefix}.LayerNorm.{key}": shape for key, shape in norm.items()},
    }
    for layer in range(family.layers):
        prefix = f"roberta.encoder.layer.{layer}"
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            shapes |= _linear(f"{prefix}.attention.{name}", d, d)
        shapes |= _linear(f"{prefix}.intermediate.dense", ff, d) | _linear(f"{prefix}.output.dense", d, ff)
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"{prefix}.{name}.{key}": shape for key, shape in norm.items()}
    return shapes | _linear("classifier.dense", d, d) | _linear("classifier.out_proj", LABELS, d)


def _qwen_shapes(family: Family) -> Shapes:
    d, ff, kv = family.hidden, family.inner, family.keys
    shapes: Shapes = {"model.embed_tokens.weight": (family.vocabulary, d)}
    for layer in range(family.layers):
        prefix = f"model.layers.{layer}"
        for name, rows in (("q_proj", d), ("k_proj", kv), ("v_proj", kv)):
            shapes |= _linear(f"{prefix}.self_attn.{name}", rows, d)
        shapes[f"{prefix}.self_attn.o_proj.weight"] = (d, d)
        shapes[f"{prefix}.mlp.gate_proj.weight"] = (ff, d)
        shapes[f"{prefix}.mlp.up_proj.weight"] = (ff, d)
        shapes[f"{prefix}.mlp.down_proj.weight"] = (d, ff)
        shapes[f"{prefix}.input_layernorm.weight"] = (d,)
        shapes[f"{prefix}.post_attention_layernorm.weight"] = (d,)
    return shapes | {"model.norm.weight": (d,)}


def _xlmr_config(family: Family) -> dict[str, Any]:
    labels = {str(i): f"intent_{i}" for i in range(LABELS)}
    return {
        "architectures": ["XLMRobertaForSequenceClassification"],
        "model_type": "xlm-roberta",
        "vocab_size": family.vocabulary,
        "hidden_size": family.hidden,
        "num_hidden_layers": family.layers,
        "num_attention_heads": family.hidden // 64 or 2,
        "intermediate_size": family.inner,
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "layer_norm_eps": 1e-5,
        "id2label": labels,
        "label2id": {label: int(i) for i, label in labels.items()},
        "torch_dtype": "float32",
    }


def _qwen_config(family: Family) -> dict[str, Any]:
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": family.vocabulary,
        "hidden_size": family.hidden,
        "num_hidden_layers": family.layers,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "intermediate_size": family.inner,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": True,
        "rms_norm_eps": 1e-6,
        "torch_dtype": "bfloat16",
    }
