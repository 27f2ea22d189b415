"""What a merge is adapted to on text without labels; all in nats, a mean over rows, smaller is better.

    entropy     H(p) of each row, then the mean; never of a mean of logits
    teacher     cross-entropy to soft labels q: −Σ q_j log p_j
    infomax     entropy − H(mean of p over the batch): certain about each row, undecided over all; forbids collapse

Entropy also falls when logits are merely scaled: freeze the head, or add `teacher`.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from langmerge.errors import InputError

Rows = np.ndarray[Any, np.dtype[np.int64]]

Objective = Callable[[Tensor, Rows], Tensor]
"""`(logits (rows, labels), numbers of the rows)` → the loss, a scalar with a gradient in the logits."""

NAMES = ("entropy", "teacher", "infomax")

_TERM = re.compile(r"(?:([0-9.eE+-]+)\*)?([a-z]+)$")


def entropies(logits: Float[Tensor, "n c"]) -> Float[Tensor, "n"]:
    """H(softmax z) of each row, in nats; ∂H/∂z_j = −p_j (log p_j + H)."""
    log = torch.log_softmax(logits, dim=-1)
    found: Tensor = -(log.exp() * log).sum(-1)
    return found


def entropy(logits: Float[Tensor, "n c"]) -> Float[Tensor, ""]:
    """The mean of the rows' entropies."""
    return entropies(logits).mean()


def teacher(logits: Float[Tensor, "n c"], soft: Float[Tensor, "n c"]) -> Float[Tensor, ""]:
    """Cross-entropy to soft labels."""
    found: Tensor = -(soft * torch.log_softmax(logits, dim=-1)).sum(-1).mean()
    return found


def infomax(logits: Float[Tensor, "n c"]) -> Float[Tensor, ""]:
    """Mean entropy minus the entropy of the mean prediction."""
    mean = torch.softmax(logits, dim=-1).mean(0)
    found: Tensor = entropy(logits) + torch.special.xlogy(mean, mean).sum()
    return found


def terms_of(text: str) -> dict[str, float]:
    """`teacher+0.5*infomax` as weights by name.

    >>> terms_of("teacher+0.5*infomax")
    {'teacher': 1.0, 'infomax': 0.5}

    Raises:
        InputError: an unknown name, one that comes twice, or a weight that is not positive and finite.
    """
    found: dict[str, float] = {}
    for term in re.split(r"(?<![eE])\+", text.replace(" ", "")):
        match = _TERM.match(term)
        name = match[2] if match else term
        try:
            weight = float(match[1]) if match and match[1] else 1.0
        except ValueError:
            weight = math.nan
        if name not in NAMES or name in found or not 0 < weight < math.inf:
            raise InputError(
                f"objective {text!r}: {term!r} is none of {', '.join(NAMES)}, alone or with a positive weight "
                "like 0.5*infomax, each once, joined by +"
            )
        found[name] = weight
    return found


class Composed:
    """A weighted sum of the objectives.

    Args:
        terms: weights by name.
        soft: the teacher's probabilities, (rows, labels) in the rows' order; needed for `teacher` alone.
        temperature: logits are divided by it; a teacher's probabilities are taken as they are given.
        confident: share of a batch that counts, in (0, 1]: the rows of the lowest entropy, ties by position.

    Raises:
        InputError: `teacher` without soft labels; a temperature or share out of range.
    """

    def __init__(
        self,
        terms: Mapping[str, float],
        *,
        soft: np.ndarray[Any, Any] | None = None,
        temperature: float = 1.0,
        confident: float = 1.0,
    ) -> None:
        if "teacher" in terms and soft is None:
            raise InputError(
                "the objective teacher needs soft labels: the sources' mean probabilities, or a model's"
            )
        if not 0 < temperature < math.inf or not 0 < confident <= 1:
            raise InputError(
                f"temperature {temperature} must be positive and finite, the confident share {confident} in (0, 1]"
            )
        self._terms, self._temperature, self._confident = dict(terms), temperature, confident
        self._soft = None if soft is None else torch.from_numpy(np.asarray(soft))

    def __call__(self, logits: Tensor, rows: Rows) -> Tensor:
        """The loss of a batch."""
        scaled = logits / self._temperature
        chosen = self._chosen(scaled)
        total = torch.zeros((), dtype=logits.dtype, device=logits.device)
        for name, weight in self._terms.items():
            if name == "teacher":
                assert self._soft is not None
                soft = self._soft[torch.from_numpy(rows)].to(scaled)
                total = total + weight * teacher(scaled[chosen], soft[chosen])
            else:
                total = total + weight * (entropy if name == "entropy" else infomax)(scaled[chosen])
        return total

    def _chosen(self, scaled: Tensor) -> Tensor | slice:
        if self._confident == 1:
            return slice(None)
        count = max(1, math.ceil(self._confident * len(scaled)))
        return torch.argsort(entropies(scaled.detach()), stable=True)[:count]
