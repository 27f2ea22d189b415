"""Results: signatures and kept logits."""

from langmerge.results.logits import Logits, load_logits, soft_vote
from langmerge.results.signature import folder_signature, signature
from langmerge.results.study import Difference, Row, Study, Verdict

__all__ = [
    "Difference",
    "Logits",
    "Row",
    "Study",
    "Verdict",
    "folder_signature",
    "load_logits",
    "signature",
    "soft_vote",
]
