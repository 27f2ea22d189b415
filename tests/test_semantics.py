"""Tests for each rule of merging that published code is known to break; rules 6 to 9 are in test_semantics_of_studies."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from langmerge.coefficients import Coefficients
from langmerge.engine import make_plan, merge, merged_tensors
from langmerge.errors import PlanError, RecipeError
from langmerge.evaluate import Evaluator, transfer_matrix
from langmerge.experiments.board import TargetBoard
from langmerge.experiments.candidates import Candidate, CandidateScorer
from langmerge.experiments.grid import Grid, MethodChoice
from langmerge.experiments.places import Place, places
from langmerge.methods import METHODS, SPECS
from langmerge.models import load_classifier, new_classifier
from langmerge.pool import Expert, Pool
from langmerge.recipe import Recipe
from langmerge.results import Logits
from langmerge.selection import TransferMatrix, select_sources
from langmerge.tasks import Examples, Task
from langmerge.training import Training, train_pool
from tests.stand_ins import DEV, EXPERTS, ROWS, SOURCES, TARGET, FakeEvaluator, answers, fake_evaluator
from tests.tiny import (
    HEAD,
    LABELS,
    QUERY,
    SHAPES,
    Tensors,
    permuted,
    read_raw,
    write_expert,
    write_raw,
    write_raw_pool,
    write_xlm_roberta,
)
from tests.tiny_encoder import WORDS, write_tiny_encoder

EVERY_METHOD: dict[str, dict[str, Any]] = {
    "breadcrumbs": {"density": 0.9, "gamma": 0.0},
    "breadcrumbs_ties": {"density": 0.9, "gamma": 0.0},
    "consensus": {"k": 1, "lambda_": 0.0},
    "dare_linear": {"density": 0.9},
    "dare_ties": {"density": 0.9},
    "della_linear": {"density": 0.9, "epsilon": 0.05},
    "della_ties": {"density": 0.9, "epsilon": 0.05},
    "directional_consensus": {"alpha": 0.5},
    "gram": {"mix": 0.0},
    "iso_c": {},
    "iso_cts": {},
    "karcher": {},
    "linear": {},
    "multislerp": {},
    "neuromerging": {"mask": 0.0},
    "nuslerp": {},
    "pcb": {"ratio": 1.0},
    "ram": {},
    "ramplus": {},
    "sce": {"topk": 1.0},
    "slerp": {},
    "task_arithmetic": {},
    "ties": {"density": 0.9},
    "tsv_m": {},
    "wudi": {},
}
"""Methods that weigh every source in every tensor."""

OTHERS = {
    "arcee_fusion": "one source",
    "fisher": "reads statistics: tests/engine/test_statistics.py",
    "layer_swap": "a layer has one source, or the plain mean",
    "model_stock": "random deltas share no direction: the base stays",
    "nearswap": "one source",
    "passthrough": "one source",
    "regmean": "reads statistics: tests/engine/test_statistics.py",
}
"""The others, and why."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A raw base and three raw sources."""
    write_raw_pool(tmp_path / "pool", SOURCES)
    return tmp_path / "pool"


def recipe(root: Path, **changes: Any) -> Recipe:
    sources = {name: root / name for name in SOURCES}
    return Recipe.model_validate({"base": root / "base", "sources": sources, "method": "linear", **changes})


def streamed(made: Recipe) -> Tensors:
    return {one.plan.name: one.tensor for one in merged_tensors(make_plan(made))}


def stored(folder: Path) -> dict[str, bytes]:
    return {name: one.contiguous().numpy().tobytes() for name, one in read_raw(folder).items()}


def test_rule_01_the_base_is_required_and_no_expert(root: Path) -> None:
    with pytest.raises(RecipeError, match="base: Field required"):
        Recipe.parse({"sources": {"de-DE": root / "de-DE"}, "method": "linear"})
    with pytest.raises(PlanError, match=r"source fr-FR .* equals the base .* its task vector is zero"):
        make_plan(recipe(root, base=root / "fr-FR"))


