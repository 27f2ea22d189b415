"""langmerge: choose, merge and judge language experts.

Names load on first use, so that `import langmerge` loads neither torch nor transformers.
"""

from importlib import import_module
from typing import Any

__version__ = "0.2.0"

_HOMES = {
    "METHODS": "langmerge.methods",
    "Coefficients": "langmerge.coefficients",
    "Pool": "langmerge.pool",
    "Recipe": "langmerge.recipe",
    "TransferMatrix": "langmerge.selection",
    "merge": "langmerge.engine",
    "plan": "langmerge.engine",
    "select_sources": "langmerge.selection",
    "transfer_matrix": "langmerge.evaluate",
    "evaluate_model": "langmerge.evaluate",
    "errors": "langmerge.errors",
    "learn": "langmerge.learn",
    "adapters": "langmerge.adapters",
    "auto": "langmerge.auto",
}
_RENAMED = {"plan": "make_plan"}

__all__ = [
    "METHODS",
    "Coefficients",
    "Pool",
    "Recipe",
    "TransferMatrix",
    "adapters",
    "auto",
    "errors",
    "evaluate_model",
    "learn",
    "merge",
    "plan",
    "select_sources",
    "transfer_matrix",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'langmerge' has no attribute {name!r}")
    home = import_module(_HOMES[name])
    return (
        home if name in ("errors", "learn", "adapters", "auto") else getattr(home, _RENAMED.get(name, name))
    )


def __dir__() -> list[str]:
    return __all__
