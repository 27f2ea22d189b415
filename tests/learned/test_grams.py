"""Grams of layer inputs against a naive loop; RegMean++ against what it is."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from langmerge.checkpoint import folder_signature, open_checkpoint
from langmerge.coefficients import Coefficients
from langmerge.engine import merge
from langmerge.engine.statistics import write_statistics
from langmerge.errors import CheckpointError, InputError
from langmerge.learned.grams import Grams, input_grams
from langmerge.learned.merged_grams import layer_list, merged_grams
from langmerge.models import load_classifier
from langmerge.recipe import Recipe
from tests.tiny import read_raw, write_expert, write_xlm_roberta, xlm_roberta

TEXTS = [[0, 5, 9, 5, 2], [0, 7, 2], [0, 11, 12, 13, 5, 2], [0, 30, 2], [0, 8, 8, 2]]
SOURCES = ("de-DE", "fr-FR", "sw-KE")
LAYER = "roberta.encoder.layer.{}."
QUERY, KEY, VALUE = (f"attention.self.{name}.weight" for name in ("query", "key", "value"))


def naive(model: Any, texts: Sequence[Sequence[int]] = TEXTS) -> dict[str, np.ndarray[Any, Any]]:
    """Every layer's inputs, text by text, so that there is no padding."""
    seen: dict[str, list[Tensor]] = {}
    hooks = [
        one.register_forward_pre_hook(
            lambda _, args, name=name: seen.setdefault(f"{name}.weight", []).append(
                args[0].detach().reshape(-1, args[0].shape[-1])
            )
        )
        for name, one in model.named_modules()
        if isinstance(one, nn.Linear)
    ]
    with torch.no_grad():
        for text in texts:
            model(input_ids=torch.tensor([text]), attention_mask=torch.ones(1, len(text), dtype=torch.int64))
    for hook in hooks:
        hook.remove()
    stacked = {name: torch.cat(rows).double() for name, rows in seen.items()}
    return {name: (rows.T @ rows / len(rows)).numpy() for name, rows in stacked.items()}


def whole(grams: Grams) -> dict[str, np.ndarray[Any, Any]]:
    return grams.tensors | {name: grams.tensors[owner] for name, owner in grams.shared.items()}


@pytest.mark.parametrize("batch_tokens", [1, 13, 2048])
def test_against_a_naive_loop(batch_tokens: int) -> None:
    model = xlm_roberta("classifier").train()
    found, expected = input_grams(model, TEXTS, batch_tokens=batch_tokens), naive(model.eval())
    assert whole(found).keys() == expected.keys()
    for name, one in expected.items():
        assert whole(found)[name].dtype == np.float32
        np.testing.assert_allclose(whole(found)[name], one, rtol=1e-4, atol=1e-6, err_msg=name)
    assert found.tokens == sum(map(len, TEXTS))
    assert found.tensors["classifier.dense.weight"].shape == (8, 8)
    assert found.tensors[LAYER.format(1) + "output.dense.weight"].shape == (16, 16)
    assert not any(one._forward_pre_hooks for one in model.modules())


def test_query_key_and_value_share_one_gram() -> None:
    found = input_grams(xlm_roberta("classifier"), TEXTS)
    assert found.shared == {
        LAYER.format(layer) + name: LAYER.format(layer) + QUERY for layer in (0, 1) for name in (KEY, VALUE)
    }


def test_the_same_call_gives_the_same_bytes() -> None:
    model = xlm_roberta("classifier")
    once, again = input_grams(model, TEXTS), input_grams(model, TEXTS)
    assert all(one.tobytes() == again.tensors[name].tobytes() for name, one in once.tensors.items())


class Twice(nn.Module):
    """One layer used twice, on flat tokens and on whole texts, and one that may stay unused."""

    def __init__(self, *, spare: bool = False, strange: bool = False) -> None:
        super().__init__()
        self.table = nn.Embedding(40, 3)
        self.layer = nn.Linear(3, 3, bias=False)
        self.spare = nn.Linear(3, 3) if spare else None
        self.strange = strange

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.table(input_ids)
        if self.strange:
            return self.layer(states[:, :1].expand(-1, 7, -1))
        first = self.layer(states.reshape(-1, 3)).reshape(states.shape)
        return self.layer((first * attention_mask[..., None]).sum(1))


