"""From folder to folder: receipts, what is kept, and that an interrupt changes no byte."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from langmerge.errors import CheckpointError, OutputError
from langmerge.models import (
    load_classifier,
    load_tokenizer,
    new_classifier,
    save_classifier,
)
from langmerge.tasks import Examples, Unlabelled, file_text
from langmerge.training import RECEIPT, DevLabels, refine_folder
from langmerge.training.kept_state import load_state, save_state
from tests.training.half_trained import (
    LABELS,
    SETTINGS,
    Interrupting,
    drawn,
    files,
)


def test_same_seed_same_bytes_and_a_receipt(folder: Path, text: Unlabelled, tmp_path: Path) -> None:
    torch.manual_seed(1)
    made = refine_folder(folder, text, tmp_path / "a", refinement=SETTINGS)
    torch.manual_seed(2)
    refine_folder(folder, text, tmp_path / "b", refinement=SETTINGS)
    other = refine_folder(folder, text, tmp_path / "c", refinement=SETTINGS.model_copy(update={"seed": 1}))
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert files(tmp_path / "a")["model.safetensors"] != files(other.out)["model.safetensors"]
    record = json.loads((tmp_path / "a" / RECEIPT).read_text())
    assert record == made.record
    assert record["text"] == {
        "origin": text.origin, "locale": "sw-KE", "rows": 40, "signature": text.signature,
        "overlap": 0, "notes": [],
    }  # fmt: skip
    assert (record["teachers"], record["dev"]) == ("the model itself", None)
    assert record["settings"]["seed"] == 0
    assert record["chosen_by"] == "held-out cross-entropy to the teacher"
    assert record["signature"] != other.record["signature"]
    assert [path.name for path in tmp_path.iterdir() if "refining" in path.name] == []
    assert load_classifier(tmp_path / "a").config.id2label == {0: "alarm", 1: "music"}


@pytest.mark.parametrize("prior", [None, {"alarm": 0.7, "music": 0.3}])
@pytest.mark.parametrize("after", [1, 5, 13, 19])
def test_an_interrupted_run_goes_on_to_the_same_bytes(
    folder: Path, text: Unlabelled, tmp_path: Path, after: int, prior: dict[str, float] | None
) -> None:
    """Two rounds of two epochs of five steps, interrupted within and between epochs and rounds."""
    asked = SETTINGS.model_copy(update={"rounds": 2, "patience": 2, "prior": prior})
    whole = refine_folder(folder, text, tmp_path / "whole", refinement=asked)
    assert whole.steps == 20
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        refine_folder(folder, text, out, refinement=asked, save_every=0.0, progress=Interrupting(after))
    assert not out.exists()
    assert (tmp_path / ".out.refining").is_file()
    found = refine_folder(folder, text, out, refinement=asked)
    assert found.steps == 20 - after + (after % 5 == 0)
    assert files(out) == files(tmp_path / "whole")
    assert not (tmp_path / ".out.refining").exists()


def test_without_a_saved_step_it_goes_on_from_the_epoch(
    folder: Path, text: Unlabelled, tmp_path: Path
) -> None:
    asked = SETTINGS.model_copy(update={"patience": 2})
    refine_folder(folder, text, tmp_path / "whole", refinement=asked)
    with pytest.raises(KeyboardInterrupt):
        refine_folder(folder, text, tmp_path / "out", refinement=asked, progress=Interrupting(7))
    assert refine_folder(folder, text, tmp_path / "out", refinement=asked).steps == 5
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_another_runs_state_is_not_continued(folder: Path, text: Unlabelled, tmp_path: Path) -> None:
    refine_folder(folder, text, tmp_path / "whole", refinement=SETTINGS)
    with pytest.raises(KeyboardInterrupt):
        refine_folder(
            folder, text, tmp_path / "out", refinement=SETTINGS.model_copy(update={"seed": 4}),
            save_every=0.0, progress=Interrupting(7),
        )  # fmt: skip
    refine_folder(folder, text, tmp_path / "out", refinement=SETTINGS)
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_a_state_is_whole_or_nothing(tmp_path: Path) -> None:
    file = tmp_path / "below" / "state"
    assert load_state(file, "a") is None
    save_state(file, "a", {"step": 3})
    assert load_state(file, "a") == {"signature": "a", "step": 3}
    assert load_state(file, "b") is None
    file.write_bytes(file.read_bytes()[:200])
    assert load_state(file, "a") is None
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        save_state(tmp_path / "file" / "state", "a", {})


def test_labels_of_a_file_decide_nothing(folder: Path, tmp_path: Path) -> None:
    texts, labels = drawn(24, 6)
    found = []
    for name, given in (("a", labels), ("b", 1 - labels)):
        file = tmp_path / "text.csv"
        rows = [f"{line},{label}" for line, label in zip(texts, given, strict=True)]
        file.write_text("\n".join(["text,label", *rows]), encoding="utf-8")
        refine_folder(folder, file_text(file, locale="sw-KE"), tmp_path / name, refinement=SETTINGS)
        found.append(files(tmp_path / name))
    assert found[0] == found[1]
    assert json.loads(found[0][RECEIPT])["text"]["notes"] == ["labels in the file were not read: label"]


def test_what_is_there_is_kept_and_anything_else_is_not_overwritten(
    folder: Path, text: Unlabelled, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    first = refine_folder(folder, text, out, refinement=SETTINGS)
    before = files(out)
    again = refine_folder(folder, text, out, refinement=SETTINGS, overwrite=True)
    assert (first.kept, again.kept, again.record) == (False, True, first.record)
    other = SETTINGS.model_copy(update={"seed": 1})
    with pytest.raises(OutputError, match="exists already"):
        refine_folder(folder, text, out, refinement=other)
    assert files(out) == before
    damaged = bytearray(before["model.safetensors"])
    damaged[-1] ^= 1
    (out / "model.safetensors").write_bytes(damaged)
    with pytest.raises(OutputError, match="exists already"):
        refine_folder(folder, text, out, refinement=SETTINGS)
    refine_folder(folder, text, out, refinement=SETTINGS, overwrite=True)
    assert files(out) == before


def test_the_output_may_not_be_an_input(folder: Path, text: Unlabelled) -> None:
    with pytest.raises(OutputError, match="holds the input"):
        refine_folder(folder, text, folder, refinement=SETTINGS, overwrite=True)
    with pytest.raises(OutputError, match="holds the input"):
        refine_folder(folder, text, folder.parent, refinement=SETTINGS, overwrite=True)


@pytest.fixture(scope="module")
def turned(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model with its two classes written in the other order."""
    model = load_classifier(folder)
    with torch.no_grad():
        for parameter in model.classifier.out_proj.parameters():
            parameter.copy_(parameter.flip(0))
    model.config.id2label, model.config.label2id = {0: "music", 1: "alarm"}, {"music": 0, "alarm": 1}
    out = tmp_path_factory.mktemp("turned") / "model"
    save_classifier(model, load_tokenizer(folder), out)
    return out


