"""Charts as inline SVG: drawn by Altair, rendered without a browser.

Text and lines take the page's colour (`currentColor`), so that one drawing serves the light and the dark scheme.
"""

import importlib
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from langmerge.errors import MissingExtraError
from langmerge.report.standings import Standing
from langmerge.report.words import label
from langmerge.results.study import KINDS, SINGLE_EXPERTS, Row

# White numbers must be readable on the bars, and the bars on a white page and on a dark one.
MERGE, CHOSEN, REFERENCE = "#2f6fc0", "#14806e", "#6b7280"
ZERO_SHOT, SELF, OUTLINE = "#e0731d", "#b05cc6", "#e5383b"
NUMBERED_COLUMNS = 20
"""Up to so many columns a heat map's cells hold their numbers."""
WIDEST_LETTER = 7
"""Pixels for a letter of an axis label, on average, in a wide font."""

CONFIG: Mapping[str, Any] = {
    "background": None,
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": "currentColor",
        "titleColor": "currentColor",
        "domainColor": "currentColor",
        "tickColor": "currentColor",
        "gridColor": "currentColor",
        "gridOpacity": 0.15,
        "domainOpacity": 0.4,
        "tickOpacity": 0.4,
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "labelLimit": 0,
    },
    "legend": {"labelColor": "currentColor", "titleColor": "currentColor", "titleFontWeight": "normal"},
}


def accuracy_bars(standing: Standing) -> str:
    """Test accuracy of each row with its 95 % interval; a solid line at best zero-shot, a dashed one at self.

    Raises:
        MissingExtraError: Altair or vl-convert is not installed.
    """
    alt = library("altair")
    names = _distinct([_bar_name(row) for row in standing.rows], [row.signature for row in standing.rows])
    values = [
        {
            "name": name,
            "test": 100 * row.test,
            "low": 100 * row.low,
            "high": 100 * row.high,
            "text": f"{100 * row.test:.1f}",
            "style": CHOSEN if standing.is_chosen(row) else MERGE if row.kind == "merge" else REFERENCE,
        }
        for name, row in zip(names, standing.rows, strict=True)
    ]
    axis = alt.Axis(minExtent=room(names))
    bars = alt.Chart(alt.InlineData(values=values)).encode(
        y=alt.Y("name:N", sort=names, title=None, axis=axis)
    )
    layers = [
        bars.mark_bar(height=15).encode(
            x=alt.X("test:Q", title="test accuracy, %", scale=alt.Scale(zero=True)),
            color=alt.Color("style:N", scale=None),
        ),
        *_reference_lines(alt, standing),
        bars.mark_errorbar(ticks={"color": "currentColor", "size": 7}, rule={"color": "currentColor"}).encode(
            x=alt.X("low:Q", title="test accuracy, %"), x2="high:Q"
        ),
        # At the foot of the bar, where neither whiskers nor lines cross it.
        bars.mark_text(align="left", dx=5, fontSize=11, color="white").encode(x=alt.value(0), text="text:N"),
    ]
    return as_svg(alt.layer(*layers).properties(width=420, height=alt.Step(22)))


def transfer_heat_map(matrix: Mapping[str, Any]) -> str:
    """Dev accuracy of each expert (row) on each locale (column), the diagonal outlined.

    Args:
        matrix: `sources`, `targets` and `values` in [0, 1] by source; NaN or None is left empty.

    Raises:
        MissingExtraError: Altair or vl-convert is not installed.
    """
    alt = library("altair")
    sources, targets = list(matrix["sources"]), list(matrix["targets"])
    values = _cells(matrix)
    numbered = len(targets) <= NUMBERED_COLUMNS
    middle = (min(v["score"] for v in values) + max(v["score"] for v in values)) / 2 if values else 0.0
    top = alt.Axis(orient="top", labelAngle=-90, minExtent=room(targets))
    side = alt.Axis(minExtent=room(sources))
    cells = alt.Chart(alt.InlineData(values=values)).encode(
        x=alt.X("target:N", sort=targets, title="locale", axis=top),
        y=alt.Y("source:N", sort=sources, title="expert", axis=side),
    )
    legend = alt.Legend(title="%", gradientLength=120)
    layers = [
        cells.mark_rect().encode(
            color=alt.Color("score:Q", scale=alt.Scale(scheme="viridis", zero=False), legend=legend)
        ),
        cells.transform_filter(alt.datum.own).mark_rect(fillOpacity=0, stroke=OUTLINE, strokeWidth=2.5),
    ]
    if numbered:
        shade = alt.condition(alt.datum.score > middle, alt.value("black"), alt.value("white"))
        layers.append(
            cells.mark_text(fontSize=11).encode(text=alt.Text("score:Q", format=".0f"), color=shade)
        )
    width, height = (30, 24) if numbered else (15, 15)
    return as_svg(alt.layer(*layers).properties(width=alt.Step(width), height=alt.Step(height)))


def _reference_lines(alt: Any, standing: Standing) -> list[Any]:
    lines = []
    for row, colour, dash in (
        (standing.of_kind("best_zero_shot"), ZERO_SHOT, [1, 0]),
        (standing.of_kind("self"), SELF, [6, 4]),
    ):
        if row is not None:
            chart = alt.Chart(alt.InlineData(values=[{"at": 100 * row.test}]))
            lines.append(chart.mark_rule(color=colour, strokeWidth=2, strokeDash=dash).encode(x="at:Q"))
    return lines


def room(names: Sequence[str]) -> int:
    """Pixels for axis labels by their length: the reader's font may be wider than the renderer's."""
    return WIDEST_LETTER * max(map(len, names), default=0)


def _bar_name(row: Row) -> str:
    if row.kind == "best_in_hindsight":
        return f"{KINDS[row.kind]} (on test): {row.sources[0]}"
    return label(row) if row.kind in SINGLE_EXPERTS else f"{label(row)}, k={len(row.sources)}"


def _distinct(names: list[str], signatures: list[str]) -> list[str]:
    """Names that are all different: two bars under one name would be drawn over each other."""
    often = Counter(names)
    return [f"{n} ({s})" if often[n] > 1 else n for n, s in zip(names, signatures, strict=True)]


def _cells(matrix: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {"source": source, "target": target, "score": 100 * value, "own": source == target}
        for source, row in zip(matrix["sources"], matrix["values"], strict=True)
        for target, value in zip(matrix["targets"], row, strict=True)
        if value is not None and not math.isnan(value)
    ]


def as_svg(chart: Any) -> str:
    """An Altair chart as one `<svg>` element, the same whatever the session has drawn before.

    Raises:
        MissingExtraError: vl-convert is not installed.
    """
    alt, renderer = library("altair"), library("vl_convert")
    # Whatever theme the caller's session has on, the drawing is the same.
    with alt.theme.enable("none"):
        spec = {**chart.to_dict(), "config": dict(CONFIG)}
    version = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
    drawn = str(renderer.vegalite_to_svg(json.dumps(spec), vl_version=version))
    # The renderer counts the gradients of its whole life; one page has one legend, so one name will do.
    drawn = re.sub(r'((?:id=|url\()"?#?)gradient_\d+', r"\1gradient", drawn)
    # Namespaces are implied in HTML; without them the page names no address at all.
    return re.sub(r' (?:xmlns(?::\w+)?|version)="[^"]*"', "", drawn, count=3)


def library(name: str) -> Any:
    """The package that draws (`altair`) or renders (`vl_convert`).

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = {"vl_convert": "vl-convert-python"}.get(name, name)
        raise MissingExtraError(package, extra="report", needed_for="a page with charts") from error
