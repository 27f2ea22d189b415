"""Signatures: which run a number came from."""

import hashlib
import json
from typing import Any


def signature(payload: Any) -> str:
    """A short hash of anything that JSON can hold; key order does not matter.

    >>> signature({"a": 1, "b": [2]}) == signature({"b": [2], "a": 1})
    True

    Returns:
        12 hexadecimal digits.
    """
    text = json.dumps(payload, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
