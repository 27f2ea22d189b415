import pytest

from langmerge.errors import LocaleError
from langmerge.locales import MASSIVE_LOCALES, canonical_locale, flores_code, iso639_3, typology_code


@pytest.mark.parametrize(
    ("text", "locale"),
    [
        ("sw-KE", "sw-KE"),
        ("SW-ke", "sw-KE"),
        ("sw_KE", "sw-KE"),
        (" sw-KE\n", "sw-KE"),
        ("sw", "sw"),
        ("zh-hant-tw", "zh-Hant-TW"),
        ("nb-no", "nb-NO"),
        ("tl-PH", "tl-PH"),
        ("iw-il", "iw-IL"),
    ],
)
def test_one_spelling(text: str, locale: str) -> None:
    assert canonical_locale(text) == locale
    assert canonical_locale(locale) == locale


@pytest.mark.parametrize(
    "text", ["", " ", "english", "xx-YY", "sw-KENYA-", "123", "sw--KE", "sw/KE", "../sw"]
)
def test_what_is_no_locale(text: str) -> None:
    with pytest.raises(
        LocaleError, match="is no locale: give a language with an optional region, like sw-KE"
    ):
        canonical_locale(text)


def test_the_locales_of_massive() -> None:
    assert len(MASSIVE_LOCALES) == len(set(MASSIVE_LOCALES)) == 52
    assert list(MASSIVE_LOCALES) == sorted(MASSIVE_LOCALES)
    assert all(canonical_locale(locale) == locale for locale in MASSIVE_LOCALES)


@pytest.mark.parametrize(
    ("locale", "flores", "iso", "typology"),
    [
        ("en-US", "eng_Latn", "eng", "eng"),
        ("az-AZ", "azj_Latn", "azj", "aze"),
        ("lv-LV", "lvs_Latn", "lvs", "lav"),
        ("nb-NO", "nob_Latn", "nob", "nor"),
        ("ms-MY", "zsm_Latn", "zsm", "msa"),
        ("sw-KE", "swh_Latn", "swh", "swa"),
        ("zh-CN", "zho_Hans", "cmn", "zho"),
        ("zh-TW", "zho_Hant", "cmn", "zho"),
        ("sq-AL", "als_Latn", "als", "sqi"),
        ("ar-SA", "arb_Arab", "arb", "ara"),
        ("fa-IR", "pes_Arab", "pes", "fas"),
        ("tl-PH", "tgl_Latn", "tgl", "tgl"),
    ],
)
def test_codes_where_tables_differ(locale: str, flores: str, iso: str, typology: str) -> None:
    assert (flores_code(locale), iso639_3(locale), typology_code(locale)) == (flores, iso, typology)
    assert flores_code(locale.lower().replace("-", "_")) == flores


def test_every_locale_has_all_codes() -> None:
    macrolanguages = {"aze", "lav", "nor", "msa", "swa", "zho", "sqi", "ara", "fas"}
    for locale in MASSIVE_LOCALES:
        language, script = flores_code(locale).split("_")
        assert (len(language), len(script), script.istitle()) == (3, 4, True)
        assert len(iso639_3(locale)) == len(typology_code(locale)) == 3
        assert iso639_3(locale) not in macrolanguages
    assert len({flores_code(locale) for locale in MASSIVE_LOCALES}) == 52


@pytest.mark.parametrize("code", [flores_code, iso639_3, typology_code])
def test_a_locale_outside_the_table(code: object) -> None:
    with pytest.raises(LocaleError, match="'cs-CZ' has no entry in the alias table, which has: af-ZA, am-ET"):
        code("cs-CZ")  # type: ignore[operator]
    with pytest.raises(LocaleError, match="is no locale"):
        code("nothing")  # type: ignore[operator]
