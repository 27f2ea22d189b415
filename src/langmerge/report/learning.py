"""A page about coefficients that were learned: the objective and the coefficients over the steps."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from langmerge.coefficients import Coefficients
from langmerge.errors import InputError
from langmerge.report.charts import MERGE, ZERO_SHOT, as_svg, library
from langmerge.report.html_page import document, figure

MOST_LINES = 40
"""Curves of one drawing; beyond, each source's mean over the groups is drawn."""


def learning_page(found: Coefficients) -> str:
    """The run that a coefficients file tells of.

    Raises:
        InputError: the file holds no run: its coefficients were not learned.
        MissingExtraError: Altair or vl-convert is not installed.
    """
    history = found.provenance.get("history")
    if not history or "groups" not in found.provenance:
        raise InputError("these coefficients were not learned: there is no run to draw")
    title = f"Coefficients for {found.target}, {found.provenance['settings']['objective']}"
    return document(
        title,
        "langmerge learn adamerging",
        [
            figure("objective", "Objective", _objective(history), _objective_words(found.provenance)),
            _coefficients(found, history),
            _facts(found.provenance),
        ],
    )


def _objective(history: Sequence[Mapping[str, Any]]) -> str:
    alt = library("altair")
    names = {"loss": "batches (mean since the last look)", "held_out": "held-out rows"}
    values = [
        {"step": one["step"], "loss": one[key], "what": name}
        for one in history
        for key, name in names.items()
        if one[key] is not None
    ]
    scale = alt.Scale(domain=list(names.values()), range=[MERGE, ZERO_SHOT])
    drawn = (
        alt.Chart(alt.InlineData(values=values))
        .mark_line(point=True)
        .encode(
            x=alt.X("step:Q", title="optimiser steps"),
            y=alt.Y("loss:Q", title="objective, nats", scale=alt.Scale(zero=False)),
            color=alt.Color("what:N", scale=scale, legend=alt.Legend(title=None, orient="top", labelLimit=0)),
        )
        .properties(width=480, height=220)
    )
    return as_svg(drawn)


def _objective_words(provenance: Mapping[str, Any]) -> str:
    taken = f"The coefficients are those of step {provenance['step']}."
    if provenance["settings"]["held_out"]:
        return f"{taken} The step with the lowest objective on the held-out rows is taken."
    return taken


def _coefficients(found: Coefficients, history: Sequence[Mapping[str, Any]]) -> str:
    alt = library("altair")
    groups, sources = found.provenance["groups"], found.provenance["sources"]
    mean = len(groups) * len(sources) > MOST_LINES
    values = []
    for one in history:
        table = one["coefficients"]
        rows = (
            {"all groups": [sum(c) / len(table) for c in zip(*table, strict=True)]}
            if mean
            else dict(zip(groups, table, strict=True))
        )
        values += [
            {"step": one["step"], "group": group, "source": source, "value": number}
            for group, row in rows.items()
            for source, number in zip(sources, row, strict=True)
        ]
    drawn = (
        alt.Chart(alt.InlineData(values=values))
        .mark_line()
        .encode(
            x=alt.X("step:Q", title="optimiser steps"),
            y=alt.Y("value:Q", title="coefficient", scale=alt.Scale(zero=False)),
            color=alt.Color("source:N", legend=alt.Legend(title="source")),
            detail="group:N",
        )
        .properties(width=480, height=260)
    )
    words = (
        f"Each line is the mean of a source's coefficients over {len(groups)} groups."
        if mean
        else f"A line for each source and group ({', '.join(groups[:8])}{' …' if len(groups) > 8 else ''})."
    )
    return figure("coefficients", "Coefficients", as_svg(drawn), words)


def _facts(provenance: Mapping[str, Any]) -> str:
    text, diagnostics = provenance["text"], provenance["diagnostics"]
    lines = [f"text: {text['rows']} rows of {text['origin']}", *text["notes"]]
    for one in diagnostics["streams"]:
        lines.append(
            f"{one['name']}: {100 * one['flips']:.1f} % of held-out labels changed, logits grew "
            f"{one['logit_norm_growth']:.2f} times, entropy {one['entropy_before']:.3f} → {one['entropy_after']:.3f} nats"
        )
    lines += [f"inert in {group}: {', '.join(names)}" for group, names in diagnostics["inert"].items()]
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<section id="facts"><h2>What the objective does not say</h2><ul>{items}</ul></section>'
