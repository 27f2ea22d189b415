import re
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from langmerge.locales import MASSIVE_LOCALES
from langmerge.report.language_map import POINT, TALLEST, WIDEST, Label, frame_of, language_map, place_labels
from langmerge.report.languages import languages_page, places_of
from tests.report.drawn import described, matrix_of, section, texts


def test_a_single_language_has_surroundings() -> None:
    frame = frame_of([(48.6, 12.5)])
    # Ten degrees or more on every side, to the next line.
    assert (frame.south, frame.north, frame.west, frame.east, frame.step) == (35, 60, 0, 25, 5)


def covers(one: Sequence[float], other: Sequence[float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def test_known_languages_are_where_they_are() -> None:
    found = places_of(["is-IS", "ja-JP", "sw-KE", "Welsh", "deu"])
    near = {"is-IS": (65, -18), "ja-JP": (36, 138), "sw-KE": (-4, 34), "Welsh": (52, -4), "deu": (50, 11)}
    assert found.keys() == near.keys()
    for language, (latitude, longitude) in near.items():
        assert abs(found[language][0] - latitude) < 6, language
        assert abs(found[language][1] - longitude) < 6, language


def test_points_stand_at_longitude_and_latitude_on_one_scale() -> None:
    places = {"a": (10.0, 20.0), "b": (-30.0, 80.0), "c": (60.0, -15.0), "d": (0.0, 0.0)}
    svg = language_map(places)
    drawn = {what.partition(":")[0]: where for what, where in described(svg).items()}
    assert drawn.keys() == places.keys()
    frame = frame_of(places.values())
    for name, place in places.items():
        assert drawn[name] == pytest.approx(frame.pixel(place), abs=0.01)
    # Where the equator and Greenwich are drawn is read off the graticule.
    (x,), (y,) = (
        re.findall(rf'translate\({place}\)"[^>]*>0°<', svg)
        for place in (r"([\d.]+),[\d.]+", r"-[\d.]+,([\d.]+)")
    )
    assert drawn["d"][0] == pytest.approx(float(x), abs=1)
    assert drawn["d"][1] == pytest.approx(float(y), abs=5), "text stands on its line, not in its middle"
    right, down = (drawn["b"][0] - drawn["a"][0]) / 60, (drawn["b"][1] - drawn["a"][1]) / 40
    assert right == pytest.approx(down)
    assert right > 0


def test_the_graticule_names_its_sides() -> None:
    found = set(texts(language_map({"a": (40.0, -70.0), "b": (-20.0, 60.0)})))
    assert {"60° W", "0°", "60° E", "30° S", "30° N"} <= found


def test_languages_at_one_place_share_a_point() -> None:
    svg = language_map(places_of(["zh-CN", "zh-TW", "ko-KR"]))
    assert {what.partition(":")[0] for what in described(svg)} == {"zh-CN, zh-TW", "ko-KR"}


def test_languages_without_a_place_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("langmerge.selection.uriel.lang2vec_folder", lambda: None)
    values = np.full((3, 3), 0.5)
    some = section(languages_page(matrix_of(values, ["de-DE", "tlh", "qqq & co"])), "map")
    assert "<svg" in some
    assert "not known: tlh, qqq &amp; co." in some
    assert "de-DE" not in some[some.index("Not on the map") :]
    none = section(languages_page(matrix_of(values[:1, :1], ["tlh"])), "map")
    assert "<svg" not in none
    assert "not known: tlh." in none
    everything = section(languages_page(matrix_of(values[:1, :1], ["de-DE"])), "map")
    assert "Not on the map" not in everything


@given(
    st.lists(st.tuples(st.floats(-90, 90), st.floats(-180, 180)), min_size=1, max_size=8),
)
@settings(deadline=None)
def test_a_frame_holds_every_place(places: list[tuple[float, float]]) -> None:
    frame = frame_of(places)
    width, height = frame.size
    assert 0 < width <= WIDEST + 1e-6
    assert 0 < height <= TALLEST + 1e-6
    assert -180 <= frame.west < frame.east <= 180
    assert -90 <= frame.south < frame.north <= 90
    assert {edge % frame.step for edge in (frame.west, frame.east, frame.south, frame.north)} == {0}
    assert (frame.east - frame.west) / frame.step <= 14
    for place in places:
        x, y = frame.pixel(place)
        assert -1e-6 <= x <= width + 1e-6
        assert -1e-6 <= y <= height + 1e-6
        assert frame.place(x, y) == pytest.approx(place, abs=1e-6)


def test_labels_of_all_of_massive_cover_nothing() -> None:
    together: dict[tuple[float, float], list[str]] = {}
    for name, place in places_of(MASSIVE_LOCALES).items():
        together.setdefault(place, []).append(name)
    frame = frame_of(together)
    pixels = [frame.pixel(place) for place in together]
    labels = place_labels([", ".join(names) for names in together.values()], pixels, frame.size)
    assert sum(label.text.count("-") for label in labels) == 52
    assert not [(a.text, b.text) for a, b in combinations(labels, 2) if covers(a.box, b.box)]
    for label in labels:
        left, top, right, bottom = label.box
        assert left >= 0
        assert top >= 0
        assert right <= frame.size[0]
        assert bottom <= frame.size[1]
        assert not [
            p for p in pixels if covers(label.box, (p[0] - POINT, p[1] - POINT, p[0] + POINT, p[1] + POINT))
        ]


def test_a_lone_label_stands_right_of_its_point_and_a_crowded_one_is_tied() -> None:
    (alone,) = place_labels(["de-DE"], [(100.0, 100.0)], (400.0, 400.0))
    assert not alone.is_tied
    assert alone.middle[1] == 100
    assert 100 + POINT < alone.box[0] < 110
    (edge,) = place_labels(["de-DE"], [(395.0, 100.0)], (400.0, 400.0))
    assert edge.box[2] < 395
    heap = place_labels(
        [f"l{n}-XX" for n in range(30)], [(200.0 + n / 10, 200.0) for n in range(30)], (400.0, 400.0)
    )
    assert any(label.is_tied for label in heap)
    assert not [pair for pair in combinations(heap, 2) if covers(pair[0].box, pair[1].box)]


def test_a_line_ends_at_its_label() -> None:
    label = Label("de-DE", (100.0, 100.0), (180.0, 60.0), is_tied=True)
    left, _, _, bottom = label.box
    assert label.end == (left, bottom)
