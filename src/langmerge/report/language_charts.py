"""Charts of languages as inline SVG: how alike they are, their tree; and estimates against the truth."""

import colorsys
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from langmerge.report.charts import NUMBERED_COLUMNS, WIDEST_LETTER, as_svg, library, room
from langmerge.report.language_tree import Tree
from langmerge.selection import SimilarityMatrix

DARK_SHARE = 0.43
"""Up to here on viridis white numbers read better than black ones."""

BRIGHTNESS = 0.2
"""Relative luminance of a target's colour: about as far from a white page as from a dark one."""

SHAPES = (("circle", "●"), ("square", "■"), ("triangle-up", "▲"), ("diamond", "◆"))
"""As Vega calls them, and in text."""


def similarity_heat_map(matrix: SimilarityMatrix, order: Sequence[str] = ()) -> str:
    """Sources × targets, darker for less; what is not known is left empty.

    Colours span the values of two languages: a language's value for itself may lie beyond, and would hide the rest.

    Args:
        matrix: with one finite value or more.
        order: of the rows and of the columns; as given where there is none.

    Raises:
        MissingExtraError: Altair or vl-convert is not installed.
    """
    alt = library("altair")
    sources, targets = list(order or matrix.sources), list(order or matrix.targets)
    digits = decimals(matrix.values)
    cells = _cells(matrix, digits)
    low, high = _span(cells)
    chart = alt.Chart(alt.InlineData(values=cells)).encode(
        # By domain, not by sort: a language of which nothing is known has a row too.
        x=alt.X(
            "target:N",
            title="target",
            scale=alt.Scale(domain=targets),
            axis=alt.Axis(orient="top", labelAngle=-90, minExtent=room(targets)),
        ),
        y=alt.Y(
            "source:N",
            title="source",
            scale=alt.Scale(domain=sources),
            axis=alt.Axis(minExtent=room(sources), titlePadding=10),
        ),
    )
    layers = [
        chart.mark_rect().encode(
            color=alt.Color(
                "score:Q",
                scale=alt.Scale(scheme="viridis", domain=[low, high], clamp=True, nice=False),
                legend=alt.Legend(
                    title=matrix.by,
                    gradientLength=120,
                    format=f".{digits}f",
                    values=[low, (low + high) / 2, high],
                ),
            )
        )
    ]
    width, height = 15, 15
    if len(targets) <= NUMBERED_COLUMNS:
        width, height = max(32, WIDEST_LETTER * max(len(cell["text"]) for cell in cells)), 24
        ink = alt.condition(
            alt.datum.score > low + DARK_SHARE * (high - low), alt.value("black"), alt.value("white")
        )
        layers.append(chart.mark_text(fontSize=11).encode(text="text:N", color=ink))
    return as_svg(alt.layer(*layers).properties(width=alt.Step(width), height=alt.Step(height)))


def decimals(values: Float64[np.ndarray, "s t"]) -> int:
    """Two for shares, cosines and differences of shares, none of which is beyond 1; one for anything else."""
    known = values[np.isfinite(values)]
    return 2 if (np.abs(known) <= 1 + 1e-9).all() else 1


def _cells(matrix: SimilarityMatrix, digits: int) -> list[dict[str, Any]]:
    return [
        {
            "source": source,
            "target": target,
            "score": float(value),
            # Rounded first: -0.001 is no -0.00.
            "text": f"{round(float(value), digits) + 0.0:.{digits}f}",
        }
        for source, row in zip(matrix.sources, matrix.values, strict=True)
        for target, value in zip(matrix.targets, row, strict=True)
        if math.isfinite(value)
    ]


