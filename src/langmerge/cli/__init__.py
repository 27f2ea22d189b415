"""The command line."""

from langmerge.cli.app import app, main

__all__ = ["app", "main"]
