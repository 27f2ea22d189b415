"""Models of any size that take no place on the disk: headers, and zeros behind them."""

import json
from collections.abc import Iterator
from pathlib import Path

from tests.checkpoint.hostile import WIDTHS, sparse

WIDTH, INNER, PIECES, LAYERS, KEYS = 8192, 28672, 128_256, 80, 1024


def llama_70b() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the 723 tensors of a Llama of 70 B parameters."""
    yield "model.embed_tokens.weight", (PIECES, WIDTH)
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        yield f"{prefix}.input_layernorm.weight", (WIDTH,)
        yield f"{prefix}.mlp.down_proj.weight", (WIDTH, INNER)
        yield f"{prefix}.mlp.gate_proj.weight", (INNER, WIDTH)
        yield f"{prefix}.mlp.up_proj.weight", (INNER, WIDTH)
        yield f"{prefix}.post_attention_layernorm.weight", (WIDTH,)
        yield f"{prefix}.self_attn.k_proj.weight", (KEYS, WIDTH)
        yield f"{prefix}.self_attn.o_proj.weight", (WIDTH, WIDTH)
        yield f"{prefix}.self_attn.q_proj.weight", (WIDTH, WIDTH)
        yield f"{prefix}.self_attn.v_proj.weight", (KEYS, WIDTH)
    yield "model.norm.weight", (WIDTH,)
    yield "lm_head.weight", (PIECES, WIDTH)


def write_sparse_llama(folder: Path, *, shard: int = 5_000_000_000) -> Path:
    """Such a model in bfloat16: 141 GB in 30 shards, a few kilobytes on the disk."""
    folder.mkdir(parents=True)
    config = {"model_type": "llama", "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "vocab_size": PIECES}
    (folder / "config.json").write_text(json.dumps(config))
    shards: list[dict[str, tuple[str, tuple[int, ...]]]] = [{}]
    size = 0
    for name, shape in llama_70b():
        nbytes = WIDTHS["BF16"]
        for axis in shape:
            nbytes *= axis
        if shards[-1] and size + nbytes > shard:
            shards.append({})
            size = 0
        shards[-1][name] = "BF16", shape
        size += nbytes
    weight_map = {}
    for number, tensors in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        sparse(folder / file, tensors)
        weight_map |= dict.fromkeys(tensors, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder
