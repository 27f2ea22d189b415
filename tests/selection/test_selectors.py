"""What each selector takes for the worth of a source, by hand and by what all of them must keep to."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from langmerge.errors import SelectionError
from langmerge.selection import (
    SimilarityMatrix,
    TransferMatrix,
    agreement,
    composite,
    delta,
    manual,
    measured,
    representation,
    select_sources,
    selectors,
    strength,
    typology,
)
from langmerge.selection.selectors import linear_cka, probabilities

SOURCES = ("de-DE", "fr-FR", "sw-KE", "tr-TR")
LABELLED = ("de-DE", "sw-KE", "cy-GB", "fr-FR")
TARGETS = (*LABELLED, "hi-IN")
"""cy-GB has no expert, hi-IN has no labels either."""


def numbers(*names: str, size: tuple[int, ...] = ()) -> Any:
    """Random numbers that depend on the names alone."""
    return np.random.default_rng([ord(letter) for letter in " ".join(names)]).random(size)


def transfer(sources: Sequence[str] = SOURCES, targets: Sequence[str] = LABELLED) -> TransferMatrix:
    values = np.array([[numbers(s, t) for t in targets] for s in sources], dtype=np.float64)
    return TransferMatrix(tuple(sources), tuple(targets), values, "dev")


def columns_of(targets: Sequence[str]) -> list[str]:
    return [target for target in targets if target in LABELLED]


def logits_of(sources: Sequence[str], targets: Sequence[str]) -> dict[str, dict[str, np.ndarray]]:
    return {t: {s: 3 * numbers(s, t, size=(40, 3)) for s in sources} for t in targets}


def vectors_of(languages: Sequence[str]) -> dict[str, np.ndarray]:
    return {language: numbers(language, size=(12, 5)) for language in languages}


def delta_of(experts: Sequence[str]) -> SimilarityMatrix:
    vectors = np.stack([numbers(expert, size=(9,)) - 0.5 for expert in experts])
    return delta(vectors @ vectors.T, experts)


Builder = Callable[[Sequence[str], Sequence[str]], SimilarityMatrix]
BUILDERS: dict[str, Builder] = {
    "measured": lambda s, t: measured(transfer(s, t)),
    "typology": lambda s, t: typology(s, t, {"syntax": 1.0, "geography": 0.5}),
    "strength": lambda s, t: strength(transfer(s, columns_of(t)), t),
    "composite": lambda s, t: composite(transfer(s, columns_of(t)), t),
    "agreement": lambda s, t: agreement(logits_of(s, t)),
    "representation cka": lambda s, t: representation(vectors_of([*s, *t]), s, t),
    "representation cosine": lambda s, t: representation(vectors_of([*s, *t]), s, t, how="cosine"),
    "delta": lambda s, _: delta_of(s),
    "manual": lambda s, _: manual({source: float(numbers(source)) for source in s}, "cy-GB"),
}
EVERY = pytest.mark.parametrize("name", BUILDERS)


def cells(matrix: SimilarityMatrix) -> dict[tuple[str, str], float]:
    return {
        (source, target): float(matrix.values[row, column])
        for row, source in enumerate(matrix.sources)
        for column, target in enumerate(matrix.targets)
    }


@EVERY
@settings(deadline=None, max_examples=10)
@given(st.permutations(SOURCES), st.permutations(TARGETS))
def test_order_of_sources_and_targets_does_not_matter(
    name: str, sources: list[str], targets: list[str]
) -> None:
    made = BUILDERS[name](sources, targets)
    assert made.by == name.partition(" ")[0]
    assert made.sources == tuple(sources)
    assert cells(made) == pytest.approx(cells(BUILDERS[name](SOURCES, TARGETS)), abs=1e-9, nan_ok=True)


@EVERY
def test_one_source_is_the_best_and_inctar_is_the_target_and_the_best_others(name: str) -> None:
    matrix = BUILDERS[name](SOURCES, TARGETS)
    for target in matrix.targets:
        column = matrix.column(target)
        others = {source: value for source, value in column.items() if source != target}
        (best,) = select_sources(matrix, target, k=1).sources
        assert others[best] == max(others.values())
        if target in matrix.sources:
            included = select_sources(matrix, target, k=3, include_target=True)
            assert included.sources == (target, *select_sources(matrix, target, k=2).sources)


@pytest.mark.parametrize(
    "name",
    ["typology", "strength", "composite", "agreement", "representation cka", "representation cosine"],
)
@pytest.mark.parametrize("target", ["cy-GB", "hi-IN"])
def test_a_target_without_an_expert_has_scores(name: str, target: str) -> None:
    found = BUILDERS[name](SOURCES, TARGETS).column(target)
    assert found.keys() == set(SOURCES)
    assert np.isfinite(list(found.values())).all()
    assert len(set(found.values())) > 1


def test_the_targets_column_is_read_and_not_its_row() -> None:
    names = ("de-DE", "fr-FR", "sw-KE")
    # Into sw-KE fr-FR is the better source; out of sw-KE (its row) de-DE is the better target.
    values = np.array([[0.9, 0.1, 0.4], [0.2, 0.9, 0.6], [0.8, 0.3, 0.9]])
    for matrix in (
        TransferMatrix(names, names, values, "dev"),
        SimilarityMatrix("any", names, names, values),
    ):
        assert select_sources(matrix, "sw-KE", k=1).sources == ("fr-FR",)
    assert measured(TransferMatrix(names, names, values, "dev")).column("sw-KE") == {
        "de-DE": 0.4,
        "fr-FR": 0.6,
        "sw-KE": 0.9,
    }


@pytest.mark.parametrize("name", ["strength", "composite"])
def test_labels_of_the_target_change_nothing(name: str) -> None:
    build = {"strength": strength, "composite": composite}[name]
    changed = transfer().values.copy()
    changed[:, LABELLED.index("sw-KE")] = [0.0, 1.0, 0.3, 0.7]
    other = TransferMatrix(SOURCES, LABELLED, changed, "dev")
    before, after = build(transfer()), build(other)
    assert after.column("sw-KE") == before.column("sw-KE")
    assert after.column("de-DE") != before.column("de-DE")


def test_measured_is_the_matrix_itself() -> None:
    found = measured(transfer())
    np.testing.assert_array_equal(found.values, transfer().values)
    assert (found.sources, found.targets) == (SOURCES, LABELLED)
    assert found.provenance == {"split": "dev", "metric": "accuracy"}


def square() -> TransferMatrix:
    names = ("de-DE", "fr-FR", "sw-KE")
    return TransferMatrix(
        names, names, np.array([[0.90, 0.60, 0.30], [0.70, 0.80, 0.50], [0.50, 0.40, 0.95]]), "dev"
    )


def test_strength_by_hand() -> None:
    # Without the diagonal the columns' means are 0.6, 0.5 and 0.4; the excesses are
    # de: –, 0.1, −0.1; fr: 0.1, –, 0.1; sw: −0.1, −0.1, –.
    found = strength(square(), ["de-DE", "fr-FR", "sw-KE", "cy-GB"])
    np.testing.assert_allclose(found.values[:, 3], [0.0, 0.1, -0.1], atol=1e-12)
    # For de the rows of fr and sw are left, each alone in the other's column: nothing is known of them.
    np.testing.assert_allclose(found.values[1:, 0], [0.0, 0.0], atol=1e-12)
    assert found.missing == {}
    np.testing.assert_array_equal(strength(square()).values, found.values[:, :3])


def test_strength_needs_no_expert_of_the_target() -> None:
    """With its row and without, the other sources have the same strength."""
    names = ("de-DE", "fr-FR", "sw-KE", "cy-GB")
    draw = np.random.default_rng(0)
    whole = TransferMatrix(names, names, draw.uniform(size=(4, 4)), "dev")
    without = whole.among(names[:3])
    for by in (strength, composite):
        found = by(whole, ["cy-GB"]).column("cy-GB")
        del found["cy-GB"]
        assert found == pytest.approx(by(without, ["cy-GB"]).column("cy-GB"))


def test_strength_does_not_look_at_a_sources_own_column() -> None:
    values = square().values.copy()
    np.fill_diagonal(values, [0.0, 1.0, 0.5])
    other = TransferMatrix(square().sources, square().targets, values, "dev")
    np.testing.assert_array_equal(strength(other).values, strength(square()).values)


def test_a_source_of_a_hard_language_gains_nothing_by_leaving_its_own_column_out() -> None:
    """Experts that are all as good as each other on every locale have no strength, however hard the locales are."""
    names = ("de-DE", "fr-FR", "sw-KE")
    values = np.tile([0.9, 0.6, 0.2], (3, 1))
    np.testing.assert_allclose(strength(TransferMatrix(names, names, values, "dev")).values, 0, atol=1e-12)


def test_a_source_without_another_column_has_no_strength() -> None:
    one = TransferMatrix(("de-DE", "fr-FR"), ("de-DE",), np.array([[0.9], [0.7]]), "dev")
    found = strength(one, ["cy-GB", "de-DE"])
    np.testing.assert_array_equal(found.values, [[np.nan, np.nan], [0.0, np.nan]])
    assert found.missing == {"de-DE": "no labelled locale but its own"}
    with pytest.raises(SelectionError, match="strength says nothing of de-DE"):
        found.column("de-DE")


def test_composite_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strengths ±0.1 are ±1 standardised. Similarities are standardised with the target's own 1 among them: 0 and 0.5
    beside 1 are −√1.5 and 0, so are 0.6 and 0.8; all the same is 0.
    """
    values = np.array([[0.8, 0.6], [0.6, 0.4]])
    labelled = TransferMatrix(("de-DE", "fr-FR"), ("af-ZA", "cy-GB"), values, "dev")
    parts = {
        "family": np.array([[0.0], [0.5]]),
        "syntax": np.array([[0.6], [0.8]]),
        "geography": np.array([[1.0], [1.0]]),
    }
    monkeypatch.setattr(selectors, "language_similarities", lambda *_: (parts, {"fr-FR": "guessed"}))
    found = composite(labelled, ["sw-KE"])
    assert found.column("sw-KE") == pytest.approx({"de-DE": 1 - 2 * 1.5**0.5 / 3, "fr-FR": -1.0})
    assert found.missing == {"fr-FR": "guessed"}


