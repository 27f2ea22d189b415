"""The diagonal Fisher against formulas, a naive loop, and itself after an interruption."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from langmerge.engine.statistics import open_statistics
from langmerge.errors import CheckpointError, InputError
from langmerge.learned.fisher import KINDS, fisher_diagonal
from langmerge.learned.steps import peak_memory
from tests.tiny import xlm_roberta

TEXTS = [[0, 5, 9, 5, 2], [0, 7, 2], [0, 11, 12, 13, 5, 2], [0, 30, 2]]
LABELS = [2, 0, 1, 1]
WORDS = "roberta.embeddings.word_embeddings.weight"


class Softmax(nn.Module):
    """Mean of the looked-up rows, then one layer."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(3)
        self.table = nn.Embedding(40, 4, _weight=torch.randn(40, 4, generator=draw).double())
        self.layer = nn.Linear(4, 3).double()
        with torch.no_grad():
            self.layer.weight.copy_(torch.randn(3, 4, generator=draw))
            self.layer.bias.copy_(torch.randn(3, generator=draw))

    def get_input_embeddings(self) -> nn.Embedding:
        return self.table

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:  # noqa: ARG002
        return SimpleNamespace(logits=self.layer(self.table(input_ids).mean(1)))


def naive(model: Any, kind: str, labels: Any = None) -> dict[str, Tensor]:
    """Every gradient of every text and label by itself."""
    found = {name: torch.zeros_like(one) for name, one in model.named_parameters()}
    parameters = list(model.parameters())
    for row, text in enumerate(TEXTS):
        ids = torch.tensor([text])
        known = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].log_softmax(0)
        for y in range(3) if kind == "exact" else [labels[row]]:
            share = float(known[y].detach().exp()) if kind == "exact" else 1.0
            gradients = torch.autograd.grad(known[y], parameters, retain_graph=True, allow_unused=True)
            for name, one in zip(found, gradients, strict=True):
                if one is not None:
                    found[name] += share * one.detach() ** 2 / len(TEXTS)
    return found


def test_one_layer_by_hand() -> None:
    """∂ log p_y / ∂W = (1_y − p) xᵀ, whose square has the expectation p_j (1 − p_j) x_k²."""
    model = Softmax()
    found = fisher_diagonal(model, TEXTS, kind="exact")
    weight, bias = np.zeros((3, 4)), np.zeros(3)
    for text in TEXTS:
        x = model.table.weight[text].mean(0).detach().numpy()
        p = model.layer(torch.from_numpy(x)).softmax(0).detach().numpy()
        weight += np.outer(p * (1 - p), x**2) / len(TEXTS)
        bias += p * (1 - p) / len(TEXTS)
    np.testing.assert_allclose(found["layer.weight"], weight, rtol=1e-12)
    np.testing.assert_allclose(found["layer.bias"], bias, rtol=1e-12)


def test_the_given_label_by_hand() -> None:
    model = Softmax()
    found = fisher_diagonal(model, TEXTS[:1], kind="empirical", labels=[2])
    x = model.table.weight[TEXTS[0]].mean(0)
    p = model.layer(x).softmax(0)
    off = torch.eye(3).double()[2] - p
    expected = torch.outer(off, x).square().detach().numpy()
    np.testing.assert_allclose(found["layer.weight"], expected, rtol=1e-12)
    # Piece 5 stands twice in five: its gradient is twice that of piece 9, the square four times.
    assert found["table.weight"][5] == pytest.approx(4 * found["table.weight"][9], rel=1e-12)
    by_row = (off @ model.layer.weight / 5).square().detach().numpy()
    np.testing.assert_allclose(found["table.weight"][9], by_row, rtol=1e-12)


