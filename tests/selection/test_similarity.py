"""Scores of sources for targets, as a table that is kept."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from langmerge.errors import SelectionError
from langmerge.selection import SimilarityMatrix

SOURCES = ("de-DE", "fr-FR", "sw-KE")
TARGETS = ("sw-KE", "cy-GB", "tlh")


def matrix(**changes: Any) -> SimilarityMatrix:
    """No two numbers are equal; something is missing."""
    fields: dict[str, Any] = {
        "by": "typology",
        "sources": SOURCES,
        "targets": TARGETS,
        "values": np.array([[0.5, 0.31, np.nan], [np.nan, 0.62, np.nan], [0.9, np.nan, np.nan]]),
        "missing": {"fr-FR": "family not known", "tlh": "no data under tlh"},
        "provenance": {"features": {"syntax": 1.0}, "data": "URIEL"},
    }
    return SimilarityMatrix(**{**fields, **changes})


def test_a_column_is_every_source_that_has_a_score() -> None:
    assert matrix().column("sw-KE") == {"de-DE": 0.5, "sw-KE": 0.9}
    assert matrix().column("cy-GB") == {"de-DE": 0.31, "fr-FR": 0.62}


def test_what_has_no_score_is_said_to_have_none_and_why() -> None:
    assert matrix().unknown("sw-KE") == {"fr-FR": "family not known"}
    assert matrix().unknown("cy-GB") == {"sw-KE": "typology has no score for it"}


def test_targets_without_scores() -> None:
    with pytest.raises(SelectionError, match="typology says nothing of tlh: no data under tlh"):
        matrix().column("tlh")
    with pytest.raises(SelectionError, match="typology says nothing of tlh: no source has a score"):
        matrix(missing={}).column("tlh")
    with pytest.raises(
        SelectionError, match="typology was not measured for 'de-DE': it has sw-KE, cy-GB, tlh"
    ):
        matrix().column("de-DE")


@pytest.mark.parametrize("shape", [(2, 3), (3, 2), (9, 1)])
def test_values_must_fit_the_names(shape: tuple[int, int]) -> None:
    with pytest.raises(SelectionError, match="for 3 sources × 3 targets"):
        matrix(values=np.zeros(shape))


def test_a_matrix_comes_back_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "similarity.json"
    matrix().save(path)
    found = SimilarityMatrix.load(path)
    for field in dataclasses.fields(SimilarityMatrix):
        if field.name != "values":
            assert getattr(found, field.name) == getattr(matrix(), field.name)
    np.testing.assert_array_equal(found.values, matrix().values)
    assert found.values.dtype == np.float64
    assert json.loads(path.read_text())["values"][0] == [0.5, 0.31, None]
    assert [file.name for file in tmp_path.iterdir()] == ["similarity.json"]


VALUES = st.one_of(st.just(float("nan")), st.floats(-10, 10))


@settings(deadline=None, max_examples=25)
@given(st.lists(VALUES, min_size=6, max_size=6))
def test_numbers_are_kept_to_six_digits(
    tmp_path_factory: pytest.TempPathFactory, numbers: list[float]
) -> None:
    path = tmp_path_factory.mktemp("kept") / "similarity.json"
    made = SimilarityMatrix("strength", ("a", "b"), ("c", "d", "e"), np.array(numbers).reshape(2, 3))
    made.save(path)
    np.testing.assert_allclose(SimilarityMatrix.load(path).values, made.values, rtol=0, atol=5.1e-7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "langmerge-similarity/9"}, "format is 'langmerge-similarity/9'; this version reads"),
        ({"format": None}, "is no similarity matrix"),
        ({"by": None}, "is no similarity matrix"),
        ({"values": [[0.1, 0.2]]}, "is no similarity matrix"),
        ({"values": [[0.1], [0.1, 0.2]]}, "is no similarity matrix"),
        ({"values": [["high", 0, 0], [0, 0, 0], [0, 0, 0]]}, "is no similarity matrix"),
        ({"values": 3}, "is no similarity matrix"),
        ({"sources": 3}, "is no similarity matrix"),
        ({"targets": ["sw-KE"]}, "is no similarity matrix"),
        ({"missing": ["tlh"]}, "is no similarity matrix"),
        ({"provenance": 3}, "is no similarity matrix"),
    ],
)
def test_a_garbled_file_is_an_error(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "similarity.json"
    matrix().save(path)
    raw = {
        key: value for key, value in {**json.loads(path.read_text()), **change}.items() if value is not None
    }
    path.write_text(json.dumps(raw))
    with pytest.raises(SelectionError, match=message) as caught:
        SimilarityMatrix.load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"3", b"\xff\xfe\x00", b'{"format": "langmerge-transfer/1"}']
)
def test_no_json_is_an_error(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "similarity.json"
    path.write_bytes(text)
    with pytest.raises(SelectionError, match=r"is no similarity matrix|this version reads") as caught:
        SimilarityMatrix.load(path)
    assert "\n" not in str(caught.value)


def test_no_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SelectionError, match="does not exist: write it with langmerge similarity -o"):
        SimilarityMatrix.load(tmp_path / "similarity.json")