def _span(cells: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    pairs = [cell["score"] for cell in cells if cell["source"] != cell["target"]]
    scores = pairs or [cell["score"] for cell in cells]
    low, high = min(scores), max(scores)
    return (low, high) if high > low else (low - 1, high)


def dendrogram(tree: Tree) -> str:
    """The tree from its root, left, to its leaves, right; branches meet at their mean similarity.

    Raises:
        MissingExtraError: Altair or vl-convert is not installed.
    """
    alt = library("altair")
    lines: list[dict[str, float]] = []
    for join in tree.joins:
        rows = [row for row, _ in join.branches]
        lines += [{"x": begin, "x2": join.similarity, "y": row, "y2": row} for row, begin in join.branches]
        lines.append({"x": join.similarity, "x2": join.similarity, "y": rows[0], "y2": rows[1]})
    lowest = min(join.similarity for join in tree.joins)
    margin = 0.03 * (tree.top - lowest) or 1.0
    across = alt.X(
        "x:Q",
        title="mean similarity",
        scale=alt.Scale(domain=[lowest - margin, tree.top], nice=False, zero=False),
        axis=alt.Axis(tickCount=6),
    )
    scale = alt.Scale(domain=[len(tree.leaves) - 0.5, -0.5], nice=False, zero=False)
    names = [{"y": row, "text": name} for row, name in enumerate(tree.leaves)]
    layers = [
        alt.Chart(alt.InlineData(values=lines))
        .mark_rule(color="currentColor", strokeWidth=1.5, strokeCap="square")
        .encode(x=across, x2="x2", y=alt.Y("y:Q", scale=scale, axis=None), y2="y2"),
        alt.Chart(alt.InlineData(values=names))
        .mark_text(align="left", baseline="middle", dx=6, fontSize=12, color="currentColor")
        .encode(x=alt.value("width"), y=alt.Y("y:Q", scale=scale, axis=None), text="text:N"),
    ]
    return as_svg(alt.layer(*layers).properties(width=460, height=18 * len(tree.leaves)))


@dataclass(frozen=True)
class Mark:
    """How the points of a target look: by colour and by shape.

    Attributes:
        colour: `#rrggbb`.
        shape: as Vega calls it.
        sign: the shape in text.
    """

    colour: str
    shape: str
    sign: str


def marks_of(targets: Iterable[str]) -> dict[str, Mark]:
    """A mark for every target, in their order; those that are close in colour differ in shape."""
    names = list(dict.fromkeys(targets))
    return {
        name: Mark(colour(place / len(names)), *SHAPES[place % len(SHAPES)])
        for place, name in enumerate(names)
    }


def colour(hue: float) -> str:
    """The colour of a hue in [0, 1) that is as bright as all others, on a white page and on a dark one.

    >>> colour(0.0)
    '#de4343'
    """
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        if luminance(colorsys.hls_to_rgb(hue, middle, 0.7)) < BRIGHTNESS:
            low = middle
        else:
            high = middle
    return "#" + "".join(f"{round(255 * part):02x}" for part in colorsys.hls_to_rgb(hue, low, 0.7))


def luminance(rgb: Sequence[float]) -> float:
    """Relative luminance of a colour with parts in [0, 1], in [0, 1] (WCAG 2.1)."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in rgb]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@dataclass(frozen=True)
class Guess:
    """A point of a calibration plot.

    Attributes:
        estimated: in %.
        truth: in %.
        mark: how it looks.
        what: in words.
    """

    estimated: float
    truth: float
    mark: Mark
    what: str


def calibration_scatter(guesses: Sequence[Guess], low: float, high: float) -> str:
    """Estimate (across) against truth (up), with the line on which the two are the same.

    Args:
        guesses: of one estimator.
        low: of both axes, in %.
        high: likewise.

    Raises:
        MissingExtraError: Altair or vl-convert is not installed.
    """
    alt = library("altair")
    scale = alt.Scale(domain=[low, high], nice=False, zero=False)
    across = alt.X("x:Q", title="estimate, %", scale=scale, axis=alt.Axis(tickCount=6))
    up = alt.Y("y:Q", title="accuracy, %", scale=scale, axis=alt.Axis(tickCount=6))
    ends = [{"x": low, "y": low, "x2": high, "y2": high}]
    points = [
        {
            "x": guess.estimated,
            "y": guess.truth,
            "colour": guess.mark.colour,
            "shape": guess.mark.shape,
            "what": guess.what,
        }
        for guess in guesses
    ]
    layers = [
        alt.Chart(alt.InlineData(values=ends))
        .mark_rule(color="currentColor", opacity=0.6, strokeDash=[6, 4])
        .encode(x=across, y=up, x2="x2", y2="y2"),
        alt.Chart(alt.InlineData(values=points))
        .mark_point(filled=True, size=45, opacity=0.85)
        .encode(
            x=across,
            y=up,
            color=alt.Color("colour:N", scale=None),
            shape=alt.Shape("shape:N", scale=None),
            description="what:N",
        ),
    ]
    return as_svg(alt.layer(*layers).properties(width=270, height=270))
