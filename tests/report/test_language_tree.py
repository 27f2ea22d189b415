import re
from collections import Counter
from html import unescape

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from langmerge.report.language_charts import dendrogram
from langmerge.report.language_tree import tree_of
from langmerge.report.languages import languages_page
from langmerge.selection import SimilarityMatrix
from tests.report.drawn import FOUR, VALUES, matrix_of, section, tree, words


def test_the_tree_of_four_languages_by_hand() -> None:
    found = tree(VALUES)
    # de–nl at 0.9; fr–es at 0.8; then the mean of de–fr, de–es, nl–fr, nl–es: (0.5 + 0.3 + 0.4 + 0.2) / 4.
    assert [join.similarity for join in found.joins] == pytest.approx([0.9, 0.8, 0.35])
    # Of the orders that keep pairs together the sum of neighbours is largest with de–fr (0.5) in the middle.
    assert found.leaves in (
        ("nl-NL", "de-DE", "fr-FR", "es-ES"),
        ("es-ES", "fr-FR", "de-DE", "nl-NL"),
    )
    assert found.top == 1.0
    assert not found.is_mean
    rows = [sorted(row for row, _ in join.branches) for join in found.joins]
    assert sorted(rows[:2]) == [[0, 1], [2, 3]]
    assert rows[2] == [0.5, 2.5]


@given(n=st.integers(2, 9), seed=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_a_join_is_the_mean_over_pairs_of_its_two_branches(n: int, seed: int) -> None:
    values = np.random.default_rng(seed).uniform(-2, 3, (n, n))
    names = [f"l{place}" for place in range(n)]
    found = tree(values, names)
    mean = (values + values.T) / 2
    assert found.is_mean
    members = {(float(row), found.top): {names.index(leaf)} for row, leaf in enumerate(found.leaves)}
    for join in found.joins:
        one, other = (members.pop(branch) for branch in join.branches)
        across = np.mean([mean[a, b] for a in one for b in other])
        assert join.similarity == pytest.approx(across)
        rows = [row for row, _ in join.branches]
        members[sum(rows) / 2, join.similarity] = one | other
    assert list(members.values()) == [set(range(n))]


def test_values_above_one_give_the_same_tree() -> None:
    plain, percents = tree(VALUES), tree(100 * VALUES)
    assert percents.leaves == plain.leaves
    assert [join.similarity for join in percents.joins] == pytest.approx([90, 80, 35])
    assert percents.top == 90


def test_an_asymmetric_matrix_gives_the_tree_of_its_mean() -> None:
    lean = np.triu(np.full((4, 4), 0.2), 1) - np.tril(np.full((4, 4), 0.2), -1)
    found = tree(VALUES + lean)
    assert found.is_mean
    assert [join.similarity for join in found.joins] == pytest.approx([0.9, 0.8, 0.35])
    assert "the tree is of their mean" in words(languages_page(matrix_of(VALUES + lean)))
    assert "the tree is of their mean" not in words(languages_page(matrix_of(VALUES)))


def test_rounding_is_no_asymmetry() -> None:
    assert not tree(VALUES + 4e-10 * np.triu(np.ones((4, 4)))).is_mean
    assert tree(VALUES + 4e-9 * np.triu(np.ones((4, 4)), 1)).is_mean


def test_columns_in_another_order_are_put_in_the_rows_order() -> None:
    swapped = matrix_of(VALUES[:, ::-1], FOUR, FOUR[::-1])
    assert tree_of(swapped) == tree_of(matrix_of(VALUES))


def test_a_languages_value_for_itself_takes_no_part() -> None:
    values = VALUES.copy()
    np.fill_diagonal(values, [np.nan, 0.0, 7.0, -3.0])
    assert tree(values) == tree(VALUES)


@pytest.mark.parametrize(
    ("matrix", "why"),
    [
        (matrix_of(VALUES[:, :3], FOUR, FOUR[:3]), "not the same languages"),
        (matrix_of(VALUES, FOUR, (*FOUR[:3], "sw-KE")), "not the same languages"),
        (matrix_of([[1.0]], ["de-DE"]), "it takes two languages"),
        (
            matrix_of([[1.0, 0.5, 0.5], [0.5, 1.0, np.nan], [0.5, 0.5, 1.0]], FOUR[:3]),
            "1 of 6 values of two languages are not known; the first is that of fr-FR for nl-NL",
        ),
    ],
)
def test_why_there_is_no_tree_is_said(matrix: SimilarityMatrix, why: str) -> None:
    found = tree_of(matrix)
    assert isinstance(found, str)
    assert why in found
    html = languages_page(matrix)
    assert found in unescape(section(html, "tree"))
    assert "<svg" not in section(html, "tree")
    assert "<svg" in section(html, "values")


def test_the_tree_is_drawn_as_lines_that_meet_with_labels_in_order() -> None:
    found = tree(VALUES)
    svg = dendrogram(found)
    labels = re.findall(r'<text[^>]*translate\(([-\d.]+),([-\d.]+)\)"[^>]*>([a-z]{2}-[A-Z]{2})<', svg)
    assert sorted((float(y), x, name) for x, y, name in labels) == [
        (9 + 4 + 18 * row, "466", name) for row, name in enumerate(found.leaves)
    ], "from top to bottom, as in the heat map"
    drawn = svg[svg.index('class="mark-rule role-mark') :]
    lines = re.findall(
        r'<line[^>]*transform="translate\(([-\d.]+),([-\d.]+)\)" x2="([-\d.]+)" y2="([-\d.]+)"', drawn
    )
    assert len(lines) == 3 * 3
    ends = Counter()
    for x, y, right, down in (tuple(map(float, line)) for line in lines):
        assert right == 0 or down == 0, "every line is level or upright"
        ends.update([(round(x), round(y)), (round(x + right), round(y + down))])
    # Leaves are the ends that nothing else touches, at the right edge, one line of text apart.
    leaves = sorted(end for end in ends if end[0] == 460)
    assert leaves == [(460, 9), (460, 27), (460, 45), (460, 63)]
