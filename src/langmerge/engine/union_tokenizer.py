"""The tokenizer.json of a union: the first checkpoint's, with the pieces that it lacks at the next ids."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from langmerge.errors import CheckpointError, OutputError, PlanError
from langmerge.vocabulary import TOKENIZER_FILE, read_tokenizer, same_bytes, stamp, vocabulary_of

_KINDS = ("BPE", "Unigram", "WordLevel", "WordPiece")

_PARTS = ("normalizer", "pre_tokenizer", "decoder")
"""What turns text into pieces: where these differ, equal pieces stand for different text."""

_VOCABULARY_KEYS = frozenset({"type", "vocab", "merges", "unk_id"})


@dataclass(frozen=True)
class _Tokenizer:
    """A tokenizer document with its pieces by id."""

    document: dict[str, Any]
    pieces: tuple[str, ...]

    @property
    def model(self) -> dict[str, Any]:
        found: dict[str, Any] = self.document["model"]
        return found

    @cached_property
    def added(self) -> dict[str, dict[str, Any]]:
        """Added tokens by their text."""
        return {token["content"]: token for token in self.document.get("added_tokens") or []}

    @cached_property
    def scores(self) -> dict[str, float]:
        """Scores of a unigram model by piece; those of added tokens, which are matched before it, left out."""
        added = self.added
        return {piece: score for piece, score in self.model["vocab"] if piece not in added}


@dataclass(frozen=True)
class _NewPiece:
    """A piece that the first checkpoint lacks.

    Attributes:
        piece: its text.
        added: its entry among the added tokens, None where it is only in the model.
        score: of a unigram model, 0 elsewhere.
    """

    piece: str
    added: Mapping[str, Any] | None
    score: float


def union_tokenizer(tokenizers: Mapping[str, Path]) -> dict[str, Any]:
    """The document of a tokenizer that gives every piece the row that `align(…, "union")` gives it.

    Added tokens stay added tokens. Other new pieces join the model's list: all of WordLevel's, WordPiece's and
    Unigram's (whose scores must agree on the shared pieces), and those of BPE that no merge makes. Texts are cut by
    more pieces than before, so a source's text may be cut otherwise than that source cuts it. Everything else, the
    template of special tokens included, is the first checkpoint's.

    Args:
        tokenizers: folder of every checkpoint, in `align`'s order.

    Raises:
        PlanError: no such tokenizer can be made; for every checkpoint, why.
    """
    (first, folder), *others = tokenizers.items()
    faults: list[str] = []
    base = _read(folder, faults)
    known, new = set(base.pieces if base else ()), list[_NewPiece]()
    for name, other in others:
        if base is None or _equal_files(folder, other):
            continue
        found = _read(other, faults)
        if found is None:
            continue
        own = _new_pieces(found, known)
        if fault := _difference(base, found) or _merge_fault(found, own):
            faults.append(
                f"the tokenizers of {first} and {name} have no union: {fault}; take one's vocabulary"
            )
        new += own
        known.update(one.piece for one in own)
    if base is None or faults:
        raise PlanError(faults)
    return _extended(base, new)


def write_tokenizer(folder: Path, document: Mapping[str, Any]) -> Path:
    """Write a tokenizer.json.

    Raises:
        OutputError: it cannot be written.
    """
    file = folder / TOKENIZER_FILE
    try:
        file.write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{file} cannot be written: {error.strerror}") from None
    return file


def _read(folder: Path, faults: list[str]) -> _Tokenizer | None:
    file = folder / TOKENIZER_FILE
    try:
        document = read_tokenizer(file)
        return _Tokenizer(document, vocabulary_of(document, file).pieces)
    except CheckpointError as error:
        faults.append(str(error))
        return None


def _equal_files(one: Path, other: Path) -> bool:
    left, right = stamp(one / TOKENIZER_FILE), stamp(other / TOKENIZER_FILE)
    return left is not None and right is not None and same_bytes(left, (right,))[0]


def _new_pieces(found: _Tokenizer, known: set[str]) -> list[_NewPiece]:
    """The pieces of a checkpoint that are not known yet, by id."""
    added = found.added
    scores = found.scores if found.model.get("type") == "Unigram" else {}
    return [
        _NewPiece(piece, added.get(piece), scores.get(piece, 0.0))
        for piece in found.pieces
        if piece not in known
    ]


def _difference(base: _Tokenizer, found: _Tokenizer) -> str:
    """What forbids one list for both, empty where nothing does."""
    kinds = [one.model.get("type") for one in (base, found)]
    if kinds[0] != kinds[1] or kinds[0] not in _KINDS:
        return f"their types are {kinds[0] or 'not said'} and {kinds[1] or 'not said'}"
    for part in _PARTS:
        if base.document.get(part) != found.document.get(part):
            return f"their {part} differs, so that equal pieces stand for different text"
    settings, others = _settings(base.model), _settings(found.model)
    if different := sorted(key for key in {*settings, *others} if settings.get(key) != others.get(key)):
        return f"their models differ in {', '.join(different)}"
    if kinds[0] == "Unigram":
        scores, other_scores = base.scores, found.scores
        shared = scores.keys() & other_scores.keys()
        if any(abs(scores[piece] - other_scores[piece]) > 1e-6 for piece in shared):
            return "the scores of shared pieces differ, and those of two trainings cannot be compared"
    return ""


def _settings(model: Mapping[str, Any]) -> dict[str, Any]:
    """The model's settings; older files leave out what is off."""
    return {key: value for key, value in model.items() if key not in _VOCABULARY_KEYS and value}


def _merge_fault(found: _Tokenizer, new: Sequence[_NewPiece]) -> str:
    """Two lists of merges have no common order, so no new piece of a BPE model may need a merge."""
    pieces = {one.piece for one in new if one.added is None}
    if found.model.get("type") != "BPE" or not pieces:
        return ""
    prefix = found.model.get("continuing_subword_prefix") or ""
    for merge in found.model.get("merges") or []:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        if (made := left + right.removeprefix(prefix)) in pieces:
            return f"the second makes the piece {made!r} by a merge, and two lists of merges have no common order"
    return ""


def _extended(base: _Tokenizer, new: Sequence[_NewPiece]) -> dict[str, Any]:
    """The base's document with the new pieces at the next ids."""
    ids = {one.piece: len(base.pieces) + place for place, one in enumerate(new)}
    added = [*(base.document.get("added_tokens") or [])]
    added += [{**one.added, "id": ids[one.piece]} for one in new if one.added]
    document = {**base.document, "added_tokens": added}
    if all(one.added for one in new):
        return document
    # A reader gives added tokens that the model does not list the ids behind the model's, so it must list all.
    vocab = base.model["vocab"]
    behind = [*base.pieces[len(vocab) :], *ids]
    if isinstance(vocab, list):
        lowest = min((score for _, score in vocab), default=0.0)
        scores = {one.piece: one.score for one in new if not one.added}
        extended: Any = [*vocab, *([piece, scores.get(piece, lowest)] for piece in behind)]
    else:
        extended = vocab | {piece: len(vocab) + place for place, piece in enumerate(behind)}
    return {**document, "model": {**base.model, "vocab": extended}}