def test_the_composite_of_others_does_not_depend_on_the_targets_own_expert() -> None:
    with_own = composite(transfer(SOURCES, ["cy-GB", "hi-IN"]), ["sw-KE"]).column("sw-KE")
    others = [source for source in SOURCES if source != "sw-KE"]
    without = composite(transfer(others, ["cy-GB", "hi-IN"]), ["sw-KE"]).column("sw-KE")
    assert {source: with_own[source] for source in others} == pytest.approx(without)


def test_the_composite_is_no_number_where_a_part_is_not_known() -> None:
    found = composite(transfer(), ["eus", "cy-GB"])
    assert np.isnan(found.values[:, 0]).all()
    assert np.isfinite(found.values[:, 1]).all()
    with pytest.raises(SelectionError, match="composite says nothing of eus: family not known"):
        found.column("eus")


def test_typology_is_the_weighted_mean_of_its_sets() -> None:
    languages = ["de-DE", "fr-FR", "zh-CN"]
    alone = {
        name: typology(languages, ["nl-NL", "zh-TW"], {name: 1.0}).values
        for name in ("syntax", "family", "geography")
    }
    found = typology(languages, ["nl-NL", "zh-TW"], {"syntax": 2.0, "family": 6.0, "geography": 0.0})
    np.testing.assert_allclose(found.values, (alone["syntax"] + 3 * alone["family"]) / 4)
    default = typology(languages, ["nl-NL", "zh-TW"])
    np.testing.assert_allclose(default.values, sum(alone.values()) / 3)
    assert default.values[2, 1] == pytest.approx(1)
    assert select_sources(default, "nl-NL", k=1).sources == ("de-DE",)
    assert found.provenance["features"] == {"syntax": 2.0, "family": 6.0}