def test_rule_01_a_pool_begins_with_the_base_and_its_head(tmp_path: Path) -> None:
    """At rates of nothing the experts are still where they started: at the base that the pool holds, head included."""
    labels = ("alarm", "music")

    def load(locale: str, split: str) -> Examples:
        texts = tuple(f"{WORDS[row % 9]} {locale[:1]}" for row in range(8))
        return Examples(locale, split, tuple(map(str, range(8))), texts, np.arange(8, dtype=np.int64) % 2)

    task = Task("tiny:intent", labels, ("de-DE", "fr-FR"), "r1", load)
    still = Training(epochs=1, lr=1e-12, head_lr=1e-12, batch_size=4)
    encoder = write_tiny_encoder(tmp_path / "encoder")
    pool = train_pool(tmp_path / "pool", base=encoder, task=task, locales=task.locales, training=still)
    base = read_raw(pool.base_folder)
    head = base["classifier.out_proj.weight"]
    assert float(head.norm()) > 0
    for locale in task.locales:
        expert = read_raw(pool.expert(locale))
        assert expert.keys() == base.keys()
        for name, one in expert.items():
            torch.testing.assert_close(one, base[name], rtol=0, atol=1e-6)
    other, _ = new_classifier(encoder, labels, seed=1)
    assert not torch.allclose(other.classifier.out_proj.weight, head, atol=1e-3), "heads of two seeds differ"


def test_rule_01_a_head_is_never_differenced_against_one_that_the_base_lacks(root: Path) -> None:
    base = {name: one for name, one in read_raw(root / "base").items() if not name.startswith("classifier")}
    (root / "base" / "model.safetensors").unlink()
    write_raw(root / "base", base, labels=None)
    found = streamed(recipe(root, method="task_arithmetic", parameters={"scale": 0.25}))
    heads = torch.stack([read_raw(root / name)[HEAD] for name in SOURCES])
    torch.testing.assert_close(found[HEAD], heads.mean(0))


def test_rule_02_no_method_is_left_out() -> None:
    assert {*EVERY_METHOD, *OTHERS} == METHODS.keys()


@pytest.mark.parametrize("method", EVERY_METHOD)
def test_rule_02_every_source_reaches_every_tensor(root: Path, method: str) -> None:
    names = SOURCES[: SPECS[method].sources[1]]
    settings: dict[str, Any] = {
        "method": method,
        "parameters": EVERY_METHOD[method],
        "sources": {name: root / name for name in names},
    }
    weights = dict(zip(names, (0.5, 0.3, 0.2), strict=False))
    plain = streamed(recipe(root, **settings, coefficients=weights))
    for source in names:
        for other in (recipe(root, **settings, coefficients={**weights, source: 0.9}), None):
            if other is None:
                # The source itself changes, and all else is as before.
                before = read_raw(root / source)
                write_raw(root / source, {name: one + 0.05 * one.sign() for name, one in before.items()})
                found = streamed(recipe(root, **settings, coefficients=weights))
                write_raw(root / source, before)
            else:
                found = streamed(other)
            for name in SHAPES:
                assert not torch.equal(found[name], plain[name]), (source, name)


def test_rule_02_one_sources_weight_goes_to_that_source(root: Path) -> None:
    for source in SOURCES:
        one_hot = {name: float(name == source) for name in SOURCES}
        found, own = streamed(recipe(root, coefficients=one_hot)), read_raw(root / source)
        for name in SHAPES:
            assert torch.equal(found[name], own[name])


def board_of(root: Path, matrix: TransferMatrix) -> TargetBoard:
    """The board of a pool whose experts are the matrix's rows."""
    matrix.save(root / "transfer.dev.json")
    experts = {name: Expert(folder=Path(name)) for name in matrix.sources}
    pool = Pool(root=root, task="fake:intent", labels=LABELS, base=Path("base"), experts=experts)
    evaluator: Any = FakeEvaluator(pool, {})
    return TargetBoard(evaluator, matrix, TARGET, seed=0, scorer=CandidateScorer(evaluator))


