"""Methods that average what sources share and keep what one source alone changed: RAM and RAM+."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from langmerge.methods.averages import deltas, weighted_sum
from langmerge.methods.measures import Known, Measure, Sum, measured
from langmerge.methods.specs import require, require_weights


def ram(
    base: Float[Tensor, "*S"],
    tuned: Float[Tensor, "N *S"],
    weights: Float[Tensor, "N"],
    *,
    epsilon: float = 1e-5,
    scale: float = 1.0,
) -> Float[Tensor, "*S"]:
    """The mean over the sources that changed an entry; where that is one alone, its change in full.

    θ = θ_0 + s Σ w_i m_i τ_i / Σ w_i m_i,  m_i = [|τ_i| > ε]

    Args:
        base: θ_0.
        tuned: θ_i.
        weights: w_i, not negative; only their ratios matter, and only where several sources changed an entry.
        epsilon: ε; an entry that changed by no more than this counts as unchanged, and stays the base's.
        scale: s.

    Raises:
        MethodError: `epsilon` out of range or a negative weight.

    Source:
        Yuan et al. 2026, Behavior knowledge merge in reinforced agentic models (RAM).

    Conventions:
        The paper and mergekit have no weights: equal ones are the same. The paper's task vectors come from reinforcement
        learning, which leaves most entries as they were; after plain fine-tuning nearly all are changed by every
        source, and RAM is the mean.
    """
    require("ram", epsilon=epsilon)
    require_weights("ram", weights.tolist())
    tau = deltas(base, tuned)
    return base + scale * _mean_of_changes(tau, tau.abs() > epsilon, weights)


def ramplus(
    base: Float[Tensor, "*S"],
    tuned: Float[Tensor, "N *S"],
    weights: Float[Tensor, "N"],
    *,
    r: float = 0.1,
    alpha: float = 0.2,
    epsilon: float = 1e-5,
    scale: float = 1.0,
    known: Known | None = None,
) -> Float[Tensor, "*S"]:
    """RAM, with what a source alone changed scaled up by how much of the source is averaged away elsewhere.

    θ = θ_0 + s Σ w_i l_i m_i τ_i / Σ w_i m_i,  m_i = [|τ_i| > ε],
    l_i = 1 + r min(ρ_i, α) where no other source changed the entry, else 1,
    ρ_i = (entries of source i that others changed too) / (entries that it alone changed)

    Args:
        base: θ_0.
        tuned: θ_i.
        weights: w_i, as in `ram`.
        r: strength of the scaling, at least 0.
        alpha: largest ρ that counts, at least 0.
        epsilon: ε, as in `ram`.
        scale: s.
        known: `changed` (N, 2) int64, each source's entries that others changed too, and that it alone changed,
            where this is a chunk of a tensor.

    Raises:
        MethodError: a parameter out of range or a negative weight.

    Source:
        Yuan et al. 2026, Behavior knowledge merge in reinforced agentic models (RAM+).

    Conventions:
        ρ is of one tensor, as in mergekit's `ramplus_tl`; the paper counts over the whole model. A source that changed
        nothing alone has no entry to scale. Weights as in `ram`.
    """
    require("ramplus", r=r, alpha=alpha, epsilon=epsilon)
    require_weights("ramplus", weights.tolist())
    tau = deltas(base, tuned)
    changed = tau.abs() > epsilon
    found = measured((_CHANGED,), base, tuned, weights, epsilon=epsilon) if known is None else known
    shared, alone = found["changed"].double().T
    raised = 1 + r * (shared / alone.clamp(min=1)).clamp(max=alpha)
    by_source = raised.to(tau).reshape(-1, *[1] * base.ndim)
    return base + scale * _mean_of_changes(
        torch.where(_alone(changed), by_source * tau, tau), changed, weights
    )


def _mean_of_changes(
    tau: Float[Tensor, "N *S"], changed: Bool[Tensor, "N *S"], weights: Float[Tensor, "N"]
) -> Float[Tensor, "*S"]:
    """Σ w_i m_i τ_i / Σ w_i m_i; 0 where nothing changed."""
    total = weighted_sum(weights, changed.to(tau))
    # 0 × NaN is NaN: what is not finite shows although it does not compare as changed.
    return weighted_sum(weights, changed * tau) / torch.where(total == 0, 1.0, total)


def _alone(changed: Bool[Tensor, "N *S"]) -> Bool[Tensor, "N *S"]:
    return changed & (changed.sum(0) == 1)


def _counts(
    base: Float[Tensor, "*S"],
    tuned: Float[Tensor, "N *S"],
    weights: Float[Tensor, "N"],  # noqa: ARG001
    known: Known,  # noqa: ARG001
    *,
    epsilon: float,
    **_: Any,
) -> Int[Tensor, "N 2"]:
    changed = deltas(base, tuned).abs() > epsilon
    alone = _alone(changed)
    entries = [(changed & ~alone).reshape(len(tuned), -1), alone.reshape(len(tuned), -1)]
    return torch.stack([one.sum(1) for one in entries], dim=1)


_CHANGED = Sum(_counts, lambda total, *_, **__: {"changed": total})


def _counted(**_: Any) -> tuple[Measure, ...]:
    return (_CHANGED,)


MEASURES = {"ramplus": _counted}
