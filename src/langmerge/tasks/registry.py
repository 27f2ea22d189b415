"""Tasks by name."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from langmerge.errors import DataError
from langmerge.tasks import demo, folder, massive, sib200
from langmerge.tasks.choices import what_is_accepted
from langmerge.tasks.task import Task

_TASKS: dict[str, Callable[[Path | None], Task]] = {
    "demo:intent": lambda _data: demo.embedded_task(),
    "massive:intent": partial(massive.folder_task, "intent"),
    "massive:intent@hub": lambda _data: massive.hub_task("intent"),
    "massive:scenario": partial(massive.folder_task, "scenario"),
    "massive:scenario@hub": lambda _data: massive.hub_task("scenario"),
    "sib200:topic": sib200.folder_task,
}

TASK_NAMES: tuple[str, ...] = (*_TASKS, f"{folder.PREFIX}PATH")
"""What `load_task` accepts."""


def load_task(name: str, *, data: Path | None = None) -> Task:
    """A task by name; its text is read when `Task.load` is called.

    >>> load_task("demo:intent").labels[:2]
    ('alarm_set', 'calendar_add')

    Args:
        name: one of `TASK_NAMES`; the layout for `folder:PATH` is in `langmerge.tasks.folder`.
        data: the folder that holds `massive/` and `sib200/`; default: LANGMERGE_DATA, else the nearest `shared/data`.

    Raises:
        DataError: the name is unknown, or the data is missing or malformed.
        LocaleError: a file or folder is not named by a locale.
    """
    path = name.removeprefix(folder.PREFIX)
    if path and path != name:
        return folder.folder_task(Path(path))
    if name not in _TASKS:
        raise DataError(f"unknown task {name!r}: {what_is_accepted(name, TASK_NAMES)}")
    return _TASKS[name](data)
