"""Choosing sources: numpy and scipy, no torch."""

from langmerge.selection.joint import Step, best_prefix, diverse, greedy, soft_vote_accuracy, votes
from langmerge.selection.matrix import TransferMatrix
from langmerge.selection.select import (
    FROM_MATRIX,
    SELECTORS,
    Selection,
    check_selector,
    rank_sources,
    select_sources,
    weighted,
)
from langmerge.selection.selectors import (
    agreement,
    composite,
    delta,
    manual,
    measured,
    representation,
    strength,
    typology,
)
from langmerge.selection.similarity import SimilarityMatrix
from langmerge.selection.uriel import FEATURE_SETS, Typology, typology_of
from langmerge.selection.weights import WEIGHTINGS, sinkhorn, source_weights

__all__ = [
    "FEATURE_SETS",
    "FROM_MATRIX",
    "SELECTORS",
    "WEIGHTINGS",
    "Selection",
    "SimilarityMatrix",
    "Step",
    "TransferMatrix",
    "Typology",
    "agreement",
    "best_prefix",
    "check_selector",
    "composite",
    "delta",
    "diverse",
    "greedy",
    "manual",
    "measured",
    "rank_sources",
    "representation",
    "select_sources",
    "sinkhorn",
    "soft_vote_accuracy",
    "source_weights",
    "strength",
    "typology",
    "typology_of",
    "votes",
    "weighted",
]
