"""Keys of random streams: what a tensor and a source draw depends on nothing else. Loads no torch."""

import hashlib
from collections.abc import Sequence

from langmerge.errors import MethodError


def stream_key(seed: int, key: str) -> int:
    """The 64-bit number under which a tensor and source (in `key`) draw theirs, from SHA-256."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{key}".encode()).digest()[:8], "little")


def keep_below(density: float) -> int:
    """The bound below which a random word keeps its entry."""
    return round(density * (1 << 32))


def source_keys(key: str, sources: Sequence[str] | None, n: int) -> list[str]:
    """What each source's numbers are keyed by: the tensor and the source's name, or its position.

    Raises:
        MethodError: another number of names than sources; two would share their numbers.
    """
    names = [str(i) for i in range(n)] if sources is None else list(sources)
    if len(names) != n:
        raise MethodError(f"{len(names)} source names were given for {n} sources")
    return [f"{key}\0{name}" for name in names]
