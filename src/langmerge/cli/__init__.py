"""The command line."""

from langmerge.cli.app import app, main, program

__all__ = ["app", "main", "program"]