def test_a_layer_that_is_used_twice() -> None:
    model = Twice()
    found = input_grams(model, TEXTS).tensors["layer.weight"]
    with torch.no_grad():
        tokens = torch.cat([model.table.weight[text] for text in TEXTS]).double()
        means = torch.stack([model.layer(model.table.weight[text]).sum(0) for text in TEXTS]).double()
    rows = torch.cat([tokens, means])
    np.testing.assert_allclose(found, (rows.T @ rows / len(rows)).numpy(), rtol=1e-5, atol=1e-6)


def test_bad_input() -> None:
    with pytest.raises(InputError, match="a Gram needs text: found no row"):
        input_grams(Twice(), [])
    with pytest.raises(InputError, match=r"no text reaches the layer of 'spare\.weight'"):
        input_grams(Twice(spare=True), TEXTS)
    with pytest.raises(
        InputError, match=r"the input of layer\.weight has the shape \(5, 7, 3\) for \(5, 6\) tokens"
    ):
        input_grams(Twice(strange=True), TEXTS)
    broken = Twice()
    broken.table.weight.data[5] = torch.inf
    with pytest.raises(CheckpointError, match=r"the input of layer\.weight holds NaN or infinity"):
        input_grams(broken, TEXTS)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and three experts of it."""
    root = tmp_path_factory.mktemp("sources")
    write_xlm_roberta(root / "base")
    for seed, name in enumerate(SOURCES, start=1):
        write_expert(root / name, root / "base", seed, scale=0.3)
    return root


WEIGHTS = Coefficients(values={"model": {"sw-KE": 0.5, "de-DE": 0.3, "fr-FR": 0.2}})
PARAMETERS = {"off_diagonal": 0.9, "ridge": 1e-3}


def measured(root: Path, kept: Path, **changes: Any) -> dict[str, Grams]:
    kept.mkdir(exist_ok=True)
    given: dict[str, Any] = {"coefficients": WEIGHTS, "parameters": PARAMETERS, "identity": "i", **changes}
    opened = {name: open_checkpoint(root / name) for name in SOURCES}
    texts = dict.fromkeys(SOURCES, TEXTS)
    return merged_grams(load_classifier(root / "de-DE", device="cpu"), opened, texts, kept=kept, **given)


def replayed(root: Path, found: dict[str, Grams], out: Path) -> Path:
    """The ordinary merge by these Grams."""
    out.mkdir()
    files = {}
    for name, one in found.items():
        files[name] = out / f"{name}.safetensors"
        model = folder_signature(root / name)
        write_statistics(files[name], one.tensors, kind="grams", model=model, shared=one.shared)
    recipe = Recipe(
        base=root / "base", sources={name: root / name for name in SOURCES}, method="regmean",
        parameters=PARAMETERS, coefficients=WEIGHTS, statistics=files, head="regmean",
    )  # fmt: skip
    return merge(recipe, out / "merged")


def test_regmean_plus_reads_what_the_merged_model_gives(sources: Path, tmp_path: Path) -> None:
    """Replayed by an ordinary merge, the merged model's own inputs are the ones that the Grams were taken of."""
    found = measured(sources, tmp_path / "kept")
    merged = load_classifier(replayed(sources, found, tmp_path / "out"), device="cpu")
    own = whole(input_grams(merged, TEXTS))
    plain = whole(input_grams(load_classifier(sources / "fr-FR", device="cpu"), TEXTS))
    for name, one in found.items():
        assert whole(one).keys() == own.keys()
        assert one.tokens == sum(map(len, TEXTS))
        for layer in (0, 1):
            query = LAYER.format(layer) + QUERY
            np.testing.assert_allclose(one.tensors[query], own[query], rtol=1e-3, atol=1e-5, err_msg=name)
            assert whole(one)[LAYER.format(layer) + VALUE] is one.tensors[query]
        dense = "classifier.dense.weight"
        np.testing.assert_allclose(one.tensors[dense], own[dense], rtol=1e-3, atol=1e-5)
    last = LAYER.format(1) + QUERY
    assert not np.allclose(found["fr-FR"].tensors[last], plain[last], rtol=1e-2)


