"""Locales: one spelling, and their codes in the data sets and typologies that name languages differently."""

from langmerge.errors import LocaleError

# locale: (FLORES-200 code, typology code). The first is what SIB-200 uses, its language part ISO 639-3 (but for
# Chinese); the second is where URIEL keeps the data, which for macrolanguages is not the same (aze, lav, nor, msa, swa,
# zho, sqi, ara, fas).
_CODES: dict[str, tuple[str, str]] = {
    "af-ZA": ("afr_Latn", "afr"),
    "am-ET": ("amh_Ethi", "amh"),
    "ar-SA": ("arb_Arab", "ara"),
    "az-AZ": ("azj_Latn", "aze"),
    "bn-BD": ("ben_Beng", "ben"),
    "ca-ES": ("cat_Latn", "cat"),
    "cy-GB": ("cym_Latn", "cym"),
    "da-DK": ("dan_Latn", "dan"),
    "de-DE": ("deu_Latn", "deu"),
    "el-GR": ("ell_Grek", "ell"),
    "en-US": ("eng_Latn", "eng"),
    "es-ES": ("spa_Latn", "spa"),
    "fa-IR": ("pes_Arab", "fas"),
    "fi-FI": ("fin_Latn", "fin"),
    "fr-FR": ("fra_Latn", "fra"),
    "he-IL": ("heb_Hebr", "heb"),
    "hi-IN": ("hin_Deva", "hin"),
    "hu-HU": ("hun_Latn", "hun"),
    "hy-AM": ("hye_Armn", "hye"),
    "id-ID": ("ind_Latn", "ind"),
    "is-IS": ("isl_Latn", "isl"),
    "it-IT": ("ita_Latn", "ita"),
    "ja-JP": ("jpn_Jpan", "jpn"),
    "jv-ID": ("jav_Latn", "jav"),
    "ka-GE": ("kat_Geor", "kat"),
    "km-KH": ("khm_Khmr", "khm"),
    "kn-IN": ("kan_Knda", "kan"),
    "ko-KR": ("kor_Hang", "kor"),
    "lv-LV": ("lvs_Latn", "lav"),
    "ml-IN": ("mal_Mlym", "mal"),
    "mn-MN": ("khk_Cyrl", "khk"),
    "ms-MY": ("zsm_Latn", "msa"),
    "my-MM": ("mya_Mymr", "mya"),
    "nb-NO": ("nob_Latn", "nor"),
    "nl-NL": ("nld_Latn", "nld"),
    "pl-PL": ("pol_Latn", "pol"),
    "pt-PT": ("por_Latn", "por"),
    "ro-RO": ("ron_Latn", "ron"),
    "ru-RU": ("rus_Cyrl", "rus"),
    "sl-SL": ("slv_Latn", "slv"),
    "sq-AL": ("als_Latn", "sqi"),
    "sv-SE": ("swe_Latn", "swe"),
    "sw-KE": ("swh_Latn", "swa"),
    "ta-IN": ("tam_Taml", "tam"),
    "te-IN": ("tel_Telu", "tel"),
    "th-TH": ("tha_Thai", "tha"),
    "tl-PH": ("tgl_Latn", "tgl"),
    "tr-TR": ("tur_Latn", "tur"),
    "ur-PK": ("urd_Arab", "urd"),
    "vi-VN": ("vie_Latn", "vie"),
    "zh-CN": ("zho_Hans", "zho"),
    "zh-TW": ("zho_Hant", "zho"),
}

