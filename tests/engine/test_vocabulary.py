import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from langmerge import vocabulary as reading
from langmerge.engine.vocabulary import (
    Alignment,
    align,
    is_vocabulary_tensor,
    tokenizer_faults,
    vocabulary_size,
)
from langmerge.errors import PlanError
from tests.tokenizer_files import added_token, listed, unigram, write_tokenizer_file

BASE = ("<unk>", "a", "b", "c")


def folders(root: Path, **pieces: Sequence[str]) -> dict[str, Path]:
    return {name: write_tokenizer_file(root / name, unigram(own)) for name, own in pieces.items()}


def aligned(root: Path, reference: str, **pieces: Sequence[str]) -> Alignment:
    """Checkpoints with as many rows as pieces."""
    return align(folders(root, **pieces), {name: len(own) for name, own in pieces.items()}, reference)


def rows_of(alignment: Alignment) -> dict[str, list[int]]:
    return {name: rows.tolist() for name, rows in alignment.rows.items()}


def faults_of(tokenizers: Mapping[str, Path], sizes: Mapping[str, int], reference: str) -> tuple[str, ...]:
    with pytest.raises(PlanError) as caught:
        align(tokenizers, sizes, reference)
    return caught.value.faults


def test_equal_files_are_not_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def parsed(*_: object) -> None:
        raise AssertionError("it was parsed")

    monkeypatch.setattr(reading, "read_tokenizer", parsed)
    for reference in ("base", "sw-KE", "union"):
        found = aligned(tmp_path, reference, base=BASE, **{"sw-KE": BASE})
        assert (found.pieces, dict(found.rows)) == (4, {})
        assert found.report == {
            "reference": reference,
            "equal": True,
            "rows": 4,
            "checkpoints": {"base": {"rows": 4, "same": True}, "sw-KE": {"rows": 4, "same": True}},
        }


def test_another_order(tmp_path: Path) -> None:
    found = aligned(tmp_path, "base", base=BASE, one=("<unk>", "c", "a", "b"), two=BASE)
    assert rows_of(found) == {"one": [0, 2, 3, 1]}
    assert found.report == {
        "reference": "base",
        "equal": False,
        "rows": 4,
        "pieces": 4,
        "checkpoints": {
            "base": {"rows": 4, "same": True},
            "one": {
                "rows": 4,
                "same": False,
                "pieces": 4,
                "shared": 4,
                "missing": {"count": 0, "first": []},
                "extra": {"count": 0, "first": []},
                "moved": 3,
            },
            "two": {"rows": 4, "same": True},
        },
    }
    assert json.loads(json.dumps(found.report)) == found.report


def test_missing_and_extra_pieces_are_counted_and_the_first_are_named(tmp_path: Path) -> None:
    more = tuple(f"m{number}" for number in range(7))
    found = aligned(tmp_path, "base", base=("<unk>", *more, "a"), one=("<unk>", "a", "x", "y"))
    assert rows_of(found) == {"one": [0, *[-1] * 7, 1]}
    entry = found.report["checkpoints"]["one"]
    assert entry["missing"] == {"count": 7, "first": ["m0", "m1", "m2", "m3", "m4"]}
    assert entry["extra"] == {"count": 2, "first": ["x", "y"]}
    assert (entry["pieces"], entry["shared"], entry["moved"]) == (4, 2, 1)


def test_a_source_as_reference(tmp_path: Path) -> None:
    found = aligned(tmp_path, "one", base=BASE, one=(*BASE, "x"))
    assert found.pieces == 5
    assert rows_of(found) == {"base": [0, 1, 2, 3, -1]}
    # The other way, the source is read in its first rows.
    found = aligned(tmp_path, "base", base=BASE, one=(*BASE, "x"))
    assert (found.pieces, rows_of(found)) == (4, {})
    assert found.report["equal"] is False
    assert found.report["checkpoints"]["one"]["extra"] == {"count": 1, "first": ["x"]}


def test_a_union(tmp_path: Path) -> None:
    pieces = {"base": BASE, "one": ("<unk>", "x", "c", "y"), "two": (*BASE, "z", "y"), "three": BASE}
    found = aligned(tmp_path, "union", **pieces)
    # <unk> a b c | x y | z
    assert found.pieces == 7
    assert rows_of(found) == {
        "base": [0, 1, 2, 3, -1, -1, -1],
        "one": [0, -1, -1, 2, 1, 3, -1],
        "two": [0, 1, 2, 3, -1, 5, 4],
        "three": [0, 1, 2, 3, -1, -1, -1],
    }
    assert found.report["pieces"] == 7
    assert found.report["checkpoints"]["one"]["missing"] == {"count": 3, "first": ["a", "b", "z"]}
    assert {entry["extra"]["count"] for entry in found.report["checkpoints"].values()} == {0}


