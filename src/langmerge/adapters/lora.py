"""LoRA updates as products of thin factors: sums, norms and best approximations without ever multiplying one out.

Everything here is about ΔW = scale · B A, never about A or B by themselves: (B G⁻¹, G A) is the same update for any
invertible G, and what is computed here is the same for it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

_ROUNDING = 1e-13
"""Of a sum of squares, relative: what float64 leaves of blocks that cancel."""


@dataclass(frozen=True)
class Factors:
    """One adapter's update of one tensor: ΔW = scale · B A.

    Attributes:
        a: (rank, in); more axes where the module is a convolution.
        b: (out, rank).
        scale: alpha / rank, or alpha / √rank for rsLoRA, times the weight in a sum.
    """

    a: Tensor
    b: Tensor
    scale: float

    @property
    def rank(self) -> int:
        """Number of rows of A."""
        return self.a.shape[0]

    def times(self, weight: float) -> "Factors":
        """With another factor before it."""
        return Factors(self.a, self.b, weight * self.scale)

    def product(self) -> Float[Tensor, "out in"]:
        """ΔW itself."""
        return self.scale * (self.b @ self.a)


def stacked(blocks: Sequence[Factors]) -> Factors:
    """The exact sum: A side by side in rows, B in columns, rank the sum of the ranks.

    The scale is the first block's, so that its factors stay as they are, bit for bit; the others' B take the quotient.
    """
    scale = blocks[0].scale
    left = [one.b if one.scale == scale else (one.scale / scale) * one.b for one in blocks]
    return Factors(torch.cat([one.a for one in blocks]), torch.cat(left, dim=1), scale)


def gram(blocks: Sequence[Factors]) -> Float[Tensor, "n n"]:
    """⟨ΔX, ΔY⟩ (Frobenius) of all pairs from rank × rank matrices: sums over the blocks of BᵀB ∘ A Aᵀ."""
    a = torch.cat([one.a.double() for one in blocks])
    b = torch.cat([one.b.double() for one in blocks], dim=1)
    owner = torch.repeat_interleave(torch.arange(len(blocks)), torch.tensor([one.rank for one in blocks]))
    place = torch.nn.functional.one_hot(owner, len(blocks)).double()
    scaled = place * torch.tensor([one.scale for one in blocks], dtype=torch.float64)
    return scaled.T @ ((b.T @ b) * (a @ a.T)) @ scaled


def norm(blocks: Sequence[Factors]) -> float:
    """Frobenius norm of the sum of blocks."""
    return compare(blocks, [])[0]


def compare(x: Sequence[Factors], y: Sequence[Factors]) -> tuple[float, float, float]:
    """Norms of two sums of blocks, and the cosine between them, 0 where one is zero.

    What is left of blocks that cancel to rounding is zero.
    """
    if not (x or y):
        return 0.0, 0.0, 0.0
    pairs = gram([*x, *y])
    own, other = pairs[: len(x), : len(x)], pairs[len(x) :, len(x) :]
    squares = [
        float(part.sum()) if float(part.sum()) > _ROUNDING * float(part.trace()) else 0.0
        for part in (own, other)
    ]
    size = math.sqrt(squares[0] * squares[1])
    cosine = float(pairs[: len(x), len(x) :].sum()) / size if size else 0.0
    return math.sqrt(squares[0]), math.sqrt(squares[1]), cosine


def recompressed(blocks: Sequence[Factors], rank: int) -> tuple[Factors, float, float]:
    """The best approximation of a sum by one product of a given rank (Eckart and Young).

    Two QR decompositions of the stacked factors, then the singular values of a core of Σ rank × Σ rank.

    Args:
        blocks: of matrices.
        rank: of the result; of a sum of lower rank: that.

    Returns:
        Factors of scale 1, the singular values shared equally between them; the norm of what is lost; the norm of all.
    """
    whole = stacked(blocks)
    left, upper = torch.linalg.qr(whole.b)
    right, lower = torch.linalg.qr(whole.a.T)
    u, s, vh = torch.linalg.svd(whole.scale * (upper @ lower.T), full_matrices=False)
    rank = min(rank, len(s))
    root = s[:rank].sqrt()
    made = Factors(root[:, None] * (vh[:rank] @ right.T), (left @ u[:, :rank]) * root, 1.0)
    return made, float(s[rank:].double().norm()), float(s.double().norm())


def of_matrix(delta: Float[Tensor, "out in"], rank: int) -> tuple[Factors, float, float]:
    """The best approximation of a matrix by a product of a given rank; returns what `recompressed` does."""
    u, s, vh = torch.linalg.svd(delta, full_matrices=False)
    root = s[:rank].sqrt()
    made = Factors(root[:, None] * vh[:rank], u[:, :rank] * root, 1.0)
    return made, float(s[rank:].double().norm()), float(s.double().norm())


def factors_apart(one: Factors, two: Factors, three: Factors, t: float) -> Factors:
    """A and B each by themselves, as AdaMergeX's released code means to: A1 + t (A2 − A3), B1 + t (B2 − B3).

    Not a function of the updates: their product has cross terms, and other factors of the same updates give another
    result. All three have the same rank and scale.
    """
    return Factors(one.a + t * (two.a - three.a), one.b + t * (two.b - three.b), one.scale)


def correlation(x: Tensor, y: Tensor) -> float:
    """Cosine between two adapters' A, as vectors: near 1 where they began at the same draw, near 0 where not."""
    if x.shape != y.shape:
        return 0.0
    size = float(x.double().norm() * y.double().norm())
    return float(x.double().flatten() @ y.double().flatten()) / size if size else 0.0


@dataclass(frozen=True)
class Bases:
    """Common bases of several adapters' updates of one matrix: their columns and rows, orthonormal.

    Source: Panariello et al. 2025, "Accurate and Efficient Low-Rank Model Merging in Core Space".

    Attributes:
        left: (out, p).
        right: (q, in).
    """

    left: Tensor
    right: Tensor

    @classmethod
    def of(cls, blocks: Sequence[Factors]) -> "Bases":
        """From stacked B and stacked A: p is Σ rank or `out`, q is Σ rank or `in`, whichever is less; nothing is lost."""
        left, _, _ = torch.linalg.svd(torch.cat([one.b for one in blocks], 1), full_matrices=False)
        _, _, right = torch.linalg.svd(torch.cat([one.a for one in blocks]), full_matrices=False)
        return cls(left, right)

    def core(self, one: Factors) -> Float[Tensor, "p q"]:
        """An update in these bases: its scale · (leftᵀ B)(A rightᵀ)."""
        return one.scale * ((self.left.T @ one.b) @ (one.a @ self.right.T))

    def factors(self, core: Float[Tensor, "p q"]) -> Factors:
        """The update of a core, exact; its rank is the smaller side of the core."""
        if core.shape[0] <= core.shape[1]:
            return Factors(core @ self.right, self.left, 1.0)
        return Factors(self.right, self.left @ core, 1.0)
