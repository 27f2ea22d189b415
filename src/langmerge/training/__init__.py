"""Training experts, and the base they start from."""

from langmerge.training.bases import OFFLINE, ensure_base
from langmerge.training.expert import ExpertRecord, train_expert
from langmerge.training.pool import ORIGIN, Training, train_pool

__all__ = ["OFFLINE", "ORIGIN", "ExpertRecord", "Training", "ensure_base", "train_expert", "train_pool"]