def test_rows_without_a_piece_are_matched_by_number(tmp_path: Path) -> None:
    tokenizers = folders(tmp_path, base=BASE, one=BASE, two=(*BASE, "x"))
    sizes = {"base": 7, "one": 6, "two": 8}
    found = align(tokenizers, sizes, "base")
    assert found.pieces == 7
    # Row 4 of two has a piece; the base's row 4 has none, and neither is the other's.
    assert rows_of(found) == {"one": [0, 1, 2, 3, 4, 5, -1], "two": [0, 1, 2, 3, -1, 5, 6]}
    assert found.report["pieces"] == 4
    assert found.report["checkpoints"]["one"]["missing"] == {"count": 0, "first": []}
    # New pieces take the padding's place first.
    found = align(tokenizers, sizes, "union")
    assert found.pieces == 7
    assert rows_of(found) == {"base": [0, 1, 2, 3, -1, 5, 6], "one": [0, 1, 2, 3, -1, 5, -1]}


def test_added_tokens_are_pieces(tmp_path: Path) -> None:
    tokenizers = folders(tmp_path, base=BASE)
    tokenizers["one"] = write_tokenizer_file(tmp_path / "one", unigram(BASE), [added_token("<mask>", 4)])
    found = align(tokenizers, {"base": 4, "one": 5}, "union")
    assert rows_of(found) == {"base": [0, 1, 2, 3, -1]}


def test_the_same_pieces_in_another_file_are_equal(tmp_path: Path) -> None:
    tokenizers = folders(tmp_path, base=BASE)
    tokenizers["one"] = write_tokenizer_file(tmp_path / "one", unigram(BASE, {"a": -2.0}))
    found = align(tokenizers, {"base": 4, "one": 4}, "base")
    assert dict(found.rows) == {}
    assert found.report["equal"] is True


def test_what_a_caller_does_to_the_rows_stays_with_it(tmp_path: Path) -> None:
    first = aligned(tmp_path, "base", base=BASE, one=BASE[::-1])
    first.rows["one"][:] = 9
    again = align({name: tmp_path / name for name in ("base", "one")}, {"base": 4, "one": 4}, "base")
    assert rows_of(again) == {"one": [3, 2, 1, 0]}


def test_no_tokenizer_anywhere(tmp_path: Path) -> None:
    found = align({"base": tmp_path, "one": tmp_path}, {"base": 4, "one": 4}, "base")
    assert (found.pieces, dict(found.rows)) == (4, {})
    assert found.report["checkpoints"]["one"] == {
        "rows": 4, "same": True, "compared": False, "reason": "no tokenizer.json",
    }  # fmt: skip
    (fault,) = faults_of({"base": tmp_path, "one": tmp_path}, {"base": 4, "one": 5}, "base")
    assert fault == (
        f"base ({tmp_path}) has no tokenizer.json and 4 rows of embeddings where one has 5: its pieces cannot be "
        "compared; save its tokenizer as tokenizer.json (a fast tokenizer)"
    )


def test_a_source_with_a_sentencepiece_model_alone(tmp_path: Path) -> None:
    tokenizers = folders(tmp_path, base=BASE, one=BASE[::-1])
    tokenizers["two"] = tmp_path
    (tmp_path / "spiece.model").write_bytes(b"")
    found = align(tokenizers, {"base": 4, "one": 4, "two": 4}, "base")
    assert rows_of(found) == {"one": [3, 2, 1, 0]}
    assert found.report["checkpoints"]["two"] == {
        "rows": 4, "same": True, "compared": False, "reason": "no tokenizer.json (only spiece.model)",
    }  # fmt: skip
    (fault,) = faults_of(tokenizers, {"base": 4, "one": 4, "two": 5}, "base")
    assert fault.startswith(f"two ({tmp_path}) has no tokenizer.json (only spiece.model) and 5 rows")