def test_a_set_without_a_weight_need_not_be_known() -> None:
    assert np.isnan(typology(["eus"], ["es-ES"]).values).all()
    assert np.isfinite(typology(["eus"], ["es-ES"], {"syntax": 1.0, "family": 0.0}).values).all()


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (
            {"colour": 1.0},
            "unknown feature set 'colour': there are syntax, phonology, inventory, family, geo",
        ),
        ({"syntax": 0.0}, "must be positive"),
        ({}, "must be positive"),
        ({"syntax": 1.0, "family": -1.0}, "must be positive"),
        ({"syntax": float("nan")}, "must be positive"),
        ({"syntax": float("inf")}, "must be positive"),
    ],
)
def test_weights_of_feature_sets_that_make_no_sense(weights: dict[str, float], message: str) -> None:
    with pytest.raises(SelectionError, match=message):
        typology(["de-DE"], ["fr-FR"], weights)


def test_agreement_leaves_the_targets_own_expert_out_of_the_ensemble() -> None:
    shares = {"de-DE": [[0.60, 0.40]], "fr-FR": [[0.45, 0.55]], "sw-KE": [[0.01, 0.99]]}
    logits = {source: np.log(np.array(own)) for source, own in shares.items()}
    # De and fr together say 0 (1.05 to 0.95). With sw's own expert all would say 1.
    assert agreement({"sw-KE": logits}).column("sw-KE") == {"de-DE": 1.0, "fr-FR": 0.0, "sw-KE": 0.0}
    assert agreement({"cy-GB": logits}).column("cy-GB") == {"de-DE": 0.0, "fr-FR": 1.0, "sw-KE": 1.0}


