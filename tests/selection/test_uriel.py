"""The table of languages, and lang2vec's files where it is not enough."""

import csv
import itertools
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from langmerge.errors import LocaleError, SelectionError
from langmerge.locales import MASSIVE_LOCALES, typology_code
from langmerge.selection import FEATURE_SETS, Typology, typology, typology_of, uriel
from langmerge.selection.uriel import (
    COLUMNS,
    OBSERVED,
    SIZES,
    lang2vec_folder,
    lattice_distances,
    places_of,
    read_lang2vec,
    shipped,
    table_lines,
)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without lang2vec, whether it is installed or not."""
    monkeypatch.setattr(uriel, "lang2vec_folder", lambda: None)


def row_of(code: str) -> int:
    return shipped().codes.index(code)


def test_the_table_has_every_language_of_massive_and_many_more() -> None:
    codes = shipped().codes
    assert {typology_code(locale) for locale in MASSIVE_LOCALES} <= set(codes)
    assert len(codes) >= 250
    assert list(codes) == sorted(set(codes))
    assert all(shipped().names)


def test_the_table_is_whole() -> None:
    table = shipped()
    for name in OBSERVED:
        assert table.features[name].shape == (len(table.codes), SIZES[name])
        assert table.observed[name].min() >= 0
        assert table.observed[name].max() <= SIZES[name]
        assert table.features[name].any(axis=1).all()
    assert len(table.families) == len(table.places) == len(table.codes)
    latitudes, longitudes = table.places[~np.isnan(table.places).any(axis=1)].T
    assert len(latitudes) >= 250
    assert np.abs(latitudes).max() < 90
    assert np.abs(longitudes).max() <= 180


@pytest.mark.parametrize("of", FEATURE_SETS)
def test_similarity_is_symmetric_in_0_to_1_and_1_for_itself(of: str) -> None:
    table = shipped()
    found = table.similarity(of)
    known = ~np.isnan(table.vectors(of)).any(axis=1)
    assert known.sum() >= 250
    np.testing.assert_array_equal(np.isnan(found), ~np.outer(known, known))
    np.testing.assert_allclose(found, found.T, atol=1e-12)
    numbers = found[np.ix_(known, known)]
    assert numbers.min() >= 0
    assert numbers.max() <= 1
    assert numbers.std() > 0.01
    np.testing.assert_allclose(np.diag(numbers), 1, atol=1e-12)


def test_what_is_not_known_is_not_a_number() -> None:
    basque = row_of("eus")
    assert shipped().families[basque] == ()
    assert np.isnan(shipped().similarity("family")[basque]).all()
    assert shipped().share_observed("family")[basque] == 0
    for other in ("syntax", "phonology", "inventory", "geography"):
        assert not np.isnan(shipped().similarity(other)[basque, row_of("spa")])


def test_family_is_the_share_of_classes_in_common() -> None:
    found = shipped().similarity("family")
    for a, b in itertools.combinations(("eng", "deu", "afr", "swa", "hin", "sqi"), 2):
        ours, theirs = (set(shipped().families[row_of(code)]) for code in (a, b))
        expected = len(ours & theirs) / np.sqrt(len(ours) * len(theirs))
        assert found[row_of(a), row_of(b)] == pytest.approx(expected)
    assert found[row_of("eng"), row_of("swa")] == 0
    assert found[row_of("deu"), row_of("afr")] > found[row_of("deu"), row_of("hin")] > 0


def small() -> Typology:
    """Three languages; nothing is known of the third."""
    features = np.array([[1, 1, 0, 0], [1, 0, 1, 1], [0, 0, 0, 0]], dtype=np.bool_)
    return Typology(
        ("aaa", "bbb", "ccc"),
        ("A", "B", "C"),
        dict.fromkeys(OBSERVED, features),
        {name: np.array([SIZES[name], 0, 0]) for name in OBSERVED},
        (("Big", "Small"), ("Big",), ()),
        np.array([[0.0, 0.0], [10.0, 20.0], [np.nan, np.nan]]),
    )


def test_cosines_by_hand() -> None:
    nan = np.nan
    expected = [[1, 1 / np.sqrt(6), nan], [1 / np.sqrt(6), 1, nan], [nan, nan, nan]]
    for name in OBSERVED:
        np.testing.assert_allclose(small().similarity(name), expected)
    expected[0][1] = expected[1][0] = 1 / np.sqrt(2)
    np.testing.assert_allclose(small().similarity("family"), expected)
    near = small().similarity("geography")
    assert near[0, 1] == pytest.approx(near[1, 0])
    assert 0.9 < near[0, 1] < 1
    np.testing.assert_array_equal(np.isnan(near), np.isnan(expected))


def test_how_much_was_observed_by_hand() -> None:
    for name in OBSERVED:
        assert small().share_observed(name).tolist() == [1, 0, 0]
    assert small().share_observed("family").tolist() == [1, 1, 0]
    assert small().share_observed("geography").tolist() == [1, 1, 0]


def test_languages_of_a_table() -> None:
    some = small().among(["ccc", "aaa"])
    assert (some.codes, some.names, some.families) == (("ccc", "aaa"), ("C", "A"), ((), ("Big", "Small")))
    np.testing.assert_array_equal(some.places, small().places[[2, 0]])
    for name in OBSERVED:
        np.testing.assert_array_equal(some.features[name], small().features[name][[2, 0]])
        assert some.observed[name].tolist() == [0, SIZES[name]]
    with pytest.raises(KeyError):
        small().among(["zzz"])
    with pytest.raises(SelectionError, match="unknown feature set 'colour': there are syntax, phonology"):
        small().vectors("colour")


LATITUDES, LONGITUDES = st.floats(-89, 89), st.floats(-179.9, 179.9)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(LATITUDES, LONGITUDES), min_size=1, max_size=8))
def test_a_place_comes_back_from_its_distances(where: list[tuple[float, float]]) -> None:
    places = np.array(where, dtype=np.float64)
    np.testing.assert_allclose(places_of(lattice_distances(places)), places, rtol=0, atol=1e-6)


@settings(deadline=None, max_examples=25)
@given(LATITUDES, LONGITUDES)
def test_distances_to_the_points_of_reference(latitude: float, longitude: float) -> None:
    other_side = [-latitude, longitude - 180 if longitude > 0 else longitude + 180]
    here, there = lattice_distances(np.array([[latitude, longitude], other_side]))
    assert here.shape == (299,)
    np.testing.assert_allclose(here + there, 1, atol=1e-7)
    # The spiral's last turn ends at the pole.
    assert here[-1] == pytest.approx((90 - latitude) / 180, abs=1e-7)


def test_the_points_of_reference_are_uriels() -> None:
    """lang2vec names some of them GC_-83_42, GC_-81_-95, …, GC_83_-117; what it has for German, Swahili and Japanese."""
    named = {0: (-83, 42), 1: (-81, -95), 2: (-79, 127), 3: (-77, -10), 296: (81, 20), 297: (83, -117)}
    for point, (latitude, longitude) in named.items():
        near = lattice_distances(np.array([[latitude, longitude]], dtype=np.float64))[0]
        assert near.argmin() == point
        assert 180 * near[point] < 1
    own = lattice_distances(shipped().places[[row_of(code) for code in ("deu", "swa", "jpn")]])
    expected = [
        [0.7378, 0.7277, 0.3737, 0.6398, 0.2297],
        [0.4482, 0.5110, 0.2580, 0.8945, 0.5159],
        [0.6946, 0.4077, 0.8124, 0.3182, 0.3056],
    ]
    np.testing.assert_allclose(own[:, [0, 57, 113, 190, 298]], expected, atol=1e-4)


def test_a_place_survives_four_digits_and_a_vector_of_nowhere_has_none() -> None:
    distances = lattice_distances(np.array([[10.0, 20.0], [-30.0, 150.0]]))
    nowhere = np.stack([np.zeros(299), np.full(299, -1.0), np.full(299, np.nan)])
    found = places_of(np.concatenate([distances.round(4), nowhere]))
    np.testing.assert_allclose(found[:2], [[10, 20], [-30, 150]], atol=0.01)
    assert np.isnan(found[2:]).all()


def test_the_file_holds_what_the_table_says() -> None:
    text = files("langmerge.selection").joinpath("uriel.tsv").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert tuple(lines[0].split("\t")) == COLUMNS
    written = list(table_lines(shipped()))
    assert written == list(csv.DictReader(lines, delimiter="\t"))
    assert set(written[0]) == set(COLUMNS)


def test_a_line_of_the_file_by_hand() -> None:
    table = Typology(
        ("aaa",),
        ("A",),
        {name: np.arange(size)[None] % 8 == 7 for name, size in SIZES.items()},
        {name: np.array([place]) for place, name in enumerate(OBSERVED)},
        (("Big", "Small"),),
        np.array([[-1.25, np.nan]]),
    )
    (line,) = table_lines(table)
    # The last bit is the lowest: what a whole number of digits is too long by is in front.
    assert line == {
        "code": "aaa", "name": "A", "latitude": "-1.2500", "longitude": "",
        "syntax": f"{int('00000001' * 12 + '0000000', 2):026x}", "syntax_observed": "0",
        "phonology": f"{int('00000001' * 3 + '0000', 2):07x}", "phonology_observed": "1",
        "inventory": f"{int('00000001' * 19 + '000000', 2):040x}", "inventory_observed": "2",
        "family": "Big > Small",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("locale", "code", "filled"),
    [
        ("tl-PH", "tgl", ""),
        ("nb-NO", "nor", ""),
        ("zh-TW", "zho", ""),
        ("az-AZ", "aze", ""),
        ("lv-LV", "lav", "inventory filled in from neighbours"),
        ("sq-AL", "sqi", ""),
        ("cy-GB", "cym", "phonology, inventory filled in from neighbours"),
    ],
)
def test_locales_whose_codes_differ_have_every_vector(locale: str, code: str, filled: str) -> None:
    table, codes = typology_of([locale])
    assert (table.codes, codes) == ((code,), {locale: code})
    for of in FEATURE_SETS:
        assert not np.isnan(table.vectors(of)).any()
    found = typology([locale], ["en-US"], dict.fromkeys(FEATURE_SETS, 1.0))
    assert found.missing == ({locale: filled} if filled else {})
    assert 0 < found.values[0, 0] < 1


def test_what_was_filled_in_is_said_of_the_sets_in_use_alone() -> None:
    assert typology(["cy-GB"], ["de-DE"]).missing == {}
    filled = typology(["de-DE"], ["cy-GB"], {"phonology": 1.0})
    assert filled.missing == {"cy-GB": "phonology filled in from neighbours"}
    assert filled.column("cy-GB")["de-DE"] > 0
    both = typology(["eus", "de-DE"], ["cy-GB"], {"family": 1.0, "inventory": 0.5})
    assert both.missing == {"eus": "family not known", "cy-GB": "inventory filled in from neighbours"}


@pytest.mark.usefixtures("alone")
def test_an_unknown_language_is_missing_and_never_scored() -> None:
    found = typology(["tlh", "de-DE"], ["sw-KE", "Klingon"])
    np.testing.assert_array_equal(np.isnan(found.values), [[True, True], [False, True]])
    assert set(found.missing) == {"tlh", "Klingon"}
    assert found.missing["tlh"].startswith("no data under tlh: pip install 'langmerge[typology]'")
    assert found.column("sw-KE").keys() == {"de-DE"}
    with pytest.raises(SelectionError, match="typology says nothing of Klingon: no data under tlh"):
        found.column("Klingon")
    with pytest.raises(LocaleError, match="'gibberish' is no language"):
        typology(["gibberish"], ["sw-KE"])


def test_languages_are_found_by_locale_code_and_name() -> None:
    names = ["sw-KE", "German", "swh", "deu"]
    table, codes = typology_of(names)
    assert table.codes == ("swa", "deu")
    assert codes == dict(zip(names, ["swa", "deu", "swa", "deu"], strict=True))
    found = typology(names, ["fr-FR", "Swahili"]).values
    np.testing.assert_array_equal(found[0], found[2])
    np.testing.assert_array_equal(found[1], found[3])
    assert found[0, 1] == pytest.approx(1)


def write_lang2vec(folder: Path) -> Path:
    """Three languages in the layout of lang2vec's files; the third has no family and no place."""
    folder.mkdir(parents=True)

    def save(name: str, source: str, langs: list[str], feats: list[str], data: np.ndarray) -> None:
        np.savez(
            folder / f"{name}.npz",
            langs=np.array(langs),
            feats=np.array(feats),
            sources=np.array([source]),
            data=data.astype(np.float64)[:, :, None],
        )

    feats = ["S_A", "P_A", "INV_A", "S_B", "INV_B"]
    filled = np.array([[1, 0, 1, 0, 1], [1, 1, 0.4, 1, 0.6], [0, 0, 0, 1, 0]])
    averages = np.array([[1, 0, -1, 0, -1], [0.5, -1, 0, -1, 1], [-1, -1, -1, -1, -1]])
    save("feature_predictions", "KNN", ["aaa", "bbb", "ccc"], feats, filled)
    save("feature_averages", "AVG", ["aaa", "bbb", "ccc"], feats, averages)
    member = np.array([[0, 0, 0], [0, 1, 0], [1, 1, 0]])
    save("family_features", "FAM", ["ccc", "bbb", "aaa"], ["F_Branch", "F_Whole", "F_None"], member)
    near = lattice_distances(np.array([[-30.0, 150.0], [0.0, 0.0], [10.0, 20.0]]))
    near[1] = 0
    points = [f"GC_{point}" for point in range(299)]
    save("geocoord_features", "GEO", ["bbb", "ccc", "aaa"], points, near)
    return folder


