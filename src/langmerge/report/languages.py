"""Pages about languages: how alike they are, and how wrong label-free estimates are. No scripts, no files, no network."""

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from langmerge.errors import LocaleError
from langmerge.locales import typology_code
from langmerge.report.charts import NUMBERED_COLUMNS
from langmerge.report.html_page import document, figure, section, table_html
from langmerge.report.language_charts import (
    Guess,
    Mark,
    calibration_scatter,
    dendrogram,
    marks_of,
    similarity_heat_map,
)
from langmerge.report.language_map import Place, language_map
from langmerge.report.language_tree import Tree, tree_of
from langmerge.report.tables import Column, Table
from langmerge.report.words import percent, points
from langmerge.selection import SimilarityMatrix, typology_of

if TYPE_CHECKING:
    # It loads torch, and a page about languages needs none.
    from langmerge.estimates import Calibration, Estimate

LONGEST_FACT = 80
"""Letters of a piece of provenance that are shown."""


def languages_page(matrix: SimilarityMatrix) -> str:
    """Scores of sources for targets as a heat map, a tree and a map of the languages, and what is missing.

    The same matrix gives the same page.

    Raises:
        MissingExtraError: Altair or vl-convert is not installed.
    """
    tree = tree_of(matrix)
    return document(
        f"How well do sources suit targets? {matrix.by}",
        "langmerge similarity",
        [_heat_map(matrix, tree), _tree(tree), _map(matrix), _missing(matrix)],
    )


def _heat_map(matrix: SimilarityMatrix, tree: Tree | str) -> str:
    empty = int((~np.isfinite(matrix.values)).sum())
    words = [
        f"Scores by {matrix.by} of each source (row) for each target (column); the larger, the better. "
        "Colours span the scores of different languages; a language's score for itself may lie beyond."
    ]
    if isinstance(tree, Tree):
        words.append("Rows and columns are in the tree's order.")
    if len(matrix.targets) > NUMBERED_COLUMNS:
        words.append(f"With more than {NUMBERED_COLUMNS} columns cells hold no numbers.")
    if empty:
        words.append(f"{empty} of {matrix.values.size} cells are empty: nothing is known there.")
    if matrix.provenance:
        words.append(f"From {_in_short(matrix.provenance)}.")
    if empty < matrix.values.size:
        drawn = similarity_heat_map(matrix, tree.leaves if isinstance(tree, Tree) else ())
    else:
        drawn = "<p>There is no heat map: no value is known.</p>"
    return figure("values", "Scores", drawn, " ".join(words))


def _tree(tree: Tree | str) -> str:
    if isinstance(tree, str):
        return section("tree", "Tree", f"<p>{escape(tree)}</p>")
    words = (
        "Average linkage of 1 − similarity, ordered so that like stands next to like: two branches meet at the mean "
        "similarity of their languages. "
    )
    if tree.is_mean:
        words += (
            "The two values of a pair differ, for it matters which is the source: the tree is of their mean."
        )
    else:
        words += "It shows what these scores say, which need not be descent."
    return figure("tree", "Tree", dendrogram(tree), words)


def _map(matrix: SimilarityMatrix) -> str:
    languages = list(dict.fromkeys([*matrix.sources, *matrix.targets]))
    places = places_of(languages)
    absent = [language for language in languages if language not in places]
    listed = f"<p>Not on the map, because the place is not known: {escape(', '.join(absent))}.</p>"
    if not places:
        return section("map", "Map", listed)
    words = (
        "Where URIEL has the languages: one point each, not the area where they are spoken. Longitude and latitude in "
        "degrees, at the same scale."
    )
    return figure("map", "Map", language_map(places), words, below=listed if absent else "")


def places_of(languages: Sequence[str]) -> dict[str, Place]:
    """Latitude and longitude of the languages whose place is known.

    Args:
        languages: locales, codes or English names; what is no language has no place.
    """
    named = [language for language in languages if _is_language(language)]
    table, codes = typology_of(named)
    rows = {code: row for row, code in enumerate(table.codes)}
    found = {}
    for language in named:
        latitude, longitude = (
            table.places[rows[codes[language]]] if codes[language] in rows else (np.nan, np.nan)
        )
        if math.isfinite(latitude) and math.isfinite(longitude):
            found[language] = (float(latitude), float(longitude))
    return found


