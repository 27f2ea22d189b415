"""Where merged weights and the coefficients' gradients come from: mapped files, tensors in memory, or LoRA factors.

The gradient needs no autograd through the merge: θ(λ) = θ_0 + Σ λ_k τ_k is linear, so ∂L/∂λ_k = ⟨∂L/∂θ, τ_k⟩ exactly.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from langmerge.adapters.lora import Factors, norm
from langmerge.engine.resident import ResidentMerge
from langmerge.errors import InputError

Numbers = np.ndarray[Any, np.dtype[np.float64]]


class Deltas(Protocol):
    """Task vectors of K sources, and a model whose parameters are θ(λ).

    Attributes:
        sources: names, in the order of coefficients.
        tensors: names of the tensors that change with the coefficients, in a fixed order.
        norms: ‖τ_k‖ of every source, (K,), by tensor.
    """

    @property
    def sources(self) -> tuple[str, ...]: ...

    @property
    def tensors(self) -> tuple[str, ...]: ...

    @property
    def norms(self) -> Mapping[str, Numbers]: ...

    def fill(self, weights: Mapping[str, Sequence[float]]) -> None:
        """Put θ_0 + Σ λ_k τ_k into the model, for these tensors."""

    def dots(self, gradients: Mapping[str, Tensor]) -> dict[str, Numbers]:
        """⟨gradient, τ_k⟩ of every source, (K,), by tensor."""


class MappedDeltas:
    """Task vectors in mapped files, which are never held: the merge engine's kernels read them a chunk at a time.

    Args:
        merge: the resident merge that fills the model's parameters, which lie on the CPU.
    """

    def __init__(self, merge: ResidentMerge) -> None:
        self._merge = merge
        self.sources, self.tensors = merge.sources, merge.moving
        self.norms: Mapping[str, Numbers] = merge.norms

    def fill(self, weights: Mapping[str, Sequence[float]]) -> None:
        """See `Deltas`."""
        self._merge.fill(weights)

    def dots(self, gradients: Mapping[str, Tensor]) -> dict[str, Numbers]:
        """See `Deltas`."""
        return self._merge.dots({name: one.detach().numpy() for name, one in gradients.items()})


class HeldDeltas:
    """Task vectors in memory: any dtype and device. For GPUs, where they are faster held than read.

    Args:
        parameters: of the model, by name.
        base: θ_0.
        taus: τ of shape (K, *S), by name; bfloat16 will do.
        sources: their names.

    Raises:
        InputError: shapes that do not fit, or a tensor that the model or the base lacks.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        base: Mapping[str, Tensor],
        taus: Mapping[str, Tensor],
        sources: Sequence[str],
    ) -> None:
        self.sources, self._all = tuple(sources), {}
        for name, tau in taus.items():
            if name not in parameters or name not in base:
                raise InputError(f"tensor {name!r} of the task vectors is not in the model and the base")
            if (
                tau.shape != (len(self.sources), *base[name].shape)
                or parameters[name].shape != base[name].shape
            ):
                raise InputError(
                    f"tensor {name!r}: task vectors {tuple(tau.shape)} do not fit {len(self.sources)} sources of "
                    f"{tuple(base[name].shape)} and a model of {tuple(parameters[name].shape)}"
                )
            self._all[name] = (parameters[name], base[name], tau)
        self.norms: Mapping[str, Numbers] = {
            name: tau.double().flatten(1).norm(dim=1).cpu().numpy() for name, tau in taus.items()
        }
        self.tensors = tuple(name for name in taus if self.norms[name].any())

    @torch.no_grad()
    def fill(self, weights: Mapping[str, Sequence[float]]) -> None:
        """See `Deltas`."""
        for name, row in weights.items():
            parameter, base, tau = self._all[name]
            parameter.copy_(base)
            for weight, one in zip(row, tau, strict=True):
                parameter.add_(one.to(parameter), alpha=float(weight))

    @torch.no_grad()
    def dots(self, gradients: Mapping[str, Tensor]) -> dict[str, Numbers]:
        """See `Deltas`."""
        return {name: self._dots(name, one.detach().double().flatten()) for name, one in gradients.items()}

    def _dots(self, tensor: str, gradient: Tensor) -> Numbers:
        _, _, tau = self._all[tensor]
        return np.array([float(one.double().flatten() @ gradient) for one in tau])


class LoraDeltas:
    """Task vectors that are products: ⟨G, s B A⟩ = s ⟨Bᵀ G, A⟩, and none is ever multiplied out by itself.

    Args:
        parameters: of the model, by name.
        base: θ_0 (out, in), by name.
        factors: of every source, in order; None where a source has none for this tensor.
        sources: their names.

    Raises:
        InputError: factors that do not fit the tensor.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        base: Mapping[str, Tensor],
        factors: Mapping[str, Sequence[Factors | None]],
        sources: Sequence[str],
    ) -> None:
        self.sources, self._parameters, self._base = tuple(sources), parameters, base
        self._factors = factors
        for name, row in factors.items():
            for source, one in zip(self.sources, row, strict=True):
                if one and (one.b.shape[0], one.a.shape[1], one.b.shape[1]) != (
                    *base[name].shape,
                    one.a.shape[0],
                ):
                    raise InputError(
                        f"{source}: LoRA factors {tuple(one.b.shape)} × {tuple(one.a.shape)} do not fit {name!r} "
                        f"of shape {tuple(base[name].shape)}"
                    )
        self.norms: Mapping[str, Numbers] = {
            name: np.array([norm([one]) if one else 0.0 for one in row]) for name, row in factors.items()
        }
        self.tensors = tuple(name for name in factors if self.norms[name].any())

    @torch.no_grad()
    def fill(self, weights: Mapping[str, Sequence[float]]) -> None:
        """See `Deltas`: one product of all factors side by side, θ_0 + [λ_k s_k B_k …] [A_k; …]."""
        for name, row in weights.items():
            present = [(w, one) for w, one in zip(row, self._factors[name], strict=True) if one]
            left = torch.cat([float(weight) * one.scale * one.b for weight, one in present], 1)
            right = torch.cat([one.a for _, one in present])
            self._parameters[name].copy_(torch.addmm(self._base[name], left, right))

    @torch.no_grad()
    def dots(self, gradients: Mapping[str, Tensor]) -> dict[str, Numbers]:
        """See `Deltas`."""
        return {name: self._dots(name, one.detach()) for name, one in gradients.items()}

    def _dots(self, tensor: str, wide: Tensor) -> Numbers:
        return np.array(
            [
                one.scale * float(((one.b.to(wide).T @ wide).double() * one.a.double()).sum()) if one else 0.0
                for one in self._factors[tensor]
            ]
        )
