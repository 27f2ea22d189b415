"""The engine: recipe → plan → execution → receipt."""

from langmerge.engine.execute import MergedTensor, merge, merged_tensors
from langmerge.engine.plan import Companions, Plan, TensorPlan
from langmerge.engine.planning import make_plan
from langmerge.engine.receipt import recipe_payload

__all__ = [
    "Companions",
    "MergedTensor",
    "Plan",
    "TensorPlan",
    "make_plan",
    "merge",
    "merged_tensors",
    "recipe_payload",
]
