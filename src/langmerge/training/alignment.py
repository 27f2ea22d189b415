"""Labels in their expected proportions: one number per label, added to a head's bias, moves a model's mean prediction
on unlabelled text to a prior.

A model that reads a language poorly falls back on few labels. Which labels it neglects shows without labels, where their
shares are known: from the sources' training text, say. Sources: Saerens et al. 2002 (priors that changed), Berthelot et al.
2020 (ReMixMatch: distribution alignment).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import minimize
from scipy.special import logsumexp, softmax

from langmerge.errors import CheckpointError, InputError, TrainingError
from langmerge.training.diagnostics import check_finite

TEMPERATURE = 0.5
"""Predictions are averaged as softmax(z / T): between probabilities (1) and counted labels (0). On dev of four languages
0.5 gave 0.3 points more than 1, and 0.25 as much as 0.5."""

STEPS = 1_000
"""Most steps of the search for a bias; MASSIVE's 60 labels take about 30."""

_FLOOR = 1e-4
"""Added to the mean prediction, so that a label that is never predicted keeps a share."""


def ordered_prior(prior: Mapping[str, float], names: Sequence[str]) -> Float[np.ndarray, "c"]:
    """A prior in the order of a model's logits, its sum 1.

    Args:
        prior: a positive number for each label: shares or counts.
        names: the model's labels.

    Raises:
        InputError: a label lacks a share, or has one and is not the model's, or a share is not positive and finite.
    """
    if unknown := sorted(set(prior) ^ set(names)):
        where = "the prior" if unknown[0] in prior else "the model"
        raise InputError(
            f"prior and model have other labels: {', '.join(unknown[:5])}{' …' if len(unknown) > 5 else ''} "
            f"(the first is only in {where})"
        )
    shares = np.array([prior[name] for name in names], dtype=np.float64)
    if not (np.isfinite(shares).all() and (shares > 0).all()):
        raise InputError("every share of a prior must be positive and finite: add 1 to counts that may be 0")
    return np.asarray(shares / shares.sum())


def aligning_bias(
    logits: Float[np.ndarray, "n c"], prior: Float[np.ndarray, "c"], strength: float
) -> Float[np.ndarray, "c"]:
    """The b, with mean 0, for which mean softmax((z + b) / T) over rows is m^(1 − strength) · prior^strength, normalised.

    m is the mean prediction as it is. b is the only minimum of the convex T · mean logsumexp((z + b) / T) − goal · b.

    Args:
        logits: on unlabelled text.
        prior: sums to 1.
        strength: 0 leaves the model as it is; 1 believes the prior wholly.

    Raises:
        TrainingError: logits are not finite, or the minimum is not found.
    """
    check_finite(logits)
    z = logits.astype(np.float64) / TEMPERATURE
    mean = softmax(z, axis=1).mean(0) + _FLOOR
    goal = (mean / mean.sum()) ** (1 - strength) * prior**strength
    goal /= goal.sum()

    def value(b: np.ndarray) -> tuple[float, np.ndarray]:
        moved = z + b
        whole = logsumexp(moved, axis=1, keepdims=True)
        return float(whole.mean() - goal @ b), np.exp(moved - whole).mean(0) - goal

    found = minimize(
        value, np.zeros(len(goal)), jac=True, method="L-BFGS-B", options={"maxiter": STEPS, "gtol": 1e-7}
    )
    if not found.success:
        raise TrainingError(f"no bias reaches the prior: {found.message} (after {found.nit} steps)")
    bias = found.x * TEMPERATURE
    return np.asarray(bias - bias.mean())


def distance(logits: Float[np.ndarray, "n c"], prior: Float[np.ndarray, "c"]) -> float:
    """Total variation between the mean of softmax(z / T) and a prior, in [0, 1]."""
    mean = softmax(logits.astype(np.float64) / TEMPERATURE, axis=1).mean(0)
    return float(np.abs(mean - prior).sum() / 2)


def head_bias(model: Any, row: Sequence[int]) -> torch.Tensor:
    """The parameter that is added to the logits: Σ w_j z_j has the gradient w in it, for any w.

    Args:
        model: a classifier, or one with an adapter.
        row: token ids of a text.

    Raises:
        CheckpointError: there is none, or it is not among what an adapter keeps.
    """
    labels = model.config.num_labels
    device = next(model.parameters()).device
    named = [(name, p) for name, p in model.named_parameters() if p.shape == (labels,)]
    wants = [p.requires_grad for _, p in named]
    weights = torch.linspace(0.5, 1.5, labels, device=device)
    try:
        for _, parameter in named:
            parameter.requires_grad_(True)
        with torch.enable_grad():
            logits = model(input_ids=torch.tensor([list(row)], device=device)).logits[0].float()
            gradients = (
                torch.autograd.grad(logits @ weights, [p for _, p in named], allow_unused=True)
                if named
                else ()
            )
    finally:
        for (_, parameter), wanted in zip(named, wants, strict=True):
            parameter.requires_grad_(wanted)
    for (name, parameter), gradient in zip(named, gradients, strict=True):
        if gradient is not None and torch.allclose(gradient.to(weights), weights, atol=1e-4):
            if hasattr(model, "peft_config") and ".modules_to_save." not in name:
                raise CheckpointError(
                    f"the adapter does not keep the head's bias {name}: a prior cannot move it; train the head with it"
                )
            found: torch.Tensor = parameter
            return found
    raise CheckpointError("the model's head adds no bias to its logits: a prior has nothing to move")
