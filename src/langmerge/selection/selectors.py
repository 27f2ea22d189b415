"""The selectors: what each takes for the worth of a source for a target. All read the target's column, never its row."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Float64

from langmerge.errors import SelectionError
from langmerge.selection.matrix import TransferMatrix
from langmerge.selection.similarity import SimilarityMatrix
from langmerge.selection.uriel import FEATURE_SETS, OBSERVED, Typology, typology_of

COMPOSED = ("family", "syntax", "geography")
"""Feature sets of the composite, and of typology where no weights are given."""


def measured(transfer: TransferMatrix) -> SimilarityMatrix:
    """M[s, t] itself: needs labels of the target."""
    return SimilarityMatrix(
        "measured",
        transfer.sources,
        transfer.targets,
        transfer.values,
        provenance={"split": transfer.split, "metric": transfer.metric, **transfer.provenance},
    )


def typology(
    sources: Sequence[str], targets: Sequence[str], weights: Mapping[str, float] | None = None
) -> SimilarityMatrix:
    """Weighted mean of the cosines of URIEL's feature sets.

    Args:
        sources: languages, as locales, codes or names.
        targets: languages.
        weights: of feature sets; those of the composite equally by default. They are divided by their sum.

    Returns:
        Values in [0, 1]; NaN for a pair of which a set with a weight knows nothing, never a default number. `missing`
        also names the sets that were not observed but filled in from neighbours.

    Raises:
        SelectionError: an unknown set, or weights that are negative or all zero.
        LocaleError: one is no language.
    """
    given = dict.fromkeys(COMPOSED, 1.0) if weights is None else dict(weights)
    if unknown := [name for name in given if name not in FEATURE_SETS]:
        raise SelectionError(f"unknown feature set {unknown[0]!r}: there are {', '.join(FEATURE_SETS)}")
    used = {name: float(weight) for name, weight in given.items() if weight}
    if not used or not all(0 < weight < np.inf for weight in used.values()):
        raise SelectionError(f"weights of feature sets must be positive, got {given}")
    parts, missing = language_similarities(sources, targets, tuple(used))
    values = sum(weight * parts[name] for name, weight in used.items()) / sum(used.values())
    return SimilarityMatrix(
        "typology",
        tuple(sources),
        tuple(targets),
        np.asarray(values, dtype=np.float64),
        missing,
        {"features": used, "data": "URIEL (lang2vec 1.1.2)"},
    )


def language_similarities(
    sources: Sequence[str], targets: Sequence[str], sets: Sequence[str]
) -> tuple[dict[str, Float64[np.ndarray, "s t"]], dict[str, str]]:
    """Cosines by feature set, and what is not known of each language."""
    languages = list(dict.fromkeys([*sources, *targets]))
    table, codes = typology_of(languages)
    place = {code: row for row, code in enumerate(table.codes)}
    parts = {}
    for name in sets:
        # One more row of nothing, for the languages that the table lacks.
        square = np.full((len(place) + 1, len(place) + 1), np.nan)
        square[:-1, :-1] = table.similarity(name)
        rows, columns = (
            [place.get(codes[language], -1) for language in those] for those in (sources, targets)
        )
        parts[name] = square[np.ix_(rows, columns)]
    return parts, _gaps(table, codes, sets)


def _gaps(table: Typology, codes: Mapping[str, str], sets: Sequence[str]) -> dict[str, str]:
    place = {code: row for row, code in enumerate(table.codes)}
    shares = {name: table.share_observed(name) for name in sets}
    found = {}
    for language, code in codes.items():
        if code not in place:
            found[language] = f"no data under {code}: pip install 'langmerge[typology]' has more languages"
            continue
        none = [name for name in sets if shares[name][place[code]] == 0]
        guessed = [name for name in none if name in OBSERVED]
        lacking = [name for name in none if name not in OBSERVED]
        words = [f"{', '.join(guessed)} filled in from neighbours"] if guessed else []
        words += [f"{', '.join(lacking)} not known"] if lacking else []
        if words:
            found[language] = "; ".join(words)
    return found


def strength(transfer: TransferMatrix, targets: Sequence[str] | None = None) -> SimilarityMatrix:
    """How good a source is at transfer at all: its mean excess over the column's mean, on labelled locales but t and s.

    Needs no label of the target, and no expert of it: its row is in no mean. A source's own column is left out (that is no
    transfer), and what is left are other columns for every source: columns are centred first, or a source whose own
    language is a hard one would gain.

    Returns:
        Values in accuracy; NaN where a source has no other column.
    """
    wanted = tuple(transfer.targets if targets is None else targets)
    own = np.array([[s == u for u in transfer.targets] for s in transfer.sources]).reshape(
        transfer.values.shape
    )
    others = np.where(own, np.nan, transfer.values)
    values = np.full((len(transfer.sources), len(wanted)), np.nan)
    for column, target in enumerate(wanted):
        sources = others[[s != target for s in transfer.sources]]
        counts = (~np.isnan(sources)).sum(axis=0)
        excess = others - np.nansum(sources, axis=0) / np.where(counts, counts, np.nan)
        seen = excess[:, [u != target for u in transfer.targets]]
        known = (~np.isnan(seen)).sum(axis=1)
        values[:, column] = np.nansum(seen, axis=1) / np.where(known, known, np.nan)
    return SimilarityMatrix(
        "strength",
        transfer.sources,
        wanted,
        values,
        {
            s: "no labelled locale but its own"
            for s, row in zip(transfer.sources, values, strict=True)
            if np.isnan(row).all()
        },
        {"split": transfer.split, "metric": transfer.metric, **transfer.provenance},
    )


def composite(transfer: TransferMatrix, targets: Sequence[str] | None = None) -> SimilarityMatrix:
    """z(strength) + mean of z(family), z(syntax), z(geography): needs no label of the target.

    Strength is standardised over the sources but the target's own expert; typology over these and the target itself,
    whose similarity of 1 says how far the best of them is. A set in which all sources are the same (a family of its own)
    adds nothing.
    """
    strong = strength(transfer, targets)
    parts, missing = language_similarities(strong.sources, strong.targets, COMPOSED)
    values = np.full(strong.values.shape, np.nan)
    for column, target in enumerate(strong.targets):
        others = np.array([source != target for source in strong.sources])
        total = _standard(strong.values[:, column], strong.values[others, column])
        for part in parts.values():
            reference = np.append(part[others, column], 1.0)
            total = total + _standard(part[:, column], reference) / len(parts)
        values[:, column] = total
    return SimilarityMatrix(
        "composite", strong.sources, strong.targets, values, {**missing, **strong.missing}, strong.provenance
    )


def _standard(
    values: Float64[np.ndarray, "n"], reference: Float64[np.ndarray, "m"]
) -> Float64[np.ndarray, "n"]:
    known = reference[~np.isnan(reference)]
    spread = known.std() if known.size else 0.0
    centred = values - (known.mean() if known.size else 0.0)
    return np.asarray(centred / spread if spread > 1e-12 else np.where(np.isnan(values), np.nan, 0.0))


def agreement(logits: Mapping[str, Mapping[str, Float[np.ndarray, "n c"]]]) -> SimilarityMatrix:
    """How often a source predicts what the ensemble of all sources but the target's own expert predicts.

    Args:
        logits: target → source → logits on the same unlabelled rows of the target; the sources are those of the first.

    Raises:
        SelectionError: other rows, or none.
    """
    targets = tuple(logits)
    sources = tuple(dict.fromkeys(source for own in logits.values() for source in own))
    values = np.full((len(sources), len(targets)), np.nan)
    for column, target in enumerate(targets):
        own = logits[target]
        members = [source for source in own if source != target]
        if not members or len({value.shape for value in own.values()}) > 1:
            raise SelectionError(f"agreement on {target} needs logits of other sources, on the same rows")
        chosen = sum(probabilities(own[source]) for source in members)
        voted = np.asarray(chosen).argmax(axis=1)
        for source, given in own.items():
            values[sources.index(source), column] = float((given.argmax(axis=1) == voted).mean())
    return SimilarityMatrix("agreement", sources, targets, values)


def probabilities(logits: Float[np.ndarray, "n c"], temperature: float = 1.0) -> Float64[np.ndarray, "n c"]:
    """softmax(z / T)."""
    scaled = logits.astype(np.float64) / temperature
    odds = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(odds / odds.sum(axis=1, keepdims=True))


def representation(
    vectors: Mapping[str, Float[np.ndarray, "n d"]],
    sources: Sequence[str],
    targets: Sequence[str],
    *,
    how: str = "cka",
) -> SimilarityMatrix:
    """How alike one encoder represents the languages' texts.

    Args:
        vectors: language → mean-pooled vectors of its texts.
        sources: languages.
        targets: languages.
        how: `cosine` between the languages' mean vectors, about the mean of all; or linear `cka` between the vectors of
            parallel texts (row i of each is the same text).

    Raises:
        SelectionError: another `how`, or texts that are not parallel.
    """
    if how not in ("cosine", "cka"):
        raise SelectionError(f"unknown comparison of representations {how!r}: there are cka and cosine")
    if how == "cka" and len({own.shape for own in vectors.values()}) > 1:
        raise SelectionError("cka needs the same texts in every language: use cosine")
    centre = np.mean([own.mean(axis=0, dtype=np.float64) for own in vectors.values()], axis=0)
    means = {language: own.mean(axis=0, dtype=np.float64) - centre for language, own in vectors.items()}

    def compare(s: str, t: str) -> float:
        return _cosine(means[s], means[t]) if how == "cosine" else linear_cka(vectors[s], vectors[t])

    values = np.array([[compare(s, t) for t in targets] for s in sources], dtype=np.float64)
    return SimilarityMatrix(
        "representation",
        tuple(sources),
        tuple(targets),
        values.reshape(len(sources), len(targets)),
        provenance={"how": how, "texts": min(len(own) for own in vectors.values())},
    )


def _cosine(a: Float64[np.ndarray, "d"], b: Float64[np.ndarray, "d"]) -> float:
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norm if norm else float("nan")


def linear_cka(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "n e"]) -> float:
    """‖Xᵀ Y‖² / (‖XᵀX‖ ‖YᵀY‖), columns centred: 1 for the same up to rotation and size (Kornblith et al., 2019)."""
    a, b = (np.asarray(one, dtype=np.float64) - one.mean(axis=0, dtype=np.float64) for one in (x, y))
    own = float(np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b))
    return float(np.linalg.norm(a.T @ b) ** 2) / own if own else float("nan")


def delta(gram: Float64[np.ndarray, "n n"], experts: Sequence[str]) -> SimilarityMatrix:
    """Cosine of the task vectors of source and target: needs the target's own expert.

    Args:
        gram: dot products of the task vectors, over the whole model.
        experts: its rows and columns.
    """
    norms = np.sqrt(np.diag(gram))
    with np.errstate(invalid="ignore", divide="ignore"):
        values = gram / np.outer(norms, norms)
    return SimilarityMatrix("delta", tuple(experts), tuple(experts), np.asarray(values))


def manual(scores: Mapping[str, float], target: str) -> SimilarityMatrix:
    """A table by hand.

    Raises:
        SelectionError: it is empty, or a score is not finite.
    """
    if not scores or not np.isfinite(list(scores.values())).all():
        raise SelectionError(
            f"scores by hand must be finite numbers for one source or more, got {dict(scores)}"
        )
    values = np.array([[score] for score in scores.values()], dtype=np.float64)
    return SimilarityMatrix("manual", tuple(scores), (target,), values)