def test_agreement_is_a_share_of_rows_and_votes_are_soft() -> None:
    sure, unsure = [5.0, 0.0], [0.0, 0.1]
    logits = {
        "de-DE": np.array([sure, sure, sure, unsure]),
        "fr-FR": np.array([unsure, sure, unsure, unsure]),
        "tr-TR": np.array([unsure, unsure, unsure, sure]),
    }
    # One that is sure outvotes two that are not.
    assert agreement({"cy-GB": logits}).column("cy-GB") == {"de-DE": 0.75, "fr-FR": 0.25, "tr-TR": 0.25}


def test_a_source_that_was_not_run_on_a_target_has_no_agreement() -> None:
    one, two = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])
    found = agreement({"cy-GB": {"de-DE": one, "fr-FR": one}, "hi-IN": {"de-DE": two, "tr-TR": two}})
    np.testing.assert_array_equal(found.values, [[1, 1], [1, np.nan], [np.nan, 1]])


@pytest.mark.parametrize(
    "logits",
    [
        {},
        {"sw-KE": np.zeros((2, 2))},
        {"de-DE": np.zeros((2, 2)), "fr-FR": np.zeros((3, 2))},
    ],
)
def test_agreement_needs_others_on_the_same_rows(logits: dict[str, np.ndarray]) -> None:
    with pytest.raises(SelectionError, match="agreement on sw-KE needs logits of other sources, on the same"):
        agreement({"sw-KE": logits})


def test_probabilities_by_hand() -> None:
    found = probabilities(np.array([[np.log(3.0), 0.0], [1e30, 0.0]]))
    np.testing.assert_allclose(found, [[0.75, 0.25], [1.0, 0.0]])
    flat = probabilities(np.array([[np.log(3.0), 0.0]]), 2.0)
    root = math.sqrt(3)
    np.testing.assert_allclose(flat, [[root / (1 + root), 1 / (1 + root)]])


SEEDS = st.integers(0, 2**32 - 1)


@settings(deadline=None, max_examples=25)
@given(SEEDS, st.floats(0.01, 100))
def test_cka_is_1_for_rotated_and_scaled_copies_and_blind_to_shifts(seed: int, size: float) -> None:
    rng = np.random.default_rng(seed)
    x, other = rng.normal(size=(20, 6)), rng.normal(size=(20, 4))
    turn = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    assert linear_cka(x, size * x @ turn) == pytest.approx(1)
    assert linear_cka(x, x) == pytest.approx(1)
    moved = linear_cka(x + rng.normal(size=6), other + 10 * rng.normal(size=4))
    assert moved == pytest.approx(linear_cka(x, other))
    assert linear_cka(other, x) == pytest.approx(linear_cka(x, other))
    assert 0 <= linear_cka(x, other) < 0.99


