"""learn adamerging, and merging what it writes."""

import json
from pathlib import Path

import pytest

from langmerge.adapting import Decision
from langmerge.coefficients import Coefficients
from langmerge.learned import adamerging
from langmerge.pool import Pool
from tests.cli.conftest import Run
from tests.cli.test_bad_input import assert_refused
from tests.tiny_pool import write_tiny_pool

QUICK = ("--target", "sw-KE", "-k", "2", "--steps", "4", "--batch-size", "8", "--lr", "0.02")


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """Read-only, but for logits that are kept."""
    return write_tiny_pool(tmp_path_factory.mktemp("learning"))


def test_a_file_that_merge_replays_with_the_method_that_it_is_for(
    run: Run, pool: Pool, tmp_path: Path
) -> None:
    out = tmp_path / "c.json"
    ran = run("learn", "adamerging", pool.root, *QUICK, "-o", out, "--compare", "--json")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert found["coefficients"] == Coefficients.load(out).values
    assert [line["name"].split(" (")[0] for line in found["beside"]][:3] == ["start", "uniform", "learned"]
    assert list(tmp_path.iterdir()) == [out]
    ran = run("merge", tmp_path / "model", "--pool", pool.root, "--coefficients", out)
    assert ran.code == 0, ran.err
    receipt = json.loads((tmp_path / "model" / "langmerge.json").read_text())
    assert receipt["method"] == "task_arithmetic"


def test_plus_is_replayed_by_ties_without_division(run: Run, pool: Pool, tmp_path: Path) -> None:
    out = tmp_path / "c.json"
    ran = run("learn", "adamerging", pool.root, *QUICK, "--plus", "0.5", "--objective", "entropy", "-o", out)
    assert ran.code == 0, ran.err
    ran = run("merge", tmp_path / "model", "--pool", pool.root, "--coefficients", out)
    assert ran.code == 0, ran.err
    receipt = json.loads((tmp_path / "model" / "langmerge.json").read_text())
    assert (receipt["method"], receipt["parameters"]["election"]) == ("ties", "unweighted")


def test_people_read_a_table_and_the_next_command(run: Run, pool: Pool, tmp_path: Path) -> None:
    out, page = tmp_path / "c.json", tmp_path / "run.html"
    ran = run("learn", "adamerging", pool.root, *QUICK, "-o", out, "--compare", "--html", page)
    assert ran.code == 0, ran.err
    text = " ".join(ran.out.split())
    for words in ("coefficients for sw-KE", "logits grew", "soft vote", f"--coefficients {out}"):
        assert words in text
    drawn = page.read_text()
    assert drawn.count("<svg") == 2
    assert "held-out rows" in drawn


