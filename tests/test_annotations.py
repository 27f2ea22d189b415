"""The shape annotations run in the tests: without this, a changed conftest would switch them off unseen."""

import os
from collections.abc import Callable

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError

from langmerge.methods import METHODS
from langmerge.results import Logits
from langmerge.selection import TransferMatrix


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: METHODS["linear"](torch.zeros(3), torch.zeros(2, 4), torch.ones(2)),
        lambda: Logits("s", ("1", "2"), np.zeros(3, np.int64), np.zeros((2, 4), np.float32)),
        lambda: TransferMatrix(("de-DE",), ("sw-KE",), np.zeros((1, 1), np.float32), "dev"),
    ],
    ids=["methods", "results", "selection"],
)
def test_a_wrong_shape_or_dtype_is_an_error(wrong: Callable[[], object]) -> None:
    with pytest.raises(TypeCheckError, match="Type-check error"):
        wrong()


def test_the_suite_keeps_to_its_threads() -> None:
    assert torch.get_num_threads() == int(os.environ["OMP_NUM_THREADS"])
