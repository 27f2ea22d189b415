"""Prefixes: n virtual tokens' keys and values per layer. A language moves them by a map among the tokens."""

import torch
from jaxtyping import Float
from torch import Tensor

Tokens = Float[Tensor, "n d"]

FORMS = ("safe", "paper")


def moved(one: Tokens, two: Tokens, three: Tokens, t: float, form: str = "safe") -> Tensor:
    """AdaMergeX for one layer's keys or values.

    safe: (I + t (P2 − P3) P3⁺) P1, the identity wherever P2 = P3. paper: (t (P2 P3⁺ − I) + I) P1, the same where P3 has
    full row rank; where it has not (always with more tokens than dimensions), it shrinks P1 even for P2 = P3.
    """
    inverse = torch.linalg.pinv(three.double())
    p1, p2, p3 = one.double(), two.double(), three.double()
    change = (p2 - p3) @ inverse if form == "safe" else p2 @ inverse - torch.eye(len(p3), dtype=p3.dtype)
    made: Tensor = p1 + t * (change @ p1)
    return made.to(one.dtype)


def row_rank(tokens: Tokens) -> int:
    """Numerical rank; below n the inverse is not a full one."""
    return int(torch.linalg.matrix_rank(tokens.double()))


def by_layer(embeddings: Float[Tensor, "n width"], layers: int) -> Float[Tensor, "layers2 n d"]:
    """PEFT's table of virtual tokens as keys and values of each layer, in the order key 0, value 0, key 1, …"""
    return embeddings.reshape(len(embeddings), 2 * layers, -1).transpose(0, 1)


def as_table(tokens: Float[Tensor, "layers2 n d"]) -> Float[Tensor, "n width"]:
    """The inverse of `by_layer`."""
    return tokens.transpose(0, 1).reshape(tokens.shape[1], -1).contiguous()
