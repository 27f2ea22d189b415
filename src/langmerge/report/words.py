"""How reports write numbers and names."""

from langmerge.results.study import KINDS, SINGLE_EXPERTS, Difference, Row

NOTHING = "—"
UP, DOWN = "▲", "▼"

GLOSSARY = (
    (
        "base, expert, source",
        "The base is the pretrained model; an expert is the base fine-tuned on one locale; a source is an expert that takes part in a merge.",
    ),
    (
        "ExcTar, IncTar",
        "The target's own expert is excluded from the sources, or included in them.",
    ),
    (
        "best zero-shot",
        "The expert of another locale that does best on the target, chosen on dev and reported on test. It is what a user would take without merging and without an expert for the target.",
    ),
    (
        "best in hindsight",
        "The expert of another locale that turned out best on test. Nobody can choose it without test labels, so it is a bound and not a choice.",
    ),
    ("self", "The target's own expert, on the target."),
    (
        "mean of the sources",
        "The mean of the accuracies of exactly the sources merged: what a source picked at random among them gives. It is no model.",
    ),
    (
        "soft vote",
        "The mean of the sources' probabilities: every source runs on every row, so it costs as many models as there are sources.",
    ),
    (
        "majority, weighted vote, logit average",
        "Other ways to predict with all sources: the label that most of them predict; their probabilities weighted by the selection; the mean of their logits.",
    ),
    (
        "gain",
        "Accuracy minus that of the best zero-shot expert (ExcTar) or of self (IncTar), in points, paired over the same test rows. This says whether merging was worth it.",
    ),
    (
        "merging effect",
        "Accuracy minus the mean of the sources, in points. A merge can have a positive effect and still lose to its best source.",
    ),
    (
        "interval",
        "A 95 % bootstrap interval over test rows. It does not cover another training seed. p is the exact McNemar test.",
    ),
    (
        "transfer matrix",
        "The accuracy on dev of each expert (row) on each locale (column). Sources are ranked by the target's column.",
    ),
    (
        "signature",
        "A hash of what a number came from: recipe, base, sources, data, split, seed and version.",
    ),
)


def percent(share: float) -> str:
    """A share in [0, 1] as a percentage.

    >>> percent(0.6129)
    '61.3'
    """
    return f"{100 * share:.1f}"


def points(value: float) -> str:
    """A signed difference in percentage points.

    A second digit appears where one would hide on which side of zero it lies.

    >>> points(1.25), points(-0.04), points(0.0)
    ('+1.2', '-0.04', '+0.0')
    """
    return f"{value:+.2f}" if 0 < abs(value) < 0.05 else f"{value:+.1f}"


def p_value(p: float) -> str:
    """A p-value with two digits that matter.

    >>> p_value(0.0234), p_value(0.2), p_value(0.0001)
    ('p = 0.023', 'p = 0.20', 'p < 0.001')
    """
    if p < 0.001:
        return "p < 0.001"
    return f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def direction(found: Difference) -> str:
    """▲ where the whole interval is above zero, ▼ where it is below, nothing where it contains zero."""
    return UP if found.low > 0 else DOWN if found.high < 0 else ""


def difference(found: Difference | None) -> str:
    """A difference with its interval, its direction where that is clear, and p where there is one."""
    if found is None:
        return NOTHING
    text = f"{points(found.points)} ({points(found.low)} to {points(found.high)})"
    if mark := direction(found):
        text = f"{mark} {text}"
    return text if found.p_value is None else f"{text}, {p_value(found.p_value)}"


def label(row: Row) -> str:
    """How tables call a row, apart from its number of sources."""
    if row.kind == "best_in_hindsight":
        return f"{KINDS[row.kind]}: {row.sources[0]} (chosen on test: not a choice)"
    if row.kind == "first_source":
        return f"{row.name}: {row.sources[0]}"
    if row.kind in SINGLE_EXPERTS:
        return f"{KINDS[row.kind]}: {row.sources[0]}"
    return row.name


def duration(seconds: float) -> str:
    """A length of time for people.

    >>> duration(7.25), duration(65), duration(7322)
    ('7.2 s', '1 min 5 s', '2 h 2 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
