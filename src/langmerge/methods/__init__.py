"""Merging methods: pure functions of tensors, and their table."""

from langmerge.methods.table import (
    EXACTLY_TWO,
    MATRIX_METHODS,
    METHODS,
    Method,
    checked_parameters,
    method_parameters,
)

__all__ = ["EXACTLY_TWO", "MATRIX_METHODS", "METHODS", "Method", "checked_parameters", "method_parameters"]
