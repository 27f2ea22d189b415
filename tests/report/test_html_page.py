import re
import sys
from collections import Counter
from dataclasses import replace
from html import escape
from html.parser import HTMLParser

import pytest

from langmerge.errors import MissingExtraError
from langmerge.report import markdown, page
from langmerge.results.study import Study

HOSTILE = "\" onload=\"y' onload='z <script>alert(1)</script>"
VOID = {"meta", "br", "link", "img", "input", "hr"}


class Reader(HTMLParser):
    """Collects what a browser would see, and fails where tags do not close."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == []
    return reader


@pytest.fixture(scope="module")
def html() -> str:
    from tests.report.conftest import hand_made_study

    return page(hand_made_study())


def test_it_needs_nothing_else(html: str) -> None:
    found = read(html)
    assert not set(found.tags) & {"script", "link", "img", "iframe", "object", "embed", "base"}
    for tag, name, value in found.attributes:
        assert not name.startswith("on"), (tag, name)
        if name in ("src", "href", "xlink:href", "action", "data"):
            assert value.startswith("#"), (tag, name, value)
    assert "http:" not in html
    assert "https:" not in html
    assert "@import" not in html
    assert all(target.startswith("#") for target in re.findall(r"url\(\"?(.)", html))


def test_links_and_gradients_lead_somewhere_once(html: str) -> None:
    found = read(html)
    ids = Counter(value for _, name, value in found.attributes if name == "id")
    assert set(ids.values()) == {1}
    links = {value[1:] for tag, name, value in found.attributes if (tag, name) == ("a", "href")}
    assert links | set(re.findall(r"url\(#([^)]*)\)", html)) <= set(ids)
    assert {"s0", "s3", "matrix", "words"} <= links


def test_verdicts_come_before_any_table_with_a_mark_that_is_no_colour(html: str) -> None:
    before = html[: html.index("<table")]
    marks = re.findall(r'<li class="(\w+)"><b>(.*?)</b> <span>(.*?)</span>', before)
    assert [(tone, mark) for tone, mark, _ in marks] == [
        ("helped", "▲ helped"),
        ("unclear", "○ unclear"),
        ("hurt", "▼ hurt"),
    ]
    assert "Use en-US." in marks[2][2]


def test_every_row_shows_its_signature(html: str, study: Study) -> None:
    for row in study.rows:
        assert f"<code>{row.signature}</code>" in html


def test_every_target_and_mode_has_a_chart_and_the_matrix_one_more(html: str) -> None:
    assert read(html).tags["svg"] == 5


def test_what_was_done_is_said(html: str) -> None:
    for fact in ("massive:intent", "MASSIVE 1.1", "e5-small", "0123456789ab", "12 min 34 s"):
        assert f"<dd>{fact}" in html


def test_both_schemes_and_small_screens(html: str) -> None:
    assert "prefers-color-scheme:dark" in html
    assert 'name="viewport"' in html


def test_everything_given_is_escaped(study: Study) -> None:
    hostile = replace(
        study,
        task=HOSTILE,
        base=HOSTILE,
        revision=HOSTILE,
        rows=tuple(
            replace(r, name=HOSTILE + str(n), target=HOSTILE, signature=HOSTILE + str(n))
            for n, r in enumerate(study.rows[:8])
        ),
        verdicts=tuple(replace(v, text=HOSTILE) for v in study.verdicts),
        matrix={**study.matrix, "sources": [HOSTILE, "b", "c", "d", "e"], "signature": HOSTILE},
        grid={**study.grid, "sources": [HOSTILE], "targets": [HOSTILE]},
    )
    html = page(hostile)
    found = read(html)
    assert "script" not in found.tags
    assert not [name for _, name, _ in found.attributes if name.startswith("on")]
    assert escape(HOSTILE) in html
    assert any("<script>" in word for word in found.words), "it must be shown, not dropped"


def test_the_same_study_gives_the_same_page(html: str, study: Study) -> None:
    assert page(study) == html


def test_a_long_list_of_sources_is_folded(study: Study) -> None:
    many = tuple(f"a{n}-XX" for n in range(9))
    rows = tuple(replace(r, sources=many) if r.name == "slerp" else r for r in study.rows[:8])
    assert "<summary>9 locales</summary><span>a0-XX</span>" in page(replace(study, rows=rows))


def test_a_study_without_verdicts_says_so(study: Study) -> None:
    assert "no verdicts" in page(replace(study, rows=study.rows[:3], verdicts=()))


@pytest.mark.parametrize(("module", "package"), [("altair", "altair"), ("vl_convert", "vl-convert-python")])
def test_a_missing_package_is_named_with_its_extra(
    study: Study, monkeypatch: pytest.MonkeyPatch, module: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"'{package}'.*langmerge\[report\]"):
        page(study)
    assert markdown(study), "Markdown needs neither"
