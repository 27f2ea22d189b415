import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from langmerge.errors import SelectionError
from langmerge.selection import TransferMatrix

SOURCES = ("de-DE", "fr-FR", "sw-KE")
TARGETS = ("sw-KE", "cy-GB")


def matrix(**changes: Any) -> TransferMatrix:
    """Rows are experts, columns locales; no two numbers are equal."""
    fields: dict[str, Any] = {
        "sources": SOURCES,
        "targets": TARGETS,
        "values": np.array([[0.50, 0.31], [0.40, 0.62], [0.90, 0.13]]),
        "split": "dev",
        "provenance": {"task": "demo:intent"},
    }
    return TransferMatrix(**{**fields, **changes})


def test_a_score_is_of_a_source_on_a_target() -> None:
    assert matrix().score("fr-FR", "sw-KE") == 0.40
    assert matrix().score("sw-KE", "cy-GB") == 0.13


def test_a_column_is_every_source_on_one_target() -> None:
    assert matrix().column("sw-KE") == {"de-DE": 0.50, "fr-FR": 0.40, "sw-KE": 0.90}
    assert matrix().column("cy-GB") == {"de-DE": 0.31, "fr-FR": 0.62, "sw-KE": 0.13}


def test_the_best_zero_shot_source_is_never_the_targets_own_expert() -> None:
    assert matrix().best_zero_shot("sw-KE") == "de-DE"
    assert matrix().best_zero_shot("cy-GB") == "fr-FR"


def test_among_equals_the_first_by_name() -> None:
    assert matrix(values=np.full((3, 2), 0.5)).best_zero_shot("cy-GB") == "de-DE"


def test_zero_shot_needs_another_expert() -> None:
    alone = matrix(sources=("sw-KE",), values=np.array([[0.9, 0.1]]))
    assert alone.best_zero_shot("cy-GB") == "sw-KE"
    with pytest.raises(SelectionError, match="no source but 'sw-KE' itself"):
        alone.best_zero_shot("sw-KE")


def test_rows_can_be_chosen() -> None:
    some = matrix().among(["sw-KE", "de-DE"])
    assert some.sources == ("de-DE", "sw-KE")
    assert some.values.tolist() == [[0.50, 0.31], [0.90, 0.13]]
    assert (some.targets, some.split) == (TARGETS, "dev")
    with pytest.raises(
        SelectionError, match="the dev transfer matrix has no expert 'en-US': it has de-DE, fr-FR"
    ):
        matrix().among(["en-US"])


def test_unknown_rows_and_columns_are_errors() -> None:
    with pytest.raises(
        SelectionError, match="the dev transfer matrix has no expert 'cy-GB': it has de-DE, fr-FR"
    ):
        matrix().score("cy-GB", "sw-KE")
    with pytest.raises(SelectionError, match="has no column 'de-DE': measure it with langmerge matrix"):
        matrix().column("de-DE")


def test_what_was_not_measured_is_an_error_and_not_a_number() -> None:
    values = matrix().values.copy()
    values[1, 0] = np.nan
    holed = matrix(values=values)
    assert holed.column("cy-GB")["fr-FR"] == 0.62
    with pytest.raises(SelectionError, match="column 'sw-KE' lacks fr-FR: run langmerge matrix again"):
        holed.column("sw-KE")


@pytest.mark.parametrize("shape", [(2, 3), (3, 3), (2, 2)])
def test_values_must_fit_the_names(shape: tuple[int, int]) -> None:
    with pytest.raises(SelectionError, match="for 3 sources × 2 targets"):
        matrix(values=np.zeros(shape))


def test_a_matrix_comes_back_from_its_file(tmp_path: Path) -> None:
    values = matrix().values.copy()
    values[2, 1] = np.nan
    kept = matrix(values=values, metric="macro_f1")
    kept.save(tmp_path / "transfer.json")
    found = TransferMatrix.load(tmp_path / "transfer.json")
    for field in dataclasses.fields(TransferMatrix):
        if field.name != "values":
            assert getattr(found, field.name) == getattr(kept, field.name)
    np.testing.assert_array_equal(found.values, values)
    assert found.values.dtype == np.float64
    assert [path.name for path in tmp_path.iterdir()] == ["transfer.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "langmerge-transfer/9"}, "format is 'langmerge-transfer/9'; this version reads"),
        ({"values": [[0.1, 0.2]]}, "is no transfer matrix"),
        ({"values": [["high", 0.2], [0, 0], [0, 0]]}, "is no transfer matrix"),
        ({"split": None}, "is no transfer matrix"),
        ({"sources": 3}, "is no transfer matrix"),
    ],
)
def test_a_garbled_file_is_an_error(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "transfer.json"
    matrix().save(path)
    raw = {
        key: value for key, value in {**json.loads(path.read_text()), **change}.items() if value is not None
    }
    path.write_text(json.dumps(raw))
    with pytest.raises(SelectionError, match=message):
        TransferMatrix.load(path)


def test_no_file_or_no_json_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SelectionError, match="does not exist: measure it"):
        TransferMatrix.load(tmp_path / "transfer.json")
    for text in ("{", "[]", "3"):
        (tmp_path / "transfer.json").write_text(text)
        with pytest.raises(SelectionError, match="is no transfer matrix"):
            TransferMatrix.load(tmp_path / "transfer.json")
