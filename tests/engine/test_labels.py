from pathlib import Path

import pytest

from langmerge.checkpoint import Checkpoint, open_checkpoint
from langmerge.engine.labels import is_label_row, label_orders
from tests.tiny import drawn, write_raw


def opened(folder: Path, labels: tuple[str, ...] | None) -> Checkpoint:
    return open_checkpoint(write_raw(folder, drawn(0), labels=labels))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("classifier.out_proj.weight", True),
        ("classifier.weight", True),
        ("score.weight", True),
        ("logits_proj.bias", True),
        ("classifier.linear_out.weight", True),
        ("sequence_summary.summary.weight", False),
        ("classification_head.out_proj.bias", True),
        ("classifier.dense.weight", False),
        ("pre_classifier.weight", False),
        ("roberta.encoder.layer.0.output.dense.weight", False),
        ("vit.classifier.weight", False),
        ("lm_head.decoder.weight", False),
    ],
)
def test_which_rows_are_labels(name: str, expected: bool) -> None:
    assert is_label_row(name) is expected


def test_an_order_says_where_each_label_is(tmp_path: Path) -> None:
    base = opened(tmp_path / "base", ("a", "b", "c"))
    sources = {
        "one": opened(tmp_path / "one", ("c", "a", "b")),
        "two": opened(tmp_path / "two", ("a", "b", "c")),
    }
    faults: list[str] = []
    orders, labels = label_orders(base, sources, faults)
    assert faults == []
    assert labels == ("a", "b", "c")
    assert {name: order.tolist() for name, order in orders.items()} == {"one": [1, 2, 0]}


def test_without_a_base_the_first_source_is_the_reference(tmp_path: Path) -> None:
    sources = {
        "one": opened(tmp_path / "one", ("c", "a", "b")),
        "two": opened(tmp_path / "two", ("a", "b", "c")),
    }
    orders, labels = label_orders(None, sources, [])
    assert labels == ("c", "a", "b")
    assert {name: order.tolist() for name, order in orders.items()} == {"two": [2, 0, 1]}


def test_long_differences_are_cut(tmp_path: Path) -> None:
    base = opened(tmp_path / "base", tuple(f"b{row:02d}" for row in range(12)))
    source = opened(tmp_path / "one", tuple(f"a{row:02d}" for row in range(3)))
    faults: list[str] = []
    label_orders(base, {"one": source}, faults)
    assert faults[0].endswith("only there: a00, a01, a02; missing: b00, b01, b02, b03, b04, b05, b06, b07 …")