def test_an_interrupt_keeps_the_state_and_the_same_command_ends_with_the_same_bytes(
    run: Run, pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight, broken = tmp_path / "a.json", tmp_path / "b.json"
    assert run("learn", "adamerging", pool.root, *QUICK, "-o", straight).code == 0
    step, taken = adamerging.Run._step, []

    def interrupted(self: adamerging.Run) -> None:
        taken.append(0)
        if len(taken) == 3:
            raise KeyboardInterrupt
        step(self)

    with monkeypatch.context() as patched:
        patched.setattr(adamerging.Run, "_step", interrupted)
        ran = run("learn", "adamerging", pool.root, *QUICK, "-o", broken)
    assert ran.code == 130
    assert "goes on from there" in ran.err
    assert [file.name for file in sorted(tmp_path.iterdir())] == ["a.json", "b.json.state.json"]
    assert run("learn", "adamerging", pool.root, *QUICK, "-o", broken).code == 0
    assert broken.read_bytes() == straight.read_bytes()
    assert not (tmp_path / "b.json.state.json").exists()


@pytest.mark.parametrize("learns", [True, False])
def test_hybrid_records_its_decision(
    run: Run, pool: Pool, tmp_path: Path, learns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Decision, "learns", learns)
    out = tmp_path / "c.json"
    ran = run("learn", "adamerging", pool.root, *QUICK, "--hybrid", "linear", "-o", out, "--json")
    assert ran.code == 0, ran.err
    file = Coefficients.load(out)
    decision = file.provenance["decision"]
    assert (decision["rule"], decision["method"], decision["learned"]) == ("hybrid", "linear", learns)
    assert file.provenance["made_by"] == ("adamerging" if learns else "hybrid")
    assert file.provenance["method"] == ("task_arithmetic" if learns else "linear")
    assert json.loads(ran.out)["decision"] == decision


def test_text_from_a_file_whose_labels_are_not_read(run: Run, pool: Pool, tmp_path: Path) -> None:
    text = tmp_path / "text.jsonl"
    text.write_text(
        "".join(
            json.dumps({"text": f"wake me up {word}", "label": "x"}) + "\n"
            for word in ("today", "please", "now", "rain", "sun", "music", "stop", "play", "me", "up")
        )
    )
    ran = run("learn", "adamerging", pool.root, *QUICK, "--text", text, "-o", tmp_path / "c.json")
    assert ran.code == 0, ran.err
    assert "labels in the file were not read: label" in ran.err
    recorded = Coefficients.load(tmp_path / "c.json").provenance["text"]
    assert recorded["rows"] == 10


def test_transductive_text_is_said_and_recorded(run: Run, pool: Pool, tmp_path: Path) -> None:
    ran = run("learn", "adamerging", pool.root, *QUICK, "--split", "test", "-o", tmp_path / "c.json")
    assert ran.code == 0, ran.err
    assert "transductive" in ran.err
    assert Coefficients.load(tmp_path / "c.json").provenance["text"]["overlap_with_test"] > 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--objective", "mse"), "objective"),
        (("--groups", "layer"), "groups"),
        (("--preset", "fast"), "preset"),
        (("--lr", "0"), "lr"),
        (("--low", "1", "--high", "0"), "bounds"),
        (("--freeze", "heads"), "'heads' is no part"),
        (("--init", "3"), "outside the bounds"),
        (("--teacher", "xx-XX"), "no expert for 'xx-XX'"),
        (("--text", "nowhere.txt"), "nowhere.txt"),
        (("--freeze", "head,block:0,block:1,embeddings,other"), "nothing is left to learn"),
        (("--start", "nowhere.json"), "-k: --start says it; leave it out"),
        (("--on-top-of", "nowhere", "--init", "0.3"), "--init starts every coefficient at one number"),
        (("--teacher", "en-US", "--objective", "entropy"), "--teacher: the objective entropy has none"),
    ],
)
def test_what_is_refused_leaves_nothing(
    run: Run, pool: Pool, tmp_path: Path, arguments: tuple[str, ...], says: str
) -> None:
    line = ["learn", "adamerging", pool.root, *QUICK, *arguments, "-o", tmp_path / "c.json"]
    assert_refused(run, tmp_path, line, says)


def test_a_preset_does_not_put_its_own_start_in_place_of_the_one_that_is_given(
    run: Run, pool: Pool, tmp_path: Path
) -> None:
    numbers = {"de-DE": 0.7, "fr-FR": 0.2}
    Coefficients(target="sw-KE", values={"model": numbers}).save(tmp_path / "start.json")
    line = (
        "learn",
        "adamerging",
        pool.root,
        "--target",
        "sw-KE",
        "--preset",
        "paper_taskwise",
        "--steps",
        "1",
    )
    ran = run(*line, "--start", tmp_path / "start.json", "-o", tmp_path / "c.json", "--json")
    assert ran.code == 0, ran.err
    first = json.loads(ran.out)["history"][0]["coefficients"]
    assert first == [pytest.approx([0.7, 0.2])]
    lost = run(*line, "--start", tmp_path / "none.json", "-o", tmp_path / "d.json")
    assert lost.code == 2
    assert "none.json" in lost.err


def test_blank_text(run: Run, pool: Pool, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n  \n")
    line = ["learn", "adamerging", pool.root, *QUICK, "--text", text, "-o", tmp_path / "c.json"]
    assert_refused(run, tmp_path, line, "has no text")


def test_an_existing_file_is_kept(run: Run, pool: Pool, tmp_path: Path) -> None:
    out = tmp_path / "c.json"
    out.write_text("mine")
    assert_refused(run, tmp_path, ["learn", "adamerging", pool.root, *QUICK, "-o", out], "exists")


def test_nan_in_the_loss_is_one_line_and_the_state_stays(
    run: Run, pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill, calls = adamerging.Run.backward, []

    def breaking(self: adamerging.Run, at: int) -> float:
        calls.append(0)
        return float("nan") if len(calls) == 3 else fill(self, at)

    monkeypatch.setattr(adamerging.Run, "backward", breaking)
    ran = run("learn", "adamerging", pool.root, *QUICK, "-o", tmp_path / "c.json")
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert "step 3: the loss is nan" in ran.err
    assert json.loads((tmp_path / "c.json.state.json").read_text())["step"] == 2
