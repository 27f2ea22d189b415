"""langmerge learn fisher, langmerge learn gram."""

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import langmerge.measuring as measuring
from langmerge.checkpoint import folder_signature
from langmerge.engine.statistics import open_statistics
from langmerge.learned.fisher import fisher_diagonal
from langmerge.learned.grams import input_grams
from langmerge.models import encode, load_classifier, load_tokenizer
from langmerge.pool import Pool
from langmerge.tasks import load_task
from tests.cli.conftest import Ran, Run
from tests.tiny_pool import ABSENT, write_tiny_pool

QUERY = "roberta.encoder.layer.0.attention.self.query.weight"
HEAD = "classifier.out_proj.weight"


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """Read-only."""
    return write_tiny_pool(tmp_path_factory.mktemp("statistics"))


def document(run: Run, *arguments: object) -> Any:
    ran = run(*arguments, "--json")
    assert ran.code == 0, ran.err
    # The tiny task's splits have some texts in common.
    assert all(line.startswith("note: folder:") for line in ran.err.splitlines()), ran.err
    return json.loads(ran.out)


def refused(ran: Ran, named: str) -> None:
    """Exit 2 with one line, and nothing on stdout."""
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("error: ")
    assert ran.err.count("\n") == 1
    assert named in ran.err


def rows_of(pool: Pool, locale: str, limit: int) -> Any:
    """Encoded train rows and their examples."""
    found = load_task(pool.task).load(locale, "train").limited(limit)
    return encode(load_tokenizer(pool.base_folder), found.texts), found


