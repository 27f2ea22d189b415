"""Precision of forward passes."""

import pytest
import torch

from langmerge.models import autocast_for_gradients
from tests.tiny import xlm_roberta

CPU = torch.device("cpu")


@pytest.mark.parametrize("bf16", [True, False])
def test_attention_is_plain_only_where_bfloat16_gradients_are_taken(bf16: bool) -> None:
    before = torch.backends.cuda.flash_sdp_enabled()
    with autocast_for_gradients(CPU, bf16):
        assert torch.is_autocast_enabled("cpu") is bf16
        assert torch.backends.cuda.flash_sdp_enabled() is (before and not bf16)
    assert torch.backends.cuda.flash_sdp_enabled() is before


def test_gradients_are_those_of_float32_to_the_precision_of_bfloat16() -> None:
    ids = torch.tensor([[0, 5, 9, 17, 2], [0, 8, 4, 2, 1]])
    mask = (ids != 1).long()
    found = []
    for bf16 in (True, False):
        model = xlm_roberta("classifier")
        with autocast_for_gradients(CPU, bf16):
            logits = model(input_ids=ids, attention_mask=mask).logits
        logits.float().square().sum().backward()
        found.append(model.roberta.encoder.layer[0].attention.self.query.weight.grad)
    assert float(found[1].norm()) > 0
    assert float((found[0] - found[1]).norm() / found[1].norm()) < 0.05