def test_cka_is_the_cosine_of_the_centred_gram_matrices() -> None:
    x, y = numbers("x", size=(15, 4)), numbers("y", size=(15, 7))
    centring = np.eye(15) - 1 / 15
    k, m = (centring @ (v @ v.T) @ centring for v in (x, y))
    expected = (k * m).sum() / (np.linalg.norm(k) * np.linalg.norm(m))
    assert linear_cka(x, y) == pytest.approx(float(expected))
    assert np.isnan(linear_cka(np.ones((3, 2)), x[:3]))


def test_representation_by_cosine_by_hand() -> None:
    # Means (3, 0), (0, 3), (3, 3); about their mean (2, 2): (1, −2), (−2, 1), (1, 1).
    means = {"de-DE": [3.0, 0.0], "fr-FR": [0.0, 3.0], "sw-KE": [3.0, 3.0]}
    about = np.array([[1.0, -2.0], [-1.0, 2.0]])
    vectors = {name: about + mean for name, mean in means.items()}
    vectors["sw-KE"] = np.array([means["sw-KE"]])  # cosine needs no parallel texts
    found = representation(vectors, ["de-DE", "fr-FR"], ["sw-KE", "fr-FR"], how="cosine")
    np.testing.assert_allclose(found.values, [[-1 / 10**0.5, -4 / 5], [-1 / 10**0.5, 1]], atol=1e-12)
    assert found.provenance == {"how": "cosine", "texts": 1}


def test_representation_by_cka_takes_rows_for_translations() -> None:
    x = numbers("x", size=(12, 3))
    vectors = {"de-DE": x, "fr-FR": 2 * x[:, ::-1], "sw-KE": x[::-1].copy()}
    found = representation(vectors, ["fr-FR", "sw-KE"], ["de-DE"])
    assert found.values[0, 0] == pytest.approx(1)
    assert found.values[1, 0] == pytest.approx(linear_cka(x[::-1], x))
    assert found.values[1, 0] < 0.9


def test_representations_that_cannot_be_compared() -> None:
    vectors = {"de-DE": numbers("x", size=(4, 3)), "fr-FR": numbers("y", size=(5, 3))}
    with pytest.raises(SelectionError, match="cka needs the same texts in every language: use cosine"):
        representation(vectors, ["de-DE"], ["fr-FR"])
    with pytest.raises(SelectionError, match="unknown comparison of representations 'magic'"):
        representation(vectors, ["de-DE"], ["fr-FR"], how="magic")


def test_delta_is_the_cosine_of_task_vectors() -> None:
    found = delta(np.array([[4.0, 3.0, 0.0], [3.0, 9.0, 0.0], [0.0, 0.0, 0.0]]), ["de-DE", "fr-FR", "sw-KE"])
    np.testing.assert_allclose(found.values[:2, :2], [[1, 0.5], [0.5, 1]])
    # An expert that is the base itself has no direction.
    assert np.isnan(found.values[2]).all()
    assert found.column("de-DE") == pytest.approx({"de-DE": 1, "fr-FR": 0.5})


def test_scores_by_hand() -> None:
    found = manual({"de-DE": 0.7, "fr-FR": -2.0}, "cy-GB")
    assert (found.by, found.sources, found.targets) == ("manual", ("de-DE", "fr-FR"), ("cy-GB",))
    assert found.column("cy-GB") == {"de-DE": 0.7, "fr-FR": -2.0}
    for scores in ({}, {"de-DE": float("nan")}, {"de-DE": 1.0, "fr-FR": float("inf")}):
        with pytest.raises(SelectionError, match="scores by hand must be finite numbers for one source or"):
            manual(scores, "cy-GB")
