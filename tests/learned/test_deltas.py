"""Task vectors in memory and as LoRA factors."""

import pytest
import torch

from langmerge.adapters.lora import Factors
from langmerge.errors import InputError
from langmerge.learned.deltas import HeldDeltas, LoraDeltas
from tests.learned.models import SOURCES

NAME = "layer.weight"


def drawn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def lora(
    *, absent: int | None = None
) -> tuple[LoraDeltas, HeldDeltas, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    base = {NAME: drawn(5, 7, seed=0)}
    factors = [
        None if i == absent else Factors(drawn(rank, 7, seed=i + 1), drawn(5, rank, seed=i + 11), scale)
        for i, (rank, scale) in enumerate([(2, 0.5), (3, 2.0), (1, 0.25)])
    ]
    dense = torch.stack(
        [f.scale * f.b @ f.a if f else torch.zeros(5, 7, dtype=torch.float64) for f in factors]
    )
    thin, full = {NAME: base[NAME].clone()}, {NAME: base[NAME].clone()}
    own = LoraDeltas(thin, base, {NAME: factors}, SOURCES)
    return own, HeldDeltas(full, base, {NAME: dense}, SOURCES), thin, full


@pytest.mark.parametrize("absent", [None, 1])
def test_lora_gradients_and_weights_are_those_of_the_products(absent: int | None) -> None:
    own, held, thin, full = lora(absent=absent)
    g = drawn(5, 7, seed=99)
    torch.testing.assert_close(
        torch.from_numpy(own.dots({NAME: g})[NAME]),
        torch.from_numpy(held.dots({NAME: g})[NAME]),
        rtol=1e-12,
        atol=1e-12,
    )
    torch.testing.assert_close(
        torch.from_numpy(own.norms[NAME]), torch.from_numpy(held.norms[NAME]), rtol=1e-12, atol=1e-12
    )
    for one in (own, held):
        one.fill({NAME: [0.2, -0.4, 1.5]})
    torch.testing.assert_close(thin[NAME], full[NAME], rtol=1e-12, atol=1e-12)


def test_held_dots_by_hand() -> None:
    base = {NAME: torch.zeros(2)}
    own = HeldDeltas(
        {NAME: torch.zeros(2)}, base, {NAME: torch.tensor([[1.0, 2.0], [3.0, -1.0], [0.0, 0.0]])}, SOURCES
    )
    assert own.dots({NAME: torch.tensor([10.0, 100.0])})[NAME].tolist() == [210.0, -70.0, 0.0]


def test_task_vectors_may_be_bfloat16() -> None:
    exact = torch.tensor([[0.5, -0.25], [1.0, 2.0], [4.0, 0.0]])
    place = {NAME: torch.zeros(2)}
    own = HeldDeltas(place, {NAME: torch.ones(2)}, {NAME: exact.bfloat16()}, SOURCES)
    own.fill({NAME: [2.0, 1.0, 0.5]})
    assert place[NAME].tolist() == [5.0, 2.5]


def test_a_tensor_that_no_source_moves_is_left_out() -> None:
    own = HeldDeltas({"a": torch.zeros(2)}, {"a": torch.zeros(2)}, {"a": torch.zeros(3, 2)}, SOURCES)
    assert own.tensors == ()


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(InputError, match="do not fit"):
        HeldDeltas({NAME: torch.zeros(2)}, {NAME: torch.zeros(2)}, {NAME: torch.zeros(2, 2)}, SOURCES)
    with pytest.raises(InputError, match="not in the model"):
        HeldDeltas({}, {NAME: torch.zeros(2)}, {NAME: torch.zeros(3, 2)}, SOURCES)
    wrong = Factors(drawn(2, 6, seed=1), drawn(5, 2, seed=2), 1.0)
    with pytest.raises(InputError, match="LoRA factors"):
        LoraDeltas({NAME: drawn(5, 7, seed=0)}, {NAME: drawn(5, 7, seed=0)}, {NAME: [wrong]}, SOURCES[:1])