def test_rule_02_a_candidates_coefficients_are_the_selections(root: Path) -> None:
    matrix = TransferMatrix(SOURCES, (TARGET,), np.array([[0.2], [0.6], [0.4]]), "dev")
    choice = MethodChoice(method="linear", weights="proportional")
    board = board_of(root, matrix)
    selection = board.selection(Place("merge", TARGET, "ExcTar", "measured", 3, choice))
    plan = make_plan(board.scorer.recipe(Candidate(TARGET, "ExcTar", choice, selection)))
    assert plan.coefficients.values == {
        "model": pytest.approx({"de-DE": 0.2 / 1.2, "fr-FR": 0.6 / 1.2, "tr-TR": 0.4 / 1.2})
    }
    assert {name: one.folder for name, one in plan.sources.items()} == {name: root / name for name in SOURCES}


def test_rule_03_measured_similarity_reads_the_targets_column() -> None:
    """By its row (how well the target's expert does elsewhere), the order would be the opposite."""
    names = ("de-DE", "fr-FR", TARGET)
    values = np.array([[0.9, 0.2, 0.3], [0.1, 0.9, 0.6], [0.7, 0.4, 0.9]])
    chosen = select_sources(TransferMatrix(names, names, values, "dev"), TARGET, k=2)
    assert chosen.scores == {"fr-FR": 0.6, "de-DE": 0.3}


def test_rule_03_the_matrix_is_measured_on_dev_with_experts_in_rows(tmp_path: Path) -> None:
    evaluator = fake_evaluator(tmp_path)
    ease = {"de-DE": 0.0, "fr-FR": -0.1, TARGET: -0.2, "tr-TR": -0.25}

    def cell(expert: str, locale: str, split: str) -> Logits:
        evaluator.splits.append(split)
        return answers(expert + locale, locale, split, DEV[expert] + ease[locale])

    evaluator.cell = cell
    matrix = transfer_matrix(evaluator)
    assert (matrix.split, set(evaluator.splits)) == ("dev", {"dev"})
    for expert in EXPERTS:
        for locale in EXPERTS:
            assert matrix.score(expert, locale) == pytest.approx(DEV[expert] + ease[locale], abs=0.5 / ROWS)
    assert TransferMatrix.load(tmp_path / "transfer.dev.json").column("fr-FR") == pytest.approx(
        matrix.column("fr-FR"), abs=1e-6
    )


@pytest.mark.parametrize("weights", ["uniform", "proportional", "softmax"])
def test_rule_03_the_diagonal_is_left_out_before_weights_are_made(weights: str) -> None:
    names = ("de-DE", "fr-FR", TARGET)
    values = np.array([[0.3], [0.6], [0.99]])
    whole = TransferMatrix(names, (TARGET,), values, "dev")
    without = TransferMatrix(names[:2], (TARGET,), values[:2], "dev")
    chosen, expected = (select_sources(one, TARGET, k=2, weights=weights) for one in (whole, without))
    assert chosen.coefficients.values == expected.coefficients.values
    assert sum(chosen.coefficients.values["model"].values()) == pytest.approx(1)
    assert TARGET not in chosen.sources


def test_rule_04_rank_then_cut(tmp_path: Path) -> None:
    """The best others stand last in the matrix; a cut before the ranking would take the first."""
    names = ("af-ZA", "cy-GB", "de-DE", "fr-FR", "tr-TR", TARGET)
    values = np.array([[0.1], [0.2], [0.3], [0.8], [0.7], [0.15]])
    matrix = TransferMatrix(names, (TARGET,), values, "dev")
    assert select_sources(matrix, TARGET, k=3, include_target=True).sources == (TARGET, "fr-FR", "tr-TR")
    assert select_sources(matrix, TARGET, k=2).sources == ("fr-FR", "tr-TR")
    methods = (MethodChoice(method="linear"), MethodChoice(method="slerp"))
    board = board_of(tmp_path, matrix)
    grid = Grid(
        task="fake:intent", sources=names[:-1], targets=(TARGET,), k=(3,), modes=("IncTar", "ExcTar"), methods=methods
    )  # fmt: skip
    best = {"IncTar": (TARGET, "fr-FR", "tr-TR"), "ExcTar": ("fr-FR", "tr-TR", "de-DE")}
    merges = [place for place in places(grid) if place.kind == "merge"]
    assert [(one.mode, one.k) for one in merges] == [
        ("IncTar", 3),
        ("IncTar", 2),
        ("ExcTar", 3),
        ("ExcTar", 2),
    ]
    for place in merges:
        assert board.selection(place).sources == best[place.mode][: place.k]


