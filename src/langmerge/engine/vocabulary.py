"""Which row of every checkpoint's embeddings stands for which piece of the output."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import repeat
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from langmerge.errors import CheckpointError, PlanError
from langmerge.vocabulary import (
    TOKENIZER_FILE,
    Stamp,
    Vocabulary,
    read_vocabulary,
    same_bytes,
    same_pieces,
    stamp,
)

UNION = "union"
"""Asks `align` for the pieces of all checkpoints."""

_NAMED = 5
"""Pieces that a report names."""

_OTHER_FILES = (
    "sentencepiece.bpe.model", "spiece.model", "spm.model", "tokenizer.model", "vocab.txt", "vocab.json",
)  # fmt: skip
"""Tokenizer files that are not read."""

_INPUT = re.compile(
    r"(?:^|\.)(?:embed_tokens|word_embeddings?|tok_embeddings|tokens_embed|wte|embed_in|embeddings?|shared)\.weight$"
)
_OUTPUT = re.compile(
    r"(?:^|\.)(?:(?:lm_head|lm_head\.decoder|generator_lm_head|embed_out|lm_loss|vocab_projector|output_layer"
    r"|pred_layer\.proj|predictions\.decoder)\.(?:weight|bias)|predictions\.bias|embed_tokens_per_layer\.weight)$"
    r"|^(?:decoder|head|output)\.(?:weight|bias)$"
)


class HasFolder(Protocol):
    """A checkpoint, as far as its tokenizer goes."""

    @property
    def folder(self) -> Path:
        """Where its files are."""
        ...


@dataclass(frozen=True)
class Alignment:
    """How the rows of every checkpoint's embeddings stand for the output's pieces.

    Attributes:
        pieces: rows of the output's embeddings, those without a piece (padding) included.
        rows: per checkpoint, int64 of shape (pieces,): its row for each row of the output, -1 where it has none.
            Only where that is not 0, 1, 2, …: a checkpoint left out is read from its row 0 to `pieces`.
        report: for the receipt, JSON: the reference, pieces and rows of the output, and per checkpoint what is
            shared, missing, extra and moved.
    """

    pieces: int
    rows: Mapping[str, np.ndarray]
    report: Mapping[str, Any]


@dataclass(frozen=True)
class _Asked:
    """One checkpoint of an alignment: its name, its folder, its tokenizer file and the rows of its embeddings."""

    name: str
    folder: Path
    file: Stamp | None
    size: int


def is_vocabulary_tensor(name: str, shape: tuple[int, ...], size: int) -> bool:
    """Whether a tensor's rows are pieces: input embeddings, and weight and bias of a language-model head.

    Args:
        name: of the tensor.
        shape: of the tensor.
        size: rows of the checkpoint's input embeddings.

    >>> is_vocabulary_tensor("lm_head.weight", (9, 4), 9), is_vocabulary_tensor("lm_head.dense.weight", (4, 4), 9)
    (True, False)
    """
    return bool(shape) and shape[0] == size and bool(_INPUT.search(name) or _OUTPUT.search(name))


def vocabulary_size(shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """Rows of the input embeddings among these tensors, None where no name is known."""
    return next(
        (shapes[name][0] for name in sorted(shapes) if _INPUT.search(name) and len(shapes[name]) == 2), None
    )


def tokenizer_faults(base: HasFolder | None, sources: Mapping[str, HasFolder], faults: list[str]) -> None:
    """Add a fault where tokenizers give other ids: such embeddings cannot be shared, even where the sizes agree."""
    everyone = {"the base": base, **sources} if base else sources
    stamps = {name: stamp(one.folder / TOKENIZER_FILE) for name, one in everyone.items()}
    found = {name: file for name, file in stamps.items() if file}
    first = next(iter(found), "")
    others = []
    for name, file in found.items():
        try:
            if not same_pieces(found[first], file):
                others.append(name)
        except CheckpointError as error:
            if str(error) not in faults:
                faults.append(str(error))
    if others:
        faults.append(
            f"the tokenizers of {', '.join(others)} and {first} have different vocabularies: use one tokenizer for all"
        )


def align(tokenizers: Mapping[str, Path], sizes: Mapping[str, int], reference: str) -> Alignment:
    """Find the row of every piece of the output in every checkpoint.

    A row beyond a checkpoint's pieces (its embeddings are padded) is matched by its number with rows that have no
    piece either. The union has the pieces of the first checkpoint at its ids, then the new ones of every other
    checkpoint in the order of their ids; it keeps the first one's padding as long as the new pieces fit in.

    A checkpoint without tokenizer.json (the sentencepiece model is not read) cannot be compared: with as many rows
    as the reference it is taken to have the same ids, and the report says so.

    Args:
        tokenizers: folder of every checkpoint; of a union, the base (or what comes first in it) first.
        sizes: rows of every checkpoint's input embeddings.
        reference: the checkpoint whose vocabulary the output gets, or `union`.

    Returns:
        The alignment. Where all tokenizer files are equal, nothing is parsed.

    Raises:
        PlanError: with every fault found: an unknown reference, a file that is no tokenizer file or gives an id two
            pieces or none, more pieces than rows, another kind of tokenizer, no piece in common, another size and no
            tokenizer.json.
    """
    asked = tuple(
        _Asked(name, folder, stamp(folder / TOKENIZER_FILE), sizes[name])
        for name, folder in tokenizers.items()
    )
    found = _aligned(asked, reference)
    # Copies, for the next caller gets the same arrays.
    return Alignment(found.pieces, {name: rows.copy() for name, rows in found.rows.items()}, found.report)


@lru_cache(maxsize=8)
def _aligned(asked: tuple[_Asked, ...], reference: str) -> Alignment:
    """`align` of files as they are now; kept, for a study plans the same inputs many times."""
    names = [one.name for one in asked]
    if UNION in names:
        raise PlanError(
            [f"a checkpoint is named {UNION!r}, which asks for the union of all: give it another name"]
        )
    if reference != UNION and reference not in names:
        raise PlanError(
            [f"no checkpoint is named {reference!r}: choose {UNION} or one of {', '.join(names)}"]
        )
    first = asked[0] if reference == UNION else asked[names.index(reference)]
    alike = _alike(asked, first)
    if len(alike) == len(asked) and len({one.size for one in asked}) == 1:
        entries = {one.name: _same_entry(one) for one in asked}
        report = {"reference": reference, "equal": True, "rows": first.size, "checkpoints": entries}
        return Alignment(first.size, {}, report)
    return _matched(asked, first, alike, reference)


def _alike(asked: Sequence[_Asked], first: _Asked) -> set[str]:
    """The checkpoints that have the reference's vocabulary, as far as can be told without parsing.

    Raises:
        PlanError: checkpoints that cannot be compared.
    """
    if first.file is None:
        return _alike_without_file(asked, first)
    unknown = [one for one in asked if one.file is None]
    if faults := [_incomparable(one, first) for one in unknown if one.size != first.size]:
        raise PlanError(faults)
    known = {one.name: one.file for one in asked if one.file}
    same = same_bytes(first.file, tuple(known.values()))
    return {one.name for one in unknown} | {name for name, equal in zip(known, same, strict=True) if equal}


def _alike_without_file(asked: Sequence[_Asked], first: _Asked) -> set[str]:
    """The same for a reference without tokenizer.json: all that have one must agree."""
    if other := [one for one in asked if one.size != first.size]:
        raise PlanError([_incomparable(first, one) for one in other])
    known = {one.name: one.file for one in asked if one.file}
    faults: list[str] = []
    for name, file in known.items():
        try:
            if not same_pieces(next(iter(known.values())), file):
                faults.append(
                    f"{name} and {next(iter(known))} have different vocabularies and {first.name} ({first.folder}) "
                    f"has {_without(first)}: take one of them as reference"
                )
        except CheckpointError as error:
            faults.append(str(error))
    if faults:
        raise PlanError(list(dict.fromkeys(faults)))
    return {one.name for one in asked}


def _incomparable(one: _Asked, other: _Asked) -> str:
    return (
        f"{one.name} ({one.folder}) has {_without(one)} and {one.size} rows of embeddings where {other.name} has "
        f"{other.size}: its pieces cannot be compared; save its tokenizer as {TOKENIZER_FILE} (a fast tokenizer)"
    )


def _without(one: _Asked) -> str:
    others = [name for name in _OTHER_FILES if (one.folder / name).exists()]
    return f"no {TOKENIZER_FILE}" + (f" (only {', '.join(others)})" if others else "")


def _same_entry(one: _Asked) -> dict[str, Any]:
    if one.file is None:
        return {"rows": one.size, "same": True, "compared": False, "reason": _without(one)}
    return {"rows": one.size, "same": True}


def _matched(asked: Sequence[_Asked], first: _Asked, alike: set[str], reference: str) -> Alignment:
    """The alignment by the pieces of the files, which are parsed one at a time."""
    faults: list[str] = []
    own = _pieces_of(first, None, faults)
    if own is None:
        raise PlanError(faults)
    index = dict(zip(own.pieces, range(len(own.pieces)), strict=True))
    same = np.arange(len(index))
    places: dict[str, tuple[np.ndarray, list[str]]] = {}
    for one in asked:
        if one.name in alike:
            places[one.name] = same, []
            if len(same) > one.size:
                faults += [_too_few_rows(one, len(same))]
        elif (found := _pieces_of(one, own, faults)) is not None:
            places[one.name] = _places(found.pieces, index, extend=reference == UNION)
            found_places = places[one.name][0]
            if not np.any((found_places >= 0) & (found_places < len(same))):
                faults.append(
                    f"{one.name} and {first.name} have no piece in common: use one tokenizer for all"
                )
    if faults:
        raise PlanError(faults)
    size = max(len(index), first.size) if reference == UNION else first.size
    pieces = list(index)
    rows, entries = {}, {}
    for one in asked:
        found_rows = _rows(places[one.name][0], len(pieces), one.size, size)
        identical = np.array_equal(found_rows, np.arange(size))
        if not identical:
            rows[one.name] = found_rows
        known = identical and one.size == size
        entries[one.name] = _same_entry(one) if known else _entry(one, *places[one.name], found_rows, pieces)
    report = {"reference": reference, "equal": all(entry["same"] for entry in entries.values())}
    return Alignment(size, rows, {**report, "rows": size, "pieces": len(pieces), "checkpoints": entries})


def _pieces_of(one: _Asked, first: Vocabulary | None, faults: list[str]) -> Vocabulary | None:
    """A checkpoint's vocabulary, None with a fault where it cannot be aligned with the first one's."""
    file = one.folder / TOKENIZER_FILE
    try:
        found = read_vocabulary(file)
    except CheckpointError as error:
        faults.append(str(error))
        return None
    if len(found.pieces) > one.size:
        faults.append(_too_few_rows(one, len(found.pieces)))
        return None
    if first and first.kind and found.kind and found.kind != first.kind:
        # Ġthe, ▁the and ##the are no common pieces, and what two kinds share by letters they share by accident.
        faults.append(
            f"{file} is a {found.kind} tokenizer, the reference's is {first.kind}: their pieces differ in kind"
        )
        return None
    return found


def _too_few_rows(one: _Asked, pieces: int) -> str:
    return (
        f"{one.name} ({one.folder}) has {pieces} pieces in {TOKENIZER_FILE} and {one.size} rows of embeddings: "
        "give it the tokenizer that it was trained with, or resize its embeddings"
    )


def _places(pieces: Sequence[str], index: dict[str, int], *, extend: bool) -> tuple[np.ndarray, list[str]]:
    """The output's row of every piece, -1 where it has none, and the first pieces it has not.

    Args:
        pieces: of a checkpoint.
        index: the output's rows by piece.
        extend: give new pieces the next rows.
    """
    places = np.fromiter(map(index.get, pieces, repeat(-1)), np.int64, len(pieces))
    new = np.flatnonzero(places < 0)
    if extend:
        places[new] = np.arange(len(index), len(index) + len(new))
        for own in new.tolist():
            index[pieces[own]] = len(index)
        return places, []
    return places, [pieces[own] for own in new[:_NAMED].tolist()]


def _rows(places: np.ndarray, pieces: int, own_size: int, size: int) -> np.ndarray:
    """The checkpoint's row for each of the output's `size` rows, of which `pieces` have a piece."""
    rows = np.full(size, -1, np.int64)
    held = np.flatnonzero(places >= 0)
    rows[places[held]] = held
    padding = np.arange(max(len(places), pieces), min(own_size, size))
    rows[padding] = padding
    return rows


def _entry(
    one: _Asked, places: np.ndarray, extra: list[str], rows: np.ndarray, pieces: Sequence[str]
) -> dict[str, Any]:
    """What the report says of a checkpoint whose rows are not the output's."""
    found = rows[: len(pieces)]
    missing = np.flatnonzero(found < 0)
    shared = np.flatnonzero(found >= 0)
    return {
        "rows": one.size,
        "same": False,
        "pieces": len(places),
        "shared": len(shared),
        "missing": {"count": len(missing), "first": [pieces[row] for row in missing[:_NAMED].tolist()]},
        "extra": {"count": int((places < 0).sum()), "first": extra},
        "moved": int((found[shared] != shared).sum()),
    }