def test_a_teachers_labels_are_matched_by_name(
    folder: Path, turned: Path, text: Unlabelled, tmp_path: Path
) -> None:
    own = refine_folder(folder, text, tmp_path / "own", refinement=SETTINGS)
    for name, teachers in (("one", [turned]), ("two", [turned, folder])):
        made = refine_folder(folder, text, tmp_path / name, refinement=SETTINGS, teachers=teachers)
        assert made.record["history"][0]["flips"] == own.record["history"][0]["flips"]
        assert made.record["history"][0]["loss"] == pytest.approx(own.record["history"][0]["loss"], rel=1e-5)
        assert [one["folder"] for one in made.record["teachers"]] == [str(one) for one in teachers]


def test_dev_labels_are_matched_by_name(folder: Path, turned: Path, text: Unlabelled, tmp_path: Path) -> None:
    texts, labels = drawn(40, 5)
    rows = Examples("sw-KE", "dev", tuple(map(str, range(40))), tuple(texts), labels.astype(np.int64))
    found = []
    for name, model in (("a", folder), ("b", turned)):
        made = refine_folder(
            model, text, tmp_path / name, refinement=SETTINGS, dev=DevLabels(rows, LABELS), teachers=[folder]
        )
        found.append([entry["dev_accuracy"] for entry in made.record["history"]])
        assert made.record["chosen_by"] == "dev accuracy"
        assert made.record["dev"]
    assert found[0] == found[1]
    with pytest.raises(CheckpointError, match="no output for the labels weather"):
        refine_folder(folder, text, tmp_path / "c", dev=DevLabels(rows, (*LABELS, "weather")))


def test_a_teacher_for_another_task(folder: Path, text: Unlabelled, tmp_path: Path) -> None:
    model, tokenizer = new_classifier(folder.parent / "encoder", ("alarm", "weather"), seed=0)
    save_classifier(model, tokenizer, tmp_path / "other")
    with pytest.raises(CheckpointError, match="has other labels than the model: music, weather"):
        refine_folder(folder, text, tmp_path / "out", teachers=[tmp_path / "other"])
    assert not (tmp_path / "out").exists()
