"""Results: signatures, kept logits, studies. Names load on first use: a merge needs no more than the signature."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from langmerge.results.signature import signature

if TYPE_CHECKING:
    from langmerge.results.ensembles import soft_vote
    from langmerge.results.logits import Logits, kept_logits, load_logits
    from langmerge.results.study import Difference, Row, Study, Verdict

__all__ = [
    "Difference",
    "Logits",
    "Row",
    "Study",
    "Verdict",
    "kept_logits",
    "load_logits",
    "signature",
    "soft_vote",
]

_HOMES = (
    dict.fromkeys(("Logits", "kept_logits", "load_logits"), "logits")
    | dict.fromkeys(("Difference", "Row", "Study", "Verdict"), "study")
    | {"soft_vote": "ensembles"}
)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'langmerge.results' has no attribute {name!r}")
    return getattr(import_module(f"langmerge.results.{_HOMES[name]}"), name)
