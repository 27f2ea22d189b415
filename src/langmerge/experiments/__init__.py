"""Experiments: grids, and the study that carries one out."""

from langmerge.experiments.demo import DEMO_GRID
from langmerge.experiments.grid import Grid
from langmerge.experiments.study import run_study
from langmerge.results.study import Difference, Row, Study, Verdict

__all__ = ["DEMO_GRID", "Difference", "Grid", "Row", "Study", "Verdict", "run_study"]
