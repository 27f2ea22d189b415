"""The tree of languages that are alike: average linkage."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64
from scipy.cluster.hierarchy import leaves_list, linkage

from langmerge.selection import SimilarityMatrix

SYMMETRIC = 1e-9
"""Values of two languages that differ by more are not the same both ways."""

Node = tuple[float, float]
"""A leaf's or a join's row, counted from the top, and its similarity."""


@dataclass(frozen=True)
class Join:
    """Two branches that meet.

    Attributes:
        branches: where each of them begins: a leaf or an earlier join.
        similarity: mean over pairs of leaves, one from each branch.
    """

    branches: tuple[Node, Node]
    similarity: float


@dataclass(frozen=True)
class Tree:
    """A tree of languages.

    Attributes:
        leaves: from top to bottom, in the order that puts like next to like.
        joins: the closest first, one fewer than leaves.
        top: the similarity at which leaves begin: 1, or the largest of a pair where that is more.
        is_mean: the two values of a pair differ, and the tree is of their mean.
    """

    leaves: tuple[str, ...]
    joins: tuple[Join, ...]
    top: float
    is_mean: bool


def tree_of(matrix: SimilarityMatrix) -> Tree | str:
    """Average linkage of 1 − similarity with the optimal order of leaves; or a sentence that says why there is none.

    A language's value for itself takes no part. Where the two values of a pair differ, it is the tree of their mean.
    """
    names = matrix.sources
    if sorted(names) != sorted(matrix.targets):
        return "There is no tree: rows and columns are not the same languages."
    if len(names) < 2:
        return "There is no tree: it takes two languages."
    square = matrix.values[:, [matrix.targets.index(name) for name in names]]
    pairs = ~np.eye(len(names), dtype=bool)
    if sentence := _unknown(square, pairs, names):
        return sentence
    is_mean = bool(np.abs(square - square.T)[pairs].max() > SYMMETRIC)
    mean = (square + square.T) / 2
    # Another constant than 1 moves all joins alike: order and shape stay, and no distance is negative.
    top = max(1.0, float(mean[pairs].max()))
    found = linkage(top - mean[np.triu_indices(len(names), 1)], "average", optimal_ordering=True)
    order = [int(leaf) for leaf in leaves_list(found)]
    nodes: list[Node] = [(float(order.index(leaf)), top) for leaf in range(len(names))]
    joins = []
    for one, other, distance, _ in found.tolist():
        branches = nodes[int(one)], nodes[int(other)]
        joins.append(Join(branches, top - distance))
        nodes.append(((branches[0][0] + branches[1][0]) / 2, top - distance))
    return Tree(tuple(names[leaf] for leaf in order), tuple(joins), top, is_mean)


def _unknown(
    square: Float64[np.ndarray, "n n"], pairs: Bool[np.ndarray, "n n"], names: tuple[str, ...]
) -> str:
    unknown = np.argwhere(pairs & ~np.isfinite(square))
    if not len(unknown):
        return ""
    source, target = (names[place] for place in unknown[0])
    return (
        f"There is no tree: {len(unknown)} of {pairs.sum()} values of two languages are not known; "
        f"the first is that of {source} for {target}."
    )
