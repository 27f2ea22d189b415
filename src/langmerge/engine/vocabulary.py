"""Whether the checkpoints of a merge mean the same piece by the same id."""

import json
from collections.abc import Mapping
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

from langmerge.checkpoint import Checkpoint


def tokenizer_faults(base: Checkpoint | None, sources: Mapping[str, Checkpoint], faults: list[str]) -> None:
    """Checkpoints whose tokenizers give other ids cannot share embeddings, even where the sizes agree."""
    everyone = {"the base": base, **sources} if base else sources
    hashes: dict[str, str] = {}
    for name, checkpoint in everyone.items():
        file = checkpoint.folder / "tokenizer.json"
        if file.exists():
            stat = file.stat()
            try:
                hashes[name] = _vocabulary_hash(file, stat.st_size, stat.st_mtime_ns)
            except (ValueError, KeyError, TypeError):
                faults.append(f"{file} is no tokenizer file")
    first = next(iter(hashes), "")
    if others := [name for name, found in hashes.items() if found != hashes[first]]:
        faults.append(
            f"the tokenizers of {', '.join(others)} and {first} have different vocabularies: use one tokenizer for all"
        )


@lru_cache(maxsize=256)
def _vocabulary_hash(file: Path, size: int, changed: int) -> str:  # noqa: ARG001
    """Hash of the pieces by id; size and time of change belong to the key, so that a study reads each file once."""
    found = json.loads(file.read_bytes())["model"]["vocab"]
    # A unigram model lists [piece, score]; only the piece says what an id means.
    pieces = [entry[0] for entry in found] if isinstance(found, list) else found
    return sha256(json.dumps(pieces, sort_keys=True).encode()).hexdigest()