def _is_language(name: str) -> bool:
    try:
        typology_code(name)
    except LocaleError:
        return False
    return True


def _missing(matrix: SimilarityMatrix) -> str:
    if not matrix.missing:
        return section("missing", "What is missing", "<p>Nothing was noted.</p>")
    notes = "".join(
        f"<dt>{escape(language)}</dt><dd>{escape(why)}</dd>" for language, why in matrix.missing.items()
    )
    return section("missing", "What is missing", f"<dl>{notes}</dl>")


def _in_short(provenance: Mapping[str, Any]) -> str:
    return "; ".join(f"{key}: {_cut(_fact(value))}" for key, value in provenance.items())


def _fact(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={_fact(one)}" for key, one in value.items())
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_FACT else f"{text[: LONGEST_FACT - 1]}…"


def calibration_page(found: Sequence["Estimate"], errors: Sequence["Calibration"]) -> str:
    """Label-free estimates against the truth, estimator by estimator, and a table of their errors.

    The same estimates give the same page.

    Args:
        found: estimates; those without a truth are counted and not drawn.
        errors: of the estimators.

    Raises:
        MissingExtraError: Altair or vl-convert is not installed.
    """
    return document(
        "How wrong are estimates without labels?", "langmerge estimate", [_errors(errors), _scatters(found)]
    )


def _errors(errors: Sequence["Calibration"]) -> str:
    if not errors:
        return section("errors", "Errors", "<p>There are no errors: the truth is not known.</p>")
    table = Table(
        title="Errors of estimates",
        caption=(
            "In points. The mean absolute error is over targets, of the mean over experts; its interval is a bootstrap "
            "over targets, because a target's estimates share its rows. Bias is the mean of estimate − truth: above zero "
            "the estimate promises too much."
        ),
        columns=(
            Column("estimate"),
            Column("mean absolute error (95 % interval)", "number"),
            Column("bias", "number"),
            Column("targets", "number"),
        ),
        rows=tuple(
            (
                one.how,
                f"{one.mean_absolute_error:.1f} ({one.low:.1f} to {one.high:.1f})",
                points(one.bias),
                str(one.targets),
            )
            for one in errors
        ),
        styles=("merge",) * len(errors),
    )
    return section("errors", "Errors", table_html(table))


def _scatters(found: Sequence["Estimate"]) -> str:
    known = [(one, one.truth) for one in found if one.truth is not None]
    title = "Estimates against the truth"
    if not known:
        return section("estimates", title, "<p>There is no plot: the truth is not known.</p>")
    marks = marks_of(one.target for one, _ in known)
    shares = [share for one, truth in known for share in (one.estimated, truth)]
    low, high = 10 * math.floor(10 * min(shares)), 10 * math.ceil(10 * max(shares))
    low, high = max(0, min(low, high - 10)), max(high, low + 10)
    by_how: dict[str, list[Guess]] = {}
    for one, truth in known:
        by_how.setdefault(one.how, []).append(_guess(one, truth, marks[one.target]))
    # They wrap on a narrow screen: one drawing with all of them would not.
    drawn = "".join(
        f"<div><h3>{escape(how)}</h3>{calibration_scatter(own, low, high)}</div>"
        for how, own in by_how.items()
    )
    words = (
        "One point for each expert on each target, in %. Below the dashed line the estimate promises too much, above it "
        "too little."
    )
    if left := len(found) - len(known):
        words += f" Not drawn, because their truth is not known: {left}."
    return figure(
        "estimates",
        title,
        f'<div style="display:flex;flex-wrap:wrap;gap:0 2rem">{drawn}</div>',
        words,
        below=_key(marks),
    )


def _guess(one: "Estimate", truth: float, mark: Mark) -> Guess:
    what = f"{one.expert} on {one.target}: estimate {percent(one.estimated)} %, accuracy {percent(truth)} %"
    return Guess(100 * one.estimated, 100 * truth, mark, what)


def _key(marks: Mapping[str, Mark]) -> str:
    items = " ".join(
        f'<span style="white-space:nowrap;margin-right:.7em"><span style="color:{mark.colour}">{mark.sign}</span> '
        f"{escape(target)}</span>"
        for target, mark in marks.items()
    )
    return f'<p class="soft">Targets: {items}</p>'
