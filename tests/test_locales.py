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


@pytest.mark.parametrize("code", [flores_code, iso639_3])
def test_a_locale_outside_the_table(code: object) -> None:
    with pytest.raises(LocaleError, match="'cs-CZ' has no entry in the alias table, which has: af-ZA, am-ET"):
        code("cs-CZ")  # type: ignore[operator]
    with pytest.raises(LocaleError, match="is no locale"):
        code("nothing")  # type: ignore[operator]


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("swa", ("sw-KE", "sw_ke", "sw", "swa", "swh", "SWH", "Swahili", "swahili", " Swahili ")),
        ("zho", ("zh-CN", "zh-TW", "zh", "zho", "cmn", "zh-Hant-HK", "Chinese")),
        ("nor", ("nb-NO", "nb", "nob", "no", "nor", "nn", "nno", "Norwegian")),
        ("aze", ("az-AZ", "az", "aze", "azj", "Azerbaijani")),
        ("lav", ("lv-LV", "lv", "lav", "lvs", "Latvian")),
        ("sqi", ("sq-AL", "sq", "sqi", "als", "Albanian")),
        ("tgl", ("tl-PH", "tl", "tgl", "fil", "fil-PH", "Tagalog", "Filipino")),
        ("msa", ("ms-MY", "ms", "msa", "zsm", "Malay")),
        ("ara", ("ar-SA", "ar", "ara", "arb", "Arabic")),
        ("fas", ("fa-IR", "fa", "fas", "pes", "Persian")),
        ("khk", ("mn-MN", "mn", "mon", "khk", "Mongolian")),
        ("hbs", ("hr", "hrv", "bs-BA", "srp", "Serbian")),
        ("cym", ("cy-GB", "cym", "Welsh")),
        # The registry would make Swahili and Kadazan Dusun of them; URIEL has them as they are.
        ("swc", ("swc", "swc-CD")),
        ("kzj", ("kzj",)),
        ("ces", ("cs-CZ", "cs", "ces", "Czech")),
        ("eus", ("eu", "eus", "Basque")),
        ("tlh", ("tlh", "Klingon")),
        ("por", ("pt-PT", "pt-BR", "Brazilian Portuguese")),
    ],
)
def test_a_language_by_locale_code_and_name(code: str, names: tuple[str, ...]) -> None:
    assert {name: typology_code(name) for name in names} == dict.fromkeys(names, code)


@pytest.mark.parametrize("locale", MASSIVE_LOCALES)
def test_a_locale_its_language_and_its_codes_are_the_same_language(locale: str) -> None:
    code = typology_code(locale)
    ways = (
        locale.partition("-")[0],
        iso639_3(locale),
        flores_code(locale).partition("_")[0],
        code,
        code.upper(),
    )
    assert {way: typology_code(way) for way in ways} == dict.fromkeys(ways, code)


@pytest.mark.parametrize(
    "text", ["", " ", "gibberish", "xx-YY", "qqq-", "123", "sw--KE", "../sw", "swahilli"]
)
def test_what_is_no_language(text: str) -> None:
    with pytest.raises(LocaleError, match="is no language: give a locale") as caught:
        typology_code(text)
    assert repr(text) in str(caught.value)
    assert "\n" not in str(caught.value)