def test_a_reference_without_a_tokenizer(tmp_path: Path) -> None:
    tokenizers = {"base": tmp_path, **folders(tmp_path, one=BASE, two=BASE)}
    sizes = dict.fromkeys(tokenizers, 4)
    assert dict(align(tokenizers, sizes, "base").rows) == {}
    write_tokenizer_file(tmp_path / "two", unigram(BASE[::-1]))
    (fault,) = faults_of(tokenizers, sizes, "base")
    assert fault == (
        f"two and one have different vocabularies and base ({tmp_path}) has no tokenizer.json: "
        "take one of them as reference"
    )
    garbled = {**tokenizers, "zero": write_tokenizer_file(tmp_path / "zero", {})}
    garbled = {name: garbled[name] for name in ("base", "zero", "one", "two")}
    (fault,) = faults_of(garbled, dict.fromkeys(garbled, 4), "base")
    assert fault.endswith("zero/tokenizer.json is no tokenizer file")
    # As it says: the base is then taken to have the ids of the reference.
    assert rows_of(align(tokenizers, sizes, "one")) == {"two": [3, 2, 1, 0]}


def test_every_fault_at_once(tmp_path: Path) -> None:
    tokenizers = folders(tmp_path, base=BASE, small=(*BASE, "x"), alien=("q", "r"), twice=("a", "a"))
    tokenizers["kind"] = write_tokenizer_file(tmp_path / "kind", listed("WordPiece", BASE))
    tokenizers["gap"] = write_tokenizer_file(tmp_path / "gap", unigram(BASE), [added_token("<m>", 6)])
    tokenizers["garbled"] = write_tokenizer_file(tmp_path / "garbled", {})
    sizes = {**dict.fromkeys(tokenizers, 9), "small": 4}
    small, alien, twice, kind, gap, garbled = faults_of(tokenizers, sizes, "base")
    assert small == (
        f"small ({tmp_path / 'small'}) has 5 pieces in tokenizer.json and 4 rows of embeddings: "
        "give it the tokenizer that it was trained with, or resize its embeddings"
    )
    assert alien == "alien and base have no piece in common: use one tokenizer for all"
    assert "lists the piece 'a' twice" in twice
    assert "is a WordPiece tokenizer, the reference's is Unigram" in kind
    assert "the added token '<m>' the id 6, where 4 is its place" in gap
    assert garbled.endswith("garbled/tokenizer.json is no tokenizer file")
    # In a union new pieces have rows, too, but none in common.
    assert len(faults_of(tokenizers, sizes, "union")) == 6


def test_a_reference_that_cannot_be_read(tmp_path: Path) -> None:
    tokenizers = folders(tmp_path, base=("a", "a"), one=BASE)
    (fault,) = faults_of(tokenizers, {"base": 2, "one": 4}, "base")
    assert "lists the piece 'a' twice" in fault


def test_more_pieces_than_rows_in_a_file_that_equals_the_reference(tmp_path: Path) -> None:
    (fault,) = faults_of(folders(tmp_path, base=BASE, one=BASE), {"base": 4, "one": 3}, "base")
    assert fault.startswith("one (")
    assert "has 4 pieces in tokenizer.json and 3 rows of embeddings" in fault


def test_unknown_references(tmp_path: Path) -> None:
    tokenizers = folders(tmp_path, base=BASE, union=BASE)
    sizes = {"base": 4, "union": 4}
    (fault,) = faults_of(tokenizers, sizes, "base")
    assert fault == "a checkpoint is named 'union', which asks for the union of all: give it another name"
    del tokenizers["union"]
    (fault,) = faults_of(tokenizers, sizes, "bse")
    assert fault == "no checkpoint is named 'bse': choose union or one of base"


