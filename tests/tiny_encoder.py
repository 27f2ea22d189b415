"""A tiny pretrained XLM-R with its tokenizer, for tests that train or predict."""

from pathlib import Path

import numpy as np
import torch
from transformers import XLMRobertaConfig, XLMRobertaModel, XLMRobertaTokenizer

WORDS = ("wake", "me", "up", "play", "music", "stop", "rain", "sun", "today", "please")


def write_tiny_encoder(folder: Path) -> Path:
    """Write a two-layer encoder of width 32 that knows WORDS."""
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *(f"▁{word}" for word in WORDS), "<mask>"]
    config = XLMRobertaConfig(
        vocab_size=len(pieces), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=34, type_vocab_size=1,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        XLMRobertaModel(config, add_pooling_layer=False).save_pretrained(folder)
    scores = np.array([0, 0, 0, 0, *(-1.0 - i for i in range(len(WORDS))), 0], dtype=np.float32)
    XLMRobertaTokenizer(vocab=list(zip(pieces, scores.tolist(), strict=True))).save_pretrained(folder)
    return folder
