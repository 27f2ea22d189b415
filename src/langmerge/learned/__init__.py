"""Coefficients learned from data, and the statistics that data-driven methods read."""
