"""Labelled text by locale and split, and the scores that are computed on it."""

from langmerge.tasks.data import data_folder
from langmerge.tasks.metrics import (
    Interval,
    PairedDifference,
    accuracy,
    bootstrap_interval,
    macro_f1,
    mean_interval,
    paired_difference,
)
from langmerge.tasks.registry import TASK_NAMES, load_task
from langmerge.tasks.task import SPLITS, Examples, Task

__all__ = [
    "SPLITS",
    "TASK_NAMES",
    "Examples",
    "Interval",
    "PairedDifference",
    "Task",
    "accuracy",
    "bootstrap_interval",
    "data_folder",
    "load_task",
    "macro_f1",
    "mean_interval",
    "paired_difference",
]
