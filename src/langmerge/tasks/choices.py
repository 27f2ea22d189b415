"""The second half of an error message: what would have been accepted."""

from collections.abc import Sequence
from difflib import get_close_matches


def what_is_accepted(given: str, options: Sequence[str]) -> str:
    """The options that look like what was given, and all of them.

    >>> what_is_accepted("tests", ("train", "dev", "test"))
    "did you mean 'test'? Accepted: train, dev, test"

    Args:
        given: what was not accepted.
        options: what is.
    """
    listed = f"Accepted: {', '.join(options) or 'none'}"
    close = get_close_matches(given, options, n=3)
    if not close:
        return listed[0].lower() + listed[1:]
    return f"did you mean {' or '.join(map(repr, close))}? {listed}"
