import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from langmerge.engine.union_tokenizer import union_tokenizer, write_tokenizer
from langmerge.engine.vocabulary import align
from langmerge.errors import OutputError, PlanError
from langmerge.vocabulary import read_vocabulary
from tests.tokenizer_files import added_token, listed, unigram, write_tokenizer_file

SPACES: dict[str, Any] = {"pre_tokenizer": {"type": "WhitespaceSplit"}}
BASE = ("<unk>", "a", "b", "ab")
SETTINGS: dict[str, dict[str, Any]] = {
    "BPE": {"merges": [["a", "b"]], "unk_token": "<unk>"},
    "WordLevel": {"unk_token": "<unk>"},
    "WordPiece": {"unk_token": "<unk>", "continuing_subword_prefix": "##", "max_input_chars_per_word": 9},
}
MASK = added_token("<mask>", 4, special=True, lstrip=True)


def model(kind: str, *pieces: str) -> dict[str, Any]:
    return unigram(pieces) if kind == "Unigram" else listed(kind, pieces, **SETTINGS[kind])


def union_of(root: Path, tokenizers: Mapping[str, Path]) -> Tokenizer:
    """The union as the tokenizers library reads it, its ids those of the alignment."""
    file = write_tokenizer(root, union_tokenizer(tokenizers))
    read = Tokenizer.from_file(str(file))
    sizes = {
        name: len(read_vocabulary(folder / "tokenizer.json").pieces) for name, folder in tokenizers.items()
    }
    found = align(tokenizers, sizes, "union")
    ids = read.get_vocab()
    assert ids == {piece: row for row, piece in enumerate(read_vocabulary(file).pieces)}
    assert sorted(ids.values()) == list(range(found.pieces))
    for name, folder in tokenizers.items():
        for own, piece in enumerate(read_vocabulary(folder / "tokenizer.json").pieces):
            rows = found.rows.get(name)
            assert (ids[piece] if rows is None else rows[ids[piece]]) == own
    return read


def faults_of(tokenizers: Mapping[str, Path]) -> tuple[str, ...]:
    with pytest.raises(PlanError) as caught:
        union_tokenizer(tokenizers)
    return caught.value.faults


@pytest.mark.parametrize("kind", ["BPE", "Unigram", "WordLevel", "WordPiece"])
def test_new_pieces_of_every_kind(tmp_path: Path, kind: str) -> None:
    """The base's mask lies behind its model, where the new pieces of the model have to go."""
    tokenizers = {
        "base": write_tokenizer_file(
            tmp_path / "base", model(kind, *BASE), [added_token("<unk>", 0), MASK], **SPACES
        ),
        "one": write_tokenizer_file(
            tmp_path / "one", model(kind, *BASE, "c", "é"), [added_token("<end>", 6, special=True)], **SPACES
        ),
        "two": write_tokenizer_file(tmp_path / "two", model(kind, *BASE, "d", "c"), [], **SPACES),
    }
    found = union_of(tmp_path, tokenizers)
    pieces = sorted(found.get_vocab().items(), key=lambda entry: entry[1])
    assert [piece for piece, _ in pieces] == [*BASE, "<mask>", "c", "é", "<end>", "d"]
    # c ab é <end> a <mask> d
    assert found.encode("c ab é <end> a <mask> d").ids == [5, 3, 6, 7, 1, 4, 8]
    flags = {number: token.special for number, token in found.get_added_tokens_decoder().items()}
    assert flags == {0: False, 4: True, 7: True}
    assert found.get_added_tokens_decoder()[4].lstrip


def test_added_tokens_alone_leave_the_model_as_it_is(tmp_path: Path) -> None:
    tokenizers = {
        "base": write_tokenizer_file(tmp_path / "base", model("BPE", *BASE), [MASK]),
        "one": write_tokenizer_file(
            tmp_path / "one", model("BPE", *BASE), [added_token("<x>", 4), added_token("<mask>", 5)]
        ),
        "two": write_tokenizer_file(
            tmp_path / "two", model("BPE", *BASE), [added_token("<y>", 4), added_token("<x>", 5)]
        ),
    }
    found = union_of(tmp_path, tokenizers)
    assert found.get_vocab(with_added_tokens=False) == {piece: number for number, piece in enumerate(BASE)}
    assert {piece: number for piece, number in found.get_vocab().items() if number > 3} == {
        "<mask>": 4,
        "<x>": 5,
        "<y>": 6,
    }


def test_equal_tokenizers_give_the_first(tmp_path: Path) -> None:
    tokenizers = {
        name: write_tokenizer_file(tmp_path / name, model("BPE", *BASE), [MASK]) for name in ("base", "one")
    }
    write_tokenizer_file(tmp_path / "one", model("BPE", *BASE), [MASK], truncation={"max_length": 9})
    assert union_tokenizer(tokenizers) == json.loads((tmp_path / "base" / "tokenizer.json").read_text())