@pytest.mark.parametrize("order", [(1, 0, 2), (2, 0, 1)])
def test_rule_05_classifier_rows_are_matched_by_name(root: Path, order: tuple[int, ...]) -> None:
    expected = streamed(recipe(root))
    moved, labels = permuted(read_raw(root / "fr-FR"), LABELS, order)
    write_raw(root / "fr-FR", moved, labels=labels)
    found = streamed(recipe(root))
    for name in SHAPES:
        assert torch.equal(found[name], expected[name])


def test_rule_05_other_label_sets_are_an_error_that_lists_them(root: Path) -> None:
    write_raw(root / "fr-FR", read_raw(root / "fr-FR"), labels=("alarm", "music", "snow"))
    with pytest.raises(PlanError, match=r"source fr-FR .* different labels: only there: snow; missing: rain"):
        make_plan(recipe(root))


@pytest.mark.parametrize("method", ["linear", "ties", "wudi"])
def test_rule_05_head_labels_tokenizer_and_config_survive(tmp_path: Path, method: str) -> None:
    base = write_xlm_roberta(tmp_path / "base")
    (base / "generation_config.json").write_text("{}")
    for seed, name in enumerate(SOURCES, start=1):
        write_expert(tmp_path / name, base, seed)
    out = merge(recipe(tmp_path, method=method), tmp_path / "out")
    assert read_raw(out).keys() == read_raw(base).keys()
    ours, theirs = (json.loads((folder / "config.json").read_text()) for folder in (out, base))
    assert ours == theirs
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (out / name).read_bytes() == (base / name).read_bytes()


def test_rule_05_what_is_not_merged_is_listed_with_the_reason(root: Path) -> None:
    write_raw(
        root / "base", {**read_raw(root / "base"), "lm_head.bias": torch.ones(12), "n": torch.tensor(1)}
    )
    for name in SOURCES:
        write_raw(root / name, {**read_raw(root / name), "n": torch.tensor(2)})
    out = merge(recipe(root, method="wudi", embeddings="base"), root / "out")
    listed = {one["tensor"]: one for one in json.loads((out / "langmerge.json").read_text())["tensors"]}
    assert listed.keys() == {*SHAPES, "lm_head.bias", "n"}
    assert listed["lm_head.bias"]["treatment"] == "dropped"
    assert listed["n"]["treatment"] == "base"
    for name, one in listed.items():
        assert one["treatment"] == "merged" or len(one["reason"]) > 10, name
    # What is in the sources but in no base and no head has no treatment: an error.
    for name in SOURCES:
        write_raw(root / name, {**read_raw(root / name), "more.weight": torch.ones(2, 2)})
    with pytest.raises(PlanError, match=r"'more.weight' is in the sources but not in the base"):
        make_plan(recipe(root))


def test_rule_05_logits_are_matched_by_name(tmp_path: Path) -> None:
    base = write_xlm_roberta(tmp_path / "base")
    write_expert(tmp_path / "plain", base, 1)
    write_expert(tmp_path / "mixed", base, 1, order=(2, 0, 1))
    rows = Examples(TARGET, "test", ("0", "1"), ("w1 w2", "w3"), np.array([0, 1]))
    task = Task("tiny:intent", LABELS, (TARGET,), "r1", lambda *_: rows)

    def tokenizer(texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[0, 5 + len(text), 9, 2] for text in texts]}

    found = []
    for name in ("plain", "mixed"):
        model = load_classifier(tmp_path / name, device="cpu")
        found.append(Evaluator(task, tokenizer).logits(lambda m=model: m, name, TARGET, "test").values)
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)
    assert np.abs(found[0] - found[0][:, [2, 0, 1]]).max() > 0.01


