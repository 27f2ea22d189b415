"""transfer, adapters merge."""

import json
from pathlib import Path

import pytest

from tests.adapters.made import filled, loaded, state, write_adapter
from tests.adapters.test_transfer import only_head, same, three
from tests.cli.conftest import Run
from tests.tiny import write_xlm_roberta

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def options(folders: dict[str, Path]) -> list[object]:
    return [part for role, folder in folders.items() for part in (f"--{role.replace('_', '-')}", folder)]


def test_transfer(run: Run, tmp_path: Path) -> None:
    folders, models = three(tmp_path)
    ran = run("transfer", tmp_path / "out", *options(folders), "-t", "0.5")
    assert (ran.code, ran.err) == (0, "")
    assert "lora, product, t = 0.5" in ran.out
    assert "‖P2 − P3‖ / ‖P1‖" in ran.out
    one, two, other = map(state, models)
    dense = {name: one[name] + 0.5 * (two[name] - other[name]) for name in one} | only_head(one)
    same(loaded(tmp_path / "out"), filled(dense))
    ran = run(
        "transfer",
        tmp_path / "json",
        *options(folders),
        "-t",
        "0.5",
        "--mode",
        "svd",
        "--rank",
        "1",
        "--json",
    )
    found = json.loads(ran.out)
    assert found["settings"] == {"t": 0.5, "mode": "svd", "rank": 1, "clip": None, "dtype": "keep"}
    assert found["totals"]["error"] > 0.1
    assert "classifier.out_proj.weight" in found["left_out"]


def test_transfer_of_whole_models(run: Run, tmp_path: Path) -> None:
    roles = ("task_source", "reference_target", "reference_source")
    folders = {role: write_xlm_roberta(tmp_path / role, seed=seed) for seed, role in enumerate(roles)}
    ran = run("transfer", tmp_path / "out", *options(folders))
    assert ran.code == 0, ran.err
    assert (tmp_path / "out" / "model.safetensors").is_file()
    ran = run("transfer", tmp_path / "never", *options(folders), "--mode", "svd")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("error: ")
    assert "is a whole model: mode, rank, clip, dtype and same_base are for adapters" in ran.err
    assert not (tmp_path / "never").exists()


def test_merge(run: Run, tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        write_adapter(tmp_path / name, seed, **({"r": 3} if seed else {}))
    one, two = tmp_path / "a", tmp_path / "b"
    ran = run("adapters", "merge", tmp_path / "out", f"{one}:0.5", f"{two}:-0.25", "--head", "a")
    assert ran.code == 0, ran.err
    assert "cosines between the weighted updates" in " ".join(ran.out.split())
    assert "lora, cat, of a, b written to" in ran.out
    ran = run(
        "adapters", "merge", tmp_path / "ties", f"{one}:0.5", f"{two}:0.5", "--head", "b", "--method", "ties", "-p",
        "density=0.3", "--mode", "product", "--rank", "2", "--json",
    )  # fmt: skip
    found = json.loads(ran.out)
    assert (found["settings"]["mode"], found["settings"]["parameters"]) == ("product", {"density": 0.3})
    assert loaded(tmp_path / "ties") is not None


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["a"], "'a' is no FOLDER:WEIGHT: write it like a:0.5"),
        (["a:x"], "'a:x' is no FOLDER:WEIGHT"),
        (["a:0.5", "a:0.5"], "adapter a is given twice"),
        (["a:1"], "a alone with weight 1 stays as it is"),
        (["a:0.5", "none:0.5"], "adapter folder none does not exist"),
        (["a:0.5", "b:0.5"], "the labels of a's head are not known"),
        (["a:0.5", "b:0.5", "--head", "a", "--mode", "ties"], "mode 'ties' is not for lora"),
        (["a:0.5", "b:0.5", "--head", "a", "--rank", "0"], "--rank"),
    ],
)
def test_bad_input(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("ab"):
        write_adapter(Path(name), seed)
    ran = run("adapters", "merge", "out", *given)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("error: ")
    assert says in ran.err
    assert ran.err.count("\n") == 1
    assert not Path("out").exists()


def test_transfer_that_changes_nothing(run: Run, tmp_path: Path) -> None:
    folders, _ = three(tmp_path)
    ran = run("transfer", tmp_path / "out", *options(folders), "-t", "0")
    assert (ran.code, ran.out) == (2, "")
    assert "leaves" in ran.err
    assert not (tmp_path / "out").exists()
