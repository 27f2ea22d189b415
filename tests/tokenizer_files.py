"""Tokenizer files of every kind, a few pieces each."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def added_token(piece: str, number: int, **flags: bool) -> dict[str, Any]:
    off = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return {"id": number, "content": piece, **off, **flags}


def unigram(pieces: Sequence[str], scores: Mapping[str, float] | None = None) -> dict[str, Any]:
    return {
        "type": "Unigram",
        "unk_id": 0,
        "vocab": [[piece, (scores or {}).get(piece, -1.0)] for piece in pieces],
    }


def listed(kind: str, pieces: Sequence[str], **settings: Any) -> dict[str, Any]:
    return {"type": kind, "vocab": {piece: number for number, piece in enumerate(pieces)}, **settings}


def write_tokenizer_file(
    folder: Path,
    model: Mapping[str, Any],
    added: Sequence[Mapping[str, Any]] = (),
    **parts: Any,
) -> Path:
    """A folder with a tokenizer.json, in the order of keys that the tokenizers library writes."""
    folder.mkdir(parents=True, exist_ok=True)
    head = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": list(added)}
    rest = dict.fromkeys(("normalizer", "pre_tokenizer", "post_processor", "decoder"))
    text = json.dumps(head | rest | parts | {"model": dict(model)}, ensure_ascii=False)
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    return folder