def test_lang2vecs_files(tmp_path: Path) -> None:
    table = read_lang2vec(write_lang2vec(tmp_path / "data"))
    assert table.codes == table.names == ("aaa", "bbb", "ccc")
    assert table.features["syntax"].tolist() == [[True, False], [True, True], [False, True]]
    assert table.features["phonology"].tolist() == [[False], [True], [False]]
    assert table.features["inventory"].tolist() == [[True, True], [False, True], [False, False]]
    assert {name: seen.tolist() for name, seen in table.observed.items()} == {
        "syntax": [2, 1, 0],
        "phonology": [1, 0, 0],
        "inventory": [0, 2, 0],
    }
    # From the largest to the smallest, which is not the order of the alphabet.
    assert table.families == (("Whole", "Branch"), ("Whole",), ())
    np.testing.assert_allclose(table.places[:2], [[10, 20], [-30, 150]], atol=1e-6)
    assert np.isnan(table.places[2]).all()


def test_some_of_lang2vecs_languages_in_the_order_asked_for(tmp_path: Path) -> None:
    folder = write_lang2vec(tmp_path / "data")
    some, every = read_lang2vec(folder, ["ccc", "zzz", "aaa"]), read_lang2vec(folder)
    expected = every.among(["ccc", "aaa"])
    assert (some.codes, some.families) == (expected.codes, expected.families)
    np.testing.assert_array_equal(some.places, expected.places)
    for name in OBSERVED:
        np.testing.assert_array_equal(some.features[name], expected.features[name])
        np.testing.assert_array_equal(some.observed[name], expected.observed[name])


def test_without_lang2vecs_files(tmp_path: Path) -> None:
    with pytest.raises(SelectionError, match=r"feature_predictions.npz is not lang2vec's") as caught:
        read_lang2vec(tmp_path)
    assert "\n" not in str(caught.value)


def test_lang2vec_answers_where_the_table_lacks_a_language(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "aaa" not in shipped().codes
    folder = write_lang2vec(tmp_path / "data")
    monkeypatch.setattr(uriel, "lang2vec_folder", lambda: folder)
    table, codes = typology_of(["aaa", "tlh", "bbb"])
    assert (table.codes, codes) == (("aaa", "bbb"), {"aaa": "aaa", "tlh": "tlh", "bbb": "bbb"})
    monkeypatch.setattr(uriel, "lang2vec_folder", lambda: pytest.fail("the table has them all"))
    assert typology_of(["sw-KE", "cy-GB"])[0].codes == ("swa", "cym")


def test_lang2vec_is_found_without_being_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "lang2vec"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('no pkg_resources')\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert lang2vec_folder() == package / "data"
    monkeypatch.setattr(uriel, "find_spec", lambda _: None)
    assert lang2vec_folder() is None
