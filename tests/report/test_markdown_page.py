import re
from dataclasses import replace

from langmerge.report import markdown
from langmerge.results.study import Study


def test_verdicts_and_every_signature_are_there(study: Study) -> None:
    text = markdown(study)
    for verdict in study.verdicts:
        assert verdict.text in text
    for row in study.rows:
        assert f"`{row.signature}`" in text


def test_every_table_is_rectangular(study: Study) -> None:
    sizes = [
        {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        for block in re.findall(r"(?:^\|.*\n)+", markdown(study), re.M)
    ]
    assert len(sizes) == 6
    assert all(len(size) == 1 for size in sizes)


def test_markup_in_names_is_shown_and_not_obeyed(study: Study) -> None:
    hostile = "a|b `c` [d](javascript:e) <b>\n*f* _g_ h_i"
    rows = tuple(replace(r, name=hostile) if r.name == "slerp" else r for r in study.rows)
    text = markdown(replace(study, rows=rows))
    assert r"| a\|b \`c\` \[d\](javascript:e) \<b\> \*f\* \_g\_ h_i | 2 |" in text


def test_the_same_study_gives_the_same_text(study: Study) -> None:
    assert markdown(study) == markdown(replace(study))


def test_a_study_without_verdicts_has_no_such_part(study: Study) -> None:
    assert "## Verdicts" not in markdown(replace(study, verdicts=()))
