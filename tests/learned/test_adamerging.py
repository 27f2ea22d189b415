"""Learning coefficients: exact gradients, and what a run does when it goes on, ends early or goes wrong."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.func import functional_call

from langmerge.errors import InputError, TrainingError
from langmerge.learned.adamerging import Run, TextStream, learn
from langmerge.learned.deltas import HeldDeltas
from langmerge.learned.objectives import Composed, entropy
from langmerge.models import padded
from tests.learned.models import SOURCES, TEXT, Setup, drawn_taus, quick, tensors_of
from tests.tiny import xlm_roberta

KINDS = pytest.mark.parametrize("kind", ["model", "block", "tensor"])


def streamed_gradient(own: Setup, kind: str, *, freeze: frozenset[str] = frozenset()) -> np.ndarray:
    settings = quick(batch_size=24, held_out=0.0)
    run = Run(own.deltas, own.grouping(kind, freeze=freeze), [own.stream()], settings, "", None)
    with run.prepared():
        run.fill()
        run.backward(0)
    return run.dots


def autograd_gradient(own: Setup, kind: str) -> np.ndarray:
    """Through the merge, as everyone else does it."""
    groups = own.grouping(kind)
    free = torch.tensor(groups.initial(), requires_grad=True)
    at = {name: place for place, names in enumerate(groups.tensors) for name in names}
    merged = {
        name: own.base[name] + torch.einsum("k,k...->...", free[at[name]], own.taus[name])
        if name in at
        else own.base[name]
        for name in own.base
    }
    order = Run(own.deltas, groups, [own.stream()], quick(batch_size=24, held_out=0.0), "", None).batch(0)
    ids, mask = padded([TEXT[row] for row in order], pad_id=1)
    logits = functional_call(own.model, merged, (), {"input_ids": ids, "attention_mask": mask}).logits
    return torch.autograd.grad(entropy(logits), free)[0].numpy()


@KINDS
def test_the_gradient_is_that_of_autograd_through_the_merge(kind: str) -> None:
    own = Setup(double=True)
    found, expected = streamed_gradient(own, kind), autograd_gradient(own, kind)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-15)


def test_the_task_wise_gradient_is_the_sum_of_its_tensors() -> None:
    own = Setup(double=True)
    whole, parts = streamed_gradient(own, "model"), streamed_gradient(own, "tensor")
    assert len(parts) == len(tensors_of(own.model))
    np.testing.assert_allclose(whole[0], parts.sum(0), rtol=1e-12)


def test_gradients_leave_nothing_behind() -> None:
    own = Setup()
    streamed_gradient(own, "block")
    assert all(one.grad is None and one.requires_grad for one in own.model.parameters())


def test_equal_coefficients_are_the_same_model_in_any_groups() -> None:
    found = []
    for kind in ("model", "block", "tensor"):
        own = Setup()
        groups = own.grouping(kind)
        own.deltas.fill(groups.weights(groups.initial()))
        found.append({name: one.detach().clone() for name, one in own.parameters.items()})
    for name, one in found[0].items():
        assert all(torch.equal(one, other[name]) for other in found[1:])
        if name in own.taus:
            torch.testing.assert_close(one, own.base[name] + 0.3 * own.taus[name].sum(0), rtol=0, atol=1e-6)


@KINDS
def test_the_first_step_of_adam_is_the_learning_rate(kind: str) -> None:
    own = Setup()
    groups = own.grouping(kind)
    settings = quick(steps=1, lr=1e-3, check_every=1, anchor=0.0, held_out=0.0)
    found = learn(own.deltas, groups, [own.stream()], settings)
    moved = np.abs(found.values - groups.initial())
    # Adam divides by |g| + 1e-8.
    assert moved.max() <= 1e-3 * (1 + 1e-9)
    assert np.median(moved) == pytest.approx(1e-3, rel=1e-3)


def test_the_anchor_pulls_towards_the_start() -> None:
    ends = []
    for anchor in (0.0, 100.0):
        own = Setup()
        settings = quick(steps=12, lr=1e-2, anchor=anchor, held_out=0.0)
        ends.append(
            np.abs(learn(own.deltas, own.grouping("block"), [own.stream()], settings).values - 0.3).max()
        )
    assert ends[1] < 0.5 * ends[0]


def test_the_objective_falls() -> None:
    own = Setup()
    settings = quick(steps=40, lr=1e-2, anchor=0.0, held_out=0.0, batch_size=24, check_every=10)
    found = learn(own.deltas, own.grouping("tensor"), [own.stream()], settings)
    assert found.history[-1].loss < found.history[1].loss - 0.01


def test_same_seed_same_bytes_other_seed_other_bytes() -> None:
    def values(seed: int) -> bytes:
        own = Setup()
        return learn(own.deltas, own.grouping("block"), [own.stream()], quick(seed=seed)).values.tobytes()

    assert values(0) == values(0)
    assert values(0) != values(1)


def test_dropout_is_off_and_the_model_is_left_as_the_merge_of_what_was_learned() -> None:
    own = Setup()
    own.model.train()
    groups = own.grouping("block")
    found = learn(own.deltas, groups, [own.stream()], quick(held_out=0.0))
    assert not own.model.training
    left = {name: one.detach().clone() for name, one in own.parameters.items()}
    own.deltas.fill(groups.weights(found.values))
    assert all(torch.equal(one, own.parameters[name]) for name, one in left.items())


def test_a_frozen_head_stays_at_the_start() -> None:
    own = Setup()
    groups = own.grouping("block", freeze=frozenset({"head"}))
    start = groups.weights(groups.initial())
    learn(own.deltas, groups, [own.stream()], quick(lr=0.05))
    name = "classifier.out_proj.weight"
    assert name not in start
    torch.testing.assert_close(own.parameters[name].detach(), own.base[name])


def test_a_zero_task_vector_is_reported_inert_and_does_not_move() -> None:
    taus = drawn_taus(xlm_roberta("classifier", seed=3))
    for tau in taus.values():
        tau[1] = 0
    own = Setup(taus=taus)
    found = learn(own.deltas, own.grouping("model"), [own.stream()], quick(anchor=0.0))
    assert found.diagnostics["inert"] == {"model": ["fr-FR"]}
    assert found.values[0, 1] == 0.3
    assert found.values[0, 0] != 0.3


def test_held_out_rows_decide_when_it_ends_and_which_step_is_kept() -> None:
    own = Setup()
    calls = []

    def turning(logits: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
        # Looks are without gradient: the loss there gets worse after the second.
        if torch.is_grad_enabled():
            return entropy(logits)
        calls.append(len(rows))
        return torch.tensor([3.0, 1.0, 2.0, 2.5, 2.7, 9.0, 9.0][len(calls) - 1])

    settings = quick(steps=100, held_out=0.25, patience=3)
    found = learn(own.deltas, own.grouping("block"), [own.stream(turning)], settings)
    assert calls == [6] * 5
    assert (found.step, [one.step for one in found.history]) == (2, [0, 2, 4, 6, 8])
    np.testing.assert_array_equal(found.values, found.history[1].coefficients)


def test_held_out_rows_are_never_learned_on() -> None:
    own, seen, held = Setup(), set(), set()

    def noting(logits: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
        (seen if torch.is_grad_enabled() else held).update(rows.tolist())
        return entropy(logits)

    learn(own.deltas, own.grouping("model"), [own.stream(noting)], quick(steps=9, held_out=0.25, patience=9))
    assert len(held) == 6
    assert seen == set(range(24)) - held


def test_diagnostics_see_logits_that_merely_grow() -> None:
    taus = {
        name: torch.zeros_like(tau) for name, tau in drawn_taus(xlm_roberta("classifier", seed=3)).items()
    }
    base = dict(xlm_roberta("classifier", seed=3).named_parameters())
    for name in ("classifier.out_proj.weight", "classifier.out_proj.bias"):
        taus[name][:] = base[name].detach()
    own = Setup(taus=taus)
    settings = quick(steps=30, lr=0.05, anchor=0.0, freeze=(), held_out=0.25, patience=50)
    found = learn(own.deltas, own.grouping("model"), [own.stream()], settings)
    (line,) = found.diagnostics["streams"]
    # Every coefficient scales the head: entropy falls, and no label changes.
    assert line["flips"] == 0
    assert line["logit_norm_growth"] > 1.05
    assert line["entropy_after"] < line["entropy_before"]


def test_two_tasks_share_a_body_and_have_a_head_each() -> None:
    first, second = xlm_roberta("classifier", seed=3), xlm_roberta("classifier", seed=4, labels=("x", "y"))
    second.roberta = first.roberta
    body = {name: one for name, one in first.named_parameters() if name.startswith("roberta.encoder")}
    base = {name: one.detach().clone() for name, one in body.items()}
    taus = {name: tau for name, tau in drawn_taus(first).items() if name in body}
    deltas = HeldDeltas(body, base, taus, SOURCES)
    own = Setup()
    own.deltas = deltas
    groups, settings = own.grouping("block"), quick(batch_size=24, held_out=0.0)

    def gradient(models: list[Any]) -> np.ndarray:
        streams = [TextStream(model, TEXT, Composed({"entropy": 1.0})) for model in models]
        run = Run(deltas, groups, streams, settings, "", None)
        with run.prepared():
            run.fill()
            for at in range(len(models)):
                run.backward(at)
        return run.dots

    both = gradient([first, second])
    np.testing.assert_allclose(both, gradient([first]) + gradient([second]), rtol=1e-5, atol=1e-7)
    found = learn(
        deltas, groups, [TextStream(m, TEXT, Composed({"entropy": 1.0})) for m in (first, second)], settings
    )
    for line, labels in zip(found.diagnostics["streams"], (3, 2), strict=True):
        assert 0 < line["labels_before"] <= labels
    assert np.abs(found.values - groups.initial()).max() > 0


# ---- what goes wrong


def test_a_part_that_the_loss_does_not_depend_on() -> None:
    own = Setup()
    own.taus["unused"] = torch.ones(3, 2)
    own.model.unused = torch.nn.Parameter(torch.zeros(2))
    own.deltas = HeldDeltas(
        dict(own.model.named_parameters()), own.base | {"unused": torch.zeros(2)}, own.taus, SOURCES
    )
    with pytest.raises(TrainingError, match=r"coefficients of other get no gradient.*freeze that part"):
        learn(own.deltas, own.grouping("block"), [own.stream()], quick())


def test_an_objective_that_cuts_the_gradient() -> None:
    own = Setup()
    with pytest.raises(TrainingError, match="has no gradient in the model's weights"):
        learn(own.deltas, own.grouping("block"), [own.stream(lambda z, _: entropy(z.detach()))], quick())


def test_a_loss_without_slope() -> None:
    own = Setup()
    with pytest.raises(TrainingError, match="no coefficient has a gradient"):
        learn(own.deltas, own.grouping("block"), [own.stream(lambda z, _: 0 * z.sum())], quick())


def test_a_loss_that_is_not_finite_keeps_the_last_good_step(tmp_path: Path) -> None:
    own, calls = Setup(), []

    def breaking(logits: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
        calls.append(0)
        return entropy(logits) / (0.0 if len(calls) == 4 else 1.0)

    state = tmp_path / "state.json"
    with pytest.raises(TrainingError, match=r"step 4: the loss is inf.*up to step 3 is kept"):
        learn(
            own.deltas,
            own.grouping("block"),
            [own.stream(breaking)],
            quick(held_out=0.0),
            run="r",
            state=state,
        )
    kept = json.loads(state.read_text())
    assert kept["step"] == 3
    assert np.isfinite(kept["free"]).all()


@pytest.mark.parametrize("after", [1, 2, 5])
@pytest.mark.parametrize("preset", ["safe", "paper_layerwise"])
def test_an_interrupted_run_goes_on_to_the_same_bytes(tmp_path: Path, after: int, preset: str) -> None:
    def run(stop: int | None) -> Any:
        own, calls = Setup(), []

        def counting(logits: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
            if torch.is_grad_enabled():
                calls.append(0)
                if stop is not None and len(calls) > stop:
                    raise KeyboardInterrupt
            return entropy(logits)

        settings = quick(preset, steps=7, groups="block", lr=0.02)
        state = None if stop == -1 else tmp_path / "state.json"
        return learn(
            own.deltas, own.grouping("block"), [own.stream(counting)], settings, run="r", state=state
        )

    with pytest.raises(KeyboardInterrupt):
        run(after)
    assert json.loads((tmp_path / "state.json").read_text())["step"] == after
    resumed = run(None)
    (tmp_path / "state.json").unlink()
    straight = run(None)
    assert resumed.values.tobytes() == straight.values.tobytes()
    assert resumed.history == straight.history


@pytest.mark.parametrize("look", [1, 2, 3, 4])
def test_a_look_that_was_interrupted_is_made_up_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, look: int
) -> None:
    """Looks at 0, 2, 4 and 6, the last at the run's end."""
    real, looks = Run._look, []

    def run() -> Any:
        own = Setup()
        settings = quick("safe", steps=6, groups="block", lr=0.02, check_every=2)
        return learn(
            own.deltas,
            own.grouping("block"),
            [own.stream()],
            settings,
            run="r",
            state=tmp_path / "state.json",
        )

    def stopped(self: Run) -> None:
        looks.append(0)
        if len(looks) == look:
            raise KeyboardInterrupt
        real(self)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "_look", stopped)
        with pytest.raises(KeyboardInterrupt):
            run()
    resumed = run()
    (tmp_path / "state.json").unlink()
    straight = run()
    assert [one.step for one in straight.history] == [0, 2, 4, 6]
    assert resumed.history == straight.history
    assert (resumed.step, resumed.values.tobytes()) == (straight.step, straight.values.tobytes())


def test_a_state_of_another_run_is_refused(tmp_path: Path) -> None:
    own, state = Setup(), tmp_path / "state.json"
    learn(own.deltas, own.grouping("block"), [own.stream()], quick(), run="one", state=state)
    with pytest.raises(InputError, match=r"another run has left.*delete the file"):
        learn(own.deltas, own.grouping("block"), [own.stream()], quick(), run="two", state=state)
    state.write_text("{")
    with pytest.raises(InputError, match="delete it to begin anew"):
        learn(own.deltas, own.grouping("block"), [own.stream()], quick(), run="one", state=state)


def test_no_text() -> None:
    own = Setup()
    with pytest.raises(InputError, match="no text to learn on"):
        learn(
            own.deltas,
            own.grouping("block"),
            [TextStream(own.model, [], Composed({"entropy": 1.0}))],
            quick(),
        )
