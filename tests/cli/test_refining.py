"""`langmerge refine`: the table, the JSON document, and bad input in one line."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import langmerge.training.refined as refined_module
from langmerge.pool import Pool
from tests.cli.conftest import Run
from tests.tiny_pool import task_folder, write_rows, write_tiny_pool

FAST = ("--lr", "0.002", "--head-lr", "0.01", "--batch-size", "8", "--epochs", "1")


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """Four experts."""
    return write_tiny_pool(tmp_path_factory.mktemp("refine"))


@pytest.fixture
def merged(run: Run, pool: Pool) -> Path:
    """Two of them, merged."""
    out = pool.root.parent / "merged"
    if not out.exists():
        ran = run("merge", out, "--pool", pool.root, "--target", "sw-KE", "-k", "2", "--method", "linear")
        assert ran.code == 0, ran.err
    return out


def test_people_see_before_and_after_and_the_controls(
    run: Run, pool: Pool, merged: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    ran = run("refine", merged, "--target", "sw-KE", "-o", out, "--controls", pool.root, *FAST)
    assert ran.code == 0, ran.err
    assert f"refined on 48 texts of {pool.task} sw-KE train: {out} written (signature " in " ".join(
        ran.out.split()
    )
    assert "dev accuracy, 24 rows" in ran.out
    assert "test accuracy" not in ran.out
    for name in ("the model", "best source, ", "linear merge", "the controls are in"):
        assert name in ran.out
    assert (out / "model.safetensors").is_file()
    # Texts that test has too, under other ids, are told of.
    assert ran.err.startswith("note: ")
    assert "texts read as one of the test split does" in ran.err
    again = run("refine", merged, "--target", "sw_ke", "-o", out, "--controls", pool.root, *FAST)
    assert (again.code, "was there already" in again.out) == (0, True)


def test_programs_get_one_document(run: Run, pool: Pool, merged: Path, tmp_path: Path) -> None:
    ran = run(
        "refine", merged, "--target", "sw-KE", "-o", tmp_path / "out", "--task", pool.task, "--limit", "20",
        "--rounds", "2", "--temperature", "2", "--seed", "3", "--report", "test", "--dev-labels",
        "--teacher", pool.expert("de-DE"), "--teacher", pool.expert("fr-FR"), *FAST, "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert (found["target"], found["rows"], found["origin"]) == ("sw-KE", 20, f"{pool.task} sw-KE train")
    (model,) = found["models"]
    assert [one["split"] for one in model["scores"]] == ["dev", "test"]
    settings = model["receipt"]["settings"]
    assert {key: settings[key] for key in ("rounds", "epochs", "temperature", "seed", "lr", "head_lr")} == {
        "rounds": 2, "epochs": 1, "temperature": 2.0, "seed": 3, "lr": 0.002, "head_lr": 0.01,
    }  # fmt: skip
    assert len(model["receipt"]["teachers"]) == 2
    assert model["receipt"]["chosen_by"] == "dev accuracy"
    assert model["receipt"] == json.loads((tmp_path / "out" / "langmerge_refined.json").read_text())


def test_a_prior_moves_the_heads_bias_alone(run: Run, pool: Pool, merged: Path, tmp_path: Path) -> None:
    """Counted in other languages' labels, or given as a file with the same numbers: the same model."""
    asked = ("refine", merged, "--target", "sw-KE", "--task", pool.task, "--rounds", "0", "--prior")
    ran = run(*asked, "de-DE,fr-fr", "--controls", pool.root, "-o", tmp_path / "out")
    assert ran.code == 0, ran.err
    assert "distance from prior" in " ".join(ran.out.split())
    found, given = (
        safetensors.numpy.load_file(folder / "model.safetensors") for folder in (tmp_path / "out", merged)
    )
    assert {name for name in given if not np.array_equal(found[name], given[name])} == {
        "classifier.out_proj.bias"
    }
    shares = json.loads((tmp_path / "out" / "langmerge_refined.json").read_text())["settings"]["prior"]
    assert sum(shares.values()) == pytest.approx(1)
    (tmp_path / "shares.json").write_text(json.dumps(shares))
    assert run(*asked, tmp_path / "shares.json", "-o", tmp_path / "again").code == 0
    first, again = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "again"))
    assert first == again
    ran = run(*asked, "de-DE,sw_KE", "-o", tmp_path / "never")
    assert (ran.code, ran.out) == (2, "")
    assert (
        ran.err.splitlines()[-1] == "error: label shares for sw-KE may not be counted in sw-KE's own labels"
    )
    assert not (tmp_path / "never").exists()


