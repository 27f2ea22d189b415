"""The decision: merge for a target or not, and how."""

from langmerge.auto.evidence import Evidence
from langmerge.auto.question import Question
from langmerge.auto.run import RECORD, Decision, decide

__all__ = ["RECORD", "Decision", "Evidence", "Question", "decide"]