def test_tokenizers_that_must_be_one(tmp_path: Path) -> None:
    tokenizers = folders(tmp_path, base=BASE, one=BASE, two=BASE[::-1], three=(*BASE, "x"))
    tokenizers["none"] = tmp_path
    opened = {name: SimpleNamespace(folder=folder) for name, folder in tokenizers.items()}
    base = opened.pop("base")
    faults: list[str] = []
    tokenizer_faults(base, opened, faults)
    assert faults == [
        "the tokenizers of two, three and the base have different vocabularies: use one tokenizer for all"
    ]
    faults = []
    tokenizer_faults(None, {"one": opened["one"], "none": opened["none"]}, faults)
    assert faults == []
    # A garbled first file is told once.
    write_tokenizer_file(tmp_path / "base", {})
    tokenizer_faults(base, opened, faults)
    assert faults == [f"{tmp_path / 'base' / 'tokenizer.json'} is no tokenizer file"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("roberta.embeddings.word_embeddings.weight", True),
        ("model.embed_tokens.weight", True),
        ("transformer.wte.weight", True),
        ("shared.weight", True),
        ("encoder.embed_tokens.weight", True),
        ("embeddings.tok_embeddings.weight", True),
        ("gpt_neox.embed_in.weight", True),
        ("backbone.embeddings.weight", True),
        ("model.embed_tokens_per_layer.weight", True),
        ("lm_head.weight", True),
        ("lm_head.bias", True),
        ("lm_head.decoder.bias", True),
        ("embed_out.weight", True),
        ("cls.predictions.bias", True),
        ("cls.predictions.decoder.weight", True),
        ("vocab_projector.bias", True),
        ("decoder.weight", True),
        ("lm_head.dense.weight", False),
        ("lm_head.layer_norm.weight", False),
        ("cls.predictions.transform.dense.bias", False),
        ("roberta.embeddings.position_embeddings.weight", False),
        ("roberta.embeddings.token_type_embeddings.weight", False),
        ("classifier.out_proj.weight", False),
        ("classifier.decoder.weight", False),
        ("model.layers.0.mlp.output.weight", False),
    ],
)
def test_which_tensors_have_pieces_as_rows(name: str, expected: bool) -> None:
    shape = (9,) if name.endswith("bias") else (9, 4)
    assert is_vocabulary_tensor(name, shape, 9) is expected
    assert not is_vocabulary_tensor(name, shape, 8)
    assert not is_vocabulary_tensor(name, (), 9)


def test_the_size_is_that_of_the_input_embeddings() -> None:
    shapes: dict[str, tuple[int, ...]] = {"lm_head.weight": (8, 4), "model.embed_tokens.weight": (9, 4)}
    assert vocabulary_size(shapes) == 9
    assert vocabulary_size({"lm_head.weight": (8, 4)}) is None


names = st.lists(st.text(min_size=1, max_size=3), unique=True, min_size=1, max_size=12)


@st.composite
def some_vocabularies(draw: st.DrawFn) -> tuple[dict[str, list[str]], dict[str, int]]:
    """A base and one to three sources that each share its first piece, with rows to spare."""
    every = draw(names)
    pieces = {"base": every[: draw(st.integers(1, len(every)))]}
    for number in range(draw(st.integers(1, 3))):
        own = draw(st.permutations(every))
        kept = own[: draw(st.integers(0, len(own)))]
        pieces[f"s{number}"] = kept if every[0] in kept else [*kept, every[0]]
    return pieces, {name: len(own) + draw(st.integers(0, 3)) for name, own in pieces.items()}


def in_files(pieces: Mapping[str, Sequence[str]], sizes: Mapping[str, int], reference: str) -> Alignment:
    with TemporaryDirectory() as root:
        return align(folders(Path(root), **pieces), sizes, reference)


def read(alignment: Alignment, name: str, own: Sequence[Any]) -> list[Any]:
    """What the checkpoint has in each row of the output, None where nothing."""
    rows = alignment.rows.get(name, np.arange(alignment.pieces))
    return [own[row] if row >= 0 else None for row in rows]


@settings(max_examples=40, deadline=None)
@given(names, st.randoms())
def test_a_permutation_is_undone(pieces: list[str], random: Any) -> None:
    moved = random.sample(pieces, len(pieces))
    found = in_files({"base": pieces, "one": moved}, dict.fromkeys(("base", "one"), len(pieces)), "base")
    assert read(found, "base", pieces) == pieces
    assert read(found, "one", moved) == pieces
    assert ("one" in found.rows) is (moved != pieces)


@settings(max_examples=60, deadline=None)
@given(some_vocabularies(), st.booleans())
def test_every_row_is_the_piece_that_it_stands_for(
    drawn: tuple[dict[str, list[str]], dict[str, int]], union: bool
) -> None:
    pieces, sizes = drawn
    found = in_files(pieces, sizes, "union" if union else "base")
    expected = list(
        dict.fromkeys(piece for own in (pieces.values() if union else [pieces["base"]]) for piece in own)
    )
    assert found.pieces == max(len(expected), sizes["base"])
    for entry in found.report["checkpoints"].values():
        if not entry["same"]:
            assert entry["shared"] + entry["missing"]["count"] == found.report["pieces"] == len(expected)
            assert entry["shared"] + entry["extra"]["count"] == entry["pieces"]
    for name, own in pieces.items():
        # A row without a piece is itself.
        rows = [*own, *range(len(own), sizes[name])]
        wanted: list[Any] = [piece if piece in own else None for piece in expected]
        for number in range(len(expected), found.pieces):
            wanted.append(number if number in rows else None)
        assert read(found, name, rows) == wanted
