"""Merging methods: pure functions of tensors, and their table."""

from langmerge.methods.specs import (
    SPECS,
    Kind,
    MethodSpec,
    checked_parameters,
    method_parameters,
    require_weights,
    sees_of,
    spec_of,
    statistics_of,
)
from langmerge.methods.table import METHODS, Method, measures_of

__all__ = [
    "METHODS",
    "SPECS",
    "Kind",
    "Method",
    "MethodSpec",
    "checked_parameters",
    "measures_of",
    "method_parameters",
    "require_weights",
    "sees_of",
    "spec_of",
    "statistics_of",
]
