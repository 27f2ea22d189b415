"""Coefficients from Gram matrices."""

import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from langmerge.methods import METHODS, checked_parameters
from langmerge.methods.measures import GRAM, measured
from langmerge.methods.mixing import MIXINGS, angle_over_sine, mixing_of
from langmerge.methods.specs import sees_of

from .conftest import experts


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-13) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "cosine", [1.0, 1 + 1e-16, 1 - 1e-9, 1 - 1e-4 - 1e-12, 1 - 1e-4 + 1e-12, 0.9, 0.0, -0.99]
)
def test_an_angle_over_its_sine(cosine: float) -> None:
    found = angle_over_sine(np.array([cosine]), xp=np)[0]
    angle = np.arctan2(np.sqrt(abs(1 - cosine) * (1 + cosine)), cosine)
    assert found == pytest.approx(angle / np.sin(angle) if angle else 1.0, rel=1e-14)


@pytest.mark.parametrize(
    ("name", "n", "parameters"),
    [
        ("slerp", 2, {}),
        ("slerp", 2, {"t": 0.3, "about": "base"}),
        ("slerp", 2, {"eps": 2.0}),
        ("nuslerp", 2, {"about": "base"}),
        ("nuslerp", 2, {"t": 0.3}),
        ("multislerp", 4, {"about": "base"}),
        ("multislerp", 4, {"normalize": False}),
        ("karcher", 4, {}),
        ("karcher", 4, {"about": "base", "max_iter": 3, "tol": 1e-9}),
        ("model_stock", 4, {}),
        ("directional_consensus", 4, {"alpha": 0.5}),
    ],
)
def test_coefficients_need_the_gram_alone(name: str, n: int, parameters: Mapping[str, Any]) -> None:
    base, tuned, weights = experts((6, 5), n, seed=3)
    found = mixing_of(name, checked_parameters(name, parameters))
    assert found is not None
    about, mixing = found
    gram = measured((GRAM,), base, tuned, weights, about=about)["gram"]
    by_numpy = mixing(gram.numpy(), weights.numpy(), xp=np)
    assert by_numpy.dtype == np.float64
    close(torch.from_numpy(by_numpy), mixing(gram, weights, xp=torch), 1e-14)
    vectors = tuned - base if about == "base" else tuned
    expected = torch.einsum("n,nij->ij", torch.from_numpy(by_numpy), vectors)
    close(METHODS[name](base, tuned, weights, **parameters), expected + (base if about == "base" else 0))


def test_where_there_are_no_coefficients() -> None:
    assert mixing_of("ties", {}) is None
    assert mixing_of("model_stock", {"filter_wise": True}) is None
    assert mixing_of("nuslerp", {"flatten": False}) is None
    assert (sees_of("nuslerp", {}), sees_of("nuslerp", {"flatten": False})) == ("entry", "row")
    assert (sees_of("model_stock", {}), sees_of("ties", {}), sees_of("wudi", {})) == (
        "entry",
        "entry",
        "tensor",
    )
    assert all(sees_of(name, {}) == "entry" for name in MIXINGS)


def test_coefficients_need_no_torch() -> None:
    code = "import sys, numpy, langmerge.methods.mixing as m; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    code = "import sys, langmerge.methods.spherical; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 1
