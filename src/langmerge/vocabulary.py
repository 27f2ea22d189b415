"""What the ids of a checkpoint stand for: the pieces in its tokenizer.json, read without the tokenizers library."""

import gc
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from langmerge.errors import CheckpointError

TOKENIZER_FILE = "tokenizer.json"

_HEAD = 1 << 16
_CHUNK = 1 << 18


@dataclass(frozen=True)
class Vocabulary:
    """The pieces of a tokenizer.

    Attributes:
        kind: `BPE`, `Unigram`, `WordLevel` or `WordPiece`; empty in files that do not say.
        pieces: by id, from 0, the added tokens included; every piece once.
    """

    kind: str
    pieces: tuple[str, ...]


@dataclass(frozen=True)
class Stamp:
    """A file as it was when looked at: what is known of it holds as long as this is the same."""

    file: Path
    size: int
    changed: int
    inode: tuple[int, int]


def stamp(file: Path) -> Stamp | None:
    """The file's stamp, None where there is no such file."""
    try:
        found = file.stat()
    except OSError:
        return None
    return Stamp(file, found.st_size, found.st_mtime_ns, (found.st_dev, found.st_ino))


def read_vocabulary(file: Path) -> Vocabulary:
    """The pieces of a tokenizer.json by id.

    Raises:
        CheckpointError: it is no tokenizer file, or an id has no piece, two pieces, or a piece two ids.
    """
    return vocabulary_of(read_tokenizer(file), file)


def read_tokenizer(file: Path) -> dict[str, Any]:
    """The document in a tokenizer.json.

    Raises:
        CheckpointError: it cannot be read, is not JSON, or names a key (a piece) twice.
    """
    twice: list[str] = []

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        # JSON allows it, and the last one wins: a piece with two ids would go unseen.
        if len(found) < len(pairs):
            twice.append(_repeated([key for key, _ in pairs]))
        return found

    try:
        with _collector_paused():
            document = json.loads(file.read_bytes(), object_pairs_hook=once)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise CheckpointError(f"{file} is no tokenizer file") from None
    if twice:
        raise CheckpointError(f"{file} names {twice[0]!r} twice: every piece needs one id")
    if not isinstance(document, dict):
        raise CheckpointError(f"{file} is no tokenizer file")
    return document


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Python looks for garbage after every few hundred new lists; a unigram model is 250,000 of them, none garbage."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def vocabulary_of(document: dict[str, Any], file: Path) -> Vocabulary:
    """The pieces of a tokenizer document by id.

    Args:
        document: from `read_tokenizer`.
        file: where it is from, for the messages.

    Raises:
        CheckpointError: as for `read_vocabulary`.
    """
    try:
        kind, pieces = _model_pieces(document["model"], file)
        ids = dict(zip(pieces, range(len(pieces)), strict=True))
        if len(ids) < len(pieces):
            raise CheckpointError(
                f"{file} lists the piece {_repeated(pieces)!r} twice: every piece needs one id"
            )
        _add_tokens(document.get("added_tokens") or [], ids, file)
        # A lone half of a surrogate pair could not be written to any report.
        "".join(ids).encode()
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError):
        raise CheckpointError(f"{file} is no tokenizer file") from None
    return Vocabulary(kind, tuple(ids))


def _model_pieces(model: dict[str, Any], file: Path) -> tuple[str, list[str]]:
    """Type and pieces of the model; the added tokens are still missing."""
    kind, vocab = str(model.get("type") or ""), model["vocab"]
    if isinstance(vocab, list):
        # A unigram model lists [piece, score]; the place is the id.
        return kind, [piece for piece, _ in vocab]
    pieces, ids = list(vocab), np.array([*vocab.values()])
    if ids.size and (ids.dtype.kind != "i" or ids.min() < 0):
        raise TypeError("ids are whole numbers from 0")
    order = np.argsort(ids, kind="stable")
    wrong = np.flatnonzero(ids[order] != np.arange(len(ids)))
    if wrong.size:
        place = int(wrong[0])
        found = int(ids[order[place]])
        if found < place:
            one, other = pieces[order[place - 1]], pieces[order[place]]
            raise CheckpointError(f"{file} gives the id {found} to both {one!r} and {other!r}")
        raise CheckpointError(f"{file} gives no piece for the id {place} though it has {found}")
    return kind, [pieces[place] for place in order]


def _add_tokens(added: list[dict[str, Any]], ids: dict[str, int], file: Path) -> None:
    """Add the tokens that the model does not list; they must follow its ids in order, or a reader renumbers them."""
    for token in added:
        content, given = token["content"], token["id"]
        expected = ids.setdefault(content, len(ids))
        if given != expected:
            raise CheckpointError(
                f"{file} gives the added token {content!r} the id {given}, where {expected} is its place: "
                "save the tokenizer again with the tokenizers library, and check the embeddings"
            )


def _repeated(names: list[str]) -> str:
    """The first name that occurs a second time."""
    seen: set[str] = set()
    return next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]


def same_pieces(one: Stamp, other: Stamp) -> bool:
    """Whether two files give the same pieces the same ids; equal bytes are not parsed.

    Raises:
        CheckpointError: the bytes differ and one is no tokenizer file.
    """
    return same_bytes(one, (other,))[0] or _same_when_parsed(one, other)


@lru_cache(maxsize=256)
def _same_when_parsed(one: Stamp, other: Stamp) -> bool:
    # The other first: where many are compared with one, each that is garbled is named.
    return read_vocabulary(other.file).pieces == read_vocabulary(one.file).pieces


@lru_cache(maxsize=256)
def same_bytes(first: Stamp, others: tuple[Stamp, ...]) -> tuple[bool, ...]:
    """Whether each tokenizer file is equal to the first in all that says what an id means.

    A tokenizer is saved with the truncation and padding of its last use, in front of its tokens: experts' files
    differ there and nowhere else. All files are read side by side, each once.
    """
    with ExitStack() as stack:
        opened = {one: stack.enter_context(one.file.open("rb", buffering=0)) for one in (first, *others)}
        starts = {one: _start_of_tokens(file.read(_HEAD)) for one, file in opened.items()}
        for one, file in opened.items():
            file.seek(starts[one])
        length = first.size - starts[first]
        same = {one: one.size - starts[one] == length for one in opened}
        while chunk := opened[first].read(_CHUNK):
            for one, file in opened.items():
                if one != first and one.inode != first.inode and same[one]:
                    same[one] = file.read(_CHUNK) == chunk
    return tuple(same[one] for one in others)


def _start_of_tokens(head: bytes) -> int:
    """Offset of the key `added_tokens`, 0 where the vocabulary may come before it.

    Inside a JSON string the quotes would be escaped, so these bytes are a key.
    """
    place = head.find(b'"added_tokens"')
    return place if place > 0 and b'"vocab"' not in head[:place] else 0
