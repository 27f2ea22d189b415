"""Tiny Llama-, Qwen2- and XLM-R-shaped models.

Shared by the tests and by `scripts/make_mergekit_vectors.py`, which runs in mergekit's environment: numpy alone.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[np.float32]]

HIDDEN, INNER, PIECES = 8, 10, 20
SPECIAL = ("<unk>", "<s>", "</s>")
PIECES_OF_BASE = (*SPECIAL, *(f"p{number:02d}" for number in range(PIECES - len(SPECIAL))))
# Another vocabulary: other ids, two pieces fewer, three that no other model has.
PIECES_OF_OTHER = (*SPECIAL, "n1", *reversed(PIECES_OF_BASE[5:]), "n0", "n2")
LABELS = ("alarm", "music", "rain")


def llama_shapes(
    layers: int, pieces: int = PIECES, *, bias: bool = False, tied: bool = False
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a Llama (with `bias`: a Qwen2); half as many keys as queries."""
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (pieces, HIDDEN)}
    for layer in range(layers):
        at = f"model.layers.{layer}."
        found[at + "input_layernorm.weight"] = (HIDDEN,)
        for name, rows in (("q", HIDDEN), ("k", HIDDEN // 2), ("v", HIDDEN // 2), ("o", HIDDEN)):
            found[f"{at}self_attn.{name}_proj.weight"] = (rows, HIDDEN)
            if bias and name != "o":
                found[f"{at}self_attn.{name}_proj.bias"] = (rows,)
        found[at + "post_attention_layernorm.weight"] = (HIDDEN,)
        found[at + "mlp.gate_proj.weight"] = (INNER, HIDDEN)
        found[at + "mlp.up_proj.weight"] = (INNER, HIDDEN)
        found[at + "mlp.down_proj.weight"] = (HIDDEN, INNER)
    found["model.norm.weight"] = (HIDDEN,)
    return found if tied else {**found, "lm_head.weight": (pieces, HIDDEN)}


def xlmr_shapes(head: str = "classifier") -> dict[str, tuple[int, ...]]:
    """Names and shapes of a two-layer XLM-R with a `classifier` or an `lm_head`."""
    at = "roberta.embeddings."
    found: dict[str, tuple[int, ...]] = {
        at + "word_embeddings.weight": (PIECES, HIDDEN),
        at + "position_embeddings.weight": (12, HIDDEN),
        at + "token_type_embeddings.weight": (1, HIDDEN),
        at + "LayerNorm.weight": (HIDDEN,),
        at + "LayerNorm.bias": (HIDDEN,),
    }
    for layer in range(2):
        at = f"roberta.encoder.layer.{layer}."
        for name, rows, columns in (
            ("attention.self.query", HIDDEN, HIDDEN), ("attention.self.key", HIDDEN, HIDDEN),
            ("attention.self.value", HIDDEN, HIDDEN), ("attention.output.dense", HIDDEN, HIDDEN),
            ("intermediate.dense", INNER, HIDDEN), ("output.dense", HIDDEN, INNER),
        ):  # fmt: skip
            found |= {f"{at}{name}.weight": (rows, columns), f"{at}{name}.bias": (rows,)}
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            found |= {f"{at}{name}.weight": (HIDDEN,), f"{at}{name}.bias": (HIDDEN,)}
    if head == "lm_head":
        found |= {
            "lm_head.dense.weight": (HIDDEN, HIDDEN),
            "lm_head.dense.bias": (HIDDEN,),
            "lm_head.bias": (PIECES,),
        }
        return found | {"lm_head.layer_norm.weight": (HIDDEN,), "lm_head.layer_norm.bias": (HIDDEN,)}
    found |= {"classifier.dense.weight": (HIDDEN, HIDDEN), "classifier.dense.bias": (HIDDEN,)}
    rows = len(LABELS)
    return found | {"classifier.out_proj.weight": (rows, HIDDEN), "classifier.out_proj.bias": (rows,)}


def drawn(shapes: Mapping[str, tuple[int, ...]], seed: int) -> Arrays:
    """A base; RandomState, because its stream is the same in every numpy."""
    random = np.random.RandomState(seed)
    return {
        name: ((1 if name.endswith("norm.weight") else 0) + 0.3 * random.standard_normal(shape)).astype(
            np.float32
        )
        for name, shape in shapes.items()
    }


def tuned(base: Arrays, seed: int, *, scale: float = 0.06) -> Arrays:
    """The base with 80 % of its entries moved, mostly where every model moves: fine-tuned models of one task agree."""
    common, own = np.random.RandomState(len(base)), np.random.RandomState(seed)
    moved = {}
    for name, one in base.items():
        shared = common.standard_normal(one.shape)
        delta = 0.9 * shared + 0.4 * own.standard_normal(one.shape)
        moved[name] = (one + scale * delta * (own.uniform(size=one.shape) < 0.8)).astype(np.float32)
    return moved


def bfloat16_bits(array: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Rounded to the nearest, ties to even."""
    bits = array.astype("<f4").view("<u4")
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def write_weights(folder: Path, arrays: Arrays, dtype: str = "F32") -> None:
    """model.safetensors, by hand: no library of either side is in between."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    body = b""
    for name, array in arrays.items():
        data = (bfloat16_bits(array) if dtype == "BF16" else array.astype("<f4")).tobytes()
        header[name] = {
            "dtype": dtype,
            "shape": list(array.shape),
            "data_offsets": [len(body), len(body) + len(data)],
        }
        body += data
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + body)


def write_tokenizer(folder: Path, pieces: Sequence[str] = PIECES_OF_BASE, chat_template: str = "") -> None:
    """A tokenizer that knows whole pieces."""
    special = [
        {"id": place, "content": piece, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True}
        for place, piece in enumerate(pieces) if piece in SPECIAL
    ]  # fmt: skip
    model = {
        "type": "BPE",
        "vocab": {piece: place for place, piece in enumerate(pieces)},
        "merges": [],
        "unk_token": "<unk>",
    }
    body = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": special, "normalizer": None,
            "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None, "model": model}  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(body))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
    }
    if chat_template:
        settings["chat_template"] = chat_template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_model(
    folder: Path,
    arrays: Arrays,
    config: Mapping[str, Any],
    *,
    dtype: str = "F32",
    pieces: Sequence[str] = PIECES_OF_BASE,
    chat_template: str = "",
) -> Path:
    """A whole folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_weights(folder, arrays, dtype)
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder, pieces, chat_template)
    return folder


def causal_config(kind: str, layers: int, *, pieces: int = PIECES, tied: bool = False) -> dict[str, Any]:
    """config.json of a Llama or Qwen2."""
    name = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}[kind]
    return {
        "architectures": [name], "model_type": kind, "vocab_size": pieces, "hidden_size": HIDDEN,
        "intermediate_size": INNER, "num_hidden_layers": layers, "num_attention_heads": 2, "num_key_value_heads": 1,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "tie_word_embeddings": tied, "bos_token_id": 1,
        "eos_token_id": 2, "torch_dtype": {"llama": "float32", "qwen2": "bfloat16"}[kind],
    }  # fmt: skip


def xlmr_config(head: str = "classifier", labels: Sequence[str] = LABELS) -> dict[str, Any]:
    """config.json of an XLM-R."""
    name = "XLMRobertaForSequenceClassification" if head == "classifier" else "XLMRobertaForMaskedLM"
    found = {
        "architectures": [name], "model_type": "xlm-roberta", "vocab_size": PIECES, "hidden_size": HIDDEN,
        "intermediate_size": INNER, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 12,
        "type_vocab_size": 1, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float32",
    }  # fmt: skip
    if head == "classifier":
        found["id2label"] = {str(row): label for row, label in enumerate(labels)}
        found["label2id"] = {label: row for row, label in enumerate(labels)}
    return found


def build(root: Path) -> None:
    """Every model that the cases name, under `root`."""
    for kind, layers, seed, dtype, tied in (
        ("llama", 2, 10, "F32", False), ("deep", 4, 20, "F32", False), ("qwen2", 2, 30, "BF16", True),
    ):  # fmt: skip
        shapes = llama_shapes(layers, bias=kind == "qwen2", tied=tied)
        base = drawn(shapes, seed)
        config = causal_config("qwen2" if kind == "qwen2" else "llama", layers, tied=tied)
        write_model(root / kind / "base", base, config, dtype=dtype)
        for place, name in enumerate("abc", start=1):
            write_model(root / kind / name, tuned(base, seed + place), config, dtype=dtype)
    _build_others(root)
    base = drawn(xlmr_shapes(), 40)
    write_model(root / "xlmr" / "base", base, xlmr_config())
    for place, name in enumerate("abc", start=41):
        write_model(root / "xlmr" / name, tuned(base, place), xlmr_config())


def _build_others(root: Path) -> None:
    """Models that differ from the Llama in one respect each: vocabulary, tied head, chat template."""
    base = drawn(llama_shapes(2), 10)
    rows = len(PIECES_OF_OTHER)
    other = tuned(base, 14)
    for name, seed in (("model.embed_tokens.weight", 15), ("lm_head.weight", 16)):
        fresh = drawn({name: (rows, HIDDEN)}, seed)[name]
        for place, piece in enumerate(PIECES_OF_OTHER):
            if piece in PIECES_OF_BASE:
                fresh[place] = other[name][PIECES_OF_BASE.index(piece)]
        other[name] = fresh
    write_model(
        root / "llama" / "other", other, causal_config("llama", 2, pieces=rows), pieces=PIECES_OF_OTHER
    )
    tied = {name: one for name, one in tuned(base, 17).items() if name != "lm_head.weight"}
    write_model(root / "llama" / "tied", tied, causal_config("llama", 2, tied=True))
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    write_model(root / "llama" / "chat", tuned(base, 18), causal_config("llama", 2), chat_template=template)
