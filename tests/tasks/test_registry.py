import pickle
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import langmerge.tasks as tasks
from langmerge.errors import DataError, LocaleError, MissingExtraError
from langmerge.tasks import TASK_NAMES, data_folder, load_task

from .conftest import WriteMassive, massive_record


def test_the_export_list_is_sorted_and_true() -> None:
    upper = [name for name in tasks.__all__ if name.isupper()]
    classes = [name for name in tasks.__all__ if name[0].isupper() and not name.isupper()]
    functions = [name for name in tasks.__all__ if name.islower()]
    assert tasks.__all__ == sorted(upper) + sorted(classes) + sorted(functions)
    assert all(hasattr(tasks, name) for name in tasks.__all__)


@pytest.mark.parametrize("name", ["masive:intent", "massive:intents", "demo", "folder:", ""])
def test_an_unknown_task_lists_the_known_ones(name: str) -> None:
    with pytest.raises(DataError) as caught:
        load_task(name)
    assert repr(name) in str(caught.value)
    assert all(known in str(caught.value) for known in TASK_NAMES)


def test_a_close_match_is_offered() -> None:
    with pytest.raises(DataError, match=r"unknown task 'masive:intent': did you mean 'massive:intent'"):
        load_task("masive:intent")


@pytest.mark.parametrize("name", ["demo:intent", "massive:intent", "massive:intent@hub"])
def test_a_task_survives_pickling(name: str, write_massive: WriteMassive) -> None:
    task = load_task(name, data=write_massive([massive_record()]))
    assert pickle.loads(pickle.dumps(task)).labels == task.labels


def test_locales_are_accepted_in_any_spelling() -> None:
    assert load_task("demo:intent").load("sw_ke", "dev").locale == "sw-KE"


def test_an_unknown_locale_lists_the_available_ones() -> None:
    with pytest.raises(
        LocaleError, match=r"demo:intent has no locale 'sw-TZ': did you mean 'sw-KE'.*cy-GB.*vi-VN"
    ):
        load_task("demo:intent").load("sw-TZ", "dev")


def test_an_unknown_split_lists_the_splits() -> None:
    with pytest.raises(DataError, match=r"demo:intent has no split 'validation': accepted: train, dev, test"):
        load_task("demo:intent").load("sw-KE", "validation")


def test_the_data_argument_comes_before_the_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LANGMERGE_DATA", str(tmp_path / "variable"))
    assert data_folder(tmp_path / "argument") == tmp_path / "argument"
    assert data_folder() == tmp_path / "variable"


@pytest.mark.parametrize("variable", [None, ""])
def test_the_nearest_shared_data_above_is_the_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str | None
) -> None:
    monkeypatch.delenv("LANGMERGE_DATA", raising=False)
    if variable is not None:
        monkeypatch.setenv("LANGMERGE_DATA", variable)
    inside = tmp_path / "repository" / "docs"
    inside.mkdir(parents=True)
    (tmp_path / "shared" / "data").mkdir(parents=True)
    monkeypatch.chdir(inside)
    assert data_folder() == tmp_path / "shared" / "data"


def test_absent_massive_names_the_folder_and_both_ways_out(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_task("massive:scenario", data=tmp_path)
    for part in (
        str(tmp_path / "massive/1.1/data"),
        "LANGMERGE_DATA",
        "massive:scenario@hub",
        "langmerge[hub]",
    ):
        assert part in str(caught.value)


def test_absent_sib200_names_the_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"sib200:topic looked for the folder .*sib200.*LANGMERGE_DATA"):
        load_task("sib200:topic", data=tmp_path)


class Table(list[dict[str, Any]]):
    """What `datasets.load_dataset` gives back, as far as it is used."""

    def __init__(self, rows: list[dict[str, Any]], names: list[str] | None) -> None:
        super().__init__(rows)
        feature = ModuleType("feature")
        if names is not None:
            feature.names = names  # type: ignore[attr-defined]
        self.features = {"intent": feature}


def pretend_hub(monkeypatch: pytest.MonkeyPatch, answer: Table | Exception) -> list[tuple[Any, ...]]:
    calls: list[tuple[Any, ...]] = []

    def load_dataset(*args: Any, **options: Any) -> Table:
        calls.append((*args, options))
        if isinstance(answer, Exception):
            raise answer
        return answer

    module = ModuleType("datasets")
    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    return calls


def test_the_hub_matches_labels_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [massive_record(id=str(row), intent=number, partition="dev") for row, number in enumerate([1, 0])]
    calls = pretend_hub(monkeypatch, Table(rows, names=["qa_maths", "alarm_set"]))
    task = load_task("massive:intent@hub")
    dev = task.load("sw-KE", "dev")
    assert [task.labels[label] for label in dev.labels] == ["alarm_set", "qa_maths"]
    assert calls == [
        ("AmazonScience/massive", "sw-KE", {"revision": "refs/convert/parquet", "split": "validation"})
    ]
    assert (len(task.locales), task.name) == (52, "massive:intent@hub")
    assert "AmazonScience/massive" in task.revision


def test_the_hub_with_labels_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_hub(monkeypatch, Table([massive_record(intent="alarm_sett")], names=None))
    with pytest.raises(
        DataError, match=r"massive sw-KE train .*row 1: unknown label 'alarm_sett': did you mean"
    ):
        load_task("massive:intent@hub").load("sw-KE", "train")


def test_an_unreachable_hub_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_hub(monkeypatch, ConnectionError("no route"))
    with pytest.raises(
        DataError, match=r"could not get AmazonScience/massive sw-KE train .*no route.*LANGMERGE_DATA"
    ):
        load_task("massive:intent@hub").load("sw-KE", "train")


def test_the_hub_needs_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"massive:intent@hub needs.*langmerge\[hub\]"):
        load_task("massive:intent@hub").load("sw-KE", "train")
