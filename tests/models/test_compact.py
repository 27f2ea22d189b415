"""Cut-down embeddings: the same logits from fewer rows."""

import numpy as np
import torch

from langmerge.models import cut_embeddings, predict_logits, renumbered, used_rows
from tests.tiny import xlm_roberta

TEXT = [[0, 9, 30, 30, 2], [0, 14, 2]]


def test_rows_are_those_that_occur_and_all_up_to_the_padding() -> None:
    assert used_rows(TEXT, pad_id=1).tolist() == [0, 1, 2, 9, 14, 30]
    assert used_rows([], pad_id=1).tolist() == [0, 1]
    assert renumbered(TEXT, used_rows(TEXT, pad_id=1)) == [[0, 3, 5, 5, 2], [0, 4, 2]]


def test_logits_are_the_same() -> None:
    model = xlm_roberta("classifier")
    expected = predict_logits(model, TEXT, bf16=False)
    rows = used_rows(TEXT, pad_id=1)
    name = cut_embeddings(model, rows)
    assert name == "roberta.embeddings.word_embeddings.weight"
    assert dict(model.named_parameters())[name].shape == (6, 8)
    np.testing.assert_array_equal(predict_logits(model, renumbered(TEXT, rows), bf16=False), expected)


def test_gradients_are_the_same_rows() -> None:
    ids = torch.tensor([TEXT[0]])
    whole, cut = xlm_roberta("classifier"), xlm_roberta("classifier")
    rows = used_rows(TEXT, pad_id=1)
    cut_embeddings(cut, rows)
    for model, own in ((whole, ids), (cut, torch.tensor(renumbered([TEXT[0]], rows)))):
        model(input_ids=own).logits.square().sum().backward()
    expected = whole.get_input_embeddings().weight.grad
    torch.testing.assert_close(cut.get_input_embeddings().weight.grad, expected[torch.from_numpy(rows)])