def test_a_file_with_or_without_labels_gives_the_same_bytes(run: Run, merged: Path, tmp_path: Path) -> None:
    texts = [f"{word} music please" for word in ("wake", "play", "rain", "sun", "stop", "today")]
    file, made = tmp_path / "text.jsonl", []
    for name, labels in (("none", None), ("some", "abcabc"), ("other", "cabcab")):
        rows = [{"text": text} for text in texts]
        if labels:
            rows = [{**row, "label": label} for row, label in zip(rows, labels, strict=True)]
        write_rows(file, rows)
        ran = run("refine", merged, "--target", "sw-KE", "-o", tmp_path / name, "--text", file, *FAST)
        assert ran.code == 0, ran.err
        assert "accuracy" not in ran.out
        assert ran.err == ("note: labels in the file were not read: label\n" if labels else "")
        made.append((tmp_path / name / "model.safetensors").read_bytes())
    assert made[0] == made[1] == made[2]


def test_overlap_with_test_is_said_and_recorded(run: Run, pool: Pool, merged: Path, tmp_path: Path) -> None:
    lines = (task_folder(pool) / "sw-KE" / "test.jsonl").read_text().splitlines()[:3]
    file = tmp_path / "text.txt"
    file.write_text("\n".join([*(json.loads(line)["text"] for line in lines), "music music music music"]))
    asked = ("--target", "sw-KE", "--text", file, "--task", pool.task, *FAST)
    ran = run("refine", merged, "-o", tmp_path / "out", *asked)
    assert ran.code == 0, ran.err
    said = "3 of 4 texts are also in the test split: results on it are transductive"
    assert ran.err == f"note: {said}\n"
    receipt = json.loads((tmp_path / "out" / "langmerge_refined.json").read_text())
    assert (receipt["text"]["overlap"], receipt["text"]["notes"]) == (3, [said])
    assert "dev accuracy" in ran.out


def test_an_interrupted_command_goes_on_to_the_same_bytes(
    run: Run, pool: Pool, merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("refine", merged, "--target", "sw-KE", "--task", pool.task, *FAST)
    assert run(*asked, "-o", tmp_path / "whole").code == 0
    real = refined_module.save_classifier

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(refined_module, "save_classifier", interrupted)
    ran = run(*asked, "-o", tmp_path / "out")
    assert ran.code == 130
    assert "the same command goes on from there" in ran.err
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(refined_module, "save_classifier", real)
    assert run(*asked, "-o", tmp_path / "out").code == 0
    for name in ("model.safetensors", "langmerge_refined.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--target", "xx-YY"), "xx-YY"),
        (("--target", "sw-KE", "--report", "train"), "--report is 'train': give dev or test"),
        (("--target", "sw-KE", "--text", "none.txt"), "none.txt cannot be read"),
        (("--target", "sw-KE", "--text", "blank.txt"), "blank.txt has no text"),
        (("--target", "sw-KE", "--text", "one.txt"), "Refinement needs 2 texts or more"),
        (("--target", "sw-KE", "--text", "two.txt", "--dev-labels"), "name it with --task"),
        (("--target", "sw-KE", "--text", "two.txt", "--teacher", "nowhere"), "model folder nowhere does not exist"),
        (("--target", "sw-KE", "--text", "two.txt", "--controls", "nowhere"), "nowhere/pool.yaml does not exist"),
        (("--target", "sw-KE", "--text", "two.txt", "--rounds", "-1"), "--rounds"),
        (("--target", "sw-KE", "--text", "two.txt", "--rounds", "0"), "no rounds and no prior"),
        (("--target", "sw-KE", "--text", "two.txt", "--strength", "0.9"), "give --prior, or leave it out"),
        (("--target", "sw-KE", "--text", "two.txt", "--prior", "uniform"), "name it with --task"),
        (("--target", "sw-KE", "--text", "two.txt", "--prior", "none.json"), "none.json cannot be read"),
        (("--target", "sw-KE", "--text", "two.txt", "--temperature", "0"), "--temperature"),
        (("--target", "sw-KE", "--task", "no:task"), "unknown task 'no:task'"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_writes_nothing(
    run: Run,
    merged: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in (
        ("blank.txt", "\n\n"),
        ("one.txt", "play music\n"),
        ("two.txt", "play music\nwake up\n"),
    ):
        Path(name).write_text(text)
    ran = run("refine", merged, "-o", "out", *options)
    assert (ran.code, ran.out) == (2, "")
    last = ran.err.splitlines()[-1]
    assert last.startswith("error: ")
    assert says in last
    assert sum(line.startswith("error: ") for line in ran.err.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["blank.txt", "one.txt", "two.txt"]


def test_a_prior_alone_has_no_use_for_teachers(run: Run, pool: Pool, merged: Path, tmp_path: Path) -> None:
    ran = run(
        "refine", merged, "--target", "sw-KE", "--task", pool.task, "--rounds", "0", "--prior", "uniform",
        "--teacher", pool.expert("de-DE"), "-o", tmp_path / "out",
    )  # fmt: skip
    assert (ran.code, ran.out) == (2, "")
    assert "without rounds nothing learns from a teacher" in ran.err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_is_none(run: Run, pool: Pool, tmp_path: Path) -> None:
    ran = run("refine", tmp_path / "none", "--target", "sw-KE", "-o", tmp_path / "out", "--task", pool.task)
    assert ran.code == 2
    assert ran.err.splitlines()[-1] == f"error: model folder {tmp_path / 'none'} does not exist"