# ISO 639-3: typology code, where the two differ. Most data is kept under a macrolanguage; the languages that are not
# MASSIVE's are here because FLORES-200 names the individual one.
_KEPT_UNDER: dict[str, str] = {
    "ayr": "aym", "bos": "hbs", "cmn": "zho", "dik": "din", "ekk": "est", "fil": "tgl", "fuv": "ful", "gaz": "orm",
    "gom": "kok", "gug": "grn", "hrv": "hbs", "kmr": "kur", "knc": "kau", "mon": "khk", "nno": "nor", "npi": "nep",
    "ory": "ori", "pbt": "pus", "plt": "mlg", "quy": "que", "srp": "hbs", "twi": "aka", "uzn": "uzb", "ydd": "yid",
    **{flores.partition("_")[0]: kept for flores, kept in _CODES.values()},
}  # fmt: skip

MASSIVE_LOCALES: tuple[str, ...] = tuple(_CODES)
"""The 52 locales of MASSIVE 1.1, in alphabetical order."""


def canonical_locale(text: str) -> str:
    """One spelling for a locale.

    >>> canonical_locale("sw-ke"), canonical_locale("sw_KE"), canonical_locale("tl-PH")
    ('sw-KE', 'sw-KE', 'tl-PH')

    Args:
        text: a BCP 47 tag; case and underscores do not matter.

    Returns:
        `language[-Script][-REGION]`. Deprecated or macro codes are kept as they are written, because data sets use them.

    Raises:
        LocaleError: `text` is no valid tag.
    """
    # Its tables take a tenth of a second: too long for every --help.
    import langcodes

    try:
        tag = langcodes.Language.get(text.strip().replace("_", "-"), normalize=False)
        known = bool(text.strip()) and tag.is_valid()
    except ValueError:
        known = False
    if not known:
        raise LocaleError(f"{text!r} is no locale: give a language with an optional region, like sw-KE")
    return tag.to_tag()


def flores_code(locale: str) -> str:
    """The FLORES-200 code (language and script) of a MASSIVE locale, as SIB-200 names its folders.

    >>> flores_code("sq-AL")
    'als_Latn'

    Raises:
        LocaleError: the alias table has no such locale.
    """
    return _codes(locale)[0]


def iso639_3(locale: str) -> str:
    """The ISO 639-3 code of a MASSIVE locale's language (the individual language, not the macrolanguage).

    >>> iso639_3("nb-NO"), iso639_3("zh-CN")
    ('nob', 'cmn')

    Raises:
        LocaleError: the alias table has no such locale.
    """
    code = _codes(locale)[0].partition("_")[0]
    # The one place where FLORES-200 has a macrolanguage.
    return "cmn" if code == "zho" else code


def typology_code(language: str) -> str:
    """The code under which URIEL keeps a language.

    >>> [typology_code(name) for name in ("sw-KE", "swh", "swa", "Swahili", "nb-NO", "tl-PH")]
    ['swa', 'swa', 'swa', 'swa', 'nor', 'tgl']

    Args:
        language: a locale, an ISO 639 code or an English name.

    Raises:
        LocaleError: it is no language.
    """
    if language in _CODES:
        return _CODES[language][1]
    code = _alpha3(language)
    return _KEPT_UNDER.get(code, code)


def _alpha3(language: str) -> str:
    # Its tables take a tenth of a second: too long for every --help.
    import langcodes

    text = language.strip().replace("_", "-")
    # As it is written first: the registry would make Filipino of Tagalog. It lacks the long codes of macrolanguages.
    for normalize in (False, True):
        try:
            tag = langcodes.Language.get(text, normalize=normalize)
            if text and tag.is_valid():
                return str(tag.to_alpha3())
        except (ValueError, LookupError):
            continue
    try:
        return str(langcodes.find(text, language="en").to_alpha3())
    except (ValueError, LookupError):
        raise LocaleError(
            f"{language!r} is no language: give a locale (sw-KE), an ISO 639 code (swh) or an English name (Swahili)"
        ) from None


def _codes(locale: str) -> tuple[str, str]:
    found = _CODES.get(canonical_locale(locale))
    if found is None:
        raise LocaleError(
            f"locale {locale!r} has no entry in the alias table, which has: {', '.join(_CODES)}"
        )
    return found
