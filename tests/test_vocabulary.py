import gc
import json
import os
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from langmerge import vocabulary
from langmerge.errors import CheckpointError
from langmerge.vocabulary import read_vocabulary, same_bytes, same_pieces, stamp
from tests.tokenizer_files import added_token, listed, unigram, write_tokenizer_file

PIECES = ("<unk>", "a", "ß", "ab")

MODELS = {
    "BPE": listed("BPE", PIECES, merges=[["a", "b"]], unk_token="<unk>"),
    "Unigram": unigram(PIECES),
    "WordLevel": listed("WordLevel", PIECES, unk_token="<unk>"),
    "WordPiece": listed("WordPiece", PIECES, unk_token="<unk>", continuing_subword_prefix="##", max_input_chars_per_word=9),
}  # fmt: skip


def stamped(folder: Path) -> vocabulary.Stamp:
    found = stamp(folder / "tokenizer.json")
    assert found is not None
    return found


@pytest.mark.parametrize("kind", MODELS)
def test_pieces_as_the_tokenizers_library_numbers_them(tmp_path: Path, kind: str) -> None:
    # `<unk>` is listed twice, as most files do it: by the model and among the added tokens.
    added = [added_token("<unk>", 0), added_token("<mask>", 4), added_token("ni hao", 5)]
    model = MODELS[kind] | ({"merges": []} if kind == "BPE" else {})
    file = write_tokenizer_file(tmp_path, model, added) / "tokenizer.json"
    found = read_vocabulary(file)
    assert found.kind == kind
    assert found.pieces == (*PIECES, "<mask>", "ni hao")
    assert {piece: number for number, piece in enumerate(found.pieces)} == Tokenizer.from_file(
        str(file)
    ).get_vocab()


def test_ids_need_no_order_in_the_file(tmp_path: Path) -> None:
    write_tokenizer_file(tmp_path, {"type": "WordLevel", "vocab": {"c": 2, "a": 0, "b": 1}})
    assert read_vocabulary(tmp_path / "tokenizer.json").pieces == ("a", "b", "c")


def test_old_files_do_not_say_their_kind(tmp_path: Path) -> None:
    write_tokenizer_file(tmp_path, {"vocab": {"a": 0}})
    assert read_vocabulary(tmp_path / "tokenizer.json").kind == ""


@pytest.mark.parametrize(
    ("model", "added", "message"),
    [
        (unigram(["a", "b", "a"]), [], "lists the piece 'a' twice"),
        (listed("BPE", ["a", "b"]) | {"vocab": {"a": 0, "b": 2}}, [], "gives no piece for the id 1 though it has 2"),
        ({"vocab": {"a": 1, "b": 1, "c": 0}}, [], "gives the id 1 to both 'a' and 'b'"),
        ({"vocab": {"a": -1, "b": 0}}, [], "tokenizer.json is no tokenizer file"),
        (unigram(["a", "b"]), [("<m>", 3)], "gives the added token '<m>' the id 3, where 2 is its place"),
        (unigram(["a", "b"]), [("b", 0)], "gives the added token 'b' the id 0, where 1 is its place"),
        (unigram(["a", "b"]), [("<y>", 3), ("<x>", 2)], "gives the added token '<y>' the id 3, where 2 is"),
        ({"vocab": {"a": 10**30}}, [], "is no tokenizer file"),
        ({"vocab": {"a": "0"}}, [], "is no tokenizer file"),
        ({"vocab": {"a": 0.5, "b": 1}}, [], "is no tokenizer file"),
        ({"vocab": [["a"]]}, [], "is no tokenizer file"),
        ({"vocab": [[1, -1.0]]}, [], "is no tokenizer file"),
        ({"vocab": [[["a"], -1.0]]}, [], "is no tokenizer file"),
        ({"vocab": None}, [], "is no tokenizer file"),
        ({}, [], "is no tokenizer file"),
    ],
)  # fmt: skip
def test_ids_that_are_not_clear(
    tmp_path: Path, model: dict[str, Any], added: list[tuple[str, int]], message: str
) -> None:
    write_tokenizer_file(tmp_path, model, [added_token(*token) for token in added])
    with pytest.raises(CheckpointError, match=message) as caught:
        read_vocabulary(tmp_path / "tokenizer.json")
    assert str(caught.value).startswith(str(tmp_path / "tokenizer.json"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"model": {"vocab": {"a": 0, "b": 1, "a": 2}}}', "names 'a' twice"),
        ('{"model": {"vocab": {"\\ud800": 0}}}', "is no tokenizer file"),
        ('{"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": 1}]}', "is no tokenizer file"),
        ('{"model": {"vocab": {"a": 0}}, "added_tokens": ["b"]}', "is no tokenizer file"),
        ('{"model": {"vocab": {"a": 0}}, "added_tokens": 3}', "is no tokenizer file"),
        ("[]", "is no tokenizer file"),
        ("{", "is no tokenizer file"),
        ("\xff", "is no tokenizer file"),
        ("[" * 100_000, "is no tokenizer file"),
    ],
    ids=["twice", "surrogate", "no content", "no entry", "no list", "list", "cut", "not utf-8", "deep"],
)
def test_garbled_files(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "tokenizer.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=message):
        read_vocabulary(tmp_path / "tokenizer.json")


def test_the_garbage_collector_runs_again(tmp_path: Path) -> None:
    write_tokenizer_file(tmp_path, unigram(PIECES))
    read_vocabulary(tmp_path / "tokenizer.json")
    assert gc.isenabled()
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError):
        read_vocabulary(tmp_path / "tokenizer.json")
    assert gc.isenabled()