def test_scores_come_along(tmp_path: Path) -> None:
    tokenizers = {
        "base": write_tokenizer_file(tmp_path / "base", unigram(BASE, {"a": -3.5}), [MASK]),
        "one": write_tokenizer_file(tmp_path / "one", unigram([*BASE, "c"], {"a": -3.5, "c": -2.5})),
    }
    vocab = union_tokenizer(tokenizers)["model"]["vocab"]
    # The mask was matched before the model and still is: it gets the lowest score.
    assert vocab[3:] == [["ab", -1.0], ["<mask>", -3.5], ["c", -2.5]]


def test_a_source_that_lacks_merges_is_no_fault(tmp_path: Path) -> None:
    tokenizers = {
        "base": write_tokenizer_file(tmp_path / "base", model("BPE", *BASE)),
        "one": write_tokenizer_file(
            tmp_path / "one", model("BPE", "<unk>", "a", "q") | {"merges": [], "byte_fallback": False}
        ),
    }
    assert union_of(tmp_path, tokenizers).encode("qab").tokens == ["q", "ab"]


REFUSED = {
    "merges": (
        model("BPE", *BASE, "ba") | {"merges": ["a b", "b a"]},
        {},
        "the second makes the piece 'ba' by a merge, and two lists of merges have no common order",
    ),
    "prefix": (
        model("BPE", *BASE, "##b") | {"continuing_subword_prefix": "##"},
        {},
        "their models differ in continuing_subword_prefix",
    ),
    "type": (model("WordPiece", *BASE), {}, "their types are BPE and WordPiece"),
    "unnamed type": ({"vocab": {"a": 0}}, {}, "their types are BPE and not said"),
    "normalizer": (model("BPE", *BASE), {"normalizer": {"type": "Lowercase"}}, "their normalizer differs, so that"),
    "pre_tokenizer": (model("BPE", *BASE), SPACES, "their pre_tokenizer differs, so that equal pieces stand for"),
    "decoder": (model("BPE", *BASE), {"decoder": {"type": "ByteLevel"}}, "their decoder differs"),
    "settings": (model("BPE", *BASE) | {"byte_fallback": True}, {}, "their models differ in byte_fallback"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_union(tmp_path: Path, case: str) -> None:
    other, parts, reason = REFUSED[case]
    tokenizers = {
        "base": write_tokenizer_file(tmp_path / "base", model("BPE", *BASE)),
        "one": write_tokenizer_file(tmp_path / "one", other, **parts),
        "two": write_tokenizer_file(tmp_path / "two", model("BPE", *BASE)),
    }
    (fault,) = faults_of(tokenizers)
    assert fault.startswith(f"the tokenizers of base and one have no union: {reason}")
    assert fault.endswith("; take one's vocabulary")


def test_an_added_token_needs_no_merge(tmp_path: Path) -> None:
    merges = {"merges": [["a", "b"], ["b", "a"]]}
    tokenizers = {
        "base": write_tokenizer_file(tmp_path / "base", model("BPE", *BASE)),
        "one": write_tokenizer_file(
            tmp_path / "one", model("BPE", *BASE, "ba") | merges, [added_token("ba", 4)]
        ),
    }
    assert union_of(tmp_path, tokenizers).encode("ababa").tokens == ["a", "ba", "ba"]


def test_merges_of_continuing_pieces(tmp_path: Path) -> None:
    prefix = {"continuing_subword_prefix": "##", "merges": [["a", "##b"]]}
    tokenizers = {
        "base": write_tokenizer_file(
            tmp_path / "base", model("BPE", "<unk>", "a", "##b") | prefix | {"merges": []}
        ),
        "one": write_tokenizer_file(tmp_path / "one", model("BPE", "<unk>", "a", "##b", "ab") | prefix),
    }
    (fault,) = faults_of(tokenizers)
    assert "the second makes the piece 'ab' by a merge" in fault


def test_scores_of_another_training_have_no_union(tmp_path: Path) -> None:
    tokenizers = {
        "base": write_tokenizer_file(tmp_path / "base", unigram(BASE)),
        "one": write_tokenizer_file(tmp_path / "one", unigram(BASE, {"ab": -1.1})),
        # Scores of added tokens say nothing: they are matched before.
        "two": write_tokenizer_file(
            tmp_path / "two", unigram(BASE, {"<unk>": 0.0}), [added_token("<unk>", 0)]
        ),
        "three": write_tokenizer_file(tmp_path / "three", unigram(["a", "a"])),
        "four": tmp_path,
    }
    scores, twice, missing = faults_of(tokenizers)
    assert "the scores of shared pieces differ, and those of two trainings cannot be compared" in scores
    assert "lists the piece 'a' twice" in twice
    assert "cannot be read" in missing


def test_a_first_tokenizer_that_cannot_be_read(tmp_path: Path) -> None:
    tokenizers = {
        "base": write_tokenizer_file(tmp_path / "base", {}),
        "one": write_tokenizer_file(tmp_path / "one", model("BPE", *BASE)),
    }
    (fault,) = faults_of(tokenizers)
    assert fault.endswith("base/tokenizer.json is no tokenizer file")


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"tokenizer\.json cannot be written: No such file"):
        write_tokenizer(tmp_path / "nowhere", {})
