"""Experiments: grids, and the study that carries one out."""

from langmerge.experiments.cost import Cost, Estimate, estimate
from langmerge.experiments.demo import DEMO_GRID
from langmerge.experiments.grid import Grid
from langmerge.experiments.sweep import Swept, Workers, run_sweep
from langmerge.results.study import Difference, Row, Study, Verdict

__all__ = [
    "DEMO_GRID", "Cost", "Difference", "Estimate", "Grid", "Row", "Study", "Swept", "Verdict", "Workers", "estimate", "run_sweep",
]  # fmt: skip
