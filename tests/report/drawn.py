"""Reading what pages and their drawings show; and four languages."""

import re
from collections import Counter
from collections.abc import Sequence
from html import unescape
from typing import Any

import numpy as np

from langmerge.report.language_tree import Tree, tree_of
from langmerge.selection import SimilarityMatrix
from tests.report.test_html_page import Reader, read

FOUR = ("de-DE", "fr-FR", "nl-NL", "es-ES")
"""German beside Dutch, French beside Spanish; and of the pairs between them French is closest to German."""
VALUES = np.array(
    [
        [1.00, 0.50, 0.90, 0.30],
        [0.50, 1.00, 0.40, 0.80],
        [0.90, 0.40, 1.00, 0.20],
        [0.30, 0.80, 0.20, 1.00],
    ]
)


def matrix_of(
    values: Any, names: Sequence[str] = FOUR, targets: Sequence[str] | None = None, **more: Any
) -> SimilarityMatrix:
    columns = names if targets is None else targets
    own = np.asarray(values, dtype=np.float64).reshape(len(names), len(columns))
    return SimilarityMatrix(more.pop("by", "typology"), tuple(names), tuple(columns), own, **more)


def tree(values: Any, names: Sequence[str] = FOUR) -> Tree:
    found = tree_of(matrix_of(values, names))
    assert isinstance(found, Tree), found
    return found


def section(html: str, name: str) -> str:
    found = re.search(rf'<section id="{name}">.*?</section>', html, re.DOTALL)
    assert found is not None, name
    return found[0]


def texts(svg: str) -> list[str]:
    return [unescape(text) for text in re.findall(r"<text[^>]*>([^<]*)</text>", svg)]


def words(html: str) -> str:
    return " ".join(read(html).words)


def described(svg: str) -> dict[str, tuple[float, float]]:
    """What a mark's label says → where it stands."""
    marks = re.findall(r'<path aria-label="([^"]*)"[^>]*? transform="translate\(([-\d.e]+),([-\d.e]+)\)', svg)
    return {unescape(what): (float(x), float(y)) for what, x, y in marks}


def check_alone(html: str) -> Reader:
    found = read(html)
    assert not set(found.tags) & {"script", "link", "img", "iframe", "object", "embed", "base"}
    assert not [name for _, name, _ in found.attributes if name.startswith("on")]
    assert not [value for _, name, value in found.attributes if name in ("src", "href", "xlink:href")]
    assert "http:" not in html
    assert "https:" not in html
    assert "default-src 'none'" in html
    assert "prefers-color-scheme:dark" in html
    ids = Counter(value for _, name, value in found.attributes if name == "id")
    assert set(ids.values()) == {1}
    assert set(re.findall(r"url\(#([^)]*)\)", html)) <= set(ids)
    return found
