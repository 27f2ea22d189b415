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
    seeded_interval,
)
from langmerge.tasks.registry import TASK_NAMES, load_task
from langmerge.tasks.shares import label_shares, read_shares
from langmerge.tasks.slots import (
    BIO,
    IGNORED,
    SLOTS,
    SlotExamples,
    SlotTask,
    Span,
    decoded,
    paired_span_f1,
    parse_annotated,
    slot_task,
    span_f1,
    span_f1_interval,
    token_labels,
)
from langmerge.tasks.task import SPLITS, Examples, Task
from langmerge.tasks.unlabelled import Unlabelled, file_text, task_text

__all__ = [
    "BIO",
    "IGNORED",
    "SLOTS",
    "SPLITS",
    "TASK_NAMES",
    "Examples",
    "Interval",
    "PairedDifference",
    "SlotExamples",
    "SlotTask",
    "Span",
    "Task",
    "Unlabelled",
    "accuracy",
    "bootstrap_interval",
    "data_folder",
    "decoded",
    "file_text",
    "label_shares",
    "load_task",
    "macro_f1",
    "mean_interval",
    "paired_difference",
    "paired_span_f1",
    "parse_annotated",
    "read_shares",
    "seeded_interval",
    "slot_task",
    "span_f1",
    "span_f1_interval",
    "task_text",
    "token_labels",
]
