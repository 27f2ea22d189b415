"""A map of languages: points, labels and a graticule on plain axes of longitude and latitude. No coasts."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from langmerge.report.charts import MERGE, as_svg, library

Place = tuple[float, float]
"""Latitude and longitude, in degrees."""

WIDEST, TALLEST = 900, 560
"""Pixels."""
STEPS = (5, 10, 15, 30)
"""Degrees between two lines of the graticule: the first with which the places lie within a dozen."""
SMALLEST = 20
"""Degrees that are shown at least: a single language needs surroundings."""

LINE = 13.0
"""Pixels, a label's height."""
NARROW, WIDE = "fijlrtI-,.' ", "mwMW"
"""Letters about half as wide as the others, and half as wide again."""
POINT = 3.5
"""Pixels, a point's radius."""
SIDES = (
    (1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (1, 1), (-1, -1), (-1, 1),
    (1, -0.5), (1, 0.5), (-1, -0.5), (-1, 0.5), (0.5, -1), (-0.5, -1), (0.5, 1), (-0.5, 1),
)  # fmt: skip
"""Where a label may stand, seen from its point: the places that are tried first come first."""
GAPS = (0, 8, 16, 26, 38, 52, 70, 90, 115, 140)
"""Pixels between a point and its label, beyond the usual few; with a gap there is a thin line between the two."""
NEAR = 50.0
"""Pixels within which points crowd each other."""


@dataclass(frozen=True)
class Frame:
    """The part of the world that is shown.

    Attributes:
        west: degrees, like the other three edges.
        east: edge.
        south: edge.
        north: edge.
        step: degrees between two lines of the graticule.
        scale: pixels for a degree, of longitude and of latitude alike.
    """

    west: float
    east: float
    south: float
    north: float
    step: int
    scale: float

    @property
    def size(self) -> tuple[float, float]:
        """Width and height in pixels."""
        return (self.east - self.west) * self.scale, (self.north - self.south) * self.scale

    def pixel(self, place: Place) -> tuple[float, float]:
        """x and y from the upper left corner."""
        latitude, longitude = place
        return (longitude - self.west) * self.scale, (self.north - latitude) * self.scale

    def place(self, x: float, y: float) -> Place:
        """What lies at a pixel."""
        return self.north - y / self.scale, self.west + x / self.scale


@dataclass(frozen=True)
class Label:
    """A label beside its point, in pixels.

    Attributes:
        text: what it says.
        point: x and y of the point.
        middle: x and y of the label's middle.
        is_tied: it stands off, and a line leads to it.
    """

    text: str
    point: tuple[float, float]
    middle: tuple[float, float]
    is_tied: bool

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom."""
        (x, y), half = self.middle, width_of(self.text) / 2
        return x - half, y - LINE / 2, x + half, y + LINE / 2

    @property
    def end(self) -> tuple[float, float]:
        """Where the line from the point meets the label."""
        left, top, right, bottom = self.box
        return min(max(self.point[0], left), right), min(max(self.point[1], top), bottom)

    def line_boxes(self) -> list[tuple[float, float, float, float]]:
        """Small boxes along the line, from outside the point; none where there is no line."""
        if not self.is_tied:
            return []
        (x, y), (to_x, to_y) = self.point, self.end
        along = [(x + (to_x - x) * share, y + (to_y - y) * share) for share in (0.4, 0.6, 0.8, 1.0)]
        return [(a - 1, b - 1, a + 1, b + 1) for a, b in along]


def language_map(places: Mapping[str, Place]) -> str:
    """Every language at its place; those that share one share a point.

    Args:
        places: language → latitude and longitude; one or more.

    Raises:
        MissingExtraError: Altair or vl-convert is not installed.
    """
    alt = library("altair")
    together: dict[Place, list[str]] = {}
    for name, place in places.items():
        together.setdefault(place, []).append(name)
    frame = frame_of(together)
    labels = place_labels(
        [", ".join(names) for names in together.values()],
        [frame.pixel(place) for place in together],
        frame.size,
    )
    rows = [_row(label, place, frame) for label, place in zip(labels, together, strict=True)]
    x, y = _axes(alt, frame)
    points = alt.Chart(alt.InlineData(values=rows))
    ties = alt.Chart(alt.InlineData(values=[row for row in rows if row["tied"]]))
    text = {"align": "center", "baseline": "middle", "fontSize": 11, "color": "currentColor"}
    layers = [
        ties.mark_rule(color="currentColor", opacity=0.45).encode(
            x=x("longitude"), y=y("latitude"), x2="end_longitude", y2="end_latitude"
        ),
        points.mark_circle(size=(2 * POINT) ** 2, color=MERGE, opacity=1).encode(
            x=x("longitude"), y=y("latitude"), description="what:N"
        ),
        points.mark_text(**text).encode(x=x("label_longitude"), y=y("label_latitude"), text="text:N"),
    ]
    width, height = frame.size
    return as_svg(alt.layer(*layers).properties(width=width, height=height))


def frame_of(places: Iterable[Place]) -> Frame:
    """The part of the world around some places, edged by lines of the graticule."""
    latitudes, longitudes = zip(*places, strict=True)
    spread = max(max(longitudes) - min(longitudes), max(latitudes) - min(latitudes), SMALLEST)
    step = next((step for step in STEPS if spread <= 12 * step), STEPS[-1])
    west, east = _edges(longitudes, step, 180)
    south, north = _edges(latitudes, step, 90)
    return Frame(west, east, south, north, step, min(WIDEST / (east - west), TALLEST / (north - south)))


def _edges(values: Sequence[float], step: int, limit: float) -> tuple[float, float]:
    margin = max(step / 4, (SMALLEST - (max(values) - min(values))) / 2)
    low = max(-limit, step * math.floor((min(values) - margin) / step))
    return low, min(limit, step * math.ceil((max(values) + margin) / step))


def place_labels(
    texts: Sequence[str], points: Sequence[tuple[float, float]], size: tuple[float, float]
) -> list[Label]:
    """One label for each point, so that none covers another, a point or a line where there is room for that.

    Args:
        texts: what they say.
        points: x and y in pixels.
        size: of the map: labels stay inside.
    """
    where = np.array(points, dtype=np.float64).reshape(-1, 2)
    crowd = (np.hypot(*(where[:, None] - where).transpose(2, 0, 1)) < NEAR).sum(axis=1)
    taken = np.hstack([where - POINT, where + POINT])
    found: dict[int, Label] = {}
    # Where it is crowded first: elsewhere there is room later too.
    for place in sorted(range(len(texts)), key=lambda i: (-crowd[i], i)):
        tried = list(_candidates(texts[place], points[place]))
        free = (label for label in tried if _is_inside(label, size) and _is_free(label, taken))
        label = found[place] = next(free, tried[0])
        taken = np.vstack([taken, [label.box, *label.line_boxes()]])
    return [found[place] for place in range(len(texts))]


def _candidates(text: str, point: tuple[float, float]) -> Iterator[Label]:
    half = width_of(text) / 2
    for gap in GAPS:
        for right, down in SIDES:
            x = point[0] + right * (half + POINT + 2.5 + gap)
            y = point[1] + down * (LINE / 2 + POINT + 1 + gap)
            yield Label(text, point, (x, y), is_tied=gap > 0)


def width_of(text: str) -> float:
    """Pixels of a label, by the kind of its letters: the reader's font is not known here.

    >>> width_of("de-DE"), width_of("my-MM")
    (32.5, 39.5)
    """

    def wide(letter: str) -> float:
        if letter in NARROW:
            return 3.5
        if letter in WIDE:
            return 9.5 if letter.islower() else 10
        return 8 if letter.isupper() else 6.5

    return sum(wide(letter) for letter in text)


def _is_inside(label: Label, size: tuple[float, float]) -> bool:
    left, top, right, bottom = label.box
    return left >= 0 and top >= 0 and right <= size[0] and bottom <= size[1]


def _is_free(label: Label, taken: Float64[np.ndarray, "n 4"]) -> bool:
    boxes = np.array([label.box, *label.line_boxes()])[:, None]
    apart = (boxes[..., 2:] <= taken[:, :2]) | (boxes[..., :2] >= taken[:, 2:])
    return bool(apart.any(axis=-1).all())


def _row(label: Label, place: Place, frame: Frame) -> dict[str, Any]:
    label_latitude, label_longitude = frame.place(*label.middle)
    end_latitude, end_longitude = frame.place(*label.end)
    return {
        "latitude": place[0],
        "longitude": place[1],
        "text": label.text,
        "what": f"{label.text}: latitude {place[0]:.1f}, longitude {place[1]:.1f}",
        "label_latitude": label_latitude,
        "label_longitude": label_longitude,
        "end_latitude": end_latitude,
        "end_longitude": end_longitude,
        "tied": label.is_tied,
    }


def _axes(alt: Any, frame: Frame) -> tuple[Any, Any]:
    """Makers of the two channels, by field."""

    def axis(low: float, high: float, positive: str, negative: str) -> Any:
        side = f"(datum.value > 0 ? '° {positive}' : datum.value < 0 ? '° {negative}' : '°')"
        lines = list(range(int(low), int(high) + 1, frame.step))
        return alt.Axis(values=lines, labelExpr=f"abs(datum.value) + {side}", grid=True, title=None)

    across = axis(frame.west, frame.east, "E", "W")
    along = axis(frame.south, frame.north, "N", "S")
    wide = alt.Scale(domain=[frame.west, frame.east], nice=False, zero=False)
    high = alt.Scale(domain=[frame.south, frame.north], nice=False, zero=False)
    return (
        lambda field: alt.X(f"{field}:Q", axis=across, scale=wide),
        lambda field: alt.Y(f"{field}:Q", axis=along, scale=high),
    )
