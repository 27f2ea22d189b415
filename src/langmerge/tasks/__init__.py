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
from langmerge.tasks.shares import label_shares, read_shares
from langmerge.tasks.task import SPLITS, Examples, Task
from langmerge.tasks.unlabelled import Unlabelled, file_text, task_text

__all__ = [
    "SPLITS",
    "TASK_NAMES",
    "Examples",
    "Interval",
    "PairedDifference",
    "Task",
    "Unlabelled",
    "accuracy",
    "bootstrap_interval",
    "data_folder",
    "file_text",
    "label_shares",
    "load_task",
    "macro_f1",
    "mean_interval",
    "paired_difference",
    "read_shares",
    "task_text",
]