def test_a_missing_file(tmp_path: Path) -> None:
    assert stamp(tmp_path / "tokenizer.json") is None
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        read_vocabulary(tmp_path / "tokenizer.json")


def test_a_file_that_differs_only_in_front_of_its_tokens_is_not_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def parsed(*_: object) -> None:
        raise AssertionError("it was parsed")

    monkeypatch.setattr(vocabulary, "read_vocabulary", parsed)
    one = write_tokenizer_file(tmp_path / "one", unigram(PIECES))
    two = write_tokenizer_file(tmp_path / "two", unigram(PIECES), truncation={"max_length": 64})
    os.link(one / "tokenizer.json", tmp_path / "tokenizer.json")
    assert same_pieces(stamped(one), stamped(two))
    assert same_pieces(stamped(one), stamped(tmp_path))
    other = write_tokenizer_file(tmp_path / "other", unigram(["<unk>", "a", "ß", "aa"]))
    with pytest.raises(AssertionError, match="it was parsed"):
        same_pieces(stamped(one), stamped(other))


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (lambda text: text, True),
        (lambda text: text + "\n", False),
        (lambda text: text.replace("ab", "ba"), False),
        (lambda text: text.replace('"version": "1.0"', '"version": "1.1"'), True),
        (lambda text: text.replace("{", '{"vocab": 0, ', 1), False),
    ],
)
def test_bytes_that_say_what_an_id_means(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Any, same: bool
) -> None:
    monkeypatch.setattr(vocabulary, "_CHUNK", 1)
    one = write_tokenizer_file(tmp_path / "one", unigram(PIECES))
    two = write_tokenizer_file(tmp_path / "two", unigram(PIECES))
    equal = write_tokenizer_file(tmp_path / "equal", unigram(PIECES), truncation={"max_length": 64})
    file = two / "tokenizer.json"
    file.write_text(change(file.read_text()))
    assert same_bytes(stamped(one), (stamped(two), stamped(equal), stamped(one))) == (same, True, True)


def test_a_vocabulary_in_front_of_the_added_tokens_is_compared(tmp_path: Path) -> None:
    for name in ("one", "two"):
        document = {"model": {"vocab": {name: 0}}, "added_tokens": []}
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.json").write_text(json.dumps(document))
    assert not same_pieces(stamped(tmp_path / "one"), stamped(tmp_path / "two"))


def test_other_scores_are_the_same_pieces(tmp_path: Path) -> None:
    one = write_tokenizer_file(tmp_path / "one", unigram(PIECES))
    two = write_tokenizer_file(tmp_path / "two", unigram(PIECES, {"ab": -2.0}))
    assert same_pieces(stamped(one), stamped(two))


def test_a_file_that_changes_is_read_again(tmp_path: Path) -> None:
    one = write_tokenizer_file(tmp_path / "one", unigram(PIECES))
    two = write_tokenizer_file(tmp_path / "two", unigram(PIECES))
    assert same_pieces(stamped(one), stamped(two))
    write_tokenizer_file(tmp_path / "two", unigram([*PIECES, "b"]))
    assert not same_pieces(stamped(one), stamped(two))
