import json
from dataclasses import replace
from pathlib import Path

import pytest

from langmerge.errors import DataError
from langmerge.results import Difference, Row, Study, Verdict

GAIN = Difference(1.25, 0.5, 2.0, 0.03)
MERGE = Row(
    target="sw-KE", kind="merge", name="ties(density=0.2)", mode="ExcTar", k=2, sources=("de-DE", "fr-FR"),
    dev=0.55, test=0.5, low=0.45, high=0.56, macro_f1=0.4, gain=GAIN, effect=Difference(3.0, 1.0, 5.0),
    rows=200, seed=3, signature="0123456789ab",
)  # fmt: skip
SELF = replace(
    MERGE, kind="self", name="sw-KE", k=0, sources=("sw-KE",), gain=None, effect=None, macro_f1=None
)
STUDY = Study(
    task="demo:intent",
    revision="r1",
    base="e5-small",
    rows=(MERGE, SELF),
    verdicts=(Verdict("sw-KE", "ExcTar", "ties, k=2", "0123456789ab", "fr-FR", GAIN, "sw-KE: zażółć."),),
    matrix={"sources": ["de-DE"], "values": [[0.5]]},
    grid={"k": [2, "all"]},
    seconds=1.5,
)


def test_a_study_comes_back_from_its_file(tmp_path: Path) -> None:
    STUDY.save(tmp_path / "study.json")
    assert Study.load(tmp_path / "study.json") == STUDY
    assert "zażółć" in (tmp_path / "study.json").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["study.json"]


@pytest.mark.parametrize(
    ("low", "high", "expected"), [(0.1, 2.0, True), (-2.0, -0.1, True), (-0.1, 0.1, False), (0.0, 1.0, False)]
)
def test_a_difference_is_significant_where_its_interval_leaves_zero_out(
    low: float, high: float, expected: bool
) -> None:
    assert Difference(0.5, low, high).is_significant is expected


def test_a_difference_is_shown_with_its_interval() -> None:
    assert str(Difference(1.25, -0.5, 2.04)) == "+1.2 [-0.5, +2.0]"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "langmerge-study/9"}, "is not a langmerge-study/1 file"),
        ({"format": None}, "is no study"),
        ({"rows": None}, "is no study"),
        ({"rows": [{"target": "sw-KE"}]}, "is no study"),
        ({"verdicts": [{"gain": None}]}, "is no study"),
        ({"more": 1}, "is no study"),
    ],
)
def test_a_garbled_study_is_an_error(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = tmp_path / "study.json"
    STUDY.save(path)
    raw = {**json.loads(path.read_text()), **change}
    path.write_text(json.dumps({key: value for key, value in raw.items() if value is not None}))
    with pytest.raises(DataError, match=message):
        Study.load(path)


def test_no_file_or_no_object_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist: run langmerge sweep"):
        Study.load(tmp_path / "study.json")
    for text in ("{", "[]", "3", "null"):
        (tmp_path / "study.json").write_text(text)
        with pytest.raises(DataError, match="is no study"):
            Study.load(tmp_path / "study.json")
