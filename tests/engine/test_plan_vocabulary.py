"""Vocabularies in a plan: rows of embeddings are put in the order of the base's pieces."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from langmerge.engine import make_plan
from tests.engine.conftest import SOURCES, faults_of, recipe_of
from tests.tiny import WORDS, read_raw, write_raw


def rewritten(folder: Path, change: Callable[[dict[str, torch.Tensor]], None], **options: Any) -> None:
    """The folder with other tensors (and label names, where given)."""
    tensors = read_raw(folder)
    change(tensors)
    shutil.rmtree(folder)
    write_raw(folder, tensors, **options)


PIECES = list("abcdefghijkl")


def with_tokenizer(folder: Path, pieces: list[str], score: float = -1.0) -> None:
    vocabulary = {"model": {"type": "Unigram", "vocab": [[piece, score] for piece in pieces]}}
    (folder / "tokenizer.json").write_text(json.dumps(vocabulary))


def test_pieces_with_other_scores_are_the_same_pieces(own_pool: Path) -> None:
    for name in ("base", *SOURCES):
        with_tokenizer(own_pool / name, PIECES, score=-1.0 if name == "base" else -1.5)
    plan = make_plan(recipe_of(own_pool))
    assert not plan.vocabulary
    assert not any(tensor.gathered for tensor in plan.written)


def test_other_vocabularies_are_put_in_the_bases_order_by_piece(own_pool: Path) -> None:
    """fr-FR has its first two pieces the other way round, sw-KE lacks the base's last one and has another."""
    for name in ("base", *SOURCES):
        with_tokenizer(own_pool / name, PIECES)
    with_tokenizer(own_pool / "fr-FR", ["b", "a", *PIECES[2:]])
    with_tokenizer(own_pool / "sw-KE", [*PIECES[:-1], "z"])
    plan = make_plan(recipe_of(own_pool))
    for tensor in plan.written:
        found = {source: rows.tolist() for source, rows in tensor.rows.items()}
        aligned = {"fr-FR": [1, 0, *range(2, 12)], "sw-KE": [*range(11), -1]}
        assert found == (aligned if tensor.name == WORDS else {})
        assert (tensor.gathered, tensor.base_rows) == (tensor.name == WORDS, None)
    report = plan.vocabulary["checkpoints"]
    assert report["de-DE"] == {"rows": 12, "same": True}
    assert report["fr-FR"]["moved"] == 2
    assert report["sw-KE"]["missing"] == {"count": 1, "first": ["l"]}
    assert report["sw-KE"]["extra"] == {"count": 1, "first": ["z"]}


@pytest.mark.parametrize("rows", [11, 13])
def test_embeddings_of_another_length_are_brought_to_the_bases(own_pool: Path, rows: int) -> None:
    """Eleven pieces in all: only the padding behind them differs."""
    for name in ("base", *SOURCES):
        with_tokenizer(own_pool / name, PIECES[:11])
    rewritten(own_pool / "fr-FR", lambda tensors: tensors.update({WORDS: torch.ones(rows, 6)}))
    with_tokenizer(own_pool / "fr-FR", PIECES[:11])
    plan = make_plan(recipe_of(own_pool))
    (words,) = [tensor for tensor in plan.written if tensor.name == WORDS]
    assert words.shape == (12, 6)
    expected = {11: [*range(11), -1], 13: [*range(12)]}
    assert {name: one.tolist() for name, one in words.rows.items()} == {"fr-FR": expected[rows]}
    assert plan.vocabulary["checkpoints"]["fr-FR"]["rows"] == rows


def test_the_config_of_a_longer_donor_says_what_is_stored(own_pool: Path) -> None:
    """The base has no head, so the config is the first source's, whose embeddings are cut off."""
    tensors = {name: one for name, one in read_raw(own_pool / "base").items() if "classifier" not in name}
    write_raw(own_pool / "base", tensors, labels=None)
    for name in SOURCES:
        longer = {**read_raw(own_pool / name), WORDS: torch.randn(13, 6)}
        write_raw(own_pool / name, longer, vocab_size=13)
    for name in ("base", *SOURCES):
        with_tokenizer(own_pool / name, PIECES)
    plan = make_plan(recipe_of(own_pool))
    assert plan.companions.donor == own_pool / "de-DE"
    assert plan.companions.config["vocab_size"] == 12
    assert plan.companions.tokenizers[0] == own_pool / "base"


def test_tokenizers_of_sources_must_agree_where_the_base_has_none(own_pool: Path) -> None:
    for name in SOURCES:
        with_tokenizer(own_pool / name, PIECES)
    assert make_plan(recipe_of(own_pool)).written
    with_tokenizer(own_pool / "fr-FR", ["b", "a", *PIECES[2:]])
    (fault,) = faults_of(own_pool)
    assert fault.startswith("fr-FR and de-DE have different vocabularies and the base")


def test_a_garbled_tokenizer(own_pool: Path) -> None:
    with_tokenizer(own_pool / "de-DE", ["a", "b"])
    (own_pool / "sw-KE" / "tokenizer.json").write_text("{}")
    (fault,) = faults_of(own_pool)
    assert fault.endswith("sw-KE/tokenizer.json is no tokenizer file")