def test_inside_a_layer_inputs_are_the_sources_own(sources: Path, tmp_path: Path) -> None:
    """In the first layer: the merged embeddings through the source's layer. In the head: through the source's head."""
    found = measured(sources, tmp_path / "kept")
    merged = read_raw(replayed(sources, found, tmp_path / "out"))
    for name in SOURCES:
        own = read_raw(sources / name)
        for part, names in (
            ("layer.0.", ["attention.output.dense", "intermediate.dense", "output.dense"]),
            ("classifier.", ["out_proj"]),
        ):
            model = xlm_roberta("classifier")
            model.load_state_dict({n: own[n] if part in n else one for n, one in merged.items()})
            expected = naive(model)
            for layer in names:
                weight = (LAYER.format(0) if "layer" in part else part) + f"{layer}.weight"
                np.testing.assert_allclose(
                    found[name].tensors[weight], expected[weight], rtol=1e-3, atol=1e-5, err_msg=weight
                )
    inner = LAYER.format(0) + "output.dense.weight"
    assert not np.allclose(found["de-DE"].tensors[inner], found["fr-FR"].tensors[inner], rtol=1e-2)


def test_regmean_plus_goes_on_where_it_stopped(sources: Path, tmp_path: Path) -> None:
    expected = measured(sources, tmp_path / "whole")
    left = 4

    @contextmanager
    def progress(_: str, total: int) -> Iterator[Any]:
        def advance(finished: int) -> None:
            nonlocal left
            left -= finished
            if left == 0:
                raise KeyboardInterrupt

        assert total == 9
        yield advance

    with pytest.raises(KeyboardInterrupt):
        measured(sources, tmp_path / "kept", progress=progress)
    kept = sorted(one.name for one in (tmp_path / "kept").iterdir())
    assert kept == [f"{name}.0.safetensors" for name in SOURCES[:1]] + ["de-DE.1.safetensors"] + [
        f"{name}.0.safetensors" for name in SOURCES[1:]
    ]
    times = {one: (tmp_path / "kept" / one).stat().st_mtime_ns for one in kept}
    found = measured(sources, tmp_path / "kept")
    assert all((tmp_path / "kept" / one).stat().st_mtime_ns == then for one, then in times.items())
    for name in SOURCES:
        assert {n: one.tobytes() for n, one in found[name].tensors.items()} == {
            n: one.tobytes() for n, one in expected[name].tensors.items()
        }
    with pytest.raises(CheckpointError, match="was kept of other work: remove the folder"):
        measured(sources, tmp_path / "kept", identity="other")


def test_what_regmean_plus_cannot_run(sources: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(sources, tmp_path / "sources"))
    shutil.rmtree(root / "fr-FR")
    write_xlm_roberta(root / "fr-FR", labels=("alarm", "music"))
    with pytest.raises(
        CheckpointError, match=r"source fr-FR has another shape of 'classifier\.out_proj\.weight'"
    ):
        measured(root, tmp_path / "kept")
    shutil.rmtree(root / "fr-FR")
    write_xlm_roberta(root / "fr-FR", "encoder")
    with pytest.raises(CheckpointError, match=r"source fr-FR has no tensor .classifier"):
        measured(root, tmp_path / "kept")
    with pytest.raises(
        InputError, match="RegMean\\+\\+ goes layer by layer, and a Twice has no list of layers"
    ):
        layer_list(Twice())
    with pytest.raises(InputError, match="a Gram needs text"):
        merged_grams(Twice(), {}, {"a": []}, coefficients=WEIGHTS, parameters={}, kept=tmp_path)