@pytest.mark.parametrize("kind", ["exact", "empirical"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_transformer_against_a_naive_loop(kind: str, dtype: torch.dtype) -> None:
    model = xlm_roberta("classifier").to(dtype)
    labels = LABELS if kind == "empirical" else None
    found = fisher_diagonal(model, TEXTS, kind=kind, labels=labels)
    expected = naive(model.double(), kind, labels)
    assert found.keys() == expected.keys()
    for name, one in expected.items():
        assert found[name].shape == tuple(one.shape)
        scale = float(one.abs().max())
        tolerance = 1e-12 if dtype == torch.float64 else 1e-5
        # The keys' biases have no gradient but for rounding: softmax does not see them.
        least = 1e-14 if name.endswith("key.bias") else tolerance * scale
        np.testing.assert_allclose(found[name], one.numpy(), rtol=tolerance, atol=least, err_msg=name)
        assert scale > 1e-6 or name.endswith("key.bias"), name


def test_only_touched_rows_of_the_embedding() -> None:
    found = fisher_diagonal(xlm_roberta("classifier"), TEXTS, kind="exact")[WORDS]
    touched = sorted({piece for text in TEXTS for piece in text})
    assert np.flatnonzero(found.any(axis=1)).tolist() == touched
    # The padding piece has no gradient, as in training, even where it stands in a text.
    padded = fisher_diagonal(xlm_roberta("classifier"), [[0, 5, 1, 2]], kind="exact")[WORDS]
    assert not padded[1].any()
    assert padded[5].all()


class Scaled(nn.Embedding):
    """What some models have: no plain lookup."""

    def forward(self, ids: Tensor) -> Tensor:
        return 3 * super().forward(ids)


def test_an_embedding_that_is_no_plain_lookup() -> None:
    model = Softmax()
    model.table = Scaled(40, 4, _weight=model.table.weight.detach())
    found, expected = fisher_diagonal(model, TEXTS, kind="exact"), naive(model, "exact")
    np.testing.assert_allclose(found["table.weight"], expected["table.weight"].numpy(), rtol=1e-12)


def test_sampled_is_exact_in_the_mean() -> None:
    model = Softmax()
    exact = fisher_diagonal(model, TEXTS, kind="exact")["layer.weight"]
    many = fisher_diagonal(model, TEXTS * 500, kind="sampled", seed=5)["layer.weight"]
    np.testing.assert_allclose(many, exact, rtol=0.15)
    one = fisher_diagonal(model, TEXTS, kind="sampled", seed=5)["layer.weight"]
    again = fisher_diagonal(model, TEXTS, kind="sampled", seed=5)["layer.weight"]
    other = fisher_diagonal(model, TEXTS, kind="sampled", seed=6)["layer.weight"]
    assert one.tobytes() == again.tobytes() != other.tobytes()


def test_the_model_is_as_before() -> None:
    model = xlm_roberta("classifier").train()
    frozen = model.classifier.dense.weight
    frozen.requires_grad_(False)
    before = {name: one.clone() for name, one in model.state_dict().items()}
    found = fisher_diagonal(model, TEXTS, kind="sampled")
    # Without dropout, and of what is frozen too.
    assert not model.training
    assert found["classifier.dense.weight"].any()
    assert not frozen.requires_grad
    assert model.get_input_embeddings().weight.requires_grad
    assert all(one.grad is None for one in model.parameters())
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
    assert model.get_input_embeddings()._forward_hooks == {}


def test_gradients_are_freed_at_once() -> None:
    model = xlm_roberta("classifier")
    most = []

    def count(_: Tensor) -> None:
        most.append(sum(one.grad is not None for one in model.parameters()))

    hooks = [one.register_post_accumulate_grad_hook(count) for one in model.parameters()]
    fisher_diagonal(model, TEXTS[:1], kind="sampled")
    for hook in hooks:
        hook.remove()
    # This hook came first: it sees the gradient that has just come, and no other.
    assert len(most) > 30
    assert max(most) == 1


@contextmanager
def stopped(after: int, how: str) -> Iterator[Any]:
    """A progress that interrupts when so many texts are done."""
    done = 0

    @contextmanager
    def progress(_: str, total: int) -> Iterator[Any]:
        def advance(finished: int) -> None:
            nonlocal done
            done += finished
            if done == after and finished:
                if how == "signal":
                    signal.raise_signal(signal.SIGINT)
                else:
                    raise KeyboardInterrupt

        yield advance

    yield progress


@pytest.mark.parametrize("how", ["signal", "raised"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_run_goes_on_to_the_same_bytes(tmp_path: Path, kind: str, how: str) -> None:
    model, kept = xlm_roberta("classifier"), tmp_path / "kept.safetensors"
    given = {"kind": kind, "labels": LABELS if kind == "empirical" else None, "kept": kept, "identity": "m"}
    whole = fisher_diagonal(model, TEXTS, **{**given, "kept": None})
    with stopped(2, how) as progress, pytest.raises(KeyboardInterrupt):
        fisher_diagonal(model, TEXTS, **given, progress=progress)
    assert kept.exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    seen: list[int] = []

    @contextmanager
    def watching(_: str, total: int) -> Iterator[Any]:
        yield seen.append

    found = fisher_diagonal(model, TEXTS, **given, progress=watching)
    assert seen == [2, 1, 1]
    assert {name: one.tobytes() for name, one in found.items()} == {
        name: one.tobytes() for name, one in whole.items()
    }


@pytest.mark.parametrize(
    "change", [{"identity": "n"}, {"kind": "exact"}, {"seed": 1}, {"encoded": TEXTS[1:]}]
)
def test_what_was_kept_of_other_work_is_not_taken_up(tmp_path: Path, change: dict[str, Any]) -> None:
    model, kept = Softmax(), tmp_path / "kept.safetensors"
    with stopped(3, "raised") as progress, pytest.raises(KeyboardInterrupt):
        fisher_diagonal(model, TEXTS, kept=kept, progress=progress)
    seen: list[int] = []

    @contextmanager
    def watching(_: str, total: int) -> Iterator[Any]:
        yield seen.append

    given = {"encoded": TEXTS, **change}
    found = fisher_diagonal(model, **given, kept=kept, progress=watching)
    assert seen[0] == 0
    expected = fisher_diagonal(model, **given)
    assert all(found[name].tobytes() == expected[name].tobytes() for name in found)


def test_a_second_interrupt_inside_a_step_keeps_the_last_state(tmp_path: Path) -> None:
    model, kept = Softmax(), tmp_path / "kept.safetensors"
    whole = fisher_diagonal(model, TEXTS)
    calls = 0

    def impatient(_: Tensor) -> None:
        nonlocal calls
        calls += 1
        # Of the second text, one tensor's square is in by now.
        if calls == 4:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    hooks = [one.register_post_accumulate_grad_hook(impatient) for one in model.layer.parameters()]
    with pytest.raises(KeyboardInterrupt):
        fisher_diagonal(model, TEXTS, kept=kept, every=-1.0)
    for hook in hooks:
        hook.remove()
    assert open_statistics(kept).metadata["done"] == 1
    found = fisher_diagonal(model, TEXTS, kept=kept)
    assert all(found[name].tobytes() == whole[name].tobytes() for name in found)


def test_bad_input() -> None:
    model = Softmax()
    with pytest.raises(
        InputError, match="unknown kind of Fisher 'full': there are empirical, sampled, exact"
    ):
        fisher_diagonal(model, TEXTS, kind="full")
    with pytest.raises(InputError, match="a Fisher needs text: found no row"):
        fisher_diagonal(model, [])
    with pytest.raises(InputError, match="the empirical Fisher needs a label for each text: none were given"):
        fisher_diagonal(model, TEXTS, kind="empirical")
    with pytest.raises(InputError, match="the sampled Fisher looks at no labels: some were given"):
        fisher_diagonal(model, TEXTS, labels=LABELS)
    with pytest.raises(InputError, match="needs a label for each text: 2 for 4"):
        fisher_diagonal(model, TEXTS, kind="empirical", labels=[0, 1])
    model.layer.weight.data[0, 0] = torch.nan
    with pytest.raises(CheckpointError, match="the model gives NaN or infinity: its weights are broken"):
        fisher_diagonal(model, TEXTS)


def test_peak_memory_is_in_bytes() -> None:
    before = peak_memory()
    assert 10**7 < before < 10**12
    filled = np.ones(30_000_000)
    assert peak_memory() >= max(before, filled.nbytes)
