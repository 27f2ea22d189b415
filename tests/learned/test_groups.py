"""Which tensors share a coefficient."""

import numpy as np
import pytest

from langmerge.coefficients import Coefficients
from langmerge.errors import InputError
from langmerge.learned.groups import grouping

Q0 = "roberta.encoder.layer.0.attention.self.query.weight"
Q1 = "roberta.encoder.layer.1.attention.self.query.weight"
WORDS = "roberta.embeddings.word_embeddings.weight"
HEAD, BIAS = "classifier.out_proj.weight", "classifier.out_proj.bias"
ALL = (WORDS, Q0, Q1, HEAD, BIAS)
START = Coefficients(values={"model": {"a": 0.6, "b": 0.4}})


@pytest.mark.parametrize(
    ("kind", "groups"),
    [
        ("model", ("model",)),
        ("block", ("embeddings", "block:0", "block:1", "head")),
        ("tensor", tuple(f"tensor:{name}" for name in ALL)),
    ],
)
def test_kinds(kind: str, groups: tuple[str, ...]) -> None:
    own = grouping(ALL, START, kind=kind, sources=("a", "b"))
    assert own.groups == groups
    assert sorted(name for names in own.tensors for name in names) == sorted(ALL)
    np.testing.assert_array_equal(own.initial(), np.tile([0.6, 0.4], (len(groups), 1)))


def test_given_groups_are_those_of_the_start() -> None:
    start = Coefficients(values={"model": {"a": 0.6, "b": 0.4}, "block:1": {"a": 0.1, "b": 0.9}})
    own = grouping(ALL, start, kind="given", sources=("b", "a"))
    assert own.groups == ("model", "block:1")
    np.testing.assert_array_equal(own.initial(), [[0.4, 0.6], [0.9, 0.1]])


@pytest.mark.parametrize("kind", ["model", "block", "tensor"])
def test_a_file_gives_every_tensor_what_was_learned_or_what_was_frozen(kind: str) -> None:
    own = grouping(ALL, START, kind=kind, sources=("b", "a"), freeze=frozenset({"head"}))
    values = np.arange(2.0 * len(own.groups)).reshape(-1, 2) + 10
    file = own.coefficients(values, target="sw-KE", provenance={})
    for name in (HEAD, BIAS):
        assert dict(file.for_tensor(name)) == {"a": 0.6, "b": 0.4}
    for name, row in own.weights(values).items():
        assert [file.for_tensor(name)[source] for source in ("b", "a")] == list(row)
    assert set(own.weights(values)) == {WORDS, Q0, Q1}


def test_frozen_tensors_of_one_part_may_start_from_different_numbers() -> None:
    start = Coefficients(values={"model": {"a": 1.0, "b": 0.0}, f"tensor:{HEAD}": {"a": 0.0, "b": 1.0}})
    own = grouping(ALL, start, kind="model", sources=("a", "b"), freeze=frozenset({"head"}))
    file = own.coefficients(np.array([[7.0, 8.0]]), target=None, provenance={})
    assert [dict(file.for_tensor(name)) for name in (HEAD, BIAS, Q0)] == [
        {"a": 0.0, "b": 1.0},
        {"a": 1.0, "b": 0.0},
        {"a": 7.0, "b": 8.0},
    ]


def test_fixed_tensors_keep_the_start() -> None:
    own = grouping((Q0,), START, kind="model", sources=("a", "b"), fixed=(HEAD, BIAS))
    file = own.coefficients(np.array([[7.0, 8.0]]), target=None, provenance={})
    assert dict(file.for_tensor(HEAD)) == {"a": 0.6, "b": 0.4}


def test_a_start_that_differs_within_a_group() -> None:
    start = Coefficients(values={"model": {"a": 0.6, "b": 0.4}, "block:1": {"a": 0.1, "b": 0.9}})
    with pytest.raises(InputError, match="different coefficients within the group 'model'"):
        grouping(ALL, start, kind="model", sources=("a", "b")).initial()


def test_faults() -> None:
    with pytest.raises(InputError, match="groups is 'layer'"):
        grouping(ALL, START, kind="layer", sources=("a", "b"))
    with pytest.raises(InputError, match="the merge is of"):
        grouping(ALL, START, kind="model", sources=("a", "c"))
    with pytest.raises(InputError, match="nothing is left to learn"):
        grouping((HEAD,), START, kind="model", sources=("a", "b"), freeze=frozenset({"head"}))
