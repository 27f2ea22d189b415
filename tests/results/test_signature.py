import pytest

from langmerge.results import signature


def test_a_signature_is_twelve_digits_of_the_content() -> None:
    found = signature({"a": 1, "b": [2, {"c": None}]})
    assert len(found) == 12
    assert int(found, 16) >= 0
    assert found == signature({"b": [2, {"c": None}], "a": 1})


@pytest.mark.parametrize(
    "other", [{"a": 2}, {"b": 1}, {"a": 1, "b": None}, {"a": [1]}, {"a": "1"}, {"a": 1.5}]
)
def test_other_content_has_another_signature(other: dict[str, object]) -> None:
    assert signature(other) != signature({"a": 1})


def test_the_order_of_a_list_matters() -> None:
    assert signature([1, 2]) != signature([2, 1])