RANDOM = {"method": "dare_ties", "parameters": {"density": 0.5, "seed": 3}}


def test_rule_10_shards_threads_and_order_change_no_byte(root: Path) -> None:
    weights = {"de-DE": 0.5, "fr-FR": 0.3, "tr-TR": 0.2}
    forwards = recipe(root, **RANDOM, coefficients=weights)
    backwards = recipe(
        root,
        **RANDOM,
        sources={name: root / name for name in reversed(SOURCES)},
        coefficients=dict(reversed(weights.items())),
    )
    before, found = torch.get_num_threads(), []
    try:
        for number, (made, max_shard, threads) in enumerate(
            [(forwards, 10**9, 1), (forwards, 300, 2), (backwards, 1, 1), (backwards, 10**9, 2)]
        ):
            torch.set_num_threads(threads)
            # What else draws random numbers in the process does not matter either.
            torch.manual_seed(number)
            found.append(stored(merge(made, root / f"out{number}", max_shard=max_shard)))
    finally:
        torch.set_num_threads(before)
    assert all(one == found[0] for one in found)


def test_rule_10_a_tensor_alone_is_merged_as_among_others(root: Path) -> None:
    whole = streamed(recipe(root, **RANDOM))
    for name in ("base", *SOURCES):
        tensors = read_raw(root / name)
        write_raw(root / name, {key: tensors[key] for key in (HEAD, QUERY)})
    alone = streamed(recipe(root, **RANDOM))
    for name in (HEAD, QUERY):
        assert torch.equal(alone[name], whole[name])


def dropped(made: Recipe, tensor: str) -> torch.Tensor:
    """Which entries of a tensor keep the base's value."""
    return streamed(made)[tensor] == read_raw(Path(made.base))[tensor]


def test_rule_10_masks_differ_by_seed_tensor_and_source(root: Path) -> None:
    """One source at a time, so that what is dropped is seen; two tensors of one shape."""
    twin = QUERY.replace("query", "key")
    for name in ("base", *SOURCES):
        tensors = read_raw(root / name)
        write_raw(root / name, {**tensors, twin: tensors[QUERY].clone()})

    def mask(source: str, tensor: str, seed: int) -> torch.Tensor:
        settings: dict[str, Any] = {"method": "dare_ties", "parameters": {"density": 0.5, "seed": seed}}
        return dropped(recipe(root, **settings, sources={source: root / "de-DE"}), tensor)

    first = mask("de-DE", QUERY, 0)
    assert 5 < int(first.sum()) < 31
    assert torch.equal(mask("de-DE", QUERY, 0), first)
    assert not torch.equal(mask("de-DE", QUERY, 1), first)
    assert not torch.equal(mask("de-DE", twin, 0), first)
    # By the source's name, not its place or its weights.
    assert not torch.equal(mask("fr-FR", QUERY, 0), first)
    both = {"fr-FR": root / "fr-FR", "de-DE": root / "de-DE"}
    settings: dict[str, Any] = {
        "method": "dare_ties",
        "parameters": {"density": 0.5, "seed": 0},
        "sources": both,
    }
    only_german = recipe(root, **settings, coefficients={"fr-FR": 0.0, "de-DE": 1.0})
    assert torch.equal(dropped(only_german, QUERY), first)


def test_rule_10_a_block_of_coefficients_does_not_reseed(root: Path) -> None:
    values = {"model": dict.fromkeys(SOURCES, 1.0), "block:1": dict.fromkeys(SOURCES, 0.5)}
    plain = streamed(recipe(root, **RANDOM, coefficients=dict.fromkeys(SOURCES, 1.0)))
    found = streamed(recipe(root, **RANDOM, coefficients=Coefficients(values=values)))
    for name in SHAPES:
        torch.testing.assert_close(found[name], plain[name])