def test_fisher_on_the_targets_text(run: Run, pool: Pool, tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = document(
        run,
        "learn",
        "fisher",
        pool.root,
        "--target",
        ABSENT,
        "--sources",
        "de-DE,fr-FR",
        "--rows",
        6,
        "-o",
        out,
    )
    assert sorted(one.name for one in out.iterdir()) == [
        "de-DE.safetensors",
        "fr-FR.safetensors",
        "recipe.yaml",
    ]
    assert found["files"] == {name: str(out / f"{name}.safetensors") for name in ("de-DE", "fr-FR")}
    assert found["peak"] > 10**7
    texts, _ = rows_of(pool, ABSENT, 6)
    for name in ("de-DE", "fr-FR"):
        artefact = open_statistics(out / f"{name}.safetensors")
        assert (artefact.kind, artefact.model) == ("fisher", folder_signature(pool.expert(name)))
        expected = fisher_diagonal(load_classifier(pool.expert(name), device="cpu"), texts, kind="sampled")
        for tensor, one in expected.items():
            np.testing.assert_array_equal(artefact.array(tensor), one)
        told = artefact.metadata
        assert told["settings"] == {"made": "fisher", "kind": "sampled", "seed": 0}
        assert told["text"]["rows"] == 6
        assert told["text"]["origin"].endswith(f"{ABSENT} train")
        assert told["peak_memory"] > 10**7
        assert told["source"] == name
    merged = document(run, "merge", out / "recipe.yaml", tmp_path / "merged")
    assert merged["treatments"].keys() == {"merged", "unchanged"}
    assert document(run, "verify", tmp_path / "merged", "--all")["faults"] == []
    plan = document(run, "plan", out / "recipe.yaml")
    assert plan["statistics"]["de-DE"]["kind"] == "fisher"
    assert plan["statistics"]["de-DE"]["file"] == str(out / "de-DE.safetensors")
    assert "reads fisher of every source" in run("plan", out / "recipe.yaml").out
    record = json.loads((tmp_path / "merged" / "langmerge.json").read_text())
    assert record["target"] == ABSENT


def test_the_selection_decides_sources_and_weights(run: Run, pool: Pool, tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = document(
        run, "learn", "gram", pool.root, "--target", "sw-KE", "-k", 2, "--by", "typology", "--weights", "proportional",
        "--rows", 5, "-o", out,
    )  # fmt: skip
    recipe = yaml.safe_load((out / "recipe.yaml").read_text())
    assert recipe["coefficients"].keys() == found["files"].keys() == recipe["statistics"].keys()
    assert len(recipe["coefficients"]) == 2
    assert len(set(recipe["coefficients"].values())) == 2
    assert sum(recipe["coefficients"].values()) == pytest.approx(1)
    assert "sw-KE" not in recipe["sources"]


def test_labels_are_those_of_the_sources_own_text(run: Run, pool: Pool, tmp_path: Path) -> None:
    """Also where an expert numbers its outputs in another order."""
    root = Path(shutil.copytree(pool.root, tmp_path / "pool"))
    config = root / "experts" / "fr-FR" / "config.json"
    assert config.exists()
    told = json.loads(config.read_text())
    names = [told["id2label"][str(row)] for row in range(3)][::-1]
    told["id2label"] = {str(row): name for row, name in enumerate(names)}
    told["label2id"] = {name: row for row, name in enumerate(names)}
    config.write_text(json.dumps(told))
    out = tmp_path / "out"
    line = ("learn", "fisher", root, "--target", ABSENT, "--sources", "de-DE,fr-FR", "--rows", 6, "-o", out)
    document(run, *line, "--kind", "empirical", "--text", "source")
    for name in ("de-DE", "fr-FR"):
        texts, examples = rows_of(pool, name, 6)
        labels = [2 - label if name == "fr-FR" else int(label) for label in examples.labels]
        model = load_classifier(root / "experts" / name, device="cpu")
        expected = fisher_diagonal(model, texts, kind="empirical", labels=labels)
        artefact = open_statistics(out / f"{name}.safetensors")
        np.testing.assert_array_equal(artefact.array(HEAD), expected[HEAD])
        assert artefact.metadata["text"]["origin"].endswith(f"{name} train")


def test_labels_are_read_for_nothing_else(
    run: Run, pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring._Work, "labels", lambda *_: pytest.fail("reads labels"))
    base = ("--target", ABSENT, "--sources", "de-DE", "--rows", 3, "--text", "source")
    for kind in ("sampled", "exact"):
        document(run, "learn", "fisher", pool.root, *base, "--kind", kind, "-o", tmp_path / kind)
    document(run, "learn", "gram", pool.root, *base, "-o", tmp_path / "gram")


def test_grams_and_the_merge_by_them(run: Run, pool: Pool, tmp_path: Path) -> None:
    out = tmp_path / "out"
    line = (
        "learn",
        "gram",
        pool.root,
        "--target",
        ABSENT,
        "--sources",
        "de-DE,fr-FR",
        "--rows",
        8,
        "-o",
        out,
    )
    document(run, *line, "-p", "ridge=0.01")
    texts, _ = rows_of(pool, ABSENT, 8)
    expected = input_grams(load_classifier(pool.expert("fr-FR"), device="cpu"), texts)
    artefact = open_statistics(out / "fr-FR.safetensors")
    for name, one in expected.tensors.items():
        np.testing.assert_array_equal(artefact.array(name), one)
    assert artefact.metadata["shared"] == expected.shared
    assert artefact.metadata["tokens"] == expected.tokens
    recipe = yaml.safe_load((out / "recipe.yaml").read_text())
    assert (recipe["method"], recipe["head"], recipe["parameters"]) == ("regmean", "regmean", {"ridge": 0.01})
    document(run, "merge", out / "recipe.yaml", tmp_path / "merged")
    entries = json.loads((tmp_path / "merged" / "langmerge.json").read_text())["tensors"]
    treatments = {entry["tensor"]: entry["treatment"] for entry in entries}
    assert treatments[QUERY] == treatments[HEAD] == "merged"
    # The pooling layers are alike in all.
    assert treatments["classifier.dense.weight"] == "unchanged"


def test_the_heads_gram_alone_merges_the_head_to_the_same_bytes(run: Run, pool: Pool, tmp_path: Path) -> None:
    line = ("learn", "gram", pool.root, "--target", ABSENT, "--sources", "de-DE,fr-FR", "--rows", 8)
    document(run, *line, "-o", tmp_path / "all")
    document(run, *line, "--head-only", "-o", tmp_path / "head")
    whole, head = (open_statistics(tmp_path / name / "fr-FR.safetensors") for name in ("all", "head"))
    assert HEAD in head.tensors
    assert QUERY not in head.tensors
    assert set(head.tensors) == {name for name in whole.tensors if name.startswith("classifier.")}
    # Whatever the body is merged by.
    merged = {}
    for name in ("all", "head"):
        recipe = yaml.safe_load((tmp_path / name / "recipe.yaml").read_text()) | {"method": "linear"}
        (tmp_path / name / "linear.yaml").write_text(yaml.safe_dump(recipe))
        document(run, "merge", tmp_path / name / "linear.yaml", tmp_path / f"merged {name}")
        merged[name] = (tmp_path / f"merged {name}" / "model.safetensors").read_bytes()
    assert merged["all"] == merged["head"]
    assert yaml.safe_load((tmp_path / "head" / "recipe.yaml").read_text())["method"] == "linear"
    refused(run(*line, "--head-only", "--plus", "-o", tmp_path / "both"), "leave out the head alone, or plus")
    refused(run(*line, "--head-only", "-o", tmp_path / "all"), "was made in another way")
    refused(
        run(*line, "--head-only", "-p", "off_diagonal=0.9", "-o", tmp_path / "p"),
        "off_diagonal is a parameter of regmean",
    )
    assert not (tmp_path / "p").exists()


def test_regmean_plus(run: Run, pool: Pool, tmp_path: Path) -> None:
    line = ("learn", "gram", pool.root, "--target", ABSENT, "--sources", "de-DE,fr-FR", "--rows", 8, "--plus")
    document(run, *line, "-o", tmp_path / "out")
    assert sorted(one.name for one in (tmp_path / "out").iterdir()) == [
        "de-DE.safetensors", "fr-FR.safetensors", "recipe.yaml",
    ]  # fmt: skip
    document(run, "merge", tmp_path / "out" / "recipe.yaml", tmp_path / "merged")
    texts, _ = rows_of(pool, ABSENT, 8)
    own = input_grams(load_classifier(tmp_path / "merged", device="cpu"), texts)
    last = QUERY.replace("layer.0", "layer.1")
    for name in ("de-DE", "fr-FR"):
        artefact = open_statistics(tmp_path / "out" / f"{name}.safetensors")
        np.testing.assert_allclose(artefact.array(last), own.tensors[last], rtol=1e-3, atol=1e-5)
    changed = run(*line, "-o", tmp_path / "out", "-p", "ridge=0.5")
    refused(changed, "was made in another way")


@pytest.fixture
def stops(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Ctrl-C in the second source's third text."""
    calls: list[int] = []
    real = measuring.load_classifier

    def loaded(folder: Path) -> Any:
        model = real(folder)
        calls.append(0)

        def count(*_: Any) -> None:
            calls[-1] += 1
            if calls == [6, 3]:
                signal.raise_signal(signal.SIGINT)

        model.register_forward_hook(count)
        return model

    monkeypatch.setattr(measuring, "load_classifier", loaded)
    yield calls
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupted_run_goes_on_to_the_same_bytes(
    run: Run, pool: Pool, tmp_path: Path, stops: list[int]
) -> None:
    out = tmp_path / "out"
    line = ("learn", "fisher", pool.root, "--target", ABSENT, "--sources", "de-DE,fr-FR", "--rows", 6, "-o")
    ran = run(*line, out)
    assert ran.code == 130
    assert "everything finished so far is kept" in ran.err
    assert sorted(one.name for one in out.iterdir()) == [".fr-FR.state", "de-DE.safetensors"]
    found = document(run, *line, out)
    assert (found["kept"], stops) == (["de-DE"], [6, 3, 3])
    assert sorted(one.name for one in out.iterdir()) == [
        "de-DE.safetensors",
        "fr-FR.safetensors",
        "recipe.yaml",
    ]
    document(run, *line, tmp_path / "whole")
    for name in ("de-DE", "fr-FR"):
        one, other = (open_statistics(tmp_path / place / f"{name}.safetensors") for place in ("out", "whole"))
        assert one.signature == other.signature


def test_what_was_made_in_another_way_is_not_taken(run: Run, pool: Pool, tmp_path: Path) -> None:
    out = tmp_path / "out"
    line = ("learn", "fisher", pool.root, "--target", ABSENT, "--sources", "de-DE", "--rows", 3, "-o", out)
    document(run, *line)
    before = (out / "de-DE.safetensors").read_bytes()
    assert document(run, *line)["kept"] == ["de-DE"]
    for change in (("--seed", 1), ("--rows", 4), ("--kind", "exact"), ("--text", "source")):
        refused(run(*line, *change), "exists and was made in another way: choose another folder, or say --ov")
    gram_line = ("learn", "gram", *line[2:])
    refused(run(*gram_line), "was made in another way")
    assert (out / "de-DE.safetensors").read_bytes() == before
    assert document(run, *line, "--seed", 1, "--overwrite")["kept"] == []
    assert open_statistics(out / "de-DE.safetensors").metadata["settings"]["seed"] == 1


def test_a_folder_inside_the_pool_moves_with_it(run: Run, pool: Pool, tmp_path: Path) -> None:
    root = Path(shutil.copytree(pool.root, tmp_path / "pool"))
    line = ("--target", ABSENT, "--sources", "de-DE", "--rows", 3, "-o", root / "statistics" / "cy")
    document(run, "learn", "fisher", root, *line)
    moved = root.rename(tmp_path / "elsewhere")
    document(run, "merge", moved / "statistics" / "cy" / "recipe.yaml", tmp_path / "merged")


def test_bad_input(run: Run, pool: Pool, tmp_path: Path) -> None:
    line = ("learn", "fisher", pool.root, "--target", ABSENT, "-o", tmp_path / "out")
    one = (*line, "--sources", "de-DE")
    refused(run(*one, "--kind", "empirical"), "needs labels, and the target's text is read without")
    refused(run(*one, "--kind", "full"), "unknown kind of Fisher 'full'")
    refused(run(*one, "--text", "test"), "unknown text 'test': it is target or source")
    refused(run(*line, "--sources", "tr-TR"), "has no expert for 'tr-TR'")
    refused(run("learn", "fisher", pool.root, "--target", "tr-TR", *one[5:]), "has no locale 'tr-TR'")
    refused(run("learn", "gram", *one[2:], "-p", "rigde=1"), "method 'regmean' has no parameter 'rigde'")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").write_text("")
    refused(run(*one), "is a file: give a folder")
