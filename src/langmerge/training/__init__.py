"""Training experts, the base they start from, and refining what is made of them."""

from langmerge.training.adapters import FORMS, RATES, AdapterTraining, Bench, train_adapters
from langmerge.training.bases import OFFLINE, ORIGIN, base_name, ensure_base
from langmerge.training.expert import ExpertRecord, train_expert
from langmerge.training.pool import Training, joint_model, train_pool
from langmerge.training.refine import refine_classifier, soft_labels
from langmerge.training.refined import RECEIPT, DevLabels, RefinedFolder, refine_folder
from langmerge.training.refinement import Refined, Refinement

__all__ = [
    "FORMS",
    "OFFLINE",
    "ORIGIN",
    "RATES",
    "RECEIPT",
    "AdapterTraining",
    "Bench",
    "DevLabels",
    "ExpertRecord",
    "Refined",
    "RefinedFolder",
    "Refinement",
    "Training",
    "base_name",
    "ensure_base",
    "joint_model",
    "refine_classifier",
    "refine_folder",
    "soft_labels",
    "train_adapters",
    "train_expert",
    "train_pool",
]
