"""Choosing a set: worked by hand on stand-ins, and every way on a small real pool."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from langmerge.choosing import Choice, Compared, Wish, choose, compared
from langmerge.errors import SelectionError
from langmerge.pool import Pool
from langmerge.results import Logits
from langmerge.selection import SELECTORS, SimilarityMatrix, TransferMatrix, check_selector
from langmerge.similarities import PoolSelectors
from tests.tiny_pool import ABSENT, EXPERTS, write_tiny_pool

TARGET = "sw-KE"
GERMAN, ENGLISH, FRENCH = "de-DE", "en-US", "fr-FR"
OTHERS = (GERMAN, ENGLISH, FRENCH)


def sure(shares: Sequence[float], labels: Sequence[int] | None = None) -> Logits:
    """Logits of two classes whose first has these probabilities; all labels are the first class by default."""
    first = np.array(shares, dtype=np.float64)
    values = np.log(np.stack([first, 1 - first], axis=1)).astype(np.float32)
    own = np.zeros(len(first), dtype=np.int64) if labels is None else np.array(labels, dtype=np.int64)
    return Logits("s", tuple(map(str, range(len(first)))), own, values)


@dataclass
class Given:
    """Stands for `PoolSelectors`.

    Attributes:
        scores: selector → target → source → score.
        answers: target → expert → its logits.
        asked: the targets that matrices were asked for.
    """

    scores: Mapping[str, Mapping[str, Mapping[str, float]]]
    answers: Mapping[str, Mapping[str, Logits]] = field(default_factory=dict)
    locales: tuple[str, ...] = (*OTHERS, TARGET)
    asked: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)

    @property
    def pool(self) -> Any:
        return SimpleNamespace(locales=self.locales)

    def matrix(self, by: str, targets: Sequence[str], **_: Any) -> SimilarityMatrix:
        check_selector(by)
        self.asked.append((by, tuple(targets)))
        if by not in self.scores:
            raise SelectionError(f"there are no numbers for {by}")
        table = self.scores[by]
        values = [[table[target].get(source, np.nan) for target in targets] for source in self.locales]
        return SimilarityMatrix(by, self.locales, tuple(targets), np.array(values, dtype=np.float64))

    def logits(self, target: str) -> Mapping[str, Logits]:
        return self.answers[target]


def choice(given: Any, **wish: Any) -> Choice:
    return choose(given, Wish(**{"target": TARGET, **wish}))


def chosen(given: Any, **wish: Any) -> tuple[str, ...]:
    return choice(given, **wish).selection.sources


def table_of(given: Any, **wish: Any) -> Compared:
    return compared(given, Wish(**{"target": TARGET, **wish}))


COLUMN = {GERMAN: 0.75, ENGLISH: 0.75, FRENCH: 0.25, TARGET: 1.0}
"""What the answers below get right."""

ANSWERS = {
    GERMAN: sure([0.9, 0.9, 0.9, 0.2]),
    ENGLISH: sure([0.9, 0.9, 0.9, 0.1]),
    FRENCH: sure([0.3, 0.3, 0.3, 0.95]),
    TARGET: sure([0.75, 0.75, 0.75, 0.75]),
}


@pytest.fixture
def given() -> Given:
    """German and English are good and alike; French knows what they do not."""
    return Given({"measured": {TARGET: COLUMN}}, {TARGET: ANSWERS})


def test_the_best_singles(given: Given) -> None:
    assert chosen(given, k=2) == (GERMAN, ENGLISH)
    assert chosen(given, k=None) == (GERMAN, ENGLISH, FRENCH)
    assert chosen(given, k=2, include_target=True) == (TARGET, GERMAN)


def test_greedy_takes_what_helps(given: Given) -> None:
    """German has the smaller cross-entropy of the two best; with French the last row is right too (0.575)."""
    assert chosen(given, k=2, joint="greedy") == (GERMAN, FRENCH)
    assert chosen(given, k=3, joint="greedy") == (GERMAN, FRENCH, ENGLISH)
    assert chosen(given, k=None, joint="greedy") == (GERMAN, FRENCH, ENGLISH)
    # All three together are wrong about the last row (0.417), so the third does not help.
    assert chosen(given, k="auto", joint="greedy") == (GERMAN, FRENCH)
    assert chosen(given, k=1, joint="greedy") == (GERMAN,)


def test_greedy_scores_are_the_selectors(given: Given) -> None:
    found = choice(given, k=2, joint="greedy", weights="proportional")
    assert found.selection.scores == {GERMAN: 0.75, FRENCH: 0.25}
    assert found.selection.coefficients.values["model"] == pytest.approx({GERMAN: 0.75, FRENCH: 0.25})
    assert found.selection.coefficients.provenance["joint"] == "greedy"
    assert found.title == "sources for sw-KE by measured, greedy"


def test_greedy_with_the_targets_own_expert_starts_from_it(given: Given) -> None:
    assert chosen(given, k=1, joint="greedy", include_target=True) == (TARGET,)
    # It is right about everything: nothing helps.
    assert chosen(given, k="auto", joint="greedy", include_target=True) == (TARGET,)
    # With German or English the last row goes wrong (0.475, 0.425), with French none does (0.525).
    assert chosen(given, k=2, joint="greedy", include_target=True) == (TARGET, FRENCH)


def test_diverse_takes_what_is_unlike(given: Given) -> None:
    """German and English predict the same, French the opposite: 0.4 · 1 − 0.6 · 1 < 0.4 · 0 − 0.6 · 0."""
    assert chosen(given, k=2, joint="diverse", trade=0.4) == (GERMAN, FRENCH)
    assert chosen(given, k=2, joint="diverse", trade=0.6) == (GERMAN, ENGLISH)
    assert chosen(given, k=2, joint="diverse", trade=1.0) == (GERMAN, ENGLISH)
    assert chosen(given, k=None, joint="diverse", trade=0.4) == (GERMAN, FRENCH, ENGLISH)
    # With the target's own expert German and English agree on 3/4, French on 1/4.
    included = chosen(given, k=2, joint="diverse", trade=0.0, include_target=True)
    assert included == (TARGET, FRENCH)


AGREED = {
    # One is right about six rows of eight, two about all, three about six again.
    GERMAN: sure([0.9] * 6 + [0.4] * 2),
    ENGLISH: sure([0.7] * 8),
    FRENCH: sure([0.1] * 8),
    TARGET: sure([0.99] * 8),
}
FALLING = {GERMAN: 0.9, ENGLISH: 0.8, FRENCH: 0.7, TARGET: 0.95}


def test_the_number_is_chosen_by_the_soft_vote_on_dev() -> None:
    given = Given({"measured": {TARGET: FALLING}}, {TARGET: AGREED})
    assert chosen(given, k="auto") == (GERMAN, ENGLISH)
    found = choice(given, k="auto")
    assert found.selection.coefficients.values["model"] == {GERMAN: 0.5, ENGLISH: 0.5}
    assert "soft vote" in found.selection.coefficients.provenance["joint"]
    assert found.title == "sources for sw-KE by measured, k chosen"


def test_a_gain_within_the_error_is_none(given: Given) -> None:
    """Of eight rows English wins two and loses one: 0.125 with a standard error of 0.23."""
    assert chosen(given, k="auto") == (GERMAN,)
    answers = {**AGREED, ENGLISH: sure([0.05] + [0.7] * 7)}
    assert chosen(Given({"measured": {TARGET: FALLING}}, {TARGET: answers}), k="auto") == (GERMAN,)


def test_the_number_of_diverse_sources_can_be_chosen_too() -> None:
    given = Given({"measured": {TARGET: FALLING}}, {TARGET: AGREED})
    assert len(chosen(given, k="auto", joint="diverse")) == 2


def label_free(own: Mapping[str, Logits], elsewhere: Mapping[str, Logits]) -> Given:
    table = dict.fromkeys((*OTHERS, TARGET), FALLING)
    return Given({"typology": table}, {TARGET: own, **dict.fromkeys(OTHERS, elsewhere)})


def test_without_labels_the_number_comes_from_the_other_locales() -> None:
    """German and English are right about half of the rows, each with French about all.

    Ranked for German: English, French; for English: German, French; for French: German, English. The first of them is
    right about 1/2, the first two about 1, 1, 1/2: a gain of 1/3 with a standard error of 1/6.
    """
    half = sure([0.9, 0.9, 0.4, 0.4])
    elsewhere = {GERMAN: half, ENGLISH: half, FRENCH: sure([0.7] * 4), TARGET: sure([0.01] * 4)}
    enough = dict.fromkeys((*OTHERS, TARGET), sure([0.9] * 4))
    turned = {name: replace(own, labels=1 - own.labels) for name, own in AGREED.items()}
    # The target's own labels say nothing, whatever they are.
    for own in (AGREED, turned):
        assert chosen(label_free(own, elsewhere), by="typology", k="auto") == (GERMAN, ENGLISH)
        assert chosen(label_free(own, enough), by="typology", k="auto") == (GERMAN,)


def test_without_another_locale_the_number_cannot_be_chosen() -> None:
    scores = {"typology": {TARGET: FALLING, GERMAN: {GERMAN: 1.0, TARGET: 0.5}}}
    given = Given(scores, {TARGET: AGREED}, locales=(TARGET, GERMAN))
    with pytest.raises(SelectionError, match="k auto needs another labelled locale"):
        chosen(given, by="typology", k="auto")


def test_scores_by_hand(given: Given) -> None:
    scores = {FRENCH: 3.0, GERMAN: 1.0}
    assert chosen(given, by="manual", k=2, scores=scores) == (FRENCH, GERMAN)
    assert chosen(given, by="manual", k=1, scores=scores) == (FRENCH,)
    found = choice(given, by="manual", k=None, weights="proportional", scores=scores)
    assert found.selection.coefficients.values["model"] == {FRENCH: 0.75, GERMAN: 0.25}
    with pytest.raises(SelectionError, match="--by manual needs --scores"):
        chosen(given, by="manual")
    with pytest.raises(SelectionError, match=r"scores are given for tr-TR, .*: it has de-DE, en-US, fr-FR"):
        chosen(given, by="manual", scores={**scores, "tr-TR": 0.1})


def test_sinkhorn_asks_for_every_target() -> None:
    table = dict.fromkeys((*OTHERS, TARGET), FALLING)
    given = Given({"typology": table})
    found = choice(given, by="typology", k=2, weights="sinkhorn")
    assert ("typology", (*OTHERS, TARGET)) in given.asked
    weights = found.selection.coefficients.values["model"]
    assert set(weights) == {GERMAN, ENGLISH}
    assert sum(weights.values()) == pytest.approx(1)
    assert min(weights.values()) > 0
    given.asked.clear()
    choice(given, by="typology", k=2, weights="softmax")
    assert given.asked == [("typology", (TARGET,))]


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"joint": "heap"}, "unknown way of choosing 'heap': there are rank, greedy, diverse"),
        ({"by": "taste"}, "unknown selector 'taste'"),
        ({"k": 4}, "from 1 to 3"),
        ({"k": 4, "joint": "greedy"}, "from 1 to 3"),
        ({"k": 4, "joint": "diverse"}, "from 1 to 3"),
        ({"k": 2, "joint": "diverse", "trade": 1.5}, "between 0 and 1"),
        ({"k": 2, "weights": "heavy"}, "unknown weighting 'heavy'"),
        ({"by": "manual", "k": 1, "scores": {GERMAN: 1.0}, "include_target": True}, "has no expert"),
        (
            {"by": "manual", "k": 1, "scores": {GERMAN: 1.0}, "weights": "sinkhorn"},
            "manual scores are of one",
        ),
        ({"k": 2, "temperature": 0.5}, "temperature is for softmax and sinkhorn, the weights are uniform"),
    ],
)
def test_wishes_that_cannot_be_met(given: Given, wish: dict[str, Any], message: str) -> None:
    with pytest.raises(SelectionError, match=message):
        chosen(given, **wish)


@pytest.fixture
def disputed() -> Given:
    """Typology ranks the other way round; of composite one number is missing, of the others all."""
    upside = {GERMAN: 0.1, ENGLISH: 0.2, FRENCH: 0.9, TARGET: 1.0}
    return Given(
        {
            "measured": {TARGET: FALLING},
            "typology": {TARGET: upside},
            "strength": {TARGET: dict.fromkeys(FALLING, 0.5)},
            "composite": {TARGET: {GERMAN: 2.0, FRENCH: -1.0}},
        }
    )


def test_all_selectors_side_by_side(disputed: Given) -> None:
    found = table_of(disputed, k=2)
    assert list(found.chosen) == [by for by in SELECTORS if by != "manual"]
    assert found.chosen["measured"] == (GERMAN, ENGLISH)
    assert found.chosen["typology"] == (FRENCH, ENGLISH)
    assert found.chosen["composite"] == (GERMAN, FRENCH)
    assert found.chosen["agreement"] == "not available: there are no numbers for agreement"
    assert found.scores["composite"] == {GERMAN: 2.0, FRENCH: -1.0}
    assert all(TARGET not in column for column in found.scores.values())
    # Opposite over three sources, alike over the two that are scored; not known where all are the same.
    assert found.spearman == {"typology": pytest.approx(-1.0), "composite": pytest.approx(1.0)}
    assert [found.rank("typology", source) for source in OTHERS] == [3, 2, 1]
    assert json.loads(json.dumps(found.payload()))["chosen"]["typology"] == [FRENCH, ENGLISH]


def test_side_by_side_with_other_numbers(disputed: Given) -> None:
    everything = table_of(disputed, k=None, include_target=True)
    assert everything.chosen["typology"] == (TARGET, FRENCH, ENGLISH, GERMAN)
    assert "has no expert" in everything.chosen["composite"]
    by_hand = table_of(disputed, k="auto", scores={ENGLISH: 1.0})
    assert by_hand.chosen["manual"] == (ENGLISH,)
    assert [by for by in SELECTORS if by_hand.needs_labels(by)] == ["measured", "delta"]
    assert len(by_hand.chosen["typology"]) == 3


def explained(given: Given, **wish: Any) -> dict[str, dict[str, Any]]:
    lines = choice(given, **wish).explained(table_of(given, **wish))
    found = {line["source"]: line for line in lines}
    assert len(found) == len(lines) == len(given.locales)
    assert json.loads(json.dumps(lines)) == lines
    return found


def test_every_expert_has_a_line(disputed: Given) -> None:
    found = explained(disputed, by="typology", k=2)
    assert list(found) == [FRENCH, ENGLISH, GERMAN, TARGET]
    assert {source: line["why"] for source, line in found.items()} == {
        FRENCH: "in: rank 1 by typology",
        ENGLISH: "in: rank 2 by typology",
        GERMAN: "out: rank 3 by typology, 2 are taken",
        TARGET: "out: the target's own expert",
    }
    assert [line["in"] for line in found.values()] == [True, True, False, False]
    assert found[FRENCH]["scores"] == {"measured": 0.7, "typology": 0.9, "strength": 0.5, "composite": -1.0}
    assert found[FRENCH]["ranks"] == {"measured": 3, "typology": 1, "strength": 3, "composite": 2}
    assert "composite" not in found[ENGLISH]["scores"]


def test_why_with_the_targets_own_expert_or_without_a_score(disputed: Given) -> None:
    found = explained(disputed, by="typology", k=2, include_target=True)
    assert list(found)[:2] == [TARGET, FRENCH]
    assert found[TARGET]["why"] == "in: the target's own expert (IncTar)"
    assert found[TARGET]["in"]
    assert found[ENGLISH]["why"] == "out: rank 2 by typology, 2 are taken"
    found = explained(disputed, by="composite", k=1)
    assert found[ENGLISH]["why"] == "out: composite has no score for it"
    assert found[GERMAN]["why"] == "in: rank 1 by composite"


def test_why_of_a_set(given: Given) -> None:
    found = explained(given, joint="greedy", k=2)
    assert found[GERMAN]["why"] == "in: step 1 of greedy, rank 1 by measured"
    assert found[FRENCH]["why"] == "in: step 2 of greedy, rank 3 by measured"
    assert found[ENGLISH]["why"] == "out: not chosen by greedy, rank 2 by measured"


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """Read-only."""
    return write_tiny_pool(tmp_path_factory.mktemp("choosing"))


@pytest.fixture(scope="module")
def selectors(pool: Pool) -> PoolSelectors:
    """Of the pool."""
    return PoolSelectors(pool)


@pytest.mark.parametrize("by", [by for by in SELECTORS if by != "manual"])
@pytest.mark.parametrize("joint", ["rank", "greedy", "diverse"])
@pytest.mark.parametrize("k", [2, "auto", None])
@pytest.mark.parametrize("include_target", [False, True])
def test_every_way_on_a_real_pool(
    selectors: PoolSelectors, by: str, joint: str, k: int | str | None, include_target: bool
) -> None:
    found = choose(selectors, Wish(TARGET, by, k, include_target, joint=joint)).selection
    assert set(found.sources) <= set(EXPERTS)
    assert (TARGET in found.sources) is include_target
    assert found.sources[:1] == (TARGET,) or not include_target
    assert 1 <= len(found.sources) <= 3 + include_target
    if k != "auto":
        assert len(found.sources) == (k or 3 + include_target)
    weights = found.coefficients.values["model"]
    assert tuple(weights) == found.sources
    assert sum(weights.values()) == pytest.approx(1)


@pytest.mark.parametrize("weights", ["proportional", "softmax", "sinkhorn"])
@pytest.mark.parametrize("by", ["measured", "typology", "agreement"])
def test_every_weighting_on_a_real_pool(selectors: PoolSelectors, by: str, weights: str) -> None:
    found = choose(selectors, Wish(TARGET, by, 2, weights=weights)).selection.coefficients
    numbers = list(found.values["model"].values())
    assert sum(numbers) == pytest.approx(1)
    assert min(numbers) > 0
    assert found.provenance["weights"] == weights
    if weights != "sinkhorn":
        assert numbers == sorted(numbers, reverse=True)


def test_an_absent_target_is_compared_as_far_as_it_can_be(selectors: PoolSelectors) -> None:
    found = compared(selectors, Wish(ABSENT, k=2))
    missing = {by: entry for by, entry in found.chosen.items() if isinstance(entry, str)}
    assert set(missing) == {"measured", "delta"}
    assert all(entry.startswith("not available: ") for entry in missing.values())
    assert "the pool has none for cy-GB" in missing["delta"]
    assert "langmerge matrix" in missing["measured"]
    assert found.spearman == {}
    assert all(set(column) == set(EXPERTS) for column in found.scores.values())


def test_a_column_that_was_not_measured_says_how_to_get_it(selectors: PoolSelectors) -> None:
    with pytest.raises(SelectionError, match=r"'cy-GB': measure it with langmerge matrix"):
        choose(selectors, Wish(ABSENT, k=2))


@pytest.mark.parametrize("by", ["strength", "composite"])
def test_sinkhorn_without_labels_does_not_look_at_the_targets_column(tmp_path: Path, by: str) -> None:
    def weights(column: list[float]) -> Any:
        values = np.random.default_rng(0).uniform(size=(4, 4))
        values[:, EXPERTS.index(TARGET)] = column
        TransferMatrix(EXPERTS, EXPERTS, values, "dev").save(tmp_path / "transfer.dev.json")
        pool: Any = SimpleNamespace(locales=EXPERTS, root=tmp_path)
        return choice(PoolSelectors(pool), by=by, k=3, weights="sinkhorn").selection.coefficients.values

    assert weights([0.9, 0.5, 0.1, 0.9]) == weights([0.1, 0.5, 0.9, 0.9])


def test_k_auto_without_labels_does_not_look_at_the_targets_column(tmp_path: Path) -> None:
    """It would put French, which needs help, last for the other locales, or first."""
    good, half = sure([0.7] * 4), sure([0.6, 0.6, 0.4, 0.4])
    answers = {GERMAN: good, ENGLISH: good, FRENCH: half, TARGET: good}

    class Answered(PoolSelectors):
        def logits(self, *_: str) -> dict[str, Logits]:
            return answers

    def found(column: list[float]) -> tuple[str, ...]:
        values = np.full((4, 4), 0.5)
        values[:, EXPERTS.index(TARGET)] = column
        TransferMatrix(EXPERTS, EXPERTS, values, "dev").save(tmp_path / "transfer.dev.json")
        pool: Any = SimpleNamespace(locales=EXPERTS, root=tmp_path)
        return chosen(Answered(pool), by="strength", k="auto")

    assert found([0.9, 0.5, 0.1, 0.9]) == found([0.1, 0.5, 0.9, 0.9])
