"""Selectors that need no label of the target, against a published transfer matrix: 46 experts × 20 locales of MASSIVE.

Nothing was tuned on it: feature sets, standardisation and equal weights are what they are anywhere.
"""

import csv

import numpy as np
import pytest
from scipy.stats import spearmanr

from langmerge.selection import (
    SimilarityMatrix,
    TransferMatrix,
    composite,
    select_sources,
    strength,
    typology,
)
from langmerge.tasks import data_folder

PATH = data_folder() / "merginguriel" / "nxn_20250915_partial_46x20.csv"

pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif(not PATH.is_file(), reason=f"{PATH} is not there: set LANGMERGE_DATA"),
]


@pytest.fixture(scope="module")
def published() -> TransferMatrix:
    """Test accuracy of every expert on every locale."""
    with PATH.open(encoding="utf-8", newline="") as handle:
        header, *rows = csv.reader(handle)
    values = np.array([[float(cell) for cell in row[1:]] for row in rows])
    return TransferMatrix(tuple(row[0] for row in rows), tuple(header[1:]), values, "test")


def judged(found: SimilarityMatrix, truth: TransferMatrix) -> tuple[float, float]:
    """Mean over targets of Spearman's ρ with the truth, and of the regret of the best of five: how far it is behind the
    best source there is, in points. A target's own expert takes no part.
    """
    correlations, regrets = [], []
    for target in truth.targets:
        right = {source: value for source, value in truth.column(target).items() if source != target}
        column = found.column(target)
        correlations.append(
            spearmanr([column[source] for source in right], [right[source] for source in right]).statistic
        )
        chosen = select_sources(found, target, k=5).sources
        assert len(set(chosen) - {target}) == 5
        regrets.append(100 * (max(right.values()) - max(right[source] for source in chosen)))
    return float(np.mean(correlations)), float(np.mean(regrets))


def test_it_is_the_matrix_that_was_published(published: TransferMatrix) -> None:
    assert published.values.shape == (46, 20)
    assert set(published.targets) - set(published.sources) == {"th-TH", "zh-CN"}
    assert published.score("af-ZA", "am-ET") == 0.442838


def test_composite_ranks_the_sources_and_finds_the_best(published: TransferMatrix) -> None:
    correlation, regret = judged(composite(published), published)
    assert correlation >= 0.79
    assert regret <= 0.05


def test_syntax_alone_is_what_the_study_had(published: TransferMatrix) -> None:
    found = typology(published.sources, published.targets, {"syntax": 1.0})
    correlation, regret = judged(found, published)
    assert correlation == pytest.approx(0.45, abs=0.02)
    assert regret == pytest.approx(1.07, abs=0.02)


def test_composite_is_better_than_either_of_its_parts(published: TransferMatrix) -> None:
    together, _ = judged(composite(published), published)
    for part in (strength(published), typology(published.sources, published.targets)):
        alone, _ = judged(part, published)
        assert together > alone + 0.02
