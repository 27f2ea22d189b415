"""Choosing sources: numpy only."""

from langmerge.selection.matrix import TransferMatrix
from langmerge.selection.select import (
    SELECTORS,
    WEIGHTINGS,
    Selection,
    check_selector,
    rank_sources,
    select_sources,
    source_weights,
)

__all__ = [
    "SELECTORS",
    "WEIGHTINGS",
    "Selection",
    "TransferMatrix",
    "check_selector",
    "rank_sources",
    "select_sources",
    "source_weights",
]
